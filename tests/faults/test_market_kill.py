"""kill -9 of the broker under market data: what it acknowledged and lost is stored again, where it lay.

The stream of market data is acknowledged some milliseconds before it is written, so that a kill under load loses its
last messages nearly each time; the tests say so when no round lost any.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from tallystick.infra.nats.provision import stream_config
from tallystick.runtime.bus import publisher
from tallystick.runtime.bus.received import Received
from tallystick.runtime.deployment.service import ServiceContext
from tallystick.schemas import bounds
from tallystick.schemas.market import Trade
from tallystick.schemas.security import Notice
from tallystick.schemas.subjects import subject
from tests.support.bus import TestBus, running_bus
from tests.support.runtime import Desk
from tests.support.waiting import until

TRADES = subject("md.trade", venue="paper", symbol="XRP/ETH")
ROUNDS = 6


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[TestBus]:
    """A broker of each test's own: it dies, and its stream begins at one."""
    with running_bus(tmp_path) as running:
        yield running


class Market:
    """A source that publishes numbered trades, and who reads them."""

    def __init__(self, source: ServiceContext) -> None:
        self.source = source
        self.published = 0
        self.stored: list[int] = []

    async def play(self, count: int, half: asyncio.Event | None = None) -> None:
        """Publish so many, one a message, and note where each was stored; `half` is set when half of them are."""
        for number in range(count):
            if half is not None and number == count // 2:
                half.set()
            self.published += 1
            trade = self.source.new(
                Trade,
                trade_id=self.published,
                price=Decimal("0.00141342"),
                qty=Decimal(23),
                time=self.published,
                buyer_is_maker=True,
            )
            self.stored.append(await self.source.publish(TRADES, trade))


async def start_again(bus: TestBus) -> None:
    bus.server.start()
    await bus.provision()


async def all_messages(bus: TestBus) -> list[bytes]:
    """What the stream of market data holds, in its order."""
    async with bus.connected("root") as (root,):
        _, last = (await bus.stored(root))["MARKET"]
        found = []
        for seq in range(1, last + 1):
            answer = await root.request("$JS.API.STREAM.MSG.GET.MARKET", json.dumps({"seq": seq}).encode())
            found.append(json.loads(answer.data)["message"]["data"])
    return found


async def test_what_a_killed_broker_lost_is_stored_again_where_it_lay(desk: Desk) -> None:
    source, reader = await desk.context("market-data"), await desk.context("gateway")
    console = await desk.context("console")
    market, read, notices = Market(source), list[int](), list[Notice]()

    def handle(received: Received) -> None:
        read.extend(event.trade_id for event in received.events if isinstance(event, Trade))

    def hear(received: Received) -> None:
        notices.extend(event for event in received.events if isinstance(event, Notice))

    reader.subscribe("md.trade.>", handle, start="all")
    console.subscribe("guard.market-data", hear, start="all")
    for context in (reader, console):
        context.open()
    for _ in range(ROUNDS):
        half = asyncio.Event()
        playing = asyncio.create_task(market.play(400, half))
        await half.wait()
        desk.bus.server.kill()
        await start_again(desk.bus)
        await playing
    assert market.stored == list(range(1, market.published + 1)), "a trade lies elsewhere"
    assert len(set(await all_messages(desk.bus))) == market.published
    await until(lambda: len(read) >= market.published, lambda: f"{len(read)} of {market.published} read")
    assert read == list(range(1, market.published + 1))
    restored = source.metrics.snapshot()["messages_restored"]
    assert restored > 0, "no round lost anything: the test shows nothing"
    await until(lambda: any(n.code == "BROKER_LOST" for n in notices), "nobody was told")


async def test_it_is_mended_also_while_nothing_is_published(desk: Desk) -> None:
    source = await desk.context("market-data")
    market = Market(source)
    for _ in range(ROUNDS):
        await market.play(300)
        desk.bus.server.kill()
        await start_again(desk.bus)

        async def whole() -> bool:
            async with desk.bus.connected("root") as (root,):
                return (await desk.bus.stored(root))["MARKET"] == (market.published, market.published)

        for _ in range(100):
            if await whole():
                break
            await asyncio.sleep(0.05)
        assert await whole(), "what was lost is not there, though nobody published"
    assert source.metrics.snapshot()["messages_restored"] > 0, "no round lost anything: the test shows nothing"


async def test_a_connection_lost_by_itself_doubles_nothing(desk: Desk) -> None:
    market = Market(await desk.context("market-data"))
    await market.play(50)
    for _ in range(3):
        connection = await market.source.link.connection()
        market.source.link.abandon(connection, "the test says so")
        await market.play(1)
    assert market.stored == list(range(1, 54))
    assert "messages_restored" not in market.source.metrics.snapshot()


async def test_what_the_stream_may_not_know_by_its_id_any_more_is_not_sent_again(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be stored twice, and every reader would call that a replay."""
    async with desk.bus.connected("root") as (root,):
        config = {**stream_config(desk.bus.bus, "MARKET"), "duplicate_window": 100_000_000}
        answer = json.loads((await root.request("$JS.API.STREAM.UPDATE.MARKET", json.dumps(config).encode())).data)
        assert "error" not in answer
    market = Market(await desk.context("market-data"))
    moved = {}
    for case, known_s in (("within", bounds.REPEATABLE_S), ("beyond", 0.05)):
        monkeypatch.setattr(publisher, "REPEATABLE_S", known_s)
        await market.play(20)
        await asyncio.sleep(0.4)
        market.source.link.abandon(await market.source.link.connection(), "the test says so")
        before = market.stored[-1]
        await market.play(1)
        moved[case] = market.stored[-1] - before
    assert moved == {"within": 21, "beyond": 1}
