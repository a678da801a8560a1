"""An honest system whose audit is starved, paused or cut off: its record verifies, whatever came late.

The first three hold streams back within the audit, or stop the real broker; the last stops processes of a whole
deployment, the audit beyond the end of its session.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from tallystick.components.audit.main import Audit
from tallystick.record.manifest import read_manifest
from tallystick.record.place import locate
from tallystick.record.report import Report
from tallystick.record.verify import verify
from tallystick.runtime.bus.reader import Delivery
from tallystick.runtime.deployment.service import ServiceContext
from tallystick.schemas.seal import Verifier
from tallystick.schemas.security import Notice
from tallystick.schemas.subjects import GUARD, MARKET, SECURITY
from tests.integration.test_audit_process import Hall, trades
from tests.support import deployment
from tests.support.bus import TestBus, running_bus
from tests.support.runtime import Desk
from tests.support.waiting import until

# Longer than anything that audit once waited by its own clock.
LONG_S = 2.5


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[TestBus]:
    with running_bus(tmp_path / "bus") as running:
        yield running


class HeldUp(Audit):
    """An audit to which the broker brings nothing of `held` until `let_go`."""

    def __init__(self, path: Path, verifiers: list[Verifier], *held: str) -> None:
        super().__init__(path, verifiers)
        self.held = held
        self.let_go = asyncio.Event()

    def _reader(self, stream: str) -> Callable[[Delivery], Awaitable[None]]:
        handle = super()._reader(stream)

        async def later(delivery: Delivery) -> None:
            if stream in self.held:
                await self.let_go.wait()
            await handle(delivery)

        return later


def clean(report: Report) -> None:
    assert report.problems == []
    assert report.incidents == {}
    assert report.status["ok"] == report.messages > 0


@pytest.mark.parametrize("held", [(SECURITY,), (MARKET,), (SECURITY, GUARD)])
async def test_honest_messages_are_no_strangers_however_late_a_stream_is_brought(
    desk: Desk, tmp_path: Path, held: tuple[str, ...]
) -> None:
    hall = Hall(desk, tmp_path)
    codes: list[str] = []
    watcher = await hall.component("console")
    watcher.subscribe("guard.audit", lambda r: codes.extend(e.code for e in r.events if isinstance(e, Notice)))
    watcher.open()
    context = await hall.component("audit")
    audit = HeldUp(hall.path, [Verifier(desk.trust)], *held)
    await audit.start(context)
    context.open()
    market = await hall.component("market-data")
    market.open()  # heartbeats state what is stored
    await market.publish("md.trade.paper.XRP-ETH", *trades(market, 20))
    await asyncio.sleep(LONG_S)
    assert read_manifest(hall.path).resume(MARKET) == 0, "logged without knowing what came before"
    audit.let_go.set()
    await until(lambda: read_manifest(hall.path).resume(MARKET) > 0, "archived")
    clean(verify(hall.place))  # while everything goes on
    await market.close()
    desk.contexts.remove(market)
    await context.release()
    clean(verify(hall.place))
    assert codes == []


async def test_a_stop_in_the_middle_leaves_a_clean_record_and_loses_nothing(desk: Desk, tmp_path: Path) -> None:
    hall = Hall(desk, tmp_path)
    context = await hall.component("audit")
    audit = HeldUp(hall.path, [Verifier(desk.trust)], MARKET)
    await audit.start(context)
    context.open()
    await until(lambda: hall.rows() > 0, "something archived")
    market = await hall.component("market-data")
    market.open()
    for _ in range(3):
        await market.publish("md.trade.paper.XRP-ETH", *trades(market, 20))
    await until(lambda: audit._sources[GUARD].queue, "a heartbeat that waits for the ticks that it counts")
    # As where the broker brings nothing any more: what the stop waits for does not come.
    await context.release()
    clean(verify(hall.place))
    assert read_manifest(hall.path).resume(MARKET) == 0
    desk.contexts.remove(context)
    audit.let_go.set()
    await context.close()
    _, again = await hall.start()
    await until(lambda: read_manifest(hall.path).resume(MARKET) > 0, "archived by the next one")
    await again.release()
    clean(verify(hall.place))


async def test_a_broker_that_stands_still_leaves_a_clean_record(bus: TestBus, desk: Desk, tmp_path: Path) -> None:
    hall = Hall(desk, tmp_path)
    _, context = await hall.start()
    market = await hall.component("market-data")
    market.open()
    for _ in range(2):
        await market.publish("md.trade.paper.XRP-ETH", *trades(market, 50))
        os.kill(bus.server.pid, signal.SIGSTOP)
        sent = market.publish("md.trade.paper.XRP-ETH", *trades(market, 50))
        await asyncio.sleep(LONG_S)
        os.kill(bus.server.pid, signal.SIGCONT)
        await asyncio.wait_for(sent, 20)
    stored = await market.publish("md.trade.paper.XRP-ETH", *trades(market, 1))
    await until(lambda: read_manifest(hall.path).resume(MARKET) >= stored, "archived", 20)
    await context.release()
    clean(verify(hall.place))


@pytest.mark.slow
@pytest.mark.usefixtures("whole")
async def test_processes_that_stand_still_beyond_their_sessions_leave_a_clean_record(tmp_path: Path) -> None:
    made, keystore = deployment.make(tmp_path / "d", session_lifetime_s=6)
    told: list[str] = []
    async with deployment.running(made, keystore, "audit", report=told.append) as running:
        pids = {s.name: s.pid for s in running.supervisor.states}
        market: ServiceContext = await running.context("market-data")
        market.open()
        for stopped, seconds in ((("audit",), 8.0), (("authority",), 1.0), (("authority", "audit"), 1.0)):
            await market.publish("md.trade.paper.XRP-ETH", *trades(market, 20))
            pids = {s.name: s.pid for s in running.supervisor.states}
            for name in stopped:
                os.kill(pids[name], signal.SIGSTOP)
            again = asyncio.get_running_loop().time() + seconds
            while asyncio.get_running_loop().time() < again:
                market.publish("md.trade.paper.BTC-USDT", *trades(market, 5))
                await asyncio.sleep(0.1)
            for name in stopped:
                os.kill(pids[name], signal.SIGCONT)
        stored = await market.publish("md.trade.paper.XRP-ETH", *trades(market, 1))
        archive = locate(made.directory, None)
        await until(lambda: read_manifest(archive.archive).resume(MARKET) >= stored, lambda: f"archived; {told}", 40)
    report = verify(archive)
    assert report.problems == [], told
    assert set(report.incidents) <= {"LATE"}, report.incidents
