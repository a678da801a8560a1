"""The worker as a process of its own, killed and paused on a real broker, against the detector run by hand."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tallystick.runtime.bus.received import Received
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.orders import Intent
from tallystick.schemas.security import Alert
from tallystick.streams.detectors.burst import EMPTY, Bucket, alert_of, observe
from tests.support.bus import TestBus, running_bus
from tests.support.runtime import Desk
from tests.support.streams import counts, intent, intents_of, rules

ROOT = Path(__file__).parents[2]
LEASE_S = 0.8


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[TestBus]:
    with running_bus(tmp_path) as running:
        yield running


class Worker:
    """The worker's process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    @classmethod
    async def start(cls, bus: TestBus, commit_s: float = 0.1) -> Worker:
        bus.certificate("streams")
        arguments = (bus.server.url, str(bus.folder / "pki"), str(commit_s), str(LEASE_S))
        return cls(
            await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "tests.support.streams",
                *arguments,
                cwd=ROOT,
                stdout=asyncio.subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"},
            )
        )

    async def says(self, *words: str) -> str:
        """Wait for a line that is one of `words` (the rest is log)."""
        assert self.process.stdout is not None
        while line := (await self.process.stdout.readline()).decode():
            if line.strip() in words:
                return line.strip()
        raise AssertionError(f"the worker ended with {await self.process.wait()} and never said {words}")

    async def kill(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()


def by_hand(messages: list[Received]) -> tuple[dict[str, int], dict[bytes, bytes]]:
    """What a detector sees that never crashed: intents of each strategy, and its alerts by id, encoded."""
    known, time = rules(10, 20), 0
    buckets: dict[tuple[str, int], Bucket] = {}
    alerts: dict[bytes, bytes] = {}
    totals: dict[str, int] = {}
    for received in messages:
        time = max(time, received.stored)
        strategy, second = received.subject.strategy, time // SECOND
        ids = tuple(e.id for e in received.events if isinstance(e, Intent))
        current = buckets.get((strategy, second), EMPTY)
        previous = buckets.get((strategy, second - 1), EMPTY)
        after = observe(known.of(strategy), previous, current, time, received.stream_seq, ids)
        if after.finding is not None and current.finding is None:
            _, alert = alert_of(strategy, known.of(strategy), after.finding)
            alerts[alert.id] = msgspec.msgpack.encode(alert)
        buckets[strategy, second] = after
        totals[strategy] = totals.get(strategy, 0) + len(ids)
    return totals, alerts


async def test_killed_again_and_again_it_counts_every_intent_once_and_loses_no_alert(desk: Desk, bus: TestBus) -> None:
    reader = await desk.context("gateway")
    messages: list[Received] = []
    alerts: list[Received] = []
    reader.subscribe("order.intent.>", messages.append, start="all")
    reader.subscribe("alert.>", alerts.append, start="all")
    reader.open()
    await reader.caught_up()
    alpha, beta = await desk.context("strategy-alpha"), await desk.context("strategy-beta")
    sending = True
    sent = {"alpha": 0, "beta": 0}

    async def runaway() -> None:
        while sending:
            await alpha.publish(intents_of("alpha"), *(intent(alpha) for _ in range(2)))
            sent["alpha"] += 2
            await asyncio.sleep(0.01)

    async def steady() -> None:
        while sending:
            await beta.publish(intents_of("beta"), intent(beta))
            sent["beta"] += 1
            await asyncio.sleep(0.12)

    worker = await Worker.start(bus)
    producers = [asyncio.create_task(runaway()), asyncio.create_task(steady())]
    try:
        for n in range(3):
            await worker.says("ready")
            # Into the middle of commits: some state is stored and some is not, some alerts are out and not committed.
            await asyncio.sleep(0.3 + random.Random(n).random())
            await worker.kill()
            worker = await Worker.start(bus)
        await worker.says("ready")
        sending = False
        await asyncio.gather(*producers)
        for _ in range(100):
            if await counts(bus) == sent:
                break
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.3)
    finally:
        await worker.kill()
    assert len(messages) == reader.position("ORDERS")
    totals, expected = by_hand(messages)
    assert totals == sent
    assert await counts(bus) == sent
    got: dict[bytes, bytes] = {}
    for received in alerts:
        for event in received.events:
            assert isinstance(event, Alert)
            encoded = msgspec.msgpack.encode(event)
            assert got.setdefault(event.id, encoded) == encoded
    assert got == expected
    assert len(expected) >= 3


async def test_a_paused_worker_that_wakes_up_after_its_successor_started_stops_by_itself(
    desk: Desk, bus: TestBus
) -> None:
    alpha = await desk.context("strategy-alpha")
    first = await Worker.start(bus)
    second: Worker | None = None
    try:
        await first.says("ready")
        for _ in range(10):
            await alpha.publish(intents_of("alpha"), intent(alpha))
        await asyncio.sleep(0.4)
        first.process.send_signal(signal.SIGSTOP)
        second = await Worker.start(bus)
        await second.says("ready")
        first.process.send_signal(signal.SIGCONT)
        # Both are connected for a moment, and both read.
        for _ in range(10):
            await alpha.publish(intents_of("alpha"), intent(alpha))
        assert await first.says("failed FENCED", "ready") == "failed FENCED"
        assert await first.process.wait() == 1
        for _ in range(10):
            await alpha.publish(intents_of("alpha"), intent(alpha))
        await asyncio.sleep(0.8)
        assert second.process.returncode is None
        assert await counts(bus) == {"alpha": 30}
    finally:
        await first.kill()
        if second is not None:
            await second.kill()
