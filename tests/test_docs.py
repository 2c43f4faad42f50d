"""The README and the guides: their Python runs, their links lead somewhere, every public name is documented."""

import inspect
import re
from pathlib import Path

import pytest

import cbdc
from experiments.tables import tables

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("theory/**/*.md")])
BLOCKS = [
    pytest.param(block, id=f"{page.name}-{i}")
    for page in PAGES
    for i, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL))
]


@pytest.mark.parametrize("block", BLOCKS)
def test_python_blocks_run(block, tmp_path, monkeypatch):
    """A block that needs the reader's own files says so in its first line: `# needs: ...`."""
    if block.startswith("# needs:"):
        compile(block, "block", "exec")
        return
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "block", "exec"), {"__name__": "block"})


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("name", [n for n in cbdc.__all__ if not n.startswith("__")])
def test_public_names_are_documented(name):
    thing = getattr(cbdc, name)
    doc = inspect.getdoc(thing) or ""
    assert len(doc) > 80
    if (inspect.isclass(thing) and hasattr(thing, "fit")) or inspect.isfunction(thing):
        for section in ("Parameters\n---", "Examples\n---"):
            assert section in doc, f"{name} has no section {section.splitlines()[0]}"


def test_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        cbdc.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("page", "table"), list(tables()), ids=lambda value: value if value.endswith(".md") else "table"
)
def test_tables_are_those_of_the_results(page, table):
    assert table in (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_no_placeholder_is_left(page):
    assert re.findall(r"^[A-Z0-9]+(?:_[A-Z0-9]+)+$", page.read_text(encoding="utf-8"), flags=re.MULTILINE) == []
