"""A small file that one component alone can read and write: sealed under the passphrase of its TLS key.

    magic ‖ nonce 12 ‖ AES-256-GCM of the content

- The file's key is derived (HKDF-SHA256) from the component's passphrase, the magic, the deployment and its name; the magic
  is authenticated.
- It is replaced whole (`durable`).

The file is not trusted: who controls it can bring back an older content, or take it away.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tallystick.runtime.durable import write_durably
from tallystick.runtime.keys.keystore import Secret

_NONCE: Final = 12


class SealedFile:
    """The file `path` of `component`, of at most `most` bytes; `magic` says what it is."""

    def __init__(
        self, path: Path, magic: bytes, deployment: str, component: str, passphrase: Secret, *, most: int
    ) -> None:
        self._path = path
        self._magic = magic
        self._most = most
        info = b"\x00".join((magic, deployment.encode(), component.encode()))
        self._sealed = AESGCM(HKDF(SHA256(), 32, salt=None, info=info).derive(passphrase.reveal().encode()))

    def read(self) -> bytes:
        """The content.  Raises `OSError`, and `InvalidTag` for what is not this component's."""
        with self._path.open("rb") as file:
            data = file.read(self._most + 1)
        if not data.startswith(self._magic) or len(data) > self._most:
            raise InvalidTag
        nonce, rest = data[len(self._magic) :][:_NONCE], data[len(self._magic) + _NONCE :]
        return self._sealed.decrypt(nonce, rest, self._magic)

    def write(self, content: bytes) -> None:
        """Replace the content; it is on the disk when this returns.  Raises `OSError`."""
        nonce = os.urandom(_NONCE)
        write_durably(self._path, self._magic + nonce + self._sealed.encrypt(nonce, content, self._magic), 0o600)
