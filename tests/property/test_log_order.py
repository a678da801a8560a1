"""However the broker brings its streams, and whatever its clock does, the log of an honest system is the same."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tallystick.components.audit.merge import MAX_QUEUED, Merge, Queued, Source
from tallystick.components.audit.projector import Stored
from tallystick.record.chains import Log, open_message
from tallystick.schemas.errors import Malformed
from tallystick.schemas.seal import Verifier
from tallystick.schemas.subjects import GUARD, MARKET, ORDERS, SECURITY, STREAMS
from tests.support.archive import Session, Story, Streams
from tests.support.world import trust_root

VERIFIERS = [Verifier(trust_root())]
SECOND = 1_000_000_000


def honest() -> list[Stored]:
    story = Story()
    s = story.streams
    late = s.session("streams")  # a session that begins at the end: its first heartbeat follows its issuance at once
    late.heartbeat()
    story.market.renew("later")
    s.issue(story.market)
    s.ticks(story.market, 2)
    for session in (story.market, story.gateway, late):
        session.heartbeat()
    s.end(story.strategy)
    return s.stored


HONEST = honest()


class Broker:
    """Holds `messages` one after the other, and brings what it holds in any rhythm; `log` is what came of it."""

    def __init__(self, messages: list[Stored]) -> None:
        self.messages = messages
        self.held = 0
        self.now = 0.0
        self.sources = {stream: Source() for stream in STREAMS}
        self.log = Log(VERIFIERS)
        self.merge = Merge(self.sources, self.log.awaits)
        self.order: list[Stored] = []
        self.statuses: set[str] = set()
        self.findings: list[str] = []

    def tick(self) -> float:
        self.now += 1.0
        return self.now

    def store(self, count: int) -> None:
        self.held = min(len(self.messages), self.held + count)

    def bring(self, stream: str, count: int) -> None:
        source = self.sources[stream]
        for message in self.messages[: self.held]:
            if message.stream == stream and message.stream_seq > source.read and count:
                count -= 1
                opened = open_message(VERIFIERS, message.subject, stream, message.payload, message.stored)
                source.put(Queued(message, opened, self.tick()))

    def ask(self, *streams: str) -> None:
        when = self.tick()
        for stream in streams:
            self.sources[stream].asked(when, sum(m.stream == stream for m in self.messages[: self.held]))

    def write(self) -> None:
        while (source := self.merge.next()) is not None:
            item = source.take()
            heads = self.log.dropped_heads(item.opened) if not isinstance(item.opened, Exception) else []
            judged = self.log.judge(
                item.message.stream, item.opened, self.log.next_index, item.message.stream_seq, item.message.subject
            )
            self.log.next_index += 1
            self.order.append(item.message)
            self.statuses.add(judged.status)
            self.findings += [f.text for f in judged.findings] + (heads if judged.status == "ok" else [])
            # Who verifies what is archived by now finds nothing dropped either.
            self.findings += [f.text for f in self.log.dropped()]

    def end(self) -> None:
        self.store(len(self.messages))
        for stream in STREAMS:
            self.bring(stream, len(self.messages))
        self.ask(*STREAMS)
        self.write()


steps = st.lists(
    st.one_of(
        st.tuples(st.just("store"), st.integers(1, 30)),
        st.tuples(st.sampled_from(STREAMS), st.integers(1, 12)),
        st.tuples(st.just("ask"), st.sets(st.sampled_from(STREAMS), min_size=1)),
        st.tuples(st.just("write"), st.just(0)),
    ),
    max_size=60,
)


def played(messages: list[Stored], schedule: list[tuple[str, object]]) -> Broker:
    broker = Broker(messages)
    for what, much in schedule:
        match what, much:
            case "store", int():
                broker.store(much)
            case "ask", set():
                broker.ask(*much)
            case "write", _:
                broker.write()
            case _, int():
                broker.bring(what, much)
    broker.end()
    return broker


@settings(max_examples=40, deadline=None)
@given(steps)
def test_an_honest_log_is_the_same_however_late_anything_is_brought(schedule: list[tuple[str, object]]) -> None:
    broker = played(HONEST, schedule)
    assert broker.order == HONEST
    assert broker.statuses == {"ok"}
    assert broker.findings == []


@settings(max_examples=40, deadline=None)
@given(steps, st.integers(1, len(HONEST) - 1), st.integers(1, 100 * SECOND))
def test_a_clock_of_the_broker_that_goes_back_makes_nobody_a_liar(
    schedule: list[tuple[str, object]], at: int, back: int
) -> None:
    messages = [*HONEST[:at], *(m._replace(stored=m.stored - back) for m in HONEST[at:])]
    broker = played(messages, schedule)
    assert sorted(broker.order, key=messages.index) == messages
    assert "unlisted" not in broker.statuses
    assert [text for text in broker.findings if "spoke after" not in text] == []


def item(stream: str, seq: int, stored: int, arrived: float, size: int = 0) -> Queued:
    return Queued(Stored(stream, seq, "x", b"x" * size, stored), Malformed("X", "x"), arrived)


def test_what_may_still_come_is_waited_for_without_any_limit_of_time() -> None:
    one, two = Source(), Source()
    merge = Merge({"A": one, "B": two}, lambda opened: [])
    one.put(item("A", 1, 20, arrived=5.0))
    assert merge.next() is None
    two.asked(4.0, 0)  # asked before it was here: something older may have been stored since
    assert merge.next() is None
    two.asked(1e9, 1)  # the broker holds one and does not bring it
    assert merge.next() is None
    two.put(item("B", 1, 10, arrived=2e9))
    one.asked(3e9, 1)
    assert merge.next() is two
    two.take()
    assert merge.next() is one


def test_a_session_that_was_never_issued_is_judged_once_all_of_security_is_here() -> None:
    streams = Streams()
    thief = Session(streams, "market-data", 9)
    streams.ticks(thief, 1)
    thief.heartbeat()
    broker = Broker(streams.stored)
    broker.store(99)
    for stream in (MARKET, GUARD):
        broker.bring(stream, 9)
    broker.ask(MARKET, GUARD, ORDERS, "SIGNALS")
    broker.write()
    assert broker.order == []
    broker.bring(SECURITY, 9)
    broker.ask(*STREAMS)
    broker.write()
    assert len(broker.order) == len(streams.stored)
    assert broker.statuses == {"ok", "unlisted"}


def test_a_reader_waits_where_much_or_large_things_are_here() -> None:
    many, large = Source(), Source()
    for i in range(MAX_QUEUED):
        assert not many.full
        many.put(item("A", i + 1, i, 0.0))
    assert many.full
    for i in range(17):
        large.put(item("A", i + 1, i, 0.0, size=1_000_000))
    assert large.full
    for source in (many, large):
        while not source.roomy:
            source.take()
        assert not source.full
    assert large.size == sum(len(i.message.payload) for i in large.queue)
