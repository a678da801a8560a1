"""Live trades and quotes of any exchange that ccxt.pro speaks to, exact and watched.

- Numbers stay the text that the exchange sent (`exchange.number = str`): no float is ever made of them.
- Trade ids that are whole numbers are kept.  Others become 63 bits of their SHA-256: stable, but gaps cannot be told.
  A trade without an id is named by what it says, and by how many of the same came before it on this connection.
- Where ids are contiguous in each symbol (`CONTIGUOUS`), a jump is a gap.  How fresh a trade is, the venue's time says
  (`feed`).
- Trades are taken from ccxt's cache, not from what a call returns alone: ccxt wakes nobody up for a trade that came
  while nobody waited, so the cache is looked at every `TICK_S` as well.  What comes beyond the cache's size (1,000
  trades a symbol) while nothing can be published (`sleep` waits for that) is a gap.
- A trade that cannot be read is left out, and said; those beside it are not.  Anything wrong with the connection, or
  with ccxt's reading of a message, is `reconnecting` for that symbol, and the next attempt follows after a back-off,
  for ever.  A symbol that the exchange does not have is a `ConfigError` at start.
- The best bid and ask follow where ccxt tells them (`watchBidsAsks`), the newest one each `QUOTE_S`.  They decide
  nothing about a feed's state: orders are measured against trades.

An exchange is trusted with its own prices and nothing else: whoever controls it, or ccxt's parsing of it, can at most
make up prices, which the gateway's collar and the operator-signed caps bound.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

import ccxt.pro

from tallystick import venues
from tallystick.components.market_data.dumps import DumpQuote, DumpTrade, Tick
from tallystick.components.market_data.feed import RECENT, Backoff, Change, Feed
from tallystick.runtime.bus.tasks import Tasks
from tallystick.runtime.deployment.folder import Deployment
from tallystick.schemas.bounds import NS_PER_MS, SECOND
from tallystick.schemas.errors import ConfigError, Malformed
from tallystick.schemas.event import check_decimal, check_positive

# Exchanges whose public trade ids count up by one in each symbol.
CONTIGUOUS: Final = frozenset(("binance", "binanceus", "binancecoinm", "binanceusdm"))
TICK_S: Final = 0.5
QUOTE_S: Final = 0.1
PROBLEM_S: Final = 10
_MAX_TIME_MS: Final = 2**63 // NS_PER_MS


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


def parse_trade(trade: object, ordinal: Callable[[str], int] = lambda _: 0) -> DumpTrade:
    """A trade of ccxt's unified form (numbers as text).  Raises `Malformed`.

    `ordinal` counts how often the same content came before, for trades without an id.
    """
    if not isinstance(trade, Mapping):
        raise Malformed("LIVE_TRADE", f"a trade came as {type(trade).__name__}")
    raw_id, side, time_ms = trade.get("id"), trade.get("side"), _milliseconds(trade.get("timestamp"))
    if side not in ("buy", "sell"):
        raise Malformed("LIVE_TRADE", f"side is {str(side)[:40]!r}, expected buy or sell")
    price, qty = _exact(trade.get("price")), _exact(trade.get("amount"))
    check_positive(price, "price")
    check_positive(qty, "quantity")
    if raw_id is None or raw_id == "":
        content = f"{time_ms} {price} {qty} {side}"
        raw_id = f"{content} {ordinal(content)}"
    if isinstance(raw_id, bool) or not isinstance(raw_id, str | int):
        raise Malformed("LIVE_TRADE", f"id is {str(raw_id)[:40]!r}")
    return DumpTrade(trade_number(str(raw_id)), price, qty, time_ms * NS_PER_MS, side == "sell", 1, 0)


def parse_quote(ticker: object, now: int) -> DumpQuote:
    """Best bid and ask of ccxt's unified ticker; of the moment `now` (ns) where the venue gives none.

    Raises `Malformed`.
    """
    if not isinstance(ticker, Mapping):
        raise Malformed("LIVE_QUOTE", f"a quote came as {type(ticker).__name__}")
    bid, ask = _exact(ticker.get("bid")), _exact(ticker.get("ask"))
    bid_qty, ask_qty = _exact(ticker.get("bidVolume")), _exact(ticker.get("askVolume"))
    check_positive(bid, "bid")
    check_positive(ask, "ask")
    check_decimal(bid_qty, "bid quantity")
    check_decimal(ask_qty, "ask quantity")
    stated = ticker.get("timestamp")
    return DumpQuote(bid, bid_qty, ask, ask_qty, now if stated is None else _milliseconds(stated) * NS_PER_MS)


def _milliseconds(stated: object) -> int:
    if isinstance(stated, float) and stated.is_integer():
        stated = int(stated)
    if type(stated) is not int or not 0 <= stated < _MAX_TIME_MS:
        raise Malformed("LIVE_TRADE", f"time is {str(stated)[:40]!r}, expected Unix milliseconds")
    return stated


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


class _Taken:
    """What has been taken of one symbol, so that nothing is taken twice: trades as ccxt keeps them, and nameless ones."""

    def __init__(self) -> None:
        # Kept alive, so that no other object can have the identity of one that was taken.
        self._trades: OrderedDict[int, object] = OrderedDict()
        self._nameless: OrderedDict[str, int] = OrderedDict()

    def news(self, cache: Any) -> tuple[list[object], bool]:
        """What ccxt's cache of the symbol holds since the last call, and whether it lost some meanwhile."""
        fresh: list[object] = []
        for trade in reversed(cache):
            if id(trade) in self._trades:
                break
            fresh.append(trade)
        lost = bool(self._trades) and len(fresh) == len(cache) == cache.max_size
        fresh.reverse()
        for trade in fresh:
            self._trades[id(trade)] = trade
            if len(self._trades) > RECENT:
                self._trades.popitem(last=False)
        return fresh, lost

    def ordinal(self, content: str) -> int:
        """How many nameless trades of this very content came before, on this connection."""
        count = self._nameless.pop(content, 0)
        self._nameless[content] = count + 1
        if len(self._nameless) > RECENT:
            self._nameless.popitem(last=False)
        return count

    def reconnect(self) -> None:
        """A new connection: the venue tells its newest trades again."""
        self._nameless.clear()


class LiveFeed:
    """Follows the public trades and quotes of `symbols` (unified) until cancelled.

    `on_problem` hears of what could not be read or followed, symbol and text, at most each `PROBLEM_S` for a symbol.
    """

    def __init__(
        self,
        exchange: Any,
        symbols: Sequence[str],
        *,
        clock: Callable[[], int],
        stale_ns: int,
        on_tick: Callable[[str, Tick], object],
        on_change: Callable[[Change], object],
        on_problem: Callable[[str, str], object] = lambda *_: None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        backoff: Callable[[], Backoff] = Backoff,
    ) -> None:
        contiguous = exchange.id in CONTIGUOUS
        self._exchange = exchange
        self._feeds = {symbol: Feed(symbol, stale_ns, contiguous) for symbol in symbols}
        self._taken = {symbol: _Taken() for symbol in symbols}
        # Until when no more problems of a symbol are told (ns), and how many were not.
        self._problems: dict[str, tuple[int, int]] = {}
        # The last ticker taken of each symbol whose quotes are followed.
        self._quoted: dict[str, object] = {}
        self._clock = clock
        self._on_tick = on_tick
        self._on_change = on_change
        self._on_problem = on_problem
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
                if getattr(self._exchange, "has", {}).get("watchBidsAsks"):
                    self._quoted[symbol] = None
                    tasks.start(self._follow_quotes(symbol), f"quotes {symbol}")
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
            except Exception as exc:  # noqa: BLE001  # as in `_follow`
                for feed in self._feeds.values():
                    self._tell(feed.down(_why(exc)))
                await self._sleep(backoff.next())
            else:
                return markets

    async def _follow(self, feed: Feed) -> None:
        backoff = self._backoff()
        while True:
            failure = ""
            told: Iterable[object] = ()
            try:
                told = await self._exchange.watch_trades(feed.symbol)
            # ccxt's readers raise whatever a message that they do not expect makes them raise.
            except Exception as exc:  # noqa: BLE001
                failure = _why(exc)
            # Outside: what goes wrong with our own work is not the feed's failure.
            failure = self._take(feed, told) or failure
            if failure:
                self._taken[feed.symbol].reconnect()
                self._tell(feed.down(failure))
                await self._sleep(backoff.next())
            else:
                backoff.reset()
                await self._sleep(0)

    def _take(self, feed: Feed, told: Iterable[object] = ()) -> str:
        """Take what is new; why nothing of it could be read, if so."""
        taken = self._taken[feed.symbol]
        cache = getattr(self._exchange, "trades", {}).get(feed.symbol)
        fresh, lost = (list(told), False) if cache is None else taken.news(cache)
        if lost:
            self._tell(feed.missed(f"more than {len(fresh)} trades came at once"))
        unread: list[str] = []
        for raw in fresh:
            try:
                trade = parse_trade(raw, taken.ordinal)
            except Malformed as exc:
                unread.append(_why(exc))
                continue
            new, changes = feed.trade(trade.trade_id, self._clock(), trade.time_ns)
            self._tell(changes)
            if new:
                self._on_tick(feed.symbol, trade)
        self._tell(feed.passed())
        if not unread:
            return ""
        self._problem(feed.symbol, f"{len(unread)} of {len(fresh)} trades left out: {unread[0]}")
        if len(unread) == len(fresh):
            return unread[0]
        self._tell(feed.missed(f"{len(unread)} trades could not be read: {unread[0]}"))
        return ""

    async def _follow_quotes(self, symbol: str) -> None:
        backoff = self._backoff()
        while True:
            ticker: object = None
            failure = ""
            try:
                ticker = (await self._exchange.watch_bids_asks([symbol])).get(symbol)
            except Exception as exc:  # noqa: BLE001  # as in `_follow`
                failure = _why(exc)
            failure = failure or self._take_quote(symbol, ticker)
            if failure:
                self._problem(symbol, f"quotes: {failure}")
                await self._sleep(backoff.next())
            else:
                backoff.reset()
                await self._sleep(QUOTE_S)

    def _take_quote(self, symbol: str, ticker: object) -> str:
        """Take a quote, unless it was taken before; why it could not be read, if so."""
        if ticker is self._quoted.get(symbol):
            return ""
        self._quoted[symbol] = ticker
        try:
            quote = parse_quote(ticker, self._clock())
        except Malformed as exc:
            return _why(exc)
        self._on_tick(symbol, quote)
        return ""

    async def _ticks(self) -> None:
        while True:
            for feed in self._feeds.values():
                self._take(feed)
                self._tell(feed.tick(self._clock()))
            quotes = getattr(self._exchange, "bidsasks", None) or {}
            for symbol in self._quoted:
                self._take_quote(symbol, quotes.get(symbol))
            await self._sleep(TICK_S)

    def _problem(self, symbol: str, text: str) -> None:
        until, kept = self._problems.get(symbol, (0, 0))
        now = self._clock()
        if now < until:
            self._problems[symbol] = until, kept + 1
            return
        self._problems[symbol] = now + PROBLEM_S * SECOND, 0
        self._on_problem(symbol, f"{text} (and {kept} before it)" if kept else text)

    def _tell(self, changes: list[Change]) -> None:
        for change in changes:
            self._on_change(change)


def _why(exc: BaseException) -> str:
    return f"{type(exc).__name__}: {exc}"
