"""Market data and strategies as components on a real broker: from a recorded tick to an intent, and back."""

from __future__ import annotations

import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tallystick.components.market_data.main import MarketData, synthetic_symbol
from tallystick.components.strategy.main import StrategyProcess
from tallystick.runtime.bus.received import Received
from tallystick.runtime.deployment.config import Config, Endpoint, MarketDataConfig, StrategyConfig, VenueConfig
from tallystick.runtime.deployment.folder import Deployment
from tallystick.runtime.deployment.service import ServiceContext
from tallystick.schemas.errors import ConfigError, Malformed
from tallystick.schemas.market import FeedStatus, Quote, Trade
from tallystick.schemas.orders import CancelIntent, Intent, Position
from tallystick.schemas.security import Notice
from tests.support.paper import venue
from tests.support.runtime import Desk
from tests.support.tls import make_server_tls
from tests.support.waiting import until

D = Decimal
STRATEGY = """
from tallystick.components import Strategy

class Echo(Strategy):
    params = {"fail_at": 0}

    def on_quote(self, ctx, symbol, quote):
        ctx.buy(symbol, quote.ask_qty, quote.ask, "IOC")

    def on_trade(self, ctx, symbol, trade):
        if trade.trade_id == ctx.params["fail_at"]:
            raise RuntimeError("on purpose")
        ctx.buy(symbol, 1 + ctx.position(symbol), trade.price)
"""


def deployment(desk: Desk, folder: Path, market: MarketDataConfig, host: str = "127.0.0.1:1") -> Deployment:
    instruments = desk.trust.instruments
    config = Config(
        deployment=desk.trust.deployment,
        broker=Endpoint(port=0),
        authority=Endpoint(port=0),
        venue=VenueConfig(name="paper", kind="paper", host=host, account="main"),
        instruments=instruments,
        limits={},
        caps=(),
        market_data=market,
    )
    return Deployment(folder, config)


def dump(folder: Path, rows: int, bad: int = -1) -> str:
    lines = [f"{i},0.0013,5,1,{1_600_000_000_000 + 10 * i},True,True" for i in range(1, rows + 1)]
    if bad >= 0:
        lines[bad] = "NaN"
    (folder / "XRPETH-trades-2020-09-13.csv").write_text("\n".join(lines))
    return "XRPETH-trades-2020-09-13.csv"


class Ears:
    def __init__(self) -> None:
        self.heard: list[tuple[str, Any]] = []

    def __call__(self, received: Received) -> None:
        self.heard += [(received.subject.text, event) for event in received.events]

    def of(self, kind: type) -> list[Any]:
        return [event for _, event in self.heard if isinstance(event, kind)]


async def listener(desk: Desk) -> Ears:
    ears, auditor = Ears(), await desk.context("audit")
    auditor.subscribe(("md.>", "ref.>"), ears)
    auditor.subscribe("order.intent.>", ears)
    auditor.subscribe("guard.>", ears)
    auditor.open()
    await auditor.caught_up()
    return ears


async def begin(desk: Desk, component: Any, name: str, **kw: Any) -> ServiceContext:
    context = await desk.context(name, **kw)
    await component.start(context)
    await context.resume()
    context.open()
    await context.caught_up()
    await component.ready()
    return context


async def test_a_recording_is_published_whole_in_order_with_its_recorded_times(desk: Desk, tmp_path: Path) -> None:
    ears = await listener(desk)
    market = MarketDataConfig(source="dump", paths=(dump(tmp_path, 500),), speed=D(10), symbols=("XRP/ETH",))
    start = time.monotonic()
    await begin(desk, MarketData(), "market-data", deployment=deployment(desk, tmp_path, market))
    await until(lambda: [e for e in ears.of(FeedStatus) if e.state == "ended"], "the end")
    await until(lambda: len(ears.of(Trade)) == 500, "all trades")
    assert 0.4 < time.monotonic() - start < 5
    trades = ears.of(Trade)
    assert [t.trade_id for t in trades] == list(range(1, 501))
    assert ears.of(Quote) == []
    assert (trades[0].time, str(trades[0].price)) == (1_600_000_000_010 * 10**6, "0.0013")
    assert abs(trades[0].ts - time.time_ns()) < 60 * 10**9
    assert {w for w, e in ears.heard if isinstance(e, Trade)} == {"md.trade.paper.XRP-ETH"}


async def test_a_bad_dump_stops_the_process_with_nothing_published(desk: Desk, tmp_path: Path) -> None:
    ears = await listener(desk)
    market = MarketDataConfig(source="dump", paths=(dump(tmp_path, 500, bad=400),))
    context = await begin(desk, MarketData(), "market-data", deployment=deployment(desk, tmp_path, market))
    with pytest.raises(Malformed, match=r"csv:401: 1 columns"):
        await context.failed()
    # Whatever was published before would stand before this one.
    marker = await desk.context("market-data")
    await marker.publish("md.trade.paper.XRP-ETH", tick(marker, 1))
    await until(lambda: ears.of(Trade), "the marker")
    assert len(ears.of(Trade)) == 1
    assert ears.of(FeedStatus) == []


async def test_a_dump_of_no_instrument_is_a_configuration_error(desk: Desk, tmp_path: Path) -> None:
    path = tmp_path / "DOGEUSDT-trades-2020-09-13.csv"
    path.write_text("1,1,1,1,1600000000000,True,True\n")
    market = MarketDataConfig(source="dump", paths=(path.name,))
    context = await begin(desk, MarketData(), "market-data", deployment=deployment(desk, tmp_path, market))
    with pytest.raises(ConfigError, match="a dump of DOGE/USDT, which is no instrument"):
        await context.failed()


async def test_a_synthetic_market_plays_the_deployments_instruments(desk: Desk, tmp_path: Path) -> None:
    ears = await listener(desk)
    market = MarketDataConfig(source="synthetic", count=300, speed=D(10))
    instruments = tuple(msgspec.structs.replace(i, market_price=D("0.01")) for i in desk.trust.instruments)
    desk.trust = msgspec.structs.replace(desk.trust, instruments=instruments)
    await begin(desk, MarketData(), "market-data", deployment=deployment(desk, tmp_path, market))
    await until(lambda: (len(ears.of(Trade)), len(ears.of(Quote))) == (300, 75), "all trades and quotes")
    for instrument in instruments:
        token = instrument.symbol.replace("/", "-")
        prices = [e.price for w, e in ears.heard if isinstance(e, Trade) and w.endswith(token)]
        assert prices
        assert all(p % instrument.tick == 0 for p in prices)


async def test_the_venues_own_feed_is_followed_live(desk: Desk, tmp_path: Path) -> None:
    tls = make_server_tls(tmp_path)
    (tmp_path / "pki").mkdir()
    (tmp_path / "pki" / "ca.pem").write_bytes(tls.ca.read_bytes())

    ears = await listener(desk)
    async with venue(tls, tmp_path) as exchange:
        market = MarketDataConfig(source="live", symbols=("XRP/ETH",))
        made = deployment(desk, tmp_path, market, f"127.0.0.1:{exchange.port}")
        await begin(desk, MarketData(), "market-data", deployment=made)
        # Two sockets, subscribed one after the other: a quote is told to who follows when it changes.
        await until(lambda: len({n for s in exchange.sockets.open for n in s.streams}) == 2, "the subscriptions", 20)
        exchange.on_market_trade("XRPETH", D("0.0013001"), D(17), True, time.time_ns())
        await until(lambda: ears.of(Trade), "the trade")
        [trade] = ears.of(Trade)
        assert (str(trade.price), trade.qty, trade.buyer_is_maker) == ("0.00130010", D(17), True)
        assert [s.state for s in ears.of(FeedStatus)] == ["live"]
        await until(lambda: ears.of(Quote), "the quote")
        assert ears.of(Quote)[0].bid == D("0.0013001")


async def test_an_instrument_without_any_price_cannot_be_made_up(desk: Desk) -> None:
    instrument = msgspec.structs.replace(desk.trust.instruments[0], symbol="NEW/ETH", tick=D(1))
    with pytest.raises(ConfigError, match="no price to start from"):
        synthetic_symbol(instrument)


def strategy(folder: Path, **params: str) -> StrategyProcess:
    (folder / "echo.py").write_text(STRATEGY)
    config = StrategyConfig(name="alpha", module="echo.py", instruments=("XRP/ETH",), params=params)
    return StrategyProcess(config, "paper", folder)


def tick(context: ServiceContext, number: int) -> Trade:
    return context.new(Trade, trade_id=number, price=D("0.0013"), qty=D(1), time=0, buyer_is_maker=True)


async def test_a_tick_becomes_an_intent_caused_by_it_and_positions_count(desk: Desk, tmp_path: Path) -> None:
    ears = await listener(desk)
    feed, portfolio = await desk.context("market-data"), await desk.context("portfolio")
    context = await begin(desk, strategy(tmp_path), "strategy-alpha")
    first = tick(feed, 1)
    await feed.publish("md.trade.paper.XRP-ETH", first)
    await until(lambda: ears.of(Intent), "the intent")
    where, intent = next((w, e) for w, e in ears.heard if isinstance(e, Intent))
    assert where == "order.intent.alpha.paper.XRP-ETH"
    assert (intent.qty, intent.causes) == (D(1), (first.id,))
    position = await portfolio.publish(
        "position.alpha.paper.XRP-ETH",
        portfolio.new(Position, qty=D(41), average_price=D(1), realized=D(0), fills=1),
    )
    await until(lambda: context.position("ORDERS") >= position, "the position")
    await feed.publish("md.trade.paper.XRP-ETH", tick(feed, 2))
    await until(lambda: len(ears.of(Intent)) == 2, "the second intent")
    assert ears.of(Intent)[1].qty == D(42)


async def test_a_quote_reaches_the_strategy(desk: Desk, tmp_path: Path) -> None:
    ears = await listener(desk)
    feed = await desk.context("market-data")
    await begin(desk, strategy(tmp_path), "strategy-alpha")
    quote = feed.new(Quote, bid=D("0.0013"), bid_qty=D(1), ask=D("0.0014"), ask_qty=D(8), time=0)
    await feed.publish("md.quote.paper.XRP-ETH", quote)
    await until(lambda: ears.of(Intent), "the intent")
    [intent] = ears.of(Intent)
    assert (intent.qty, intent.price, intent.causes) == (D(8), D("0.0014"), (quote.id,))


async def test_a_restarted_strategy_knows_its_position(desk: Desk, tmp_path: Path) -> None:
    ears = await listener(desk)
    feed, portfolio = await desk.context("market-data"), await desk.context("portfolio")
    await portfolio.publish(
        "position.alpha.paper.XRP-ETH",
        portfolio.new(Position, qty=D(6), average_price=D(1), realized=D(0), fills=1),
    )
    await begin(desk, strategy(tmp_path), "strategy-alpha")
    await feed.publish("md.trade.paper.XRP-ETH", tick(feed, 1))
    await until(lambda: ears.of(Intent), "the intent")
    assert ears.of(Intent)[0].qty == D(7)


async def test_a_strategy_that_raises_is_halted_reported_and_its_orders_cancelled(desk: Desk, tmp_path: Path) -> None:
    ears = await listener(desk)
    feed = await desk.context("market-data")
    context = await begin(desk, strategy(tmp_path, fail_at="2"), "strategy-alpha")
    for number in (1, 2, 3):
        await feed.publish("md.trade.paper.XRP-ETH", tick(feed, number))
    await until(lambda: [n for n in ears.of(Notice) if n.code == "STRATEGY_HALTED"], "the notice")
    await until(lambda: ears.of(CancelIntent), "the cancel")
    last = await feed.publish("md.trade.paper.XRP-ETH", tick(feed, 4))
    await until(lambda: context.position("MARKET") >= last, "the last tick passed over")
    [intent] = ears.of(Intent)
    assert ears.of(CancelIntent)[0].intent_id == intent.id
    assert "RuntimeError" in ears.of(Notice)[0].text


async def test_a_strategy_that_cannot_be_loaded_stops_the_start(desk: Desk, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no parameter 'speed'"):
        await begin(desk, strategy(tmp_path, speed="2"), "strategy-alpha")
