"""Keys in an open token, by kind: what each signs and how.  The keys themselves never leave the token.

| | algorithm | what `sign` gives |
|---|---|---|
| `HsmSigner` | Ed25519 (RFC 8032) | 64 bytes |
| `EcdsaSigner` | ECDSA on P-256 or secp256k1 (FIPS 186-5) | DER with SHA-256; `sign_digest`: the two numbers |
| `RsaSigner` | RSASSA-PKCS1-v1_5 (RFC 8017) with SHA-256, -384 or -512 | as long as the modulus |
| `MacKey` | HMAC (RFC 2104) with SHA-256, -384 or -512 | the MAC |

Everything raises `ConfigError` once the token is closed or gone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Final, Literal, TypeVar

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from pkcs11 import Mechanism
from pkcs11.types import SignMixin

Digest = Literal["sha256", "sha384", "sha512"]
T = TypeVar("T")
# Runs a function on the open token; the text says what it is about.
Ask = Callable[[str, Callable[[], Any]], Any]

_RSA: Final[dict[Digest, Mechanism]] = {
    "sha256": Mechanism.SHA256_RSA_PKCS,
    "sha384": Mechanism.SHA384_RSA_PKCS,
    "sha512": Mechanism.SHA512_RSA_PKCS,
}
_MAC: Final[dict[Digest, Mechanism]] = {
    "sha256": Mechanism.SHA256_HMAC,
    "sha384": Mechanism.SHA384_HMAC,
    "sha512": Mechanism.SHA512_HMAC,
}


class _Key:
    """A private or secret key of an open token; `name` is for people."""

    def __init__(self, ask: Ask, key: SignMixin, name: str) -> None:
        """For `Token`."""
        self._ask = ask
        self._key = key
        self._name = name
        self._about = f"signing with {name}"

    def _sign(self, data: bytes, mechanism: Mechanism) -> bytes:
        return bytes(self._ask(self._about, lambda: self._key.sign(data, mechanism=mechanism)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._name})"


class HsmSigner(_Key):
    """An Ed25519 key; `public` is the raw public key (32 bytes, RFC 8032)."""

    def __init__(self, ask: Ask, key: SignMixin, public: bytes, name: str) -> None:
        """For `Token.signer`."""
        super().__init__(ask, key, name)
        self.public = public

    def sign(self, data: bytes) -> bytes:
        """The Ed25519 signature (64 bytes) of `data`."""
        return self._sign(data, Mechanism.EDDSA)

    def __repr__(self) -> str:
        return f"HsmSigner({self._name}, public={self.public.hex()})"


class EcdsaSigner(_Key):
    """A key on P-256 or secp256k1; `public` is its public key."""

    def __init__(self, ask: Ask, key: SignMixin, public: ec.EllipticCurvePublicKey, name: str) -> None:
        """For `Token.p256_signer` and `Token.secp256k1_signer`."""
        super().__init__(ask, key, name)
        self.public = public

    def sign_digest(self, digest: bytes) -> tuple[int, int]:
        """`(r, s)` over a digest of 32 bytes; `s` may lie in either half."""
        raw = self._sign(digest, Mechanism.ECDSA)
        half = len(raw) // 2
        return int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big")

    def sign(self, data: bytes) -> bytes:
        """The DER signature of `data` with SHA-256."""
        return encode_dss_signature(*self.sign_digest(hashlib.sha256(data).digest()))


class RsaSigner(_Key):
    """An RSA key; `public` is its public key."""

    def __init__(self, ask: Ask, key: SignMixin, public: rsa.RSAPublicKey, name: str) -> None:
        """For `Token.rsa_signer`."""
        super().__init__(ask, key, name)
        self.public = public

    def sign(self, data: bytes, digest: Digest = "sha256") -> bytes:
        """The PKCS #1 v1.5 signature of `data`."""
        return self._sign(data, _RSA[digest])


class MacKey(_Key):
    """A secret for HMAC with one digest."""

    def __init__(self, ask: Ask, key: SignMixin, digest: Digest, name: str) -> None:
        """For `Token.mac_key`."""
        super().__init__(ask, key, name)
        self.digest = digest

    def mac(self, data: bytes) -> bytes:
        """The MAC of `data`."""
        return self._sign(data, _MAC[self.digest])
