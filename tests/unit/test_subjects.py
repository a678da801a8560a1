"""Subjects: what is one, what it means, and what no name can smuggle in."""

from __future__ import annotations

import pytest

from tallystick.schemas.errors import Malformed
from tallystick.schemas.subjects import KINDS, check_name, matches, parse_subject, subject, symbol_token, token_symbol
from tests.support.forge import samples


@pytest.mark.parametrize(
    ("symbol", "token"),
    [
        ("XRP/ETH", "XRP-ETH"),
        ("BTC/USDT:USDT-240628", "BTC-USDT~USDT=2D240628"),
        ("A.B", "A=2EB"),
        ("*", "=2A"),
        (">", "=3E"),
        ("a b\n", "a=20b=0A"),
        ("1000SHIB", "1000SHIB"),
        ("Ω", "=CE=A9"),
        ("=2A", "=3D2A"),
    ],
)
def test_a_symbol_has_one_token(symbol: str, token: str) -> None:
    assert symbol_token(symbol) == token
    assert token_symbol(token) == symbol


@pytest.mark.parametrize(
    "token", ["", "A.B", "*", ">", "=2a", "=41", "=2F", "=3A", "=", "=2", "=FF", "A B", "A/B", "x" * 97]
)
def test_a_token_that_no_symbol_has_is_refused(token: str) -> None:
    with pytest.raises(Malformed, match="SYMBOL_TOKEN"):
        token_symbol(token)


@pytest.mark.parametrize("symbol", ["", "x" * 97, "é" * 17, "\ud800"])
def test_a_symbol_without_a_token_is_refused(symbol: str) -> None:
    with pytest.raises(Malformed, match="SYMBOL"):
        symbol_token(symbol)


def test_subjects_read_as_what_they_were_made_of() -> None:
    made = subject("fill", strategy="alpha", venue="paper", symbol="BTC/USDT:USDT")
    assert made.text == str(made) == "fill.alpha.paper.BTC-USDT~USDT"
    assert (made.kind, made.stream, made.strategy, made.venue, made.symbol) == (
        "fill",
        "ORDERS",
        "alpha",
        "paper",
        "BTC/USDT:USDT",
    )
    for _, text, _ in samples():
        assert parse_subject(text).text == text


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "SUBJECT"),
        ("md", "SUBJECT"),
        ("md.trade", "SUBJECT"),
        ("md.trade.paper", "SUBJECT"),
        ("md.trade.paper.XRP-ETH.more", "SUBJECT"),
        ("MD.trade.paper.XRP-ETH", "SUBJECT"),
        (".md.trade.paper.XRP-ETH", "SUBJECT"),
        ("$JS.API.STREAM.DELETE.ORDERS", "SUBJECT"),
        ("_INBOX.abc", "SUBJECT"),
        ("md.trade.*.XRP-ETH", "NAME"),
        ("md.trade.paper.>", "SYMBOL_TOKEN"),
        ("md.trade.paper.", "SYMBOL_TOKEN"),
        ("md.trade..XRP-ETH", "NAME"),
        ("cred.>", "NAME"),
        ("cred.Gateway", "NAME"),
        ("cred.gateway-", "NAME"),
        ("alert.burst.severe", "SEVERITY"),
        ("guard." + "a" * 49, "NAME"),
        ("guard." + "a" * 300, "SUBJECT_LENGTH"),
    ],
)
def test_what_is_no_subject_is_refused(text: str, code: str) -> None:
    with pytest.raises(Malformed, match=f"^{code}: "):
        parse_subject(text)


def test_a_subject_needs_a_known_kind_and_exactly_its_fields() -> None:
    with pytest.raises(Malformed, match="SUBJECT_KIND"):
        subject("md.trades", venue="paper", symbol="X")
    for fields in ({"venue": "paper"}, {"venue": "paper", "symbol": "X", "strategy": "alpha"}):
        with pytest.raises(Malformed, match="SUBJECT_FIELDS"):
            subject("md.trade", **fields)


def test_the_longest_names_and_symbol_make_a_subject() -> None:
    longest = subject("order.decision", strategy="s" * 48, venue="v" * 48, symbol="X" * 96)
    assert len(longest.text) == 209
    assert check_name("a" * 48) == "a" * 48


@pytest.mark.parametrize(
    ("pattern", "text", "covered"),
    [
        ("md.>", "md.trade.paper.XRP-ETH", True),
        ("md.>", "md", False),
        ("md.*.paper.*", "md.trade.paper.XRP-ETH", True),
        ("md.*", "md.trade.paper.XRP-ETH", False),
        ("signal.alpha.>", "signal.alphabet.paper.X", False),
        ("signal.alpha.>", "signal.alpha.paper.X", True),
        ("audit.checkpoint", "audit.checkpoint", True),
        ("audit.checkpoint", "audit.checkpoint.x", False),
        ("cred.>.x", "cred.a.x", False),
        (">", "anything.at.all", True),
    ],
)
def test_patterns_cover_as_nats_says(pattern: str, text: str, covered: bool) -> None:
    assert matches(pattern, text) is covered


def test_every_kind_covers_its_own_subjects_and_no_other() -> None:
    for _, text, _ in samples():
        assert [k.name for k in KINDS.values() if matches(k.pattern, text)] == [parse_subject(text).kind]
