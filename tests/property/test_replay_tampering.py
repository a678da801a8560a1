"""Whatever is done to a recording, what is played was sealed as it stands, once, where and when it was valid."""

from __future__ import annotations

from typing import Final

from hypothesis import given, settings
from hypothesis import strategies as st

from tallystick.replay.verify import Failure, Judge, Played, Recorded
from tallystick.schemas.seal import Verifier
from tests.support.archive import Story

_STORY: Final = Story()
_RECORDED: Final = [
    Recorded(m.stream, m.stream_seq, m.subject, m.payload, m.stored, index)
    for index, m in enumerate(_STORY.streams.stored)
]
_SEALED: Final = {(r.subject, r.payload) for r in _RECORDED}
_VERIFIER: Final = Verifier(_STORY.streams.trust)
_INDEX: Final = st.integers(0, len(_RECORDED) - 1)


def judged(recorded: list[Recorded], learned: list[Recorded] = _RECORDED) -> list[Played | Failure | None]:
    judge = Judge([_VERIFIER])
    for message in learned:
        if message.subject.startswith("cred."):
            judge.learn(message)
    return [judge.examine(message) for message in recorded]


def test_the_recording_itself_is_played_whole() -> None:
    assert all(isinstance(item, Played) for item in judged(_RECORDED))


@settings(max_examples=100)
@given(_INDEX, st.integers(0, 10_000), st.integers(1, 255))
def test_no_changed_byte_is_played(index: int, place: int, change: int) -> None:
    payload = bytearray(_RECORDED[index].payload)
    payload[place % len(payload)] ^= change
    recorded = [*_RECORDED]
    recorded[index] = recorded[index]._replace(payload=bytes(payload))
    assert isinstance(judged(recorded)[index], Failure)


@settings(max_examples=100)
@given(st.lists(_INDEX, max_size=60))
def test_no_order_and_no_repetition_plays_anything_twice_or_anything_else(order: list[int]) -> None:
    items = [item for item in judged([_RECORDED[i] for i in order]) if isinstance(item, Played)]
    found = [(item.verified.subject.text, item.verified.payload) for item in items]
    assert len(found) == len(set(found))
    assert set(found) <= _SEALED
    chains: dict[tuple[str, bytes, str], int] = {}
    for item in items:
        statement = item.verified.statement
        key = (statement.component, statement.boot, statement.stream)
        assert statement.seq >= chains.get(key, 0)
        chains[key] = statement.seq


@settings(max_examples=100)
@given(_INDEX, _INDEX)
def test_a_message_under_another_ones_subject_or_stream_is_not_played(one: int, other: int) -> None:
    a, b = _RECORDED[one], _RECORDED[other]
    swapped = a._replace(subject=b.subject, stream=b.stream)
    [item] = judged([swapped])
    assert isinstance(item, Played) == ((a.subject, a.stream) == (b.subject, b.stream))


@settings(max_examples=50)
@given(_INDEX)
def test_without_its_issuance_a_session_plays_nothing(index: int) -> None:
    subject = f"cred.{_RECORDED[index].subject.split('.')[-1]}"
    learned = [r for r in _RECORDED if r.subject != subject]
    component = subject.removeprefix("cred.")
    for item in judged(_RECORDED, learned):
        if isinstance(item, Played):
            assert item.verified.statement.component != component
