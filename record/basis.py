"""What an answer from the archive rests on: which manifest, and how far a sealed checkpoint vouches for it.

    manifest    12:<SHA-256 of its last line>, read in the archive
    checkpoint  10:<SHA-256 of line 10>, sealed by audit; 2 lines after it are covered by none

Both have the form that `tallystick audit verify --expect` takes.  A manifest that contradicts itself or its newest
checkpoint gives no answer (`Tampered`).  What the lines after the checkpoint say, anybody who can write in the archive
may have said; `verify` judges every row.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Final

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tallystick.record.chains import open_message
from tallystick.record.files import ArchiveError
from tallystick.record.manifest import Manifest, find_hash, read_manifest
from tallystick.record.opened import Opened
from tallystick.record.rows import OK
from tallystick.schemas import registry
from tallystick.schemas.errors import NOT_DECODED, Malformed
from tallystick.schemas.event import Event
from tallystick.schemas.seal import Payload, Verified, Verifier
from tallystick.schemas.security import Checkpoint
from tallystick.schemas.subjects import SECURITY

_COLUMNS: Final = ["subject", "payload", "received", "status", "stream_seq"]
_SUBJECT: Final = "audit.checkpoint"
_payloads = msgspec.msgpack.Decoder(Payload)


class Tampered(ArchiveError):
    """An archive that contradicts itself."""

    exit_code: ClassVar[int] = 1


class Basis(msgspec.Struct, frozen=True):
    """`lines` and `head` of the manifest; `covered` lines up to hash `covered_head` that a checkpoint names.

    `sealed`: the checkpoint's seal was checked; `covered` is 0 where there is none.
    """

    lines: int
    head: str
    covered: int = 0
    covered_head: str = ""
    sealed: bool = False

    def __str__(self) -> str:
        said = f"rests on manifest {self.lines}:{self.head}"
        if not self.covered:
            return f"{said}; no checkpoint covers any of it"
        seal = "sealed by audit" if self.sealed else "its seal was not checked: give the root key with --root"
        left = self.lines - self.covered
        return (
            f"{said}; newest checkpoint {self.covered}:{self.covered_head}, {seal}; "
            f"{left or 'no'} line{'' if left == 1 else 's'} after it"
        )


def read_sound(archive: Path) -> Manifest:
    """The manifest of an archive.  Raises `Tampered` for one with a defect, and what `read_manifest` raises."""
    manifest = read_manifest(archive)
    if manifest.defects:
        first = manifest.defects[0]
        raise Tampered(first.code, f"manifest line {first.line}: {first.text}; see: tallystick audit verify")
    return manifest


def basis(archive: Path, manifest: Manifest, verifiers: Sequence[Verifier] = ()) -> Basis:
    """What answers from this manifest rest on; without `verifiers` the checkpoint is taken at its word.

    Raises `Tampered` if the newest checkpoint does not verify or names another manifest, and `FileRefused`.
    """
    lines, head = manifest.count, manifest.head
    newest = _newest(archive, manifest, verifiers)
    if newest is None:
        return Basis(lines, head)
    entries, stated = newest.entries, newest.head.hex()
    if entries > lines:
        text = f"audit sealed a checkpoint over {entries} lines, {lines} are there; see: tallystick audit verify"
        raise Tampered("MANIFEST_CUT", text)
    if entries and find_hash(archive, manifest, entries) != stated:
        text = f"line {entries} is not what audit's newest checkpoint names; see: tallystick audit verify"
        raise Tampered("MANIFEST_REWRITTEN", text)
    return Basis(lines, head, entries, stated, bool(verifiers))


def _newest(archive: Path, manifest: Manifest, verifiers: Sequence[Verifier]) -> Checkpoint | None:
    """The checkpoint that was stored last.  Raises `Tampered` if its seal does not hold."""
    for segment in reversed(manifest.segments(SECURITY)):
        opened = Opened(archive, [segment])
        [path] = opened.paths[SECURITY]
        file = pq.ParquetFile(path)
        for group in reversed(range(file.metadata.num_row_groups)):
            table = file.read_row_group(group, columns=_COLUMNS)
            mask = pc.and_(pc.equal(table["subject"], _SUBJECT), pc.is_valid(table["payload"]))
            found = table.filter(pc.and_(mask, pc.equal(table["status"], OK)))
            if found.num_rows:
                last = found.slice(found.num_rows - 1)
                return _opened(last["payload"][0].as_py(), last["received"].cast(pa.int64())[0].as_py(), verifiers)
    return None


def _opened(payload: bytes, received: int, verifiers: Sequence[Verifier]) -> Checkpoint:
    """The checkpoint in a sealed message of audit's.  Raises `Tampered`."""
    if verifiers:
        opened = open_message(verifiers, _SUBJECT, SECURITY, payload, received)
        if not isinstance(opened, Verified):
            raise Tampered(
                "CHECKPOINT_SEAL", f"the newest checkpoint does not verify: {opened}; see: tallystick audit verify"
            )
        events: Sequence[Event] = opened.events
    else:
        try:
            events = registry.decode_events(_SUBJECT, _payloads.decode(payload).events)
        except (Malformed, *NOT_DECODED) as exc:
            raise Tampered("CHECKPOINT_SEAL", f"the newest checkpoint cannot be read: {exc}") from exc
    found = [event for event in events if isinstance(event, Checkpoint)]
    if not found:
        raise Tampered("CHECKPOINT_SEAL", "the newest message of checkpoints holds none")
    return found[-1]
