"""Tokens of strategies under attack, at the running authority: forged, borrowed, played back, confused."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import os
import socket
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tallystick.runtime.deployment.folder import KEY_ISSUER
from tallystick.runtime.deployment.methods import key_id
from tallystick.runtime.deployment.service_accounts import mint
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.enrolment import MAX_TOKEN, Asked
from tallystick.schemas.methods import ServiceAccount
from tallystick.schemas.nats_jwt import SessionKey
from tests.support.deployment import make
from tests.support.identity import Door, Evidence, always
from tests.support.waiting import until

ALPHA, BETA = "strategy-alpha", "strategy-beta"


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Issuer:
    """The deployment's issuer, and a forger beside it."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self.token = door.token("issuer")
        self.signer = self.token.signer(KEY_ISSUER)
        self.kid = key_id(self.signer.public)

    def method(self, name: str = ALPHA) -> ServiceAccount:
        method = self.door.trust.component(name).method
        assert isinstance(method, ServiceAccount)
        return method

    def true(self, asked: Asked, name: str = ALPHA, **kw: Any) -> dict[str, str]:
        return shown(mint(self.method(name), asked.certificate, self.signer, time.time_ns(), **kw))

    def claims(self, asked: Asked, **changes: Any) -> dict[str, Any]:
        now, method = time.time_ns() // SECOND, self.method()
        claims: dict[str, Any] = {
            "iss": method.issuer, "aud": method.audience, "sub": method.subject, "iat": now, "nbf": now,
            "exp": now + 60, "jti": os.urandom(8).hex(), "cnf": {"x5t#S256": b64(asked.certificate)},
        }  # fmt: skip
        return {k: v for k, v in {**claims, **changes}.items() if v is not None}

    def signed(self, claims: object, sign: Any = None, **header: Any) -> dict[str, str]:
        """A token with any header, signed by the true key or by `sign`."""
        head = {k: v for k, v in {"alg": "EdDSA", "typ": "JWT", "kid": self.kid, **header}.items() if v is not None}
        said = f"{b64(json.dumps(head).encode())}.{b64(json.dumps(claims).encode())}"
        return shown(f"{said}.{b64((sign or self.signer.sign)(said.encode()))}")

    def saying(self, sign: Any = None, header: dict[str, Any] | None = None, **claims: Any) -> Evidence:
        """Such a token for whatever is asked, with these claims changed."""
        return lambda asked: self.signed(self.claims(asked, **claims), sign, **(header or {}))


def shown(token: str) -> dict[str, str]:
    return {"kind": "service-account", "token": token}


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    made = Door(*make(tmp_path_factory.mktemp("t") / "desk"))
    with made.running():
        yield made


@pytest.fixture(scope="module")
def issuer(door: Door) -> Iterator[Issuer]:
    made = Issuer(door)
    yield made
    made.token.close()


async def test_a_token_opens_one_session_and_the_record_says_how(door: Door, issuer: Issuer) -> None:
    assert await door.session(ALPHA, issuer.true) == ""
    assert await door.session(ALPHA, issuer.saying()) == ""

    def used() -> set[str]:
        return {e.method for e in door.issued if e.method.startswith("spiffe-mtls+service-account ")}

    await until(lambda: len(used()) >= 2, "both on record")
    assert all(len(method.split()[1]) == 64 for method in used())


async def test_a_certificate_without_its_second_proof_opens_nothing(door: Door, issuer: Issuer) -> None:
    since = len(door.notices)
    for name in (ALPHA, "execution", "market-data"):
        assert await door.session(name, None) == "METHOD"
    assert "showed nothing" in (await door.told("METHOD", since)).text
    # Nor do the proofs of another method, nor one where none is due.
    for wrong in (
        {"kind": "api-key", "key": "00" * 32, "next": "11" * 32},
        {"kind": "hardware-token", "challenge": "00" * 32, "signature": "00" * 64},
    ):
        assert await door.session(ALPHA, always(wrong)) == "METHOD"
    for name in ("execution", "market-data", "audit", "gateway"):
        assert await door.session(name, issuer.true) == "METHOD"
    assert await door.session("portfolio", None) == ""
    assert await door.session(ALPHA, lambda _: {"kind": "password", "password": "x"}) == "REQUEST"


async def test_a_renewal_needs_a_token_as_the_first_session_does(door: Door, issuer: Issuer) -> None:
    boot, key, following = os.urandom(16), SessionKey(os.urandom(32)), SessionKey(os.urandom(32))
    assert await door.session(ALPHA, issuer.true, boot=boot, key=key) == ""
    assert await door.session(ALPHA, None, boot=boot, key=following, held=key) == "METHOD"
    assert await door.session(ALPHA, issuer.true, boot=boot, key=following, held=key) == ""


async def test_a_token_played_back_opens_nothing_also_after_a_restart_of_the_authority(
    door: Door, issuer: Issuer
) -> None:
    since = len(door.notices)
    taken: list[dict[str, str]] = []

    def true(asked: Asked) -> dict[str, str]:
        taken.append(issuer.true(asked))
        return taken[-1]

    assert await door.session(ALPHA, true) == ""
    assert await door.session(ALPHA, lambda _: taken[0]) == "TOKEN_USED"
    await door.told("TOKEN_USED", since)
    await asyncio.to_thread(door.restart)
    assert await door.session(ALPHA, lambda _: taken[0]) == "TOKEN_USED"
    assert await door.session(ALPHA, issuer.true) == ""


async def test_a_stolen_token_is_worth_nothing_under_another_certificate(door: Door, issuer: Issuer) -> None:
    since = len(door.notices)
    beta = door.identity(BETA)
    alphas = Asked("test", ALPHA, b"", b"", door.identity(ALPHA).fingerprint)
    # Another strategy of the same user reads alpha's token from the disk, and shows it under its own certificate.
    assert await door.session(BETA, lambda _: issuer.true(alphas), identity=beta) == "TOKEN_CLAIMS"
    assert await door.session(ALPHA, lambda _: issuer.true(alphas), identity=beta) == "IDENTITY"
    # A token for alpha that names another certificate, or none.
    other = {"x5t#S256": b64(beta.fingerprint)}
    for cnf in (other, None, {}, {"jkt": "x"}):
        said = await door.session(ALPHA, issuer.saying(cnf=cnf))
        assert said == "TOKEN_BINDING"
    await door.told("TOKEN_BINDING", since)
    await door.told("TOKEN_CLAIMS", since)


async def test_no_algorithm_but_the_keys_own_is_taken(door: Door, issuer: Issuer) -> None:
    """`none`; HS256 with the public key for a secret (CVE-2015-9235); another one that the list has."""
    since = len(door.notices)
    public = issuer.signer.public
    pem = Ed25519PublicKey.from_public_bytes(public).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    secrets = (public, pem, pem.strip(), b64(public).encode(), b"")
    attempts: list[tuple[str, Any]] = [(alg, lambda _: b"") for alg in ("none", "None", "NONE", "")]
    attempts += [("HS256", lambda said, its=its: hmac.digest(its, said, "sha256")) for its in secrets]
    attempts += [(alg, None) for alg in ("ES256", "RS256", "PS256", "ES256K", "HS512", "EdDSA ")]
    for algorithm, sign in attempts:
        said = await door.session(ALPHA, issuer.saying(sign, {"alg": algorithm}))
        assert said in ("TOKEN_ALGORITHM", "TOKEN"), algorithm
    await door.told("TOKEN_ALGORITHM", since)


async def test_no_key_but_the_issuers_counts_whatever_a_header_names(door: Door, issuer: Issuer) -> None:
    since = len(door.notices)
    forger = Ed25519PrivateKey.generate()
    raw = forger.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    jwk = {"kty": "OKP", "crv": "Ed25519", "x": b64(raw), "kid": issuer.kid}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/keys"
        headers: list[dict[str, Any]] = [
            {"jwk": jwk},
            {"jku": url},
            {"x5u": url},
            {"x5c": [b64(raw)]},
            {"jku": url, "jwk": jwk},
        ]
        for header in headers:
            said = await door.session(ALPHA, issuer.saying(forger.sign, header))
            assert said == "TOKEN_SIGNATURE", header
        # Nobody was asked for the forger's keys.
        with pytest.raises(BlockingIOError):
            listener.accept()
    for kid in ("other", "../../etc/passwd", "' OR 1=1 --", key_id(raw)):
        said = await door.session(ALPHA, issuer.saying(forger.sign, {"kid": kid}))
        assert said == "TOKEN_KEY", kid
    for nonsense in (None, 7, "", ["a"]):
        assert await door.session(ALPHA, issuer.saying(None, {"kid": nonsense})) == "TOKEN", nonsense
    said = await door.session(ALPHA, issuer.saying(None, {"crit": ["exp"]}))
    assert said in ("TOKEN_ALGORITHM", "TOKEN")
    await door.told("TOKEN_KEY", since)
    await door.told("TOKEN_SIGNATURE", since)


class After(int):
    """So many seconds after the token is made; the suite takes longer than some of these."""


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"iss": "urn:tallystick:other:up"}, "TOKEN_CLAIMS"),
        ({"aud": "https://kubernetes.default.svc"}, "TOKEN_CLAIMS"),
        ({"aud": []}, "TOKEN_CLAIMS"),
        ({"sub": "spiffe://test/strategy-beta"}, "TOKEN_CLAIMS"),
        ({"sub": "spiffe://test/strategy-alpha "}, "TOKEN_CLAIMS"),
        ({"exp": After(-1), "iat": After(-60), "nbf": After(-60)}, "TOKEN_TIME"),
        ({"nbf": After(300), "exp": After(400)}, "TOKEN_TIME"),
        ({"iat": After(300), "exp": After(400)}, "TOKEN_TIME"),
        ({"exp": After(86_400)}, "TOKEN_TIME"),
        *(({name: None}, "TOKEN") for name in ("iss", "aud", "sub", "exp", "nbf", "iat", "jti")),
        ({"exp": "never"}, "TOKEN"),
        ({"exp": 1e300}, "TOKEN"),
        ({"iat": -1}, "TOKEN"),
        ({"jti": ""}, "TOKEN"),
    ],
    ids=str,
)
async def test_a_token_with_a_claim_that_is_not_as_signed_opens_nothing(
    door: Door, issuer: Issuer, changes: dict[str, Any], code: str
) -> None:
    now = time.time_ns() // SECOND
    said: dict[str, Any] = {n: now + v if isinstance(v, After) else v for n, v in changes.items()}
    assert await door.session(ALPHA, issuer.saying(**said)) == code
    # Of each kind one notice a second.
    await door.told(code)


async def test_what_is_no_token_or_too_large_is_refused_and_told(door: Door, issuer: Issuer) -> None:
    since = len(door.notices)
    for text in ("", ".", "..", "a.b.c", "\u0000", "ey" * 100, "." * 999, "é.é.é"):
        assert await door.session(ALPHA, always(shown(text))) == "TOKEN", text
    assert await door.session(ALPHA, lambda _: shown("a" * (MAX_TOKEN + 1))) == "TOKEN_SIZE"
    nested = "[" * 3000
    said = f"{b64(json.dumps({'alg': 'EdDSA', 'kid': issuer.kid}).encode())}.{b64(nested.encode())}"
    assert await door.session(ALPHA, lambda _: shown("a" * 60_000)) == "REQUEST_SIZE"
    signed = shown(f"{said}.{b64(issuer.signer.sign(said.encode()))}")
    assert await door.session(ALPHA, lambda _: signed) in ("TOKEN", "TOKEN_SIZE")
    await door.told("TOKEN_SIZE", since)
    await door.told("REQUEST_SIZE", since)


async def flooded(door: Door, issuer: Issuer) -> tuple[list[float], list[int]]:
    """Ten sessions of another component meanwhile: how long each took (s), and how many wrong tokens were refused in it."""
    ended = asyncio.Event()
    refused = 0

    async def flood() -> None:
        nonlocal refused
        while not ended.is_set():
            said = await door.session(ALPHA, issuer.saying(iss="x"))
            assert said in ("TOKEN_CLAIMS", "REQUEST_RATE")
            refused += 1

    floods = [asyncio.create_task(flood()) for _ in range(4)]
    try:
        await until(lambda: refused > 10, "the flood")
        took, passed = [], []
        for _ in range(10):
            began, before = time.monotonic(), refused
            assert await door.session("gateway", None) == ""
            took.append(time.monotonic() - began)
            passed.append(refused - before)
    finally:
        ended.set()
        await asyncio.gather(*floods)
    return took, passed


async def test_wrong_tokens_without_end_keep_nobody_else_from_his_turn(door: Door, issuer: Issuer) -> None:
    _, passed = await flooded(door, issuer)
    # Four ask as often as they can.
    assert sorted(passed)[5] <= 3 * 4


@pytest.mark.slow
async def test_wrong_tokens_without_end_delay_nobody_else(door: Door, issuer: Issuer) -> None:
    # Alone on its machine: `make slow` runs one test after the other.
    took, _ = await flooded(door, issuer)
    assert sorted(took)[5] < 0.5


def test_the_wire_form_of_evidence_is_as_documented() -> None:
    from tallystick.schemas.enrolment import ApiKeyEvidence, HardwareEvidence, TokenEvidence

    assert msgspec.json.encode(TokenEvidence("t")) == b'{"kind":"service-account","token":"t"}'
    assert msgspec.json.encode(HardwareEvidence("c", "s")) == (
        b'{"kind":"hardware-token","challenge":"c","signature":"s"}'
    )
    assert msgspec.json.encode(ApiKeyEvidence("k", "n")) == b'{"kind":"api-key","key":"k","next":"n"}'
