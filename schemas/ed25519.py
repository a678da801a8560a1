"""Signatures are verified here and nowhere else: Ed25519 (RFC 8032, pure) by libsodium, under one rule.

Libsodium takes half of OpenSSL's time, and is the stricter: it refuses a point or scalar that is not encoded
canonically, and keys and nonces of small order, which would make one signature fit many messages.
"""

from __future__ import annotations

from typing import Final

from nacl.bindings import crypto_sign_open
from nacl.exceptions import CryptoError

KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64


class BadSignature(Exception):
    """The signature is not one of the key over the data."""


def verify(public: bytes, signature: bytes, data: bytes) -> None:
    """Raise `BadSignature` unless `signature` (64 bytes) is that of the raw public key (32 bytes) over `data`."""
    if len(public) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        raise BadSignature(f"{len(signature)} bytes by a key of {len(public)}")
    try:
        crypto_sign_open(signature + data, public)
    except CryptoError as exc:
        raise BadSignature(str(exc)) from exc
