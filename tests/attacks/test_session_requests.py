"""One component against the authority that all depend on: floods, and what a restart forgets."""

from __future__ import annotations

import os

import pytest

from tallystick.components.authority.issuer import BOOT_S, BOOTS, BURST, MAX_LIVE, PER_SECOND, Issuer
from tallystick.runtime.bus.publisher import MAX_MESSAGE_BYTES
from tallystick.schemas.enrolment import SessionRequest, proof_bytes
from tallystick.schemas.errors import Malformed, Unverified
from tallystick.schemas.ids import EventIds
from tallystick.schemas.registry import encode_events
from tallystick.schemas.security import ListedSession, SessionList
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
    refused: set[str] = set()
    made.issue("gateway", boot("g"), key("g").public, now)
    for n in range(3000):
        now += SECOND // 10
        try:
            made.issue("strategy-alpha", os.urandom(16) if new_boots else boot("a"), key(f"s{n % 8}").public, now)
            given += 1
        except Unverified as exc:
            refused.add(exc.code)
    if new_boots:
        assert refused == {"BOOT_RATE"}
        assert given <= BOOTS + 300 // BOOT_S
    else:
        assert refused == {"SESSION_RATE"}
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
    session = ListedSession("strategy-alpha", boot("a"), seed("credential"), NOW + 100 * SECOND, seed("session"))
    made.restore((session,), (), NOW)
    made.forget_boot(boot("a"), NOW)
    made.restore((session,), (), NOW)
    assert session not in made.live
    assert session.credential_hash in made.revoked


CERTIFICATE = seed("certificate")


def request(session: str, *, by: str = "") -> SessionRequest:
    """A request for a session of one boot with the key `session`, vouched for by the key `by`."""
    said = proof_bytes(ROOT.deployment, "gateway", boot("g"), key(session).public, CERTIFICATE)
    return SessionRequest(
        boot=boot("g").hex(),
        component="gateway",
        proof=key(session).sign(said).hex(),
        session_key=key(session).public.hex(),
        renewal=key(by).sign(said).hex() if by else "",
    )


def ask(made: Issuer, asked: SessionRequest, now: int = NOW) -> None:
    where, public = made.check(asked, "gateway", CERTIFICATE)
    made.issue("gateway", where, public, now)


def test_who_copied_the_certificate_does_not_join_a_live_boot_unseen() -> None:
    """A boot stands in every message: naming it used to be enough for a second session beside the true one."""
    made = issuer()
    ask(made, request("first"))
    for stolen in (request("thief"), request("thief", by="thief")):
        with pytest.raises((Unverified, Malformed), match=r"RENEWAL|HEX"):
            ask(made, stolen)
    ask(made, request("second", by="first"))
    assert {s.session_key for s in made.live} == {key("first").public, key("second").public}


def test_lost_answers_do_not_lock_a_boot_out() -> None:
    """The client signs with the key of the last answer that arrived, however many were issued since."""
    made = issuer()
    ask(made, request("first"))
    for n in range(3 * MAX_LIVE):
        ask(made, request(f"lost {n}", by="first"), NOW + n * SECOND)
    assert len(made.live) == MAX_LIVE
