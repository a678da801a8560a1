"""Contract with faust-streaming 0.15.3: the private places that the streams worker relies on, each by what it does."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import inspect
import logging
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import faust
import msgspec
import pytest
from faust.tables.table import Table
from faust.types.tuples import Message

from tallystick.schemas.errors import Unverified
from tallystick.streams.app import LogBridge, StreamsApp
from tallystick.streams.table import StateTable
from tests.support.log import Lines
from tests.support.waiting import until


class Value(msgspec.Struct, frozen=True, array_like=True):
    n: int = 0


NOTHING = Value()


class World:
    """An app, a channel and a windowed table; `apply` is the agent's step."""

    def __init__(self, size: int = 1, expires: int = 5) -> None:
        self.failures: list[BaseException] = []
        self.app = StreamsApp("contract", self.failures.append)
        self.channel = self.app.channel(maxsize=8)
        self.table = StateTable(self.app, name="t", default=lambda: NOTHING, partitions=1, value=Value)
        self.table.tumbling(size, expires=expires)
        self.seen: list[Any] = []
        self.apply: Callable[[Any], Awaitable[None]] = self.note
        self.app.serve(self.channel, self._step)

    async def _step(self, event: Any) -> None:
        await self.apply(event)
        self.seen.append(event.value)

    async def note(self, event: Any) -> None:
        pass

    async def count(self, event: Any) -> None:
        key = self.table.window_key(event.value, event.message.timestamp)
        self.table[key] = Value(self.table.data.get(key, NOTHING).n + 1)

    async def put(self, value: Any, seconds: int = 100) -> None:
        await self.channel.put(self.app.event(value, len(self.seen) + 1, seconds))

    async def settled(self, count: int) -> None:
        await until(lambda: len(self.seen) >= count, lambda: f"{len(self.seen)} of {count} events")


@contextlib.asynccontextmanager
async def in_world(**kw: int) -> AsyncIterator[World]:
    world = World(**kw)
    await world.app.start()
    world.app.flow_control.resume()
    try:
        yield world
    finally:
        await world.app.stop()


def test_the_pinned_version_is_installed() -> None:
    assert importlib.metadata.version("faust-streaming") == "0.15.3"


def test_what_is_overridden_is_still_there_with_the_same_arguments() -> None:
    for name, parameters in {
        "send_changelog": ["self", "partition", "key", "value", "key_serializer", "value_serializer"],
        "_verify_source_topic_partitions": ["self", "source_topic"],
        "_maybe_set_key_ttl": ["self", "key", "partition"],
        "_del_old_keys": ["self"],
        "_to_key": ["self", "k"],
    }.items():
        assert list(inspect.signature(getattr(Table, name)).parameters) == parameters, name
    assert "_create_directories" in dir(faust.App)
    assert list(inspect.signature(faust.App._on_agent_error).parameters) == ["self", "agent", "exc"]


async def test_a_change_inside_the_agent_reaches_the_table_and_is_marked() -> None:
    async with in_world() as world:
        world.apply = world.count
        for seconds in (100, 100, 101):
            await world.put("a", seconds)
        await world.settled(3)
        assert {key: value.n for key, value in world.table.data.items()} == {
            ("a", (100.0, 100.9)): 2,
            ("a", (101.0, 101.9)): 1,
        }
        assert list(world.table.dirty) == list(world.table.data)
        changes = world.table.take()
        assert [msgspec.msgpack.decode(value) for value in changes.values() if value] == [[2], [1]]
        assert world.table.take() == {}


async def test_a_change_outside_an_agent_is_refused() -> None:
    async with in_world() as world:
        with pytest.raises(TypeError, match="outside of stream iteration"):
            world.table["a", (1.0, 1.9)] = Value(1)


async def test_the_window_before_is_found_by_its_key() -> None:
    async with in_world() as world:
        before: list[int] = []

        async def step(event: Any) -> None:
            key = world.table.window_key("a", event.message.timestamp - 1)
            before.append(world.table.data.get(key, NOTHING).n)
            await world.count(event)

        world.apply = step
        for seconds in (100, 100, 101, 103):
            await world.put("a", seconds)
        await world.settled(4)
        assert before == [0, 0, 2, 0]


async def test_events_wait_until_flow_control_is_resumed_and_those_of_another_generation_are_skipped() -> None:
    world = World()
    await world.app.start()
    waiting = asyncio.create_task(world.put("a"))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    world.app.flow_control.resume()
    await waiting
    await world.settled(1)
    stranger = world.app.event("b", 2, 100)
    stranger.message.generation_id = 1
    await world.channel.put(stranger)
    await world.put("c")
    await world.settled(2)
    assert world.seen == ["a", "c"]
    await world.app.stop()


async def test_a_full_channel_holds_the_source_up() -> None:
    async with in_world() as world:
        gate = asyncio.Event()

        async def step(event: Any) -> None:
            await gate.wait()

        world.apply = step
        source = asyncio.create_task(asyncio.wait([asyncio.create_task(world.put(n)) for n in range(30)]))
        await asyncio.sleep(0.1)
        assert not source.done()
        gate.set()
        await source
        await world.settled(30)


async def test_an_exception_that_leaves_an_agent_is_handed_to_us_and_ends_the_agent() -> None:
    async with in_world() as world:

        async def step(event: Any) -> None:
            raise ZeroDivisionError("a defect")

        world.apply = step
        await world.put("poison")
        await until(lambda: world.failures, "the failure")
        assert [type(f) for f in world.failures] == [ZeroDivisionError]
        world.apply = world.note
        await world.put("next")
        await asyncio.sleep(0.1)
        # With Faust's own supervisor the agent would be started again, and the poison skipped.
        assert world.seen == []


async def test_windows_expire_by_stream_time_oldest_first_and_only_as_many_as_asked() -> None:
    async with in_world() as world:
        world.apply = world.count
        for seconds in (100, 101, 102):
            for name in "ab":
                await world.put(name, seconds)
        await world.settled(6)
        world.table.take()
        # The wall clock is decades ahead of these windows.
        await world.table._del_old_keys()
        assert len(world.table.data) == 6
        assert world.table.expire(102.0, 100) == 0
        assert world.table.expire(107.0, 3) == 3
        assert world.table.expire(107.0, 100) == 1
        assert sorted(world.table.data) == [("a", (102.0, 102.9)), ("b", (102.0, 102.9))]
        assert list(world.table.take().values()) == [None] * 4


async def test_the_expiry_heap_holds_a_window_once_however_often_it_changes() -> None:
    async with in_world() as world:
        world.apply = world.count
        for _ in range(50):
            await world.put("a", 100)
            await world.put("b", 100)
        await world.settled(100)
        assert [len(heap) for heap in world.table._partition_timestamps.values()] == [1]


async def test_restored_windows_are_the_same_keys_and_expire() -> None:
    async with in_world() as world:
        world.apply = world.count
        await world.put("a", 100)
        await world.settled(1)
        other = StateTable(world.app, name="t", default=lambda: NOTHING, partitions=1, value=Value)
        other.tumbling(1, expires=5)
        for (_, key), value in world.table.take().items():
            assert value is not None
            other.restore(key, value)
        assert dict(other.data) == dict(world.table.data)
        assert other.expire(200.0, 10) == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"", b"\x91\x01"),
        (b"\xc1", b"\x91\x01"),
        (msgspec.msgpack.encode("a"), b"\x91\x01"),
        (msgspec.msgpack.encode(("a", (1.0,))), b"\x91\x01"),
        (msgspec.msgpack.encode(("a", (1.0, 1.9))), b""),
        (msgspec.msgpack.encode(("a", (1.0, 1.9))), b"\x91\xa1x"),
    ],
)
async def test_state_that_this_table_cannot_have_written_is_refused(key: bytes, value: bytes) -> None:
    async with in_world() as world:
        with pytest.raises(Unverified, match="STATE"):
            world.table.restore(key, value)


async def test_nothing_is_configured_by_the_environment_and_no_folder_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_URL", "kafka://attacker:9092")
    monkeypatch.setenv("APP_STORE", "rocksdb://")
    monkeypatch.setenv("WEB_PORT", "1")
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.chdir(folder)

        async with in_world() as world:
            await world.put("a")
            await world.settled(1)
            assert [str(url) for url in world.app.conf.broker] == ["kafka://127.0.0.1:1"]
            assert str(world.app.conf.store) == "memory:"
        assert list(Path(folder).iterdir()) == []


async def test_no_sensor_is_called_for_each_event() -> None:
    async with in_world() as world:
        assert list(world.app.sensors) == []


async def test_an_event_has_whole_seconds_and_the_generation_of_an_app_that_never_rebalances() -> None:
    app = StreamsApp("contract", lambda _: None)
    event = app.event("a", 7, 100)
    assert isinstance(event.message, Message)
    assert (event.message.timestamp, event.message.offset, event.message.partition) == (100.0, 7, 0)
    assert event.message.generation_id == app.consumer_generation_id == 0


def test_warnings_of_faust_reach_the_components_log() -> None:
    log = Lines()
    bridge = LogBridge(log)
    bridge.attach()
    logging.getLogger("faust.agents").warning("something %s", "odd")
    logging.getLogger("faust.agents").info("nothing")
    bridge.detach()
    logging.getLogger("faust.agents").warning("later")
    assert [values["text"] for _, _, values in log.lines] == ["something odd"]
