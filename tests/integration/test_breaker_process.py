"""The breaker on a real broker and behind its real socket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tallystick.cli.breaker import ask
from tallystick.components.breaker.control import ControlSocket
from tallystick.components.breaker.main import SECURITY_TAIL, Breaker
from tallystick.runtime.bus.received import Received
from tallystick.runtime.deployment.service import ServiceContext
from tallystick.schemas.control import ArmRequest, Kill, RearmRequest, Request, Status
from tallystick.schemas.errors import ConfigError
from tallystick.schemas.orders import Fill
from tallystick.schemas.security import (
    Alert,
    Arm,
    BreakerHeartbeat,
    BreakerRearmed,
    BreakerTripped,
)
from tallystick.schemas.trust import OPERATOR_KEY_NAME, Rearm, sign_document
from tests.support import world
from tests.support.crowd import crowd
from tests.support.log import Lines
from tests.support.runtime import Desk

SECOND = 1_000_000_000


class Floor:
    """A breaker, whoever speaks to it, and a reader that sees what it says."""

    def __init__(self, desk: Desk, folder: Path) -> None:
        self.desk = desk
        self.socket = folder / "breaker.sock"
        self.folder = folder
        self.tail = SECURITY_TAIL
        self.heard: list[tuple[int, str, Any]] = []

    async def open(self) -> None:
        self.reader = await self.desk.context("gateway")
        self.reader.subscribe(("control.breaker.>", "control.arm.>"), self._hear)
        self.reader.open()
        await self.reader.caught_up()
        self.streams = await self.desk.context("streams")
        self.portfolio = await self.desk.context("portfolio")
        self.breaker = await self.start()

    async def start(self) -> Breaker:
        self.breaker = Breaker(self.folder, self.tail)
        context = await self.desk.context("breaker")
        await self.breaker.start(context)
        context.open()
        await context.caught_up()
        await self.breaker.ready()
        return self.breaker

    def _hear(self, received: Received) -> None:
        now = time.monotonic_ns()
        self.heard += [(now, received.subject.text, event) for event in received.events]

    async def until(self, found: Callable[[Any], bool], timeout: float = 5.0) -> tuple[int, str, Any]:
        for _ in range(int(timeout / 0.005)):
            for item in self.heard:
                if found(item[2]):
                    return item
            await asyncio.sleep(0.005)
        raise AssertionError(f"not heard: {self.heard[-5:]}")

    async def tripped(self, scope: str) -> tuple[int, str, Any]:
        return await self.until(lambda e: isinstance(e, BreakerHeartbeat) and any(t.scope == scope for t in e.tripped))

    async def clear(self) -> None:
        """Re-arm everything, as the operator."""
        for trip in (await ask(self.socket, Status()))["tripped"]:
            answer = await ask(self.socket, RearmRequest(rearm(self.desk, trip["scope"], trip["since"])))
            assert answer["ok"], answer
        self.heard.clear()


def rearm(desk: Desk, scope: str, since: int, key: str = "operator") -> str:
    document = Rearm(deployment=desk.trust.deployment, scope=scope, since=since)
    return sign_document(document, (OPERATOR_KEY_NAME, world.key(key)))


@pytest.fixture
async def floor(desk: Desk, tmp_path: Path) -> AsyncIterator[Floor]:
    made = Floor(desk, tmp_path)
    try:
        await made.open()
        yield made
    finally:
        await made.breaker.ctx.release()


def alert(context: ServiceContext, scope: str, code: str = "INTENT_RATE") -> Alert:
    return context.new(Alert, code=code, scope=scope, text="300 intents in 1 s")


async def test_an_alert_reaches_the_heartbeat_at_once(floor: Floor) -> None:
    await floor.clear()
    start = time.monotonic_ns()
    floor.streams.publish("alert.rate.high", alert(floor.streams, "strategy-alpha"))
    at, where, beat = await floor.tripped("strategy-alpha")
    # Far below the 250 ms between heartbeats, whatever the machine is busy with.
    assert at - start < 200_000_000
    assert where == "control.breaker.all"
    _, where, trip = await floor.until(lambda e: isinstance(e, BreakerTripped))
    assert where == "control.breaker.strategy-alpha"
    assert beat.tripped[0].since == trip.ts


async def test_an_alert_counts_without_the_authoritys_list(floor: Floor) -> None:
    await floor.clear()
    assert floor.breaker.ctx.sessions.listed_at == 0
    await floor.streams.publish("alert.rate.high", alert(floor.streams, "strategy-alpha"))
    await floor.tripped("strategy-alpha")


async def test_heartbeats_come_several_times_a_second(floor: Floor) -> None:
    floor.heard.clear()
    await asyncio.sleep(1.3)  # the promise is one about time
    beats = [e.number for _, _, e in floor.heard if isinstance(e, BreakerHeartbeat)]
    assert len(beats) >= 4
    assert beats == sorted(set(beats))


async def test_a_person_kills_and_only_the_operators_note_rearms(floor: Floor) -> None:
    await floor.clear()
    answer = await ask(floor.socket, Kill("all", "drill"))
    assert answer["ok"]
    assert answer["stored"] is True
    [trip] = answer["tripped"]
    assert (trip["scope"], trip["reason"], trip["by"]) == ("all", "drill", f"uid {os.geteuid()}")
    await floor.tripped("all")
    forged = await ask(floor.socket, RearmRequest(rearm(floor.desk, "all", trip["since"], key="stranger")))
    assert (forged["ok"], forged["code"]) == (False, "NOTE_UNSIGNED")
    note = rearm(floor.desk, "all", trip["since"])
    assert (await ask(floor.socket, RearmRequest(note)))["tripped"] == []
    await floor.until(lambda e: isinstance(e, BreakerRearmed) and e.note == note)
    again = await ask(floor.socket, RearmRequest(note))
    assert (again["ok"], again["code"]) == (False, "REARM_NOT_TRIPPED")


async def test_what_is_tripped_stays_so_through_a_restart(floor: Floor) -> None:
    await floor.clear()
    await ask(floor.socket, Kill("venue-paper", "drill"))
    before = (await ask(floor.socket, Status()))["tripped"]
    await floor.breaker.ctx.release()
    await floor.desk.contexts.pop().close()
    floor.heard.clear()
    await floor.start()
    assert (await ask(floor.socket, Status()))["tripped"] == before
    await floor.tripped("venue-paper")


async def test_an_alert_raised_while_the_breaker_is_down_trips_at_its_start(floor: Floor) -> None:
    await floor.clear()
    await floor.breaker.ctx.release()
    await floor.desk.contexts.pop().close()
    await floor.streams.publish("alert.rate.critical", alert(floor.streams, "strategy-beta"))
    await floor.start()
    await floor.tripped("strategy-beta")


async def test_a_long_history_without_a_heartbeat_in_its_newest_part_trips_everything(floor: Floor) -> None:
    await floor.clear()
    await floor.breaker.ctx.release()
    await floor.desk.contexts.pop().close()
    for _ in range(80):
        await floor.streams.publish("alert.rate.info", alert(floor.streams, "all"))
    floor.tail = 70
    await floor.start()
    _, _, beat = await floor.tripped("all")
    assert "STATE_UNKNOWN" in beat.tripped[0].reason


async def test_a_fill_without_a_permit_trips_everything(floor: Floor) -> None:
    await floor.clear()
    fill = floor.portfolio.new(
        Fill,
        intent_id=b"",
        client_order_id="",
        venue_order_id="1",
        trade_id=1,
        side="buy",
        price=Decimal(1),
        qty=Decimal(1),
        commission=Decimal(0),
        commission_asset="",
        maker=False,
        time=0,
    )
    floor.portfolio.publish("fill.unknown.paper.XRP-ETH", fill)
    _, _, beat = await floor.tripped("all")
    assert "FILL_WITHOUT_PERMIT" in beat.tripped[0].reason


async def test_arming_passes_the_operators_note_on_and_refuses_any_other(floor: Floor) -> None:
    now = time.time_ns()
    lease = world.lease(floor.desk.trust, now - SECOND, now + 60 * SECOND)
    for key, document, code in (
        ("stranger", lease, "NOTE_UNSIGNED"),
        (
            "operator",
            msgspec.structs.replace(lease, start=now - 9 * SECOND, until=now - SECOND),
            "LEASE_EXPIRED",
        ),
        ("operator", msgspec.structs.replace(lease, component="custody"), "ARM_LEASE_SCOPE"),
    ):
        note = sign_document(document, (OPERATOR_KEY_NAME, world.key(key)))
        answer = await ask(floor.socket, ArmRequest(note))
        assert (answer["ok"], answer["code"]) == (False, code)
    note = sign_document(lease, (OPERATOR_KEY_NAME, world.key("operator")))
    assert (await ask(floor.socket, ArmRequest(note)))["ok"]
    _, where, event = await floor.until(lambda e: isinstance(e, Arm))
    assert where == "control.arm.execution"
    assert event.note == note


# ---------------------------------------------------------------- the socket alone


@contextlib.asynccontextmanager
async def serving(folder: Path, uid: int | None = None) -> AsyncIterator[tuple[Path, list[Request], Lines]]:
    seen: list[Request] = []
    log = Lines()

    async def handle(request: Request, by: str) -> dict[str, Any]:
        seen.append(request)
        return {"by": by}

    control = ControlSocket(folder / "b.sock", handle, log, uid)
    await control.start()
    try:
        yield folder / "b.sock", seen, log
    finally:
        await control.stop()


async def test_a_peer_of_another_user_is_refused_unread(tmp_path: Path) -> None:
    async with serving(tmp_path, uid=os.geteuid() + 1) as (path, seen, log):
        reader, writer = await asyncio.open_unix_connection(str(path))
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            writer.write(b'{"op":"kill","scope":"all","reason":"x"}\n')
            assert await reader.read() == b""
        writer.close()
        assert seen == []
        assert log.said("warning") == ["peer refused"]


async def test_the_socket_is_open_to_its_user_alone(tmp_path: Path) -> None:
    async with serving(tmp_path) as (path, _seen, _log):
        assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"kill\n",
        b"{}\n",
        b'{"op":"disarm"}\n',
        b'{"op":"kill","scope":"all"}\n',
        b'{"op":"kill","scope":"all","reason":"x","by":"root"}\n',
        b'{"op":"kill","scope":7,"reason":"x"}\n',
        b"[" * 50_000 + b"\n",
        b'{"op":"kill","scope":"all","reason":"' + b"x" * 70_000 + b'"}\n',
    ],
    ids=range(9),
)
async def test_a_request_that_does_not_parse_is_answered_and_has_no_effect(tmp_path: Path, line: bytes) -> None:
    async with serving(tmp_path) as (path, seen, _log):
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(line)
        answer = msgspec.json.decode(await reader.readline())
        assert (answer["ok"], answer["code"]) == (False, "BREAKER_REQUEST")
        assert seen == []
        writer.close()


async def test_no_number_of_connections_keeps_a_person_out(tmp_path: Path) -> None:
    """Sixteen idle connections used to shut out kill, arm and rearm."""
    async with serving(tmp_path) as (path, seen, _log):
        status = b'{"op":"status"}\n'
        for said in (b"", status, status * 1000):
            async with crowd(path, 4, 20, said):
                for _ in range(5):
                    assert (await ask(path, Kill("all", "drill")))["ok"]
        assert sum(isinstance(request, Kill) for request in seen) == 15


async def test_no_breaker_at_the_path_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is the deployment up"):
        (await ask(tmp_path / "none.sock", Status()))
