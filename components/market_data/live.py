"""Live trades of any exchange that ccxt.pro speaks to, exact and watched.

- Numbers stay the text that the exchange sent (`exchange.number = str`): no float is ever made of them.
- Trade ids that are whole numbers are kept.  Others become 63 bits of their SHA-256: stable, but gaps cannot be told.
- Where ids are contiguous in each symbol (`CONTIGUOUS`), a jump is a gap.  `stale_ns` without a trade is staleness.
- `sleep` is also where the feed waits while nothing can be published; what the exchange sends meanwhile beyond ccxt's
  own buffer (1,000 trades a symbol) shows as a gap.
- Anything wrong with the connection is `reconnecting`, and the next attempt follows after a back-off, for ever.
  A symbol that the exchange does not have is a `ConfigError` at start.

An exchange is trusted with its own prices and nothing else: whoever controls it, or ccxt's parsing of it, can at most
make up prices, which the gateway's collar and the operator-signed caps bound.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

import aiohttp
import ccxt.pro
from ccxt.base.errors import BaseError

from tallystick import venues
from tallystick.components.market_data.dumps import DumpTrade, Tick
from tallystick.components.market_data.feed import Backoff, Change, Feed
from tallystick.runtime.bus.tasks import Tasks
from tallystick.runtime.deployment.folder import Deployment
from tallystick.schemas.bounds import NS_PER_MS
from tallystick.schemas.errors import ConfigError, Malformed
from tallystick.schemas.event import check_positive

# Exchanges whose public trade ids count up by one in each symbol.
CONTIGUOUS: Final = frozenset(("binance", "binanceus", "binancecoinm", "binanceusdm"))
TICK_S: Final = 0.5
_MAX_TIME_MS: Final = 2**63 // NS_PER_MS
# ccxt raises KeyError where an exchange refuses a subscription in a form that it does not know.
_FEED_ERRORS: Final = (BaseError, aiohttp.ClientError, OSError, TimeoutError, KeyError, Malformed)


def make_exchange(exchange_id: str, *, tls: ssl.SSLContext, urls: Mapping[str, Any] | None = None) -> Any:
    """A ccxt.pro exchange with exact numbers, spot markets only where it distinguishes them.

    `urls` replaces `exchange.urls["api"]`.  Raises `ConfigError` for an exchange that ccxt.pro does not know.
    """
    if exchange_id not in ccxt.pro.exchanges:
        raise ConfigError("EXCHANGE", f"ccxt.pro knows no exchange {exchange_id[:48]!r}")
    exchange = getattr(ccxt.pro, exchange_id)({"options": {"fetchMarkets": {"types": ["spot"]}, "fetchMargins": False}})
    exchange.number = str
    exchange.ssl_context = tls
    if urls is not None:
        exchange.urls["api"] = dict(urls)
    return exchange


def open_live(deployment: Deployment) -> Any:
    """The venue's exchange in ccxt.pro, or the paper exchange in the same language."""
    venue = deployment.config.venue
    adapter = venues.adapter(venue.api)
    urls = adapter.feed_urls(venue.host) if venue.kind == "paper" else None
    return make_exchange(adapter.FEED, urls=urls, tls=venues.client_tls(deployment.venue_ca))


def parse_trade(trade: Mapping[str, Any]) -> DumpTrade:
    """A trade of ccxt's unified form (numbers as text).  Raises `Malformed`."""
    raw_id, side, time_ms = trade.get("id"), trade.get("side"), trade.get("timestamp")
    if type(time_ms) is not int or not 0 <= time_ms < _MAX_TIME_MS or not isinstance(raw_id, str):
        raise Malformed("LIVE_TRADE", f"id {str(raw_id)[:40]!r}, time {str(time_ms)[:40]!r}")
    if side not in ("buy", "sell"):
        raise Malformed("LIVE_TRADE", f"side is {str(side)[:40]!r}, expected buy or sell")
    price, qty = _exact(trade.get("price")), _exact(trade.get("amount"))
    check_positive(price, "price")
    check_positive(qty, "quantity")
    return DumpTrade(trade_number(raw_id), price, qty, time_ms * NS_PER_MS, side == "sell", 1, 0)


def _exact(number: object) -> Decimal:
    if not isinstance(number, str):
        raise Malformed(
            "LIVE_TRADE", f"a number came as {type(number).__name__}, expected text: anything else is not exact"
        )
    try:
        return Decimal(number)
    except ArithmeticError as exc:
        raise Malformed("LIVE_TRADE", f"not a number: {number[:40]!r}") from exc


def trade_number(raw_id: str) -> int:
    """The exchange's trade id as a number: itself if it is one of at most 18 digits, else 63 bits of its SHA-256."""
    if raw_id.isascii() and raw_id.isdigit() and len(raw_id) <= 18 and (raw_id == "0" or raw_id[0] != "0"):
        return int(raw_id)
    return int.from_bytes(hashlib.sha256(raw_id.encode("utf-8", "backslashreplace")).digest()[:8], "big") >> 1


class LiveFeed:
    """Follows the public trades of `symbols` (unified) until cancelled."""

    def __init__(
        self,
        exchange: Any,
        symbols: Sequence[str],
        *,
        clock: Callable[[], int],
        stale_ns: int,
        on_tick: Callable[[str, Tick], object],
        on_change: Callable[[Change], object],
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        backoff: Callable[[], Backoff] = Backoff,
    ) -> None:
        contiguous = exchange.id in CONTIGUOUS
        self._exchange = exchange
        self._feeds = {symbol: Feed(symbol, stale_ns, contiguous) for symbol in symbols}
        self._clock = clock
        self._on_tick = on_tick
        self._on_change = on_change
        self._sleep = sleep
        self._backoff = backoff

    async def run(self) -> None:
        """Load the markets, then follow every symbol.  Raises `ConfigError` for a symbol that is not there."""
        tasks = Tasks()
        try:
            await self._load()
            tasks.start(self._ticks(), "ticks")
            for symbol, feed in self._feeds.items():
                tasks.start(self._follow(feed), f"follow {symbol}")
            await tasks.failed()
        finally:
            await tasks.end()
            await self._exchange.close()

    async def _load(self) -> None:
        markets = await self._markets()
        for symbol in self._feeds:
            if symbol not in markets:
                raise ConfigError("LIVE_SYMBOL", f"{self._exchange.id} has no market {symbol}")

    async def _markets(self) -> Mapping[str, Any]:
        backoff = self._backoff()
        while True:
            try:
                markets: Mapping[str, Any] = await self._exchange.load_markets()
            except _FEED_ERRORS as exc:
                for feed in self._feeds.values():
                    self._tell(feed.down(_why(exc)))
                await self._sleep(backoff.next())
            else:
                return markets

    async def _follow(self, feed: Feed) -> None:
        backoff = self._backoff()
        while True:
            trades: list[DumpTrade] = []
            failure = ""
            try:
                # Those before one that is malformed stay.
                trades.extend(parse_trade(raw) for raw in await self._exchange.watch_trades(feed.symbol))
            except _FEED_ERRORS as exc:
                failure = _why(exc)
            # Outside: what goes wrong with our own work is not the feed's failure.
            for trade in trades:
                new, changes = feed.trade(trade.trade_id, self._clock())
                self._tell(changes)
                if new:
                    self._on_tick(feed.symbol, trade)
            if failure:
                self._tell(feed.down(failure))
                await self._sleep(backoff.next())
            else:
                backoff.reset()
                await self._sleep(0)

    async def _ticks(self) -> None:
        while True:
            await self._sleep(TICK_S)
            for feed in self._feeds.values():
                self._tell(feed.tick(self._clock()))

    def _tell(self, changes: list[Change]) -> None:
        for change in changes:
            self._on_change(change)


def _why(exc: BaseException) -> str:
    return f"{type(exc).__name__}: {exc}"
