"""`SigningKeys` over an open PKCS#11 token, and the import of a credential into one.

One credential is one key of the token for a private key, and one for each form and digest of a secret for HMAC: HMAC keys
of different forms are different keys.  Their ids begin with the credential's.
"""

from __future__ import annotations

from typing import Never

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tallystick.runtime.keys.hsm import Token
from tallystick.runtime.keys.keystore import Secret
from tallystick.runtime.keys.signers import EcdsaSigner, HsmSigner, MacKey, RsaSigner
from tallystick.venues import Denied
from tallystick.venues.signing.keys import mac_keys, private_key
from tallystick.venues.signing.schemes import Digest, Form, Scheme


def mac_key_id(key_id: bytes, form: Form, digest: Digest) -> bytes:
    """The id of the key that holds the secret in this form."""
    return b"/".join((key_id, "+".join(form).encode("ascii"), digest.encode("ascii")))


def import_credential(token: Token, key_id: bytes, label: str, scheme: Scheme, secret: Secret) -> tuple[bytes, ...]:
    """Take a credential of an exchange into the token; returns the ids of its keys.

    For the ceremony: the one place where the secret is in memory.  Raises `ConfigError`; what was imported before a
    failure is destroyed again.
    """
    if scheme.kind != "hmac":
        token.import_private(key_id, label, private_key(secret.reveal(), scheme))
        return (key_id,)
    done: list[bytes] = []
    try:
        for (form, digest), value in mac_keys(secret.reveal(), scheme).items():
            each = mac_key_id(key_id, form, digest)
            token.import_mac(each, label, value)
            done.append(each)
    except BaseException:
        for each in done:
            token.destroy(each)
        raise
    return tuple(done)


class TokenKeys:
    """The keys of one credential in an open token; `imported`: they may have been made elsewhere.

    Raises `ConfigError` where one is missing, or the token is closed or gone.
    """

    def __init__(self, token: Token, key_id: bytes, scheme: Scheme, *, imported: bool = True) -> None:
        self._scheme = scheme
        self._macs: dict[tuple[Form, Digest], MacKey] = {}
        self._ed25519: HsmSigner | None = None
        self._rsa: RsaSigner | None = None
        self._ecdsa: EcdsaSigner | None = None
        if scheme.kind == "hmac":
            self._macs = {each: token.mac_key(mac_key_id(key_id, *each), each[1]) for each in scheme.macs}
        elif scheme.kind == "ed25519":
            self._ed25519 = token.signer(key_id, imported=imported)
        elif scheme.kind == "rsa":
            self._rsa = token.rsa_signer(key_id, imported=imported)
        elif scheme.kind == "p256":
            self._ecdsa = token.p256_signer(key_id, imported=imported)
        else:
            self._ecdsa = token.secp256k1_signer(key_id, imported=imported)

    def _none(self) -> Never:
        raise Denied("SIGNATURE_KIND", f"the token has no such key for {self._scheme.name}")

    def mac(self, transforms: Form, algorithm: Digest, data: bytes) -> bytes:
        """As `SigningKeys.mac`."""
        key = self._macs.get((transforms, algorithm))
        return self._none() if key is None else key.mac(data)

    def ed25519(self, data: bytes) -> bytes:
        """As `SigningKeys.ed25519`."""
        return self._none() if self._ed25519 is None else self._ed25519.sign(data)

    def rsa(self, data: bytes, digest: Digest) -> bytes:
        """As `SigningKeys.rsa`."""
        return self._none() if self._rsa is None else self._rsa.sign(data, digest)

    def ecdsa(self, digest: bytes) -> tuple[int, int]:
        """As `SigningKeys.ecdsa`."""
        return self._none() if self._ecdsa is None else self._ecdsa.sign_digest(digest)

    def public(self) -> bytes:
        """As `SigningKeys.public`."""
        if self._ed25519 is not None:
            return self._ed25519.public
        if self._ecdsa is not None:
            return self._ecdsa.public.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        if self._rsa is not None:
            return self._rsa.public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return self._none()

    def __repr__(self) -> str:
        return f"TokenKeys({self._scheme.name})"
