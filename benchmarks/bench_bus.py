"""Sealed, durable publishing and verified delivery, beside bare nats-py on the same server."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import tempfile
import time
from decimal import Decimal
from pathlib import Path

import msgspec

from benchmarks.report import Row
from tallystick.components.runtime.context import Context, Received
from tallystick.schemas.market import Trade
from tallystick.schemas.subjects import MARKET, subject
from tests.support.bus import TestBus, running_bus
from tests.support.runtime import Desk

EVENTS = 400_000
BATCH = 500
SINGLES = 20_000
PEER = 20_000
XRP = subject("md.trade", venue="paper", symbol="XRP/ETH")
BTC = subject("md.trade", venue="paper", symbol="BTC/USDT")


def trades(context: Context, count: int) -> tuple[Trade, ...]:
    return tuple(
        context.new(Trade, trade_id=n, price=Decimal("0.00141342"), qty=Decimal("23.00"), time=n, buyer_is_maker=True)
        for n in range(count)
    )


async def publish_batched(context: Context) -> float:
    """Events a second, made, encoded, sealed and acknowledged; two symbols in turn."""
    began = time.perf_counter()
    last = None
    for number in range(EVENTS // BATCH):
        await context.room(MARKET)
        last = context.publish(XRP if number % 2 else BTC, *trades(context, BATCH))
        await asyncio.sleep(0)
    if last is not None:
        await last
    return EVENTS / (time.perf_counter() - began)


async def publish_singles(context: Context) -> float:
    """One event a publish, as a feed does it; flushes gather what comes while one is under way."""
    began = time.perf_counter()
    last = None
    for number in range(SINGLES):
        last = context.publish(XRP, *trades(context, 1))
        if number % 64 == 0:
            await asyncio.sleep(0)
    if last is not None:
        await last
    return SINGLES / (time.perf_counter() - began)


async def peer_publish(bus: TestBus, size: int) -> float:
    """nats-py: unsigned, one event a message, gathered by 256."""
    client = await bus.connect_as("market-data")
    stream = client.jetstream()
    body = os.urandom(size)
    began = time.perf_counter()
    for _ in range(PEER // 256):
        await asyncio.gather(*(stream.publish(XRP.text, body) for _ in range(256)))
    rate = PEER // 256 * 256 / (time.perf_counter() - began)
    await client.close()
    return rate


async def deliver(desk: Desk, component: str, after: int, wanted: int) -> float:
    """Verified events a second from stream sequence `after` on."""
    context = await desk.context(component)
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
    return got / (time.perf_counter() - began)


async def peer_fetch(bus: TestBus, wanted: int) -> float:
    """nats-py: `fetch(500)` of unsigned messages, nothing verified."""
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


def sqlite_log(folder: Path) -> float:
    """An event log on SQLite, 100 events a transaction, synchronous: what many reach for first."""
    with sqlite3.connect(folder / "events.db", isolation_level=None) as database:
        database.execute("pragma journal_mode=wal")
        database.execute("create table log (seq integer primary key, subject text, body blob)")
        body = os.urandom(55)
        began = time.perf_counter()
        for _ in range(PEER // 100):
            database.execute("begin")
            database.executemany("insert into log (subject, body) values (?, ?)", [(XRP.text, body)] * 100)
            database.execute("commit")
        return PEER / (time.perf_counter() - began)


async def _singles(bus: TestBus) -> tuple[float, float, float]:
    """Publish and deliver one event a message on a broker of their own; the peer's fetch of the same."""
    desk = Desk(bus)
    source = await desk.context("market-data")
    # One publish a message: a flush of many messages, each with one event.
    began = time.perf_counter()
    last = None
    subjects = [subject("md.trade", venue="paper", symbol=f"S{n}/ETH") for n in range(512)]
    for number in range(SINGLES):
        last = source.publish(subjects[number % 512], *trades(source, 1))
        if number % 512 == 511:
            await last
    if last is not None:
        await last
    published = SINGLES / (time.perf_counter() - began)
    delivered = await deliver(desk, "paper-exchange", 0, SINGLES)
    await desk.close()
    return published, delivered, await peer_fetch(bus, SINGLES // 2)


def rows() -> list[Row]:
    """The first two rows of the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with running_bus(folder / "batched") as bus:

            async def batched() -> tuple[float, float, float]:
                desk = Desk(bus)
                source = await desk.context("market-data")
                published = await publish_batched(source)
                delivered = await deliver(desk, "paper-exchange", 0, EVENTS)
                await desk.close()
                return published, delivered, await peer_publish(bus, len(msgspec.msgpack.encode(trades(source, 1))))

            published, delivered, peer = asyncio.run(batched())
        with running_bus(folder / "single") as bus:
            single_published, single, fetched = asyncio.run(_singles(bus))
        logged = sqlite_log(folder)
    return [
        Row("sealed, durable events published, 500 a publish", published, "events/s", "≥ 200,000", peer, "nats-py `js.publish` gathered by 256, unsigned"),
        Row("the same", published, "events/s", "", logged, "SQLite log, 100 a transaction"),
        Row("one event a message, 512 messages a flush, published", single_published, "events/s", "–", peer, "nats-py `js.publish` gathered by 256, unsigned"),
        Row("verified events delivered, batched", delivered, "events/s", "≥ 200,000", fetched, "nats-py `fetch(500)`, unsigned"),
        Row("verified messages delivered, one event each", single, "messages/s", "≥ 12,000", fetched, "nats-py `fetch(500)`, unsigned"),
    ]  # fmt: skip
