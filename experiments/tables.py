"""Tables of the README and the guides, printed from the results files; `tests/test_docs.py` checks that they agree.

python experiments/tables.py
"""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
FIGURES = {
    "accuracy": "accuracy",
    "auroc": "AUROC",
    "ece": "ECE",
    "nll": "NLL",
    "set_size_marginal": "set size, marginal",
    "set_size_class-conditional": "set size, class-conditional",
}
MODELS = {
    "laplace": "`LaplaceHead()`",
    "laplace_no_mean_correction": "`LaplaceHead(mean_correction=False)`",
    "laplace_standardize": "`LaplaceHead(standardize=True)`",
    "logistic": "logistic regression, each feature standardised",
    "logistic_one_scale": "logistic regression, one scale",
}


def heads_table(summary: dict[str, Any], models: list[str]) -> str:
    """Mean over the seeds, with the least and the largest below it."""
    rows = [f"| {label} | " + " | ".join(_cell(summary[m][f], f) for f in FIGURES) + " |" for m, label in _of(models)]
    return "\n".join([f"| | {' | '.join(FIGURES.values())} |", "|---" * (len(FIGURES) + 1) + "|", *rows])


def coverage_table(summary: dict[str, Any]) -> str:
    classes = list(summary["marginal"]["mean_coverage_by_class"])
    rows = [
        f"| {name} | {summary[name]['mean_coverage']:.3f} | "
        f"{summary[name]['inside_the_95%_band']} of {summary[name]['splits']} | "
        + " | ".join(f"{summary[name]['mean_coverage_by_class'][c]:.2f}" for c in classes)
        + " |"
        for name in ("marginal", "class-conditional")
    ]
    head = f"| guarantee | coverage | splits inside the 95% band | {' | '.join(classes)} |"
    return "\n".join([head, "|---" * (len(classes) + 3) + "|", *rows])


def tables() -> dict[str, str]:
    """Name of the page to the table on it."""
    summary = json.loads((RESULTS / "frozen_backbone.json").read_text(encoding="utf-8"))["summary"]
    return {
        "README.md": heads_table(summary, ["laplace", "logistic"]),
        "docs/conformal.md": coverage_table(summary),
        "docs/heads.md": heads_table(summary, list(MODELS)),
    }


def _of(models: list[str]) -> list[tuple[str, str]]:
    return [(name, MODELS[name]) for name in models]


def _cell(values: list[float], figure: str) -> str:
    digits = 2 if figure.startswith("set_size") else 3
    mean, low, high = (f"{value:.{digits}f}" for value in values)
    return f"{mean} ({low}-{high})"


if __name__ == "__main__":
    for page, table in tables().items():
        print(f"{page}\n\n{table}\n")
