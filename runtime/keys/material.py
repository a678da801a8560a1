"""Keys that were made elsewhere, as they are read for an import.  Nothing of them is kept, printed or put into an error."""

from __future__ import annotations

import hashlib
import os
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tallystick.runtime.keys.imports import PrivateKey
from tallystick.runtime.keys.keystore import Secret, read_pin
from tallystick.schemas.errors import ConfigError

# An RSA key of 4096 bits has some 3,300 characters in PEM.
MAX_SECRET: Final = 16_384
MIN_RSA_BITS: Final = 2048
# RFC 2104: of a longer key the hash is taken, a shorter one is padded with zeros; both change nothing of the MAC.
_BLOCK: Final = {"sha256": 64, "sha384": 128, "sha512": 128}


def read_secret(prompt: str, fd: int | None) -> Secret:
    """A secret of one line at a prompt, or everything on a descriptor, which is closed.  Raises `ConfigError`."""
    if fd is None:
        return read_pin(prompt)
    try:
        with os.fdopen(fd, "rb") as file:
            data = file.read(MAX_SECRET + 1)
        text = data.decode("utf-8").strip()
    except OSError as exc:
        raise ConfigError("KEY_INPUT", f"cannot read the key from descriptor {fd}: {exc.strerror}") from exc
    except UnicodeDecodeError:
        raise ConfigError("KEY_INPUT", f"what is on descriptor {fd} is not UTF-8") from None
    if not 0 < len(data) <= MAX_SECRET or not text:
        raise ConfigError("KEY_INPUT", f"a key has 1 to {MAX_SECRET} bytes, got {len(data)}")
    return Secret(text)


def from_pem(secret: Secret) -> PrivateKey:
    """The private key in a PEM text without a passphrase.  Raises `ConfigError`."""
    try:
        key = serialization.load_pem_private_key(secret.reveal().encode(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # The library's own words may hold a part of the input.
        raise ConfigError("KEY_INPUT", "not a private key in PEM, or one with a passphrase: decrypt it first") from None
    if not isinstance(key, PrivateKey):
        raise ConfigError("KEY_KIND", f"a key of a kind that signs nothing here ({type(key).__name__})")
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size < MIN_RSA_BITS:
        raise ConfigError("KEY_KIND", f"RSA keys have at least {MIN_RSA_BITS} bits, this has {key.key_size}")
    return key


def mac_material(secret: Secret, digest: str) -> bytes:
    """What a token keeps for HMAC with `digest` of a secret that is used as its UTF-8 text; see `mac_block`."""
    return mac_block(secret.reveal().encode(), digest)


def mac_block(key: bytes, digest: str) -> bytes:
    """A key of exactly one block of the digest, which gives the same MACs (RFC 2104, 2).

    Tokens refuse keys that are shorter than the digest.
    """
    block = _BLOCK[digest]
    if len(key) > block:
        key = hashlib.new(digest, key).digest()
    return key.ljust(block, b"\x00")
