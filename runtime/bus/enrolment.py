"""Getting a session from the authority: mutual TLS, and a proof for the session key; and in time the next certificate.

- A certificate that is due is renewed before the next session is asked for, by the word of a session that lives.  The
  new key is made here, and is on the disk, encrypted, before anything is shown under it.
- The next session is asked for under the new certificate; once it is there, and not before, everything else shows
  that, too: a session and the certificate that it was issued to are always shown together.
- What else the trust root demands of the component is shown with each request, by whoever knows how (`Proof`): a token,
  a hardware token's signature, an API key.
- What goes wrong with a renewal leaves the old certificate in use, and is tried again with the next session.  A boot whose
  certificate has ended is over: whoever starts the next one sees to its certificate.

The authority is trusted to hand out credentials and certificates, not to choose keys: both keys are drawn here and
never leave this process, and what comes back is checked against the trust root (`link`) and the issuing CA.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol, Self

import msgspec

from tallystick.runtime.bus.log import Log
from tallystick.runtime.bus.post import post
from tallystick.schemas.enrolment import (
    CHALLENGE_BYTES,
    MAX_REQUEST,
    Asked,
    CertificateAnswer,
    CertificateRequest,
    ChallengeAnswer,
    ChallengeRequest,
    Evidence,
    SessionAnswer,
    SessionRefusal,
    SessionRequest,
    certificate_proof_bytes,
    hex_bytes,
    proof_bytes,
)
from tallystick.schemas.errors import (
    NOT_DECODED,
    BootOver,
    ConfigError,
    CouldNotVerify,
    Malformed,
    TallystickError,
    Unverified,
)
from tallystick.schemas.nats_jwt import SessionKey

TIMEOUT_S: Final = 5.0


class Shown(Protocol):
    """What a process shows on TLS connections, as `runtime.keys.identity.Identity`."""

    tls: ssl.SSLContext
    fingerprint: bytes
    ends: int

    def due(self, now: int) -> bool:
        """Whether it is time for the next certificate."""
        ...

    def renewal(self) -> Any:
        """A new key; its `request` for a certificate is PKCS#10, PEM."""
        ...

    def store(self, renewal: Any, pem: bytes, now: int) -> Self:
        """Keep what came for it; shown after `reload`."""
        ...

    def reload(self) -> None:
        """Show what is kept."""
        ...


class Proof(Protocol):
    """How a component proves itself besides its certificate, as the trust root demands."""

    async def show(self, asked: Asked, challenge: Callable[[], Awaitable[bytes]]) -> Evidence:
        """What proves it for what is asked; `challenge` gets one from the authority.  Raises `TallystickError`."""
        ...

    async def accepted(self) -> None:
        """What was shown last has opened a session.  Raises `TallystickError`."""
        ...


class AuthorityClient:
    """The credential source of every component but the authority itself."""

    def __init__(
        self,
        url: str,
        identity: Shown,
        *,
        deployment: str,
        component: str,
        clock: Callable[[], int],
        log: Log,
        proof: Proof | None = None,
    ) -> None:
        """`identity` is what the component shows; it is renewed here.  `proof`: None where the certificate is all."""
        self._proof = proof
        self._url = url
        self._identity = identity
        # What is kept already and shown once there is a session for it.
        self._next: Shown | None = None
        self._deployment = deployment
        self._component = component
        self._clock = clock
        self._log = log
        # The key of a session that this boot certainly has, or the first that was asked for: its answer may have
        # got lost.
        self._held: tuple[bytes, SessionKey] | None = None
        # The boot that had a session.
        self._proved = b""

    async def obtain(self, key: SessionKey, boot: bytes) -> str:
        """A credential for `key`.

        Raises `Unverified` when refused (`BootOver`) or `Unreachable`, `Malformed` for nonsense; before the boot has had a
        session `ConfigError` for a proof that cannot be shown.
        """
        if self._held is None or self._held[0] != boot:
            self._held = (boot, key)
        elif self._next is None and self._identity.due(self._clock()):
            await self._renew(*self._held)
        shown = self._next or self._identity
        if self._clock() >= shown.ends:
            raise BootOver(
                "CERTIFICATE_ENDED", f"the certificate of {self._component} ended and was not renewed in time"
            )
        request = self._session_request(key, boot, shown)
        try:
            if self._proof is not None:
                asked = Asked(self._deployment, self._component, boot, key.public, shown.fingerprint)
                evidence = await self._proof.show(asked, lambda: self._challenge(boot, shown))
                request = msgspec.structs.replace(request, evidence=evidence)
            body = await self._post("/v1/session", shown, request)
            if self._proof is not None:
                await self._proof.accepted()
        except ConfigError as exc:
            if self._proved != boot:
                raise
            # A token that is pulled out, a disk that is full: the session that lives goes on, and it is tried again.
            raise CouldNotVerify(exc.code, exc.text) from exc
        self._held, self._proved = (boot, key), boot
        if self._next is not None:
            self._next = None
            self._identity.reload()
        try:
            return msgspec.json.decode(body, type=SessionAnswer).credential
        except NOT_DECODED as exc:
            raise Malformed("AUTHORITY_ANSWER", f"{self._url}: {exc}") from exc

    async def _challenge(self, boot: bytes, shown: Shown) -> bytes:
        body = await self._post("/v1/challenge", shown, ChallengeRequest(boot=boot.hex(), component=self._component))
        try:
            answer = msgspec.json.decode(body, type=ChallengeAnswer)
        except NOT_DECODED as exc:
            raise Malformed("AUTHORITY_ANSWER", f"{self._url}: {exc}") from exc
        return hex_bytes(answer.challenge, CHALLENGE_BYTES, "challenge")

    async def _renew(self, boot: bytes, held: SessionKey) -> None:
        renewal = self._identity.renewal()
        request = renewal.request.decode("ascii")
        said = certificate_proof_bytes(self._deployment, self._component, boot, request, self._identity.fingerprint)
        asked = CertificateRequest(
            boot=boot.hex(), component=self._component, proof=held.sign(said).hex(), request=request
        )
        try:
            body = await self._post("/v1/certificate", self._identity, asked)
            answer = msgspec.json.decode(body, type=CertificateAnswer)
            self._next = await asyncio.to_thread(
                self._identity.store, renewal, answer.certificate.encode(), self._clock()
            )
        except BootOver:
            raise
        except (TallystickError, *NOT_DECODED) as exc:
            self._log.error("the certificate was not renewed", error=str(exc)[:300])
        else:
            self._log.info("the certificate was renewed")

    async def end(self, key: SessionKey, boot: bytes) -> None:
        """Tell the authority that this boot ends."""
        await self._post("/v1/end", self._identity, self._session_request(key, boot, self._identity))

    def _session_request(self, key: SessionKey, boot: bytes, shown: Shown) -> SessionRequest:
        said = proof_bytes(self._deployment, self._component, boot, key.public, shown.fingerprint)
        held = self._held[1].sign(said).hex() if self._held is not None and self._held[0] == boot else ""
        return SessionRequest(
            boot=boot.hex(),
            component=self._component,
            proof=key.sign(said).hex(),
            session_key=key.public.hex(),
            renewal=held,
        )

    async def _post(
        self, path: str, shown: Shown, request: SessionRequest | CertificateRequest | ChallengeRequest
    ) -> bytes:
        status, body = await post(
            self._url + path, msgspec.json.encode(request), shown.tls, timeout_s=TIMEOUT_S, limit=4 * MAX_REQUEST
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
