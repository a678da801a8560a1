"""Credentials against the trust root; the token's own form is in test_nats_jwt and in the vectors."""

from __future__ import annotations

import hashlib

import msgspec
import pytest

from tallystick.schemas.credential import open_credential
from tallystick.schemas.errors import TallystickError
from tallystick.schemas.nats_jwt import encode_jwt, encode_key, user_claims
from tests.support.world import NOW, PUBLISHES, credential, key, seed, trust_root

ROOT = trust_root()
S = 1_000_000_000


@pytest.mark.parametrize("component", PUBLISHES)
def test_each_component_has_a_credential_of_its_own(component: str) -> None:
    made, session = credential(component)
    assert made.component == component
    assert made.session_key == session.public
    assert made.digest == hashlib.sha256(made.text.encode()).digest()
    assert (made.issued_at, made.expires_at) == (NOW, NOW + 300 * S)
    assert made.deployment == ROOT.deployment


def refusal(text: str, lifetime: int = 900) -> str:
    with pytest.raises(TallystickError) as caught:
        open_credential(text, trust_root(lifetime=lifetime))
    return caught.value.code


def token(component: str = "execution", role: str = "role execution", account: str = "account execution") -> str:
    signer = key(role)
    issued = NOW // S
    claims = user_claims(
        component, seed("b")[:16], key("s").public, signer.public, key(account).public, issued, issued + 300, "1"
    )
    return encode_jwt(signer, "A", claims)


def test_nobody_signs_for_another_component() -> None:
    assert refusal(token(role="role gateway")) == "ROLE_KEY"
    assert refusal(token(role="thief")) == "ROLE_KEY"
    assert refusal(token(component="gateway")) == "ROLE_KEY"
    assert refusal(token(component="stranger")) == "COMPONENT_UNKNOWN"
    assert refusal(token(account="account gateway")) == "ACCOUNT"


def test_a_lifetime_ends_where_the_trust_root_says() -> None:
    assert open_credential(token(), trust_root(lifetime=300)).component == "execution"
    assert refusal(token(), lifetime=299) == "CREDENTIAL_LIFETIME"


def test_an_operators_signature_makes_no_component() -> None:
    signer, issued = key("operator"), NOW // S
    role, account = key("role execution").public, key("account execution").public
    claims = user_claims("execution", seed("b")[:16], key("s").public, role, account, issued, issued + 300, "1")
    by_operator = encode_jwt(signer, "O", msgspec.structs.replace(claims, iss=encode_key("O", signer.public)))
    assert refusal(by_operator) == "KEY_PREFIX"
