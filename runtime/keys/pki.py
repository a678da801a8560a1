"""Certificates of a deployment: the operator's CA, the issuing CA below it, and what that certifies.

Rules:

- The operator's CA signs issuing CAs alone; its key lies in his token.  An issuing CA signs leaves alone (path length
  0); its key lies in the authority's token, since certificates live hours.
- An issuing CA can name this deployment's components, and its own hosts, and nothing else (name constraints).
- A certificate names its component by exactly one URI: `spiffe://<deployment>/<component>` (SPIFFE X.509-SVID);
  `spiffe_component` refuses another trust domain, several URIs and any other form.
- Servers have host names besides; clients check them.
- Whoever asks for a certificate makes the key, and proves that he holds it (PKCS#10); only its public half comes here.

The issuing CA's key is trusted with names: whoever can use it can show himself as any component of the deployment,
and still gets no session without the authority and no order without two sessions' keys.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NoReturn, Protocol

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tallystick.runtime.keys.keystore import Secret
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.errors import Malformed, Unverified
from tallystick.schemas.subjects import NAME_PATTERN, check_name

# Clocks of one deployment may differ by this much when a certificate is fresh.
BACKDATE: Final = timedelta(minutes=5)
_ISSUING: Final = re.compile(r"Tallystick issuing CA ([1-9][0-9]{0,5})")
_SPIFFE: Final = re.compile(rf"spiffe://({NAME_PATTERN})/({NAME_PATTERN})")


class P256(Protocol):
    """A P-256 key that stays in its token."""

    @property
    def public(self) -> ec.EllipticCurvePublicKey:
        """Its public half."""
        ...

    def sign(self, data: bytes) -> bytes:
        """ECDSA with SHA-256 over `data`, DER."""
        ...


class _TokenKey(ec.EllipticCurvePrivateKey):
    """Lets x509's builder sign inside the token: it asks a key for `sign` and `public_key`, nothing else."""

    def __init__(self, signer: P256) -> None:
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
    """A CA of one deployment: `deployment`, its `certificate` and the token key behind it."""

    def __init__(self, deployment: str, signer: P256, certificate: x509.Certificate) -> None:
        """Raises `Unverified` if `certificate` is not of the signer's key and this deployment."""
        if certificate.subject != _ca_name(deployment):
            issuing_number(certificate, deployment)
        if certificate.public_key() != signer.public:
            raise Unverified("CA_KEY", f"the CA certificate is not of {signer}")
        self.deployment = deployment
        self.certificate = certificate
        self._key = _TokenKey(signer)

    @classmethod
    def create(cls, deployment: str, signer: P256, now: int, validity: timedelta) -> CertificateAuthority:
        """A new operator's CA, self-signed, valid from `now` (Unix ns).  Raises `Malformed` for an unusable name."""
        check_name(deployment, "deployment")
        name = _ca_name(deployment)
        builder = _builder(name, name, signer.public, now, validity)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
        builder = builder.add_extension(_key_usage(signs_certificates=True), critical=True)
        certificate = builder.sign(_TokenKey(signer), hashes.SHA256())
        return cls(deployment, signer, certificate)

    def issuing(
        self, number: int, public: ec.EllipticCurvePublicKey, now: int, validity: timedelta, hosts: Sequence[str]
    ) -> x509.Certificate:
        """That of issuing CA `number` (from 1), for components of the deployment and servers on `hosts`."""
        name = _ca_name(self.deployment, number)
        permitted: list[x509.GeneralName] = [x509.UniformResourceIdentifier(self.deployment)]
        permitted += [_subtree(host) for host in hosts]
        builder = _builder(self.certificate.subject, name, public, now, validity)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_key_usage(signs_certificates=True), critical=True)
        builder = builder.add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
        )
        builder = builder.add_extension(x509.NameConstraints(permitted, None), critical=True)
        builder = builder.add_extension(_issuer_key(self._key.public_key()), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def certify(
        self,
        component: str,
        public: ec.EllipticCurvePublicKey,
        now: int,
        validity: timedelta,
        hosts: Sequence[str] = (),
    ) -> x509.Certificate:
        """A certificate of `component` for a key that it holds, valid from `now` (Unix ns).

        With `hosts` (DNS names or IP addresses) it is a server's certificate as well as a client's.
        """
        check_name(component, "component")
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(spiffe_id(self.deployment, component))]
        names += [_general_name(host) for host in hosts]
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if hosts:
            usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
        subject = _name(self.deployment, component)
        builder = _builder(self.certificate.subject, subject, public, now, validity)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_key_usage(signs_certificates=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        builder = builder.add_extension(_issuer_key(self._key.public_key()), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def issue(
        self, component: str, passphrase: Secret, now: int, validity: timedelta, hosts: Sequence[str] = ()
    ) -> bytes:
        """A certificate and a new key for `component`, as `identity_file` has them."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self.certify(component, key.public_key(), now, validity, hosts)
        return identity_file(certificate, self.certificate, key, passphrase)


def identity_file(
    certificate: x509.Certificate, issuer: x509.Certificate, key: ec.EllipticCurvePrivateKey, passphrase: Secret
) -> bytes:
    """What a component shows, in one file (PEM), so that no crash parts what belongs together.

    Its certificate, its issuer's, and its key (PKCS#8), encrypted under `passphrase`.
    """
    encrypted = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(passphrase.reveal().encode()),
    )
    pem = serialization.Encoding.PEM
    return certificate.public_bytes(pem) + issuer.public_bytes(pem) + encrypted


def signing_request(deployment: str, component: str, key: ec.EllipticCurvePrivateKey) -> bytes:
    """A request (PKCS#10, PEM) for a certificate of `component`, signed by `key`."""
    name = x509.UniformResourceIdentifier(spiffe_id(deployment, component))
    builder = x509.CertificateSigningRequestBuilder().subject_name(_name(deployment, component))
    builder = builder.add_extension(x509.SubjectAlternativeName([name]), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def requested_key(pem: bytes, deployment: str, component: str) -> ec.EllipticCurvePublicKey:
    """The key that a request of `component` proves to hold.  Raises `Malformed` or `Unverified`.

    Of what a request says only its name and its key are looked at: whoever issues says the rest.
    """
    try:
        request = x509.load_pem_x509_csr(pem)
        public = request.public_key()
        signed = request.is_signature_valid
        names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.ExtensionNotFound, x509.DuplicateExtension) as exc:
        raise Malformed("CERTIFICATE_REQUEST", f"not a request with a name: {type(exc).__name__}") from exc
    if uris != [spiffe_id(deployment, component)] or len(list(names)) != 1:
        raise Unverified(
            "CERTIFICATE_NAME", f"{component} asks for a certificate in other names than its own: {uris!r:.200}"
        )
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise Unverified("CERTIFICATE_REQUEST", f"{component} asks for a key that is none of P-256")
    if not signed:
        raise Unverified("CERTIFICATE_REQUEST", f"{component} did not prove that it holds the key")
    return public


def _name(deployment: str, common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, deployment),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _ca_name(deployment: str, number: int = 0) -> x509.Name:
    # A component's name has no blank: no leaf has a CA's name.
    return _name(deployment, f"Tallystick issuing CA {number}" if number else "Tallystick CA")


def issuing_number(certificate: x509.Certificate, deployment: str) -> int:
    """Which issuing CA of the deployment a certificate is of, from 1.  Raises `Unverified` for none."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    number = _ISSUING.fullmatch(str(names[0].value)) if names else None
    if number is None or certificate.subject != _ca_name(deployment, int(number[1])):
        raise Unverified("CA_KEY", f"{certificate.subject.rfc4514_string():.200} is no issuing CA of {deployment}")
    return int(number[1])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _subtree(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_network(host))
    except ValueError:
        return x509.DNSName(host)


def signs_issuing_cas(certificate: x509.Certificate) -> bool:
    """Whether a CA's certificate lets it sign that of another CA."""
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        return False
    return constraints.ca and constraints.path_length != 0


def server_names(certificate: x509.Certificate) -> set[str]:
    """The hosts that a server's certificate names."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    return {*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))}


def permitted_hosts(issuing: x509.Certificate) -> set[str]:
    """The hosts whose servers an issuing CA can certify."""
    try:
        permitted = issuing.extensions.get_extension_for_class(x509.NameConstraints).value.permitted_subtrees or []
    except x509.ExtensionNotFound:
        return set()
    names = {str(name.value) for name in permitted if isinstance(name, x509.DNSName)}
    return names | {
        str(name.value.network_address)
        for name in permitted
        if isinstance(name, x509.IPAddress) and isinstance(name.value, ipaddress.IPv4Network | ipaddress.IPv6Network)
    }


def _issuer_key(public: ec.EllipticCurvePublicKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(public)


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


def lifetime(certificate: x509.Certificate) -> tuple[int, int]:
    """(when it was issued, when it ends), Unix ns (whole seconds)."""
    issued = int((certificate.not_valid_before_utc + BACKDATE).timestamp()) * SECOND
    return issued, int(certificate.not_valid_after_utc.timestamp()) * SECOND


def fingerprint(certificate_der: bytes) -> bytes:
    """SHA-256 of a certificate's DER bytes, as `CredentialIssued.certificate` holds it."""
    return hashlib.sha256(certificate_der).digest()
