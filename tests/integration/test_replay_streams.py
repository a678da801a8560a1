"""A replay from the streams of a running broker, as the console reads them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from tallystick.replay.bus import BusReader
from tallystick.replay.selection import Selection
from tallystick.replay.verify import Examined, Failure, Judge, Played, Tally
from tallystick.runtime.deployment.service import ServiceContext
from tallystick.schemas.errors import ConfigError
from tallystick.schemas.market import Trade
from tallystick.schemas.seal import Verifier
from tallystick.schemas.security import BootEnded, CredentialIssued
from tests.support.bus import TestBus, running_bus
from tests.support.runtime import Desk
from tests.support.world import seed

TRADES = "md.trade.paper.XRP-ETH"


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[TestBus]:
    with running_bus(tmp_path) as running:
        yield running


async def issue(authority: ServiceContext, *contexts: ServiceContext) -> None:
    """Publish that these sessions were issued, as the authority does before it hands them out."""
    for context in contexts:
        c = context.link.session.credential
        event = authority.new(
            CredentialIssued,
            boot=c.boot,
            session_key=c.session_key,
            credential_hash=c.digest,
            issued_at=c.issued_at,
            expires_at=c.expires_at,
            method="certificate",
            certificate=seed("certificate"),
        )
        await authority.publish(f"cred.{context.component}", event)


async def trade(market: ServiceContext, number: int) -> None:
    event = market.new(
        Trade, trade_id=number, price=Decimal("0.00141342"), qty=Decimal(23), time=number, buyer_is_maker=True
    )
    await market.publish(TRADES, event)


async def read(desk: Desk, bus: TestBus, tally: Tally | None = None, **selection: object) -> list[Examined]:
    console = await desk.context("console")
    judge = Judge([Verifier(desk.trust)], judged=False)
    judge.tally = tally or judge.tally
    reader = BusReader(
        bus.component("console"),
        console.link,
        judge,
        Selection(**selection),  # type: ignore[arg-type]
        console.log,
    )
    found = [item async for item in reader]
    await console.close()
    desk.contexts.remove(console)
    return found


def numbers(items: list[Examined]) -> list[int]:
    return [
        event.trade_id
        for item in items
        if isinstance(item, Played)
        for event in item.verified.events
        if isinstance(event, Trade)
    ]


async def test_what_is_stored_is_read_to_its_end_and_filtered(desk: Desk, bus: TestBus) -> None:
    authority, market = await desk.context("authority"), await desk.context("market-data")
    await issue(authority, authority, market)
    for number in range(1, 6):
        await trade(market, number)
    everything = await read(desk, bus)
    assert numbers(everything) == [1, 2, 3, 4, 5]
    assert not [item for item in everything if isinstance(item, Failure)]
    assert [item.stream for item in everything] == ["SECURITY"] * 2 + ["MARKET"] * 5
    assert numbers(await read(desk, bus, streams=("MARKET",), first=2, last=3)) == [2, 3]
    third = everything[4].time
    assert numbers(await read(desk, bus, since=third)) == [3, 4, 5]
    assert numbers(await read(desk, bus, until=third)) == [1, 2]
    assert numbers(await read(desk, bus, patterns=("md.quote.>",))) == []


async def test_what_an_attacker_stored_is_passed_over_and_counted_with_its_place_and_hides_nothing_else(
    desk: Desk, bus: TestBus
) -> None:
    authority, market = await desk.context("authority"), await desk.context("market-data")
    await issue(authority, authority, market)
    await trade(market, 1)
    first = (await read(desk, bus, streams=("MARKET",)))[0]
    assert isinstance(first, Played)
    async with bus.connected("root") as [root]:
        await root.request(TRADES, b"junk")
        await root.request(TRADES, first.verified.payload)
    await trade(market, 2)
    tally = Tally()
    items = await read(desk, bus, tally, streams=("MARKET",))
    assert not [item for item in items if isinstance(item, Failure)]
    assert tally.aside == {"PAYLOAD": 1, "REPLAY": 1}
    assert tally.first_aside == {"PAYLOAD": "MARKET 2", "REPLAY": "MARKET 3"}
    assert sorted(numbers(items)) == [1, 2]


async def test_a_session_that_was_never_issued_or_had_ended_is_not_played(desk: Desk, bus: TestBus) -> None:
    authority, market = await desk.context("authority"), await desk.context("market-data")
    await issue(authority, authority)
    await trade(market, 1)  # a stolen role key: the broker lets it in
    tally = Tally()
    assert await read(desk, bus, tally, streams=("MARKET",)) == []
    assert tally.aside == {"UNLISTED": 1}
    await issue(authority, market)
    await trade(market, 2)
    await authority.publish("cred.market-data", authority.new(BootEnded, boot=market.boot, reason="gone"))
    await trade(market, 3)
    tally = Tally()
    items = await read(desk, bus, tally, streams=("MARKET",))
    assert tally.aside == {"UNLISTED": 1, "LATE": 1}
    assert numbers(items) == [2]


async def test_what_is_published_meanwhile_does_not_keep_the_replay_from_ending(desk: Desk, bus: TestBus) -> None:
    authority, market = await desk.context("authority"), await desk.context("market-data")
    await issue(authority, authority, market)

    async def publish() -> None:
        for number in range(10_000):
            await trade(market, number)
            await asyncio.sleep(0.001)

    publishing = asyncio.create_task(publish())
    await asyncio.sleep(0.2)
    started = time.monotonic()
    found = numbers(await read(desk, bus))
    assert time.monotonic() - started < 5
    assert found[:10] == list(range(10))
    publishing.cancel()


async def test_a_stream_that_the_console_cannot_read_is_refused_before_anything_is_read(
    desk: Desk, bus: TestBus
) -> None:
    custody = await desk.context("custody")
    spec = bus.component("custody")
    with pytest.raises(ConfigError, match="custody reads nothing of ORDERS"):
        BusReader(spec, custody.link, Judge([Verifier(desk.trust)]), Selection(streams=("ORDERS",)), custody.log)
