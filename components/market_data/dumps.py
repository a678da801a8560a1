"""Binance's public data dumps (spot `aggTrades` and `trades`), read strictly and as a stream.

Source: the README of Binance's public data and its `/api/v3/aggTrades` and `/api/v3/historicalTrades`.

- A path is a `.zip` with exactly one `.csv` in it, or that `.csv`; its name begins as Binance names it:
  `<SYMBOL>-aggTrades-…` or `<SYMBOL>-trades-…`.
- aggTrades: id, price, quantity, first id, last id, time, buyer is maker, best match.
  trades: id, price, quantity, quote quantity, time, buyer is maker, best match.
- The first line may be a header.  Every other line has exactly these columns: numbers are plain decimals above
  zero that fit DECIMAL(38,18), booleans are True, False, true or false.
- Times are milliseconds (13 digits) or microseconds (16 digits, Binance spot since 2025), the same unit in a file.
- Ids rise strictly; a jump is a gap, and reported.  Times never fall.
- `open_dump` reads the whole file before the first trade is played, so a bad line leaves nothing half-played.
  Memory does not grow with the file.

A dump is not trusted: whoever controls it can at most make up a market's past, or stop the playing with an error.
"""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import IO, Final, NamedTuple

import msgspec

from tallystick.schemas.errors import ConfigError, Malformed

CHUNK: Final = 1 << 18
# The longest legal line is far below this; without a limit a file without line breaks would fill the memory.
MAX_LINE: Final = 1024
# Binance's largest monthly file is below 20 GB unpacked.
MAX_UNPACKED: Final = 64 << 30
# Real dumps deflate by 4 to 12; a ratio beyond this is a zip bomb.
MAX_RATIO: Final = 100
_TEXT_LIMIT: Final = 80

# Assets that Binance spot quotes in; the longest that fits the end of a symbol is its quote.
_QUOTES = """
USDT USDC FDUSD TUSD BUSD USDP USDS USD1 PAX DAI UST EURI EUR GBP AUD TRY BRL ARS COP CZK JPY MXN PLN RON UAH ZAR RUB
NGN BIDR IDRT BKRW BVND GYEN VAI BTC ETH BNB XRP TRX DOGE DOT SOL
"""
QUOTE_ASSETS: Final = frozenset(_QUOTES.split())


class DumpTrade(NamedTuple):
    """One recorded trade.

    `time_ns` is the venue's, Unix nanoseconds; `merged` the number of venue trades that it stands for (1 in `trades`);
    `gap` the number of ids missing before it.
    """

    trade_id: int
    price: Decimal
    qty: Decimal
    time_ns: int
    buyer_is_maker: bool
    merged: int
    gap: int


class _Column(NamedTuple):
    name: str
    pattern: bytes
    expected: str
    headers: tuple[str, ...]


_INT = rb"[0-9]{1,18}"
_AMOUNT = rb"(?=[0-9.]*[1-9])[0-9]{1,20}(?:\.[0-9]{1,18})?"
_TIME = rb"[0-9]{13}(?:[0-9]{3})?"
_BOOL = rb"True|False|true|false"
_POSITIVE = "a plain decimal above zero, at most 20 digits before and 18 after the point"
_WHOLE = "a whole number of at most 18 digits"

_ID = _Column("id", _INT, _WHOLE, ("id", "tradeid", "aggtradeid", "aggregatetradeid"))
_PRICE = _Column("price", _AMOUNT, _POSITIVE, ("price",))
_QTY = _Column("quantity", _AMOUNT, _POSITIVE, ("qty", "quantity"))
_QUOTE_QTY = _Column(
    "quote quantity", rb"[0-9]{1,20}(?:\.[0-9]{1,18})?", "a plain decimal", ("quoteqty", "quotequantity")
)
_FIRST = _Column("first id", _INT, _WHOLE, ("firsttradeid", "firstid"))
_LAST = _Column("last id", _INT, _WHOLE, ("lasttradeid", "lastid"))
_WHEN = _Column(
    "time", _TIME, "milliseconds (13 digits) or microseconds (16 digits)", ("time", "timestamp", "transacttime")
)
_MAKER = _Column("buyer is maker", _BOOL, "True or False", ("isbuyermaker", "buyerismaker", "wasthebuyerthemaker"))
_BEST = _Column(
    "best match",
    _BOOL,
    "True or False",
    ("isbestmatch", "bestmatch", "isbestpricematch", "wasthetradethebestpricematch"),
)

_COLUMNS: Final[dict[str, tuple[_Column, ...]]] = {
    "aggTrades": (_ID, _PRICE, _QTY, _FIRST, _LAST, _WHEN, _MAKER, _BEST),
    "trades": (_ID, _PRICE, _QTY, _QUOTE_QTY, _WHEN, _MAKER, _BEST),
}
# Anchored at a line's start, so that no match can begin inside a line and skip rubbish before it.
_LINES: Final = {
    kind: re.compile(b"^" + b",".join(b"(" + c.pattern + b")" for c in columns) + rb"\r?\n", re.MULTILINE)
    for kind, columns in _COLUMNS.items()
}
_NAME = re.compile(r"(?P<symbol>[A-Z0-9]{2,40})-(?P<kind>aggTrades|trades)\b.*\.(?:zip|csv)")
_SQUEEZE = re.compile(r"[^a-z]")


class Dump(msgspec.Struct, frozen=True):
    """A dump that was read once from end to end and found whole.

    `venue_symbol` is Binance's (`XRPETH`), `symbol` the unified one (`XRP/ETH`); `first_ns` and `last_ns` are the
    times of its first and last trade, `missing` the number of ids that are absent.
    """

    path: Path
    kind: str
    venue_symbol: str
    symbol: str
    rows: int
    first_id: int
    last_id: int
    first_ns: int
    last_ns: int
    missing: int

    def trades(self) -> Iterator[DumpTrade]:
        """The trades, in the file's order.  Raises `Malformed` if the file was changed meanwhile."""
        rows = 0
        expected = self.first_id
        scale = 0
        for chunk in _chunks(self.path, self.kind):
            for row in chunk:
                trade_id = int(row[0])
                scale = scale or _scale(row[-3])
                merged = int(row[4]) - int(row[3]) + 1 if self.kind == "aggTrades" else 1
                yield DumpTrade(
                    trade_id,
                    Decimal(row[1].decode()),
                    Decimal(row[2].decode()),
                    int(row[-3]) * scale,
                    row[-2] in (b"True", b"true"),
                    merged,
                    trade_id - expected,
                )
                expected = trade_id + 1
                rows += 1
        if rows != self.rows:
            raise Malformed("DUMP_CHANGED", f"{self.path}: {rows} trades, but {self.rows} when it was checked")


def unified_symbol(venue_symbol: str, symbols: Mapping[str, str] | None = None) -> str:
    """The unified symbol (`XRP/ETH`) of Binance's (`XRPETH`): from `symbols`, else by the known quote assets.

    Raises `ConfigError` if neither tells.
    """
    if symbols and venue_symbol in symbols:
        return symbols[venue_symbol]
    for length in range(min(5, len(venue_symbol) - 1), 0, -1):
        base, quote = venue_symbol[:-length], venue_symbol[-length:]
        if quote in QUOTE_ASSETS:
            return f"{base}/{quote}"
    raise ConfigError("DUMP_SYMBOL", f"{venue_symbol}: its quote asset is not known; declare the instrument")


def find_dumps(paths: Iterable[Path]) -> list[Path]:
    """The files among `paths`, and of each folder its dumps by name.  Raises `ConfigError` for a folder without one."""
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(p for p in path.iterdir() if _NAME.fullmatch(p.name))
        if not inside:
            raise ConfigError("DUMP_NONE", f"{path}: no dump in it; one is named like XRPETH-aggTrades-2019-10-11.zip")
        found += inside
    return found


def open_dump(path: Path, symbols: Mapping[str, str] | None = None) -> Dump:
    """Read and check a whole dump.  `symbols` maps Binance's symbols to unified ones, before the known quote assets.

    Raises `Malformed` with `file:line` and what was expected, `ConfigError` for a path or name that cannot be used.
    """
    name = _NAME.fullmatch(path.name)
    if name is None:
        raise ConfigError(
            "DUMP_NAME", f"{path}: a dump is named like XRPETH-aggTrades-2019-10-11.zip or BTCUSDT-trades-2021-01.csv"
        )
    kind, venue_symbol = name["kind"], name["symbol"]
    symbol = unified_symbol(venue_symbol, symbols)
    rows = missing = first_id = first_ns = scale = 0
    last_id, last_time = -1, 0
    for chunk in _chunks(path, kind):
        ids = [int(row[0]) for row in chunk]
        times = [int(row[-3]) for row in chunk]
        if not rows:
            first_id, scale = ids[0], _scale(chunk[0][-3])
            first_ns, last_id = times[0] * scale, ids[0] - 1
        # The quick checks look at neighbours within the chunk and across its edge; `_locate` names the line.
        # Times do not fall and a microsecond has more digits, so a change of unit shows at the chunk's ends.
        whole = (
            last_id < ids[0]
            and last_time <= times[0]
            and all(map(int.__lt__, ids, ids[1:]))
            and all(map(int.__le__, times, times[1:]))
            and _scale(chunk[0][-3]) == _scale(chunk[-1][-3]) == scale
            and (kind != "aggTrades" or all(int(row[3]) <= int(row[4]) for row in chunk))
        )
        if not whole:
            raise _locate(path, kind)
        rows += len(ids)
        missing += ids[-1] - last_id - len(ids)
        last_id, last_time = ids[-1], times[-1]
    if not rows:
        raise Malformed("DUMP_EMPTY", f"{path}: no trades in it")
    return Dump(path, kind, venue_symbol, symbol, rows, first_id, last_id, first_ns, last_time * scale, missing)


def _scale(digits: bytes) -> int:
    return 1_000_000 if len(digits) == 13 else 1_000


def _locate(path: Path, kind: str) -> Malformed:
    """The error of the first line that is out of order; lines are well-formed in themselves here."""
    last: tuple[bytes, ...] | None = None
    line = 0
    for chunk in _chunks(path, kind):
        for row in chunk:
            if last is None:
                line = 1 + _has_header(path, kind)
            else:
                line += 1
            where = f"{path}:{line}"
            if kind == "aggTrades" and int(row[3]) > int(row[4]):
                return Malformed("DUMP_LINE", f"{where}: first id {int(row[3])} is above last id {int(row[4])}")
            if last is not None:
                if int(row[0]) <= int(last[0]):
                    word = "is repeated" if int(row[0]) == int(last[0]) else "goes back"
                    return Malformed(
                        "DUMP_ORDER", f"{where}: id {int(row[0])} {word}; expected more than {int(last[0])}"
                    )
                if len(row[-3]) != len(last[-3]):
                    return Malformed(
                        "DUMP_LINE",
                        f"{where}: time {row[-3].decode()} is in another unit than {last[-3].decode()} before",
                    )
                if int(row[-3]) < int(last[-3]):
                    return Malformed(
                        "DUMP_ORDER",
                        f"{where}: time {row[-3].decode()} goes back; expected {last[-3].decode()} or later",
                    )
            last = row
    return Malformed("DUMP_CHANGED", f"{path} changes while it is read")


def _has_header(path: Path, kind: str) -> bool:
    with _open(path) as file:
        return _is_header(file.read(MAX_LINE).split(b"\n", 1)[0], kind)


def _is_header(line: bytes, kind: str) -> bool:
    cells = line.decode("ascii", "replace").strip().lower().split(",")
    columns = _COLUMNS[kind]
    return len(cells) == len(columns) and all(
        _SQUEEZE.sub("", cell) in column.headers for cell, column in zip(cells, columns, strict=True)
    )


def _chunks(path: Path, kind: str) -> Iterator[list[tuple[bytes, ...]]]:
    """The columns of all lines after the header, in lists of some thousand.  Raises `Malformed` at a bad line."""
    find = _LINES[kind].findall
    line = 1
    rest = b""
    with _open(path) as file:
        while True:
            block = file.read(CHUNK)
            data = rest + block
            if not block and data and not data.endswith(b"\n"):
                data += b"\n"
            cut = data.rfind(b"\n") + 1
            data, rest = data[:cut], data[cut:]
            if data:
                if line == 1:
                    head, _, body = data.partition(b"\n")
                    if _is_header(head, kind):
                        data, line = body, 2
                rows = find(data)
                # Every match holds exactly one line break: equal numbers mean that no line was left out.
                if len(rows) != data.count(b"\n"):
                    raise _explain(path, kind, data, line)
                line += len(rows)
                if rows:
                    yield rows
            if len(rest) > MAX_LINE:
                raise Malformed("DUMP_LINE", f"{path}:{line}: longer than {MAX_LINE} bytes; is this a dump?")
            if not block:
                return


def _explain(path: Path, kind: str, data: bytes, line: int) -> Malformed:
    match = _LINES[kind].fullmatch
    columns = _COLUMNS[kind]
    for number, raw in enumerate(data.split(b"\n"), line):
        if match(raw + b"\n"):
            continue
        where = f"{path}:{number}"
        cells = raw.removesuffix(b"\r").split(b",")
        shown = raw[:_TEXT_LIMIT].decode("ascii", "backslashreplace")
        if len(cells) != len(columns):
            names = ", ".join(c.name for c in columns)
            return Malformed(
                "DUMP_COLUMNS", f"{where}: {len(cells)} columns, expected {len(columns)} of {kind} ({names}): {shown!r}"
            )
        for column, cell in zip(columns, cells, strict=True):
            if not re.fullmatch(column.pattern, cell):
                got = cell[:_TEXT_LIMIT].decode("ascii", "backslashreplace")
                return Malformed("DUMP_LINE", f"{where}: {column.name} is {got!r}, expected {column.expected}")
    return Malformed("DUMP_LINE", f"{path}:{line}: not a dump of {kind}")


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


def _member(path: Path, archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    members = archive.infolist()
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
