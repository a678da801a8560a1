"""The API key that a component shows to the authority, in a file of its own: the present one, and the one that follows.

It is sealed (`sealed_file`) and holds JSON {"key": hex, "next": hex}.

- The key that follows is drawn and on the disk before its hash leaves the process: whenever that ends, the next process
  shows the same key with the same next one, or the next one.

The file is not trusted: who controls it can keep its component from a session.  Who copies it and has the passphrase and
the certificate as well can use it once, and is found out when its owner does.
"""

from __future__ import annotations

import hashlib
import secrets as entropy
from pathlib import Path
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag

from tallystick.runtime.keys.keystore import Secret
from tallystick.runtime.keys.sealed_file import SealedFile
from tallystick.schemas.enrolment import API_KEY_BYTES
from tallystick.schemas.errors import NOT_DECODED, ConfigError

MAGIC: Final = b"tallystick api key v1\n\n"
MAX_FILE: Final = 1024


class _Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key: str
    next: str = ""


class ApiKeyFile:
    """The key in `path` of `component`, under its `passphrase`."""

    def __init__(self, path: Path, deployment: str, component: str, passphrase: Secret) -> None:
        self.path = path
        self._file = SealedFile(path, MAGIC, deployment, component, passphrase, most=MAX_FILE)

    def begin(self) -> str:
        """A new first key; its SHA-256 (hex), for the operator to sign.  Raises `ConfigError`."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = entropy.token_bytes(API_KEY_BYTES)
        self._write(_Kept(made.hex()))
        return hashlib.sha256(made).hexdigest()

    def show(self) -> tuple[str, str]:
        """The present key (hex), and the SHA-256 (hex) of the one that follows, which is kept.  Raises `ConfigError`."""
        kept = self._read()
        if not kept.next:
            kept = _Kept(kept.key, entropy.token_hex(API_KEY_BYTES))
            self._write(kept)
        return kept.key, hashlib.sha256(bytes.fromhex(kept.next)).hexdigest()

    def advance(self, shown: str) -> None:
        """`shown` has opened its session: the next one is the present one.  Raises `ConfigError`."""
        kept = self._read()
        if kept.key == shown and kept.next:
            self._write(_Kept(kept.next))

    def _read(self) -> _Kept:
        try:
            return msgspec.json.decode(self._file.read(), type=_Kept)
        except OSError as exc:
            raise ConfigError(
                "API_KEY_FILE", f"cannot read {self.path}: {exc.strerror}; `tallystick reinstate` makes another key"
            ) from exc
        except (InvalidTag, *NOT_DECODED):
            # What a decoder says could quote the key.
            raise ConfigError(
                "API_KEY_FILE",
                f"{self.path} does not open with the passphrase of the keystore; `tallystick reinstate` makes another key",
            ) from None

    def _write(self, kept: _Kept) -> None:
        try:
            self._file.write(msgspec.json.encode(kept))
        except OSError as exc:
            raise ConfigError("API_KEY_FILE", f"cannot write {self.path}: {exc.strerror}") from exc
