"""When heartbeats are due: each second while there is news, so that a dropped end shows within a second, else seldom."""

from __future__ import annotations

from tallystick.runtime.bus.heartbeats import QUIET_S, Heartbeats
from tallystick.schemas.security import Head
from tallystick.schemas.subjects import GUARD, ORDERS


def heads(orders: int, guard: int) -> tuple[Head, ...]:
    return Head(GUARD, guard, bytes([guard]) * 32), Head(ORDERS, orders, bytes([orders]) * 32)


def test_the_first_is_due_at_once() -> None:
    assert Heartbeats().due((), 0.0)


def test_news_is_stated_in_the_second_in_which_it_is_acknowledged_and_once() -> None:
    beats = Heartbeats()
    assert beats.due(heads(1, 1), 10.0)
    assert beats.due(heads(2, 2), 11.0)
    assert not beats.due(heads(2, 3), 12.0)
    assert beats.due(heads(3, 3), 13.0)


def test_without_news_it_says_that_it_lives_every_few_seconds() -> None:
    beats = Heartbeats()
    said = [second for second in range(20) if beats.due(heads(1, second), float(second))]
    assert said == [0, 5, 10, 15]
    assert QUIET_S == 5.0
