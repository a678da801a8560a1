"""Other people's SQL, in a process of its own that can read the archive's live segments and nothing else.

`python -P -m tallystick.record.sandbox` reads one request (JSON) from standard input, answers with
JSON lines on standard output, and ends.  Each layer holds alone:

1. the statement must be one query: what DuckDB's own parser makes of it is walked, and every query node,
   table function and table-in-place must be on a list (`WITH x AS (COPY …)` parses as a SELECT);
2. DuckDB has external access off but for exactly the live segments, no extension, no temporary files, and its
   configuration locked;
3. the kernel forbids the process (Landlock), before it has a second thread, to write, create or remove any file, to
   read any but the archive's and what the kernel says of processors and memory, to run programs and to use TCP; where
   the kernel has no Landlock the others remain;
4. resource limits: file size 0, processor time, memory; and the caller ends it after a time.

Segments are opened and held against the manifest before that, and read through the same descriptors (`opened`).

The query is not trusted: whoever writes it can at most learn what the archive holds, and use up its limits.
"""

from __future__ import annotations

import datetime
import resource
import sys
import time
import weakref
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import duckdb
import msgspec
import pyarrow as pa

from tallystick.record import arithmetic, landlock, views
from tallystick.record.files import FileRefused
from tallystick.record.manifest import Segment
from tallystick.record.opened import Opened
from tallystick.record.views import ALWAYS
from tallystick.schemas.errors import NOT_DECODED, TallystickError

MEMORY_MB: Final = 1024
# Address space, not memory in use: Arrow and DuckDB reserve far more than they touch.
ADDRESS_SPACE: Final = 8 << 30
BATCH_ROWS: Final = 4096

_QUERY_NODES: Final = frozenset(("SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"))
_TABLE_FUNCTIONS: Final = frozenset(
    ("unnest", "range", "generate_series", "json_each", "json_tree", "duckdb_columns", "duckdb_views")
)
# What DuckDB asks before it starts its threads.
_MACHINE: Final = tuple(
    map(Path, ("/proc/self/cgroup", "/proc/meminfo", "/proc/stat", "/sys/fs/cgroup", "/sys/devices/system/cpu"))
)


class QueryRefused(TallystickError):
    """SQL that is wrong, not allowed, or beyond its limits."""


class Request(msgspec.Struct, forbid_unknown_fields=True):
    """What is asked: `segments` are the live ones below `archive`; `limit` 0 means all rows.

    Only what the broker stored from `since` and before `until` (Unix ns) is there.
    """

    archive: str
    segments: list[Segment]
    sql: str
    limit: int
    seconds: int
    since: int = ALWAYS[0]
    until: int = ALWAYS[1]


def check_query(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    """Raise `QueryRefused` unless `sql` is one query that only reads views and harmless table functions."""
    [(tree,)] = connection.execute("SELECT json_serialize_sql($1::VARCHAR)", [sql]).fetchall()
    parsed = msgspec.json.decode(tree)
    if parsed.get("error"):
        kind, text = parsed.get("error_type", ""), parsed.get("error_message", "cannot be parsed")
        raise QueryRefused("SQL_SYNTAX" if kind == "parser" else "SQL_NOT_A_QUERY", text)
    statements = parsed.get("statements", [])
    if len(statements) != 1:
        raise QueryRefused("SQL_STATEMENTS", f"one query at a time, got {len(statements)} statements")
    for node in _nodes(statements[0]):
        kind = node.get("type")
        if isinstance(kind, str) and kind.endswith("_NODE") and kind not in _QUERY_NODES:
            raise QueryRefused("SQL_NOT_A_QUERY", f"only queries are answered, this holds a {kind}")
        if kind == "TABLE_FUNCTION":
            function = node.get("function", {}).get("function_name", "")
            if function not in _TABLE_FUNCTIONS:
                raise QueryRefused("SQL_TABLE_FUNCTION", f"{function}() is not available; the tables are: {_tables()}")
        if kind == "BASE_TABLE" and not str(node.get("table_name", "")).replace("_", "a").isalnum():
            raise QueryRefused("SQL_TABLE", f"no table {node.get('table_name')!r}; the tables are: {_tables()}")


def _tables() -> str:
    return ", ".join(("log", *views.VIEWS))


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    waiting = [value]
    while waiting:
        found = waiting.pop()
        if isinstance(found, dict):
            yield found
            waiting.extend(found.values())
        elif isinstance(found, list):
            waiting.extend(found)


def restrict(archive: Path, seconds: int) -> bool:
    """Limit this process to reading below `archive`, and to so much more processor time, for good.

    Whether the kernel could do the former (Landlock).  Raises `QueryRefused`.
    """
    try:
        confined = landlock.restrict((archive, *_MACHINE))
    except landlock.LandlockError as exc:
        raise QueryRefused(exc.code, exc.text) from exc
    used = int(time.process_time()) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (used + seconds, used + seconds))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    return confined


def connect(opened: Opened | None = None, since: int = ALWAYS[0], until: int = ALWAYS[1]) -> duckdb.DuckDBPyConnection:
    """A locked-down connection with the views over `opened`, or over nothing; times as in `Request`."""
    paths = opened.paths if opened is not None else {}
    connection = duckdb.connect(
        config={
            "temp_directory": "",
            "memory_limit": f"{MEMORY_MB}MB",
            "threads": 2,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "python_enable_replacements": False,
        }
    )
    # The descriptors that the paths name stay open as long as somebody can ask.
    weakref.finalize(connection, id, opened)
    views.define(connection, paths, since, until)
    connection.execute("SET allowed_paths = $1", [[path for group in paths.values() for path in group]])
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def answer(connection: duckdb.DuckDBPyConnection, request: Request, opened: Opened) -> Iterator[bytes]:
    """Run the query: a line with columns, a line for each row, a line with the number of rows.

    Raises `QueryRefused`, and `FileRefused` if a segment was changed meanwhile.
    """
    check_query(connection, request.sql)
    try:
        sql = arithmetic.exact(connection, request.sql)
        if sql != request.sql:
            check_query(connection, sql)
        reader = connection.sql(sql).to_arrow_reader(BATCH_ROWS)
        yield _line({"columns": reader.schema.names})
        count = 0
        for batch in reader:
            columns = [_texts(column) for column in batch.columns]
            for row in zip(*columns, strict=True):
                count += 1
                if count <= request.limit or not request.limit:
                    yield _line(row)
        opened.check_unchanged()
        yield _line({"rows": count})
    except duckdb.OutOfRangeException as exc:
        advice = "products of decimals: product(a, b), to 18 decimals; sums hold less than 1e20"
        raise QueryRefused("SQL", f"{exc} ({advice})") from exc
    except duckdb.Error as exc:
        raise QueryRefused("SQL", str(exc)) from exc


def _texts(column: pa.Array) -> list[Any]:
    """Values for JSON: exact, so decimals and nanoseconds as text, bytes as hex."""
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("ns")).cast(pa.int64())
        return [None if v is None else ns_text(v) for v in column.to_pylist()]
    try:
        return [_plain(value) for value in column.to_pylist()]
    except ValueError as exc:  # nanoseconds within a list or struct
        raise QueryRefused("SQL_TYPE", f"cast times inside lists and structs to VARCHAR: {exc}") from exc


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    return str(value)


def ns_text(ns: int) -> str:
    """Unix nanoseconds as `2026-11-22 15:44:17.123456789` (UTC)."""
    seconds, rest = divmod(ns, 1_000_000_000)
    moment = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(seconds=seconds)
    return f"{moment:%Y-%m-%d %H:%M:%S}.{rest:09d}"


def _line(value: Any) -> bytes:
    return msgspec.json.encode(value) + b"\n"


def _broken(exc: Exception) -> QueryRefused:
    if isinstance(exc, MemoryError | duckdb.OutOfMemoryException):
        return QueryRefused("SQL_LIMITS", "the query needs more memory than it may")
    return QueryRefused("SANDBOX", f"{type(exc).__name__}: {exc}")


def main() -> int:
    """Answer one request; exit code 0 answered, 2 refused (the last line says why)."""
    out = sys.stdout.buffer
    try:
        request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
        opened = Opened(Path(request.archive), request.segments)
        # Nothing is imported after it, as no module can be read any more; nothing starts a thread before it.
        pa.array([0]).cast(pa.timestamp("ns")).cast(pa.int64()).to_pylist()
        ns_text(0)
        restrict(Path(request.archive), request.seconds)
        connection = connect(opened, request.since, request.until)
        out.write(_line({"opened": len(request.segments)}))
        out.flush()
        for line in answer(connection, request, opened):
            out.write(line)
        out.flush()
    except FileRefused as exc:
        out.write(_line({"error": exc.code, "text": exc.text, "file": True}))
        out.flush()
        return 2
    except (QueryRefused, duckdb.Error, MemoryError, *NOT_DECODED) as exc:
        refusal = exc if isinstance(exc, QueryRefused) else _broken(exc)
        out.write(_line({"error": refusal.code, "text": refusal.text}))
        out.flush()
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
