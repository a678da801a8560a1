"""Checkpoints: those that audit sealed in the archive, and one that was kept elsewhere, held against the manifest.

A checkpoint names how many lines the manifest has, and the hash of the last one, which vouches for all before it.
Written down it is `LINES:HASH` (hex), or a C2SP tlog-checkpoint, signed or not:

    tallystick/<deployment>
    <lines>
    <base64 of the hash>

The copy that is kept elsewhere is what shows that an archive's end was cut off; nothing in the archive can.
"""

from __future__ import annotations

import base64
import binascii
import re
from pathlib import Path
from typing import Final

import msgspec

from tallystick.record.judge import Sealed
from tallystick.record.manifest import MANIFEST, Manifest
from tallystick.record.report import Covered, Problem, Report
from tallystick.schemas.errors import ConfigError, Malformed, Unverified
from tallystick.schemas.note import MAX_NOTE, open_note
from tallystick.schemas.seal import Verifier
from tallystick.schemas.subjects import SECURITY
from tallystick.schemas.trust import ROOT_KEY_NAME, public_key_bytes

_SHORT: Final = re.compile(r"(\d{1,18}):([0-9a-f]{64})")


class Expected(msgspec.Struct, frozen=True):
    """A checkpoint that was kept elsewhere: `entries` lines, the last with hash `head` (hex); `note` if it is a note."""

    entries: int
    head: str
    note: str = ""


def parse_expected(given: str) -> Expected:
    """What `--expect` was given: `LINES:HASH`, or the name of a file that holds that or a note.

    Raises `ConfigError` (`EXPECT`).
    """
    match = _SHORT.fullmatch(given)
    if match is None:
        try:
            with Path(given).open(encoding="utf-8") as file:
                text = file.read(MAX_NOTE + 1)
        except (OSError, UnicodeDecodeError, ValueError) as exc:
            raise ConfigError("EXPECT", f"{given[:256]!r} is neither LINES:HASH nor a file with it: {exc}") from exc
        match = _SHORT.fullmatch(text.strip())
        if match is None:
            return _note(given, text)
    return Expected(int(match.group(1)), match.group(2))


def _note(given: str, text: str) -> Expected:
    lines = text.split("\n")
    try:
        entries, head = int(lines[1]), base64.b64decode(lines[2], validate=True)
        if len(head) != 32 or not 0 < entries < 2**63 or not lines[1].isascii():
            raise ValueError("not a number of lines and a hash of 32 bytes")
    except (IndexError, ValueError, binascii.Error) as exc:
        raise ConfigError("EXPECT", f"{given[:256]!r} holds no checkpoint: {exc}") from exc
    return Expected(entries, head.hex(), text if "\n\n" in text else "")


def hold_expected(expected: Expected, manifest: Manifest, verifiers: list[Verifier], report: Report) -> None:
    """Hold the manifest against a checkpoint from elsewhere.  Raises `ConfigError` for a note that is forged."""
    if expected.note and verifiers:
        trust = verifiers[-1].trust
        try:
            open_note(expected.note, {**trust.operator_keys, ROOT_KEY_NAME: public_key_bytes(trust.operator_root)})
        except (Malformed, Unverified) as exc:
            if exc.code != "NOTE_UNSIGNED":
                raise ConfigError("EXPECT", f"the expected checkpoint is no good note: {exc}") from exc
            report.notes.append("the expected checkpoint is signed by none of the operator's keys: taken at its word")
    if expected.entries > manifest.count:
        text = (
            f"the expected checkpoint covers {expected.entries} lines, {manifest.count} are there: the end was cut off"
        )
        report.add(Problem("MANIFEST_CUT", text, file=MANIFEST))
    elif manifest.hash_of(expected.entries) != expected.head:
        text = f"line {expected.entries} is not what the expected checkpoint names: a line up to it was changed"
        report.add(Problem("MANIFEST_REWRITTEN", text, file=MANIFEST))
    else:
        report.notes.append(f"the expected checkpoint holds: lines 1 to {expected.entries} are as they were")


def hold_sealed(checkpoints: list[Sealed], manifest: Manifest, report: Report) -> None:
    """Hold the manifest against every checkpoint that audit sealed, and say what none of them covers."""
    report.checkpoints = len(checkpoints)
    good = 0
    for sealed in checkpoints:
        stated = sealed.checkpoint
        at = {"file": MANIFEST, "stream": SECURITY, "stream_seq": sealed.stream_seq}
        if stated.entries > manifest.count:
            text = f"audit sealed a checkpoint over {stated.entries} lines, {manifest.count} are there: cut"
            report.add(Problem("MANIFEST_CUT", text, **at))  # type: ignore[arg-type]
        elif manifest.hash_of(stated.entries) != stated.head.hex():
            text = f"line {stated.entries} is not what audit sealed: a line from {good + 1} on was changed"
            report.add(Problem("MANIFEST_REWRITTEN", text, **at))  # type: ignore[arg-type]
            break  # every later checkpoint would say the same
        elif stated.entries >= good:
            good = stated.entries
            report.covered = Covered(
                entries=good,
                head=stated.head.hex(),
                messages=manifest.messages_at(good),
                time=sealed.time,
                stream_seq=sealed.stream_seq,
            )
    report.open_lines = manifest.count - good
    report.open_messages = manifest.next_log - manifest.messages_at(good)
