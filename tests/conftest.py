"""Fixtures that every room shares."""

import os
from pathlib import Path

import matplotlib
import pytest
from hypothesis import settings

matplotlib.use("Agg")
# Deadlines time the machine, not the code; derandomize so that a red run can be repeated.
settings.register_profile("default", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("default")


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder of the real data sets, or a skip that says how to set it."""
    root = os.environ.get("CBDC_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("real data: set CBDC_DATA to the folder of the data sets (docs/datasets.md)")
    return Path(root)
