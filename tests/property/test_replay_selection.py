"""Times, ranges and subjects from a command line: what parses means what it says, everything else is refused."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallystick.replay.selection import Selection, covered, parse_sequences, parse_time, time_text
from tallystick.schemas.errors import ConfigError
from tallystick.schemas.seal import MAX_INT
from tallystick.schemas.subjects import KINDS, STREAMS, matches

TIMES = st.integers(0, MAX_INT)
TOKENS = st.sampled_from(["md", "trade", "order", "intent", "fill", "*", ">", "paper", "XRP-ETH", "alpha", "x", ""])


@settings(max_examples=100)
@given(TIMES)
def test_every_time_that_is_shown_reads_back(ns: int) -> None:
    assert parse_time(time_text(ns)) == ns


@settings(max_examples=100)
@given(TIMES)
def test_times_are_shown_as_the_standard_library_does(ns: int) -> None:
    seconds, rest = divmod(ns, 10**9)
    known = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(seconds=seconds)
    assert time_text(ns) == f"{known:%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


@settings(max_examples=100)
@given(st.text(max_size=40))
def test_no_text_makes_the_parsers_fail_otherwise_than_they_say(text: str) -> None:
    for parse in (parse_time, parse_sequences):
        try:
            parse(text)
        except ConfigError:
            continue
    try:
        Selection(patterns=(text,))
    except ConfigError:
        return
    assert covered(text)


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("2026-11-22", 1_795_305_600_000_000_000),
        ("2026-11-22T16:00", 1_795_363_200_000_000_000),
        ("2026-11-22 16:00:01Z", 1_795_363_201_000_000_000),
        ("2026-11-22T16:00:00.5Z", 1_795_363_200_500_000_000),
        ("2026-11-22T16:00:00.000000001+00:00", 1_795_363_200_000_000_001),
        ("1795363200000000000", 1_795_363_200_000_000_000),
    ],
)
def test_times_in_utc(text: str, ns: int) -> None:
    assert parse_time(text) == ns


@pytest.mark.parametrize(
    "text",
    ["", "yesterday", "2026-13-01", "2026-02-30", "2026-11-22T24:00", "2026-11-22T16:00:00+01:00", "16:00",
     "2026-11-22T16:60", "-5", "20261122", "1e18", "9" * 25, "2026-11-22T16:00:00.1234567890Z"],
)  # fmt: skip
def test_times_that_are_none_or_of_another_zone_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="REPLAY_TIME"):
        parse_time(text)


@pytest.mark.parametrize("digits", [10, 13, 16])
def test_a_number_that_may_be_seconds_is_refused_with_the_time_that_it_would_be(digits: int) -> None:
    text = "1795363200000000000"[:digits]
    with pytest.raises(ConfigError, match=r"2026-11-22T16:00:00\.000000000Z, or 1795363200000000000"):
        parse_time(text)


@pytest.mark.parametrize(("text", "found"), [("7", (7, 7)), ("7-", (7, MAX_INT)), ("7-90", (7, 90)), ("1-1", (1, 1))])
def test_ranges_of_sequences(text: str, found: tuple[int, int]) -> None:
    assert parse_sequences(text) == found


@pytest.mark.parametrize("text", ["", "-", "-5", "0", "0-5", "a", "5-a", "1.5", "5 - 6", "5--6", "٣"])
def test_ranges_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="REPLAY_SEQUENCE"):
        parse_sequences(text)


@settings(max_examples=100)
@given(st.lists(TOKENS, min_size=1, max_size=6))
def test_a_pattern_is_accepted_if_and_only_if_some_subject_matches_it(tokens: list[str]) -> None:
    pattern = ".".join(tokens)
    shown = [
        ".".join((kind.name, *(token for token in filler[: len(kind.fields)])))
        for kind in KINDS.values()
        for filler in (
            ["alpha", "paper", "XRP-ETH"],
            ["paper", "XRP-ETH"],
            ["x", "x", "x"],
            tokens[-3:],
            tokens[-2:],
            tokens[-1:],
        )
        if len(filler) >= len(kind.fields) and all(filler)
    ]
    if any(matches(pattern, subject) for subject in shown) and ">" not in tokens[:-1]:
        assert covered(pattern)
    if not covered(pattern):
        with pytest.raises(ConfigError, match="REPLAY_SUBJECT"):
            Selection(patterns=(pattern,))


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, ("SECURITY", "MARKET", "SIGNALS", "ORDERS", "GUARD")),
        ({"patterns": ("order.>",)}, ("ORDERS",)),
        ({"patterns": (">",), "streams": ("MARKET",)}, ("MARKET",)),
        ({"patterns": ("*.*.*.paper.*",)}, ("ORDERS",)),
        ({"patterns": ("fill.>", "md.>")}, ("MARKET", "ORDERS")),
    ],
)
def test_only_streams_that_can_hold_it_are_read(given: dict[str, tuple[str, ...]], wanted: tuple[str, ...]) -> None:
    assert Selection(**given).wanted == wanted  # type: ignore[arg-type]


def test_what_cannot_be_meant_is_refused() -> None:
    for wrong in (
        {"streams": ("ORDER",)},
        {"since": 5, "until": 5},
        {"first": 5, "last": 4, "streams": ("ORDERS",)},
        {"first": 5},
        {"first": 5, "streams": STREAMS[:2]},
    ):
        with pytest.raises(ConfigError):
            Selection(**wrong)
