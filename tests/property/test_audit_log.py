"""Whatever bytes a stream holds, the audit archives them, judges them the same twice, and its verifier agrees."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tallystick.components.audit.projector import Stored
from tallystick.record.chains import Log, open_message
from tallystick.record.judge import Indexes
from tallystick.record.manifest import Manifest
from tallystick.record.sandbox import ns_text
from tallystick.schemas.seal import Verifier
from tests.support.archive import Story, Streams, Vault
from tests.support.world import trust_root

STORY = Story()
MESSAGES = STORY.streams.stored
VERIFIERS = [Verifier(trust_root())]


def judge(messages: Sequence[Stored]) -> Log:
    log = Log()
    for index, message in enumerate(messages):
        opened = open_message(VERIFIERS, message.subject, message.stream, message.payload, message.stored)
        log.judge(message.stream, opened, index, message.stream_seq)
    log.next_index = len(messages)
    return log


mutations = st.tuples(
    st.integers(0, len(MESSAGES) - 1),
    st.one_of(
        st.binary(max_size=200),
        st.tuples(st.integers(0, 4000), st.integers(1, 255)),
        st.sampled_from([m.payload for m in MESSAGES]),
        st.text(max_size=60),
    ),
)


def mutated(message: Stored, change: object) -> Stored:
    match change:
        case bytes():
            return message._replace(payload=change)
        case str():
            return message._replace(subject=change.encode("utf-8", "backslashreplace").decode())
        case (int(at), int(flip)):
            data = bytearray(message.payload)
            if data:
                data[at % len(data)] ^= flip
            return message._replace(payload=bytes(data))
    raise AssertionError(change)


@settings(max_examples=20)
@given(st.lists(mutations, max_size=6))
def test_hostile_messages_are_archived_and_judged_the_same_by_the_verifier(changes: list[tuple[int, object]]) -> None:
    messages = list(MESSAGES)
    for index, change in changes:
        messages[index] = mutated(messages[index], change)
    with tempfile.TemporaryDirectory() as folder:
        vault = Vault(Path(folder))
        judged = vault.project(messages, flush=9)
        report = vault.verify()
    assert report.messages == len(messages)
    assert [report.status[s] for s in ("ok", "refused")] == [
        sum(j.status == s for j in judged) for s in ("ok", "refused")
    ]
    # Nothing is wrong with the archive; what was lost on the way to it shows as holes or dropped heads alone.
    assert {p.code for p in report.problems} <= {"HOLE", "LINK", "DROPPED", "FORK"}
    if all(j.status == "ok" for j in judged):
        assert report.clean


@given(st.data())
def test_messages_of_a_flush_may_be_stored_in_any_order_and_a_cut_end_is_torn(data: st.DataObject) -> None:
    streams = Streams()
    market = streams.session("market-data")
    expected_missing: tuple[int, ...] = ()
    count = data.draw(st.integers(1, 4), label="flushes")
    for number in range(count):
        size = data.draw(st.integers(1, 6), label="size")
        flush = market.seal(*((f"md.trade.paper.S{i}", [streams.trade(i + 1)]) for i in range(size)))
        order = data.draw(st.permutations(range(size)), label="order")
        kept = data.draw(st.integers(1, size), label="kept") if number == count - 1 else size
        for index in order[:kept]:
            streams.store(*flush[index])
        expected_missing = tuple(sorted(order[kept:]))
    live = judge(streams.stored)
    assert live.torn() == []
    streams.end(market)
    log = judge(streams.stored)
    assert [t.missing for t in log.torn()] == ([expected_missing] if expected_missing else [])
    assert Log.load(log.dump()).dump() == log.dump()


@given(st.integers(1, 8), st.integers(0, 40))
def test_any_message_left_out_before_the_end_is_found(size: int, victim: int) -> None:
    streams = Streams()
    market = streams.session("market-data")
    for _ in range(3):
        market.say(*((f"md.trade.paper.S{i}", [streams.trade(i + 1)]) for i in range(size)))
    market.heartbeat()
    stored = [m for m in streams.stored if m.stream == "MARKET"]
    gone = stored[victim % len(stored)]
    log = Log()
    findings = []
    kept = [m for m in streams.stored if m is not gone]
    for index, message in enumerate(kept):
        opened = open_message(VERIFIERS, message.subject, message.stream, message.payload, message.stored)
        findings += [f.code for f in log.judge(message.stream, opened, index, message.stream_seq).findings]
    findings += [f.code for f in log.dropped()]
    assert set(findings) & {"HOLE", "DROPPED"}


@given(st.binary(max_size=400))
def test_any_bytes_read_as_a_manifest_without_an_exception(data: bytes) -> None:
    manifest = Manifest(data)
    assert manifest.count - manifest.first + 1 == data.count(b"\n")
    assert len(manifest.entries) + len({d.line for d in manifest.defects}) >= data.count(b"\n")


@given(st.sets(st.integers(0, 300), max_size=120), st.integers(1, 320))
def test_missing_log_indexes_are_exactly_those_that_never_occurred(present: set[int], end: int) -> None:
    seen = Indexes()
    for index in present:
        assert seen.add(index)
        assert not seen.add(index)
    assert not seen.add(-1)
    missing = {i for a, b in seen.missing(end) for i in range(a, b + 1)}
    assert missing == set(range(end)) - present


@given(st.integers(0, 2**62))
def test_times_keep_every_nanosecond(ns: int) -> None:
    text = ns_text(ns)
    assert text.endswith(f".{ns % 10**9:09d}")
