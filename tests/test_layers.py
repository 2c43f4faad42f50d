"""Imports point one way: a file imports only from floors below its own (or from inside its own room)."""

import ast
from pathlib import Path

import cbdc

PACKAGE = Path(cbdc.__file__).parent
FLOORS = {
    "errors": 0,
    "taxonomy": 1,
    "images": 1,
    "perturb": 1,
    "metrics": 1,
    "modelfile": 1,
    "datasets": 2,
    "quality": 2,
    "backbones": 2,
    "heads": 2,
    "conformal": 2,
    "topology": 2,
    "bounds": 2,
    "diagnosis": 3,
    "parts": 3,
    "saving": 4,
    "phantom": 3,
    "plots": 3,
    "fairness": 3,
    "audit": 3,
    "classifier": 5,
    "report": 6,
    "cli": 7,
    "serve": 7,
}
ENTRANCES = {"__init__", "__main__"}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    """Rooms of cbdc that the file imports, at the top or inside a function."""
    package = ("cbdc", *path.relative_to(PACKAGE).parent.parts)
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) + "." if node.level else ""
            stem = base + (node.module or "")
            names = [stem.rstrip(".")] if stem.rstrip(".") != "cbdc" else [f"cbdc.{a.name}" for a in node.names]
        else:
            continue
        rooms |= {name.split(".")[1] for name in names if name.startswith("cbdc.")}
    return rooms


def sources() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if room_of(path) not in ENTRANCES)


def test_every_room_has_a_floor():
    assert {room_of(path) for path in sources()} <= set(FLOORS)


def test_imports_point_down():
    wrong = [
        f"{path.relative_to(PACKAGE)} (floor {FLOORS[room_of(path)]}) imports {room}"
        for path in sources()
        for room in imported_rooms(path) & set(FLOORS)
        if room != room_of(path) and FLOORS[room] >= FLOORS[room_of(path)]
    ]
    assert wrong == []


def test_theory_never_imports_cbdc():
    theory = PACKAGE.parent / "theory"
    assert [
        p.name
        for p in theory.rglob("*.py")
        if "cbdc"
        in {
            name.split(".")[0]
            for node in ast.walk(ast.parse(p.read_text(encoding="utf-8")))
            for name in (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
        }
    ] == []


def test_only_images_imports_pil():
    offenders = [
        str(path.relative_to(PACKAGE))
        for path in sources()
        if room_of(path) != "images"
        and any(
            (isinstance(n, ast.Import) and any(a.name.split(".")[0] == "PIL" for a in n.names))
            or (isinstance(n, ast.ImportFrom) and (n.module or "").split(".")[0] == "PIL")
            for n in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        )
    ]
    assert offenders == []
