"""A strategy that floods the broker is cut off, revoked and tripped at once; what the others ask for is answered in time.

What it left wrong, the operator corrects.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest

from tallystick.cli import operate
from tallystick.runtime.bus.received import Received
from tallystick.runtime.deployment.service import ServiceContext
from tallystick.schemas.bounds import MAX_INTENT_AGE_NS, SECOND
from tallystick.schemas.errors import ConfigError, Unverified
from tallystick.schemas.nats_jwt import SessionKey
from tallystick.schemas.orders import Corrected, Decision, Intent
from tallystick.schemas.security import BreakerHeartbeat, Notice
from tallystick.schemas.trust import Correction, open_correction
from tests.support.deployment import Running, make, running
from tests.support.waiting import until

XRP = "order.intent.alpha.paper.XRP-ETH"


@pytest.fixture
async def desk(tmp_path: Path, whole: None) -> AsyncIterator[Running]:
    made = make(tmp_path / "desk")
    async with running(*made, "breaker", "gateway") as desk:
        yield desk


class Beta:
    """Another strategy, which asks for an order ten times a second and waits for each answer."""

    def __init__(self, context: ServiceContext) -> None:
        self.context = context
        self.answers: list[tuple[float, Decision]] = []
        self.tripped: tuple[str, ...] = ()
        context.subscribe("order.decision.beta.>", self._on_decision)
        context.subscribe("control.breaker.>", self._on_breaker)
        self._asked: dict[bytes, float] = {}

    def _on_decision(self, received: Received) -> None:
        for event in received.events:
            if isinstance(event, Decision) and event.causes[0] in self._asked:
                self.answers.append((time.monotonic() - self._asked.pop(event.causes[0]), event))

    def _on_breaker(self, received: Received) -> None:
        for event in received.events:
            if isinstance(event, BreakerHeartbeat):
                self.tripped = tuple(trip.scope for trip in event.tripped)

    async def asks(self) -> None:
        while True:
            intent = self.context.new(Intent, side="buy", type="market", qty=Decimal(1))
            self._asked[intent.id] = time.monotonic()
            self.context.publish(XRP.replace("alpha", "beta"), intent)
            await asyncio.sleep(0.1)

    @property
    def waiting(self) -> int:
        return len(self._asked)


async def flood(context: ServiceContext, size: int) -> int:
    """Rubbish on its own subject, as fast as the broker takes it, until it is cut off; how many bytes were sent."""
    connection = await context.link.connection()
    sent, body = 0, os.urandom(size)
    try:
        while connection.alive and sent < 400_000_000:
            for _ in range(20):
                connection.wire.send(XRP, body)
                sent += size
            await connection.wire.drained()
            await asyncio.sleep(0)
    except OSError:
        return sent
    return sent


async def test_a_flooding_strategy_is_cut_off_and_tripped_and_the_others_are_answered_in_time(desk: Running) -> None:
    beta = Beta(await desk.context("strategy-beta"))
    beta.context.open()
    await beta.context.caught_up()
    notices: list[str] = []
    watcher = await desk.context("console")
    watcher.subscribe(
        "guard.authority", lambda r: notices.extend(e.code for e in r.events if isinstance(e, Notice)), start="new"
    )
    watcher.open()
    await watcher.caught_up()
    alpha = await desk.context("strategy-alpha")
    asking = asyncio.create_task(beta.asks())
    try:
        await until(lambda: len(beta.answers) >= 5, "answers before the flood", 20)
        sent = await flood(alpha, 36_000)
        assert sent < 400_000_000
        await until(lambda: beta.tripped == ("strategy-alpha",), "the trip of the flooder, and of nobody else", 10)
        await until(lambda: "QUOTA_EXCEEDED" in notices, "the notice of it", 10)
        during = len(beta.answers)
        await until(lambda: len(beta.answers) >= during + 10, "answers after the flood", 20)
    finally:
        asking.cancel()
    # A machine with other work may let one or the other age; a flood that is not cut off lets all of them.
    stale = [d for _, decision in beta.answers for d in decision.denials if d.code == "STALE_INTENT"]
    assert len(stale) * 5 <= len(beta.answers)
    delays = sorted(delay for delay, _ in beta.answers)
    assert delays[len(delays) // 2] < MAX_INTENT_AGE_NS / SECOND
    # It does not come back by itself, …
    with pytest.raises(Unverified, match="QUOTA_EXCEEDED"):
        await desk.setup("strategy-alpha").authority().obtain(SessionKey(os.urandom(32)), os.urandom(16))
    # … but when the operator says so.
    await operate.rearm(desk.deployment, desk.keystore, "strategy-alpha")
    await until(lambda: beta.tripped == (), "the re-arming", 10)
    again = await desk.context("strategy-alpha")
    await asyncio.wait_for(again.publish(XRP, again.new(Intent, side="buy", type="market", qty=Decimal(1))), 10)


async def test_the_operators_correction_is_an_event_that_all_can_read(desk: Running) -> None:
    seen: list[Received] = []
    reader = await desk.context("console")
    reader.subscribe("order.correction.>", seen.append)
    reader.open()
    await reader.caught_up()
    correction = Correction(
        deployment=desk.deployment.name,
        strategy="alpha",
        venue="paper",
        symbol="XRP/ETH",
        issued=time.time_ns(),
        reason="a false fill",
        was="500000",
        position="0",
    )
    await operate.correct(desk.deployment, desk.keystore, correction)
    await until(lambda: bool(seen), "the correction", 10)
    (event,) = seen[0].events
    assert isinstance(event, Corrected)
    assert open_correction(event.note, reader.trust, seen[0].subject) == correction
    # The gateway holds nothing, so it is content: no position there was ever wrong.
    with pytest.raises(ConfigError, match="CORRECTION_SCOPE"):
        await operate.correct(desk.deployment, desk.keystore, msgspec.structs.replace(correction, deployment="other"))
