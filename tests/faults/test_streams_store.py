"""The store on a real broker: every fault twice, not applied and applied with the answer lost; whole or not at all."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from tallystick.runtime.bus.link import Connection
from tallystick.runtime.deployment.service import ServiceContext
from tallystick.schemas.errors import ConfigError, Unverified
from tallystick.streams import store as module
from tallystick.streams.store import MAX_CHANGES, Fenced, JetStream, Lease, StateStore, StoreRefused
from tests.support.runtime import Desk


class Faulty(JetStream):
    """Loses a request before it is sent, or its answer after it took effect."""

    def __init__(self, context: ServiceContext) -> None:
        super().__init__(context.link, context.metrics, context.log)
        self.before = 0
        self.after = 0

    async def persist(self, attempt: Callable[[Connection], Any]) -> Any:
        async def faulty(connection: Connection) -> Any:
            if self.before:
                self.before -= 1
                raise TimeoutError("lost on the way there")
            answer = await attempt(connection)
            if self.after:
                self.after -= 1
                raise TimeoutError("lost on the way back")
            return answer

        return await super().persist(faulty)


class Shop:
    """Stores on one desk, each with a writer of its own, under a name that no other test uses."""

    names = 0

    def __init__(self, desk: Desk) -> None:
        Shop.names += 1
        self.name = f"test{Shop.names}"
        self.desk = desk

    async def store(self) -> tuple[StateStore, Faulty]:
        context = await self.desk.context("streams")
        jetstream = Faulty(context)
        store = StateStore(jetstream, self.name, context.boot, os.urandom)
        await store.take_over()
        return store, jetstream

    async def lease(self) -> tuple[Lease, Faulty]:
        context = await self.desk.context("streams")
        jetstream = Faulty(context)
        return Lease(jetstream, self.name, context.boot, time.time_ns), jetstream


@pytest.fixture
def shop(desk: Desk) -> Shop:
    return Shop(desk)


async def kept(store: StateStore) -> dict[tuple[str, bytes], bytes]:
    found: dict[tuple[str, bytes], bytes] = {}
    await store.load(lambda table, key, value: found.__setitem__((table, key), value))
    return found


def moved(store: StateStore, applied: int) -> Any:
    return msgspec.structs.replace(store.position, applied=applied, time=applied)


async def test_changes_and_position_are_stored_together_and_read_back(shop: Shop) -> None:
    store, _ = await shop.store()
    keys = {("t", bytes([0, 255, n % 256, n // 256])): b"v%d" % n for n in range(MAX_CHANGES)}
    await store.commit(moved(store, 1), keys)
    more = {("u", b"%d" % n): b"w" for n in range(600)}
    await store.commit(moved(store, 2), {**more, ("t", bytes([0, 255, 0, 0])): None})
    successor, _ = await shop.store()
    assert successor.position.applied == 2
    # More than one page of the server's batched read.
    expected = {**keys, **more}
    del expected["t", bytes([0, 255, 0, 0])]
    assert await kept(successor) == expected


async def test_more_than_an_atomic_batch_is_refused_before_it_is_sent(shop: Shop) -> None:
    store, _ = await shop.store()
    with pytest.raises(ConfigError, match="STATE_BATCH"):
        await store.commit(moved(store, 1), {("t", b"%d" % n): b"v" for n in range(MAX_CHANGES + 1)})
    assert await kept(store) == {}


@pytest.mark.parametrize("fault", ["before", "after"])
async def test_a_commit_whose_request_or_answer_is_lost_is_stored_once(shop: Shop, fault: str) -> None:
    store, jetstream = await shop.store()
    for applied in (1, 2, 3):
        setattr(jetstream, fault, 2)
        await store.commit(moved(store, applied), {("t", b"k"): b"%d" % applied})
        assert store.position.applied == applied
    assert await kept(store) == {("t", b"k"): b"3"}
    successor, _ = await shop.store()
    assert successor.position.applied == 3


async def test_a_batch_without_its_end_leaves_nothing(shop: Shop) -> None:
    store, _ = await shop.store()
    await store.commit(moved(store, 1), {("t", b"k"): b"old"})
    connection = await store._jetstream.link.connection()
    for number in (1, 2):
        headers = {"Nats-Batch-Id": "torn", "Nats-Batch-Sequence": str(number)}
        connection.wire.send(f"state.{shop.name}.table.t.a{number}", b"torn", headers=headers)
    await connection.wire.flush()
    assert await kept(store) == {("t", b"k"): b"old"}
    await store.commit(moved(store, 2), {("t", b"k"): b"new"})
    assert await kept(store) == {("t", b"k"): b"new"}


async def test_a_batch_with_a_gap_is_refused_whole(shop: Shop) -> None:
    store, _ = await shop.store()
    connection = await store._jetstream.link.connection()
    name = f"state.{shop.name}.table.t.a"
    connection.wire.send(name, b"1", headers={"Nats-Batch-Id": "gap", "Nats-Batch-Sequence": "1"})
    end = {"Nats-Batch-Id": "gap", "Nats-Batch-Sequence": "3", "Nats-Batch-Commit": "1"}
    answer = await connection.request(name, b"3", timeout_s=5, headers=end)
    with pytest.raises(StoreRefused):
        module.stored_seq(answer, name)
    assert await kept(store) == {}


async def test_whoever_was_taken_over_cannot_commit(shop: Shop) -> None:
    first, _ = await shop.store()
    await first.commit(moved(first, 1), {("t", b"k"): b"first"})
    second, _ = await shop.store()
    with pytest.raises(Fenced, match="FENCED"):
        await first.commit(moved(first, 2), {("t", b"k"): b"late", ("t", b"l"): b"late"})
    assert await kept(second) == {("t", b"k"): b"first"}
    await second.commit(moved(second, 2), {("t", b"k"): b"second"})
    with pytest.raises(Fenced):
        await first.commit(moved(first, 3), {})


async def test_a_takeover_between_a_commit_and_its_lost_answer_fences_the_first(shop: Shop) -> None:
    first, jetstream = await shop.store()
    persist = jetstream.persist
    second: list[StateStore] = []

    async def interrupted(attempt: Callable[[Connection], Any]) -> Any:
        if not second:
            await persist(attempt)
            second.append((await shop.store())[0])
        return await persist(attempt)

    jetstream.persist = interrupted  # type: ignore[method-assign]
    with pytest.raises(Fenced):
        await first.commit(moved(first, 1), {("t", b"k"): b"v"})
    # It was stored before the takeover, and the successor has it.
    assert second[0].position.applied == 1
    assert await kept(second[0]) == {("t", b"k"): b"v"}


async def test_keys_without_a_position_are_refused_and_a_reset_deletes_them_all(shop: Shop) -> None:
    store, _ = await shop.store()
    for page in range(3):
        await store.commit(moved(store, 1), {("t", b"%d-%d" % (page, n)): b"v" for n in range(900)})
    connection = await store._jetstream.link.connection()
    connection.wire.send(f"state.{shop.name}.position", b"")
    await connection.wire.flush()
    successor, _ = await shop.store()
    with pytest.raises(Unverified, match="2700 keys"):
        await kept(successor)
    await successor.reset()
    assert await kept(successor) == {}


async def test_a_lease_is_held_by_one_and_taken_at_once_when_given_back(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RENEW_S", 0.1)

    first, _ = await shop.lease()
    second, _ = await shop.lease()
    await first.take()
    keeping = asyncio.create_task(first.keep())
    with pytest.raises(ConfigError, match="LEASE_HELD"):
        await second.take()
    await first.release()
    begin = time.monotonic()
    await second.take()
    assert time.monotonic() - begin < 0.5
    await keeping


@pytest.mark.parametrize("fault", ["before", "after"])
async def test_a_renewal_that_is_lost_on_the_way_keeps_the_lease(
    shop: Shop, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RENEW_S", 0.05)

    lease, jetstream = await shop.lease()
    setattr(jetstream, fault, 1)
    await lease.take()
    keeping = asyncio.create_task(lease.keep())
    setattr(jetstream, fault, 1)
    await asyncio.sleep(0.6)  # a dozen renewals, the first of them with the fault
    assert not keeping.done()
    await lease.release()
    await keeping


async def test_a_dead_workers_lease_runs_out_whatever_its_clock_said(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LEASE_S", 0.4)
    monkeypatch.setattr(module, "RENEW_S", 0.1)

    dead, _ = await shop.lease()
    dead._clock = lambda: time.time_ns() + 10**15
    await dead.take()
    second, _ = await shop.lease()
    begin = time.monotonic()
    await second.take()
    assert 0.3 < time.monotonic() - begin < 2
    with pytest.raises(Fenced, match="FENCED"):
        await dead._write(1)
