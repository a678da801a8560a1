"""Every answer from the archive says what it rests on, and there is none from files that are not what that names."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tallystick.cli.audit import app
from tallystick.record.basis import Tampered, basis, read_sound
from tallystick.record.export import BASIS, export, live_files
from tallystick.record.files import FileRefused
from tallystick.record.manifest import MANIFEST
from tallystick.record.opened import Opened
from tallystick.record.place import load_verifiers
from tallystick.record.query import Answer
from tallystick.record.sandbox import connect
from tallystick.record.views import VIEWS
from tallystick.schemas.errors import ConfigError, TallystickError
from tallystick.schemas.ids import id_text
from tests.support.archive import Story, Vault

COMMANDS = (
    ("sql", "select 1"),
    ("trace", "ts-1"),
    ("files",),
    ("export", "out"),
)


class Desk(Vault):
    story: Story


@pytest.fixture(scope="module")
def vault(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    story = Story()
    vault = Desk(tmp_path_factory.mktemp("answers"))
    vault.story = story
    vault.project(story.streams.stored)
    vault.checkpoint(story.streams, story.audit)
    story.streams.ticks(story.market, 3)
    vault.project(story.streams.stored)
    return vault


@pytest.fixture
def twin(vault: Vault, tmp_path: Path) -> Vault:
    return vault.copy(tmp_path / "twin")


def run(directory: Path, *arguments: str) -> tuple[int, str, str, Exception | None]:
    """Exit code, standard output, standard error, and what `main` would turn into a line."""
    command, *rest = arguments
    rest = [str(directory.parent / "out") if text == "out" else text for text in rest]
    done = CliRunner().invoke(app, [command, str(directory), *rest])
    failed = done.exception if isinstance(done.exception, TallystickError) else None
    if done.exception is not None and failed is None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return (failed.exit_code if failed else done.exit_code), done.stdout, done.stderr, failed


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_an_answer_says_which_manifest_and_checkpoint_it_rests_on(command: tuple[str, ...], twin: Vault) -> None:
    manifest = twin.manifest
    code, out, err, failed = run(twin.deployment, *command)
    assert (code, failed) == (0, None)
    said = out + err
    assert f"rests on manifest {manifest.count}:{manifest.head}" in said
    assert re.search(r"newest checkpoint \d:[0-9a-f]{64}, sealed by audit; 3 lines after it\n", said)


def test_rows_for_programs_are_not_mixed_with_what_they_rest_on(vault: Desk) -> None:
    for form, want in (("csv", "n\n1\n"), ("json", '{"n":1}\n')):
        code, out, err, _ = run(vault.deployment, "sql", "select 1 as n", "--format", form)
        assert (code, out) == (0, want)
        assert err.startswith("rests on manifest ")


def test_without_the_root_key_the_checkpoint_is_said_to_be_unchecked(twin: Vault) -> None:
    alone = twin.path.rename(twin.deployment.parent / "alone")
    code, _, err, _ = run(alone, "files")
    assert code == 0
    assert "its seal was not checked" in err
    _, _, err, _ = run(alone, "files", "--root", str(twin.place.root))
    assert "sealed by audit" in err


def edit(twin: Vault) -> None:
    twin.rewrite(twin.segments("ORDERS")[0], "status", 0, "late")


def swap(twin: Vault) -> None:
    one, two = twin.segments("MARKET")[:2]
    data = (twin.path / two.file).read_bytes()
    (twin.path / one.file).chmod(0o644)
    (twin.path / one.file).write_bytes(data)


def remove(twin: Vault) -> None:
    (twin.path / twin.segments("ORDERS")[0].file).unlink()


def replace(twin: Vault, make: str) -> None:
    path = twin.path / twin.segments("ORDERS")[0].file
    copy = path.with_suffix(".copy")
    path.rename(copy)
    if make == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to(copy)


ATTACKS = {
    "a cell is changed": (edit, {"FILE_HASH", "FILE_SIZE"}),
    "two files are swapped": (swap, {"FILE_HASH", "FILE_SIZE"}),
    "a file is removed": (remove, {"FILE_MISSING"}),
    "a pipe stands in place of a file": (lambda twin: replace(twin, "fifo"), {"FILE_KIND"}),
    "a link stands in place of a file": (lambda twin: replace(twin, "link"), {"FILE_KIND"}),
}


# The query's process is started for two of them: all open their files in the same way.
AGAINST = [(attack, command) for attack in ATTACKS for command in (("files",), ("trace", "ts-1"))]
AGAINST += [("a cell is changed", ("sql", "select 1")), ("a pipe stands in place of a file", ("sql", "select 1"))]
AGAINST += [("a cell is changed", ("export", "out"))]


@pytest.mark.parametrize(("attack", "command"), AGAINST)
def test_files_that_are_not_what_the_manifest_names_give_no_answer(
    attack: str, command: tuple[str, ...], twin: Vault
) -> None:
    act, codes = ATTACKS[attack]
    act(twin)
    code, out, _, failed = run(twin.deployment, *command)
    assert isinstance(failed, FileRefused)
    assert failed.code in codes
    assert (code, out) == (1, "")


def test_a_manifest_written_anew_after_a_checkpoint_gives_no_answer(twin: Vault) -> None:
    edit(twin)
    twin.rehash()
    code, out, _, failed = run(twin.deployment, "sql", "select count(*) from fills")
    assert isinstance(failed, Tampered)
    assert (failed.code, code, out) == ("MANIFEST_REWRITTEN", 1, "")


def test_a_manifest_that_lost_its_end_gives_no_answer(vault: Desk, tmp_path: Path) -> None:
    """Cut to before the checkpoint's own lines; those after it would go unnoticed, which the answer says."""
    twin = vault.copy(tmp_path / "cut")
    lines = (twin.path / MANIFEST).read_bytes().splitlines(keepends=True)
    entries = basis(twin.path, twin.manifest).covered
    (twin.path / MANIFEST).write_bytes(b"".join(lines[: entries + 1]))
    assert basis(twin.path, read_sound(twin.path), load_verifiers(twin.place)).lines == entries + 1
    (twin.path / MANIFEST).write_bytes(b"".join([*lines[:1], *lines[2:]]))
    with pytest.raises(Tampered, match=r"MANIFEST_NUMBER|MANIFEST_LINK"):
        read_sound(twin.path)


def test_a_forged_checkpoint_gives_no_answer(twin: Vault) -> None:
    """Whoever writes the manifest anew writes a row with a checkpoint over it, too, but cannot seal it."""
    for segment in twin.segments("SECURITY"):
        subjects = twin.table(segment)["subject"].to_pylist()
        if "audit.checkpoint" in subjects:
            row = subjects.index("audit.checkpoint")
            payload = twin.table(segment)["payload"][row].as_py()
            twin.rewrite(segment, "payload", row, payload[:-1] + bytes([payload[-1] ^ 1]))
    twin.rehash()
    with pytest.raises(Tampered, match="CHECKPOINT"):
        basis(twin.path, read_sound(twin.path), load_verifiers(twin.place))


def test_a_file_that_is_written_to_while_it_is_read_is_noticed(twin: Vault) -> None:
    opened = Opened(twin.path, twin.manifest.live.values())
    opened.check_unchanged()
    path = twin.path / twin.segments("ORDERS")[0].file
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"x")
    os.utime(path)
    with pytest.raises(FileRefused, match="changed while it was read"):
        opened.check_unchanged()


def test_a_file_that_is_exchanged_after_it_was_opened_is_not_the_one_that_is_read(twin: Vault) -> None:
    opened = Opened(twin.path, twin.manifest.live.values())
    edit_path = twin.path / twin.segments("ORDERS")[0].file
    edit_path.unlink()
    edit_path.write_bytes(b"PAR1 something else")
    [(count,)] = connect(opened).execute("SELECT count(*) FROM intents").fetchall()
    assert count == 2


def test_a_part_of_the_past_is_read_from_its_own_files_alone(vault: Desk, tmp_path: Path) -> None:
    """So an answer about the last hour takes no longer the older the archive is."""
    twin = vault.copy(tmp_path / "part")
    segments = sorted(twin.manifest.live.values(), key=lambda s: s.last_time)
    first, moment = segments[0], segments[-1].first_time
    (twin.path / first.file).unlink()
    with pytest.raises(FileRefused):
        list(Answer(twin.path, "select 1").rows)
    [[count]] = list(Answer(twin.path, "select count(*) from log", since=moment).rows)
    assert 0 < count < twin.manifest.rows


def test_until_shows_every_view_as_it_was_known_then(vault: Desk) -> None:
    fill = next(m for m in vault.story.streams.stored if m.subject.startswith("fill."))
    [[state, filled]] = list(
        Answer(
            vault.path,
            "select state, filled::int from orders where side = 'buy' order by ts limit 1",
            until=fill.stored,
        ).rows
    )
    assert (state, filled) == ("closed", 0)


# ---------------------------------------------------------------- other tools


def test_the_live_files_are_what_any_engine_may_read(vault: Desk) -> None:
    code, out, _, _ = run(vault.deployment, "files")
    files = out.split()
    assert code == 0
    assert len(files) == len(vault.manifest.live)
    rows = sum(pq.ParquetFile(path).metadata.num_rows for path in files)
    assert rows == vault.manifest.rows
    [(count,)] = duckdb.execute("SELECT count(*) FROM read_parquet($1)", [files]).fetchall()
    assert count == rows


def test_an_export_holds_what_sql_shows_with_ids_as_text(vault: Desk, tmp_path: Path) -> None:
    out = tmp_path / "out"
    written = dict(export(vault.path, out, [], load_verifiers(vault.place)))
    assert {path.stem for path in written} == set(VIEWS)
    connection = connect(Opened(vault.path, vault.manifest.live.values()))
    for path, rows in written.items():
        [(count,)] = connection.execute(f"SELECT count(*) FROM {path.stem}").fetchall()
        assert count == rows == pq.read_table(path).num_rows
    [order, _] = duckdb.execute(f"SELECT order_id FROM '{out}/orders.parquet' ORDER BY ts").fetchall()
    assert order == (id_text(vault.story.intent.id),)
    assert (out / BASIS).read_text().startswith("rests on manifest ")
    with pytest.raises(ConfigError, match="is there already"):
        list(export(vault.path, out, [], ()))
    with pytest.raises(ConfigError, match="no view"):
        list(export(vault.path, tmp_path / "other", ["nothing"], ()))


def test_files_of_a_time_are_fewer(vault: Desk) -> None:
    everything, _ = live_files(vault.path, ())
    last = max(s.first_time for s in vault.manifest.live.values())
    some, _ = live_files(vault.path, (), since=last)
    assert 0 < len(some) < len(everything)


# ---------------------------------------------------------------- text


def test_csv_for_spreadsheets_holds_no_formula_and_numbers_stay_numbers(vault: Desk) -> None:
    cells = ("=1+1", "+cmd", "-2+3", "@SUM(A1)", "\t=1", " =1", "\uff1d1", "-2010", "+1.5e-3", "plain", "a=b", "\r=1")
    select = ", ".join(f"'{text}'" for text in cells).replace("'\t", "chr(9)||'").replace("'\r", "chr(13)||'")
    _, out, _, _ = run(
        vault.deployment, "sql", f"select {select}, -0.5::DECIMAL(38,18), -7, 'x' as \"=h\"", "--format", "csv"
    )
    import csv
    import io

    header, row = list(csv.reader(io.StringIO(out, newline="")))
    assert header[-1] == "'=h"
    guarded = [cell for cell in cells if cell not in ("-2010", "+1.5e-3", "plain", "a=b")]
    assert row == [f"'{c}" if c in guarded else c for c in cells] + ["-0.500000000000000000", "-7", "x"]
    _, out, _, _ = run(vault.deployment, "sql", "select '=1+1' as a", "--format", "csv", "--raw")
    assert out == "a\n=1+1\n"


def test_a_query_that_is_no_text_is_refused_in_one_line(vault: Desk) -> None:
    with pytest.raises(TallystickError, match="SQL_ENCODING"):
        Answer(vault.path, "select '\udcff'")
    done = subprocess.run(
        [sys.executable, "-m", "tallystick.cli.main", "audit", "sql", str(vault.deployment), "-"],
        input=b"select '\xff'",
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, b"")
    assert (done.stderr.startswith(b"tallystick: SQL_ENCODING"), done.stderr.count(b"\n")) == (True, 1)


def test_json_keeps_what_csv_guards(vault: Desk) -> None:
    _, out, _, _ = run(vault.deployment, "sql", "select '=1' as a", "--format", "json")
    assert json.loads(out) == {"a": "=1"}


def test_arguments_that_are_no_text_are_refused_in_one_line_whatever_the_locale() -> None:
    for locale in ("C", "C.UTF-8"):
        done = subprocess.run(
            [sys.executable, "-m", "tallystick.cli.main", "audit", "sql", ".", b"select '\xff'"],
            env={"LC_ALL": locale, "PATH": "/usr/bin:/bin"},
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (2, b"")
        assert done.stderr == b"tallystick: ARGUMENT_ENCODING: argument 4 is not UTF-8: select '\\xff'\n"
