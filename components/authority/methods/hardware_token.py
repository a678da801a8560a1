"""A hardware token's answer to a challenge: what execution shows besides its certificate.

- A challenge is 32 random bytes for one component, boot and certificate; it lives `LIFE_S` and is good for one answer,
  right or wrong.
- At most `MAX_OPEN` of a component are open, the newest: more than its pace lets it ask for while they live.
- The signature is over the challenge and the session that is asked for (`enrolment.challenge_bytes`), by the key that
  the operator signed: it serves for no other session, and nothing else that the token signs begins like it.

A host that was entered can have its token sign while it is there, and not a moment longer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from tallystick.schemas import ed25519
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.enrolment import (
    CHALLENGE_BYTES,
    MAX_SIGNATURE,
    Asked,
    HardwareEvidence,
    challenge_bytes,
    hex_bytes,
)
from tallystick.schemas.errors import Malformed, Unverified
from tallystick.schemas.methods import HardwareToken

# A smart card takes a second; a person who must touch one, some more.
LIFE_S: Final = 15
MAX_OPEN: Final = 256


class _Open(msgspec.Struct, frozen=True):
    boot: bytes
    certificate: bytes
    until: int


class Challenges:
    """Asks and judges one component.  Owns its open challenges.  Times are Unix nanoseconds."""

    def __init__(self, method: HardwareToken, entropy: Callable[[int], bytes]) -> None:
        self._entropy = entropy
        self._verify = _verifier(method)
        # The oldest first.
        self._open: dict[bytes, _Open] = {}

    def challenge(self, boot: bytes, certificate: bytes, now: int) -> bytes:
        """A new one for `boot`, which shows a certificate of this SHA-256."""
        made = self._entropy(CHALLENGE_BYTES)
        self._open = {c: its for c, its in self._open.items() if its.until > now}
        while len(self._open) >= MAX_OPEN:
            del self._open[next(iter(self._open))]
        self._open[made] = _Open(boot, certificate, now + LIFE_S * SECOND)
        return made

    def require(self, evidence: HardwareEvidence, asked: Asked, now: int) -> None:
        """Raise `Malformed` or `Unverified` unless the token signed an open challenge for what is asked."""
        challenge = hex_bytes(evidence.challenge, CHALLENGE_BYTES, "challenge")
        its = self._open.pop(challenge, None)
        if its is None or now >= its.until:
            raise Unverified(
                "CHALLENGE", f"{asked.component} answers a challenge that was never made, was answered, or is over"
            )
        if (its.boot, its.certificate) != (asked.boot, asked.certificate):
            raise Unverified("CHALLENGE", f"{asked.component} answers the challenge of another boot or certificate")
        if len(evidence.signature) > MAX_SIGNATURE or len(evidence.signature) % 2:
            raise Malformed("HEX", f"a signature of {len(evidence.signature)} hex digits")
        signature = hex_bytes(evidence.signature, len(evidence.signature) // 2, "signature")
        try:
            self._verify(signature, challenge_bytes(asked, challenge))
        except (ed25519.BadSignature, InvalidSignature) as exc:
            raise Unverified("HARDWARE_SIGNATURE", f"not signed by the hardware token of {asked.component}") from exc


def _verifier(method: HardwareToken) -> Callable[[bytes, bytes], object]:
    """Checks a signature of the token's key; raises `BadSignature` or `InvalidSignature`.  Raises `Malformed`."""
    raw = bytes.fromhex(method.key)
    if method.algorithm == "ed25519":
        return lambda signature, data: ed25519.verify(raw, signature, data)
    try:
        public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), raw)
    except ValueError as exc:
        raise Malformed("METHOD_DOCUMENT", "the hardware token's key is no point of P-256") from exc
    return lambda signature, data: public.verify(signature, data, ec.ECDSA(hashes.SHA256()))
