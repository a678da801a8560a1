"""kill -9 of execution, custody and gateway, at every named step and at random: no order lost, doubled or unaccounted.

The whole order's way runs as deployed: init, broker, authority, breaker, market data, strategies, gateway, custody,
execution, portfolio and the paper exchange, each a process of its own.  What happened is read from the bus, verified,
and held against the exchange's own request journal.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import tests
from tallystick.cli import operate
from tallystick.components.paper_exchange.journal import read_journal
from tallystick.runtime.bus.metrics import Metrics
from tallystick.runtime.bus.received import Received
from tallystick.runtime.deployment import process, supervisor
from tallystick.runtime.deployment.ceremony import init
from tallystick.runtime.deployment.config import StrategyConfig
from tallystick.runtime.deployment.folder import Deployment
from tallystick.runtime.deployment.managed import ProcessState
from tallystick.runtime.deployment.service import ServiceContext
from tallystick.runtime.deployment.supervisor import Supervisor
from tallystick.runtime.deployment.template import DEFAULT_TEMPLATE
from tallystick.runtime.keys.keystore import Keystore, Secret
from tallystick.schemas.ids import id_text
from tallystick.schemas.orders import Decision, Intent, OrderEvent
from tallystick.schemas.security import DeadLetter, Notice

STRATEGIES = ("alpha", "beta")
NEEDED = ("authority", "breaker", "market-data", "gateway", "custody", "execution", "portfolio", "paper-exchange")
FINAL = {"rejected", "void", "closed"}
NAMED = [
    *(
        ("execution", point)
        for point in (
            "decision",
            "submitting-queued",
            "submitting-durable",
            "signed",
            "before-send",
            "written",
            "answered",
            "outcome-queued",
        )
    ),
    *(("custody", point) for point in ("permit", "journalled", "order-signed")),
]
VICTIMS = ("execution", "custody", "gateway")
KILLS = 40
PAUSE_S = 2.0
ROOT = Path(tests.__path__[0]).parent


class Crashing(Supervisor):
    """The supervisor, with the order's way in the test's entry point and only what an order needs."""

    def _names(self) -> Iterator[str]:
        for name in super()._names():
            if name in NEEDED or name.startswith("strategy-"):
                yield name

    def _launch(self, name: str) -> None:
        real = subprocess.Popen

        def popen(arguments: list[str], **kw: Any) -> Any:
            if name in {"execution", "custody", "gateway", "portfolio"} or name.startswith("strategy-"):
                arguments = ["tests.support.crash_process" if a == process.__name__ else a for a in arguments]
                kw["env"] = {**kw["env"], "PYTHONPATH": str(ROOT)}
            return real(arguments, **kw)

        subprocess.Popen = popen  # type: ignore[misc,assignment]
        try:
            super()._launch(name)
        finally:
            subprocess.Popen = real  # type: ignore[misc]


class Record:
    """Everything that was said about orders, verified, as audit would read it."""

    def __init__(self) -> None:
        self.intents: dict[bytes, Intent] = {}
        self.decisions: dict[bytes, Decision] = {}
        self.events: list[OrderEvent] = []
        self.guard: list[Notice | DeadLetter] = []

    def note(self, received: Received) -> None:
        for event in received.events:
            if isinstance(event, Intent):
                self.intents[event.id] = event
            elif isinstance(event, Decision):
                assert event.id not in self.decisions
                self.decisions[event.id] = event
            elif isinstance(event, OrderEvent):
                self.events.append(event)
            elif isinstance(event, Notice | DeadLetter):
                self.guard.append(event)

    @property
    def permits(self) -> list[Decision]:
        return [d for d in self.decisions.values() if d.permit is not None]

    def states(self, intent: bytes) -> list[str]:
        return [e.state for e in self.events if e.intent_id == intent]

    def unfinished(self) -> list[str]:
        ended = {e.intent_id for e in self.events if e.state in FINAL}
        return [id_text(d.intent_id) for d in self.permits if d.intent_id not in ended]

    def accepted(self) -> int:
        return sum(e.state == "accepted" for e in self.events)


async def reader(deployment: Deployment, keystore: Keystore, record: Record, name: str = "audit") -> ServiceContext:
    """A context with audit's (or console's) own credential, which reads everything from the beginning."""
    secrets = {name: keystore[name] for name in deployment.secret_names(name)}
    setup = process.load_setup(deployment.directory, name, secrets)
    metrics = Metrics()
    link = setup.link(setup.authority(), metrics)
    await link.start()
    context = setup.context(link, metrics)
    context.subscribe(("order.>",), record.note, start="all")
    context.subscribe(("guard.>", "dead.>"), record.note, start="all")
    context.open()
    return context


def make(folder: Path) -> tuple[Deployment, Keystore]:
    pin = Secret("crash-test-master-pin-5521")
    template = (
        DEFAULT_TEMPLATE.replace("messages_per_second = 10", "messages_per_second = 1000")
        .replace("burst = 20", "burst = 1000")
        .replace('max_hourly = "500', 'max_hourly = "500000')
        .replace('max_position_notional = "20000"', 'max_position_notional = "20000000"')
        .replace('max_open_notional = "20000"', 'max_open_notional = "20000000"')
        .replace('max_gross_notional = "50000"', 'max_gross_notional = "50000000"')
    )
    module = str(ROOT / "tests" / "support" / "crash_strategy.py")
    strategies = [StrategyConfig(name=name, module=module, instruments=("XRP/ETH",)) for name in STRATEGIES]
    deployment = init(folder, "crash", pin, time.time_ns, strategies=strategies, template=template)
    return deployment, Keystore.open(deployment.keystore, pin)


def check(deployment: Deployment, record: Record) -> Counter[str]:
    """What must hold once everything has come to rest."""
    requests = read_journal(deployment.state("paper-exchange") / "requests.jsonl")
    posted = [entry for entry in requests if entry.request == "POST /api/v3/order"]
    # Not doubled: neither the same signed bytes nor the same order twice.
    assert not [n for n, count in Counter(e.payload_sha256 for e in posted).items() if count > 1]
    assert not [n for n, count in Counter(e.client_order_id for e in posted).items() if count > 1]
    # Every intent was decided, also those that a dying gateway left.
    assert {d.intent_id for d in record.decisions.values()} >= record.intents.keys()
    # Not lost, not unaccounted: every permit ended, and in the way that the exchange knows it.
    taken = {entry.client_order_id for entry in posted if entry.order_id > 0}
    ends: Counter[str] = Counter()
    for decision in record.permits:
        assert decision.permit is not None
        name = decision.permit.order.client_order_id
        states = record.states(decision.intent_id)
        final = {state for state in states if state in FINAL}
        assert len(final) == 1, (name, states)
        assert (name in taken) == (final == {"closed"}), (name, states, name in taken)
        if name in taken or any(e.client_order_id == name for e in posted):
            # Log before act: its submission was on record.
            assert "submitting" in states, (name, states)
        ends[final.pop()] += 1
    permitted = {d.permit.order.client_order_id for d in record.permits if d.permit is not None}
    assert {entry.client_order_id for entry in posted} <= permitted
    assert not [n for n in record.guard if n.code in {"ORDER_NOT_OURS", "ORDER_VANISHED", "ORDER_WITHOUT_PERMIT"}]
    for name in ("execution", "gateway"):
        assert not [line for line in said(deployment, name) if line["event"].startswith("snapshot refused")], name
    return ends


def said(deployment: Deployment, name: str) -> list[dict[str, Any]]:
    """The lines of a component's log."""
    return [json.loads(line) for line in deployment.log(name).read_text().splitlines()]


def resumed(deployment: Deployment) -> None:
    """Both went on from snapshots of moments before."""
    for name in ("execution", "gateway"):
        assert [line for line in said(deployment, name) if line["event"] == "snapshot" and line["position"] > 0], name


class Stage:
    """A running deployment, its record, and the hand that kills."""

    def __init__(self, folder: Path) -> None:
        self.deployment, self.keystore = make(folder)
        self.told: list[str] = []
        self.supervisor = Crashing(self.deployment, self.keystore, report=self.told.append)
        self.record = Record()

    def state(self, name: str) -> ProcessState:
        return next(s for s in self.supervisor.states if s.name == name)

    async def until(self, what: Callable[[], bool], seconds: float, why: str) -> None:
        end = time.monotonic() + seconds
        while not what():
            if time.monotonic() > end:
                raise AssertionError(f"not in {seconds} s: {why}; {explain(self.record)}; {self.told[-6:]}")
            await asyncio.sleep(0.05)

    async def kill(self, victim: str, point: str, delay: float) -> None:
        """Kill at a named point, or after `delay` seconds; it comes back, and orders are accepted again."""
        pid, before = self.state(victim).pid, self.record.accepted()
        if point:
            order = self.deployment.run / f"{victim}.crash-at"
            order.write_text(point)
            await self.until(lambda: not order.exists(), 20, f"{victim} never came to {point}")
        else:
            await asyncio.sleep(delay)
            os.kill(pid, signal.SIGKILL)
        await self.until(
            lambda: self.state(victim).state == "ready" and self.state(victim).pid != pid, 30, f"{victim} is not back"
        )
        await self.until(lambda: self.record.accepted() > before, 20, f"no order after the end of {victim} {point}")

    async def rest(self) -> None:
        """No more intents; what is open is cancelled; every permit comes to its end."""
        for name in STRATEGIES:
            await self.supervisor._stop(f"strategy-{name}")
        await asyncio.sleep(1)
        await operate.kill(self.deployment, "all", "end of the test")
        await self.until(lambda: not self.record.unfinished(), 30, f"unfinished: {self.record.unfinished()}")
        await asyncio.sleep(1)


async def crash(folder: Path, kills: int, seed: int) -> str:
    """The whole test; what came of it, in a sentence."""
    rng = random.Random(seed)
    plan = [*NAMED, *((rng.choice(VICTIMS), "") for _ in range(kills - len(NAMED)))][:kills]
    rng.shuffle(plan)
    stage = Stage(folder)
    context: ServiceContext | None = None
    try:
        await stage.supervisor.start()
        await operate.arm(stage.deployment, stage.keystore, Decimal(1))
        context = await reader(stage.deployment, stage.keystore, stage.record)
        await stage.until(lambda: stage.record.accepted() >= 5, 30, "nothing is traded")
        for victim, point in plan:
            await stage.kill(victim, point, rng.random() * 0.5)
            await asyncio.sleep(rng.random() * PAUSE_S)
        await stage.rest()
        ends = check(stage.deployment, stage.record)
        resumed(stage.deployment)
        assert ends["closed"] >= kills, ends
        return f"{len(stage.record.permits)} permits, {kills} kills: {dict(ends)}"
    finally:
        if context is not None:
            await context.close()
        await stage.supervisor.stop()


def explain(record: Record) -> str:
    denials = Counter(d.denials[0].code for d in record.decisions.values() if d.denials)
    ends = Counter((e.state, e.code) for e in record.events)
    return f"{len(record.intents)} intents, denied {dict(denials)}, events {dict(ends)}"


@pytest.mark.slow
@pytest.mark.timeout(1200)  # each kill waits until what it interrupted is settled
async def test_no_order_is_lost_doubled_or_unaccounted_whatever_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The supervisor gives up on what ends this often; the test is that it comes back every time.
    monkeypatch.setattr(supervisor, "MAX_RESTARTS", 10 * KILLS)
    monkeypatch.setattr(supervisor, "PAUSES_S", (0.0, 0.2))
    sys.stdout.write(await crash(tmp_path / "d", KILLS, seed=1) + "\n")
