"""Public market data: what each endpoint answers, and what the market streams say.

Numbers and fields are Binance's: Binance Spot API documentation, "Market Data endpoints", "WebSocket Streams".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any, Final

import msgspec

from tallystick.components.paper_exchange import parameters as parse
from tallystick.components.paper_exchange import wire
from tallystick.components.paper_exchange.call import Public
from tallystick.components.paper_exchange.checks import missing
from tallystick.components.paper_exchange.history import (
    AVERAGE_MINUTES,
    DAY_MS,
    HOUR_MS,
    INTERVALS,
    MINUTE_MS,
    Candle,
    History,
    Print,
)
from tallystick.components.paper_exchange.matching import Engine
from tallystick.components.paper_exchange.orders import ZERO, Refused
from tallystick.components.paper_exchange.parameters import MAX_LIST, Parameters
from tallystick.schemas.errors import NOT_DECODED

MAX_DEPTH: Final = 5_000
_WINDOWS: Final = {
    **{f"{n}m": n * MINUTE_MS for n in range(1, 60)},
    **{f"{n}h": n * HOUR_MS for n in range(1, 24)},
    **{f"{n}d": n * DAY_MS for n in range(1, 8)},
}
_strings = msgspec.json.Decoder(list[str])


def symbols(parameters: Parameters, known: Iterable[str]) -> list[str] | None:
    """What `symbol` or `symbols` (a JSON list) ask for; None for neither.  Raises `Refused`."""
    if "symbols" in parameters:
        if "symbol" in parameters:
            raise Refused(-1128, "Combination of optional parameters invalid.")
        try:
            asked = _strings.decode(parameters["symbols"])
        except NOT_DECODED as exc:
            raise Refused(-1135, "JSON sent for parameter 'symbols' is not valid") from exc
        if len(set(asked)) != len(asked):
            raise Refused(-1151, "Symbol is present multiple times in the list.")
    elif "symbol" in parameters:
        asked = [parse.symbol(parameters)]
    else:
        return None
    if not set(asked) <= set(known):
        raise Refused(-1121, "Invalid symbol.")
    return asked


class Market:
    """The endpoints over one engine and its history; `before_depth` is called with a symbol whose book is asked for, and the time."""

    def __init__(self, engine: Engine, history: History, before_depth: Callable[[str, int], None]) -> None:
        self._engine = engine
        self._history = history
        self._before_depth = before_depth
        self.update_ids: dict[str, int] = dict.fromkeys(engine.books, 1)

    def table(self) -> dict[str, Public]:
        """Every endpoint by method and path."""
        one, many = frozenset(("symbol",)), frozenset(("symbol", "symbols", "symbolStatus"))
        span = one | {"startTime", "endTime", "limit"}
        klines = Public(self._klines, 2, span | {"interval", "timeZone"})
        return {
            "GET /api/v3/depth": Public(self._depth, 5, one | {"limit", "symbolStatus"}),
            "GET /api/v3/trades": Public(self._trades, 25, one | {"limit"}),
            "GET /api/v3/historicalTrades": Public(self._trades, 25, one | {"limit", "fromId"}),
            "GET /api/v3/aggTrades": Public(self._agg_trades, 4, span | {"fromId"}),
            "GET /api/v3/klines": klines,
            "GET /api/v3/uiKlines": klines,
            "GET /api/v3/avgPrice": Public(self._average, 2, one),
            "GET /api/v3/ticker/24hr": Public(self._day, 80, many | {"type"}),
            "GET /api/v3/ticker/tradingDay": Public(self._day, 4, many | {"type", "timeZone"}),
            "GET /api/v3/ticker": Public(self._window, 4, many | {"windowSize", "type"}),
            "GET /api/v3/ticker/price": Public(self._each(self.price), 4, many),
            "GET /api/v3/ticker/bookTicker": Public(self._each(self.quote), 4, many),
        }

    # --- answers ----------------------------------------------------------------------------------------

    def _symbol(self, parameters: Parameters) -> str:
        symbol = parse.symbol(parameters)
        self._engine.instrument(symbol)
        return symbol

    def _each(self, of: Callable[[str], wire.Json]) -> Callable[[dict[str, str], int], Any]:
        def answer(parameters: dict[str, str], _now_ms: int) -> Any:
            asked = symbols(parameters, self._engine.books)
            if "symbol" in parameters and asked:
                return of(asked[0])
            return [of(symbol) for symbol in (self._engine.books if asked is None else asked)]

        return answer

    def _depth(self, parameters: dict[str, str], now_ms: int) -> wire.Json:
        symbol, limit = self._symbol(parameters), parse.limit(parameters, 100, MAX_DEPTH)
        self._before_depth(symbol, now_ms)
        bids, asks = self._engine.depth_of(symbol)
        return {
            "lastUpdateId": self.update_ids[symbol],
            "bids": levels(bids[:limit]),
            "asks": levels(asks[:limit]),
        }

    def _trades(self, parameters: dict[str, str], _now_ms: int) -> list[wire.Json]:
        trades = list(self._history.tapes[self._symbol(parameters)].trades)
        limit, first = parse.limit(parameters, 500, MAX_LIST), parse.integer(parameters, "fromId")
        found = trades[-limit:] if first is None else [p for p in trades if p.id >= first][:limit]
        return [
            {
                "id": p.id,
                "price": wire.number(p.price),
                "qty": wire.number(p.qty),
                "quoteQty": wire.number(p.price * p.qty),
                "time": p.time_ms,
                "isBuyerMaker": p.buyer_is_maker,
                "isBestMatch": True,
            }
            for p in found
        ]

    def _agg_trades(self, parameters: dict[str, str], _now_ms: int) -> list[wire.Json]:
        trades = self._history.tapes[self._symbol(parameters)].trades
        limit, first = parse.limit(parameters, 500, MAX_LIST), parse.integer(parameters, "fromId")
        start, end = parse.moment(parameters, "startTime"), parse.moment(parameters, "endTime")
        found = [
            p
            for p in trades
            if (first is None or p.id >= first)
            and (start is None or p.time_ms >= start)
            and (end is None or p.time_ms <= end)
        ]
        found = found[-limit:] if first is None and start is None else found[:limit]
        return [aggregate(p) for p in found]

    def _klines(self, parameters: dict[str, str], now_ms: int) -> list[list[Any]]:
        symbol, interval = self._symbol(parameters), parameters.get("interval")
        if interval is None:
            raise missing("interval")
        if interval not in INTERVALS:
            raise Refused(-1120, "Invalid interval.")
        start, end = parse.moment(parameters, "startTime"), parse.moment(parameters, "endTime")
        limit = parse.limit(parameters, 500, MAX_LIST)
        candles = self._history.tapes[symbol].candles(interval, start, end, limit, now_ms)
        return [kline(candle, INTERVALS[interval]) for candle in candles]

    def _average(self, parameters: dict[str, str], now_ms: int) -> wire.Json:
        price, time_ms = self._history.tapes[self._symbol(parameters)].average(now_ms)
        return {"mins": AVERAGE_MINUTES, "price": wire.number(price), "closeTime": time_ms}

    def _day(self, parameters: dict[str, str], now_ms: int) -> Any:
        return self._statistics(parameters, DAY_MS, now_ms, whole=True)

    def _window(self, parameters: dict[str, str], now_ms: int) -> Any:
        length = _WINDOWS.get(parameters.get("windowSize", "1d"))
        if length is None:
            raise Refused(
                -1100, "Illegal characters found in parameter 'windowSize'; legal are 1m to 59m, 1h to 23h, 1d to 7d."
            )
        if "symbol" not in parameters and "symbols" not in parameters:
            raise Refused(-1128, "Combination of optional parameters invalid.")
        return self._statistics(parameters, length, now_ms, whole=False)

    def _statistics(self, parameters: dict[str, str], length_ms: int, now_ms: int, *, whole: bool) -> Any:
        kind = parameters.get("type", "FULL")
        if kind not in {"FULL", "MINI"}:
            raise Refused(-1139, "Invalid ticker type.")

        def of(symbol: str) -> wire.Json:
            return self.statistics(symbol, length_ms, now_ms, full=kind == "FULL", touch=whole)

        return self._each(of)(parameters, now_ms)

    def statistics(self, symbol: str, length_ms: int, now_ms: int, *, full: bool, touch: bool) -> wire.Json:
        """One row of the ticker endpoints; `touch`: with best bid and ask."""
        tape = self._history.tapes[symbol]
        c = tape.window(length_ms, now_ms) or Candle(now_ms - length_ms, ZERO, ZERO, ZERO, ZERO)
        row: wire.Json = {
            "symbol": symbol,
            "openPrice": wire.number(c.open),
            "highPrice": wire.number(c.high),
            "lowPrice": wire.number(c.low),
            "lastPrice": wire.number(c.close),
            "volume": wire.number(c.volume),
            "quoteVolume": wire.number(c.value),
            "openTime": now_ms - length_ms,
            "closeTime": now_ms,
            "firstId": c.first_id,
            "lastId": c.last_id,
            "count": c.trades,
        }
        if not full:
            return row
        change = c.close - c.open
        row |= {
            "priceChange": signed(change),
            "priceChangePercent": f"{change / c.open * 100:.3f}" if c.open else "0.000",
            "weightedAvgPrice": wire.number(c.value / c.volume if c.volume else c.close),
        }
        if touch:
            quote = self.quote(symbol)
            del quote["symbol"]
            newest = tape.trades[-1] if tape.trades else None
            row |= quote | {
                "prevClosePrice": wire.number(c.open),
                "lastQty": wire.number(newest.qty if newest else ZERO),
            }
        return row

    def price(self, symbol: str) -> wire.Json:
        """The last price."""
        return {"symbol": symbol, "price": wire.number(self._engine.books[symbol].last)}

    def quote(self, symbol: str) -> wire.Json:
        """Best bid and ask, our own resting orders among them; zeros where a side is empty."""
        bids, asks = self._engine.depth_of(symbol)
        bid, ask = bids[0] if bids else (ZERO, ZERO), asks[0] if asks else (ZERO, ZERO)
        return {
            "symbol": symbol,
            "bidPrice": wire.number(bid[0]),
            "bidQty": wire.number(bid[1]),
            "askPrice": wire.number(ask[0]),
            "askQty": wire.number(ask[1]),
        }


def levels(side: Iterable[tuple[Decimal, Decimal]]) -> list[list[str]]:
    """Prices with quantities as Binance writes them."""
    return [[wire.number(price), wire.number(qty)] for price, qty in side]


def signed(value: Decimal) -> str:
    """A difference as Binance writes it; no negative zero."""
    return wire.number(value + ZERO)


def aggregate(p: Print) -> wire.Json:
    """One trade as an aggregate: here each stands alone."""
    return {
        "a": p.id,
        "p": wire.number(p.price),
        "q": wire.number(p.qty),
        "f": p.id,
        "l": p.id,
        "T": p.time_ms,
        "m": p.buyer_is_maker,
        "M": True,
    }


def kline(c: Candle, length_ms: int) -> list[Any]:
    """One row of `klines`."""
    return [
        c.start,
        wire.number(c.open),
        wire.number(c.high),
        wire.number(c.low),
        wire.number(c.close),
        wire.number(c.volume),
        c.start + length_ms - 1,
        wire.number(c.value),
        c.trades,
        wire.number(c.taker_volume),
        wire.number(c.taker_value),
        "0",
    ]
