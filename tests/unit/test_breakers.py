from __future__ import annotations

import pytest

from tallystick.schemas.bounds import MAX_SKEW_NS, SECOND
from tallystick.schemas.breakers import BreakerView
from tallystick.schemas.errors import Unverified
from tallystick.schemas.standing import LISTED, Standing
from tests.support.breaker import heartbeat, trip
from tests.support.world import NOW

UNPROVEN = Standing("unproven", Unverified("SESSIONS_STALE", "test"))
PAST = Standing("past", Unverified("HISTORY", "test"))


def view() -> BreakerView:
    made = BreakerView()
    assert made.learn(heartbeat(stated=NOW), LISTED, NOW) == ()
    return made


def code(breakers: BreakerView, now: int = NOW, limit: int = SECOND) -> str:
    try:
        breakers.require_closed("alpha", "paper", now, limit)
    except Unverified as exc:
        return exc.code
    return ""


def test_silence_is_a_trip() -> None:
    assert code(BreakerView()) == code(view(), NOW + SECOND + 1) != ""
    assert code(view(), NOW + SECOND) == ""


@pytest.mark.parametrize("scope", ["all", "strategy-alpha", "venue-paper"])
def test_a_covering_scope_stops_and_others_do_not(scope: str) -> None:
    breakers = view()
    assert breakers.learn(heartbeat(scope, "strategy-beta", stated=NOW + 1), LISTED, NOW + 1) == tuple(
        sorted((scope, "strategy-beta"))
    )
    assert code(breakers, NOW + 1) == "BREAKER_TRIPPED"
    breakers.learn(heartbeat("strategy-beta", "venue-other", stated=NOW + 2), LISTED, NOW + 2)
    assert code(breakers, NOW + 2) == ""


def test_a_trip_is_told_once() -> None:
    breakers = view()
    assert breakers.learn(trip("all", NOW + 1), LISTED, NOW + 1) == ("all",)
    assert breakers.learn(heartbeat("all", stated=NOW + 2), LISTED, NOW + 2) == ()


def test_a_heartbeat_opens_from_a_listed_session_alone_and_a_trip_halts_from_an_unproven_one() -> None:
    breakers = view()
    assert breakers.learn(trip("all", NOW + 1), UNPROVEN, NOW + 1) == ("all",)
    for standing in (UNPROVEN, PAST):
        breakers.learn(heartbeat(stated=NOW + 2), standing, NOW + 2)
        assert code(breakers, NOW + 2) == "BREAKER_TRIPPED"
    fresh = BreakerView()
    assert fresh.learn(trip("all", NOW), PAST, NOW) == ()
    fresh.learn(heartbeat(stated=NOW), PAST, NOW)
    assert not fresh.heard


def test_a_heartbeat_played_back_neither_opens_nor_keeps_alive() -> None:
    breakers = view()
    breakers.learn(trip("all", NOW + 10), LISTED, NOW + 10)
    breakers.learn(heartbeat(stated=NOW + 5), LISTED, NOW + 10)
    assert code(breakers, NOW + 10) == "BREAKER_TRIPPED"
    breakers.learn(heartbeat(stated=NOW), LISTED, NOW + SECOND)
    assert breakers.age(NOW + SECOND) == SECOND - 5


def test_a_heartbeat_stated_with_a_trip_does_not_undo_it() -> None:
    breakers = view()
    breakers.learn(trip("all", NOW + 1), LISTED, NOW + 1)
    breakers.learn(heartbeat(stated=NOW + 1), LISTED, NOW + 1)
    assert code(breakers, NOW + 1) == "BREAKER_TRIPPED"
    breakers.learn(heartbeat(stated=NOW + 2), LISTED, NOW + 2)
    assert code(breakers, NOW + 2) == ""


def test_a_heartbeat_ahead_of_the_clock_is_not_fresh_for_longer() -> None:
    breakers = BreakerView()
    breakers.learn(heartbeat(stated=NOW + MAX_SKEW_NS), LISTED, NOW)
    assert breakers.age(NOW + SECOND) == SECOND


def test_a_clock_put_back_makes_nothing_young() -> None:
    assert view().age(NOW - MAX_SKEW_NS - 1) is None
    assert code(view(), NOW - MAX_SKEW_NS - 1) != ""
