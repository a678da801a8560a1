"""The streams worker on a real broker: exact windows, alerts, what survives a restart, what stops it."""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tallystick.runtime.bus.received import Received
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.errors import ConfigError, Malformed
from tallystick.schemas.orders import CancelIntent
from tallystick.schemas.security import Alert
from tallystick.streams import main, store
from tallystick.streams.detectors import burst
from tallystick.streams.main import Streams
from tallystick.streams.store import Fenced
from tests.support.bus import TestBus, running_bus
from tests.support.runtime import Desk
from tests.support.streams import (
    alerts_at,
    all_of,
    begin,
    counts,
    crash,
    intent,
    intents_of,
    leave,
    rules,
    same,
    stored_windows,
)
from tests.support.waiting import until

ALPHA, BETA = intents_of("alpha"), intents_of("beta")
NEVER = rules(10_000, 10_000)
LOW = rules(1, 4)  # more than 5 in a second


@pytest.fixture(autouse=True)
def _short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "LEASE_S", 0.6)
    monkeypatch.setattr(store, "RENEW_S", 0.15)


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[TestBus]:
    with running_bus(tmp_path) as running:
        yield running


async def test_a_runaway_strategy_raises_one_high_alert_for_its_own_scope(desk: Desk) -> None:
    alerts = await alerts_at(desk)
    context = await desk.context("streams")
    worker = await begin(context, Streams(rules=LOW))
    alpha, beta = await desk.context("strategy-alpha"), await desk.context("strategy-beta")
    last = 0
    for _ in range(5):
        await alpha.publish(ALPHA, intent(alpha))
        last = await beta.publish(BETA, intent(beta))
    assert not await all_of(alerts, context, worker, last)
    sent = [intent(alpha) for _ in range(6)]
    for one in sent:
        last = await alpha.publish(ALPHA, one)
    alerts = await all_of(alerts, context, worker, last)
    assert [a.subject.text for a in alerts] == ["alert.burst.high"]
    assert alerts[0].live
    assert alerts[0].credential.component == "streams"
    (alert,) = alerts[0].events
    assert isinstance(alert, Alert)
    assert (alert.code, alert.scope, alert.limit) == ("INTENT_BURST", "strategy-alpha", Decimal(5))
    assert alert.value == 6
    assert alert.causes[0] in {one.id for one in sent}


async def test_cancels_are_not_counted(desk: Desk, bus: TestBus) -> None:
    alerts = await alerts_at(desk)
    context = await desk.context("streams")
    worker = await begin(context, Streams(rules=LOW))
    alpha = await desk.context("strategy-alpha")
    first = intent(alpha)
    await alpha.publish(ALPHA, first)
    last = await alpha.publish(ALPHA, *[alpha.new(CancelIntent, intent_id=first.id) for _ in range(50)])
    assert not await all_of(alerts, context, worker, last)
    await worker._commit()
    assert await counts(bus) == {"alpha": 1}


async def test_while_a_burst_lasts_there_is_one_alert_a_window(desk: Desk) -> None:
    alerts = await alerts_at(desk)
    context = await desk.context("streams")
    worker = await begin(context, Streams(rules=LOW))
    alpha = await desk.context("strategy-alpha")
    last, end = 0, time.monotonic() + 1.7  # windows are of the intents' own seconds
    while time.monotonic() < end:
        last = await alpha.publish(ALPHA, intent(alpha))
        await asyncio.sleep(0.005)
    times = [event.ts for event in same(await all_of(alerts, context, worker, last)).values()]
    assert len(times) == 2
    assert all(b - a >= SECOND for a, b in itertools.pairwise(times))


async def test_a_worker_that_stops_and_starts_counts_each_intent_once(desk: Desk, bus: TestBus) -> None:
    alpha = await desk.context("strategy-alpha")
    for round_ in range(3):
        for _ in range(50):
            await alpha.publish(ALPHA, intent(alpha))
        context = await desk.context("streams")
        worker = await begin(context, Streams(rules=NEVER))
        for _ in range(50):
            await alpha.publish(ALPHA, intent(alpha))
        if round_ != 1:
            await asyncio.sleep(0.1)
        await worker._ctx.release()
        await context.close()
    context = await desk.context("streams")
    worker = await begin(context, Streams(rules=NEVER))
    assert await counts(bus) == {"alpha": 300}


async def test_an_alert_whose_state_was_not_committed_is_found_again_as_the_same_event(
    desk: Desk, bus: TestBus
) -> None:
    alerts = await alerts_at(desk)
    context = await desk.context("streams")
    await begin(context, Streams(rules=LOW, commit_s=3600))
    alpha = await desk.context("strategy-alpha")
    for _ in range(8):
        await alpha.publish(ALPHA, intent(alpha))
    await until(lambda: len(alerts) == 1, "the first alert")
    await crash(desk, context)
    await begin(await desk.context("streams"), Streams(rules=LOW))
    await until(lambda: len(alerts) == 2, "the alert again")
    await asyncio.sleep(0.2)
    assert len(same(alerts)) == 1
    assert await counts(bus) == {"alpha": 8}


async def test_an_alert_committed_but_never_durable_is_published_after_the_crash(desk: Desk) -> None:
    alerts = await alerts_at(desk)
    context = await desk.context("streams")
    worker = await begin(context, Streams(rules=LOW))
    # The broker never answers the publish: the alert is committed as found, and not durable.
    published: list[Any] = []

    def swallow(to: Any, *events: Any) -> asyncio.Future[int]:
        published.append((to, events))
        return asyncio.get_running_loop().create_future()

    context.publish = swallow  # type: ignore[method-assign]
    alpha = await desk.context("strategy-alpha")
    for _ in range(8):
        await alpha.publish(ALPHA, intent(alpha))
    await until(lambda: len(published) == 1, "the finding")
    before = context.metrics.snapshot()["state_commits"]
    await until(lambda: context.metrics.snapshot()["state_commits"] > before, "its commit")
    await crash(desk, context)
    assert not alerts
    assert worker._applied == 8
    await begin(await desk.context("streams"), Streams(rules=LOW))
    await until(lambda: len(alerts) == 1, "the alert")
    assert msgspec.msgpack.encode(alerts[0].events[0]) == msgspec.msgpack.encode(published[0][1][0])


async def test_history_without_state_is_counted_and_causes_nothing(
    desk: Desk, bus: TestBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "FRESH_NS", 0)

    alerts = await alerts_at(desk)
    alpha = await desk.context("strategy-alpha")
    for _ in range(20):
        await alpha.publish(ALPHA, intent(alpha))
    context = await desk.context("streams")
    worker = await begin(context, Streams(rules=LOW))
    assert not await all_of(alerts, context, worker, 0)
    alerts.clear()
    await worker._commit()
    assert await counts(bus) == {"alpha": 20}
    for _ in range(20):
        await alpha.publish(ALPHA, intent(alpha))
        await asyncio.sleep(0.06)
    await until(lambda: bool(alerts), "an alert of what came afterwards")


async def test_what_is_found_while_the_worker_is_down_is_published_when_it_is_back(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "FRESH_NS", 0)

    alerts = await alerts_at(desk)
    context = await desk.context("streams")
    worker = await begin(context, Streams(rules=LOW))
    await worker._ctx.release()
    await context.close()
    alpha = await desk.context("strategy-alpha")
    for _ in range(20):
        await alpha.publish(ALPHA, intent(alpha))
    context = await desk.context("streams")
    await begin(context, Streams(rules=LOW))
    await until(lambda: len(alerts) == 1, "the alert")


async def test_a_rebuild_from_the_stream_gives_the_same_state_bit_for_bit(desk: Desk, bus: TestBus) -> None:
    alpha, beta = await desk.context("strategy-alpha"), await desk.context("strategy-beta")
    context = await desk.context("streams")
    worker = await begin(context, Streams(rules=LOW))
    last = 0
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        burst_ = alpha.publish(ALPHA, *(intent(alpha) for _ in range(7)))
        last = max(await beta.publish(BETA, intent(beta)), await burst_)
        await asyncio.sleep(0.02)
    await until(lambda: worker._applied == last, "everything applied")
    await leave(context, worker)
    online = await stored_windows(bus)
    await purge_state(bus)
    context = await desk.context("streams")
    worker = await begin(context, Streams(rules=LOW))
    await leave(context, worker)
    assert await stored_windows(bus) == online
    assert {strategy for (strategy, _), bucket in online.items() if bucket.finding} == {"alpha", "beta"}


async def purge_state(bus: TestBus) -> None:
    """Everything in STATE is deleted, as if the store had been lost."""
    client = await bus.connect_as("streams")
    try:
        request = msgspec.json.encode({"subjects_filter": ">"})
        info = msgspec.json.decode((await client.request("$JS.API.STREAM.INFO.STATE", request)).data)
        for name in info["state"]["subjects"]:
            await client.publish(name, b"", headers={"Nats-TTL": "1s"})
        await client.flush()
        await asyncio.sleep(1.6)  # tombstones live for a second
    finally:
        await client.close()


async def test_windows_expire_by_stream_time_and_restored_ones_too(desk: Desk, bus: TestBus) -> None:
    alpha = await desk.context("strategy-alpha")
    context = await desk.context("streams")
    worker = await begin(context, Streams(rules=NEVER, expires_s=1))
    await alpha.publish(ALPHA, intent(alpha))
    await until(lambda: worker._applied == 1, "the intent")
    await worker._ctx.release()
    await context.close()
    assert len(await stored_windows(bus)) == 1
    await asyncio.sleep(2.1)  # the window is over by the clock
    context = await desk.context("streams")
    worker = await begin(context, Streams(rules=NEVER, expires_s=1))
    await asyncio.sleep(0.5)
    # Nobody sent anything: stream time stands still, whatever the clock says.
    assert len(await stored_windows(bus)) == 1
    await alpha.publish(ALPHA, intent(alpha))
    await until(lambda: context.metrics.snapshot().get("windows_expired", 0) == 1, "the expiry")
    await asyncio.sleep(0.4)
    assert [bucket.count for bucket in (await stored_windows(bus)).values()] == [1]
    await asyncio.sleep(1.5)  # tombstones live for a second
    root = await bus.connect_as("streams")
    try:
        # The tombstone is gone as well: STATE does not grow.
        info = msgspec.json.decode((await root.request("$JS.API.STREAM.INFO.STATE")).data)
        assert info["state"]["messages"] == 2
    finally:
        await root.close()


async def test_a_defect_in_the_detector_stops_the_worker_and_nothing_after_it_is_committed(
    desk: Desk, bus: TestBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = 0
    observe = burst.observe

    def broken(*arguments: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == 4:
            raise ZeroDivisionError("a defect")
        return observe(*arguments)

    context = await desk.context("streams")
    await begin(context, Streams(rules=NEVER))
    alpha = await desk.context("strategy-alpha")
    monkeypatch.setattr(main, "observe", broken)
    for _ in range(10):
        await alpha.publish(ALPHA, intent(alpha))
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(context.failed(), 20)
    await asyncio.sleep(0.5)
    assert seen == 4
    assert (await counts(bus)).get("alpha", 0) <= 3
    # The successor begins at the message that broke this one, and counts all ten.
    monkeypatch.setattr(main, "observe", observe)
    await crash(desk, context)
    worker = await begin(await desk.context("streams"), Streams(rules=NEVER))
    await worker._commit()
    assert await counts(bus) == {"alpha": 10}


async def test_a_message_that_cannot_be_detected_upon_is_dead_lettered_and_passed_over(
    desk: Desk, bus: TestBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    observe = burst.observe
    seen = 0

    def refusing(*arguments: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == 2:
            raise Malformed("POISON", "cannot be detected upon")
        return observe(*arguments)

    monkeypatch.setattr(main, "observe", refusing)

    audit = await desk.context("audit")
    letters: list[Received] = []
    audit.subscribe("dead.streams", letters.append)
    audit.open()
    await audit.caught_up("GUARD")
    worker = await begin(await desk.context("streams"), Streams(rules=NEVER))
    alpha = await desk.context("strategy-alpha")
    last = 0
    for _ in range(5):
        last = await alpha.publish(ALPHA, intent(alpha))
    await until(lambda: bool(letters) and worker._applied >= last, "the dead letter, and all applied")
    await worker._commit()
    assert letters[0].events[0].code == "POISON"  # type: ignore[attr-defined]
    assert await counts(bus) == {"alpha": 4}


async def test_an_alert_that_cannot_be_published_stops_the_worker(desk: Desk) -> None:
    context = await desk.context("streams")
    await begin(context, Streams(rules=LOW))

    def refuse(to: Any, *events: Any) -> asyncio.Future[int]:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        future.set_exception(ConnectionError("not stored"))
        return future

    context.publish = refuse  # type: ignore[method-assign]
    alpha = await desk.context("strategy-alpha")
    for _ in range(8):
        await alpha.publish(ALPHA, intent(alpha))
    with pytest.raises(ConnectionError):
        await asyncio.wait_for(context.failed(), 20)


async def test_a_second_worker_does_not_start_beside_a_live_one(desk: Desk) -> None:
    await begin(await desk.context("streams"), Streams(rules=NEVER))
    second = await desk.context("streams", boot=os.urandom(16))
    with pytest.raises(ConfigError, match="LEASE_HELD"):
        await Streams(rules=NEVER).start(second)


async def test_a_worker_that_was_taken_over_stops_at_its_next_commit_and_counts_nothing_twice(
    desk: Desk, bus: TestBus
) -> None:
    first = await desk.context("streams")
    paused = Streams(rules=NEVER)
    await begin(first, paused)
    # A pause as long as the lease: it misses its renewals, and what its successor reads.
    paused._lease._released = True
    await first._readers["ORDERS"].stop()
    second = await desk.context("streams", boot=os.urandom(16))
    await begin(second, Streams(rules=NEVER))
    watcher, seen = await desk.context("gateway"), list[Received]()
    watcher.subscribe("order.intent.>", seen.append)
    watcher.open()
    await watcher.caught_up()
    alpha = await desk.context("strategy-alpha")
    for _ in range(10):
        await alpha.publish(ALPHA, intent(alpha))
    await until(lambda: len(seen) == 10, "the intents")
    # It wakes up with all of them in its hands.
    with pytest.raises(Fenced, match="FENCED"):
        for received in seen:
            await (paused._on_message(received) or asyncio.sleep(0))
        await asyncio.wait_for(first.failed(), 10)
    await asyncio.sleep(0.5)
    assert paused._failed.done()
    assert await counts(bus) == {"alpha": 10}


async def test_state_that_cannot_be_read_is_reported_deleted_and_rebuilt(desk: Desk, bus: TestBus) -> None:
    alpha = await desk.context("strategy-alpha")
    for _ in range(9):
        await alpha.publish(ALPHA, intent(alpha))
    context = await desk.context("streams")
    worker = await begin(context, Streams(rules=NEVER))
    for name, payload in (
        ("state.orders.table.intents.AAAA", b"\x01"),
        ("state.orders.table.intents.!", b"\x01"),
        ("state.orders.table.elsewhere.AAAA", b"\x01"),
        ("state.orders.what", b"\x01"),
        ("state.orders.position", b"\x01"),
        ("state.orders.position", b""),
    ):
        await worker._ctx.release()
        await context.close()
        client = await bus.connect_as("streams")
        await client.publish(name, payload)
        await client.flush()
        await client.close()
        context = await desk.context("streams")
        worker = await begin(context, Streams(rules=NEVER))
        assert await counts(bus) == {"alpha": 9}, name
        assert context.metrics.snapshot()["notices"] == 1, name


async def test_more_changes_than_an_atomic_batch_holds_are_committed_sooner(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "FULL", 3)

    context = await desk.context("streams")
    await begin(context, Streams(rules=NEVER, commit_s=3600))
    before = context.metrics.snapshot()["state_commits"]
    alpha = await desk.context("strategy-alpha")
    beta = await desk.context("strategy-beta")
    end = time.monotonic() + 2.3
    while time.monotonic() < end:
        await alpha.publish(ALPHA, intent(alpha))
        await beta.publish(BETA, intent(beta))
        await asyncio.sleep(0.05)
    assert context.metrics.snapshot()["state_commits"] > before


async def test_told_to_stop_before_it_has_started_it_leaves_nothing_behind(desk: Desk) -> None:
    await begin(await desk.context("streams"), Streams(rules=NEVER))
    waiting = Streams(rules=NEVER)
    starting = asyncio.create_task(waiting.start(await desk.context("streams")))
    await asyncio.sleep(0.02)
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    await waiting._ctx.release()


@pytest.mark.slow
async def test_nothing_is_lost_or_counted_twice_through_renewals_and_a_kill_of_the_broker(
    desk: Desk, bus: TestBus
) -> None:
    context = await desk.context("streams", lifetime_s=5)
    worker = await begin(context, Streams(rules=NEVER, commit_s=0.02))
    alpha = await desk.context("strategy-alpha")
    sent, last, sending = 0, 0, True

    async def produce() -> None:
        nonlocal sent, last
        while sending:
            last = await alpha.publish(ALPHA, intent(alpha))
            sent += 1
            await asyncio.sleep(0.005)

    producing = asyncio.create_task(produce())
    await asyncio.sleep(3.5)  # beyond the first renewal, at 60 % of the lifetime
    await asyncio.to_thread(bus.server.stop)
    await asyncio.sleep(0.3)
    bus.server.start()  # not in a thread that ends with this loop: the broker would end with it
    await bus.provision()
    before = sent
    await until(lambda: sent > before + 50, "intents after the restart", 15)
    sending = False
    await producing
    await until(lambda: worker._applied == last, "all applied")
    await worker._ctx.release()
    assert await counts(bus) == {"alpha": sent}
    snapshot = context.metrics.snapshot()
    assert snapshot["renewals"] >= 1
    assert snapshot["reconnects"] >= 1
    assert snapshot.get("dead_letters", 0) == 0


async def test_faust_does_not_touch_print_signals_or_the_folder(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import signal

    here = tmp_path / "cwd"
    here.mkdir()
    monkeypatch.chdir(here)
    out, err, handler = sys.stdout, sys.stderr, signal.getsignal(signal.SIGTERM)

    context = await desk.context("streams")
    worker = await begin(context, Streams(rules=NEVER))
    assert (sys.stdout, sys.stderr, signal.getsignal(signal.SIGTERM)) == (out, err, handler)
    await worker._ctx.release()
    assert list(here.iterdir()) == []
