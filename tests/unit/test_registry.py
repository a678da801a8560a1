"""The codec's limits, and which event stands where."""

from __future__ import annotations

import pytest

from tallystick.schemas.errors import Malformed
from tallystick.schemas.event import Event
from tallystick.schemas.registry import (
    EVENTS,
    MAX_AGE_NS,
    MAX_SIZE,
    array_header,
    decode_events,
    encode_event,
    encode_events,
    join_events,
)
from tallystick.schemas.security import Notice
from tallystick.schemas.subjects import KINDS, parse_subject
from tests.support.forge import base, samples

MAX_EVENTS, MAX_EVENTS_BYTES = MAX_SIZE["guard"]


def test_every_kind_of_subject_has_events_and_an_age() -> None:
    assert KINDS.keys() == EVENTS.keys() == MAX_AGE_NS.keys() == MAX_SIZE.keys()
    assert all(EVENTS.values())
    assert all(age > 0 for age in MAX_AGE_NS.values())


def test_an_event_is_read_on_its_own_kind_and_on_no_other() -> None:
    for _, subject, event in samples():
        own = parse_subject(subject).kind
        data = array_header(1) + encode_event(event)
        assert decode_events(own, data) == [event]
        for kind in set(KINDS) - {own}:
            with pytest.raises(Malformed, match=r"^EVENTS: "):
                decode_events(kind, data)
            with pytest.raises(Malformed, match=r"^EVENT_TYPE: "):
                encode_events(kind, [event])


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, MAX_EVENTS])
def test_as_many_events_as_may_be(count: int) -> None:
    events: list[Event] = [Notice(**base("n"), code="X", text="")] * count
    assert decode_events("guard", encode_events("guard", events)) == events


def test_one_event_too_many_is_refused_on_both_sides() -> None:
    event = Notice(id=bytes(16), ts=0, code="", text="")
    with pytest.raises(Malformed, match="EVENTS_SIZE"):
        encode_events("guard", [event] * (MAX_EVENTS + 1))
    with pytest.raises(Malformed, match="EVENTS_SIZE"):
        decode_events("guard", array_header(MAX_EVENTS + 1) + encode_event(event) * (MAX_EVENTS + 1))


def test_a_byte_too_many_is_refused_on_both_sides() -> None:
    def event(size: int) -> Event:
        return Notice(id=bytes(16), ts=0, code="", text="x" * size)

    overhead = len(encode_events("guard", [event(MAX_EVENTS_BYTES // 2)])) - MAX_EVENTS_BYTES // 2
    fits = event(MAX_EVENTS_BYTES - overhead)
    assert len(encode_events("guard", [fits])) == MAX_EVENTS_BYTES
    assert decode_events("guard", encode_events("guard", [fits])) == [fits]
    with pytest.raises(Malformed, match="EVENTS_SIZE"):
        encode_events("guard", [event(MAX_EVENTS_BYTES - overhead + 1)])
    with pytest.raises(Malformed, match="EVENTS_SIZE"):
        decode_events("guard", bytes(MAX_EVENTS_BYTES + 1))


def test_joining_gives_the_canonical_array() -> None:
    events: list[Event] = [Notice(**base(str(i)), code="X", text="") for i in range(40)]
    parts = [(len(part), encode_events("guard", part)) for part in (events[:1], events[1:21], events[21:])]
    assert join_events(parts) == encode_events("guard", events)
