"""Whose failure it is, on a real broker: ours ends the component with the message unread, the broker's is retried."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest

from tallystick.runtime.bus import wire as wire_module
from tallystick.runtime.bus.link import Connection, ConnectionLost, Outgoing, OwnSession
from tallystick.runtime.bus.reader import Delivery, ReadRefused
from tallystick.runtime.bus.received import Received
from tallystick.runtime.bus.tasks import TaskCancelled
from tallystick.runtime.bus.wire import Wire, WireError
from tallystick.runtime.deployment.service import ServiceContext
from tallystick.schemas.errors import LoginRefused, Malformed
from tallystick.schemas.market import Trade
from tallystick.schemas.security import DeadLetter
from tallystick.schemas.subjects import subject
from tests.support.bus import TestBus
from tests.support.runtime import Desk
from tests.support.waiting import until

TRADES = subject("md.trade", venue="paper", symbol="XRP/ETH")
# What a handler may raise, and what the component then ends with.
DEFECTS: list[tuple[BaseException, type[BaseException]]] = [
    (OSError("disk"), OSError),
    (TimeoutError("slow"), TimeoutError),
    (WireError("reset"), WireError),
    (ConnectionResetError("peer"), ConnectionResetError),
    (ValueError("defect"), ValueError),
    (asyncio.CancelledError(), TaskCancelled),
]
REFUSALS: list[tuple[BaseException, type[BaseException]]] = [
    (ReadRefused("READ_ENDED", "409"), ReadRefused),
    (Malformed("PAYLOAD", "nonsense"), Malformed),
]


def trade(context: ServiceContext, number: int) -> Trade:
    return context.new(
        Trade, trade_id=number, price=Decimal("0.00141342"), qty=Decimal(23), time=number, buyer_is_maker=True
    )


def numbers(received: Received) -> list[int]:
    return [e.trade_id for e in received.events if isinstance(e, Trade)]


async def restart(desk: Desk, context: ServiceContext) -> ServiceContext:
    await context.close()
    desk.contexts.remove(context)
    return await desk.context(context.component)


@pytest.mark.parametrize(("raised", "seen"), DEFECTS, ids=lambda value: getattr(value, "__name__", None))
@pytest.mark.parametrize("waits", [False, True], ids=["at once", "after a wait"])
async def test_whatever_a_handler_raises_ends_the_component_and_the_message_is_handled_after_a_restart(
    desk: Desk, raised: BaseException, seen: type[BaseException], waits: bool
) -> None:
    source, reader = await desk.context("market-data"), await desk.context("gateway")
    start = await source.publish(TRADES, trade(source, 1))
    handled: list[int] = []

    async def fails(received: Received) -> None:
        if 3 in numbers(received):
            if waits:
                await asyncio.sleep(0.01)
            raise raised
        handled.extend(numbers(received))

    reader.subscribe("md.trade.>", fails, after=start)
    reader.open()
    await reader.caught_up("MARKET")
    for number in (2, 3, 4):
        await source.publish(TRADES, trade(source, number))
    with pytest.raises(seen):
        await asyncio.wait_for(reader.failed(), 20)
    assert handled == [2]
    assert reader.position("MARKET") == start + 1
    assert reader.metrics.snapshot().get("dead_letters", 0) == 0

    again = await restart(desk, reader)
    again.subscribe("md.trade.>", lambda received: handled.extend(numbers(received)), after=start + 1)
    again.open()
    await until(lambda: len(handled) >= 3, "the message and what followed")
    assert handled == [2, 3, 4]


@pytest.mark.parametrize(("raised", "seen"), DEFECTS + REFUSALS, ids=lambda value: getattr(value, "__name__", None))
async def test_whatever_a_raw_handler_raises_ends_the_component_and_the_message_is_handled_after_a_restart(
    desk: Desk, raised: BaseException, seen: type[BaseException]
) -> None:
    source, reader = await desk.context("market-data"), await desk.context("gateway")
    start = await source.publish(TRADES, trade(source, 1))
    handled: list[int] = []

    def fails(delivery: Delivery) -> None:
        if delivery.stream_seq == start + 2:
            raise raised
        handled.append(delivery.stream_seq)

    reader.subscribe_raw("MARKET", fails, after_seq=start)
    reader.open()
    for number in (2, 3, 4):
        await source.publish(TRADES, trade(source, number))
    with pytest.raises(seen):
        await asyncio.wait_for(reader.failed(), 20)
    assert handled == [start + 1]
    assert reader.position("MARKET") == start + 1

    again = await restart(desk, reader)
    again.subscribe_raw("MARKET", lambda delivery: handled.append(delivery.stream_seq), after_seq=start + 1)
    again.open()
    await until(lambda: len(handled) >= 3, "the message and what followed")
    assert handled == [start + 1, start + 2, start + 3]


async def test_a_refusal_by_a_handler_dead_letters_its_message_whatever_its_type(desk: Desk) -> None:
    source, reader, audit = [await desk.context(name) for name in ("market-data", "gateway", "audit")]
    handled: list[int] = []
    letters: list[DeadLetter] = []

    def refuses(received: Received) -> None:
        if 2 in numbers(received):
            raise ReadRefused("READ_ENDED", "a handler's own")
        handled.extend(numbers(received))

    reader.subscribe("md.trade.>", refuses)
    audit.subscribe("dead.>", lambda r: letters.extend(e for e in r.events if isinstance(e, DeadLetter)))
    for context in (reader, audit):
        context.open()
        await context.caught_up()
    for number in (2, 3):
        await source.publish(TRADES, trade(source, number))
    await until(lambda: bool(handled) and bool(letters), "the event and the dead letter")
    assert handled == [3]
    assert [letter.code for letter in letters] == ["READ_ENDED"]
    assert reader.metrics.snapshot().get("reads_refused", 0) == 0


@pytest.mark.parametrize("cut", ["lost", "replaced"])
async def test_a_handler_goes_on_to_its_end_while_its_connection_is_lost_or_replaced(desk: Desk, cut: str) -> None:
    source, reader = await desk.context("market-data"), await desk.context("gateway")
    begun: list[int] = []
    handled: list[int] = []
    go_on = asyncio.Event()

    async def slow(received: Received) -> None:
        begun.extend(numbers(received))
        await go_on.wait()
        handled.extend(numbers(received))

    reader.subscribe("md.trade.>", slow)
    reader.open()
    await reader.caught_up("MARKET")
    for number in (1, 2):
        await source.publish(TRADES, trade(source, number))
    await until(lambda: begun == [1], "the handler's beginning")
    connection = await reader.link.connection()
    if cut == "lost":
        await connection.close()
    else:
        await reader.link._renew(connection)
    await asyncio.sleep(0.5)
    assert (begun, handled) == ([1], [])
    go_on.set()
    await until(lambda: len(handled) >= 2, "both events")
    assert begun == handled == [1, 2]
    assert reader.metrics.snapshot().get("dead_letters", 0) == 0


async def test_a_lost_connection_answers_what_it_still_owes_and_takes_nothing_more(desk: Desk) -> None:
    source = await desk.context("market-data")
    connection = await source.link.connection()
    owed = await connection.publish(Outgoing(TRADES.text, b"not sealed", os.urandom(16).hex()))
    connection.mark_lost()
    with pytest.raises(ConnectionLost):
        await owed.acknowledged()
    with pytest.raises(ConnectionError):
        await connection.publish(Outgoing(TRADES.text, b"not sealed", os.urandom(16).hex()))
    assert await source.publish(TRADES, trade(source, 1)) > 0


@pytest.mark.parametrize("raised", [OSError("disk"), WireError("reset"), TimeoutError("slow")], ids=repr)
async def test_a_failure_of_the_publishers_own_code_ends_the_component_and_its_connection_stays(
    desk: Desk, raised: Exception
) -> None:
    source = await desk.context("market-data")
    await source.publish(TRADES, trade(source, 1))
    connection = await source.link.connection()

    def fails(_: int) -> bytes:
        raise raised

    source._publishers["MARKET"]._entropy = fails
    source.publish(TRADES, trade(source, 2))
    with pytest.raises(type(raised)):
        await asyncio.wait_for(source.failed(), 20)
    assert connection.alive
    del source._publishers["MARKET"]


async def test_a_failure_of_who_is_told_of_a_suppression_ends_the_component(desk: Desk) -> None:
    source = await desk.context("market-data")
    await source.publish(TRADES, trade(source, 1))
    connection = await source.link.connection()
    stolen = os.urandom(16)
    await (await connection.publish(Outgoing(TRADES.text, b"squatter", stolen.hex()))).acknowledged()

    def fails(*_: str) -> None:
        raise OSError("disk")

    publisher = source._publishers.pop("MARKET")
    publisher.on_notice = fails
    publisher._entropy = lambda _: stolen
    source._publishers["MARKET"] = publisher
    source.publish(TRADES, trade(source, 2))
    with pytest.raises(OSError, match="disk"):
        await asyncio.wait_for(source.failed(), 20)
    assert connection.alive
    del source._publishers["MARKET"]


async def test_the_death_of_what_keeps_the_connection_ends_the_component(desk: Desk) -> None:
    context = await desk.context("gateway")
    context.open()

    def broken() -> int:
        raise ValueError("no clock")

    context.link._clock = broken
    with pytest.raises(ValueError, match="no clock"):
        await asyncio.wait_for(context.failed(), 20)


async def test_the_death_of_what_closes_an_old_connection_ends_the_component(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = await desk.context("gateway")

    async def broken(_: Connection) -> None:
        raise ValueError("no goodbye")

    with monkeypatch.context() as patched:
        patched.setattr(Connection, "close", broken)
        (await context.link.connection()).mark_lost()
        with pytest.raises(ValueError, match="no goodbye"):
            await asyncio.wait_for(context.failed(), 20)


async def test_a_login_that_breaks_after_it_was_granted_is_tried_again(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = await desk.context("gateway")
    listen: Any = Connection.open
    broken: list[Connection] = []

    async def breaks_once(connection: Connection, wire: Wire) -> None:
        if not broken:
            broken.append(connection)
            raise WireError("reset")
        await listen(connection, wire)

    monkeypatch.setattr(Connection, "open", breaks_once)
    (await context.link.connection()).mark_lost()
    connection = await asyncio.wait_for(context.link.connection(), 20)
    assert broken
    assert connection is not broken[0]
    context.tasks.check()


async def test_after_a_login_that_failed_the_newest_session_is_shown_and_no_older_one(desk: Desk) -> None:
    """The newest one goes with the certificate that is shown by now; an older one would be thrown off for it."""
    feed = await desk.context("market-data", lifetime_s=6)
    link = feed.link
    first, shown = link.session, list[OwnSession]()
    login = link._login

    async def fail_once(session: OwnSession) -> Connection:
        shown.append(session)
        if len(shown) == 1:
            link._current.mark_lost()  # type: ignore[union-attr]
            raise LoginRefused("BROKER_LOGIN", "not now")
        return await login(session)

    link._login = fail_once  # type: ignore[method-assign]
    await until(lambda: len(shown) >= 2, "the next login", 10)
    assert shown[0] is not first
    assert shown[1] is shown[0]


async def test_a_connection_that_is_closed_twice_at_once_takes_no_more_and_its_pings_end(
    desk: Desk, bus: TestBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncio's TLS forgets what it wrote to at the second close: who wrote then failed at an attribute."""
    monkeypatch.setattr(wire_module, "PING_S", 0.15)
    context = await desk.context("gateway")
    wire = (await context.link.connection()).wire
    os.kill(bus.server.pid, signal.SIGSTOP)  # it does not answer the goodbye, so the close takes a while
    try:
        pings, closing = asyncio.ensure_future(wire.keep_alive()), asyncio.gather(wire.close(), wire.close())
        await asyncio.sleep(0.02)
        assert not wire.lost
        with pytest.raises(WireError, match="connection closed"):
            wire.write(b"PING\r\n")
        await closing
        await asyncio.wait_for(pings, 20)
    finally:
        os.kill(bus.server.pid, signal.SIGCONT)
    context.tasks.check()


@pytest.fixture
async def silent() -> AsyncIterator[str]:
    """A server that takes connections and says nothing."""
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    yield f"tls://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()


async def test_a_login_at_a_silent_server_ends_in_time(silent: str) -> None:
    lost: list[bool] = []
    with pytest.raises(TimeoutError):
        await Wire.connect(
            silent,
            tls=ssl.create_default_context(),
            name="test",
            token="",
            sign=lambda _: b"",
            timeout_s=0.2,
            on_error=lambda exc: pytest.fail(str(exc)),
            on_lost=lambda: lost.append(True),
        )
    assert lost == [True]
