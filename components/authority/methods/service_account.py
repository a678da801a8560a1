"""A service account's token (JWT; RFC 7519, 8725): what a strategy shows besides its certificate.

- The key is the issuer's of the header's `kid`; it decides the algorithm, one of EdDSA, ES256 and RS256.  A header that
  says another (`none`, HS256 under a public key) is refused.  `jku`, `jwk`, `x5u` and `x5c` are never looked at, and
  what a header calls critical is refused, since nothing of that kind is known.
- `iss`, `aud` and `sub` are exactly what the operator signed; `exp`, `nbf`, `iat` and `jti` are there; a token lives
  `MAX_LIFE_S` at the most.
- A token that names a certificate (`cnf`, RFC 8705) counts under that one alone.  Our own issuer's always name one, and
  open one session each.  A Kubernetes cluster's name none: there mutual TLS is all that binds them.

The token is not trusted to say who speaks: it is the second word, beside the certificate's.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Annotated, Any, Final

import jwt
import msgspec
from jwt import PyJWS

from tallystick.components.authority.methods.jwks import ALGORITHMS, Keys
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.enrolment import MAX_TOKEN, Asked
from tallystick.schemas.errors import NOT_DECODED, Malformed, Unverified
from tallystick.schemas.methods import MAX_TEXT, ServiceAccount

# The least that a Kubernetes cluster gives.
MAX_LIFE_S: Final = 600
# Clocks of issuer and authority.
SKEW_S: Final = 5
_ALLOWED: Final = sorted(set(ALGORITHMS.values()))

Instant = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_TEXT)]


class _Claims(msgspec.Struct, frozen=True):
    iss: Text
    sub: Text
    aud: str | list[str]
    exp: Instant
    nbf: Instant
    iat: Instant
    jti: Text
    cnf: dict[str, Any] | None = None


class _Header(msgspec.Struct, frozen=True):
    alg: str
    kid: Text
    crit: Any = None


class Tokens:
    """Judges the tokens of one component.  Owns the ids of those that were used and could still be."""

    def __init__(self, method: ServiceAccount, keys: Keys) -> None:
        self._method = method
        self._keys = keys
        self._jws = PyJWS(algorithms=_ALLOWED, options={"enforce_minimum_key_length": True})
        # SHA-256 (hex) of a token's id -> when it has ended for certain, Unix ns
        self._used: dict[str, int] = {}

    async def require(self, token: str, asked: Asked, now: int) -> str:
        """Raise `Malformed` or `Unverified` unless `token` counts now (Unix ns), for what is asked.

        Gives the SHA-256 (hex) of the token's id where that is used up by it, else nothing.
        """
        if len(token) > MAX_TOKEN:
            raise Malformed("TOKEN_SIZE", f"a token of {len(token)} characters, limit {MAX_TOKEN}")
        claims = await self._signed(token)
        self._require_named(claims)
        self._require_now(claims, now // SECOND)
        self._require_bound(claims, asked)
        if not self._method.single:
            return ""
        used = hashlib.sha256(claims.jti.encode()).hexdigest()
        self._used = {name: until for name, until in self._used.items() if until > now}
        if used in self._used:
            raise Unverified("TOKEN_USED", f"token {used[:16]} of {asked.component} has opened a session before")
        self._used[used] = (claims.exp + SKEW_S) * SECOND
        return used

    def take_up(self, used: str, issued: int) -> None:
        """A token that opened a session at `issued` (Unix ns), as the record says."""
        self._used[used] = max(self._used.get(used, 0), issued + (MAX_LIFE_S + SKEW_S) * SECOND)

    async def _signed(self, token: str) -> _Claims:
        try:
            header = msgspec.convert(jwt.get_unverified_header(token), _Header)
        except (jwt.PyJWTError, msgspec.ValidationError, ValueError) as exc:
            raise Malformed("TOKEN", f"no token with `alg` and `kid`: {type(exc).__name__}") from exc
        if header.alg not in _ALLOWED:
            raise Unverified("TOKEN_ALGORITHM", f"{header.alg[:16]!r} is none of {', '.join(_ALLOWED)}")
        if header.crit is not None:
            raise Unverified("TOKEN_ALGORITHM", "the token's header calls something critical that is not known here")
        key = await self._keys.find(header.kid)
        if header.alg != key.algorithm_name:
            raise Unverified(
                "TOKEN_ALGORITHM", f"key {header.kid[:48]!r} is for {key.algorithm_name}, not {header.alg}"
            )
        try:
            payload = self._jws.decode_complete(token, key, algorithms=[key.algorithm_name])["payload"]
        except (jwt.PyJWTError, ValueError) as exc:
            raise Unverified("TOKEN_SIGNATURE", f"not signed by key {header.kid[:48]!r}: {type(exc).__name__}") from exc
        try:
            return msgspec.json.decode(payload, type=_Claims)
        except NOT_DECODED as exc:
            raise Malformed("TOKEN", f"the token's claims: {exc}"[:300]) from exc

    def _require_named(self, claims: _Claims) -> None:
        method = self._method
        audience = [claims.aud] if isinstance(claims.aud, str) else claims.aud
        for what, said, due in (("iss", claims.iss, method.issuer), ("sub", claims.sub, method.subject)):
            if said != due:
                raise Unverified("TOKEN_CLAIMS", f"{what} is {said[:96]!r}, the operator signed {due[:96]!r}")
        if method.audience not in audience:
            raise Unverified(
                "TOKEN_CLAIMS", f"aud is {audience[:3]!r}, the operator signed {method.audience[:96]!r}"[:300]
            )

    def _require_now(self, claims: _Claims, now_s: int) -> None:
        if now_s >= claims.exp:
            raise Unverified("TOKEN_TIME", f"the token ended {now_s - claims.exp} s ago")
        if max(claims.nbf, claims.iat) > now_s + SKEW_S:
            raise Unverified("TOKEN_TIME", f"the token begins in {max(claims.nbf, claims.iat) - now_s} s")
        if claims.exp - claims.iat > MAX_LIFE_S:
            raise Unverified("TOKEN_TIME", f"the token lives {claims.exp - claims.iat} s, limit {MAX_LIFE_S} s")

    def _require_bound(self, claims: _Claims, asked: Asked) -> None:
        if claims.cnf is None and not self._method.single:
            return
        due = base64.urlsafe_b64encode(asked.certificate).rstrip(b"=").decode()
        if claims.cnf is None or claims.cnf.get("x5t#S256") != due:
            raise Unverified("TOKEN_BINDING", f"the token is not for the certificate that {asked.component} shows")
