from __future__ import annotations

import json

import pytest

from tallystick.venues.binance.answers import busy_until
from tallystick.venues.limits import MARGIN_NS, MAX_BACKOFF_S, MINUTE_NS, Allowance, retry_after

SECOND = 10**9
NOW = 1_800_000_000 * SECOND  # a whole minute
LATE = NOW + MARGIN_NS


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7200", 7200),
        ("259200", 3 * 86_400),
        ("0", 0),
        ("9" * 40, MAX_BACKOFF_S),
        ("Fri, 15 Jan 2027 08:01:00 GMT", 60),
        ("Fri, 15 Jan 2027 07:00:00 GMT", 0),
    ],
)
def test_a_pause_is_as_long_as_the_venue_says(text: str, seconds: int) -> None:
    assert retry_after(text, NOW) == NOW + seconds * SECOND


@pytest.mark.parametrize("text", ["", "-5", "1.5", "soon", "٣", "Fri, 99 Jan 2027 08:01:00 GMT"])
def test_a_pause_that_cannot_be_read_is_none(text: str) -> None:
    assert retry_after(text, NOW) is None


def test_a_ban_is_read_from_its_text_where_no_header_tells_it() -> None:
    until = NOW + 3 * 86_400 * SECOND
    text = f"Way too much request weight used; IP banned until {until // 10**6}. Please use WebSocket Streams."
    assert busy_until(418, {}, json.dumps({"code": -1003, "msg": text}).encode(), NOW) == until
    data = {"serverTime": NOW // 10**6, "retryAfter": until // 10**6}
    assert busy_until(418, {}, json.dumps({"code": -1003, "msg": "x", "data": data}).encode(), NOW) == until
    assert busy_until(418, {}, b"<html>", NOW) == NOW + 120 * SECOND
    assert busy_until(429, {}, b"", NOW) == NOW + 60 * SECOND
    assert busy_until(418, {"Retry-After": "7200"}, b"", NOW) == NOW + 7200 * SECOND
    assert busy_until(400, {"Retry-After": "7200"}, b"", NOW) == 0


def test_no_more_is_asked_than_a_minute_allows_whoever_used_it() -> None:
    allowance = Allowance(100)
    allowance.asked(60, LATE)
    assert allowance.wait(40, LATE) == 0
    assert allowance.wait(41, LATE) == MINUTE_NS
    allowance.answered("90", LATE + SECOND)  # somebody else at this address
    assert allowance.wait(11, LATE + SECOND) == MINUTE_NS - SECOND
    allowance.answered("5", LATE + SECOND)
    allowance.answered("many", LATE + SECOND)
    assert allowance.wait(10, LATE + SECOND) == 0
    assert allowance.wait(11, LATE + SECOND) > 0
    # The venue's minute may begin later than ours.
    assert allowance.wait(11, NOW + MINUTE_NS + MARGIN_NS - 1) == 1
    assert allowance.wait(11, NOW + MINUTE_NS + MARGIN_NS) == 0


def test_a_question_that_weighs_more_than_all_is_asked_alone() -> None:
    allowance = Allowance(100)
    assert allowance.wait(200, LATE) == 0
    allowance.asked(200, LATE)
    assert allowance.wait(1, LATE) == MINUTE_NS


def test_a_shorter_pause_does_not_end_a_longer_one() -> None:
    allowance = Allowance(100)
    allowance.back_off(NOW + 7200 * SECOND)
    allowance.back_off(NOW + SECOND)
    allowance.back_off(0)
    assert allowance.wait(0, NOW) == 7200 * SECOND
    assert allowance.wait(0, NOW + 7200 * SECOND) == 0
