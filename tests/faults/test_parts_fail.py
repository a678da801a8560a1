"""Each part of a running deployment is killed in turn: what happens is the defined outcome, and trading goes on.

One deployment with every process trades through all of it; when it is stopped, orders at the venue are held against
the permits, and the archive must verify.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from pathlib import Path

import pytest
import pytest_asyncio

from tallystick.cli import operate
from tallystick.record import verify as verifying
from tallystick.record.place import locate
from tallystick.runtime.deployment import supervisor
from tallystick.runtime.deployment.service import ServiceContext
from tallystick.runtime.deployment.supervisor import Supervisor
from tests.faults.test_order_crash import STRATEGIES, Record, check, explain, make, reader
from tests.support.waiting import until

# The chaos of a minute: `make slow`.  The deployment, and with it the loop, lives on between tests.
pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

SECOND = 1_000_000_000
# How long a killed part stays away, where the test is about the time without it.
AWAY_S = 2.5


class Floor:
    """A deployment at work, everything that it says about orders, and the hand that kills."""

    def __init__(self, folder: Path) -> None:
        self.deployment, self.keystore = make(folder)
        self.told: list[str] = []
        self.supervisor = Supervisor(self.deployment, self.keystore, report=self.told.append)
        self.record = Record()
        self._reader: ServiceContext | None = None

    async def start(self) -> None:
        await self.supervisor.start()
        await operate.arm(self.deployment, self.keystore, Decimal(1))
        self._reader = await reader(self.deployment, self.keystore, self.record, "console")
        await self.until(lambda: self.record.accepted() >= 3, "nothing is traded")

    async def stop(self) -> None:
        context, self._reader = self._reader, None
        if context is not None:
            await context.close()
        await self.supervisor.stop()

    async def until(self, what: Callable[[], bool], why: str, seconds: float = 30) -> None:
        await until(what, lambda: f"{why}; {explain(self.record)}; {self.told[-6:]}", seconds)

    def pid(self, name: str) -> int:
        return next(s.pid for s in self.supervisor.states if s.name == name)

    def ready(self, name: str) -> bool:
        return next(s.state for s in self.supervisor.states if s.name == name) == "ready"

    async def kill(self, name: str) -> float:
        """SIGKILL, then wait until the supervisor has it back; the Unix time of the kill in ns."""
        at, pid = time.time_ns(), self.pid(name)
        os.kill(pid, signal.SIGKILL)
        await self.until(lambda: self.pid(name) != pid and self.ready(name), f"{name} is not back")
        assert any(text.startswith(f"{name} ended with -9; starting it again") for text in self.told), self.told
        return at

    async def trades(self, more: int = 2) -> None:
        """Wait until the venue has taken `more` orders from now on."""
        before = self.record.accepted()
        await self.until(lambda: self.record.accepted() >= before + more, "no order is accepted any more")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def floor(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Floor]:
    made = Floor(tmp_path_factory.mktemp("parts") / "d")
    try:
        await made.start()
        yield made
    finally:
        await made.stop()


async def test_broker_killed_it_is_started_again_and_everybody_reconnects(floor: Floor) -> None:
    pids = {s.name: s.pid for s in floor.supervisor.states}
    broker = floor.supervisor.server.pid
    os.kill(broker, signal.SIGKILL)
    await floor.until(lambda: any(t.startswith("broker: NATS_DIED") or "starting it again" in t for t in floor.told), "untold")  # fmt: skip
    await floor.until(lambda: not Path(f"/proc/{broker}").exists(), "the broker lives")
    await floor.trades()
    assert {s.name: s.pid for s in floor.supervisor.states} == pids, "a process fell with the broker"


async def test_authority_killed_sessions_live_on_until_it_is_back(floor: Floor) -> None:
    before = floor.record.accepted()
    at = await floor.kill("authority")
    await floor.trades()
    assert floor.record.accepted() > before
    refused = [n for n in floor.record.guard if n.ts > at and n.code in ("SESSION_UNLISTED", "SESSION_REVOKED")]
    assert not refused, refused


async def test_gateway_killed_every_intent_is_decided_once(floor: Floor) -> None:
    asked = set(floor.record.intents)
    at = await floor.kill("gateway")
    await floor.trades()
    asked |= {i for i, intent in floor.record.intents.items() if intent.ts < at}
    decided = [d.intent_id for d in floor.record.decisions.values()]
    await floor.until(lambda: asked <= {d.intent_id for d in floor.record.decisions.values()}, "undecided intents")
    assert len(decided) == len(set(decided)), "an intent was decided twice"


async def test_venue_killed_what_was_sent_is_asked_about_and_nothing_is_sent_twice(floor: Floor) -> None:
    at = await floor.kill("paper-exchange")
    await floor.trades()
    before = {d.intent_id for d in floor.record.permits if d.ts < at}

    def known() -> bool:
        answered = ("accepted", "rejected", "void", "closed")
        return before <= {e.intent_id for e in floor.record.events if e.state in answered}

    await floor.until(known, "an order from before is neither known nor void")


async def test_custody_killed_old_permits_are_worth_nothing_and_new_ones_name_the_new_boot(floor: Floor) -> None:
    old = {d.permit.audience for d in floor.record.permits if d.permit is not None}
    at = await floor.kill("custody")
    await floor.trades()
    taken = {e.intent_id for e in floor.record.events if e.state == "accepted" and e.ts > at + SECOND}
    later = [
        d.permit for d in floor.record.permits if d.permit is not None and d.intent_id in taken and d.ts > at + SECOND
    ]
    assert later
    assert not {p.audience for p in later} & old, "a permit for the dead boot was signed"


async def test_breaker_killed_nothing_is_permitted_without_its_heartbeat(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "PAUSES_S", (AWAY_S,))

    at = await floor.kill("breaker")
    back = int(at + AWAY_S * SECOND)
    decided = list(floor.record.decisions.values())
    await floor.trades()
    # It was heard for a second after its last heartbeat at the most.
    gap = [d for d in floor.record.decisions.values() if at + 1.2 * SECOND < d.ts < back]
    assert gap, f"no intent in the gap, {len(decided)} decisions"
    assert not [d for d in gap if d.permit is not None]
    codes = {denial.code for d in gap for denial in d.denials}
    assert "BREAKER_HEARTBEAT_MISSING" in codes, codes


async def test_streams_and_portfolio_killed_trading_goes_on_meanwhile(floor: Floor) -> None:
    await asyncio.gather(floor.kill("streams"), floor.kill("portfolio"), floor.trades())


async def test_execution_killed_no_permit_is_lost(floor: Floor) -> None:
    await floor.kill("execution")
    await floor.trades()


async def test_a_strategy_killed_leaves_the_other_alone(floor: Floor) -> None:
    other = floor.pid(f"strategy-{STRATEGIES[1]}")
    await floor.kill(f"strategy-{STRATEGIES[0]}")
    await floor.trades()
    assert floor.pid(f"strategy-{STRATEGIES[1]}") == other


async def test_audit_killed_at_any_moment_goes_on_without_a_hole(floor: Floor) -> None:
    for pause in (0.0, 0.3, 0.7):
        await asyncio.sleep(pause)
        await floor.kill("audit")


async def test_at_the_end_every_order_is_accounted_for_and_the_archive_verifies(floor: Floor) -> None:
    for name in STRATEGIES:
        await floor.supervisor._stop(f"strategy-{name}")
    await asyncio.sleep(0.5)
    await operate.kill(floor.deployment, "all", "end of the test")
    await floor.until(lambda: not floor.record.unfinished(), "unfinished orders")
    await floor.stop()
    ends = check(floor.deployment, floor.record)
    assert ends["closed"] >= 5, ends
    report = verifying.verify(locate(floor.deployment.directory, None))
    assert report.clean, report.problems[:5]
    assert report.messages > 100
    sys.stdout.write(f"{dict(ends)}, torn {len(report.torn)}, incidents {dict(report.incidents)}\n")
