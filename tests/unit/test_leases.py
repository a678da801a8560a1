"""Leases that let execution trade: the operator's latest word counts, in whatever order it is brought, and until it is over."""

from __future__ import annotations

import itertools

import pytest

from tallystick.schemas.bounds import SECOND
from tallystick.schemas.leases import EXECUTION, LeaseBook
from tallystick.schemas.trust import sign_document
from tests.support import world

HOUR = 3600 * SECOND
TRUST = world.trust_root()
START = world.NOW
WIDE = world.lease(TRUST, START, START + 8 * HOUR)
NARROW = world.lease(TRUST, START + HOUR, START + 2 * HOUR, caps=())
AGAIN = world.lease(TRUST, START + 3 * HOUR, START + 4 * HOUR)
LEASES = {"wide": WIDE, "narrow": NARROW, "again": AGAIN}


def note(name: str) -> str:
    return sign_document(LEASES[name], ("operator", world.key("operator")))


@pytest.mark.parametrize("order", list(itertools.permutations(LEASES)))
@pytest.mark.parametrize("read_at", [0.5, 1.5, 2.5, 3.5])
def test_the_latest_word_counts_whenever_it_is_read_and_when_it_is_over_nothing_does(
    order: tuple[str, ...], read_at: float
) -> None:
    book = LeaseBook(TRUST)
    for name in order:
        book.learn(EXECUTION, note(name), START + int(read_at * HOUR))
    found = {hours: book.holding("paper", START + int(hours * HOUR)) for hours in (0.5, 1.5, 2.5, 3.5, 4.5)}
    assert found == {0.5: WIDE, 1.5: NARROW, 2.5: None, 3.5: AGAIN, 4.5: None}


def test_what_cannot_last_any_more_is_forgotten() -> None:
    book = LeaseBook(TRUST)
    for name in LEASES:
        book.learn(EXECUTION, note(name), START + 12 * HOUR)
    assert book._leases == [NARROW, AGAIN]
    book.learn(EXECUTION, note("wide"), START + 24 * HOUR)
    assert book._leases == []
