"""Certificates of a deployment: one CA whose key lives in a token, one certificate a component, TLS 1.3 alone.

Rules:

- The deployment's CA is the only anchor; system anchors are never loaded.  It signs leaves only (path length 0).
- A certificate names its component by exactly one URI: `spiffe://<deployment>/<component>` (SPIFFE X.509-SVID);
  `spiffe_component` refuses another trust domain, several URIs and any other form.
- Servers have host names besides; clients check them.
- A component's private key lies on disk in PKCS#8, encrypted under a passphrase of the keystore; it is
  decrypted in memory only.
- TLS 1.3 at least, certificates required on both sides, no session tickets: each connection is
  verified on its own.

The certificate files are not trusted: an attacker who controls them can at most make connections fail.
The CA's key can name anything: it is used at `tallystick init` and at renewal, with the operator's PIN.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
import ssl
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tallystick.runtime.keys.keystore import Secret
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.errors import ConfigError, Unverified
from tallystick.schemas.subjects import NAME_PATTERN, check_name

if TYPE_CHECKING:
    from tallystick.runtime.keys.hsm import P256Signer

# Clocks of one deployment may differ by this much when a certificate is fresh.
BACKDATE: Final = timedelta(minutes=5)
_SPIFFE: Final = re.compile(rf"spiffe://({NAME_PATTERN})/({NAME_PATTERN})")


class _TokenKey(ec.EllipticCurvePrivateKey):
    """Lets x509's builder sign inside the token: it asks a key for `sign` and `public_key`, nothing else."""

    def __init__(self, signer: P256Signer) -> None:
        self._signer = signer

    @property
    def curve(self) -> ec.EllipticCurve:
        return self._signer.public.curve

    @property
    def key_size(self) -> int:
        return 256

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self._signer.public

    def sign(self, data: Any, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        algorithm = signature_algorithm.algorithm
        if isinstance(algorithm, Prehashed) or algorithm.name != "sha256":
            raise TypeError("the CA signs ECDSA with SHA-256 over the data itself")
        return self._signer.sign(bytes(data))

    def _refuse(self) -> NoReturn:
        raise TypeError("the key does not leave its token")

    def exchange(self, algorithm: ec.ECDH, peer_public_key: ec.EllipticCurvePublicKey) -> bytes:
        self._refuse()

    def private_numbers(self) -> ec.EllipticCurvePrivateNumbers:
        self._refuse()

    def private_bytes(
        self,
        encoding: serialization.Encoding,
        format: serialization.PrivateFormat,  # noqa: A002 - the interface's name
        encryption_algorithm: serialization.KeySerializationEncryption,
    ) -> bytes:
        self._refuse()

    def __copy__(self) -> NoReturn:
        self._refuse()

    def __deepcopy__(self, memo: dict[Any, Any]) -> NoReturn:
        self._refuse()


class CertificateAuthority:
    """The CA of one deployment: `deployment`, its `certificate` and the token key behind it."""

    def __init__(self, deployment: str, signer: P256Signer, certificate: x509.Certificate) -> None:
        """Raises `Unverified` if `certificate` is not of the signer's key and this deployment."""
        if certificate.public_key() != signer.public or certificate.subject != _ca_name(deployment):
            raise Unverified("CA_KEY", f"the CA certificate is not of {signer} and deployment {deployment}")
        self.deployment = deployment
        self.certificate = certificate
        self._key = _TokenKey(signer)

    @classmethod
    def create(cls, deployment: str, signer: P256Signer, now: int, validity: timedelta) -> CertificateAuthority:
        """A new self-signed CA, valid from `now` (Unix ns).  Raises `Malformed` for an unusable name."""
        check_name(deployment, "deployment")
        builder = _builder(_ca_name(deployment), _ca_name(deployment), signer.public, now, validity)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_key_usage(signs_certificates=True), critical=True)
        certificate = builder.sign(_TokenKey(signer), hashes.SHA256())
        return cls(deployment, signer, certificate)

    def issue(
        self, component: str, passphrase: Secret, now: int, validity: timedelta, hosts: Sequence[str] = ()
    ) -> tuple[bytes, bytes]:
        """A certificate and a new key for `component`, both PEM, the key encrypted under `passphrase`.

        With `hosts` (DNS names or IP addresses) it is a server's certificate as well as a client's.
        """
        check_name(component, "component")
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(spiffe_id(self.deployment, component))]
        names += [_general_name(host) for host in hosts]
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if hosts:
            usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
        subject = _name(self.deployment, component)
        issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = _builder(self.certificate.subject, subject, key.public_key(), now, validity)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_key_usage(signs_certificates=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        builder = builder.add_extension(issuer_key, critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        encrypted = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(passphrase.reveal().encode()),
        )
        return certificate.public_bytes(serialization.Encoding.PEM), encrypted


def _name(deployment: str, common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, deployment),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _ca_name(deployment: str) -> x509.Name:
    # A component's name has no blank: no leaf has the CA's name.
    return _name(deployment, "Tallystick CA")


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _builder(
    issuer: x509.Name, subject: x509.Name, public: ec.EllipticCurvePublicKey, now: int, validity: timedelta
) -> x509.CertificateBuilder:
    start = datetime.fromtimestamp(now // 1_000_000_000, UTC)
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - BACKDATE)
        .not_valid_after(start + validity)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def spiffe_id(deployment: str, component: str) -> str:
    """The SPIFFE id of a component.  Raises `Malformed` for names that are none."""
    return f"spiffe://{check_name(deployment, 'deployment')}/{check_name(component, 'component')}"


def spiffe_component(certificate: bytes | Mapping[str, Any], deployment: str) -> str:
    """The component that a peer's certificate names.

    `certificate`: DER, or what `SSLSocket.getpeercert()` gives, of a peer whose chain TLS has verified
    already: this reads the name, it does not verify the chain.  Raises `Unverified`.
    """
    if isinstance(certificate, bytes):
        try:
            parsed = x509.load_der_x509_certificate(certificate)
            names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension) as exc:
            raise Unverified("SPIFFE", f"not a certificate with a name: {type(exc).__name__}") from exc
    else:
        uris = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "URI"]
    if len(uris) != 1:
        raise Unverified("SPIFFE", f"the certificate has {len(uris)} URIs, expected one SPIFFE id")
    match = _SPIFFE.fullmatch(uris[0])
    if match is None:
        raise Unverified("SPIFFE", f"not a SPIFFE id of this system: {uris[0][:120]!r}")
    if match[1] != deployment:
        raise Unverified("SPIFFE_DOMAIN", f"certificate of deployment {match[1]}, this one is {deployment}")
    return match[2]


def issued_at(certificate_der: bytes) -> int:
    """When the CA issued a certificate, Unix ns (whole seconds)."""
    return int((x509.load_der_x509_certificate(certificate_der).not_valid_before_utc + BACKDATE).timestamp()) * SECOND


def fingerprint(certificate_der: bytes) -> bytes:
    """SHA-256 of a certificate's DER bytes, as `CredentialIssued.certificate` holds it."""
    return hashlib.sha256(certificate_der).digest()


def load_certificate(path: Path) -> x509.Certificate:
    """The certificate in a PEM file.  Raises `ConfigError`."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as exc:
        raise ConfigError("CERTIFICATE", f"cannot read {path}: {exc.strerror}; `tallystick init` makes it") from exc
    except ValueError as exc:
        raise ConfigError("CERTIFICATE", f"{path} is not a PEM certificate") from exc


def decrypted_key(key: Path, passphrase: Secret) -> bytes:
    """The private key as plain PEM, for a server that cannot decrypt it (nats-server).

    Hand it over in memory (a memfd), never through a file.  Raises `ConfigError`.
    """
    try:
        private = serialization.load_pem_private_key(key.read_bytes(), passphrase.reveal().encode())
    except OSError as exc:
        raise ConfigError("TLS_KEY", f"cannot read {key}: {exc.strerror}; `tallystick init` makes it") from exc
    except (ValueError, TypeError) as exc:
        raise ConfigError("TLS_KEY", f"{key} does not open with the passphrase of the keystore") from exc
    return private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def server_context(
    ca: Path, certificate: Path, key: Path, passphrase: Secret, *, mutual: bool = True
) -> ssl.SSLContext:
    """TLS 1.3 for a server; clients show a certificate of `ca` (`mutual=False`: only a venue asks for none).

    Raises `ConfigError`.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, ca, certificate, key, passphrase)
    context.verify_mode = ssl.CERT_REQUIRED if mutual else ssl.CERT_NONE
    context.num_tickets = 0
    return context


def client_context(ca: Path, certificate: Path, key: Path, passphrase: Secret) -> ssl.SSLContext:
    """TLS 1.3 for a client: the server's chain and host name are checked against `ca` alone.  Raises `ConfigError`."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, ca, certificate, key, passphrase)


def _context(protocol: int, ca: Path, certificate: Path, key: Path, passphrase: Secret) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    try:
        context.load_verify_locations(cafile=ca)
        context.load_cert_chain(certificate, key, password=passphrase.reveal)
    except OSError as exc:  # ssl.SSLError is one
        raise ConfigError(
            "TLS_FILES",
            f"cannot use {ca}, {certificate} and {key} ({exc.strerror or exc}); `tallystick init` makes them",
        ) from exc
    return context
