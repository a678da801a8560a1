"""What venues really send: no ids, history, odd messages, silence, and ccxt's own mistakes in reading them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import ccxt
import pytest
from ccxt.async_support.base.ws.cache import ArrayCache

from tallystick.components.market_data import live
from tallystick.components.market_data.dumps import DumpQuote, DumpTrade, Tick
from tallystick.components.market_data.feed import Backoff, Change, Feed
from tallystick.components.market_data.live import LiveFeed, parse_quote
from tallystick.schemas.errors import Malformed
from tests.support.waiting import until

SECOND = 1_000_000_000
NOW = 1_740_000_000 * SECOND
STALE = 5 * SECOND


def sent(raw_id: str | None, ms: int = 0, **changes: Any) -> dict[str, Any]:
    """A trade as ccxt tells it, `ms` before now."""
    made = {"id": raw_id, "price": "100.5", "amount": "1", "side": "buy", "timestamp": NOW // 1_000_000 - ms}
    return made | {"symbol": "BTC/USDT"} | changes


class Scripted:
    """An exchange that tells batches and raises errors in turn, by symbol, and then nothing any more."""

    def __init__(self, script: dict[str, Sequence[Any]], name: str = "bybit") -> None:
        self.id = name
        self.has: dict[str, bool] = {}
        self._script = {symbol: list(items) for symbol, items in script.items()}

    async def load_markets(self) -> dict[str, Any]:
        return {symbol: {} for symbol in self._script}

    async def watch_trades(self, symbol: str) -> Any:
        await asyncio.sleep(0)
        if not self._script[symbol]:
            await asyncio.Event().wait()
        item = self._script[symbol].pop(0)
        if isinstance(item, BaseException):
            raise item
        return item

    async def close(self) -> None:
        pass


class World:
    """What a feed says of an exchange; `now` is the clock."""

    def __init__(self, exchange: Any, symbols: Sequence[str] = ("BTC/USDT",)) -> None:
        self.now = NOW
        self.out: list[tuple[str, object]] = []
        self.changes: list[Change] = []
        self.problems: list[str] = []
        self.quotes: list[DumpQuote] = []
        self.feed = LiveFeed(
            exchange,
            symbols,
            clock=lambda: self.now,
            stale_ns=STALE,
            on_tick=self.tick,
            on_change=self.change,
            on_problem=lambda symbol, text: self.problems.append(text),
            backoff=lambda: Backoff(0.01, 0.02),
        )

    def tick(self, symbol: str, tick: Tick) -> None:
        if isinstance(tick, DumpTrade):
            self.out.append((symbol, tick.trade_id))
        else:
            self.quotes.append(tick)

    def change(self, change: Change) -> None:
        self.changes.append(change)
        self.out.append((change.symbol, change.state))

    def of(self, symbol: str = "BTC/USDT") -> list[object]:
        return [what for at, what in self.out if at == symbol]

    async def until(self, condition: Any, timeout: float = 5.0) -> None:
        """Follow until `condition()` holds."""
        following = asyncio.create_task(self.feed.run())
        try:
            await until(lambda: following.done() or condition(), lambda: f"{self.out} {self.problems}", timeout)
            assert not following.done(), following
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "TICK_S", 0.02)
    monkeypatch.setattr(live, "QUOTE_S", 0.0)


async def told(script: Sequence[Any], name: str = "bybit", count: int = 1) -> World:
    """A world that has heard `count` things of `script`."""
    world = World(Scripted({"BTC/USDT": script}, name))
    await world.until(lambda: len(world.out) >= count)
    return world


async def test_trades_without_ids_are_told_once_each() -> None:
    same = sent(None, 10)
    first = [same, dict(same), sent(None, 9)]
    # After a cut the venue tells its newest trades again, and one more that looks like them.
    again = [dict(same), dict(same), dict(same), sent(None, 8)]
    world = await told([first, [dict(same)], ccxt.NetworkError("cut"), again, [sent(None, 7)]], count=9)
    trades = [x for x in world.of() if isinstance(x, int)]
    assert len(trades) == len(set(trades)) == 6
    assert [x for x in world.of() if isinstance(x, str)] == ["live", "reconnecting", "live"]


async def test_one_trade_that_cannot_be_read_takes_no_other_with_it() -> None:
    batch = [sent("a1"), sent("a2", price="0"), "noise", sent("a4", side=None), sent("a5")]
    world = await told([batch, [sent("a6")]], count=5)
    trades = [x for x in world.of() if isinstance(x, int)]
    assert len(trades) == 3
    assert [x for x in world.of() if isinstance(x, str)] == ["live", "gap"]
    assert "3 trades could not be read" in world.changes[1].text
    assert "3 of 5 trades left out" in world.problems[0]


async def test_of_many_problems_one_is_told_with_their_number() -> None:
    batches: list[Any] = [[sent(f"a{i}"), sent(f"b{i}", price="0")] for i in range(5)]
    world = World(Scripted({"BTC/USDT": batches}))
    await world.until(lambda: len(world.of()) >= 11)
    assert len(world.problems) == 1
    world.now += live.PROBLEM_S * SECOND
    world.feed._problem("BTC/USDT", "once more")
    assert world.problems[1:] == ["once more (and 4 before it)"]


async def test_where_ids_are_contiguous_the_unread_trade_is_the_gap() -> None:
    world = await told([[sent("1"), sent("2", amount="x"), sent("3")]], "binance", count=4)
    assert world.of() == ["live", 1, "gap", 3]
    assert (world.changes[1].missing_from, world.changes[1].missing_to) == (2, 2)


async def test_a_venue_whose_trades_none_can_read_is_reconnecting_once() -> None:
    world = World(Scripted({"BTC/USDT": [[sent("1", price=0.5)]] * 5 + [[sent("2")]]}))
    await world.until(lambda: "live" in world.of())
    assert [c.state for c in world.changes] == ["reconnecting", "live"]
    assert "expected text" in world.changes[0].text


@pytest.mark.parametrize(
    "bug",
    [
        IndexError("list index out of range"),
        TypeError("'<' not supported between instances of 'str' and 'int'"),
        AttributeError("'NoneType' object has no attribute 'append'"),
        ccxt.BadSymbol("binance does not have market symbol BTC/USDT"),
        KeyError("spot"),
    ],
    ids=lambda bug: type(bug).__name__,
)
async def test_what_ccxt_raises_on_a_message_stops_no_feed(bug: Exception) -> None:
    script: dict[str, Sequence[Any]] = {
        "BTC/USDT": [[sent("1")], bug, [sent("2")]],
        "ETH/USDT": [[sent("7")], [sent("8")]],
    }
    world = World(Scripted(script), tuple(script))
    await world.until(lambda: len(world.of()) == 5)
    assert world.of() == ["live", 1, "reconnecting", "live", 2]
    assert type(bug).__name__ in world.changes[[c.state for c in world.changes].index("reconnecting")].text
    assert world.of("ETH/USDT") == ["live", 7, 8]


async def test_a_symbol_that_never_trades_is_stale() -> None:
    world = World(Scripted({"BTC/USDT": [[sent("1")]], "XYZ/USDT": []}), ("BTC/USDT", "XYZ/USDT"))

    def later() -> bool:
        world.now += SECOND // 4
        return bool(world.of("XYZ/USDT"))

    await world.until(later)
    assert world.of("XYZ/USDT") == ["stale"]


@pytest.mark.parametrize("name", ["bybit", "binance"])
async def test_history_at_subscription_makes_nothing_live(name: str) -> None:
    hours = [sent(str(i), 11_520_000 - i) for i in range(3)]
    world = await told([hours, [sent("3", 20)]], name, count=3)
    assert world.of() == ["stale", "live", 3]
    assert "11520.0 s old" in world.changes[0].text


async def test_trades_that_came_too_late_after_a_cut_are_a_gap() -> None:
    script = [[sent("1", 20)], ccxt.NetworkError("cut"), [sent("1", 9_020), sent("2", 9_000), sent("3", 10)]]
    expected = {
        "bybit": ["live", 1, "reconnecting", "live", 3, "gap"],
        "binance": ["live", 1, "reconnecting", "gap", "live", 3],
    }
    for name, wanted in expected.items():
        world = await told(script, name, count=6)
        assert world.of() == wanted


async def test_ids_that_begin_anew_are_followed_and_old_ones_sent_again_are_not() -> None:
    script = [[sent("900", 30), sent("901", 20)], [sent("900", 30)], [sent("1", 10), sent("2", 5)], [sent("3", 5)]]
    world = await told(script, "binance", count=7)
    assert world.of() == ["live", 900, 901, "gap", 1, 2, 3]
    assert world.changes[1].text == "ids begin anew at 1, after 901"


async def test_a_repeat_does_not_keep_a_dead_feed_alive() -> None:
    feed = Feed("BTC/USDT", STALE)
    feed.trade(5, NOW, NOW)
    for second in range(1, 6):
        assert feed.trade(5, NOW + second * SECOND, NOW) == (False, [])
    assert [c.state for c in feed.tick(NOW + STALE)] == ["stale"]


class Cached(Scripted):
    """As ccxt: what comes is kept in a cache, and wakes up only who waits at that moment."""

    def __init__(self, size: int = 1000) -> None:
        super().__init__({"BTC/USDT": []})
        self.trades = {"BTC/USDT": ArrayCache(size)}
        self.waiting: asyncio.Future[Any] | None = None

    def comes(self, *trades: dict[str, Any]) -> None:
        for each in trades:
            self.trades["BTC/USDT"].append(each)
        if self.waiting is not None and not self.waiting.done():
            self.waiting.set_result(None)

    async def watch_trades(self, symbol: str) -> Any:
        self.waiting = asyncio.get_running_loop().create_future()
        await self.waiting
        cache = self.trades[symbol]
        return cache[-(cache.getLimit(symbol, None) or 0) :]


async def test_a_trade_that_came_while_nobody_waited_is_told_on_a_quiet_market() -> None:
    exchange = Cached()

    class Late(World):
        def tick(self, symbol: str, tick: Tick) -> None:
            super().tick(symbol, tick)
            if self.out[-1][1] == 1:
                exchange.comes(sent("2"), sent(None))  # nobody waits between a wake-up and the next call

    world = Late(exchange)

    def first() -> bool:
        if exchange.waiting is not None and not world.out and not exchange.waiting.done():
            exchange.comes(sent("1"))
        return len(world.of()) == 4

    await world.until(first)
    assert world.of()[:3] == ["live", 1, 2]


async def test_more_than_the_cache_holds_is_a_gap() -> None:
    exchange = Cached(size=10)
    world = World(exchange)
    step = iter(range(2))

    def feed() -> bool:
        if exchange.waiting is not None and not exchange.waiting.done():
            first = next(step, None)
            if first is not None:
                exchange.comes(*(sent(f"{i}") for i in range(first * 100, first * 100 + (25 if first else 3))))
        return len([x for x in world.of() if isinstance(x, int)]) >= 13

    await world.until(feed)
    assert [x for x in world.of() if isinstance(x, str)] == ["live", "gap"]
    assert "more than 10 trades came at once" in world.changes[1].text


class Quoting(Scripted):
    """Tells best bids and asks."""

    def __init__(self, *tickers: Any) -> None:
        super().__init__({"BTC/USDT": []})
        self.has = {"watchBidsAsks": True}
        self.bidsasks: dict[str, Any] = {}
        self._tickers = list(tickers)

    async def watch_bids_asks(self, symbols: list[str]) -> Any:
        await asyncio.sleep(0)
        if not self._tickers:
            await asyncio.Event().wait()
        item = self._tickers.pop(0)
        if isinstance(item, BaseException):
            raise item
        self.bidsasks[symbols[0]] = item
        return {symbols[0]: item}


TICKER = {"bid": "100.4", "bidVolume": "3", "ask": "100.6", "askVolume": "0", "timestamp": None}


async def test_quotes_follow_exactly_and_decide_no_state() -> None:
    exchange = Quoting(TICKER, IndexError("ccxt"), TICKER | {"bid": 100.4}, TICKER | {"timestamp": 5})
    world = World(exchange)
    await world.until(lambda: len(world.quotes) == 2)
    first = DumpQuote(Decimal("100.4"), Decimal(3), Decimal("100.6"), Decimal(0), NOW)
    assert world.quotes == [first, first._replace(time_ns=5_000_000)]
    assert world.changes == []
    assert [p.partition(":")[0] for p in world.problems] == ["quotes"]


async def test_a_quote_that_came_while_nobody_waited_is_told_on_a_quiet_market() -> None:
    exchange = Quoting(TICKER)
    world = World(exchange)

    def later() -> bool:
        if len(world.quotes) == 1:
            exchange.bidsasks["BTC/USDT"] = TICKER | {"bid": "100.5"}
        return len(world.quotes) > 1

    await world.until(later)
    assert [q.bid for q in world.quotes] == [Decimal("100.4"), Decimal("100.5")]


@pytest.mark.parametrize("bad", [{"bid": None}, {"ask": "0"}, {"askVolume": 1.5}, {"timestamp": -1}], ids=str)
def test_a_quote_that_is_not_whole_and_exact_is_refused(bad: dict[str, Any]) -> None:
    assert parse_quote(TICKER, NOW).time_ns == NOW
    tickers: list[object] = [TICKER | bad, None, []]
    for ticker in tickers:
        with pytest.raises(Malformed):
            parse_quote(ticker, NOW)
