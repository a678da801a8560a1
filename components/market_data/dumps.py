"""Binance's public data dumps (spot `aggTrades` and `trades`, and `bookTicker`), checked whole before they are played.

Source: the README of Binance's public data and its `/api/v3/aggTrades` and `/api/v3/historicalTrades`.

- A file's name begins as Binance names it: `<SYMBOL>-aggTrades-…`, `<SYMBOL>-trades-…`, `<SYMBOL>-bookTicker-…`.
- aggTrades: id, price, quantity, first id, last id, time, buyer is maker, best match.
  trades: id, price, quantity, quote quantity, time, buyer is maker, best match.
  bookTicker: update id, bid, bid quantity, ask, ask quantity, transaction time, event time.  What a line may look
  like: `lines`.
- Ids rise strictly; a jump among trades is a gap, and reported.
- Times are in one unit throughout a file.  They may step back by up to `MAX_BACK_NS` while ids rise, as Binance
  publishes them: the file's order is the order of playing, and the steps are noted.
- Dumps of futures are refused by name or by their columns: what is traded here is spot.
- Where Binance's `<file>.CHECKSUM` lies beside a dump, the dump must have that SHA-256.
- `open_dump` reads the whole file before its first line is played, so a bad line leaves nothing half-played.
  Memory does not grow with the file.

A dump is not trusted: whoever controls it can at most make up a market's past, or stop the playing with an error.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from tallystick.components.market_data.lines import LAYOUTS, Row, chunks, numbered
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.errors import ConfigError, Malformed

# Binance's own steps back are microseconds, in its early years parts of a second; an hour is a file put together wrongly.
MAX_BACK_NS: Final = 3600 * SECOND
CHECKSUM: Final = ".CHECKSUM"

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


class DumpQuote(NamedTuple):
    """One recorded best bid and ask; `time_ns` is the venue's, Unix nanoseconds."""

    bid: Decimal
    bid_qty: Decimal
    ask: Decimal
    ask_qty: Decimal
    time_ns: int


Tick = DumpTrade | DumpQuote

_NAME = re.compile(r"(?P<symbol>\w{2,40})-(?P<kind>[A-Za-z]+)\b.*\.(?:zip|csv)")


class Dump(msgspec.Struct, frozen=True):
    """A dump that was read once from end to end and found whole.

    `venue_symbol` is Binance's (`XRPETH`), `symbol` the unified one (`XRP/ETH`); `first_ns` and `last_ns` are the
    earliest and latest time of its first and of all lines, `missing` the number of trade ids that are absent,
    `back` how often the time steps back and `back_ns` by how much at the most.
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
    back: int
    back_ns: int

    @property
    def quotes(self) -> bool:
        """Whether it holds quotes, not trades."""
        return self.kind == "bookTicker"

    def ticks(self) -> Iterator[Tick]:
        """Its trades or quotes, in the file's order.  Raises `Malformed` if the file was changed meanwhile."""
        rows = 0
        expected = self.first_id
        scale = 0
        when = LAYOUTS[self.kind].time
        for chunk in chunks(self.path, self.kind):
            for row in chunk:
                scale = scale or _scale(row[when])
                if self.quotes:
                    bid, bid_qty, ask, ask_qty = (Decimal(cell.decode()) for cell in row[1:5])
                    yield DumpQuote(bid, bid_qty, ask, ask_qty, int(row[when]) * scale)
                else:
                    trade_id = int(row[0])
                    merged = int(row[4]) - int(row[3]) + 1 if self.kind == "aggTrades" else 1
                    yield DumpTrade(
                        trade_id,
                        Decimal(row[1].decode()),
                        Decimal(row[2].decode()),
                        int(row[when]) * scale,
                        row[-2][:1] in b"Tt",
                        merged,
                        trade_id - expected,
                    )
                    expected = trade_id + 1
                rows += 1
        if rows != self.rows:
            raise Malformed("DUMP_CHANGED", f"{self.path}: {rows} lines, but {self.rows} when it was checked")


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
    """The files among `paths`, and of each folder its dumps by name; Binance's checksums beside them are none.

    Raises `ConfigError` for a folder without one, and for paths that are checksums alone.
    """
    given, found = list(paths), list[Path]()
    for path in given:
        if not path.is_dir():
            if not path.name.endswith(CHECKSUM):
                found.append(path)
            continue
        inside = sorted(p for p in path.iterdir() if (name := _NAME.fullmatch(p.name)) and name["kind"] in LAYOUTS)
        if not inside:
            raise ConfigError("DUMP_NONE", f"{path}: no dump in it; one is named like XRPETH-aggTrades-2019-10-11.zip")
        found += inside
    for path in found:
        try:
            str(path.absolute()).encode()
        except UnicodeEncodeError as exc:
            raise ConfigError("DUMP_PATH", f"{str(path)!a}: the name is no UTF-8; rename it") from exc
    if given and not found:
        raise ConfigError("DUMP_NONE", f"{given[0]} is a checksum, no dump: give the file that it is of")
    return found


def _parse_name(path: Path) -> tuple[str, str]:
    """Symbol and kind, from the file's name.  Raises `ConfigError`."""
    # macOS takes letters with marks apart.
    name = _NAME.fullmatch(unicodedata.normalize("NFC", path.name))
    if name is None or name["symbol"] != name["symbol"].upper():
        raise ConfigError(
            "DUMP_NAME", f"{path}: a dump is named like XRPETH-aggTrades-2019-10-11.zip or BTCUSDT-trades-2021-01.csv"
        )
    symbol, kind = name["symbol"], name["kind"]
    if kind not in LAYOUTS:
        raise ConfigError("DUMP_NAME", f"{path}: {kind[:32]} are not played, only {', '.join(LAYOUTS)}")
    if "_" in symbol:
        raise Malformed("DUMP_FUTURES", f"{path}: {symbol} is a future; only spot is played")
    return symbol, kind


def _check_sum(path: Path) -> None:
    """Raise `Malformed` if the exchange's checksum lies beside the file and is another's."""
    beside = path.with_name(path.name + CHECKSUM)
    try:
        stated = beside.read_bytes()[:1024]
    except FileNotFoundError:
        return
    except OSError as exc:
        raise ConfigError("DUMP_PATH", f"{beside}: cannot be read ({exc.strerror}); remove it or mend it") from exc
    word = re.match(rb"([0-9a-fA-F]{64})(?:\s|$)", stated)
    if word is None:
        raise Malformed("DUMP_CHECKSUM", f"{beside}: does not begin with a SHA-256 in hex; fetch it again or remove it")
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as exc:
        raise ConfigError("DUMP_PATH", f"{path}: cannot be opened ({exc.strerror}); give a .zip or .csv file") from exc
    if digest != word[1].decode().lower():
        raise Malformed(
            "DUMP_CHECKSUM", f"{path}: its SHA-256 is {digest[:16]}…, {beside.name} says {word[1][:16].decode()}…"
        )


def open_dump(path: Path, symbols: Mapping[str, str] | None = None) -> Dump:
    """Read and check a whole dump.  `symbols` maps Binance's symbols to unified ones, before the known quote assets.

    Raises `Malformed` with `file:line` and what was expected, `ConfigError` for a path or name that cannot be used.
    """
    venue_symbol, kind = _parse_name(path)
    symbol = unified_symbol(venue_symbol, symbols)
    _check_sum(path)
    when = LAYOUTS[kind].time
    rows = missing = first_id = first = scale = back = back_by = 0
    last_id, latest = -1, 0
    for chunk in chunks(path, kind):
        moments = [row[when] for row in chunk]
        ids, times = [int(row[0]) for row in chunk], list(map(int, moments))
        if not rows:
            first_id, scale = ids[0], _scale(moments[0])
            first, last_id = times[0], ids[0] - 1
        # The quick checks look at neighbours within the chunk and across its edge; `_locate` names the line.
        whole = (
            last_id < ids[0]
            and all(map(int.__lt__, ids, ids[1:]))
            and set(map(len, moments)) == {len(moments[0])}
            and _scale(moments[0]) == scale
            and (kind != "aggTrades" or all(int(row[3]) <= int(row[4]) for row in chunk))
        )
        if times[0] < latest or any(map(int.__gt__, times, times[1:])):
            for time in times:
                back += time < latest
                back_by = max(back_by, latest - time)
                latest = max(latest, time)
        if not whole or back_by * scale > MAX_BACK_NS:
            raise _locate(path, kind)
        rows += len(ids)
        missing += ids[-1] - last_id - len(ids)
        last_id, latest = ids[-1], max(latest, times[-1])
    if not rows:
        raise Malformed("DUMP_EMPTY", f"{path}: nothing recorded in it")
    return Dump(
        path,
        kind,
        venue_symbol,
        symbol,
        rows,
        first_id,
        last_id,
        first * scale,
        latest * scale,
        0 if kind == "bookTicker" else missing,
        back,
        back_by * scale,
    )


def _scale(digits: bytes) -> int:
    return 1_000_000 if len(digits) == 13 else 1_000


def _locate(path: Path, kind: str) -> Malformed:
    """The error of the first line that is out of order; lines are well-formed in themselves here."""
    when = LAYOUTS[kind].time
    last: Row | None = None
    latest = 0
    for line, row in numbered(path, kind):
        where = f"{path}:{line}"
        if kind == "aggTrades" and int(row[3]) > int(row[4]):
            return Malformed("DUMP_LINE", f"{where}: first id {int(row[3])} is above last id {int(row[4])}")
        time = row[when].decode()
        if last is not None:
            if int(row[0]) <= int(last[0]):
                word = "is repeated" if int(row[0]) == int(last[0]) else "goes back"
                return Malformed(
                    "DUMP_ORDER",
                    f"{where}: id {int(row[0])} {word}; expected more than {int(last[0])}: sort the lines by id, "
                    "each once (sort -t, -nu -k1,1)",
                )
            if len(row[when]) != len(last[when]):
                return Malformed(
                    "DUMP_LINE", f"{where}: time {time} is in another unit than {last[when].decode()} before"
                )
            if (latest - int(time)) * _scale(row[when]) > MAX_BACK_NS:
                return Malformed(
                    "DUMP_ORDER",
                    f"{where}: time {time} goes back; expected {latest} or later, or at most "
                    f"{MAX_BACK_NS // SECOND} s before it",
                )
        latest = max(latest, int(time))
        last = row
    return Malformed("DUMP_CHANGED", f"{path} changes while it is read")
