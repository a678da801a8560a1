"""The streams worker: verified events through its Faust table, and from the intent too many to the alert."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

import uvloop

from benchmarks.report import Row, Void, percentiles, say
from tallystick.runtime.bus.received import Received
from tallystick.runtime.deployment.service import ServiceContext
from tallystick.schemas.orders import Intent
from tallystick.schemas.subjects import subject
from tallystick.streams.app import TOPIC
from tallystick.streams.main import Streams
from tallystick.streams.store import JetStream, StateStore
from tests.support.bus import TestBus, running_bus
from tests.support.runtime import Desk
from tests.support.streams import begin, intent, intents_of, rules

MESSAGES = 20_000
BATCHES = 3_200
BATCH = 64
STRATEGIES = tuple(f"s{n}" for n in range(24))
ROUNDS = 10
TURNS = 3
PEER = "the same subscription, empty handler"

WHAT = {
    "single": "verified events through a detector's windowed table, one a message",
    "batched": "verified events through a detector's windowed table, 64 a message",
    "p50": "intent too many, stored, to alert stored: p50",
    "p99": "intent too many, stored, to alert stored: p99",
}


async def plain(desk: Desk, after: int, wanted: int) -> float:
    """Verified events a second to a handler that does nothing: what the table is compared with."""
    context = await desk.context("gateway")
    got, done = 0, asyncio.Event()

    def count(received: Received) -> None:
        nonlocal got
        got += len(received.events)
        if got >= wanted:
            done.set()

    context.subscribe("order.>", count, after=after)
    began = time.perf_counter()
    context.open()
    await done.wait()
    reached = got / (time.perf_counter() - began)
    await leave(desk, context)
    return reached


async def through_table(desk: Desk, wanted: int) -> float:
    """Verified events a second from reading to committed state."""
    context = await desk.context("streams")
    worker = Streams(rules=rules(10, 20))
    await worker.start(context)
    began = time.perf_counter()
    context.open()
    await context.caught_up("ORDERS")
    await worker.ready()
    rate = wanted / (time.perf_counter() - began)
    counted = context.metrics.snapshot()["intents_counted"]
    if counted != wanted:
        raise Void(f"{counted} intents counted, {wanted} sent")
    await leave(desk, context)
    return rate


async def forget(desk: Desk) -> None:
    """Delete the worker's state: what follows begins anew."""
    context = await desk.context("streams")
    store = StateStore(JetStream(context.link, context.metrics, context.log), TOPIC, context.boot, context.entropy)
    await store.take_over()
    await store.reset()
    await leave(desk, context)


async def leave(desk: Desk, context: ServiceContext) -> None:
    """Close it, so that the next may read on the same durable."""
    await context.close()
    desk.contexts.remove(context)


async def rates(bus: TestBus, messages: int, size: int) -> tuple[float, float]:
    """Through the table and to an empty handler, in turns, the best of each: `messages` of `size` intents each."""
    desk = Desk(bus)
    source = await desk.context("strategy-alpha")
    where = [subject("order.intent", strategy="alpha", venue="paper", symbol=f"S{n}/ETH") for n in range(512)]
    last = None
    for number in range(messages):
        last = source.publish(where[number % 512], *(intent(source) for _ in range(size)))
        if number % 512 == 511:
            await last
    if last is not None:
        await last
    ours = peer = 0.0
    for _ in range(TURNS):
        ours = max(ours, await through_table(desk, messages * size))
        peer = max(peer, await plain(desk, 0, messages * size))
        await forget(desk)
    await desk.close()
    return ours, peer


async def latencies(bus: TestBus) -> list[float]:
    """Milliseconds from the stored intent that exceeds the limit to the stored alert, both by the broker's clock."""
    desk = Desk(bus)
    stored: dict[bytes, int] = {}
    alerts: dict[bytes, int] = {}
    reader = await desk.context("gateway")

    def on_intents(received: Received) -> None:
        for event in received.events:
            if isinstance(event, Intent):
                stored[event.id] = received.stored

    def on_alert(received: Received) -> None:
        for event in received.events:
            alerts[event.causes[0]] = received.stored

    reader.subscribe("order.intent.>", on_intents, start="all")
    reader.subscribe("alert.>", on_alert, start="all")
    reader.open()
    await reader.caught_up()
    sources = [(await desk.context(f"strategy-{name}"), intents_of(name)) for name in STRATEGIES]
    context = await desk.context("streams")
    await begin(context, Streams(rules=rules(1, 4, STRATEGIES)))
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for number, (source, where) in enumerate(sources):
            for _ in range(6):
                source.publish(where, intent(source))
            await asyncio.sleep(max(0.0, began + (number + 1) * 1.2 / len(sources) - time.perf_counter()))
    await asyncio.sleep(0.5)
    await context.release()
    await desk.close()
    return [(at - stored[cause]) / 1e6 for cause, at in alerts.items()]


def rows() -> list[Row]:
    """The rows of the streams worker."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with running_bus(folder / "single") as bus, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            say("streams: a table's events")
            single, single_peer = runner.run(rates(bus, MESSAGES, 1))
        with running_bus(folder / "batched") as bus, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            batched, batched_peer = runner.run(rates(bus, BATCHES, BATCH))
        with (
            running_bus(folder / "alerts", STRATEGIES) as bus,
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            say("streams: bursts")
            half, most = percentiles(runner.run(latencies(bus)))
    return [
        Row(WHAT["single"], single, "events/s", "≥ 10,000", single_peer, PEER),
        Row(WHAT["batched"], batched, "events/s", "≥ 10,000", batched_peer, PEER),
        Row(WHAT["p50"], half, "ms"),
        Row(WHAT["p99"], most, "ms", "≤ 20 ms"),
    ]
