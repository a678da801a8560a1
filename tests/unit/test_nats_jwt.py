"""nkeys and NATS JWTs: what is refused, by name of the defect."""

from __future__ import annotations

import base64
import json
import pickle

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from tallystick.schemas.errors import Malformed, TallystickError, Unverified
from tallystick.schemas.nats_jwt import (
    Claims,
    CredentialToken,
    SessionKey,
    decode_credential,
    decode_jwt,
    decode_key,
    encode_jwt,
    encode_key,
    sign_nonce,
    user_claims,
)

ROLE, SESSION, ACCOUNT = SessionKey(b"r" * 32), SessionKey(b"s" * 32), SessionKey(b"a" * 32)
BOOT = bytes(range(16))
CLAIMS = user_claims("execution", BOOT, SESSION.public, ROLE.public, ACCOUNT.public, 1_700_000_000, 1_700_000_120, "t1")
TOKEN = encode_jwt(ROLE, "A", CLAIMS)


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _raw(header: bytes, claims: bytes, signer: SessionKey = ROLE) -> str:
    signed = f"{_b64(header)}.{_b64(claims)}"
    return f"{signed}.{_b64(signer.sign(signed.encode()))}"


HEADER = b'{"typ":"JWT","alg":"ed25519-nkey"}'
BODY = msgspec.json.encode(CLAIMS)


def test_a_credential_says_who_and_until_when() -> None:
    assert decode_credential(TOKEN) == CredentialToken(
        component="execution",
        boot=BOOT,
        session=SESSION.public,
        role=ROLE.public,
        account=ACCOUNT.public,
        issued_s=1_700_000_000,
        expires_s=1_700_000_120,
        jti="t1",
    )


def test_a_credential_fits_into_a_message() -> None:
    assert len(TOKEN) < 620


def test_known_nkey_from_the_nkeys_repository() -> None:
    # nkeys v0.4 README: seed SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY gives this public key.
    text = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4"
    assert encode_key("U", decode_key("U", text)) == text


@pytest.mark.parametrize("prefix", ["O", "A", "U", "N"])
def test_a_key_text_starts_with_its_kind(prefix: str) -> None:
    text = encode_key(prefix, ROLE.public)  # type: ignore[arg-type]
    assert text[0] == prefix
    assert len(text) == 56


def test_a_key_of_another_kind_is_refused() -> None:
    with pytest.raises(Malformed, match="KEY_PREFIX"):
        decode_key("A", encode_key("U", ROLE.public))


@pytest.mark.parametrize("position", range(1, 56))
def test_a_mistyped_key_is_refused(position: int) -> None:
    text = encode_key("A", ROLE.public)
    changed = text[:position] + ("A" if text[position] != "A" else "B") + text[position + 1 :]
    with pytest.raises(Malformed, match="KEY_"):
        decode_key("A", changed)


@pytest.mark.parametrize(
    ("header", "code"),
    [
        (b'{"typ":"JWT","alg":"none"}', "JWT_HEADER"),
        (b'{"typ":"JWT","alg":"None"}', "JWT_HEADER"),
        (b'{"typ":"JWT","alg":"HS256"}', "JWT_HEADER"),
        (b'{"typ":"JWT","alg":"ed25519"}', "JWT_HEADER"),
        (b'{"alg":"ed25519-nkey","typ":"JWT"}', "JWT_HEADER"),
        (b'{"typ":"JWT","alg":"ed25519-nkey","jwk":{}}', "JWT_HEADER"),
        (b'{"typ":"JWT", "alg":"ed25519-nkey"}', "JWT_HEADER"),
    ],
)
def test_any_other_header_is_refused_even_if_signed(header: bytes, code: str) -> None:
    with pytest.raises(Unverified, match=code):
        decode_jwt(_raw(header, BODY))


def test_alg_none_without_a_signature_is_refused() -> None:
    with pytest.raises(Unverified, match="JWT_HEADER"):
        decode_jwt(_b64(b'{"typ":"JWT","alg":"none"}') + f".{_b64(BODY)}.")


def test_a_token_without_a_signature_is_refused() -> None:
    with pytest.raises(Malformed, match="JWT_BASE64"):
        decode_jwt(TOKEN.rsplit(".", 1)[0] + ".")


def test_a_token_signed_by_another_key_is_refused() -> None:
    with pytest.raises(Unverified, match="JWT_SIGNATURE"):
        decode_jwt(_raw(HEADER, BODY, SessionKey(b"x" * 32)))


def test_nobody_signs_claims_of_another_issuer() -> None:
    with pytest.raises(Malformed, match="JWT_ISSUER"):
        encode_jwt(SessionKey(b"x" * 32), "A", CLAIMS)


def _changed(**fields: object) -> bytes:
    return json.dumps({**json.loads(BODY), **fields}, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (BODY.replace(b'"iat":', b'"iat": '), "JWT_CANONICAL"),
        (BODY.replace(b'"iat":1700000000,', b'"iat":1600000000,"iat":1700000000,'), "JWT_CANONICAL"),
        (b"{" + BODY.split(b",", 1)[1][:-1] + b',"iat":1700000000}', "JWT_CANONICAL"),
        (BODY.replace(b'"execution"', b'"\\u0065xecution"'), "JWT_CANONICAL"),
        (_changed(aud="x"), "JWT_CLAIMS"),
        (_changed(iat=-1), "JWT_TIMES"),
        (_changed(exp=1_700_000_000), "JWT_TIMES"),
        (_changed(iat=1.5), "JWT_CLAIMS"),
        (_changed(iat="1"), "JWT_CLAIMS"),
        (_changed(name="*"), "NAME"),
        (_changed(name="execution.>"), "NAME"),
        (_changed(sub=encode_key("A", SESSION.public)), "KEY_PREFIX"),
        (_changed(iss=encode_key("U", ROLE.public)), "KEY_PREFIX"),
        (b"[" * 100_000, "JWT_SIZE"),
        (b"[" * 400, "JWT_CLAIMS"),
        (b"null", "JWT_CLAIMS"),
        (b"\xff", "JWT_CLAIMS"),
    ],
)
def test_claims_out_of_form_are_refused_even_if_signed(body: bytes, code: str) -> None:
    with pytest.raises(Malformed, match=code):
        decode_credential(_raw(HEADER, body))


@pytest.mark.parametrize(
    "nats",
    [
        {"issuer_account": "x", "tags": ["boot:" + "0" * 32], "type": "user", "version": 2},
        {"tags": ["boot:" + "0" * 32], "type": "user", "version": 2},
        {**CLAIMS.nats, "tags": []},
        {**CLAIMS.nats, "tags": ["boot:" + "0" * 32, "boot:" + "1" * 32]},
        {**CLAIMS.nats, "tags": ["boot:" + "A" * 32]},
        {**CLAIMS.nats, "tags": ["boot:" + "0" * 30]},
        {**CLAIMS.nats, "type": "account"},
        {**CLAIMS.nats, "version": 2.0},
        {**CLAIMS.nats, "bearer_token": True},
        {**CLAIMS.nats, "pub": {"allow": [">"]}},
        dict(reversed(CLAIMS.nats.items())),
    ],
)
def test_a_session_holds_nothing_but_name_keys_boot_and_times(nats: dict[str, object]) -> None:
    with pytest.raises(Malformed):
        decode_credential(_raw(HEADER, msgspec.json.encode(msgspec.structs.replace(CLAIMS, nats=nats))))


def test_padding_and_stray_bits_in_base64_are_refused() -> None:
    head, body, signature = TOKEN.split(".")
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    stray = signature[:-1] + alphabet[alphabet.index(signature[-1]) + 1]
    for text in (f"{head}.{body}.{signature}==", f"{head}.{body}.{stray}", TOKEN + "\n", f" {TOKEN}", f"{TOKEN}.x"):
        with pytest.raises(TallystickError):
            decode_jwt(text)


@given(st.integers(0, len(TOKEN) - 1), st.characters(codec="latin-1"))
@settings(max_examples=100)
def test_no_changed_character_survives(position: int, char: str) -> None:
    changed = TOKEN[:position] + char + TOKEN[position + 1 :]
    if changed == TOKEN:
        return
    with pytest.raises(TallystickError):
        decode_jwt(changed)


@given(st.text(max_size=200) | st.binary(max_size=100).map(_b64))
@settings(max_examples=100)
def test_garbage_is_refused_without_another_exception(text: str) -> None:
    for refused in (text, f"{TOKEN.split('.')[0]}.{text}.{TOKEN.split('.')[2]}"):
        with pytest.raises(TallystickError):
            decode_credential(refused)


@pytest.mark.parametrize(
    "nonce",
    [
        "",
        "short",
        "x" * 65,
        "tallystick seal v1\0aaaaaaaaaaa",
        "abcdefghijkl\n",
        "abcdefghijk.",
        TOKEN[:64] + ".",
        "ééééééééééééé",
    ],
)
def test_a_hostile_login_nonce_is_not_signed(nonce: str) -> None:
    with pytest.raises(Unverified, match="LOGIN_NONCE"):
        sign_nonce(SESSION, nonce)


def test_a_login_nonce_is_signed() -> None:
    signature = base64.b64decode(sign_nonce(SESSION, "q0jGWeZnbVBqRw8"))
    Ed25519PublicKey.from_public_bytes(SESSION.public).verify(signature, b"q0jGWeZnbVBqRw8")


def test_a_session_key_shows_and_pickles_no_secret() -> None:
    key = SessionKey(b"secret-secret-secret-secret-1234")
    assert repr(key) == f"SessionKey({encode_key('U', key.public)})"
    with pytest.raises(TypeError):
        pickle.dumps(key)


def test_a_token_that_never_expires_says_so_by_leaving_exp_out() -> None:
    claims = Claims(
        iat=1, iss=encode_key("O", ROLE.public), sub=encode_key("A", ACCOUNT.public), name="CORE", jti="j", nats={}
    )
    assert decode_jwt(encode_jwt(ROLE, "O", claims)) == claims
