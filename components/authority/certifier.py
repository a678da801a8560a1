"""Who gets a certificate, for which key and how long: the pure rules.

- A request counts only from the component whose name the client certificate carries, for that name and no other, for a
  new key of P-256 that the request proves to hold.
- It counts only with the word of a key of a session that lives (`issuer.Issuer.require_spoken`): whoever copied the
  certificate has to start a boot of his own, which ends the true one and shows.
- The certificate names the component, and where it serves, the deployment's hosts: what the request says besides has no
  effect.
- A component is given at most `AT_ONCE` certificates at once and one in `EVERY_S` in the long run.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tallystick.components.authority.issuer import spend
from tallystick.runtime.deployment.certificates import hosts, lifetime
from tallystick.runtime.deployment.config import Config
from tallystick.runtime.keys import pki
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.errors import Unverified

# Renewals come once in hours; as for boots, whoever asks without end is an alarm and fills nobody's memory.
AT_ONCE: Final = 30
EVERY_S: Final = 10


class Shown(msgspec.Struct, frozen=True):
    """A certificate that somebody shows: the SHA-256 `digest` of its DER, and its life (Unix ns)."""

    digest: bytes
    issued: int
    ends: int

    @classmethod
    def of(cls, der: bytes) -> Shown:
        """That of a certificate which TLS has verified."""
        return cls(pki.fingerprint(der), *pki.lifetime(x509.load_der_x509_certificate(der)))


class Certified:
    """A certificate that was made: `pem`, its SHA-256 `digest`, and its life (Unix ns)."""

    def __init__(self, certificate: x509.Certificate) -> None:
        """For `Certifier.certify`."""
        self.pem = certificate.public_bytes(Encoding.PEM)
        self.digest = pki.fingerprint(certificate.public_bytes(Encoding.DER))
        self.issued_at, self.expires_at = pki.lifetime(certificate)


class Certifier:
    """Nothing here waits, publishes or knows a network."""

    def __init__(self, authority: pki.CertificateAuthority, config: Config) -> None:
        """`authority` is the issuing CA."""
        self._authority = authority
        self._config = config
        self._life: timedelta = lifetime(config)
        self._credit: dict[str, tuple[int, int]] = {}

    def certify(self, component: str, request: str, present: bytes, now: int) -> Certified:
        """The next certificate of `component`, which showed `present` (DER), at `now` (Unix ns).

        Raises `Malformed` or `Unverified`.
        """
        public = pki.requested_key(request.encode(), self._authority.deployment, component)
        if public == x509.load_der_x509_certificate(present).public_key():
            raise Unverified(
                "CERTIFICATE_KEY", f"{component} asks for a certificate of the key that it has: make a new one"
            )
        if not spend(self._credit, component, now, AT_ONCE * EVERY_S * SECOND, EVERY_S * SECOND, 1):
            raise Unverified("CERTIFICATE_RATE", f"{component} asks for more than one certificate in {EVERY_S} s")
        names = hosts(self._config, component)
        return Certified(self._authority.certify(component, public, now, self._life, names))
