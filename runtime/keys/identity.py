"""What a process shows on TLS connections: its certificate and key, which change while it runs.

- All of it lies in one file (`pki.identity_file`), replaced whole: whenever the process ends, the next one finds a
  certificate and the key that fits it.  The key is encrypted under a passphrase of the keystore, and is decrypted in
  memory alone.
- The anchor is the deployment's issuing CA and nothing above it, so that an issuing CA that the operator replaced
  vouches for nobody.  System anchors are never loaded.
- TLS 1.3 at least, certificates required on both sides, no session tickets: each connection is verified on its own.
- Contexts stay for as long as the process: `reload` changes what they show from the next handshake on; connections
  that stand go on.
- A certificate is to be renewed after about two thirds of its life, not all at once.

The files are not trusted: an attacker who controls them can at most make connections fail.
"""

from __future__ import annotations

import random
import ssl
import time
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tallystick.runtime.durable import read_regular, write_durably
from tallystick.runtime.keys import pki
from tallystick.runtime.keys.keystore import Secret
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.errors import ConfigError, Malformed, Unverified

# Of a certificate's life: it is renewed at a moment between these.
RENEW_FROM: Final = 0.57
RENEW_UNTIL: Final = 0.67
# Bytes; a certificate and its key have some two thousand.
MAX_FILE: Final = 65_536


class Identity:
    """The certificate and key in `path`; `tls` is the context of a client that shows them.

    `component` is who it names, `fingerprint` the certificate's SHA-256, `issued` and `ends` its life (Unix ns).
    """

    def __init__(self, deployment: str, ca: Path, path: Path, passphrase: Secret) -> None:
        """`ca` is the issuing CA's certificate.  Raises `ConfigError`, `Unverified` for another deployment's."""
        self.path = path
        self._deployment = deployment
        self._ca = ca
        self._passphrase = passphrase
        self._others: list[ssl.SSLContext] = []
        self.tls = client_context(ca, path, passphrase)
        self._read()

    def _read(self) -> None:
        certificate = load_certificate(self.path)
        der = certificate.public_bytes(serialization.Encoding.DER)
        self.certificate = certificate
        self.fingerprint = pki.fingerprint(der)
        self.issued, self.ends = pki.lifetime(certificate)
        self.component = pki.spiffe_component(der, self._deployment)
        share = random.uniform(RENEW_FROM, RENEW_UNTIL)  # noqa: S311 - so that not all come at once, not a secret
        self._due = self.issued + int((self.ends - self.issued) * share)

    def server(self, *, mutual: bool = True) -> ssl.SSLContext:
        """A server's context that shows it, and asks clients for a certificate (`mutual=False`: only a venue does not)."""
        context = server_context(self._ca, self.path, self._passphrase, mutual=mutual)
        self._others.append(context)
        return context

    def client(self, ca: Path) -> ssl.SSLContext:
        """A client's context that shows it to a server which `ca` vouches for.  Raises `ConfigError`."""
        context = client_context(ca, self.path, self._passphrase)
        self._others.append(context)
        return context

    def due(self, now: int) -> bool:
        """Whether it is time for the next certificate."""
        return now >= self._due

    def require_current(self, now: int) -> None:
        """Raise `ConfigError` for a certificate that has ended."""
        if now >= self.ends:
            ended = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(self.ends // SECOND))
            raise ConfigError(
                "CERTIFICATE_ENDED",
                f"{self.path}: ended at {ended} UTC; where the keystore is: `tallystick certify DIR {self.component}`",
            )

    def renewal(self) -> Renewal:
        """A new key for the same name, and the request for its certificate."""
        key = ec.generate_private_key(ec.SECP256R1())
        return Renewal(key, pki.signing_request(self._deployment, self.component, key))

    def store(self, renewal: Renewal, pem: bytes, now: int) -> Identity:
        """Keep the certificate (PEM) that came for `renewal`; what the file holds now, to be shown after `reload`.

        Crash before the file is replaced: the old one is there and lives on; after it: the new one is.  Raises
        `Malformed` or `Unverified` for what is none of ours, `ConfigError` where it cannot be written.
        """
        try:
            certificate = x509.load_pem_x509_certificate(pem)
            issuer = load_certificate(self._ca)
            certificate.verify_directly_issued_by(issuer)
        except (InvalidSignature, ValueError, TypeError) as exc:
            raise Malformed(
                "CERTIFICATE_ANSWER", f"no certificate of the deployment's CA: {type(exc).__name__}"
            ) from exc
        named = pki.spiffe_component(certificate.public_bytes(serialization.Encoding.DER), self._deployment)
        begins, ends = int(certificate.not_valid_before_utc.timestamp()) * SECOND, pki.lifetime(certificate)[1]
        if certificate.public_key() != renewal.key.public_key() or named != self.component or not begins <= now < ends:
            raise Unverified("CERTIFICATE_FOREIGN", f"a certificate that is none for {self.component}'s new key")
        try:
            write_durably(self.path, pki.identity_file(certificate, issuer, renewal.key, self._passphrase), 0o600)
        except OSError as exc:
            raise ConfigError("CERTIFICATE_KEPT", f"cannot write {self.path}: {exc.strerror}") from exc
        return Identity(self._deployment, self._ca, self.path, self._passphrase)

    def reload(self) -> None:
        """Show what the file holds now, in every context.  Raises `ConfigError`, and then shows what it showed."""
        # What does not fit is found out here, before anything is changed.
        client_context(self._ca, self.path, self._passphrase)
        for context in (self.tls, *self._others):
            _show(context, self.path, self._passphrase)
        self._read()


class Renewal:
    """A new key, which stays here, and the request (PEM) for its certificate."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, request: bytes) -> None:
        """For `Identity.renewal`."""
        self.key = key
        self.request = request


def load_certificate(path: Path) -> x509.Certificate:
    """The first certificate in a PEM file.  Raises `ConfigError`."""
    try:
        return x509.load_pem_x509_certificate(read_regular(path, MAX_FILE))
    except OSError as exc:
        raise ConfigError("CERTIFICATE", f"cannot read {path}: {exc.strerror}; `tallystick init` makes it") from exc
    except ValueError as exc:
        raise ConfigError("CERTIFICATE", f"{path} is not a PEM certificate") from exc


def decrypted_key(path: Path, passphrase: Secret) -> bytes:
    """The private key in an identity's file as plain PEM, for a server that cannot decrypt it (nats-server).

    Hand it over in memory (a memfd), never through a file.  Raises `ConfigError`.
    """
    try:
        data = path.read_bytes()
        # What stands before it are certificates.
        private = serialization.load_pem_private_key(
            data[max(0, data.rfind(b"-----BEGIN")) :], passphrase.reveal().encode()
        )
    except OSError as exc:
        raise ConfigError("TLS_KEY", f"cannot read {path}: {exc.strerror}; `tallystick init` makes it") from exc
    except (ValueError, TypeError) as exc:
        raise ConfigError("TLS_KEY", f"{path} does not open with the passphrase of the keystore") from exc
    return private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def server_context(ca: Path, identity: Path, passphrase: Secret, *, mutual: bool = True) -> ssl.SSLContext:
    """TLS 1.3 for a server; clients show a certificate of `ca` (`mutual=False`: only a venue asks for none).

    Raises `ConfigError`.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, ca, identity, passphrase)
    context.verify_mode = ssl.CERT_REQUIRED if mutual else ssl.CERT_NONE
    context.num_tickets = 0
    return context


def client_context(ca: Path, identity: Path, passphrase: Secret) -> ssl.SSLContext:
    """TLS 1.3 for a client: the server's chain and host name are checked against `ca` alone.  Raises `ConfigError`."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, ca, identity, passphrase)


def _context(protocol: int, ca: Path, identity: Path, passphrase: Secret) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(cafile=ca)
    except OSError as exc:  # ssl.SSLError is one
        raise _unusable(ca, exc, "it is to hold the CA that vouches for the other side, PEM") from exc
    _show(context, identity, passphrase)
    return context


def _show(context: ssl.SSLContext, identity: Path, passphrase: Secret) -> None:
    try:
        context.load_cert_chain(identity, password=passphrase.reveal)
    except OSError as exc:
        raise _unusable(identity, exc, "`tallystick init` makes it") from exc


def _unusable(path: Path, exc: OSError, wanted: str) -> ConfigError:
    return ConfigError("TLS_FILES", f"cannot use {path} ({exc.strerror or exc}); {wanted}")
