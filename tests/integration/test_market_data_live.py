"""The real ccxt.pro against the paper exchange: exact numbers, gaps, staleness, reconnects."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tallystick.components.market_data.dumps import DumpQuote, DumpTrade, Tick
from tallystick.components.market_data.feed import RECENT, Backoff, Change, Feed
from tallystick.components.market_data.live import LiveFeed, make_exchange, parse_trade, trade_number
from tallystick.components.paper_exchange.server import Exchange, Fault
from tallystick.schemas.errors import ConfigError, Malformed
from tallystick.venues import client_tls
from tallystick.venues.binance import feed_urls
from tests.support.paper import trade, venue
from tests.support.tls import ServerTls
from tests.support.waiting import until

pytestmark = pytest.mark.uvloop


class Heard:
    following: asyncio.Task[None]

    def __init__(self) -> None:
        self.trades: list[DumpTrade] = []
        self.quotes: list[DumpQuote] = []
        self.changes: list[Change] = []

    def on_tick(self, symbol: str, heard: Tick) -> None:
        assert symbol == "XRP/ETH"
        if isinstance(heard, DumpTrade):
            self.trades.append(heard)
        else:
            self.quotes.append(heard)

    @property
    def states(self) -> list[str]:
        return [c.state for c in self.changes]

    async def until(self, condition: Callable[[], Any], timeout: float = 8.0) -> None:
        """Wait for `condition()`, or for the feed's end if that comes first."""
        await until(lambda: self.following.done() or condition(), lambda: f"{self.states}, {self.trades}", timeout)
        if self.following.done():
            self.following.result()


@contextlib.asynccontextmanager
async def follow(
    tls: ServerTls,
    folder: Path,
    faults: dict[str, Fault] | None = None,
    symbols: tuple[str, ...] = ("XRP/ETH",),
    stale_ns: int = 0,
) -> AsyncIterator[tuple[Exchange, Heard]]:
    async with venue(tls, folder, faults) as exchange:
        ccxt_exchange = make_exchange("binance", urls=feed_urls(f"127.0.0.1:{exchange.port}"), tls=tls.client())
        heard = Heard()
        feed = LiveFeed(
            ccxt_exchange,
            symbols,
            clock=time.time_ns,
            stale_ns=stale_ns,
            on_tick=heard.on_tick,
            on_change=heard.changes.append,
            backoff=lambda: Backoff(0.05, 0.2),
        )
        heard.following = asyncio.create_task(feed.run())
        try:
            yield exchange, heard
        finally:
            heard.following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await heard.following


async def subscribed(exchange: Exchange, heard: Heard) -> None:
    """To the trades: quotes are followed on their own, and may be there before."""
    await heard.until(lambda: any("xrpeth@trade" in s.streams for s in exchange.sockets.open))


async def test_live_trades_are_exactly_what_the_exchange_sent(tls: ServerTls, tmp_path: Path) -> None:
    async with follow(tls, tmp_path) as (exchange, heard):
        await subscribed(exchange, heard)
        trade(exchange, "12345.1234567", "87654321", buyer_is_maker=True)
        trade(exchange, "0.0000001", "1", buyer_is_maker=False)
        # ccxt alone would tell what came while nobody waited with the next trade only, and there is none.
        await heard.until(lambda: len(heard.trades) == 2)
    first, second = heard.trades
    assert (first.price, first.qty, first.buyer_is_maker) == (
        Decimal("12345.1234567"),
        Decimal(87654321),
        True,
    )
    assert (second.price, second.buyer_is_maker) == (Decimal("0.0000001"), False)
    assert second.trade_id == first.trade_id + 1
    assert abs(first.time_ns - time.time_ns()) < 60 * 10**9


async def test_live_quotes_are_the_exchanges_best_bid_and_ask(tls: ServerTls, tmp_path: Path) -> None:
    async with follow(tls, tmp_path) as (exchange, heard):
        await heard.until(lambda: {n for s in exchange.sockets.open for n in s.streams} >= {"xrpeth@bookTicker"})
        trade(exchange, "0.0013", "7", buyer_is_maker=True)
        trade(exchange, "0.0015", "9", buyer_is_maker=False)
        await heard.until(lambda: heard.quotes and heard.quotes[-1].ask == Decimal("0.0015"))
    last = heard.quotes[-1]
    assert (last.bid, last.bid_qty, last.ask_qty) == (Decimal("0.0013"), Decimal(7), Decimal(9))
    assert abs(last.time_ns - time.time_ns()) < 60 * 10**9


async def test_numbers_that_no_float_holds_pass_through_ccxt_exactly() -> None:
    exchange = make_exchange("binance", tls=client_tls(None))
    message = {"e": "trade", "s": "XRPETH", "t": 7, "p": "1234567.000000000000000001", "q": "9007199254740993.1"}
    try:
        parsed = parse_trade(exchange.parse_ws_trade(message | {"T": 1, "m": True}))
    finally:
        await exchange.close()
    assert (str(parsed.price), str(parsed.qty)) == ("1234567.000000000000000001", "9007199254740993.1")


async def test_a_cut_connection_is_told_and_followed_anew_with_the_gap_named(tls: ServerTls, tmp_path: Path) -> None:
    async with follow(tls, tmp_path) as (exchange, heard):
        await subscribed(exchange, heard)
        trade(exchange, "0.0013", buyer_is_maker=True)
        await heard.until(lambda: heard.trades)
        for socket in list(exchange.sockets.open):
            socket.cut()
        trade(exchange, "0.0014", buyer_is_maker=True)
        await heard.until(lambda: "reconnecting" in heard.states)
        await subscribed(exchange, heard)
        trade(exchange, "0.0015", buyer_is_maker=True)
        await heard.until(lambda: len(heard.trades) == 2)
    assert heard.states == ["live", "reconnecting", "gap", "live"]
    gap = heard.changes[2]
    missing = heard.trades[0].trade_id + 1
    assert (gap.missing_from, gap.missing_to) == (missing, missing)


async def test_a_quiet_feed_is_stale_until_the_next_trade(tls: ServerTls, tmp_path: Path) -> None:
    async with follow(tls, tmp_path, stale_ns=300_000_000) as (exchange, heard):
        await subscribed(exchange, heard)
        trade(exchange, "0.0013", buyer_is_maker=True)
        await heard.until(lambda: "stale" in heard.states)
        trade(exchange, "0.0013", buyer_is_maker=True)
        await heard.until(lambda: len(heard.trades) == 2)
    assert heard.states == ["live", "stale", "live"]


async def test_an_exchange_that_does_not_answer_at_start_is_tried_again(tls: ServerTls, tmp_path: Path) -> None:
    faults = {"GET /api/v3/exchangeInfo": Fault("drop_before", times=2)}
    async with follow(tls, tmp_path, faults) as (exchange, heard):
        await subscribed(exchange, heard)
    assert heard.states == ["reconnecting"]


async def test_a_symbol_that_the_exchange_has_not_is_a_configuration_error(tls: ServerTls, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="binance has no market DOGE/ETH"):
        async with follow(tls, tmp_path, symbols=("XRP/ETH", "DOGE/ETH")) as (_, heard):
            await heard.following


def test_an_exchange_that_ccxt_does_not_know_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="knows no exchange 'nowhere'"):
        make_exchange("nowhere", tls=client_tls(None))


async def test_a_server_below_tls_1_3_is_not_spoken_to() -> None:
    exchange = make_exchange("binance", tls=client_tls(None))
    assert int(exchange.ssl_context.minimum_version) == 0x0304
    await exchange.close()


GOOD = {"id": "7", "price": "1.5", "amount": "2", "timestamp": 1, "side": "sell"}


@pytest.mark.parametrize(
    "bad",
    [
        {"price": None},
        {"price": "NaN"},
        {"price": "-1"},
        {"price": 1.5},
        {"amount": 2.0},
        {"amount": "x"},
        {"id": True},
        {"id": 1.0},
        {"timestamp": 1.5},
        {"timestamp": None},
        {"side": None},
    ],
    ids=str,
)
def test_a_trade_that_is_not_whole_and_exact_is_refused(bad: dict[str, Any]) -> None:
    assert parse_trade(GOOD).trade_id == 7
    with pytest.raises(Malformed):
        parse_trade(GOOD | bad)


@pytest.mark.parametrize("raw", ["007", "a1", "1" * 19, "-1", "", "٣", "4c0d879e-0000"])
def test_an_id_that_is_no_plain_number_becomes_a_stable_one(raw: str) -> None:
    assert 0 <= trade_number(raw) < 2**63
    assert trade_number(raw) == trade_number(raw) != trade_number(raw + "x")
    assert trade_number("123") == 123


def test_without_contiguous_ids_a_jump_is_no_gap_and_a_repeat_is_dropped() -> None:
    feed = Feed("X/Y", contiguous=False)
    assert feed.trade(50, 0)[0]
    assert feed.trade(7, 0) == (True, [])
    assert feed.trade(50, 0) == (False, [])
    for i in range(1000, 1000 + RECENT):
        feed.trade(i, 0)
    assert feed.trade(50, 0)[0]


@pytest.mark.parametrize("raised", [OSError("disk"), KeyError("symbol"), Malformed("EVENTS_SIZE", "ours")], ids=repr)
def test_what_goes_wrong_with_a_trade_on_our_side_is_not_the_feeds_failure(raised: Exception) -> None:
    class OneTrade:
        id = "binance"
        closed = False

        async def load_markets(self) -> dict[str, Any]:
            return {"XRP/ETH": {}}

        async def watch_trades(self, symbol: str) -> list[dict[str, Any]]:
            return [{"id": "7", "timestamp": 1, "side": "buy", "price": "0.0013", "amount": "1"}]

        async def close(self) -> None:
            self.closed = True

    def fails(symbol: str, tick: Tick) -> None:
        raise raised

    exchange = OneTrade()
    changes: list[Change] = []

    async def run() -> None:
        feed = LiveFeed(exchange, ["XRP/ETH"], clock=time.time_ns, stale_ns=0, on_tick=fails, on_change=changes.append)
        with pytest.raises(type(raised)) as caught:
            await asyncio.wait_for(feed.run(), 20)
        assert caught.value is raised

    asyncio.run(run())
    assert [c.state for c in changes] == ["live"]
    assert exchange.closed
