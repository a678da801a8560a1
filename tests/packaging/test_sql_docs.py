"""docs/sql.md: every view and column is explained, every example runs, every kind of event has a view."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from tallystick.cli.explain import SQL, rendered
from tallystick.record.arithmetic import exact
from tallystick.record.columns import COLUMNS, meaning
from tallystick.record.export import export
from tallystick.record.opened import Opened
from tallystick.record.sandbox import check_query, connect
from tallystick.record.views import VIEWS
from tallystick.schemas.event import Event
from tallystick.schemas.registry import EVENTS
from tallystick.schemas.security import ComponentRevocation, IncidentStep
from tests.packaging.checkout import ROOT
from tests.support.archive import Story, Vault

DOCUMENT = ROOT / "docs" / SQL
_BLOCK = re.compile(r"^```(sql|sh)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# What only the audit's own work is made of; `events` holds it.
WITHOUT_VIEW = {
    "cred.list/1",
    "breaker.heartbeat/1",
    "guard.heartbeat/1",
    "audit.cosignature/1",
    # What `rotations` comes from, word by word.
    "control.key-asked/1",
    "control.key-answered/1",
    "control.rotation-ordered/1",
}


def examples() -> list[str]:
    found = []
    for kind, text in _BLOCK.findall(DOCUMENT.read_text("utf-8")):
        if kind == "sql":
            # A line that begins at the margin begins a query.
            found += re.split(r"\n(?=select )", text.strip())
        else:
            found += re.findall(r'audit sql \S+ "(select [^"]+)"', text)
    return found


@pytest.fixture(scope="module")
def vault(tmp_path_factory: pytest.TempPathFactory) -> Vault:
    vault = Vault(tmp_path_factory.mktemp("sql"))
    vault.project(Story().streams.stored)
    return vault


def test_every_example_runs(vault: Vault) -> None:
    queries = examples()
    assert len(queries) > 7
    connection = connect(Opened(vault.path, vault.manifest.live.values()))
    for query in queries:
        check_query(connection, query)
        connection.execute(exact(connection, query)).fetchall()


@pytest.mark.parametrize(
    ("view", "sender", "subject", "kind"),
    [
        ("incidents", "custody", "control.config.custody", IncidentStep),
        ("revocations", "authority", "cred.execution", ComponentRevocation),
    ],
)
def test_a_note_that_nobody_signed_breaks_no_view(
    tmp_path: Path, view: str, sender: str, subject: str, kind: type[Event]
) -> None:
    """A component in other hands publishes what it likes; what else the view holds is read all the same."""
    story = Story()
    said = '{"incident":"i","number":"x","revoked":"maybe","done":"maybe","since":"then","step":"halted"}'
    session = story.streams.authority if sender == "authority" else story.streams.session(sender)
    for note in (f"{said}\n\n", "no JSON\n\n", "", "[]\n\n", f"{said[:-1]}\n\n"):
        session.say((subject, [story.streams.new(kind, note=note)]))
    session.heartbeat()
    vault = Vault(tmp_path)
    vault.project(story.streams.stored)
    connection = connect(Opened(vault.path, vault.manifest.live.values()))
    assert connection.execute(f"SELECT number FROM {view}").fetchall() == [(None,)] * 5


def test_every_column_is_explained_and_no_explanation_is_left_over() -> None:
    connection = connect()
    used = set()
    for view in VIEWS:
        for name, *_ in connection.execute(f"DESCRIBE {view}").fetchall():
            assert meaning(view, name)
            used.add(f"{view}.{name}" if f"{view}.{name}" in COLUMNS else name)
    assert set(COLUMNS) - used == set()


def test_the_document_is_the_views() -> None:
    assert rendered(DOCUMENT) == DOCUMENT.read_text("utf-8"), "run: tallystick explain --markdown docs"


def test_every_type_of_event_has_a_view() -> None:
    shown = {kind for _, select in VIEWS.values() for kind in re.findall(r"'([a-z.]+/\d+)'", select)}
    types = {str(kind.__struct_config__.tag) for kinds in EVENTS.values() for kind in kinds}
    assert types - shown == WITHOUT_VIEW


def test_every_row_says_where_its_proof_is() -> None:
    connection = connect()
    for view in VIEWS:
        names = {name for name, *_ in connection.execute(f"DESCRIBE {view}").fetchall()}
        assert {"log_index", "received", "stream_seq"} <= names, view


def test_the_examples_for_other_tools_run(vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(vault.deployment, tmp_path / "desk")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    list(export(tmp_path / "desk" / "archive", tmp_path / "tables", ["orders", "fills"], ()))
    blocks = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, {})  # noqa: S102 - our own document
