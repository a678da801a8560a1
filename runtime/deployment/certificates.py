"""New certificates from the operator's CA, for who has his token: at `tallystick admit` and `reinstate`."""

from __future__ import annotations

from tallystick.runtime.deployment import folder as layout
from tallystick.runtime.deployment.ceremony import CERTIFICATE_VALIDITY
from tallystick.runtime.deployment.folder import Deployment
from tallystick.runtime.durable import write_durably
from tallystick.runtime.keys import pki
from tallystick.runtime.keys.hsm import Token
from tallystick.runtime.keys.keystore import Keystore
from tallystick.runtime.keys.pki import CertificateAuthority


def certificate_authority(deployment: Deployment, token: Token) -> CertificateAuthority:
    """The deployment's CA, whose key lies in the operator's `token`."""
    return CertificateAuthority(deployment.name, token.p256_signer(layout.KEY_CA), pki.load_certificate(deployment.ca))


def write_certificate(
    deployment: Deployment, keystore: Keystore, authority: CertificateAuthority, name: str, now: int
) -> None:
    """A new key and certificate of `name` in the deployment's folder, issued at `now` (Unix ns).

    Crash between the two files: they do not fit each other, which whoever opens them says; made anew, they do.
    """
    hosts = tuple(dict.fromkeys(("localhost", "127.0.0.1", deployment.config.host))) if name in layout.SERVERS else ()
    passphrase = keystore[layout.passphrase_name(name)]
    certificate, key = authority.issue(name, passphrase, now, CERTIFICATE_VALIDITY, hosts)
    write_durably(deployment.certificate(name), certificate, 0o600)
    write_durably(deployment.key(name), key, 0o600)


def certify(deployment: Deployment, keystore: Keystore, name: str, now: int) -> None:
    """A new key and certificate of `name`, as of `now` (Unix ns).  Opens the operator's token in this process."""
    pin = keystore[layout.pin_name("operator")]
    with Token.open(deployment.token("operator"), "operator", pin) as token:
        write_certificate(deployment, keystore, certificate_authority(deployment, token), name, now)
