"""The next certificate of whoever shows one that still counts, the authority itself among them.

- Order: the rules (`certifier`), `CertificateIssued`, its PubAck, then the answer.  Crash before the answer: a
  certificate on record that nobody has the key to; its component asks again.
- Who may have no session gets no certificate either.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding

from tallystick.components.authority.certifier import Certified, Certifier, Shown
from tallystick.components.authority.issuer import Issuer
from tallystick.runtime.deployment.service import ServiceContext
from tallystick.runtime.keys.identity import Identity
from tallystick.schemas.ed25519 import SIGNATURE_BYTES
from tallystick.schemas.enrolment import (
    CertificateAnswer,
    certificate_proof_bytes,
    decode_certificate_request,
    hex_bytes,
)
from tallystick.schemas.errors import Unverified
from tallystick.schemas.nats_jwt import BOOT_BYTES
from tallystick.schemas.security import CertificateIssued
from tallystick.schemas.subjects import subject

# The broker acknowledges in milliseconds; a connection that is lost meanwhile must be replaced.
ANNOUNCE_S: Final = 5.0


class Renewals:
    """Answers requests for certificates; `lock` is held while one is made, as it is for sessions."""

    def __init__(
        self,
        ctx: ServiceContext,
        certifier: Certifier,
        issuer: Issuer,
        lock: asyncio.Lock,
        *,
        deployment: str,
        allowed: Callable[[str, int], None],
    ) -> None:
        """`allowed` raises `Unverified` where a component's certificate issued then (Unix ns) counts for nothing."""
        self._ctx = ctx
        self._certifier = certifier
        self._issuer = issuer
        self._lock = lock
        self._deployment = deployment
        self._allowed = allowed

    async def answer(self, component: str, der: bytes, body: bytes) -> CertificateAnswer:
        """The next certificate of `component`, which shows `der`.  Raises `Malformed` or `Unverified`."""
        shown = Shown.of(der)
        asked = decode_certificate_request(body)
        if asked.component != component:
            raise Unverified("IDENTITY", f"the certificate is {component}'s, the request {asked.component[:48]!r}'s")
        boot = hex_bytes(asked.boot, BOOT_BYTES, "boot")
        said = certificate_proof_bytes(self._deployment, component, boot, asked.request, shown.digest)
        proof = hex_bytes(asked.proof, SIGNATURE_BYTES, "proof")
        async with self._lock:
            self._allowed(component, shown.issued)
            self._issuer.require_spoken(component, boot, said, proof)
            made = self._certifier.certify(component, asked.request, der, self._ctx.clock())
            await self._announce(component, made, shown.digest)
        return CertificateAnswer(certificate=made.pem.decode("ascii"))

    async def own(self, present: Identity) -> Identity | None:
        """The authority's own next certificate, kept and not shown yet; None while `present` will do.

        It is announced as everybody's are, so that it takes a broker that answers.  Raises `TallystickError`.
        """
        now = self._ctx.clock()
        if not present.due(now):
            return None
        renewal = present.renewal()
        der = present.certificate.public_bytes(Encoding.DER)
        made = self._certifier.certify(present.component, renewal.request.decode("ascii"), der, now)
        try:
            await asyncio.wait_for(self._announce(present.component, made, present.fingerprint), ANNOUNCE_S)
        except TimeoutError as exc:
            raise Unverified("AUTHORITY_OWN", f"no acknowledgement of the own certificate in {ANNOUNCE_S} s") from exc
        return await asyncio.to_thread(present.store, renewal, made.pem, now)

    def _announce(self, component: str, made: Certified, replaces: bytes) -> asyncio.Future[int]:
        return self._ctx.publish(
            subject("cred", component=component),
            self._ctx.new(
                CertificateIssued,
                certificate=made.digest,
                replaces=replaces,
                issued_at=made.issued_at,
                expires_at=made.expires_at,
            ),
        )
