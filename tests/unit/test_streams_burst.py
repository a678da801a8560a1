"""The burst detector against a count by hand, its limits, and alerts that are the same bits each time."""

from __future__ import annotations

import itertools
import uuid

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallystick.schemas.bounds import MESSAGE_BURST, MESSAGES_PER_SECOND, SECOND
from tallystick.schemas.errors import Unverified
from tallystick.schemas.ids import id_time_ns
from tallystick.schemas.limits import LimitBook, Limits
from tallystick.schemas.registry import encode_events
from tallystick.streams.detectors.alerts import alert_id
from tallystick.streams.detectors.burst import EMPTY, Bucket, Finding, Rule, Rules, alert_of, observe
from tests.support.world import LIMITS, limit_rows

START = 1_732_289_000 * SECOND


def ids(count: int, first: int = 0) -> tuple[bytes, ...]:
    return tuple((first + n).to_bytes(16, "big") for n in range(count))


def run(rule: Rule, messages: list[tuple[int, int]]) -> tuple[list[Finding], dict[int, Bucket]]:
    """Feed (time, intents) in order; the findings and all buckets by number."""
    buckets: dict[int, Bucket] = {}
    findings: list[Finding] = []
    for seq, (at, count) in enumerate(messages, 1):
        number = at // (rule.window_s * SECOND)
        current = buckets.get(number, EMPTY)
        after = observe(rule, buckets.get(number - 1, EMPTY), current, at, seq, ids(count, seq * 1000))
        if after.finding is not None and current.finding is None:
            findings.append(after.finding)
        buckets[number] = after
    return findings, buckets


def by_hand(rule: Rule, messages: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """(message, first intent beyond the limit) of each finding, from the definition: a sliding window over all."""
    window = rule.window_s * SECOND
    times: list[int] = []
    found: list[tuple[int, int]] = []
    last: int | None = None
    for seq, (at, count) in enumerate(messages, 1):
        hit = -1
        for n in range(count):
            times.append(at)
            if hit < 0 and sum(t > at - window for t in times) > rule.limit:
                hit = n
        if hit >= 0 and (last is None or at - last >= window):
            found.append((seq, hit))
            last = at
    return found


@settings(max_examples=100, deadline=None)
@given(
    limit=st.integers(1, 12),
    window_s=st.integers(1, 3),
    gaps=st.lists(
        st.tuples(
            st.sampled_from([0, 1, 10**7, 10**8, SECOND // 3, SECOND - 1, SECOND, SECOND + 1, 3 * SECOND]),
            st.integers(0, 9),
        ),
        max_size=40,
    ),
    offset=st.integers(0, 3 * SECOND),
)
def test_it_finds_exactly_what_a_count_over_the_whole_history_finds(
    limit: int, window_s: int, gaps: list[tuple[int, int]], offset: int
) -> None:
    rule, at, messages = Rule(limit, window_s), START + offset, []
    for gap, count in gaps:
        at += gap
        messages.append((at, count))
    findings, buckets = run(rule, messages)
    assert [(f.seq, int.from_bytes(f.cause, "big") - f.seq * 1000) for f in findings] == by_hand(rule, messages)
    assert sum(b.count for b in buckets.values()) == sum(count for _, count in messages)
    assert all(len(b.times) <= limit + 1 for b in buckets.values())
    assert all(f.value > limit for f in findings)


def test_at_the_limit_nothing_is_found_and_one_more_is() -> None:
    rule = Rule(5)
    assert run(rule, [(START, 5)])[0] == []
    assert [f.value for f in run(rule, [(START, 6)])[0]] == [6]
    assert run(rule, [(START, 5), (START + SECOND, 5)])[0] == []
    assert [f.value for f in run(rule, [(START, 5), (START + SECOND - 1, 1)])[0]] == [6]


def test_a_message_without_intents_finds_nothing_whatever_came_before() -> None:
    # Found by the comparison above: beyond the limit, the one finding a window made, then a message of cancels.
    findings, _ = run(Rule(1, 2), [(START, 2), (START + 2 * SECOND - 2, 2), (START + 2 * SECOND, 0)])
    assert [f.seq for f in findings] == [1]


def test_a_burst_across_two_buckets_is_found() -> None:
    late, early = START + SECOND - 10**8, START + SECOND + 10**8
    assert [f.at for f in run(Rule(5), [(late, 3), (early, 3)])[0]] == [early]


def test_a_lasting_burst_is_found_once_a_window() -> None:
    findings, _ = run(Rule(5), [(START + n * 10**7, 1) for n in range(500)])
    assert [b.at - a.at for a, b in itertools.pairwise(findings)] == [SECOND] * (len(findings) - 1)
    assert len(findings) == 5


def test_the_same_finding_gives_the_same_bits_and_another_one_another_id() -> None:
    finding = Finding(START + 123_456_789, 77, ids(1)[0], 31, 30)
    to, alert = alert_of("alpha", Rule(30), finding)
    _, again = alert_of("alpha", Rule(30), msgspec.structs.replace(finding, published=True))
    assert to.text == "alert.burst.high"
    assert encode_events("alert", (alert,)) == encode_events("alert", (again,))
    assert (alert.scope, alert.code, str(alert.value), str(alert.limit)) == (
        "strategy-alpha",
        "INTENT_BURST",
        "31",
        "30",
    )
    others = {
        alert_id(*arguments)
        for arguments in (
            ("burst", "strategy-alpha", START, "ORDERS", 1),
            ("other", "strategy-alpha", START, "ORDERS", 1),
            ("burst", "strategy-beta", START, "ORDERS", 1),
            ("burst", "strategy-alpha", START + 1, "ORDERS", 1),
            ("burst", "strategy-alpha", START, "MARKET", 1),
            ("burst", "strategy-alpha", START, "ORDERS", 2),
        )
    }
    assert len(others) == 6


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**63 - 1), st.integers(1, 2**63))
def test_alert_ids_are_uuid_version_7_of_stream_time(at: int, seq: int) -> None:
    made = uuid.UUID(bytes=alert_id("burst", "strategy-alpha", at, "ORDERS", seq))
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert abs(id_time_ns(made.bytes) - at) <= 250


def test_the_limit_is_what_the_gateways_throttle_passes_at_most() -> None:
    defaults = {field.name: field.default for field in msgspec.structs.fields(Limits)}
    assert defaults["messages_per_second"] == MESSAGES_PER_SECOND
    assert defaults["burst"] == MESSAGE_BURST
    rules = Rules(LimitBook(limit_rows(msgspec.structs.replace(LIMITS, burst=7, messages_per_second=10))))
    assert rules.of("alpha").limit == 17
    with pytest.raises(Unverified, match="LIMITS_MISSING"):
        rules.of("nobody")


def test_history_that_is_stored_anew_all_at_once_is_found_otherwise() -> None:
    """So a replay at full speed into a zone, whose broker stores the same intents within a moment, is not exact."""
    rule = Rule(limit=30)
    recorded = [(START + n * SECOND + i * 1_000_000, 1) for n in (0, 5, 10) for i in range(40)]
    at_once = [(START + i * 10_000, count) for i, (_, count) in enumerate(recorded)]
    assert (len(run(rule, recorded)[0]), len(run(rule, at_once)[0])) == (3, 1)
