"""One component against the authority that all depend on: floods, and what a restart forgets."""

from __future__ import annotations

import os

import pytest

from tallystick.components.authority.issuer import BURST, MAX_LIVE, PER_SECOND, Issuer
from tallystick.components.runtime.publisher import MAX_MESSAGE_BYTES
from tallystick.schemas.errors import Unverified
from tallystick.schemas.ids import EventIds
from tallystick.schemas.registry import encode_events
from tallystick.schemas.security import Session, SessionList
from tests.support.world import NOW, key, seed, trust_root

SECOND = 1_000_000_000
ROOT = trust_root()


def issuer() -> Issuer:
    return Issuer(ROOT, lambda name: key(f"role {name}"))


def boot(label: str) -> bytes:
    return seed(f"boot {label}")[:16]


def list_bytes(made: Issuer) -> int:
    event = SessionList(id=EventIds(b"12345678").next(NOW), ts=NOW, number=1, live=made.live, revoked=made.revoked)
    return len(encode_events("cred", (event,)))


@pytest.mark.parametrize("new_boots", [False, True], ids=["renewals", "boots"])
def test_a_component_that_asks_without_end_neither_fills_the_list_nor_starves_the_others(new_boots: bool) -> None:
    """A list too large for one message ended the authority, and with it all trading and every renewal."""
    made, given, now = issuer(), 0, NOW
    made.issue("gateway", boot("g"), key("g").public, now)
    for n in range(3000):
        now += SECOND // 10
        try:
            made.issue("strategy-alpha", os.urandom(16) if new_boots else boot("a"), key(f"s{n % 8}").public, now)
            given += 1
        except Unverified as exc:
            assert exc.code == "SESSION_RATE"
    assert given <= BURST + 300 * PER_SECOND
    assert list_bytes(made) < MAX_MESSAGE_BYTES // 8
    assert len([s for s in made.live if s.component == "strategy-alpha"]) <= MAX_LIVE
    # Nobody else notices.
    made.issue("gateway", boot("g"), key("h").public, now)
    assert len([s for s in made.live if s.component == "gateway"]) == 2


def test_the_newest_session_of_a_boot_is_always_listed() -> None:
    made = issuer()
    for n in range(3 * MAX_LIVE):
        issued = made.issue("gateway", boot("g"), key(f"s{n}").public, NOW + n * SECOND)
        assert issued.session in made.live


def test_a_list_that_the_broker_brings_after_the_revocation_revives_nobody() -> None:
    made = issuer()
    session = Session("strategy-alpha", boot("a"), seed("credential"), NOW + 100 * SECOND, seed("session"))
    made.restore((session,), (), NOW)
    made.forget_boot(boot("a"), NOW)
    made.restore((session,), (), NOW)
    assert session not in made.live
    assert session.credential_hash in made.revoked
