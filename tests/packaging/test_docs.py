"""What the documents point at exists: files, functions, tests, headings; and nothing of docs/ is left out."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tallystick.infra.nats import topology
from tallystick.schemas.subjects import KINDS, overlaps
from tests.packaging.checkout import ROOT, tracked_files

DOCS = ROOT / "docs"
DOCUMENTS = sorted(
    [
        *(
            ROOT / name
            for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "infra/nats/README.md")
        ),
        *DOCS.rglob("*.md"),
    ]
)
each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
FOLDERS = {path.split("/", 1)[0] for path in tracked_files() if "/" in path}
# [text](target#heading)
_LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)")
# `folder/file`, `folder/file.py:Class.method`, `tests/file.py::test`
_PATH = re.compile(r"`(\.?\w[\w.*/-]*/[\w.*/-]*)(?:::?([\w.]+))?`")
_TEST = re.compile(r"`(test_\w+)`")
# In the picture of docs/architecture.md: reader and publisher of events on the bus.
_FLOW = re.compile(r'^ +(\w+) -->\|"([^"]+)"\| (\w+)$', re.MULTILINE)


@cache
def prose(document: Path) -> str:
    """The document without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", document.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


@cache
def headings(document: Path) -> set[str]:
    """The anchors that GitHub gives a document's headings."""
    found = re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", text).strip().lower().replace(" ", "-") for text in found}


@cache
def names(path: Path) -> set[str]:
    """The classes, functions and values of a module, those of a class as `Class.name`."""
    found: set[str] = set()

    def collect(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            match node:
                case ast.ClassDef(name=name):
                    found.add(prefix + name)
                    collect(node.body, f"{prefix}{name}.")
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                    found.add(prefix + name)
                case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                    found.add(prefix + name)

    collect(ast.parse(path.read_text("utf-8")).body, "")
    return found


@cache
def all_tests() -> set[str]:
    """The name of every test."""
    files = (ROOT / "tests").rglob("test_*.py")
    return {name for path in files for name in names(path) if name.startswith("test_")}


def missing(text: str) -> list[str]:
    """The paths and names of the repository in `text` that are not there."""
    wrong = []
    for path, name in _PATH.findall(text):
        if path.split("/", 1)[0] not in FOLDERS:
            continue  # of a deployment, of a venue's API, of an archive
        there = list(ROOT.glob(path)) if "*" in path else [ROOT / path] if (ROOT / path).exists() else []
        if not there or (name and name not in names(there[0])):
            wrong.append(f"{path}:{name}" if name else path)
    return wrong + [name for name in _TEST.findall(text) if name not in all_tests()]


@each_document
def test_every_link_leads_somewhere(document: Path) -> None:
    for target, heading in _LINK.findall(prose(document)):
        if "://" in target:
            continue
        there = document.parent / target if target else document
        assert there.exists(), target
        assert not heading or heading in headings(there), f"{target}#{heading}"


@each_document
def test_every_file_function_and_test_that_a_document_names_is_there(document: Path) -> None:
    assert missing(prose(document)) == []


def test_what_is_not_there_is_found() -> None:
    there = (
        "`schemas/seal.py` `schemas/seal.py:Verifier.open` `tests/unit/test_*.py` `tests/unit/` `strategies/dip.py` "
        "`infra/nats/topology.toml` `schemas/bounds.py:MAX_SKEW_NS` `test_every_link_leads_somewhere`"
    )
    assert missing(there) == []
    assert missing("`schemas/seals.py`") == ["schemas/seals.py"]
    assert missing("`schemas/seal.py:Verifier.close`") == ["schemas/seal.py:Verifier.close"]
    assert missing("`tests/unit/test_seal.py::test_x`") == ["tests/unit/test_seal.py:test_x"]
    assert missing("`components/cli/*.py`") == ["components/cli/*.py"]
    assert missing("`test_that_nobody_wrote`") == ["test_that_nobody_wrote"]


def test_the_index_names_every_document() -> None:
    index = DOCS / "README.md"
    linked = {(DOCS / target).resolve() for target, _ in _LINK.findall(index.read_text("utf-8")) if "://" not in target}
    assert {path.relative_to(DOCS) for path in DOCS.rglob("*") if path.is_file() and path != index} <= {
        path.relative_to(DOCS) for path in linked if path.is_relative_to(DOCS)
    }


def test_decisions_are_numbered_without_a_hole_and_have_the_templates_form() -> None:
    decisions = sorted((DOCS / "adr").glob("*.md"))
    assert [path.name[:4] for path in decisions] == [f"{number:04}" for number in range(len(decisions))]
    form = re.findall(r"^(?:## .+|- \w+:|Held by:)", decisions[0].read_text("utf-8"), re.MULTILINE)
    for path in decisions[1:]:
        text = path.read_text("utf-8")
        assert text.startswith(f"# {path.name[:4]}: ")
        assert [line for line in form if not re.search(f"^{re.escape(line)}", text, re.MULTILINE)] == [], path.name


def test_the_picture_of_the_architecture_is_the_topologys() -> None:
    text = (DOCS / "architecture.md").read_text("utf-8")
    components = topology.load().expand(["name"], ["name"]).components
    flows = _FLOW.findall(text)
    assert len(flows) > 15
    for publisher, kinds, reader in flows:
        says, hears = (
            components.get(name.replace("_", "-")) or components[f"{name}-name"] for name in (publisher, reader)
        )
        reads = [pattern for patterns in hears.reads.values() for pattern in patterns]
        for kind in kinds.split(", "):
            subjects = [p for p in says.publishes if overlaps(p, KINDS[kind].pattern)]
            assert any(overlaps(p, read) for p in subjects for read in reads), f"{publisher} → {kind} → {reader}"
    for name in components:
        assert f"`{name.replace('-name', '-NAME')}`" in text, f"{name}: with what is it trusted?"
