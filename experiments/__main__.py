"""Run every experiment: those whose results file is not there yet, or all with --again.

    python -m experiments --root DATA --cache .cache
    python -m experiments --quick                       # made lesions, a few minutes, nothing committed is touched

Stopped half-way, the same command goes on: with the experiments that have no results, and inside of `heads` and
`fine_tune` with the cells that are missing.
"""

import argparse
import importlib
import inspect
import sys
import time
import warnings
from pathlib import Path
from types import ModuleType

import matplotlib

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="experiments to run (default: all)")
    parser.add_argument("--root", type=Path, help="folder that holds the data sets")
    parser.add_argument("--cache", type=Path, default=Path(".cache"), help="folder that keeps embeddings")
    parser.add_argument("--again", action="store_true", help="also those that have results")
    parser.add_argument("--quick", action="store_true", help="each on made lesions, in under a minute")
    parser.add_argument("--out", type=Path, default=Path("build/experiments"), help="folder for results of --quick")
    arguments = parser.parse_args()
    if not arguments.quick and arguments.root is None:
        parser.error("--root is needed (or --quick)")
    known = experiments()
    if unknown := set(arguments.names) - known.keys():
        parser.error(f"no experiment is called {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    matplotlib.use("Agg")
    for name in arguments.names or known:
        if not (arguments.quick or arguments.again) and is_done(name):
            print(f"{name}: has results", flush=True)
            continue
        start = time.perf_counter()
        print(f"--- {name}", flush=True)
        run(known[name], options(name, known[name], arguments))
        print(f"--- {name}: {time.perf_counter() - start:.0f} s", flush=True)


def experiments() -> dict[str, ModuleType]:
    """All modules of this folder that have a quick form."""
    paths = sorted(path for path in Path(__file__).parent.glob("*.py") if path.stem != "__main__")
    modules = {path.stem: importlib.import_module(f"experiments.{path.stem}") for path in paths}
    return {name: module for name, module in modules.items() if takes(module, "quick")}


def takes(module: ModuleType, option: str) -> bool:
    return f'add_argument("--{option}"' in inspect.getsource(module)


def is_done(name: str) -> bool:
    """The two that fill in missing cells themselves are always asked."""
    return (RESULTS / f"{name}.json").exists() and name not in ("heads", "fine_tune")


def options(name: str, module: ModuleType, arguments: argparse.Namespace) -> list[str]:
    chosen = []
    if takes(module, "cache"):
        chosen += ["--cache", str(arguments.cache)]
    if not arguments.quick:
        return [*chosen, "--root", str(arguments.root)] if takes(module, "root") else chosen
    folder = arguments.out
    folder.mkdir(parents=True, exist_ok=True)
    chosen += ["--quick", "--out", str(folder / f"{name}.json")]
    if takes(module, "figure"):
        chosen += ["--figure", str(folder / f"{name}.png")]
    if takes(module, "figures"):
        chosen += ["--figures", str(folder)]
    return chosen


def run(module: ModuleType, argv: list[str]) -> None:
    before = sys.argv
    sys.argv = [f"python -m {module.__name__}", *argv]
    try:
        with warnings.catch_warnings():
            module.main()
    finally:
        sys.argv = before


if __name__ == "__main__":
    main()
