"""Attacks on what a component keeps from one start to the next, on a real broker: each costs time to read, nothing else.

The component is the portfolio's session with a state of the test's own: the ids of the order events that it has read.
"""

from __future__ import annotations

import hmac
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tallystick.runtime.bus import snapshots
from tallystick.runtime.bus.received import Received
from tallystick.runtime.bus.snapshots import MAC_BYTES, MAGIC, Vault, snapshot_key
from tallystick.runtime.deployment.service import ServiceContext
from tallystick.schemas.orders import OrderEvent
from tallystick.schemas.security import DeadLetter, Notice
from tests.support.bus import TestBus
from tests.support.runtime import Desk
from tests.support.waiting import until

WHERE = "order.event.alpha.paper.XRP-ETH"
KEY = snapshot_key(b"passphrase", "test", "portfolio")


class Ledger:
    """The ids of all order events, in order; `read` of them came from the bus in this life."""

    version = 1
    tables: Mapping[str, Any] = {"ids": bytes}

    def __init__(self) -> None:
        self.ids: list[bytes] = []
        self.read = 0

    def on_event(self, received: Received) -> None:
        self.ids += [event.id for event in received.events]
        self.read += len(received.events)

    def settled(self, _: int) -> bool:
        return True

    def snapshot(self) -> Mapping[str, Iterable[Any]]:
        return {"ids": list(self.ids)}

    def restore(self, tables: Mapping[str, list[Any]]) -> None:
        self.ids += tables["ids"]


class Life:
    """One process's life: from its start to its clean end, when a snapshot is written."""

    def __init__(self, desk: Desk, vault: Vault | None, ledger: Ledger | None = None) -> None:
        self.desk = desk
        self.vault = vault
        self.ledger = ledger or Ledger()
        self.ctx: ServiceContext | None = None

    async def __aenter__(self) -> Ledger:
        self.ctx = ctx = await self.desk.context("portfolio", vault=self.vault)
        ctx.subscribe("order.event.>", self.ledger.on_event, start="all")
        ctx.keep("ORDERS", self.ledger)
        await ctx.resume()
        ctx.open()
        await ctx.caught_up()
        return self.ledger

    async def __aexit__(self, *_: object) -> None:
        assert self.ctx is not None
        self.desk.contexts.remove(self.ctx)
        await self.ctx.close()


class Told:
    """What portfolio told security people; orders in execution's name."""

    def __init__(self, desk: Desk, execution: ServiceContext) -> None:
        self.desk = desk
        self.execution = execution
        self.codes: list[str] = []
        self.ids: list[bytes] = []

    def note(self, received: Received) -> None:
        self.codes += [event.code for event in received.events if isinstance(event, Notice | DeadLetter)]

    async def say(self, count: int = 1) -> None:
        """So many order events, stored one by one."""
        for _ in range(count):
            event = self.execution.new(
                OrderEvent, intent_id=bytes(16), decision_id=bytes(16), client_order_id="x", state="accepted"
            )
            self.ids.append(event.id)
            await self.execution.publish(WHERE, event)


@pytest.fixture
async def told(desk: Desk) -> Told:
    return await listening(desk)


async def listening(desk: Desk) -> Told:
    made = Told(desk, await desk.context("execution"))
    audit = await desk.context("audit")
    audit.subscribe(("guard.portfolio", "dead.portfolio"), made.note)
    audit.open()
    await audit.caught_up()
    async with Life(desk, None) as ledger:
        made.ids = list(ledger.ids)  # of the tests before, on the same broker
    return made


async def test_a_start_reads_what_came_since_and_no_more(told: Told, tmp_path: Path) -> None:
    vault = Vault(tmp_path, KEY)
    await told.say(5)
    async with Life(told.desk, vault) as ledger:
        assert ledger.read == len(told.ids)
    await told.say(2)
    async with Life(told.desk, vault) as ledger:
        assert (ledger.ids, ledger.read) == (told.ids, 2)
    async with Life(told.desk, vault) as ledger:
        assert (ledger.ids, ledger.read) == (told.ids, 0)
        await told.say()
        await until(lambda: ledger.read == 1, "what is said now")
    assert told.codes == []
    assert (tmp_path / "ORDERS.snapshot").stat().st_mode & 0o777 == 0o600


async def test_a_killed_process_reads_at_most_what_came_since_the_last_of_its_snapshots(
    told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "EVERY", 4)
    vault, life = Vault(tmp_path, KEY), Life(told.desk, Vault(tmp_path, KEY))
    ledger = await life.__aenter__()
    assert life.ctx is not None
    await told.say(30)
    await until(lambda: ledger.ids == told.ids, "all")
    await until(lambda: life.ctx and life.ctx.metrics.snapshot().get("snapshots", 0) >= 2, "its snapshots")
    # kill -9: nothing is closed.
    for reader in life.ctx._readers.values():
        await reader.kill()
    async with Life(told.desk, vault) as after:
        assert after.ids == told.ids
        assert after.read < len(told.ids)


def damaged() -> list[tuple[str, Callable[[bytes], bytes]]]:
    def flip(at: int) -> Callable[[bytes], bytes]:
        return lambda data: data[:at] + bytes((data[at] ^ 1,)) + data[at:][1:]

    return [
        *((f"bit {at}", flip(at)) for at in (0, len(MAGIC), len(MAGIC) + 20, 120, 200, -MAC_BYTES - 1, -1)),
        *((f"cut to {size}", lambda data, size=size: data[:size]) for size in (0, 5, len(MAGIC), 100, -MAC_BYTES, -1)),
        ("longer", lambda data: data + b"\x00"),
        ("twice", lambda data: data + data),
        ("sealed by nobody", lambda data: data[:-MAC_BYTES] + bytes(MAC_BYTES)),
        ("sealed by another component", lambda data: resealed(data, snapshot_key(b"passphrase", "test", "gateway"))),
        ("sealed by another deployment", lambda data: resealed(data, snapshot_key(b"passphrase", "tset", "portfolio"))),
    ]


def resealed(data: bytes, key: bytes) -> bytes:
    return data[:-MAC_BYTES] + hmac.digest(key, data[:-MAC_BYTES], "sha256")


async def test_whatever_is_changed_in_it_the_whole_stream_is_read_and_people_are_told(
    told: Told, tmp_path: Path
) -> None:
    vault, file = Vault(tmp_path, KEY), tmp_path / "ORDERS.snapshot"
    await told.say(3)
    async with Life(told.desk, vault):
        pass
    genuine = file.read_bytes()
    for name, damage in damaged():
        file.write_bytes(damage(genuine))
        told.codes.clear()
        async with Life(told.desk, vault) as ledger:
            assert (ledger.ids, ledger.read) == (told.ids, len(told.ids)), name
            await until(lambda: told.codes, "the notice")
        assert told.codes == ["SNAPSHOT_SEAL"], name
        assert len(file.read_bytes()) == len(genuine), "written anew"


@pytest.mark.parametrize("kind", ["fifo", "link", "folder", "open to others"])
async def test_what_is_no_file_of_its_own_is_neither_followed_nor_waited_for(
    told: Told, tmp_path: Path, kind: str
) -> None:
    vault, file = Vault(tmp_path, KEY), tmp_path / "ORDERS.snapshot"
    await told.say()
    async with Life(told.desk, vault):
        pass
    elsewhere = shutil.move(file, tmp_path / "elsewhere")
    if kind == "fifo":
        os.mkfifo(file, 0o600)
    elif kind == "link":
        file.symlink_to(elsewhere)
    elif kind == "folder":
        file.mkdir()
    else:
        shutil.copy(elsewhere, file)
        file.chmod(0o644)
    async with Life(told.desk, vault) as ledger:
        assert ledger.read == len(told.ids)
        await until(lambda: told.codes, "the notice")
    assert told.codes == ["SNAPSHOT_FILE"]


async def test_an_older_one_that_is_put_back_gives_the_same_state(told: Told, tmp_path: Path) -> None:
    vault, file = Vault(tmp_path, KEY), tmp_path / "ORDERS.snapshot"
    kept = []
    for _ in range(3):
        await told.say(2)
        async with Life(told.desk, vault):
            pass
        kept.append(file.read_bytes())
    file.write_bytes(kept[0])
    async with Life(told.desk, vault) as ledger:
        assert (ledger.ids, ledger.read) == (told.ids, 4)
    assert told.codes == []


async def test_what_another_code_or_trust_root_judged_is_judged_again(told: Told, tmp_path: Path) -> None:
    vault, desk = Vault(tmp_path, KEY), told.desk
    await told.say(2)

    async def reads_all(ledger: Ledger | None = None) -> bool:
        async with Life(desk, vault, ledger) as made:
            assert made.ids == told.ids
            return made.read == len(told.ids)

    assert await reads_all()
    assert not await reads_all()
    other = Ledger()
    other.version = 2
    assert await reads_all(other)
    assert await reads_all(), "back again"
    root, desk.trust = desk.trust, msgspec.structs.replace(desk.trust, number=desk.trust.number + 1)
    assert await reads_all()
    desk.trust = root
    assert await reads_all()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tallystick.runtime.bus.context.__version__", "0.0.9")
        assert await reads_all()
    assert told.codes == [], "nothing is wrong"


async def test_a_snapshot_of_another_component_or_deployment_is_refused_whoever_sealed_it(
    told: Told, tmp_path: Path
) -> None:
    vault, desk = Vault(tmp_path, KEY), told.desk
    await told.say(2)
    ctx = await desk.context("gateway", vault=vault)
    ledger = Ledger()
    ctx.subscribe("order.event.>", ledger.on_event, start="all")
    ctx.keep("ORDERS", ledger)
    ctx.open()
    await ctx.caught_up()
    desk.contexts.remove(ctx)
    await ctx.close()
    async with Life(desk, vault) as made:
        assert made.read == len(told.ids)
        await until(lambda: told.codes, "the notice")
    assert told.codes == ["SNAPSHOT_FOREIGN"]


async def test_what_the_broker_plays_back_is_refused_across_a_start(told: Told, bus: TestBus, tmp_path: Path) -> None:
    """As without one: what was read before the snapshot has used its positions up."""
    vault = Vault(tmp_path, KEY)
    await told.say(2)
    async with bus.connected("root") as (root,):
        request = msgspec.json.encode({"last_by_subj": WHERE})
        answer = msgspec.json.decode((await root.request("$JS.API.STREAM.MSG.GET.ORDERS", request)).data)
        payload = msgspec.convert(answer["message"]["data"], bytes)
        async with Life(told.desk, vault):
            pass
        await root.publish(WHERE, payload)
        await root.flush()
        async with Life(told.desk, vault) as ledger:
            assert (ledger.ids, ledger.read) == (told.ids, 0)
            await until(lambda: "REPLAY" in told.codes, "the dead letter")
        await told.say()
        async with Life(told.desk, vault) as ledger:
            assert ledger.ids == told.ids


async def on_another_bus(folder: Path, vault: Vault, count: int) -> tuple[bool, list[str]]:
    """What a component finds on a bus whose ORDERS holds `count` events: whether it read them all, what it told."""
    bus = TestBus(folder)
    bus.server.start()
    try:
        await bus.provision()
        async with Desk(bus) as desk:
            desk.trust = msgspec.structs.replace(desk.trust, issued=1, expires=2**62)
            told = await listening(desk)
            await told.say(count)
            async with Life(desk, vault) as ledger:
                assert ledger.ids == told.ids
                all_read = ledger.read == len(told.ids)
                if all_read and list(vault.folder.glob("*.snapshot")):
                    await until(lambda: told.codes, "the notice")
            return all_read, told.codes
    finally:
        bus.server.stop()


@pytest.mark.parametrize("count", [0, 2, 4, 9])
async def test_a_stream_that_was_cut_or_made_anew_behind_it_is_found_out(tmp_path: Path, count: int) -> None:
    vault = Vault(tmp_path / "state", KEY)
    vault.folder.mkdir()
    assert (await on_another_bus(tmp_path / "one", vault, 4)) == (True, [])
    all_read, codes = await on_another_bus(tmp_path / "two", vault, count)
    assert all_read
    assert codes == ["SNAPSHOT_POSITION"]


async def test_a_handler_that_failed_leaves_no_snapshot_of_half_a_message(told: Told, tmp_path: Path) -> None:
    class Failing(Ledger):
        def on_event(self, received: Received) -> None:
            super().on_event(received)
            raise ZeroDivisionError

    await told.say()
    life = Life(told.desk, Vault(tmp_path, KEY), Failing())
    life.ctx = ctx = await told.desk.context("portfolio", vault=life.vault)
    ctx.subscribe("order.event.>", life.ledger.on_event, start="all")
    ctx.keep("ORDERS", life.ledger)
    ctx.open()
    with pytest.raises(ZeroDivisionError):
        await ctx.failed()
    told.desk.contexts.remove(ctx)
    await ctx.close()
    assert list(tmp_path.glob("*.snapshot")) == []


@pytest.mark.parametrize(
    "text",
    ["", "{}", '{"ORDERS":1}', '{"ORDERS":1000000000000}', '{"ORDERS":-5}', '{"ORDERS":"x"}', "\x00" * 9_999, None],
)
async def test_a_false_end_of_a_stream_costs_time_alone(told: Told, tmp_path: Path, text: str | None) -> None:
    vault = Vault(tmp_path / "state", KEY)
    await told.say(12)
    for life in range(2):
        ledger = Ledger()
        ctx = await told.desk.context("portfolio", vault=vault)
        ctx.subscribe("order.event.>", ledger.on_event, start=5)
        ctx.open()
        await ctx.caught_up()
        assert ledger.ids == told.ids[-5:]
        told.desk.contexts.remove(ctx)
        await ctx.close()
        ends = vault.folder / "ends.json"
        assert msgspec.json.decode(ends.read_bytes())["ORDERS"] >= 12, life
        if text is None:
            ends.unlink()
            os.mkfifo(ends, 0o600)
        else:
            ends.write_text(text)


WRITER = """
import asyncio, sys
from pathlib import Path
from tallystick.runtime.bus.snapshots import Snapshots
made = Snapshots.__new__(Snapshots)
made._file, made._key = Path(sys.argv[1]), bytes(32)
number = 0
while True:
    number = (number + 1) % 256
    made._store(bytearray(b"tallystick snapshot v1\\n\\n" + bytes((number,)) * 500_000))
    print(flush=True)
"""


def test_kill_9_while_it_is_written_leaves_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    file = tmp_path / "ORDERS.snapshot"
    for number in range(5):
        child = subprocess.Popen([sys.executable, "-c", WRITER, file], stdout=subprocess.PIPE)
        try:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(0.003 * number)
        finally:
            child.kill()
            child.communicate()
        body = snapshots._unsealed(file, bytes(32))[len(MAGIC) :]
        assert body == body[:1] * 500_000
