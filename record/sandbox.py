"""Other people's SQL, in a process of its own that can read the archive's live segments and nothing else.

`python -P -m tallystick.record.sandbox` reads one request (JSON) from standard input, answers with
JSON lines on standard output, and ends.  Each layer holds alone:

1. the statement must be one query: what DuckDB's own parser makes of it is walked, and every query node,
   table function and table-in-place must be on a list (`WITH x AS (COPY …)` parses as a SELECT);
2. DuckDB has external access off but for exactly the live segments, no extension, no temporary files, and its
   configuration locked;
3. the kernel forbids the process (Landlock) to write, create or remove any file, to read any but the
   archive's, to run programs and to use TCP; where the kernel has no Landlock the others remain;
4. resource limits: file size 0, processor time, memory; and the caller ends it after a time.

The query is not trusted: whoever writes it can at most learn what the archive holds, and use up its limits.
"""

from __future__ import annotations

import ctypes
import datetime
import os
import resource
import struct
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import duckdb
import msgspec
import pyarrow as pa

from tallystick.record import arithmetic, views
from tallystick.schemas.errors import NOT_DECODED, TallystickError

MEMORY_MB: Final = 1024
# Address space, not memory in use: Arrow and DuckDB reserve far more than they touch.
ADDRESS_SPACE: Final = 8 << 30
BATCH_ROWS: Final = 4096

_QUERY_NODES: Final = frozenset(("SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"))
_TABLE_FUNCTIONS: Final = frozenset(
    ("unnest", "range", "generate_series", "json_each", "json_tree", "duckdb_columns", "duckdb_views")
)
# Landlock (linux/landlock.h): rights of each version of its interface.
_ALL_RIGHTS: Final = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
_READ: Final = (1 << 2) | (1 << 3)  # READ_FILE, READ_DIR
_NET: Final = 0b11  # BIND_TCP, CONNECT_TCP, from version 4
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_PR_SET_NO_NEW_PRIVS: Final = 38


class QueryRefused(TallystickError):
    """SQL that is wrong, not allowed, or beyond its limits."""


class Request(msgspec.Struct, forbid_unknown_fields=True):
    """What is asked: `files` are the live segments below `archive`; `limit` 0 means all rows."""

    archive: str
    files: list[str]
    sql: str
    limit: int
    seconds: int


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
    """Limit this process to reading below `archive`, for good; whether the kernel could do that (Landlock)."""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    if version < 1:
        return False
    rights = _ALL_RIGHTS[max(v for v in _ALL_RIGHTS if v <= version)]
    attributes = struct.pack("<QQ", rights, _NET) if version >= 4 else struct.pack("<Q", rights)
    ruleset = libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))
    parent = os.open(archive, os.O_PATH | os.O_CLOEXEC)
    rule = struct.pack("<Qi", _READ, parent)
    if (
        ruleset < 0
        or libc.syscall(_ADD_RULE, ruleset, 1, rule, 0) != 0
        or libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
        or libc.syscall(_RESTRICT_SELF, ruleset, 0) != 0
    ):
        raise QueryRefused("SANDBOX", f"the kernel refused to restrict the process: {os.strerror(ctypes.get_errno())}")
    os.close(parent)
    os.close(ruleset)
    return True


def connect(archive: Path, files: list[str]) -> duckdb.DuckDBPyConnection:
    """A locked-down connection with the views over `files`."""
    paths = [archive / name for name in files]
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
    views.define(connection, paths)
    connection.execute("SET allowed_paths = $1", [[str(path) for path in paths]])
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def answer(connection: duckdb.DuckDBPyConnection, request: Request) -> Iterator[bytes]:
    """Run the query: a line with columns, a line for each row, a line with the number of rows."""
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
        # Before `restrict`: DuckDB looks at the machine (processors, cgroup) when it starts, and after it no
        # module can be read any more.
        connection = connect(Path(request.archive), request.files)
        pa.array([0]).cast(pa.timestamp("ns")).cast(pa.int64()).to_pylist()
        ns_text(0)
        restrict(Path(request.archive), request.seconds)
        for line in answer(connection, request):
            out.write(line)
        out.flush()
    except (QueryRefused, duckdb.Error, MemoryError, *NOT_DECODED) as exc:
        refusal = exc if isinstance(exc, QueryRefused) else _broken(exc)
        out.write(_line({"error": refusal.code, "text": refusal.text}))
        out.flush()
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
