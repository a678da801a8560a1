"""Signed notes (C2SP signed-note): text that people can read, with Ed25519 signatures below it.

    <text, ending in a newline>
    <empty line>
    — <key name> <base64(4-byte key id ‖ 64-byte signature)>

The key id is SHA-256(name ‖ 0x0A ‖ 0x01 ‖ public key)[:4].  Signatures by unknown keys are ignored,
a wrong signature by a known key is refused, as the specification says.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from typing import Final

from tallystick.schemas.ed25519 import BadSignature, verify
from tallystick.schemas.errors import Malformed, Unverified
from tallystick.schemas.nats_jwt import Signer

ED25519: Final = b"\x01"
MAX_NOTE: Final = 1 << 20
MAX_SIGNATURES: Final = 16
_LINE = re.compile(r"— (\S+) ([A-Za-z0-9+/]+=*)")
_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")


def key_id(name: str, public: bytes) -> bytes:
    """The 4-byte key id of a note signature."""
    return hashlib.sha256(name.encode() + b"\n" + ED25519 + public).digest()[:4]


def _check_text(text: str) -> None:
    if not text.isascii() and _SURROGATE.search(text):
        raise Malformed("NOTE_TEXT", "a note's text is Unicode: it holds no half of a surrogate pair")
    if not text.endswith("\n") or len(text) > MAX_NOTE or _CONTROL.search(text):
        raise Malformed("NOTE_TEXT", "a note's text ends in a newline and holds no other control character")


def sign_note(text: str, *signers: tuple[str, Signer]) -> str:
    """`text` signed by each (key name, signer), as a note."""
    _check_text(text)
    lines = []
    for name, signer in signers:
        signature = key_id(name, signer.public) + signer.sign(text.encode())
        lines.append(f"— {name} {base64.b64encode(signature).decode()}\n")
    return f"{text}\n{''.join(lines)}"


def open_note(note: str, keys: Mapping[str, bytes]) -> tuple[str, frozenset[str]]:
    """The text of a note and the names of the `keys` (name -> raw public key) that signed it.

    Raises `Malformed` for what is no note, `Unverified` for a wrong signature of a known key or when
    none of `keys` signed.
    """
    if len(note) > MAX_NOTE:
        raise Malformed("NOTE_SIZE", f"note of {len(note)} characters, limit {MAX_NOTE}")
    text, separator, signatures = note.rpartition("\n\n")
    if not separator or not signatures.endswith("\n"):
        raise Malformed("NOTE", "no signatures below an empty line")
    text += "\n"
    _check_text(text)
    lines = signatures[:-1].split("\n")
    if len(lines) > MAX_SIGNATURES:
        raise Malformed("NOTE", f"{len(lines)} signatures, limit {MAX_SIGNATURES}")
    verified = set()
    for line in lines:
        match = _LINE.fullmatch(line)
        if match is None:
            raise Malformed("NOTE_SIGNATURE", f"not a signature line: {line[:80]!r}")
        name, encoded = match.groups()
        try:
            raw = base64.b64decode(encoded, validate=True)
        except binascii.Error as exc:
            raise Malformed("NOTE_SIGNATURE", f"not base64 in the signature of {name[:48]}") from exc
        public = keys.get(name)
        if public is None or raw[:4] != key_id(name, public):
            continue
        try:
            verify(public, raw[4:], text.encode())
        except BadSignature as exc:
            raise Unverified("NOTE_SIGNATURE", f"the signature of {name} does not match the text") from exc
        verified.add(name)
    if not verified:
        raise Unverified("NOTE_UNSIGNED", f"not signed by any of: {', '.join(sorted(keys)) or 'no known key'}")
    return text, frozenset(verified)
