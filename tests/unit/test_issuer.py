"""Who gets a credential: the rules, without a network."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystick.components.authority.issuer import Issuer
from tallystick.schemas.credential import open_credential
from tallystick.schemas.enrolment import SessionRequest, proof_bytes
from tallystick.schemas.errors import Malformed, Unverified
from tests.support.world import NOW, key, seed, trust_root

SECOND = 1_000_000_000
CERTIFICATE = seed("certificate")
ROOT = trust_root(lifetime=300)


def issuer(lifetime_s: int | None = None) -> Issuer:
    return Issuer(ROOT, lambda name: key(f"role {name}"), lifetime_s)


def boot(label: str) -> bytes:
    return seed(f"boot {label}")[:16]


def request(
    component: str = "gateway", *, session: str = "s", at: str = "a", certificate: bytes = CERTIFICATE
) -> SessionRequest:
    signer = key(session)
    proof = signer.sign(proof_bytes(ROOT.deployment, component, boot(at), signer.public, certificate))
    return SessionRequest(boot=boot(at).hex(), component=component, proof=proof.hex(), session_key=signer.public.hex())


def test_a_credential_is_what_every_verifier_accepts_and_lives_as_the_trust_root_says() -> None:
    issued = issuer().issue("gateway", boot("a"), key("s").public, NOW)
    credential = open_credential(issued.credential, ROOT)
    assert (credential.component, credential.boot, credential.session_key) == ("gateway", boot("a"), key("s").public)
    assert credential.expires_at - credential.issued_at == 300 * SECOND
    assert credential.digest == issued.session.credential_hash


@pytest.mark.parametrize(("asked", "lifetime"), [(5, 5), (900, 300), (None, 300)])
def test_a_lifetime_is_shortened_never_lengthened(asked: int | None, lifetime: int) -> None:
    issued = issuer(asked).issue("gateway", boot("a"), key("s").public, NOW)
    assert issued.session.expires_at - issued.issued_at == lifetime * SECOND


def test_a_request_counts_for_the_certificates_component_and_with_its_proof_alone() -> None:
    made = issuer()
    assert made.check(request(), "gateway", CERTIFICATE) == (boot("a"), key("s").public)
    with pytest.raises(Unverified, match="IDENTITY"):
        made.check(request(), "execution", CERTIFICATE)
    with pytest.raises(Unverified, match="PROOF"):
        made.check(request(), "gateway", seed("another certificate"))
    other = request(session="another")
    stolen = SessionRequest(
        boot=other.boot, component=other.component, proof=other.proof, session_key=request().session_key
    )
    with pytest.raises(Unverified, match="PROOF"):
        made.check(stolen, "gateway", CERTIFICATE)
    with pytest.raises(Unverified, match="COMPONENT_UNKNOWN"):
        made.check(request("nobody"), "nobody", CERTIFICATE)


@given(st.text(max_size=80), st.text(max_size=80), st.text(max_size=160))
def test_nonsense_in_a_request_is_refused(where: str, proof: str, session: str) -> None:
    with pytest.raises((Malformed, Unverified)):
        issuer().check(
            SessionRequest(boot=where, component="gateway", proof=proof, session_key=session), "gateway", CERTIFICATE
        )


def test_a_new_boot_replaces_the_old_one_which_never_gets_a_session_again() -> None:
    made = issuer()
    first = made.issue("gateway", boot("a"), key("s").public, NOW)
    renewed = made.issue("gateway", boot("a"), key("t").public, NOW + SECOND)
    assert renewed.replaced == ()
    second = made.issue("gateway", boot("b"), key("u").public, NOW + 2 * SECOND)
    assert {s.credential_hash for s in second.replaced} == {
        first.session.credential_hash,
        renewed.session.credential_hash,
    }
    assert [s.boot for s in made.live] == [boot("b")]
    assert set(made.revoked) == {first.session.credential_hash, renewed.session.credential_hash}
    with pytest.raises(Unverified, match="BOOT_ENDED"):
        made.issue("gateway", boot("a"), key("v").public, NOW + 3 * SECOND)


def test_a_boot_ends_when_its_last_session_expires_and_stays_ended() -> None:
    made = issuer()
    made.issue("gateway", boot("a"), key("s").public, NOW)
    made.issue("gateway", boot("a"), key("t").public, NOW + 200 * SECOND)
    assert made.expire(NOW + 301 * SECOND) == ()
    (ended,) = made.expire(NOW + 501 * SECOND)
    assert ended.boot == boot("a")
    assert made.live == ()
    with pytest.raises(Unverified, match="BOOT_ENDED"):
        made.issue("gateway", boot("a"), key("u").public, NOW + 502 * SECOND)


def test_only_the_holder_of_a_live_session_ends_its_boot() -> None:
    made = issuer()
    made.issue("gateway", boot("a"), key("s").public, NOW)
    with pytest.raises(Unverified, match="BOOT_UNKNOWN"):
        made.end("gateway", boot("a"), key("stranger").public)
    with pytest.raises(Unverified, match="BOOT_UNKNOWN"):
        made.end("gateway", boot("b"), key("s").public)
    assert [s.boot for s in made.end("gateway", boot("a"), key("s").public)] == [boot("a")]
    assert made.live == ()


def test_a_restart_takes_up_what_lives_and_what_was_revoked() -> None:
    before = issuer()
    kept = before.issue("gateway", boot("a"), key("s").public, NOW)
    gone = before.issue("execution", boot("x"), key("t").public, NOW)
    before.revoke("execution")
    after = issuer()
    after.restore(before.live, before.revoked, NOW + SECOND)
    assert after.live == (kept.session,)
    assert gone.session.credential_hash in after.revoked
    assert after.supersede("gateway", boot("b")) == (kept.session,)
    later = issuer()
    later.restore(before.live, (), NOW + 400 * SECOND)
    assert later.live == ()
