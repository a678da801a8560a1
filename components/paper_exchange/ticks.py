"""What the market streams say when a trade was played; each message is made only where somebody follows its stream.

- `trade`, `aggTrade` and `bookTicker` tell every change; candles, tickers and depth at most once in their interval, as
  they are at that moment.
- `depth` tells what changed since the message before, with ids without a hole; the REST answer tells of the same moment as
  the newest id.

Source: Binance Spot API documentation, "WebSocket Streams".
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Container
from decimal import Decimal
from typing import Final

from tallystick.components.paper_exchange import wire
from tallystick.components.paper_exchange.history import DAY_MS, INTERVALS, SECOND_MS, Candle, History, Print
from tallystick.components.paper_exchange.market import Market, aggregate, levels
from tallystick.components.paper_exchange.matching import Engine
from tallystick.components.paper_exchange.orders import ZERO

_EVERY_MS: Final = {"": SECOND_MS, "@100ms": 100, "@1000ms": SECOND_MS}
_DEPTH = re.compile(r"depth(5|10|20)?(@100ms|@1000ms)?")
_KINDS: Final = frozenset(("trade", "aggTrade", "bookTicker", "miniTicker", "ticker", "avgPrice"))
_ALL: Final = frozenset(("!ticker@arr", "!miniTicker@arr"))

Broadcast = Callable[[str, Callable[[], object]], None]


def is_stream(name: str, symbols: Container[str]) -> bool:
    """Whether there is a market stream of this name; `symbols` are traded."""
    if name in _ALL:
        return True
    symbol, mark, kind = name.partition("@")
    if not mark or symbol != symbol.lower() or symbol.upper() not in symbols:
        return False
    if kind.startswith("kline_"):
        return kind[6:] in INTERVALS
    return kind in _KINDS or _DEPTH.fullmatch(kind) is not None


class Ticks:
    """Tells the followers of market streams; `followed` says which streams anybody follows."""

    def __init__(
        self, engine: Engine, history: History, followed: Callable[[], frozenset[str]], broadcast: Broadcast
    ) -> None:
        self._engine = engine
        self._history = history
        self._followed = followed
        self._broadcast = broadcast
        self._market = Market(engine, history, lambda _symbol, _now_ms: None)
        self._told: dict[str, int] = {}
        # symbol -> what the newest depth message left at its followers, and its id
        self._depths: dict[str, tuple[dict[Decimal, Decimal], dict[Decimal, Decimal]]] = {}
        self._touches: dict[str, wire.Json] = {}

    def market(self) -> Market:
        """The REST endpoints, whose depth is that of the streams."""
        made = Market(self._engine, self._history, self.depth)
        made.update_ids = self._market.update_ids
        return made

    def on_trade(self, symbol: str, p: Print, time_ms: int, now_ms: int) -> None:
        """A trade was played; `time_ms` is what its recording says."""
        self._history.add(symbol, p)
        self.on_change(symbol, now_ms, p, time_ms)

    def on_change(self, symbol: str, now_ms: int, p: Print | None = None, time_ms: int = 0) -> None:
        """The book of `symbol` may have changed."""
        stream = symbol.lower()
        for name in self._followed():
            of, _, kind = name.partition("@")
            if of == stream:
                self._tell(name, kind, symbol, p, time_ms, now_ms)
            elif name in _ALL and self._due(name, SECOND_MS, now_ms):
                full = name == "!ticker@arr"
                self._broadcast(name, functools.partial(self._all, now_ms, full))

    def _tell(self, name: str, kind: str, symbol: str, p: Print | None, time_ms: int, now_ms: int) -> None:
        if kind == "trade":
            if p is not None:
                self._broadcast(name, lambda: _trade(symbol, p, time_ms, now_ms))
        elif kind == "aggTrade":
            if p is not None:
                self._broadcast(name, lambda: {"e": "aggTrade", "E": now_ms, "s": symbol} | aggregate(p))
        elif kind == "bookTicker":
            quote = self._market.quote(symbol)
            if quote != self._touches.get(symbol):
                self._touches[symbol] = quote
                self._market.update_ids[symbol] += 1
                self._broadcast(name, lambda: self._quote(symbol, quote))
        elif kind in ("ticker", "miniTicker"):
            if self._due(name, SECOND_MS, now_ms):
                self._broadcast(name, lambda: self._ticker(symbol, now_ms, kind == "ticker"))
        elif kind == "avgPrice":
            if self._due(name, SECOND_MS, now_ms):
                self._broadcast(name, lambda: self._average(symbol, now_ms))
        elif kind.startswith("kline_"):
            if p is not None and self._due(name, SECOND_MS, now_ms):
                self._broadcast(name, lambda: self._kline(symbol, kind[6:], now_ms))
        elif (match := _DEPTH.fullmatch(kind)) and self._due(name, _EVERY_MS[match[2] or ""], now_ms):
            if match[1]:
                self._broadcast(name, lambda: self._top(symbol, int(match[1])))
            else:
                self.depth(symbol, now_ms)

    def _due(self, name: str, every_ms: int, now_ms: int) -> bool:
        if abs(now_ms - self._told.get(name, 0)) < every_ms:
            return False
        self._told[name] = now_ms
        return True

    def _all(self, now_ms: int, full: bool) -> list[wire.Json]:
        return [self._ticker(symbol, now_ms, full) for symbol in self._engine.books]

    # --- messages ---------------------------------------------------------------------------------------

    def depth(self, symbol: str, now_ms: int) -> None:
        """Tell all followers of the depth of `symbol` what changed, so that all of them know the same."""
        bids, asks = (dict(side) for side in self._engine.depth_of(symbol))
        old_bids, old_asks = self._depths.get(symbol, ({}, {}))
        changed_bids, changed_asks = _changes(old_bids, bids), _changes(old_asks, asks)
        if not changed_bids and not changed_asks:
            return
        self._depths[symbol] = bids, asks
        first = self._market.update_ids[symbol] + 1
        last = self._market.update_ids[symbol] = first + len(changed_bids) + len(changed_asks) - 1
        event = {
            "e": "depthUpdate",
            "E": now_ms,
            "s": symbol,
            "U": first,
            "u": last,
            "b": levels(changed_bids),
            "a": levels(changed_asks),
        }
        for end in _EVERY_MS:
            self._broadcast(f"{symbol.lower()}@depth{end}", lambda: event)

    def _top(self, symbol: str, count: int) -> wire.Json:
        bids, asks = self._engine.depth_of(symbol)
        return {
            "lastUpdateId": self._market.update_ids[symbol],
            "bids": levels(bids[:count]),
            "asks": levels(asks[:count]),
        }

    def _quote(self, symbol: str, quote: wire.Json) -> wire.Json:
        return {
            "u": self._market.update_ids[symbol],
            "s": symbol,
            "b": quote["bidPrice"],
            "B": quote["bidQty"],
            "a": quote["askPrice"],
            "A": quote["askQty"],
        }

    def _ticker(self, symbol: str, now_ms: int, full: bool) -> wire.Json:
        day = self._market.statistics(symbol, DAY_MS, now_ms, full=True, touch=True)
        mini = {
            "e": "24hrTicker" if full else "24hrMiniTicker",
            "E": now_ms,
            "s": symbol,
            "c": day["lastPrice"],
            "o": day["openPrice"],
            "h": day["highPrice"],
            "l": day["lowPrice"],
            "v": day["volume"],
            "q": day["quoteVolume"],
        }
        if not full:
            return mini
        return mini | {
            "p": day["priceChange"],
            "P": day["priceChangePercent"],
            "w": day["weightedAvgPrice"],
            "x": day["prevClosePrice"],
            "Q": day["lastQty"],
            "b": day["bidPrice"],
            "B": day["bidQty"],
            "a": day["askPrice"],
            "A": day["askQty"],
            "O": day["openTime"],
            "C": day["closeTime"],
            "F": day["firstId"],
            "L": day["lastId"],
            "n": day["count"],
        }

    def _average(self, symbol: str, now_ms: int) -> wire.Json:
        price, time_ms = self._history.tapes[symbol].average(now_ms)
        return {"e": "avgPrice", "E": now_ms, "s": symbol, "i": "5m", "w": wire.number(price), "T": time_ms}

    def _kline(self, symbol: str, interval: str, now_ms: int) -> wire.Json:
        candles = self._history.tapes[symbol].candles(interval, None, None, 1, now_ms)
        c = candles[-1] if candles else Candle(now_ms, ZERO, ZERO, ZERO, ZERO)
        return {
            "e": "kline",
            "E": now_ms,
            "s": symbol,
            "k": {
                "t": c.start,
                "T": c.start + INTERVALS[interval] - 1,
                "s": symbol,
                "i": interval,
                "f": c.first_id,
                "L": c.last_id,
                "o": wire.number(c.open),
                "c": wire.number(c.close),
                "h": wire.number(c.high),
                "l": wire.number(c.low),
                "v": wire.number(c.volume),
                "n": c.trades,
                "x": False,
                "q": wire.number(c.value),
                "V": wire.number(c.taker_volume),
                "Q": wire.number(c.taker_value),
                "B": "0",
            },
        }


def _trade(symbol: str, p: Print, time_ms: int, now_ms: int) -> wire.Json:
    return {
        "e": "trade",
        "E": now_ms,
        "s": symbol,
        "t": p.id,
        "p": wire.number(p.price),
        "q": wire.number(p.qty),
        "T": time_ms,
        "m": p.buyer_is_maker,
        "M": True,
    }


def _changes(old: dict[Decimal, Decimal], new: dict[Decimal, Decimal]) -> list[tuple[Decimal, Decimal]]:
    """Levels that are new or have another quantity, and with zero those that are gone."""
    changed = [(price, qty) for price, qty in new.items() if old.get(price) != qty]
    return changed + [(price, ZERO) for price in old if price not in new]
