"""Another issuer of strategies' tokens, a Kubernetes cluster's say: its keys change, vanish, and are asked for without end."""

from __future__ import annotations

import asyncio
import base64
import functools
import json
import os
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from tallystick.components.authority.methods.jwks import EVERY_S, KEEP_S, REFRESH_S, FetchedKeys, parse_key_set
from tallystick.components.authority.proofs import fetch
from tallystick.runtime.bus.tasks import Tasks
from tallystick.runtime.deployment.template import DEFAULT_TEMPLATE
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.enrolment import Asked
from tallystick.schemas.errors import CouldNotVerify, Malformed, Unverified
from tallystick.schemas.methods import ServiceAccount
from tests.support.deployment import make
from tests.support.identity import Door
from tests.support.tls import ServerTls, make_server_tls
from tests.support.waiting import until

ALPHA = "strategy-alpha"
ISSUER = "https://kubernetes.default.svc.cluster.local"
IDENTITY = """
[identity.strategies]
issuer = "{issuer}"
audience = "tallystick"
subject = "system:serviceaccount:trading:{{{{strategy}}}}"
url = "{url}"
ca = "{ca}"
token_file = "tokens/{{{{strategy}}}}"
"""


class Key:
    """A key of the issuer's."""

    def __init__(self, kid: str, algorithm: str) -> None:
        self.kid, self.algorithm = kid, algorithm
        self.private: Any
        if algorithm == "RS256":
            self.private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
            said = RSAAlgorithm.to_jwk(self.private.public_key(), as_dict=True)
        elif algorithm == "ES256":
            self.private = ec.generate_private_key(ec.SECP256R1())
            said = ECAlgorithm.to_jwk(self.private.public_key(), as_dict=True)
        else:
            self.private = ed25519.Ed25519PrivateKey.generate()
            said = OKPAlgorithm.to_jwk(self.private.public_key(), as_dict=True)
        said.pop("key_ops", None)
        self.jwk = {**said, "kid": kid, "use": "sig", "alg": algorithm}

    def token(self, asked: Asked, **changes: Any) -> dict[str, str]:
        """As a kubelet gets it: an audience of several, no certificate named, ten minutes."""
        now = time.time_ns() // SECOND
        claims = {
            "aud": ["tallystick", "other"], "exp": now + 600, "iat": now, "nbf": now, "iss": ISSUER,
            "jti": os.urandom(8).hex(), "sub": "system:serviceaccount:trading:alpha",
            "kubernetes.io": {"namespace": "trading", "serviceaccount": {"name": "alpha"}},
        } | changes  # fmt: skip
        token = jwt.encode(claims, self.private, algorithm=self.algorithm, headers={"kid": self.kid})
        return {"kind": "service-account", "token": token}


class Published:
    """Where the issuer publishes its keys; `says` is what it answers, `asked` how often it was."""

    def __init__(self) -> None:
        self.keys: list[dict[str, Any]] = []
        self.asked = 0
        self.delay_s = 0.0
        self.status = 200
        self.raw: bytes | None = None

    async def answer(self, _: web.Request) -> web.Response:
        self.asked += 1
        await asyncio.sleep(self.delay_s)
        body = json.dumps({"keys": self.keys}).encode() if self.raw is None else self.raw
        headers = {"Location": "https://127.0.0.1:1/"} if self.status == 302 else {}
        return web.Response(status=self.status, body=body, headers=headers)


@pytest.fixture(scope="module")
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> ServerTls:
    return make_server_tls(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory, listener: socket.socket, tls: ServerTls) -> Iterator[Door]:
    identity = IDENTITY.format(issuer=ISSUER, url=f"https://localhost:{listener.getsockname()[1]}/keys", ca=tls.ca)
    made = Door(*make(tmp_path_factory.mktemp("i") / "desk", template=DEFAULT_TEMPLATE + identity))
    with made.running():
        yield made


@pytest.fixture
async def issuer(listener: socket.socket, tls: ServerTls) -> AsyncIterator[Published]:
    made = Published()
    app = web.Application()
    app.router.add_get("/keys", made.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.SockSite(runner, listener.dup(), ssl_context=tls.server()).start()
    yield made
    await runner.cleanup()


async def test_keys_that_rotate_are_followed_and_asked_for_at_most_once_in_a_while(
    door: Door, issuer: Published
) -> None:
    since = len(door.notices)
    first = [Key("rsa", "RS256"), Key("ec", "ES256"), Key("ed", "EdDSA")]
    second = Key("next", "ES256")
    # What is for somebody else's use is skipped.
    issuer.keys = [k.jwk for k in first] + [{"kty": "oct", "kid": "secret", "k": "AAAA"}, {"kty": "EC", "kid": "bad"}]
    for key in first:
        assert await door.session(ALPHA, key.token) == "", key.algorithm
    assert issuer.asked == 1
    # A forger's tokens with an unknown key make nobody ask again and again.
    issuer.keys = [second.jwk]
    for n in range(20):
        assert await door.session(ALPHA, Key(f"forged-{n}", "EdDSA").token) == "TOKEN_KEY"
    assert issuer.asked == 1
    # Known keys are good, whatever the forger does; the cluster's next one is found once it is time to ask.
    assert await door.session(ALPHA, first[0].token) == ""
    began = time.monotonic()
    while await door.session(ALPHA, second.token) == "TOKEN_KEY":
        assert time.monotonic() - began < EVERY_S + 5
        await asyncio.sleep(0.2)
    assert issuer.asked == 2
    # The one that was taken back is gone.
    assert await door.session(ALPHA, first[0].token) == "TOKEN_KEY"
    # Keys of one id and another type: the algorithm is the key's, not the header's.
    confused = Key("next", "EdDSA")
    assert await door.session(ALPHA, confused.token) == "TOKEN_ALGORITHM"
    assert await door.session(ALPHA, Key("next", "ES256").token) == "TOKEN_SIGNATURE"
    for changes in ({"sub": "system:serviceaccount:trading:beta"}, {"aud": ["other"]}, {"iss": ISSUER + "/"}):
        assert await door.session(ALPHA, functools.partial(second.token, **changes)) == "TOKEN_CLAIMS"
    now = time.time_ns() // SECOND
    assert await door.session(ALPHA, lambda asked: second.token(asked, exp=now + 3607)) == "TOKEN_TIME"
    # A cluster's token names no certificate; where one names another than is shown, it counts for nothing.
    other = {"x5t#S256": base64.urlsafe_b64encode(bytes(32)).rstrip(b"=").decode()}
    assert await door.session(ALPHA, lambda asked: second.token(asked, cnf=other)) == "TOKEN_BINDING"
    await door.told("TOKEN_KEY", since)


async def test_an_issuer_that_hangs_delays_nobody_but_who_waits_for_it(door: Door, issuer: Published) -> None:
    issuer.delay_s = 30.0
    await asyncio.sleep(EVERY_S)
    waiting = asyncio.create_task(door.session(ALPHA, Key("unheard-of", "EdDSA").token))
    await until(lambda: issuer.asked, "the question to the issuer")
    took = []
    for _ in range(5):
        began = time.monotonic()
        assert await door.session("gateway", None) == ""
        took.append(time.monotonic() - began)
    assert not waiting.done()
    assert max(took) < 1.0
    assert await waiting == "TOKEN_KEYS"
    assert issuer.asked == 1


# -- the rules of keeping and asking --------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def kept(listener: socket.socket, tls: ServerTls) -> AsyncIterator[tuple[FetchedKeys, Clock]]:
    url = f"https://localhost:{listener.getsockname()[1]}/keys"
    method = ServiceAccount(issuer="i", audience="a", subject="s", single=False, url=url, ca=Path(tls.ca).read_text())
    clock, tasks = Clock(), Tasks()
    yield FetchedKeys(method, fetch, tasks.start, clock), clock
    await tasks.end()


async def test_while_the_issuer_is_down_its_keys_count_for_an_hour_and_then_nothing_does(
    issuer: Published, kept: tuple[FetchedKeys, Clock]
) -> None:
    keys, clock = kept
    issuer.keys = [Key("a", "EdDSA").jwk]
    await keys.find("a")
    issuer.status = 500
    for at in (REFRESH_S + 1, KEEP_S / 2, KEEP_S):
        clock.now = at
        await keys.find("a")
        with pytest.raises(CouldNotVerify, match="TOKEN_KEYS"):
            await keys.find("b")
    clock.now = KEEP_S + 1
    with pytest.raises(CouldNotVerify, match="answered 500"):
        await keys.find("a")
    # It recovers by itself.
    issuer.status = 200
    clock.now += EVERY_S
    await keys.find("a")
    with pytest.raises(Unverified, match="TOKEN_KEY:"):
        await keys.find("b")


async def test_a_key_that_the_issuer_takes_back_is_forgotten_without_anybody_asking_for_another(
    issuer: Published, kept: tuple[FetchedKeys, Clock]
) -> None:
    keys, clock = kept
    stolen, good = Key("stolen", "EdDSA"), Key("good", "EdDSA")
    issuer.keys = [stolen.jwk, good.jwk]
    await keys.find("stolen")
    issuer.keys = [good.jwk]
    clock.now = REFRESH_S + 1
    await keys.find("good")
    await until(lambda: keys._under_way is None, "the answer")
    with pytest.raises(Unverified, match="TOKEN_KEY"):
        await keys.find("stolen")


async def test_who_waits_for_the_same_issuer_asks_once_together_and_one_who_leaves_takes_nothing_from_the_others(
    issuer: Published, kept: tuple[FetchedKeys, Clock]
) -> None:
    keys, _ = kept
    issuer.keys, issuer.delay_s = [Key("a", "EdDSA").jwk], 0.3
    impatient = asyncio.create_task(keys.find("a"))
    others = [asyncio.create_task(keys.find("a")) for _ in range(10)]
    await asyncio.sleep(0.1)
    impatient.cancel()
    found = await asyncio.gather(*others)
    assert {its.key_id for its in found} == {"a"}
    assert issuer.asked == 1


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"[]",
        b"{}",
        b'{"keys": {}}',
        b'{"keys": []}',
        b'{"keys": [{"kty": "oct", "kid": "a", "k": "AAAA"}]}',
        b'{"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "a", "x": "AAAA"}]}',
        b"[" * 50_000,
        b" " * 70_000 + b'{"keys": []}',
    ],
    ids=lambda said: repr(said[:24]),
)
async def test_an_issuer_that_says_nonsense_is_as_one_that_says_nothing(
    issuer: Published, kept: tuple[FetchedKeys, Clock], said: bytes
) -> None:
    issuer.raw = said
    with pytest.raises(CouldNotVerify, match="TOKEN_KEYS"):
        await kept[0].find("a")


async def test_no_redirection_is_followed_and_nobody_but_the_named_authority_vouches_for_the_url(
    issuer: Published, tls: ServerTls, listener: socket.socket, tmp_path: Path
) -> None:
    url = f"https://localhost:{listener.getsockname()[1]}/keys"
    issuer.status = 302
    with pytest.raises(CouldNotVerify, match="answered 302"):
        await fetch(url, tls.ca.read_text())
    other = make_server_tls(tmp_path)
    for ca in (other.ca.read_text(), "no certificate"):
        with pytest.raises(CouldNotVerify, match="TOKEN_KEYS"):
            await fetch(url, ca)
    assert issuer.asked == 1


def test_keys_that_are_too_weak_or_ambiguous_are_none() -> None:
    good, small = Key("good", "EdDSA"), rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505 - the attack
    weak = RSAAlgorithm.to_jwk(small.public_key(), as_dict=True) | {"kid": "weak"}
    for_encryption = {**Key("enc", "RS256").jwk, "use": "enc"}
    other = {**Key("other", "RS256").jwk, "alg": "PS256"}
    nameless = {k: v for k, v in good.jwk.items() if k != "kid"}
    said = json.dumps({"keys": [weak, for_encryption, other, nameless, good.jwk]}).encode()
    assert set(parse_key_set(said)) == {"good"}
    with pytest.raises(Malformed, match="two keys"):
        parse_key_set(json.dumps({"keys": [good.jwk, Key("good", "ES256").jwk]}).encode())
