"""Results of an experiment, with what it takes to repeat them."""

import json
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import sklearn

import cbdc
from cbdc import LesionDataset


def write_results(path: Path, results: dict[str, Any], *, command: str, data: Iterable[LesionDataset] = ()) -> None:
    """Write the results as JSON, with the command, the versions and the fingerprints of the data beside them."""
    about = {
        "command": command,
        "data": {d.name: {"n": len(d), "fingerprint": d.fingerprint} for d in data},
        "versions": {
            "cbdc": cbdc.__version__,
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "scikit-learn": sklearn.__version__,
            "python": platform.python_version(),
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results | {"about": about}, indent=1) + "\n", encoding="utf-8")
