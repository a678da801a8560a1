"""How rows of an answer are printed: a table for people, CSV, JSON."""

from __future__ import annotations

import csv
import itertools
import re
import sys
from collections.abc import Iterable
from enum import StrEnum
from typing import Any, Final

import msgspec
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

# Wide enough for any line where no terminal bounds it.
NO_TERMINAL: Final = 10_000
# With these, those of full width too, spreadsheets begin a formula; a number begins so as well and is none.
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_NUMBER: Final = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)


class Format(StrEnum):
    """How rows are printed."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"


def console() -> Console:
    """A console that does not fold piped text at 80 columns."""
    return Console(width=None if sys.stdout.isatty() else NO_TERMINAL, highlight=False, markup=False, emoji=False)


def shown(value: Any) -> str:
    """A value for people: no trailing zeros, and no control character reaches the terminal."""
    if value is None:
        return ""
    if isinstance(value, list):
        return ", ".join(map(shown, value))
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    head, point, tail = text.partition(".")
    if point and len(tail) == 18 and head.lstrip("-").isdigit() and tail.isdigit():
        text = f"{head}.{tail}".rstrip("0").rstrip(".")
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def print_table(columns: Iterable[str], rows: Iterable[list[Any]]) -> None:
    """Print a table."""
    table = Table(box=SIMPLE, pad_edge=False)
    for column in columns:
        table.add_column(Text(shown(column)))
    for row in rows:
        table.add_row(*(Text(shown(value)) for value in row))
    console().print(table)


def print_csv(columns: Iterable[str], rows: Iterable[list[Any]], *, raw: bool) -> None:
    """Print CSV; unless `raw`, text that a spreadsheet would run as a formula gets a `'` before it."""
    plain = csv.writer(sys.stdout, lineterminator="\n")
    # A carriage return alone is none of the line ends that the writer knows of; readers do.
    quoted = csv.writer(sys.stdout, lineterminator="\n", quoting=csv.QUOTE_ALL)
    texts = (
        ["" if v is None else v if isinstance(v, str) else msgspec.json.encode(v).decode() for v in row] for row in rows
    )
    for cells in itertools.chain([list(columns)], texts):
        writer = quoted if any("\r" in cell for cell in cells) else plain
        writer.writerow(cells if raw else map(guarded, cells))


def guarded(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula; numbers stay as they are."""
    begins = cell.startswith(_FORMULA) or cell.lstrip().startswith(_FORMULA)
    return f"'{cell}" if begins and not _NUMBER.fullmatch(cell) else cell


def print_json(columns: list[str], rows: Iterable[list[Any]]) -> None:
    """Print an object a line."""
    for row in rows:
        print(msgspec.json.encode(dict(zip(columns, row, strict=True))).decode())
