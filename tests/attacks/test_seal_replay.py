"""Sealed messages played back, forked, dated wrongly or sent by sessions that are over."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tallystick.schemas.bounds import MAX_LIST_AGE_NS, MAX_SKEW_NS
from tallystick.schemas.credential import Credential
from tallystick.schemas.errors import CouldNotVerify, Unverified
from tallystick.schemas.event import Event
from tallystick.schemas.nats_jwt import SessionKey
from tallystick.schemas.registry import MAX_AGE_NS
from tallystick.schemas.seal import ReaderChains, Verified, Verifier, require_live
from tallystick.schemas.security import (
    BootEnded,
    ComponentRevocation,
    CredentialIssued,
    ListedSession,
    SessionList,
    SessionRevoked,
)
from tallystick.schemas.sessions import SessionView
from tallystick.schemas.subjects import KINDS, parse_subject
from tests.support.forge import base, credential, encoded, revocation, samples, sealed, writer
from tests.support.world import NOW, seed, trust_root

ROOT = trust_root()
VERIFIER = Verifier(ROOT)
SECOND = 1_000_000_000
XRP, BTC = "md.trade.paper.XRP-ETH", "md.trade.paper.BTC-USDT"
TRADE = samples()[0][2]
ONE, OTHER = encoded(XRP, TRADE), encoded(BTC, TRADE)


def opened(message: tuple[str, bytes]) -> Verified:
    return VERIFIER.open(message[0], parse_subject(message[0]).stream, message[1])


def flushes(count: int, **more: Any) -> list[list[Verified]]:
    chain = writer("market-data", "MARKET", **more)
    return [[opened(m) for m in chain.seal([ONE, OTHER], NOW + i)] for i in range(count)]


def refused(chains: ReaderChains, verified: Verified) -> str:
    with pytest.raises(Unverified) as caught:
        chains.accept(verified)
    return caught.value.code


# -- chains ---------------------------------------------------------------------------------------


def test_a_message_played_back_is_refused_at_once_and_later() -> None:
    chains, made = ReaderChains(), flushes(3)
    chains.accept(made[0][0])
    assert refused(chains, made[0][0]) == "REPLAY"
    chains.accept(made[0][1])
    chains.accept(made[1][0])
    assert [refused(chains, m) for m in (*made[0], made[1][0])] == ["REPLAY"] * 3
    chains.accept(made[1][1])


def test_a_message_left_out_cannot_be_delivered_after_the_next_statement() -> None:
    chains, made = ReaderChains(), flushes(2)
    chains.accept(made[0][0])
    chains.accept(made[1][0])
    assert refused(chains, made[0][1]) == "REPLAY"


def test_two_statements_of_one_position_prove_a_stolen_key() -> None:
    chains, made = ReaderChains(), flushes(2)
    twin = writer("market-data", "MARKET")
    forked = opened(twin.seal([OTHER], NOW + 5)[0])
    chains.accept(made[0][0])
    assert refused(chains, forked) == "FORK"
    # The chain that was read first goes on.
    chains.accept(made[0][1])
    chains.accept(made[1][0])


def test_a_statement_on_another_past_is_a_fork_even_at_a_new_position() -> None:
    chains, made = ReaderChains(), flushes(1)
    twin = writer("market-data", "MARKET")
    twin.seal([OTHER], NOW + 5)
    chains.accept(made[0][0])
    assert refused(chains, opened(twin.seal([ONE], NOW + 6)[0])) == "FORK"


def test_a_refused_message_changes_nothing() -> None:
    chains, made = ReaderChains(), flushes(3)
    chains.accept(made[1][0])
    for _ in range(2):
        assert refused(chains, made[0][0]) == "REPLAY"
        assert refused(chains, made[1][0]) == "REPLAY"
    chains.accept(made[1][1])
    chains.accept(made[2][0])


def test_a_renewed_credential_continues_the_chain_and_repeats_nothing() -> None:
    chains = ReaderChains()
    chain = writer("market-data", "MARKET")
    first = opened(chain.seal([ONE], NOW)[0])
    chain.renew(*credential("market-data", jti="2", issued_at=NOW + 100 * SECOND))
    second = opened(chain.seal([ONE], NOW + 101 * SECOND)[0])
    assert first.credential.session_key != second.credential.session_key
    assert second.statement.prev == first.digest
    chains.accept(first)
    chains.accept(second)
    assert refused(chains, first) == "REPLAY"
    assert refused(chains, second) == "REPLAY"


def test_nothing_follows_a_closing_statement() -> None:
    chains = ReaderChains()
    chain = writer("market-data", "MARKET")
    closing = [opened(m) for m in chain.seal([ONE, encoded(BTC)], NOW, close=True)]
    twin = writer("market-data", "MARKET")
    twin.seal([ONE], NOW)
    after = opened(twin.seal([ONE], NOW)[0])
    for verified in closing:
        chains.accept(verified)
    assert refused(chains, after) == "CLOSED"


def test_boots_and_components_have_chains_of_their_own() -> None:
    chains = ReaderChains()
    first, second = flushes(1), flushes(2, boot=seed("second")[:16], jti="second")
    for verified in (second[1][0], first[0][0], first[0][1]):
        chains.accept(verified)
    assert refused(chains, second[0][0]) == "REPLAY"


def test_forgetting_an_ended_boot_keeps_the_others() -> None:
    chains = ReaderChains()
    first, second = flushes(1), flushes(1, boot=seed("second")[:16], jti="second")
    chains.accept(first[0][0])
    chains.accept(second[0][0])
    chains.forget(lambda component, boot: (component, boot) != ("market-data", first[0][0].statement.boot))
    assert refused(chains, second[0][0]) == "REPLAY"
    chains.accept(first[0][0])


# -- freshness ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_is_live_up_to_the_age_of_its_kind_and_not_beyond(kind: str) -> None:
    component, subject, event = next(s for s in samples() if parse_subject(s[1]).kind == kind)
    verified = opened(sealed(component, encoded(subject, event))[0])
    require_live(verified, NOW)
    require_live(verified, NOW + MAX_AGE_NS[kind])
    require_live(verified, NOW - MAX_SKEW_NS)
    with pytest.raises(Unverified, match=r"^STALE"):
        require_live(verified, NOW + MAX_AGE_NS[kind] + 1)
    with pytest.raises(Unverified, match=r"^FUTURE"):
        require_live(verified, NOW - MAX_SKEW_NS - 1)


def test_what_moves_money_or_lifts_a_guard_is_live_for_five_seconds_at_most() -> None:
    for kind in ("order.intent", "order.decision", "cred", "control.breaker"):
        assert MAX_AGE_NS[kind] <= 5 * SECOND


# -- sessions -------------------------------------------------------------------------------------


def said(event: Event, about: str = "authority", at: int = NOW) -> Verified:
    return opened(sealed("authority", encoded(f"cred.{about}", event), time=at)[0])


def listing(*live: Credential, revoked: tuple[bytes, ...] = (), number: int = 1, **changes: Any) -> SessionList:
    sessions = (
        ListedSession(c.component, c.boot, c.digest, changes.get("expires_at", c.expires_at), c.session_key)
        for c in live
    )
    return SessionList(**base(f"list {number}"), number=number, live=tuple(sessions), revoked=revoked)


def issued(c: Credential) -> CredentialIssued:
    return CredentialIssued(
        **base("issued"),
        boot=c.boot,
        session_key=c.session_key,
        credential_hash=c.digest,
        issued_at=c.issued_at,
        expires_at=c.expires_at,
        method="certificate",
        certificate=seed("certificate"),
    )


def code(view: SessionView, c: Credential, now: int = NOW) -> str:
    with pytest.raises(Unverified) as caught:
        view.require_listed(c, now)
    return caught.value.code


@pytest.fixture(name="gateway")
def gateway_session() -> Credential:
    session: tuple[Credential, SessionKey] = credential("gateway")
    return session[0]


@pytest.fixture(name="view")
def a_view(gateway: Credential) -> SessionView:
    view = SessionView()
    view.apply(said(listing(gateway)))
    return view


def test_a_listed_session_is_accepted_while_the_list_is_fresh(view: SessionView, gateway: Credential) -> None:
    view.require_listed(gateway, NOW)
    view.require_listed(gateway, NOW + MAX_LIST_AGE_NS)
    assert code(view, gateway, NOW + MAX_LIST_AGE_NS + 1) == "SESSIONS_STALE"


def test_without_any_list_nobody_is_accepted(gateway: Credential) -> None:
    view = SessionView()
    view.apply(said(issued(gateway), "gateway"))
    with pytest.raises(CouldNotVerify, match="never seen"):
        view.require_listed(gateway, NOW)


def test_a_list_from_the_future_proves_nothing(gateway: Credential) -> None:
    view = SessionView()
    view.apply(said(listing(gateway), at=NOW + 100 * SECOND))
    assert code(view, gateway) == "SESSIONS_FUTURE"
    view.require_listed(gateway, NOW + 99 * SECOND)


def test_a_session_that_was_never_listed_is_refused(view: SessionView) -> None:
    """A stolen role key mints credentials that verify, and that nobody who moves money accepts."""
    assert code(view, credential("gateway", jti="minted")[0]) == "SESSION_UNLISTED"


def test_an_older_list_does_not_come_back(view: SessionView, gateway: Credential) -> None:
    view.apply(said(listing(number=2), at=NOW + SECOND))
    assert code(view, gateway, NOW + SECOND) == "SESSION_UNLISTED"
    view.apply(said(listing(gateway)))
    assert code(view, gateway, NOW + SECOND) == "SESSION_UNLISTED"
    assert view.listed_at == NOW + SECOND


def test_an_issuance_withheld_until_after_the_list_revives_nothing(gateway: Credential) -> None:
    view = SessionView()
    view.apply(said(listing(number=2), at=NOW + SECOND))
    view.apply(said(issued(gateway), "gateway"))
    assert code(view, gateway, NOW + SECOND) == "SESSION_UNLISTED"
    view.apply(said(issued(gateway), "gateway", at=NOW + SECOND))
    view.require_listed(gateway, NOW + SECOND)


@pytest.mark.parametrize("how", [SessionRevoked, BootEnded])
def test_a_revoked_boot_stays_dead_whatever_is_listed_or_issued_later(
    view: SessionView, gateway: Credential, how: type[SessionRevoked | BootEnded]
) -> None:
    view.apply(said(how(**base("end"), boot=gateway.boot, reason="stolen"), "gateway"))
    assert code(view, gateway) == "SESSION_REVOKED"
    view.apply(said(listing(gateway, number=2), at=NOW + 1))
    view.apply(said(issued(gateway), "gateway", at=NOW + 1))
    assert code(view, gateway, NOW + 1) == "SESSION_REVOKED"
    renewed, _ = credential("gateway", jti="2")
    assert code(view, renewed, NOW + 1) == "SESSION_REVOKED"
    assert view.is_dead(gateway.boot)
    assert view.live("gateway", NOW) == []


def test_what_the_operator_revoked_is_listed_by_no_authority(gateway: Credential) -> None:
    view = SessionView(ROOT)
    view.apply(said(listing(gateway)))

    def tell(note: str) -> None:
        view.apply(said(ComponentRevocation(**base("revocation"), note=note), "gateway", at=NOW + 1))

    with pytest.raises(Unverified, match=r"^NOTE"):
        tell(revocation("gateway", 1, by="role authority"))
    with pytest.raises(Unverified, match=r"^REVOCATION_SCOPE"):
        tell(revocation("authority", 1))
    view.require_listed(gateway, NOW)
    tell(revocation("gateway", 1))
    # The authority hands out another session in its name, and lists it.
    later, _ = credential("gateway", jti="2", boot=seed("boot later")[:16])
    view.apply(said(issued(later), "gateway", at=NOW + 2))
    view.apply(said(listing(later, number=2), at=NOW + 3))
    assert [code(view, c, NOW + 3) for c in (gateway, later)] == ["SESSION_REVOKED"] * 2
    for note in (revocation("gateway", 1, revoked=False), revocation("execution", 2, revoked=False)):
        tell(note)
    assert code(view, later, NOW + 3) == "SESSION_REVOKED"
    tell(revocation("gateway", 2, revoked=False))
    view.require_listed(later, NOW + 3)
    tell(revocation("gateway", 1))
    view.require_listed(later, NOW + 3)


def test_a_session_on_the_revoked_list_is_refused_at_any_claimed_time(gateway: Credential) -> None:
    view = SessionView()
    view.apply(said(listing(gateway, revoked=(gateway.digest,))))
    assert code(view, gateway) == "SESSION_REVOKED"
    with pytest.raises(Unverified, match=r"^SESSION_REVOKED"):
        view.require_not_revoked(gateway)


def test_a_listed_session_ends_with_its_time(gateway: Credential) -> None:
    view = SessionView()
    view.apply(said(listing(gateway, expires_at=NOW + SECOND)))
    view.require_listed(gateway, NOW + SECOND)
    assert code(view, gateway, NOW + SECOND + 1) == "SESSION_EXPIRED"


@pytest.mark.parametrize("changes", [{"component": "execution"}, {"boot": seed("another")[:16]}])
def test_a_listing_in_another_name_does_not_count(gateway: Credential, changes: dict[str, Any]) -> None:
    view = SessionView()
    listed = listing(gateway)
    session = msgspec.structs.replace(listed.live[0], **changes)
    view.apply(said(msgspec.structs.replace(listed, live=(session,))))
    assert code(view, gateway) == "SESSION_UNLISTED"


def test_other_messages_say_nothing_about_sessions(view: SessionView, gateway: Credential) -> None:
    view.apply(opened(sealed("market-data", ONE)[0]))
    view.require_listed(gateway, NOW)


def test_only_the_authority_may_list_issue_or_revoke() -> None:
    event = listing(number=7)
    for component in ROOT.components:
        subject, payload = sealed(component, encoded("cred.authority", event))[0]
        if component != "authority":
            with pytest.raises(Unverified, match=r"^SCOPE"):
                VERIFIER.open(subject, "SECURITY", payload)
