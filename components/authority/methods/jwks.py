"""The public keys of an issuer of tokens (RFC 7517): signed in the trust root, or fetched from its URL and kept.

- A key is good for one algorithm, which follows from its type: what a token's header says chooses nothing.  Symmetric
  keys, keys for encryption, RSA below 2048 bits and keys without a `kid` are no keys here.
- An issuer is asked for its keys when a `kid` is unknown, at most once in `EVERY_S`, and, while nobody waits, once what
  is known is older than `REFRESH_S`: so a key that it has taken back is forgotten.
- One question is under way for an issuer, whoever waits for it.  Who has a known key waits for nobody.
- While an issuer does not answer, what was known of it counts for `KEEP_S` more, and then nothing does.

The issuer is trusted with names of its own subjects alone: whoever controls it, or the file at its URL, can name
strategies, and still gets no session without their certificates.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, Final, Protocol

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt import PyJWK

from tallystick.schemas.errors import NOT_DECODED, CouldNotVerify, Malformed, TallystickError, Unverified
from tallystick.schemas.methods import MAX_KEYS, Jwk, ServiceAccount

# Of each type of key: the one algorithm that it signs with.
ALGORITHMS: Final = {("OKP", "Ed25519"): "EdDSA", ("EC", "P-256"): "ES256", ("RSA", ""): "RS256"}
MIN_RSA_BITS: Final = 2048
MAX_SET: Final = 65_536
EVERY_S: Final = 5.0
REFRESH_S: Final = 300.0
KEEP_S: Final = 3600.0

# What an issuer's URL answers, under what vouches for it (PEM).  Raises `TallystickError`.
Fetch = Callable[[str, str], Awaitable[bytes]]
Spawn = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]


class Keys(Protocol):
    """Where an issuer's keys are found."""

    async def find(self, kid: str) -> PyJWK:
        """The key of this id.  Raises `Unverified` for one that the issuer does not have."""
        ...


def usable(key: Jwk) -> PyJWK:
    """The key as pyjwt takes it.  Raises `Malformed`."""
    algorithm = ALGORITHMS.get((key.kty, key.crv))
    if algorithm is None or key.alg not in ("", algorithm):
        raise Malformed(
            "TOKEN_KEYS", f"key {key.kid[:48]!r} is for {key.alg or key.crv or key.kty}, which is not taken"
        )
    try:
        made = PyJWK({k: v for k, v in msgspec.to_builtins(key).items() if v}, algorithm=algorithm)
    except jwt.PyJWTError as exc:
        raise Malformed("TOKEN_KEYS", f"key {key.kid[:48]!r} is none of {algorithm}: {type(exc).__name__}") from exc
    if isinstance(made.key, rsa.RSAPublicKey) and made.key.key_size < MIN_RSA_BITS:
        raise Malformed("TOKEN_KEYS", f"key {key.kid[:48]!r} has {made.key.key_size} bits, at least {MIN_RSA_BITS}")
    return made


def key_set(keys: Iterable[Jwk]) -> dict[str, PyJWK]:
    """By id what the operator signed.  Raises `Malformed` for a key that cannot be used."""
    return {key.kid: usable(key) for key in keys}


class _Set(msgspec.Struct, frozen=True):
    keys: list[dict[str, Any]]


def parse_key_set(body: bytes) -> dict[str, PyJWK]:
    """By id what of an issuer's answer can be used.  Raises `Malformed` for what is no key set, or has none for us."""
    if len(body) > MAX_SET:
        raise Malformed("TOKEN_KEYS", f"a key set of {len(body)} bytes, limit {MAX_SET}")
    try:
        said = msgspec.json.decode(body, type=_Set)
    except NOT_DECODED as exc:
        raise Malformed("TOKEN_KEYS", f"no key set: {exc}"[:200]) from exc
    found: dict[str, PyJWK] = {}
    for raw in said.keys[:MAX_KEYS]:
        try:
            if raw.get("use", "sig") != "sig":
                continue
            key = msgspec.convert(raw, Jwk)
            made = usable(key)
        except (msgspec.ValidationError, Malformed):
            # A set may hold keys for others; what is not for us is not there.
            continue
        if key.kid in found:
            raise Malformed("TOKEN_KEYS", f"two keys have the id {key.kid[:48]!r}")
        found[key.kid] = made
    if not found:
        raise Malformed("TOKEN_KEYS", f"none of {len(said.keys)} keys is for {', '.join(ALGORITHMS.values())}")
    return found


class SignedKeys:
    """Keys that stand in the trust root."""

    def __init__(self, keys: Iterable[Jwk]) -> None:
        """Raises `Malformed`."""
        self._keys = key_set(keys)

    async def find(self, kid: str) -> PyJWK:
        """The key of this id.  Raises `Unverified`."""
        try:
            return self._keys[kid]
        except KeyError:
            raise Unverified("TOKEN_KEY", f"no key {kid[:48]!r} in the trust root") from None


class FetchedKeys:
    """Keys that are fetched; see the module docstring.  `fetch`, `spawn` and `monotonic` (seconds) are its ports."""

    def __init__(self, method: ServiceAccount, fetch: Fetch, spawn: Spawn, monotonic: Callable[[], float]) -> None:
        self._url = method.url
        self._ca = method.ca
        self._fetch = fetch
        self._spawn = spawn
        self._monotonic = monotonic
        self._keys: dict[str, PyJWK] = {}
        self._fetched = self._asked = float("-inf")
        self._under_way: asyncio.Task[None] | None = None
        self._failure = ""

    async def find(self, kid: str) -> PyJWK:
        """The key of this id.  Raises `Unverified` (`CouldNotVerify` while the issuer does not answer)."""
        now = self._monotonic()
        known = self._keys.get(kid) if now - self._fetched <= KEEP_S else None
        if known is None or now - self._fetched > REFRESH_S:
            self._ask(now)
        if known is None and self._under_way is not None:
            # Whoever gives up waiting takes the answer from nobody else.
            await asyncio.shield(self._under_way)
            known = self._keys.get(kid) if self._monotonic() - self._fetched <= KEEP_S else None
        if known is not None:
            return known
        if self._failure:
            raise CouldNotVerify("TOKEN_KEYS", f"the keys of {self._url} cannot be had: {self._failure}")
        raise Unverified(
            "TOKEN_KEY", f"{self._url} has no key {kid[:48]!r}; it is asked at most once in {EVERY_S:.0f} s"
        )

    def _ask(self, now: float) -> None:
        if self._under_way is None and now - self._asked >= EVERY_S:
            self._asked = now
            self._under_way = self._spawn(self._refresh())

    async def _refresh(self) -> None:
        try:
            self._keys = parse_key_set(await self._fetch(self._url, self._ca))
        except TallystickError as exc:
            self._failure = exc.text
        else:
            self._failure = ""
            self._fetched = self._monotonic()
        finally:
            self._under_way = None
