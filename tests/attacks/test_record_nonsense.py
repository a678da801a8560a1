"""A component that says nonsense of itself, or has others' messages stored elsewhere: the record stays what it is."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tallystick.components.audit import main, merge
from tallystick.components.audit.projector import Cut
from tallystick.record.manifest import Entry, read_manifest
from tallystick.record.verify import verify
from tallystick.runtime.bus.link import Outgoing
from tallystick.schemas.security import Head, Heartbeat, Notice
from tallystick.schemas.subjects import GUARD, MARKET, ORDERS, SIGNALS, STREAMS
from tests.integration.test_audit_process import Hall, trades
from tests.property.test_audit_log import judge
from tests.support.archive import Story, Vault
from tests.support.bus import TestBus, running_bus
from tests.support.runtime import Desk
from tests.support.waiting import until
from tests.support.world import seed


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path / "deployment")


@pytest.fixture
def story() -> Story:
    return Story()


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[TestBus]:
    with running_bus(tmp_path / "bus") as running:
        yield running


def head(stream: str, seq: int = 7) -> Head:
    return Head(stream=stream, seq=seq, hash=seed("invented"))


IMPOSSIBLE = {
    "a stream that is none": (head("NOWHERE"),),
    "a stream in which it publishes nothing": (head(MARKET),),
    "one stream twice": (head(ORDERS, 0), head(ORDERS, 1)),
    "a heartbeat that comes later": (head(GUARD, 10**9),),
    "thousands": tuple(head(f"X{i}") for i in range(700)),
}


@pytest.mark.parametrize("heads", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_heads_that_cannot_be_are_the_nonsense_of_who_states_them(
    vault: Vault, story: Story, heads: tuple[Head, ...]
) -> None:
    s = story.streams
    for _ in range(3):
        story.strategy.say(("guard.strategy-alpha", [s.new(Heartbeat, heads=heads)]))
    findings = [f for judged in vault.project(s.stored) for f in judged.findings]
    assert {(f.code, f.component, f.defect) for f in findings} == {("HEADS", "strategy-alpha", False)}
    assert all("strategy-alpha/" in f.text and "session " in f.text for f in findings)
    report = vault.verify()
    assert report.problems == []
    assert report.incidents == {"HEADS": 3}


def test_a_head_that_could_be_and_is_not_names_whose_it_is_and_hides_nobody_elses(vault: Vault, story: Story) -> None:
    s = story.streams
    # The strategy lies, and of market data the end is really missing.
    story.strategy.say(("guard.strategy-alpha", [s.new(Heartbeat, heads=(head(SIGNALS, 10**6), head(ORDERS, 10**6)))]))
    s.ticks(story.market, 1)
    kept = [m for m in s.stored if m.stream != MARKET] + [m for m in s.stored if m.stream == MARKET][:-2]
    story.market.heartbeat()
    vault.project([*kept, s.stored[-1]])
    dropped = [p.text for p in vault.verify().problems if p.code == "DROPPED"]
    assert len(dropped) == 3
    assert sum(text.startswith("strategy-alpha/") for text in dropped) == 2
    assert sum(text.startswith("market-data/") for text in dropped) == 1


def test_invented_heads_take_no_memory(story: Story) -> None:
    s = story.streams
    for number in range(200):
        story.strategy.say(
            ("guard.strategy-alpha", [s.new(Heartbeat, heads=tuple(head(f"X{number}-{i}") for i in range(500)))])
        )
    log = judge(s.stored)
    assert len(log.heads) <= len(STREAMS)
    assert len(log.dump()) < 200_000


def test_a_message_that_is_stored_where_it_does_not_belong_is_kept_refused_and_in_nobodys_way(
    vault: Vault, story: Story
) -> None:
    s = story.streams
    fill = next(m for m in s.stored if m.subject.startswith("fill."))
    s.store(fill.subject, fill.payload, stream=GUARD)
    s.store("guard.strategy-alpha", b'{"type":"io.nats.jetstream.api.v1.consumer_reset_response"}')
    story.strategy.heartbeat()
    judged = vault.project(s.stored)
    findings = {f.code: f for j in judged for f in j.findings}
    assert findings["STREAM"].component == "portfolio"
    assert "somebody had stored here" in findings["STREAM"].text
    assert findings["PAYLOAD"].component == "strategy-alpha"
    report = vault.verify()
    assert report.problems == []
    assert report.incidents == {"STREAM": 1, "PAYLOAD": 1}
    assert report.status["refused"] == 2


async def test_an_observer_cannot_spoil_a_clean_record(bus: TestBus, desk: Desk, tmp_path: Path) -> None:
    hall = Hall(desk, tmp_path)
    _, context = await hall.start()
    told: list[str] = []
    console = await hall.component("console")
    console.subscribe("guard.audit", lambda r: told.extend(e.text for e in r.events if isinstance(e, Notice)))
    console.open()
    market = await hall.component("market-data")
    await market.publish("md.trade.paper.XRP-ETH", *trades(market, 5))
    observer = await hall.component("observer-watch")
    for heads in ((head(MARKET),), (head(GUARD, 10**9),), (head("NOWHERE"),)):
        await observer.publish("guard.observer-watch", observer.new(Heartbeat, heads=heads))
    # What the broker answers him, he asks to be stored: under everything that he may publish.
    connection = await observer.link.connection()
    me = bus.component("observer-watch")
    for reply in ("guard.observer-watch", "dead.observer-watch"):
        await connection.request(me.reset_subject(MARKET), b'{"seq":1}', timeout_s=5)
        connection.wire.send(me.next_subject(MARKET), b'{"batch":5,"no_wait":true}', reply=reply)
    await until(lambda: any("observer-watch/" in text for text in told), "a notice that names him")
    await context.release()
    report = verify(hall.place)
    assert report.problems == []
    assert set(report.incidents) == {"HEADS"}


async def test_rubbish_without_end_on_a_slow_disk_does_not_grow_the_audit(
    bus: TestBus, desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathered, queued = 4 << 20, 1 << 20
    monkeypatch.setattr(main, "MAX_GATHERED", gathered)
    monkeypatch.setattr(merge, "MAX_QUEUED_BYTES", queued)
    hall = Hall(desk, tmp_path)
    audit, context = await hall.start()
    write = audit.projector.write

    def slowly(cut: Cut) -> Entry | None:
        time.sleep(0.3)
        return write(cut)

    monkeypatch.setattr(audit.projector, "write", slowly)
    strategy = await hall.component("strategy-alpha")
    connection = await strategy.link.connection()
    rubbish, count = os.urandom(30_000), 300
    largest = 0
    for number in range(count):
        ack = await connection.publish(Outgoing("signal.alpha.paper.XRP-ETH", rubbish, f"{number}"))
        if number % 16 == 0:
            await ack.acknowledged()
        largest = max(largest, sum(source.size for source in audit._sources.values()) + audit.projector.weight)
    await until(lambda: read_manifest(hall.path).resume(SIGNALS) >= count, "archived", 60)
    await context.release()
    assert largest <= gathered + 2 * queued < count * len(rubbish)
    assert verify(hall.place).problems == []
