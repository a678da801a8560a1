"""The certificates of a deployment that its keystore's holder makes: at `init`, `up`, `admit`, `certify`, `reinstate`.

- A certificate lives hours.  While a component runs, it renews its own at the authority; whoever holds the keystore
  makes one where that cannot be: the first, and one after a power-off that was longer than a certificate's life.
- What has more than half of its life is left alone.
- The operator's CA is needed for an issuing CA alone, which is signed anew with each trust root.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from tallystick.runtime.deployment import folder as layout
from tallystick.runtime.deployment.config import Config
from tallystick.runtime.deployment.folder import Deployment
from tallystick.runtime.durable import write_durably
from tallystick.runtime.keys import pki
from tallystick.runtime.keys.identity import load_certificate
from tallystick.runtime.keys.keystore import Keystore, Secret
from tallystick.runtime.keys.pki import CertificateAuthority
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.errors import ConfigError, Unverified

if TYPE_CHECKING:
    from tallystick.runtime.keys.hsm import Token
    from tallystick.runtime.keys.token_process import TokenProcess

CA_VALIDITY: Final = timedelta(days=3650)
# As the trust root, with which it is made.
ISSUING_VALIDITY: Final = timedelta(days=365)
# A working day: what a copied certificate is worth at most.
CERTIFICATE_LIFETIME_S: Final = 8 * 3600
# A session lives at most so much of a certificate: what renews its certificate after two thirds finds time for both.
SESSIONS: Final = 4
ROLES: Final = "roles"


def issuing_key_id(number: int) -> bytes:
    """CKA_ID of the key of issuing CA `number` in token `roles`."""
    return layout.ISSUING_CA + b"%d" % number


def lifetime(config: Config) -> timedelta:
    """How long a certificate of the deployment lives."""
    return timedelta(seconds=min(config.certificate_lifetime_s or CERTIFICATE_LIFETIME_S, CERTIFICATE_LIFETIME_S))


def session_lifetime_s(config: Config) -> int:
    """What no session of the deployment lives longer than, in seconds."""
    bound = max(1, int(lifetime(config).total_seconds()) // SESSIONS)
    return min(config.session_lifetime_s or bound, bound)


def hosts(config: Config, name: str = layout.BROKER) -> tuple[str, ...]:
    """Where the server `name` is found: what its certificate names; nothing for who serves nobody."""
    return tuple(dict.fromkeys(("localhost", "127.0.0.1", config.host))) if name in layout.SERVERS else ()


def names(deployment: Deployment) -> tuple[str, ...]:
    """Everybody who has a certificate."""
    found = deployment.bus().components
    vault = () if deployment.config.vault.address or not set(layout.LEASED) & set(found) else (layout.VAULT,)
    return (*found, layout.BROKER, *vault, layout.OPERATOR)


def load_issuing_ca(deployment: Deployment) -> x509.Certificate:
    """The issuing CA's certificate, which the operator's CA signed.  Raises `ConfigError` or `Unverified`."""
    try:
        issuing = load_certificate(deployment.issuing_ca)
    except ConfigError as exc:
        raise ConfigError(exc.code, f"{exc.text.partition(';')[0]}; `tallystick admit` makes it") from exc
    try:
        issuing.verify_directly_issued_by(load_certificate(deployment.ca))
    except (InvalidSignature, ValueError, TypeError) as exc:
        raise Unverified(
            "CA_KEY", f"{deployment.issuing_ca} is not signed by the operator's CA, {deployment.ca}"
        ) from exc
    return issuing


def issuing_authority(deployment: Deployment, token: Token | TokenProcess) -> CertificateAuthority:
    """The issuing CA, whose key lies in `token` (`roles`).  Raises `ConfigError` or `Unverified`."""
    certificate = load_issuing_ca(deployment)
    number = pki.issuing_number(certificate, deployment.name)
    return CertificateAuthority(deployment.name, token.p256_signer(issuing_key_id(number)), certificate)


def sign_issuing_ca(
    deployment: Deployment, operator: Token, number: int, public: ec.EllipticCurvePublicKey, now: int
) -> None:
    """A certificate of issuing CA `number`, whose key is `public`, by the operator's CA, whose key lies in `operator`."""
    signer = operator.p256_signer(layout.KEY_CA)
    if deployment.ca.exists() and pki.signs_issuing_cas(load_certificate(deployment.ca)):
        own = CertificateAuthority(deployment.name, signer, load_certificate(deployment.ca))
    else:
        # The first one; or an older deployment's, of the same key, which signed certificates itself.
        own = CertificateAuthority.create(deployment.name, signer, now, CA_VALIDITY)
        write_durably(deployment.ca, own.certificate.public_bytes(Encoding.PEM), 0o600)
    issuing = own.issuing(number, public, now, ISSUING_VALIDITY, hosts(deployment.config))
    write_durably(deployment.issuing_ca, issuing.public_bytes(Encoding.PEM), 0o600)


def write_identity(
    deployment: Deployment, passphrase: Secret, authority: CertificateAuthority, name: str, now: int
) -> None:
    """A new key and certificate of `name` in the deployment's folder, issued at `now` (Unix ns)."""
    served = hosts(deployment.config, name)
    if not pki.permitted_hosts(authority.certificate).issuperset(served):
        raise ConfigError(
            "CERTIFICATE_HOST",
            f"the operator signed no certificate for {', '.join(served)}: `tallystick admit {deployment.directory}`",
        )
    made = authority.issue(name, passphrase, now, lifetime(deployment.config), served)
    write_durably(deployment.identity(name), made, 0o600)


def certify(deployment: Deployment, keystore: Keystore, wanted: Iterable[str], now: int) -> None:
    """A new key and certificate for each of `wanted`, as of `now` (Unix ns)."""
    # Most processes read certificates and make none: the library of tokens is not for them.
    from tallystick.runtime.keys.token_process import TokenProcess

    with TokenProcess(deployment.token(ROLES), ROLES, keystore[layout.pin_name(ROLES)]) as token:
        authority = issuing_authority(deployment, token)
        for name in wanted:
            write_identity(deployment, keystore[layout.passphrase_name(name)], authority, name, now)


def ensure(deployment: Deployment, keystore: Keystore, wanted: Iterable[str], now: int) -> None:
    """See to it that each of `wanted` has a certificate with half of its life before it, as of `now` (Unix ns)."""
    issuing = load_issuing_ca(deployment)
    due = [name for name in wanted if not _lasts(deployment, issuing, name, now)]
    if due:
        certify(deployment, keystore, due, now)


def _lasts(deployment: Deployment, issuing: x509.Certificate, name: str, now: int) -> bool:
    try:
        certificate = load_certificate(deployment.identity(name))
        certificate.verify_directly_issued_by(issuing)
    except (ConfigError, InvalidSignature, ValueError, TypeError):
        # Another one is made.
        return False
    issued, ends = pki.lifetime(certificate)
    allowed = int(lifetime(deployment.config).total_seconds()) * SECOND
    named = pki.server_names(certificate)
    return (
        issued - SECOND <= now < (issued + ends) // 2
        and ends - issued <= allowed
        and named.issuperset(hosts(deployment.config, name))
    )
