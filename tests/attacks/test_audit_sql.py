"""Hostile SQL against the archive: no file is written, none but the live segments is read, limits hold."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from tallystick.record.manifest import MANIFEST
from tallystick.record.opened import Opened
from tallystick.record.query import ENVIRONMENT, Answer
from tallystick.record.sandbox import QueryRefused, check_query, connect
from tests.support.archive import Story, Vault


@pytest.fixture(scope="module")
def vault(tmp_path_factory: pytest.TempPathFactory) -> Vault:
    vault = Vault(tmp_path_factory.mktemp("sql"))
    vault.project(Story().streams.stored)
    return vault


@pytest.fixture(scope="module")
def connection(vault: Vault) -> duckdb.DuckDBPyConnection:
    return connect(Opened(vault.path, vault.manifest.live.values()))


def state(vault: Vault) -> dict[str, str]:
    files = (p for p in vault.deployment.rglob("*") if p.is_file())
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


ATTACKS = {
    "copy to": "COPY (SELECT 1) TO '{segment}'",
    "copy in a common table expression": "WITH x AS (COPY (SELECT 1) TO '{segment}') SELECT 1",
    "copy in a nested expression": "SELECT * FROM (WITH x AS (COPY (SELECT 1) TO '{out}') SELECT 1)",
    "copy in a scalar subquery": "SELECT (WITH x AS (COPY (SELECT 1) TO '{out}') SELECT 1)",
    "copy from": "COPY log FROM '/etc/passwd'",
    "query function": "SELECT * FROM query('WITH x AS (COPY (SELECT 1) TO ''{out}'') SELECT 1')",
    "export": "EXPORT DATABASE '{out}'",
    "attach": "ATTACH '{out}' AS evil",
    "install": "INSTALL httpfs",
    "load": "LOAD '{out}'",
    "create table": "CREATE TABLE t AS SELECT 1",
    "drop view": "DROP VIEW log",
    "two statements": "SELECT 1; COPY (SELECT 1) TO '{out}'",
    "a setting": "SET enable_external_access = true",
    "a setting through a function": "SELECT set_config('enable_external_access', 'true')",
    "reading a file as text": "SELECT * FROM read_text('/etc/passwd')",
    "reading a file as blob": "SELECT * FROM read_blob('{manifest}')",
    "reading a file as csv": "SELECT * FROM read_csv('/etc/passwd')",
    "reading a file by name": "SELECT * FROM '{manifest}'",
    "reading a foreign parquet file": "SELECT * FROM read_parquet('{segment}')",
    "listing files": "SELECT * FROM glob('/etc/*')",
    "secrets": "SELECT * FROM duckdb_secrets()",
    "environment": "SELECT getenv('PATH')",
    "a call": "CALL pragma_version()",
    "a pragma": "PRAGMA database_list",
    "insert": "INSERT INTO log VALUES (1)",
    "prepared": "PREPARE x AS SELECT 1",
    "nothing": "",
    "a comment": "-- nothing",
    "a broken string": "SELECT 'x",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_refused_before_it_runs(attack: str, vault: Vault, connection: duckdb.DuckDBPyConnection) -> None:
    sql = fill(ATTACKS[attack], vault)
    try:
        check_query(connection, sql)
    except QueryRefused:
        return
    with pytest.raises(duckdb.Error):  # a function that does not exist parses, and fails when it is bound
        connection.sql(sql)


def fill(sql: str, vault: Vault) -> str:
    segment = vault.path / next(iter(vault.manifest.live))
    return sql.format(segment=segment, out=vault.deployment / "out", manifest=vault.path / MANIFEST)


def test_in_the_real_process_nothing_on_disk_changes(vault: Vault) -> None:
    before = state(vault)
    for attack in ("copy in a common table expression", "reading a file as text", "a broken string"):
        with pytest.raises(QueryRefused):
            list(Answer(vault.path, fill(ATTACKS[attack], vault)).rows)
    assert state(vault) == before


# The gate is taken away: DuckDB's settings, the kernel and the limits must hold alone.
UNGATED = """
import sys
from tallystick.record import sandbox
sandbox.check_query = lambda connection, sql: None
sys.exit(sandbox.main())
"""
RAW = """
import os, socket, subprocess, sys, threading
from pathlib import Path
from tallystick.record import sandbox
if not sandbox.restrict(Path(sys.argv[1]), 20):
    print("no landlock")
    sys.exit(0)
def attempt(name, act):
    try:
        act()
    except OSError:
        return
    print("BROKE", name)
segment = sys.argv[2]
attempt("overwrite", lambda: open(segment, "r+b"))
attempt("truncate", lambda: os.truncate(segment, 0))
attempt("unlink", lambda: os.unlink(segment))
attempt("rename", lambda: os.rename(segment, segment + "x"))
attempt("create", lambda: open(os.path.dirname(segment) + "/new", "wb"))
attempt("read", lambda: open("/etc/passwd"))
attempt("run", lambda: subprocess.run(["/bin/true"]))
attempt("connect", lambda: socket.create_connection(("127.0.0.1", int(sys.argv[3])), 1))
def late():
    attempt("read in a thread", lambda: open("/etc/passwd"))
    attempt("write in a thread", lambda: open(segment, "r+b"))
thread = threading.Thread(target=late)
thread.start()
thread.join()
open(segment, "rb").read(4)
print("held")
"""


# A thread that is there before would stay outside of what the kernel forbids.
EARLY = """
import sys, threading
from pathlib import Path
from tallystick.record import sandbox
go = threading.Event()
def early():
    go.wait()
    print("read", len(open("/etc/passwd").read()) > 0)
thread = threading.Thread(target=early)
thread.start()
try:
    print("landlock", sandbox.restrict(Path(sys.argv[1]), 20))
except sandbox.QueryRefused as exc:
    print("refused", exc.code)
go.set()
thread.join()
"""


def test_with_a_thread_that_would_stay_outside_nothing_is_answered(vault: Vault) -> None:
    command = [sys.executable, "-P", "-c", EARLY, str(vault.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=ENVIRONMENT)
    if done.stdout.startswith("landlock False"):
        pytest.skip("this kernel has no Landlock: the parser gate, DuckDB's settings and the limits remain")
    assert done.stdout == "refused SANDBOX\nread True\n"


@pytest.mark.parametrize(
    "attack", ["copy to", "copy in a common table expression", "copy in a scalar subquery", "export"]
)
def test_without_the_parser_gate_the_other_layers_hold(attack: str, vault: Vault) -> None:
    import msgspec

    before = state(vault)
    request = {
        "archive": str(vault.path),
        "segments": list(vault.manifest.live.values()),
        "sql": fill(ATTACKS[attack], vault),
        "limit": 0,
        "seconds": 20,
    }
    done = subprocess.run(
        [sys.executable, "-P", "-c", UNGATED],
        input=msgspec.json.encode(request),
        capture_output=True,
        check=False,
        env=ENVIRONMENT,
    )
    assert b'"error":"SQL"' in done.stdout
    assert done.returncode != 0, done.stdout
    assert state(vault) == before


def test_the_kernel_denies_writing_reading_running_and_connecting(vault: Vault) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        segment = vault.path / next(iter(vault.manifest.live))
        before = state(vault)
        command = [sys.executable, "-P", "-c", RAW, str(vault.path), str(segment), str(server.getsockname()[1])]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=ENVIRONMENT)
    if done.stdout == "no landlock\n":
        pytest.skip("this kernel has no Landlock: the parser gate, DuckDB's settings and the limits remain")
    assert done.stdout == "held\n"
    assert state(vault) == before


def test_a_query_that_never_ends_is_ended(vault: Vault) -> None:
    endless = "SELECT count(*) FROM range(10000000000000) WHERE range % 7 = 8"
    with pytest.raises(QueryRefused, match="SQL_LIMITS"):
        list(Answer(vault.path, endless, seconds=2).rows)


def test_a_query_beyond_its_memory_is_refused(vault: Vault) -> None:
    greedy = "SELECT list(repeat(range::VARCHAR, 50)) FROM range(300000000)"
    with pytest.raises(QueryRefused):
        list(Answer(vault.path, greedy, seconds=4).rows)


def test_sql_sees_only_what_the_manifest_names(vault: Vault, tmp_path: Path) -> None:
    twin = vault.copy(tmp_path / "twin")
    segment = twin.segments("ORDERS")[0]
    extra = twin.path / segment.file.replace(".parquet", "-copy.parquet")
    extra.write_bytes((twin.path / segment.file).read_bytes())
    counts = [list(Answer(v.path, "SELECT count(*) FROM intents").rows) for v in (vault, twin)]
    assert counts == [[[2]], [[2]]]
