"""The runtime on a real broker: nothing lost through renewal, restart and back-pressure; bad messages dead-lettered."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Mapping
from decimal import Decimal

import pytest

from tallystick.runtime.bus.link import Flight, Outgoing
from tallystick.runtime.bus.publisher import MAX_QUEUED, Backpressure
from tallystick.runtime.bus.received import Received
from tallystick.runtime.deployment.service import ServiceContext
from tallystick.schemas.errors import ConfigError, Malformed, Unverified
from tallystick.schemas.market import Trade
from tallystick.schemas.security import DeadLetter, Heartbeat
from tallystick.schemas.subjects import subject
from tests.support.bus import TestBus
from tests.support.runtime import Desk
from tests.support.waiting import until

TRADES = subject("md.trade", venue="paper", symbol="XRP/ETH")


def trade(context: ServiceContext, number: int) -> Trade:
    return context.new(
        Trade, trade_id=number, price=Decimal("0.00141342"), qty=Decimal(23), time=number, buyer_is_maker=True
    )


def collect(into: list[int], first: int) -> Callable[[Received], None]:
    def handler(received: Received) -> None:
        into.extend(e.trade_id for e in received.events if isinstance(e, Trade) and e.trade_id >= first)

    return handler


async def test_a_published_event_is_durable_and_verified_at_its_reader(desk: Desk) -> None:
    source, reader = await desk.context("market-data"), await desk.context("gateway")
    got: list[Received] = []
    reader.subscribe("md.trade.>", got.append)
    reader.open()
    await reader.caught_up("MARKET")
    sequence = await source.publish(TRADES, trade(source, 1))
    await until(lambda: bool(got), "the event")
    assert got[0].stream_seq == sequence
    assert got[0].live
    assert got[0].credential.component == "market-data"
    assert got[0].subject.symbol == "XRP/ETH"


async def test_nothing_is_lost_or_doubled_through_renewals_at_a_lifetime_of_5_seconds(desk: Desk) -> None:
    source = await desk.context("market-data", lifetime_s=5)
    reader = await desk.context("gateway", lifetime_s=5)
    got: list[int] = []
    reader.subscribe("md.trade.>", collect(got, 10_000))
    reader.open()
    await reader.caught_up("MARKET")
    sessions = set()
    number = 10_000
    end = asyncio.get_running_loop().time() + 8
    while asyncio.get_running_loop().time() < end:
        source.publish(TRADES, trade(source, number))
        sessions.add(source.link.session.credential.digest)
        number += 1
        await asyncio.sleep(0.002)
    await until(lambda: len(got) >= number - 10_000, "all events", 20)
    assert got == list(range(10_000, number))
    assert len(sessions) >= 3
    assert reader.metrics.snapshot().get("dead_letters", 0) == 0
    assert source.metrics.snapshot()["renewals"] >= 2
    assert reader.metrics.snapshot()["renewals"] >= 2


async def test_who_lingers_misses_nothing_and_wakes_up_seldom(desk: Desk) -> None:
    source = await desk.context("market-data")
    reader = await desk.context("gateway", linger_s=0.2)
    got: list[int] = []
    pulls, first = 0, 1_000_000

    for number in range(first, first + 600):  # more than one pull holds
        source.publish(TRADES, trade(source, number))
    await source.publish(TRADES, trade(source, first + 600))
    reader.subscribe("md.trade.>", collect(got, first), "all")
    reader.open()
    await reader.caught_up("MARKET")
    period = reader._readers["MARKET"]
    wire = (await reader.link.connection()).wire
    send = wire.send

    def counted(subject: str, payload: bytes, reply: str = "", headers: Mapping[str, str] | None = None) -> None:
        nonlocal pulls
        pulls += subject == period.next_service
        send(subject, payload, reply, headers)

    wire.send = counted  # type: ignore[method-assign]
    began = asyncio.get_running_loop().time()
    for number in range(first + 601, first + 901):
        source.publish(TRADES, trade(source, number))
        await asyncio.sleep(0.01)
    await until(lambda: len(got) >= 901, "all events", 20)
    took = asyncio.get_running_loop().time() - began
    assert got == list(range(first, first + 901))
    # One question for the first of a while, one for what lay behind it.
    assert pulls <= 2 * took / 0.2 + 4


async def test_nothing_is_sealed_by_a_session_that_is_over(desk: Desk) -> None:
    source, reader = await desk.context("market-data"), await desk.context("gateway")
    got: list[int] = []
    reader.subscribe("md.trade.>", collect(got, 3_000_000))
    reader.open()
    await reader.caught_up("MARKET")
    await source.publish(TRADES, trade(source, 3_000_000))
    first = source.link.session

    def clock() -> int:
        """That of a process that was held up beyond its session's end, until it has another one."""
        return max(time.time_ns(), first.credential.expires_at) if source.link.session is first else time.time_ns()

    source.link._clock = source._publishers["MARKET"]._clock = clock
    await source.publish(TRADES, trade(source, 3_000_001))
    assert source.link.session is not first
    await until(lambda: len(got) == 2, "both")
    assert reader.metrics.snapshot().get("dead_letters", 0) == 0


async def test_nothing_is_lost_through_a_kill_of_the_broker(desk: Desk, bus: TestBus) -> None:
    source, reader = await desk.context("market-data"), await desk.context("gateway")
    got: list[int] = []
    orders = await desk.context("strategy-alpha")
    reader.subscribe("md.trade.>", collect(got, 1_000_000))
    reader.open()
    await reader.caught_up("MARKET")
    assert orders.component == "strategy-alpha"
    number = 1_000_000
    stop = asyncio.Event()

    async def produce() -> None:
        nonlocal number
        while not stop.is_set():
            source.publish(TRADES, trade(source, number))
            number += 1
            await asyncio.sleep(0.002)

    producing = asyncio.create_task(produce())
    await until(lambda: len(got) > 100, "a first hundred")
    await asyncio.to_thread(bus.server.stop)
    await asyncio.sleep(0.5)  # the broker is away for a while
    bus.server.start()  # not in a thread that ends with this loop: the broker would end with it
    await bus.provision()
    before = len(got)
    await until(lambda: len(got) > before + 100, "events after the restart", 15)
    stop.set()
    await producing
    await until(lambda: len(got) >= number - 1_000_000, "all events")
    assert got == list(range(1_000_000, number))
    assert source.metrics.snapshot()["reconnects"] >= 1


async def test_a_message_that_does_not_verify_becomes_a_dead_letter_and_reading_goes_on(desk: Desk) -> None:
    source, reader, audit = [await desk.context(name) for name in ("market-data", "gateway", "audit")]
    got: list[int] = []
    letters: list[DeadLetter] = []
    reader.subscribe("md.trade.>", collect(got, 5_000))
    audit.subscribe("dead.>", lambda r: letters.extend(e for e in r.events if isinstance(e, DeadLetter)))
    for context in (reader, audit):
        context.open()
        await context.caught_up()
    connection = await source.link.connection()
    await connection.publish(Outgoing(TRADES.text, b"not sealed", os.urandom(16).hex()))
    await source.publish(TRADES, trade(source, 5_000))
    await until(lambda: bool(got) and bool(letters), "the event and the dead letter")
    assert got == [5_000]
    assert (letters[0].code, letters[0].subject, letters[0].payload) == ("PAYLOAD", TRADES.text, b"not sealed")


async def test_a_stored_message_published_again_is_refused_as_replay(desk: Desk) -> None:
    source, reader = await desk.context("market-data"), await desk.context("gateway")
    seen: list[Received] = []
    reader.subscribe("md.trade.>", seen.append)
    reader.open()
    await reader.caught_up("MARKET")
    await source.publish(TRADES, trade(source, 77))
    await until(lambda: bool(seen), "the event")
    connection = await source.link.connection()
    await connection.publish(Outgoing(TRADES.text, seen[0].verified.payload, os.urandom(16).hex()))
    await until(lambda: reader.metrics.snapshot().get("dead_letters", 0) == 1, "the refusal")
    assert len(seen) == 1


async def test_a_taken_message_id_is_reported_and_the_event_is_sent_under_another(desk: Desk) -> None:
    source = await desk.context("market-data")
    await source.publish(TRADES, trade(source, 1))
    connection = await source.link.connection()
    stolen = bytes(15) + b"\x01"
    await (await connection.publish(Outgoing(TRADES.text, b"squatter", stolen.hex()))).acknowledged()
    publisher = source._publishers["MARKET"]
    ids = [stolen]
    publisher._entropy = lambda n: ids.pop() if ids else os.urandom(n)
    sequence = await source.publish(TRADES, trade(source, 2))
    assert sequence > 0
    assert source.metrics.snapshot()["suppressed"] == 1
    await until(lambda: source.metrics.snapshot().get("notices", 0) == 1, "the notice")


async def test_publishing_outside_the_own_scope_is_refused_before_it_reaches_the_broker(desk: Desk) -> None:
    context = await desk.context("market-data")
    with pytest.raises(Unverified, match="SCOPE"):
        context.publish(subject("order.intent", strategy="alpha", venue="paper", symbol="XRP/ETH"), trade(context, 1))
    with pytest.raises(Malformed, match="EVENT_TYPE"):
        context.publish(TRADES, context.new(Heartbeat, heads=()))
    with pytest.raises(ConfigError, match="READ_SCOPE"):
        context.subscribe("order.>", lambda _: None)


async def test_a_full_queue_refuses_and_room_waits(desk: Desk) -> None:
    context = await desk.context("market-data")
    batch = tuple(trade(context, n) for n in range(1000))
    with pytest.raises(Backpressure):
        for _ in range(MAX_QUEUED // 1000 + 2):
            context.publish(TRADES, *batch)
    await context.room("MARKET")
    await context.publish(TRADES, *batch)


async def test_a_failing_handler_stops_the_component_before_its_position_moves(desk: Desk) -> None:
    source, reader = await desk.context("market-data"), await desk.context("gateway")

    def handler(received: Received) -> None:
        raise ZeroDivisionError("a defect")

    reader.subscribe("md.trade.>", handler)
    reader.open()
    await reader.caught_up("MARKET")
    before = reader.position("MARKET")
    await source.publish(TRADES, trade(source, 9))
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(reader.failed(), 20)
    assert reader.position("MARKET") == before


async def test_the_watchdog_leaves_a_broker_that_answers_nothing_and_nothing_is_lost(desk: Desk, bus: TestBus) -> None:
    source, reader = await desk.context("market-data"), await desk.context("gateway")
    got: list[int] = []
    reader.subscribe("md.trade.>", collect(got, 2_000_000))
    reader.open()
    await reader.caught_up("MARKET")
    await source.publish(TRADES, trade(source, 2_000_000))
    # The process lives and its sockets stay open: only the missing acknowledgement shows it.
    os.kill(bus.server.pid, signal.SIGSTOP)
    try:
        for number in range(2_000_001, 2_000_101):
            source.publish(TRADES, trade(source, number))
        counted = source.metrics.snapshot
        await until(lambda: counted().get("watchdog", 0) >= 1, lambda: f"the watchdog, but {counted()}", 6)
    finally:
        os.kill(bus.server.pid, signal.SIGCONT)
    await until(lambda: len(got) >= 101, "all events", 20)
    assert got == list(range(2_000_000, 2_000_101))


async def test_what_the_broker_answers_one_process_no_other_of_its_name_takes_for_its_own(desk: Desk) -> None:
    source = await desk.context("market-data")
    other = await desk.context("market-data", boot=os.urandom(16))
    ours, theirs = await source.link.connection(), await other.link.connection()
    waiting = Flight(1)
    # The same number of messages were sent by both.
    theirs._acks["1"], theirs._acks["2"] = (waiting, 0), (waiting, 0)
    ours._count = 0
    await (await ours.publish(Outgoing(TRADES.text, b"one", os.urandom(16).hex()))).acknowledged()
    await theirs.wire.flush()
    assert waiting.answers == [None]
    assert not waiting.done.is_set()
