"""Sealed, durable publishing and verified delivery, beside bare nats-py on the same server and `eventsourcing`."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from benchmarks import peers
from benchmarks.report import Row, say
from tallystick.runtime.bus.received import Received
from tallystick.runtime.deployment.service import ServiceContext
from tallystick.schemas.event import Event
from tallystick.schemas.market import Trade
from tallystick.schemas.orders import Intent
from tallystick.schemas.registry import encode_events
from tallystick.schemas.subjects import MARKET, Subject, subject
from tests.support.bus import TestBus, running_bus
from tests.support.runtime import Desk

EVENTS = 200_000
FSYNCED = 50_000
BATCH = 500
# As many intents as a message may hold.
PER_MESSAGE = 64
SINGLES = 20_000
PEER = 10_240
ROUNDS = 3
XRP = subject("md.trade", venue="paper", symbol="XRP/ETH")
BTC = subject("md.trade", venue="paper", symbol="BTC/USDT")
INTENTS = tuple(subject("order.intent", strategy="alpha", venue="paper", symbol=s) for s in ("XRP/ETH", "BTC/USDT"))
PUBLISHED = "nats-py `js.publish` gathered by 256, unsigned, one event a message"
T = TypeVar("T")
FETCHED = "nats-py `fetch(500)`, unsigned, one event a message"

WHAT = {
    "published": "sealed, durable market events published, 500 a publish",
    "against library": "the same beside a library",
    "fsynced": "sealed events, fsynced before they are acknowledged, 64 a publish",
    "single published": "sealed events published, one a message, 512 messages a flush",
    "delivered": "verified events delivered, batched",
    "single delivered": "verified events delivered, one a message",
}


def trades(context: ServiceContext, count: int) -> tuple[Trade, ...]:
    return tuple(
        context.new(Trade, trade_id=n, price=Decimal("0.00141342"), qty=Decimal("23.00"), time=n, buyer_is_maker=True)
        for n in range(count)
    )


def intents(context: ServiceContext, count: int) -> tuple[Intent, ...]:
    return tuple(
        context.new(Intent, side="buy", type="limit", qty=Decimal(10), price=Decimal("0.00141342"))
        for _ in range(count)
    )


async def publish(
    context: ServiceContext,
    count: int,
    to: tuple[Subject, ...],
    make: Callable[[ServiceContext, int], tuple[Event, ...]],
    batch: int = BATCH,
) -> float:
    """Events a second, made, encoded, sealed and acknowledged; the subjects in turn."""
    began = time.perf_counter()
    last = None
    for number in range(count // batch):
        await context.room(to[0].stream)
        last = context.publish(to[number % len(to)], *make(context, batch))
        await asyncio.sleep(0)
    if last is not None:
        await last
    return count / (time.perf_counter() - began)


async def publish_singles(context: ServiceContext, count: int) -> float:
    """One event a message: as many subjects as a flush takes messages."""
    subjects = [subject("md.trade", venue="paper", symbol=f"S{n}/ETH") for n in range(512)]
    began = time.perf_counter()
    last = None
    for number in range(count):
        last = context.publish(subjects[number % 512], *trades(context, 1))
        if number % 512 == 511:
            await last
    if last is not None:
        await last
    return count / (time.perf_counter() - began)


async def peer_publish(bus: TestBus, size: int) -> float:
    client = await bus.connect_as("market-data")
    stream = client.jetstream()
    body = os.urandom(size)
    began = time.perf_counter()
    for _ in range(PEER // 256):
        await asyncio.gather(*(stream.publish(XRP.text, body) for _ in range(256)))
    rate = PEER / (time.perf_counter() - began)
    await client.close()
    return rate


async def deliver(desk: Desk, after: int, wanted: int) -> float:
    """Verified events a second from stream sequence `after` on."""
    context = await desk.context("paper-exchange")
    got = 0
    done = asyncio.Event()

    def count(received: Received) -> None:
        nonlocal got
        got += len(received.events)
        if got >= wanted:
            done.set()

    context.subscribe("md.trade.>", count, after=after)
    began = time.perf_counter()
    context.open()
    await done.wait()
    rate = got / (time.perf_counter() - began)
    await context.close()
    desk.contexts.remove(context)
    return rate


async def peer_fetch(bus: TestBus, wanted: int) -> float:
    client = await bus.connect_as("gateway")
    await client.request("$JS.API.CONSUMER.RESET.MARKET.gateway", b'{"seq":1}', timeout=3)
    puller = await client.jetstream().pull_subscribe_bind("gateway", stream=MARKET)
    got = 0
    began = time.perf_counter()
    while got < wanted:
        got += len(await puller.fetch(500, timeout=5))
    rate = got / (time.perf_counter() - began)
    await client.close()
    return rate


async def batched(bus: TestBus, folder: Path) -> dict[str, float]:
    """Large messages, and what does not depend on the message size; the best of each."""
    desk = Desk(bus)
    source, strategy = await desk.context("market-data"), await desk.context("strategy-alpha")
    size = len(encode_events("md.trade", trades(source, 1)))
    app = peers.ledger(folder)
    best: dict[str, float] = {}

    async def take(name: str, work: Awaitable[float]) -> None:
        best[name] = max(best.get(name, 0.0), await work)

    for number in range(ROUNDS):
        await take("published", publish(source, EVENTS, (XRP, BTC), trades))
        await take("fsynced", publish(strategy, FSYNCED, INTENTS, intents, PER_MESSAGE))
        await take("peer", peer_publish(bus, size))
        await take("library", asyncio.to_thread(peers.save, app, PEER))
        say(f"publishing: round {number + 1} of {ROUNDS}")
    app.close()
    await desk.close()
    return best


async def delivered(bus: TestBus) -> float:
    """Large messages only, on a broker that holds nothing else."""
    desk = Desk(bus)
    await publish(await desk.context("market-data"), EVENTS, (XRP, BTC), trades)
    rate = max([await deliver(desk, 0, EVENTS) for _ in range(ROUNDS)])
    await desk.close()
    return rate


async def singles(bus: TestBus) -> tuple[float, float, float]:
    """One event a message: published, delivered, and fetched by the peer from the same stream."""
    desk = Desk(bus)
    published = await publish_singles(await desk.context("market-data"), SINGLES)
    got = fetched = 0.0
    for number in range(ROUNDS):
        got = max(got, await deliver(desk, 0, SINGLES))
        fetched = max(fetched, await peer_fetch(bus, SINGLES))
        say(f"delivery: round {number + 1} of {ROUNDS}")
    await desk.close()
    return published, got, fetched


def run(folder: Path, work: Callable[[TestBus], Coroutine[Any, Any, T]]) -> T:
    """`work` with a fresh broker, on the event loop that components have."""
    with running_bus(folder) as bus, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work(bus))


def rows() -> list[Row]:
    """Publishing and delivery."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        best = run(folder / "published", lambda bus: batched(bus, folder))
        got = run(folder / "delivered", delivered)
        single_published, single, fetched = run(folder / "singles", singles)
    peer, library = best["peer"], best["library"]
    return [
        Row(WHAT["published"], best["published"], "events/s", "≥ 200,000", peer, PUBLISHED),
        Row(WHAT["against library"], best["published"], "events/s", "≥ 200,000", library, peers.SAVED),
        Row(WHAT["fsynced"], best["fsynced"], "events/s", "", library, peers.SAVED),
        Row(WHAT["single published"], single_published, "events/s", "", peer, PUBLISHED),
        Row(WHAT["delivered"], got, "events/s", "≥ 200,000", fetched, FETCHED),
        Row(WHAT["single delivered"], single, "events/s", "≥ 12,000", fetched, FETCHED),
    ]
