r"""The lines of Binance's public data dumps: which columns each kind has, and a strict reading of them as a stream.

- A path is a `.zip` with exactly one `.csv` in it (what macOS and file managers add beside it is passed over), or
  that `.csv`.
- Every line has exactly the kind's columns.  Blank lines and headers are no data, wherever they stand, as files are
  concatenated; a byte-order mark at the start is none either.
- Amounts are decimals above zero that fit DECIMAL(38,18): plain, or as programs write small ones (`4.41e-06`).  A
  spreadsheet's `1.23E+11` has lost digits and is refused.
- Times are milliseconds (13 digits) or microseconds (16 digits, Binance spot since 2025).

What a line means, and the order of lines, is `dumps`' matter.
"""

from __future__ import annotations

import codecs
import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import IO, Final, NamedTuple

from tallystick.schemas.errors import ConfigError, Malformed
from tallystick.schemas.event import check_decimal

CHUNK: Final = 1 << 18
# The longest legal line is far below this; without a limit a file without line breaks would fill the memory.
MAX_LINE: Final = 1024
# Binance's largest monthly file is below 20 GB unpacked.
MAX_UNPACKED: Final = 64 << 30
# Real dumps deflate by 4 to 12; a ratio beyond this is a zip bomb.
MAX_RATIO: Final = 100
_TEXT_LIMIT: Final = 80

Row = tuple[bytes, ...]


class _Column(NamedTuple):
    name: str
    pattern: bytes
    expected: str
    headers: tuple[str, ...]


class Layout(NamedTuple):
    """A kind's columns; `time` is the place of the venue's time, `amounts` are those of amounts."""

    columns: tuple[_Column, ...]
    time: int
    amounts: tuple[int, ...]


_INT = rb"[0-9]{1,18}"
_SMALL = rb"[0-9](?:\.[0-9]{1,17})?[eE]-(?:0?[1-9]|1[0-8])"
_DIGITS = rb"[0-9]{1,20}(?:\.[0-9]{1,18})?"
_AMOUNT = rb"(?=[0-9.]*[1-9])(?:" + _DIGITS + rb"|" + _SMALL + rb")"
_TIME = rb"[0-9]{13}(?:[0-9]{3})?"
_BOOL = rb"True|False|true|false|TRUE|FALSE"
_POSITIVE = "a decimal above zero, at most 20 digits before and 18 after the point"
_WHOLE = "a whole number of at most 18 digits"
_MOMENT = "milliseconds (13 digits) or microseconds (16 digits)"

_ID = _Column("id", _INT, _WHOLE, ("id", "tradeid", "aggtradeid", "aggregatetradeid"))
_PRICE = _Column("price", _AMOUNT, _POSITIVE, ("price",))
_QTY = _Column("quantity", _AMOUNT, _POSITIVE, ("qty", "quantity"))
_QUOTE_QTY = _Column(
    "quote quantity", _DIGITS + rb"|" + _SMALL, "a plain decimal", ("quoteqty", "quotequantity", "baseqty")
)
_FIRST = _Column("first id", _INT, _WHOLE, ("firsttradeid", "firstid"))
_LAST = _Column("last id", _INT, _WHOLE, ("lasttradeid", "lastid"))
_WHEN = _Column("time", _TIME, _MOMENT, ("time", "timestamp", "transacttime"))
_MAKER = _Column("buyer is maker", _BOOL, "True or False", ("isbuyermaker", "buyerismaker", "wasthebuyerthemaker"))
_BEST = _Column(
    "best match",
    _BOOL,
    "True or False",
    ("isbestmatch", "bestmatch", "isbestpricematch", "wasthetradethebestpricematch"),
)
_UPDATE = _Column("update id", _INT, _WHOLE, ("updateid",))
_SHOWN = "a decimal, at most 20 digits before and 18 after the point"
_BID = _Column("bid", _AMOUNT, _POSITIVE, ("bestbidprice", "bidprice"))
_BID_QTY = _Column("bid quantity", _DIGITS, _SHOWN, ("bestbidqty", "bidqty"))
_ASK = _Column("ask", _AMOUNT, _POSITIVE, ("bestaskprice", "askprice"))
_ASK_QTY = _Column("ask quantity", _DIGITS, _SHOWN, ("bestaskqty", "askqty"))
_TRANSACTION = _Column("transaction time", _TIME, _MOMENT, ("transactiontime", "transacttime"))
_EVENT = _Column("event time", _TIME, _MOMENT, ("eventtime",))

LAYOUTS: Final[dict[str, Layout]] = {
    "aggTrades": Layout((_ID, _PRICE, _QTY, _FIRST, _LAST, _WHEN, _MAKER, _BEST), 5, (1, 2)),
    "trades": Layout((_ID, _PRICE, _QTY, _QUOTE_QTY, _WHEN, _MAKER, _BEST), 4, (1, 2, 3)),
    "bookTicker": Layout((_UPDATE, _BID, _BID_QTY, _ASK, _ASK_QTY, _TRANSACTION, _EVENT), 5, (1, 2, 3, 4)),
}
# Anchored at a line's start, so that no match can begin inside a line and skip rubbish before it.
_LINES: Final = {
    kind: re.compile(b"^" + b",".join(b"(" + c.pattern + b")" for c in layout.columns) + rb"\r?\n", re.MULTILINE)
    for kind, layout in LAYOUTS.items()
}
_SQUEEZE = re.compile(r"[^a-z]")
_UTF16: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def chunks(path: Path, kind: str) -> Iterator[list[Row]]:
    """The columns of all lines of data, in lists of some thousand.  Raises `Malformed` at a bad line."""
    find = _LINES[kind].findall
    for line, data in _blocks(path):
        rows = find(data)
        # Every match holds exactly one line break: equal numbers mean that no line was left out.
        if len(rows) != data.count(b"\n"):
            _check_left_out(path, kind, data, line)
        if b"e-" in data or b"E-" in data:
            _check_fit(path, kind, data, line)
        if rows:
            yield rows


def numbered(path: Path, kind: str) -> Iterator[tuple[int, Row]]:
    """Each line of data with its number, slowly: to say where something stands."""
    match = _LINES[kind].fullmatch
    for line, data in _blocks(path):
        for number, raw in enumerate(data.split(b"\n"), line):
            found = match(raw + b"\n")
            if found is not None:
                yield number, found.groups()


def _blocks(path: Path) -> Iterator[tuple[int, bytes]]:
    """Whole lines, some thousand at a time, and the number of the first; the last one is given its line break."""
    line = 1
    rest = b""
    with _open(path) as file:
        start = file.read(len(codecs.BOM_UTF8))
        if start.startswith(_UTF16):
            raise Malformed("DUMP_LINE", f"{path}:1: a byte-order mark of UTF-16; save it as plain text (UTF-8)")
        rest = start.removeprefix(codecs.BOM_UTF8)
        while True:
            block = file.read(CHUNK)
            data = rest + block
            if not block and data and not data.endswith(b"\n"):
                data += b"\n"
            cut = data.rfind(b"\n") + 1
            data, rest = data[:cut], data[cut:]
            if data:
                yield line, data
                line += data.count(b"\n")
            if len(rest) > MAX_LINE:
                raise Malformed("DUMP_LINE", f"{path}:{line}: longer than {MAX_LINE} bytes; is this a dump?")
            if not block:
                return


def _check_left_out(path: Path, kind: str, data: bytes, line: int) -> None:
    """Raise `Malformed` unless the lines of `data` that are no data are blank or headers."""
    match = _LINES[kind].fullmatch
    for number, raw in enumerate(data.split(b"\n"), line):
        if match(raw + b"\n") or not raw.strip() or _is_header(raw, LAYOUTS[kind].columns):
            continue
        raise _explain(f"{path}:{number}", kind, raw)


def _check_fit(path: Path, kind: str, data: bytes, line: int) -> None:
    """Raise `Malformed` for an amount with an exponent that has more places than fit."""
    layout = LAYOUTS[kind]
    for number, raw in enumerate(data.split(b"\n"), line):
        found = _LINES[kind].fullmatch(raw + b"\n")
        if found is None:
            continue
        for i in layout.amounts:
            text = found.group(i + 1).decode()
            try:
                check_decimal(Decimal(text), layout.columns[i].name)
            except Malformed as exc:
                raise Malformed("DUMP_LINE", f"{path}:{number}: {exc.text}") from exc


def _is_header(line: bytes, columns: tuple[_Column, ...]) -> bool:
    cells = line.decode("ascii", "replace").strip().lower().split(",")
    return len(cells) == len(columns) and all(
        _SQUEEZE.sub("", cell) in column.headers for cell, column in zip(cells, columns, strict=True)
    )


def _explain(where: str, kind: str, raw: bytes) -> Malformed:
    columns = LAYOUTS[kind].columns
    cells = raw.removesuffix(b"\r").split(b",")
    shown = raw[:_TEXT_LIMIT].decode("ascii", "backslashreplace")
    if len(cells) != len(columns):
        spot = columns[:-1]
        fits = len(cells) == len(spot) and all(
            re.fullmatch(column.pattern, cell) for column, cell in zip(spot, cells, strict=True)
        )
        if kind != "bookTicker" and (fits or _is_header(raw, spot)):
            return Malformed(
                "DUMP_FUTURES",
                f"{where}: the columns of a futures dump (no {columns[-1].name}); only spot is played: "
                f"fetch it from Binance's data/spot",
            )
        names = ", ".join(c.name for c in columns)
        return Malformed(
            "DUMP_COLUMNS", f"{where}: {len(cells)} columns, expected {len(columns)} of {kind} ({names}): {shown!r}"
        )
    for column, cell in zip(columns, cells, strict=True):
        if not re.fullmatch(column.pattern, cell):
            got = cell[:_TEXT_LIMIT].decode("ascii", "backslashreplace")
            return Malformed("DUMP_LINE", f"{where}: {column.name} is {got!r}, expected {column.expected}")
    return Malformed("DUMP_LINE", f"{where}: not a line of {kind}: {shown!r}")


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    try:
        raw = path.open("rb")
    except OSError as exc:
        raise ConfigError("DUMP_PATH", f"{path}: cannot be opened ({exc.strerror}); give a .zip or .csv file") from exc
    with raw:
        if path.suffix != ".zip":
            yield raw
            return
        try:
            with zipfile.ZipFile(raw) as archive, archive.open(_member(path, archive)) as member:
                yield io.BufferedReader(member, CHUNK)  # type: ignore[type-var]  # a ZipExtFile is a BufferedIOBase
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError) as exc:
            raise Malformed("DUMP_ZIP", f"{path}: not a whole zip file: {exc}") from exc


def _is_clutter(name: str) -> bool:
    """Whether macOS puts such a member beside what it packs."""
    path = PurePosixPath(name)
    return path.parts[:1] == ("__MACOSX",) or path.name.startswith("._") or path.name == ".DS_Store"


def _member(path: Path, archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    members = [m for m in archive.infolist() if not _is_clutter(m.filename)]
    if len(members) != 1 or not members[0].filename.endswith(".csv"):
        names = ", ".join(m.filename[:_TEXT_LIMIT] for m in members[:3]) or "nothing"
        raise Malformed("DUMP_ZIP", f"{path}: expected exactly one .csv in it, found {len(members)}: {names}")
    member = members[0]
    if member.flag_bits & 1:
        raise Malformed("DUMP_ZIP", f"{path}: {member.filename[:_TEXT_LIMIT]} is encrypted")
    # zipfile never yields more than the declared size, so the declared size is what to limit.
    if member.file_size > MAX_UNPACKED or member.file_size > MAX_RATIO * max(member.compress_size, 1024):
        raise Malformed(
            "DUMP_ZIP",
            f"{path}: unpacks {member.compress_size} bytes to {member.file_size}; limits: ratio {MAX_RATIO}, "
            f"{MAX_UNPACKED} bytes",
        )
    return member
