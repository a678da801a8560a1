"""Getting a session from the authority: mutual TLS, and a proof for the session key.

The authority is trusted to hand out credentials, not to choose keys: the session key is drawn here and
never leaves this process, and what comes back is checked against the trust root (`link`).
"""

from __future__ import annotations

import ssl
from typing import Final

import msgspec

from tallystick.runtime.bus.post import post
from tallystick.schemas.enrolment import MAX_REQUEST, SessionAnswer, SessionRefusal, SessionRequest, proof_bytes
from tallystick.schemas.errors import NOT_DECODED, BootOver, Malformed, Unverified
from tallystick.schemas.nats_jwt import SessionKey

TIMEOUT_S: Final = 5.0


class AuthorityClient:
    """The credential source of every component but the authority itself."""

    def __init__(self, url: str, tls: ssl.SSLContext, *, deployment: str, component: str, certificate: bytes) -> None:
        """`certificate` is the SHA-256 of the client certificate in `tls`."""
        self._url = url
        self._tls = tls
        self._deployment = deployment
        self._component = component
        self._certificate = certificate
        # The key of a session that this boot certainly has, or the first that was asked for: its answer may have
        # got lost.
        self._held: tuple[bytes, SessionKey] | None = None

    async def obtain(self, key: SessionKey, boot: bytes) -> str:
        """A credential for `key`.  Raises `Unverified` when refused (`BootOver`) or `Unreachable`, `Malformed` for nonsense."""
        if self._held is None or self._held[0] != boot:
            self._held = (boot, key)
        body = await self._post("/v1/session", key, boot)
        self._held = (boot, key)
        try:
            return msgspec.json.decode(body, type=SessionAnswer).credential
        except NOT_DECODED as exc:
            raise Malformed("AUTHORITY_ANSWER", f"{self._url}: {exc}") from exc

    async def end(self, key: SessionKey, boot: bytes) -> None:
        """Tell the authority that this boot ends."""
        await self._post("/v1/end", key, boot)

    async def _post(self, path: str, key: SessionKey, boot: bytes) -> bytes:
        said = proof_bytes(self._deployment, self._component, boot, key.public, self._certificate)
        held = self._held[1].sign(said).hex() if self._held is not None and self._held[0] == boot else ""
        request = SessionRequest(
            boot=boot.hex(),
            component=self._component,
            proof=key.sign(said).hex(),
            session_key=key.public.hex(),
            renewal=held,
        )
        status, body = await post(
            self._url + path, msgspec.json.encode(request), self._tls, timeout_s=TIMEOUT_S, limit=4 * MAX_REQUEST
        )
        if status != 200:
            try:
                refusal = msgspec.json.decode(body, type=SessionRefusal)
            except NOT_DECODED:
                refusal = SessionRefusal("", "")
            if refusal.code in ("BOOT_ENDED", "COMPONENT_REVOKED"):
                raise BootOver(refusal.code, refusal.text[:300])
            raise Unverified("AUTHORITY_REFUSED", f"{self._url}{path} answered {status}: {body[:300]!r}")
        return body
