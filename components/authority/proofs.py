"""What a component shows besides its certificate, judged by the method that the trust root names for it.

- The method that is named, and no other: what is shown of another kind is refused, and so is nothing where something is
  due, or something where nothing is.
- It is asked for at the first session of a boot and at each renewal.
- The record of each session says by which method it was opened, and which token it used up: what a restarted authority
  reads there is not used a second time.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import aiohttp

from tallystick.components.authority.methods.api_key import ApiKeys
from tallystick.components.authority.methods.hardware_token import Challenges
from tallystick.components.authority.methods.jwks import MAX_SET, FetchedKeys, Keys, SignedKeys, Spawn
from tallystick.components.authority.methods.service_account import Tokens
from tallystick.schemas.enrolment import (
    ApiKeyEvidence,
    Asked,
    ChallengeAnswer,
    Evidence,
    HardwareEvidence,
    TokenEvidence,
    decode_challenge,
    hex_bytes,
)
from tallystick.schemas.errors import CouldNotVerify, Unverified
from tallystick.schemas.grants import open_key_grant
from tallystick.schemas.methods import ApiKey, HardwareToken, ServiceAccount, name_of
from tallystick.schemas.nats_jwt import BOOT_BYTES
from tallystick.schemas.trust import TrustRoot

MTLS: Final = "spiffe-mtls"
FETCH_S: Final = 3.0


class Proofs:
    """Who judges whom, by the trust root; `folder` is the authority's own.  Times are Unix nanoseconds."""

    def __init__(self, trust: TrustRoot, folder: Path, *, entropy: Callable[[int], bytes], spawn: Spawn) -> None:
        """Raises `ConfigError` for what was kept and cannot be read, `Malformed` for a method that proves nothing."""
        self._trust = trust
        self._tokens: dict[str, Tokens] = {}
        self._challenges: dict[str, Challenges] = {}
        self._api_keys: dict[str, ApiKeys] = {}
        # Components of one issuer share what is known of its keys.
        issuers: dict[tuple[object, ...], Keys] = {}
        for name, component in trust.components.items():
            match component.method:
                case ServiceAccount() as method:
                    where = (method.keys, method.url, method.ca)
                    if where not in issuers:
                        fetched = FetchedKeys(method, fetch, spawn, time.monotonic)
                        issuers[where] = fetched if method.url else SignedKeys(method.keys)
                    self._tokens[name] = Tokens(method, issuers[where])
                case HardwareToken() as method:
                    self._challenges[name] = Challenges(method, entropy)
                case ApiKey() as method:
                    self._api_keys[name] = ApiKeys(name, method, folder / f"api-key-{name}.json")
                case _:
                    pass

    def challenge(self, component: str, certificate: bytes, body: bytes, now: int) -> ChallengeAnswer:
        """A challenge for `component`, which shows a certificate of this SHA-256.  Raises `Malformed` or `Unverified`."""
        asked = decode_challenge(body)
        if asked.component != component:
            raise Unverified("IDENTITY", f"the certificate is {component}'s, the request {asked.component[:48]!r}'s")
        challenges = self._challenges.get(component)
        if challenges is None:
            raise Unverified("METHOD", f"{component} proves itself by no hardware token")
        boot = hex_bytes(asked.boot, BOOT_BYTES, "boot")
        return ChallengeAnswer(challenges.challenge(boot, certificate, now).hex())

    async def require(self, asked: Asked, evidence: Evidence | None, now: int) -> str:
        """Raise `Malformed` or `Unverified` unless `evidence` proves what the trust root demands; what the record says."""
        name = asked.component
        method = self._trust.component(name).method
        match method, evidence:
            case ServiceAccount(), TokenEvidence(token=token):
                used = await self._tokens[name].require(token, asked, now)
                return f"{MTLS}+{name_of(method)}" + (f" {used}" if used else "")
            case HardwareToken(), HardwareEvidence():
                self._challenges[name].require(evidence, asked, now)
            case ApiKey(), ApiKeyEvidence():
                self._api_keys[name].require(evidence)
            case _, None if not isinstance(method, ServiceAccount | HardwareToken | ApiKey):
                return MTLS
            case _:
                shown = "nothing" if evidence is None else evidence.__struct_config__.tag
                raise Unverified("METHOD", f"{name} proves itself by {name_of(method)}, and showed {shown}")
        return f"{MTLS}+{name_of(method)}"

    def take_up(self, component: str, method: str, issued: int) -> None:
        """How a session was opened at `issued`, as the record says."""
        _, _, used = method.partition(" ")
        if used and component in self._tokens:
            self._tokens[component].take_up(used, issued)

    def grant(self, note: str) -> str:
        """Let a component's API key begin anew; whose.  Raises `TallystickError` for none of the operator's words."""
        grant = open_key_grant(note, self._trust)
        self._api_keys[grant.component].grant(grant)
        return grant.component


async def fetch(url: str, ca: str) -> bytes:
    """What `url` answers, over TLS 1.3, where `ca` (PEM) vouches for it.  Raises `CouldNotVerify`.

    Redirections are not followed, and more than a set of keys has is not read.
    """
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(cadata=ca)
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=FETCH_S)) as http,
            http.get(url, ssl=context, allow_redirects=False, headers={"Accept": "application/json"}) as answer,
        ):
            if answer.status != 200:
                raise CouldNotVerify("TOKEN_KEYS", f"{url} answered {answer.status}")
            body = bytearray()
            async for part in answer.content.iter_any():
                body += part
                if len(body) > MAX_SET:
                    break
            return bytes(body)
    except (TimeoutError, aiohttp.ClientError, OSError) as exc:
        raise CouldNotVerify("TOKEN_KEYS", f"{url}: {type(exc).__name__}") from exc
