"""What the public may see of the played market: recent trades, candles and day statistics.  Pure: times are arguments.

- Times are the venue's own, when it played a trade; what a recording says of its day stands in the trade stream alone.
- Of each instrument the newest `TRADES` trades are kept, candles of a second for `SECONDS` and of a minute for
  `MINUTES`; longer intervals are added up from those.  A candle without trades repeats the close before it, as Binance's do.
- Everything begins anew with the process, as the played market does.

Source of intervals and fields: Binance Spot API documentation, "Market Data endpoints".
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

from tallystick.components.paper_exchange.orders import ZERO, worth

TRADES: Final = 5_000
SECOND_MS: Final = 1_000
MINUTE_MS: Final = 60_000
HOUR_MS: Final = 60 * MINUTE_MS
DAY_MS: Final = 24 * HOUR_MS
SECONDS: Final = 3_600
MINUTES: Final = 8 * 24 * 60
# Months are of 30 days: nothing is kept for so long that it mattered.
INTERVALS: Final[dict[str, int]] = {
    "1s": SECOND_MS,
    **{f"{n}m": n * MINUTE_MS for n in (1, 3, 5, 15, 30)},
    **{f"{n}h": n * HOUR_MS for n in (1, 2, 4, 6, 8, 12)},
    **{f"{n}d": n * DAY_MS for n in (1, 3)},
    "1w": 7 * DAY_MS,
    "1M": 30 * DAY_MS,
}
AVERAGE_MINUTES: Final = 5


@dataclass(slots=True, frozen=True)
class Print:
    """One trade of the played market."""

    id: int
    price: Decimal
    qty: Decimal
    time_ms: int
    buyer_is_maker: bool


@dataclass(slots=True)
class Candle:
    """Trades from `start` (Unix ms) on; `taker_*` is the part in which the buyer took."""

    start: int
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    volume: Decimal = ZERO
    value: Decimal = ZERO
    trades: int = 0
    taker_volume: Decimal = ZERO
    taker_value: Decimal = ZERO
    first_id: int = -1
    last_id: int = -1

    def add(self, p: Print, value: Decimal) -> None:
        """Count a trade that is worth `value`."""
        if not self.trades:
            self.open = self.high = self.low = p.price
            self.first_id = p.id
        elif p.price > self.high:
            self.high = p.price
        elif p.price < self.low:
            self.low = p.price
        self.close = p.price
        self.volume += p.qty
        self.value += value
        self.trades += 1
        self.last_id = p.id
        if not p.buyer_is_maker:
            self.taker_volume += p.qty
            self.taker_value += value

    def merge(self, later: Candle) -> None:
        """Count everything of a candle that came later."""
        if not later.trades:
            return
        if not self.trades:
            self.open, self.high, self.low, self.first_id = later.open, later.high, later.low, later.first_id
        self.high, self.low, self.close = max(self.high, later.high), min(self.low, later.low), later.close
        self.volume += later.volume
        self.value += later.value
        self.trades += later.trades
        self.taker_volume += later.taker_volume
        self.taker_value += later.taker_value
        self.last_id = later.last_id


@dataclass(slots=True)
class Tape:
    """What is kept of one instrument."""

    trades: deque[Print] = field(default_factory=lambda: deque(maxlen=TRADES))
    seconds: OrderedDict[int, Candle] = field(default_factory=OrderedDict)
    minutes: OrderedDict[int, Candle] = field(default_factory=OrderedDict)

    def add(self, p: Print) -> None:
        """Keep a trade."""
        self.trades.append(p)
        value = worth(p.price, p.qty)
        for kept, length, most in ((self.seconds, SECOND_MS, SECONDS), (self.minutes, MINUTE_MS, MINUTES)):
            start = p.time_ms // length * length
            candle = kept.get(start)
            if candle is None:
                candle = kept[start] = Candle(start, p.price, p.price, p.price, p.price)
                if len(kept) > most:
                    kept.popitem(last=False)
            candle.add(p, value)

    def candles(self, interval: str, start: int | None, end: int | None, limit: int, now_ms: int) -> list[Candle]:
        """At most `limit` candles that begin from `start` to `end` (Unix ms): the oldest with a `start`, else the newest."""
        length = INTERVALS[interval]
        kept = self.seconds if length == SECOND_MS else self.minutes
        if not kept:
            return []
        begin = next(iter(kept)) // length * length
        stop = min(now_ms if end is None else end, now_ms) // length * length
        if start is not None:
            begin = max(begin, -(-start // length) * length)
            stop = min(stop, begin + (limit - 1) * length)
        else:
            begin = max(begin, stop - (limit - 1) * length)
        found: dict[int, Candle] = {}
        close = ZERO
        for each in kept.values():
            at = each.start // length * length
            if at < begin:
                close = each.close
            elif at <= stop:
                candle = found.get(at)
                if candle is None:
                    candle = found[at] = Candle(at, each.open, each.open, each.open, each.open)
                candle.merge(each)
        candles = []
        for at in range(begin, stop + 1, length):
            candle = found.get(at) or Candle(at, close, close, close, close)
            close = candle.close
            if close:
                candles.append(candle)
        return candles

    def window(self, length_ms: int, now_ms: int) -> Candle | None:
        """Everything of the last `length_ms`, to the minute, as one candle; None where nothing was ever traded."""
        whole: Candle | None = None
        last = ZERO
        since = now_ms - length_ms
        for each in self.minutes.values():
            if each.start + MINUTE_MS <= since:
                last = each.close
                continue
            if whole is None:
                whole = Candle(since, each.open, each.open, each.open, each.open)
            whole.merge(each)
        if whole is None and last:
            return Candle(since, last, last, last, last)
        return whole

    def average(self, now_ms: int) -> tuple[Decimal, int]:
        """Price by quantity over the last minutes, and when the newest trade in it was (Unix ms); 0, 0 without one."""
        if not self.trades:
            return ZERO, 0
        whole = self.window(AVERAGE_MINUTES * MINUTE_MS, now_ms)
        newest = self.trades[-1]
        if whole is None or not whole.volume:
            return newest.price, newest.time_ms
        return whole.value / whole.volume, newest.time_ms


class History:
    """The tapes of all instruments."""

    def __init__(self, symbols: Iterable[str]) -> None:
        self.tapes = {symbol: Tape() for symbol in symbols}

    def add(self, symbol: str, p: Print) -> None:
        """Keep a trade."""
        self.tapes[symbol].add(p)
