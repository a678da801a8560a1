"""Quotas: what the broker counts, what is left of each, and who is beyond."""

from __future__ import annotations

import msgspec
import pytest

from tallystick.components.authority.quota import BAR_NS, Quotas
from tallystick.infra.nats.counts import counts
from tallystick.infra.nats.topology import QUOTA_BURST_S, Quota
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.errors import CouldNotVerify, Unverified

ALPHA = "strategy-alpha"
QUOTA = Quota(messages=100, bytes=10_000)
NOW = 10**18


def seen(*counted: tuple[int, int, float]) -> list[bool]:
    """Whether alpha was beyond its quota at each of (messages, bytes, seconds since the start)."""
    quotas = Quotas({ALPHA: QUOTA})
    return [bool(quotas.observe({ALPHA: (m, b)}, NOW + int(s * SECOND))) for m, b, s in counted]


def test_a_burst_passes_and_what_is_beyond_does_not() -> None:
    burst = QUOTA.messages * QUOTA_BURST_S
    assert seen((0, 0, 0), (burst, 0, 0)) == [False, False]
    assert seen((0, 0, 0), (burst + 1, 0, 0)) == [False, True]
    assert seen((0, 0, 0), (0, QUOTA.bytes * QUOTA_BURST_S + 1, 0)) == [False, True]


def test_its_rate_passes_for_ever_and_a_little_more_does_not() -> None:
    assert not any(seen(*((100 * s, 10_000 * s, s) for s in range(1000))))
    assert any(seen(*((110 * s, 0, s) for s in range(1000))))
    assert not any(seen((0, 0, 0), (800, 0, 0), (900, 0, 1), (1700, 0, 9)))


def test_what_was_sent_before_it_was_first_counted_and_a_broker_that_began_anew_are_no_flood() -> None:
    assert seen((10**9, 10**12, 0), (10**9, 10**12, 1), (5, 100, 2)) == [False, False, False]


def test_a_clock_that_steps_back_and_forth_earns_nothing() -> None:
    counted = [(0, 0, 0.0)] + [(800 + n, 0, -1.0 if n % 2 else 0.0) for n in range(1, 20)]
    assert any(seen(*counted))


def test_who_was_cut_off_stays_out_until_its_breaker_is_rearmed_or_an_observers_time_is_over() -> None:
    quotas = Quotas({ALPHA: QUOTA, "observer-one": QUOTA})
    quotas.require_open(ALPHA)
    for component in (ALPHA, "observer-one"):
        quotas.cut(component, NOW)
        with pytest.raises(Unverified, match="QUOTA_EXCEEDED"):
            quotas.require_open(component)
    assert quotas.over(NOW + BAR_NS - 1) == []
    assert quotas.over(NOW + BAR_NS) == ["observer-one"]
    quotas.require_open("observer-one")
    with pytest.raises(Unverified, match="QUOTA_EXCEEDED"):
        quotas.require_open(ALPHA)
    assert quotas.rearmed(ALPHA)
    assert not quotas.rearmed(ALPHA)
    quotas.require_open(ALPHA)


def test_a_component_that_is_cut_off_is_not_cut_off_again_while_its_last_messages_arrive() -> None:
    quotas = Quotas({ALPHA: QUOTA})
    quotas.observe({ALPHA: (0, 0)}, NOW)
    assert quotas.observe({ALPHA: (10_000, 0)}, NOW).keys() == {ALPHA}
    quotas.cut(ALPHA, NOW)
    assert not quotas.observe({ALPHA: (20_000, 0)}, NOW)


def test_an_answer_that_is_none_is_no_count() -> None:
    said = {"data": {"account_statz": [{"acc": "AX", "received": {"msgs": 3, "bytes": 50, "gateways": {}}}]}}
    assert counts(msgspec.json.encode(said)) == {"AX": (3, 50)}
    for answer in (b"", b"{}", b'{"data":{"account_statz":[{"acc":"A"}]}}', b'{"error":{"code":500}}', b"\xff"):
        with pytest.raises(CouldNotVerify, match="STATZ"):
            counts(answer)
