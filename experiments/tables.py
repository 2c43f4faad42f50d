"""Tables of the README and the guides, made from the results files; `tests/test_docs.py` checks that they agree.

An experiment whose figures stand on a page has a function `tables(results) -> {page: table}`.

    python -m experiments.tables
"""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def tables() -> Iterator[tuple[str, str]]:
    """Pages, and a table on each; a page may come several times."""
    for path in sorted(RESULTS.glob("*.json")):
        experiment = importlib.import_module(f"experiments.{path.stem}")
        if hasattr(experiment, "tables"):
            yield from experiment.tables(json.loads(path.read_text(encoding="utf-8"))).items()


if __name__ == "__main__":
    for page, table in tables():
        print(f"{page}\n\n{table}\n")
