"""The keys that sign, as a port, and how a secret becomes the key material of a token, once, at its import.

The import is the one moment at which a secret is here in plaintext: in the ceremony's process, from a person's hands into
the token.  Whoever signs afterwards has `SigningKeys` and no secret.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
from typing import Final, Protocol

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_der_private_key, load_pem_private_key

from tallystick.schemas.errors import ConfigError
from tallystick.venues.signing.schemes import Digest, Form, Scheme

PrivateKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

# RFC 2104: B, the block size of the hash; FIPS 180-4.
BLOCK: Final[dict[Digest, int]] = {"sha256": 64, "sha384": 128, "sha512": 128}
_SEED: Final = 32
_BASE58: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


class SigningKeys(Protocol):
    """The keys of one credential, wherever they are; what a scheme does not use raises `Denied`.

    Nothing of them can be read.  A call signs once, at once, or raises.
    """

    def mac(self, transforms: Form, algorithm: Digest, data: bytes) -> bytes:
        """The HMAC (RFC 2104) of `data` under the secret as `transforms` make it."""

    def ed25519(self, data: bytes) -> bytes:
        """The signature (64 bytes, RFC 8032) of `data`."""

    def rsa(self, data: bytes, digest: Digest) -> bytes:
        """The RSASSA-PKCS1-v1_5 signature (RFC 8017) of `data`."""

    def ecdsa(self, digest: bytes) -> tuple[int, int]:
        """`(r, s)` over a digest of 32 bytes; `s` may lie in either half."""

    def public(self) -> bytes:
        """The public key: raw (Ed25519), the uncompressed point of SEC 1 (ECDSA), DER SubjectPublicKeyInfo (RSA)."""


def transformed(secret: str, form: Form) -> bytes:
    """The bytes that ccxt makes of `secret` step by step.  Raises `ConfigError` for a secret that is none."""
    value: str | bytes = secret
    for step in form:
        made: str | bytes | None = None
        with contextlib.suppress(ValueError):
            made = _step(value, step)
        # Raised here, where no decoder's error hangs on to it: they may quote what they read.
        if made is None:
            raise ConfigError("SIGNING_SECRET", f"the secret is not as the exchange shows it: {step} fails")
        value = made
    if isinstance(value, str):
        raise ConfigError("SIGNING_SECRET", f"{'+'.join(form)} leaves text, where bytes are signed with")
    return value


def _step(value: str | bytes, step: str) -> str | bytes:
    if step == "md5":
        return hashlib.md5(_bytes(value), usedforsecurity=False).hexdigest()
    text = value if isinstance(value, str) else value.decode("ascii")
    if step == "utf8":
        return text.encode()
    if step == "upper":
        return text.upper()
    if step == "base64-encode":
        return base64.b64encode(text.encode()).decode("ascii")
    if step == "base64-decode":
        return base64.b64decode(text, validate=True)
    raise ConfigError("SIGNING_SECRET", f"no such step: {step[:48]}")


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value


def mac_keys(secret: str, scheme: Scheme) -> dict[tuple[Form, Digest], bytes]:
    """The key material that a token holds for `secret`: one key for each form and digest of the scheme.

    A key longer than the hash's block is hashed, any is padded with zeros to the block: HMAC does the same first thing
    (RFC 2104, section 2), and tokens refuse keys shorter than the digest.  Raises `ConfigError`.
    """
    if scheme.kind != "hmac":
        raise ConfigError("SIGNING_SECRET", f"{scheme.name} has a private key, no secret for HMAC")
    if not secret:
        raise ConfigError("SIGNING_SECRET", "the secret is empty")
    keys = {}
    for form, digest in scheme.macs:
        raw = transformed(secret, form)
        if len(raw) > BLOCK[digest]:
            raw = hashlib.new(digest, raw).digest()
        keys[form, digest] = raw.ljust(BLOCK[digest], b"\x00")
    return keys


def private_key(secret: str, scheme: Scheme) -> PrivateKey:
    """The private key that `secret` writes as the exchange shows it.  Raises `ConfigError`, which shows nothing of it."""
    key: object = None
    with contextlib.suppress(ValueError, TypeError, UnsupportedAlgorithm):
        key = _parsed(secret.strip(), scheme)
    # Raised here, where no parser's error hangs on to it: they quote what they parse.
    if key is None:
        raise ConfigError("SIGNING_SECRET", f"no private key for {scheme.name}, written as {scheme.written}")
    fits = {
        "ed25519": isinstance(key, ed25519.Ed25519PrivateKey),
        "rsa": isinstance(key, rsa.RSAPrivateKey),
        "p256": isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1),
        "secp256k1": isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256K1),
    }
    if not fits.get(scheme.kind, False):
        raise ConfigError("SIGNING_SECRET", f"{scheme.name} is signed with another kind of key than the one given")
    return key  # type: ignore[return-value]  # what it is was checked by name


def _parsed(text: str, scheme: Scheme) -> object:
    if scheme.written == "pem":
        return load_pem_private_key(text.encode(), None)
    if scheme.written == "pem-body":
        return load_der_private_key(base64.b64decode("".join(text.split()), validate=True), None)
    if scheme.written == "hex":
        return ec.derive_private_key(int(text.removeprefix("0x"), 16), ec.SECP256K1())
    if scheme.written == "base64":
        raw = base64.b64decode(text, validate=True)
    elif scheme.written in ("base58", "orderly"):
        raw = _base58(text.removeprefix("ed25519:") if scheme.written == "orderly" else text)
    else:
        raise ValueError(scheme.written)
    key = ed25519.Ed25519PrivateKey.from_private_bytes(raw[:_SEED])
    if raw[_SEED:] not in (b"", key.public_key().public_bytes_raw()):
        raise ValueError("public key")
    return key


def _base58(text: str) -> bytes:
    """Base58 of Bitcoin's alphabet; a `1` in front stands for a zero byte."""
    number = 0
    for letter in text:
        number = number * 58 + _BASE58.index(letter)
    zeros = len(text) - len(text.lstrip("1"))
    return bytes(zeros) + number.to_bytes((number.bit_length() + 7) // 8, "big")
