"""Evaluation of a model, and the pages that show it: one HTML file each, which loads and runs nothing."""

from .cases import case_report
from .evaluation import Evaluation, evaluate
from .page import write_report

__all__ = ["Evaluation", "case_report", "evaluate", "write_report"]
