"""The manifest of an archive: one line a flush or compaction, hash-chained, naming the segments that count.

A line is canonical JSON (`Entry`), its `prev` the SHA-256 of the line before (without newline, 64 zeros for the
first).  The rules of what it may say are in `archive`, whose process alone writes it.

Everything but `read_manifest` and `files` is pure.  The manifest is not trusted: an attacker who controls it can at
most cut what no checkpoint on the bus has vouched for yet; every other change is one of its `defects`.
"""

from __future__ import annotations

import datetime
import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from tallystick.record.files import ArchiveError, FileRefused, read_regular
from tallystick.schemas.errors import NOT_DECODED, Malformed
from tallystick.schemas.subjects import STREAMS

MANIFEST: Final = "manifest.jsonl"
TRUST: Final = "trust"
TEMPORARY: Final = ".tmp"
GENESIS: Final = "0" * 64

# Beyond these a file is none of ours; the writer stays far below.
MAX_SEGMENT_ROWS: Final = 1 << 22
MAX_SEGMENT_BYTES: Final = 1 << 32
MAX_INT: Final = 2**63 - 1
MAX_MANIFEST: Final = 1 << 32

_NAME = re.compile(r"stream=([A-Z]+)/day=(\d{4}-\d\d-\d\d)/(\d{16,19})-(\d{16,19})-(\d{1,2})\.parquet")


class Segment(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One Parquet file as the manifest names it; times are Unix ns of storage by the broker, `sha256` is hex."""

    file: str
    sha256: str
    size: int
    stream: str
    level: int
    rows: int
    messages: int
    first_seq: int
    last_seq: int
    first_log: int
    last_log: int
    first_time: int
    last_time: int

    def __post_init__(self) -> None:
        match = _NAME.fullmatch(self.file)
        if match is None or match.groups()[2:] != _numbers(self.first_seq, self.last_seq, self.level):
            raise Malformed("SEGMENT_NAME", f"{self.file[:128]!r} does not fit its sequences and level")
        if match.group(1) != self.stream or self.stream not in STREAMS:
            raise Malformed("SEGMENT_STREAM", f"{self.file[:128]!r} is not of stream {self.stream[:32]!r}")
        if not (
            1 <= self.messages <= self.rows <= MAX_SEGMENT_ROWS
            and 0 < self.size <= MAX_SEGMENT_BYTES
            and 1 <= self.first_seq <= self.last_seq <= MAX_INT
            and 0 <= self.first_log <= self.last_log <= MAX_INT
            and 0 <= self.first_time <= self.last_time <= MAX_INT
            and self.messages <= 1 + min(self.last_seq - self.first_seq, self.last_log - self.first_log)
            and self.level >= 0
        ):
            text = (
                f"{self.file}: {self.messages} messages in {self.rows} rows and {self.size} bytes, sequences "
                f"{self.first_seq} to {self.last_seq}, log indexes {self.first_log} to {self.last_log}"
            )
            raise Malformed("SEGMENT", text)


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One manifest line: `{"n":…,"prev":…,"replaces":[…],"segments":[…]}`, keys sorted, no spaces."""

    n: int
    prev: str
    segments: tuple[Segment, ...]
    replaces: tuple[str, ...] = ()


_entries = msgspec.json.Decoder(Entry)


def encode_entry(entry: Entry) -> bytes:
    """The line, without its newline."""
    return msgspec.json.encode(entry, order="sorted")


def decode_entry(line: bytes) -> Entry:
    """The entry of one line (without newline).  Raises `Malformed`."""
    try:
        entry = _entries.decode(line)
    except (Malformed, *NOT_DECODED) as exc:
        raise Malformed("MANIFEST_LINE", str(exc)) from exc
    if encode_entry(entry) != line:
        raise Malformed("MANIFEST_LINE", "does not re-encode to the same bytes")
    return entry


def line_hash(line: bytes) -> str:
    """SHA-256 (hex) of a manifest line without its newline."""
    return hashlib.sha256(line).hexdigest()


class Defect(msgspec.Struct, frozen=True):
    """What is wrong with a manifest, at which line (from 1)."""

    line: int
    code: str
    text: str


class Manifest:
    """A manifest as read: entries, the hash of each line, and what is wrong with it.  Pure.

    `torn` holds the bytes after the last newline: a line whose writer crashed.  Nothing refers to it.
    """

    def __init__(self, data: bytes = b"") -> None:
        *lines, self.torn = data.split(b"\n")
        self.entries: list[Entry] = []
        self.hashes: list[str] = []
        self.defects: list[Defect] = []
        self.live: dict[str, Segment] = {}
        self.replaced: set[str] = set()
        for line in lines:
            self._add_line(line)

    @property
    def head(self) -> str:
        """The hash that the next line names as `prev`."""
        return self.hashes[-1] if self.hashes else GENESIS

    def _add_line(self, line: bytes) -> None:
        number = len(self.hashes) + 1
        try:
            entry = decode_entry(line)
        except Malformed as exc:
            self.defects.append(Defect(number, exc.code, exc.text))
            self.hashes.append(line_hash(line))
            return
        if entry.n != number:
            self.defects.append(Defect(number, "MANIFEST_NUMBER", f"says it is entry {entry.n}"))
        if entry.prev != self.head:
            text = f"names {entry.prev[:16]}… as the line before, which is {self.head[:16]}…: edited, cut or reordered"
            self.defects.append(Defect(number, "MANIFEST_LINK", text))
        for code, text in self._apply(entry):
            self.defects.append(Defect(number, code, text))
        self.entries.append(entry)
        self.hashes.append(line_hash(line))

    def _apply(self, entry: Entry) -> Iterator[tuple[str, str]]:
        """Bring `live` up to `entry`, yielding (code, text) for what it may not say."""
        old = [self.live.pop(name) for name in entry.replaces if name in self.live]
        if len(old) != len(entry.replaces):
            yield "MANIFEST_REPLACES", "replaces a segment that is not live"
        self.replaced.update(entry.replaces)
        if entry.replaces and (len(entry.segments) != 1 or not old or not _covers(entry.segments[0], old)):
            yield "MANIFEST_REPLACES", f"{len(entry.segments)} segments do not hold what {len(old)} held"
        for segment in entry.segments:
            if segment.file in self.live or segment.file in self.replaced:
                yield "MANIFEST_FILE", f"{segment.file} is named twice"
            self.live[segment.file] = segment

    def append(self, entry: Entry, line: bytes) -> None:
        """Take in the writer's own next entry."""
        for code, text in self._apply(entry):
            raise ArchiveError(code, text)
        self.entries.append(entry)
        self.hashes.append(line_hash(line))

    def segments(self, stream: str) -> list[Segment]:
        """Live segments of a stream in its order."""
        return sorted((s for s in self.live.values() if s.stream == stream), key=lambda s: s.first_seq)

    def resume(self, stream: str) -> int:
        """The last sequence of `stream` that is archived; 0 before the first."""
        return max((s.last_seq for s in self.live.values() if s.stream == stream), default=0)

    @property
    def rows(self) -> int:
        """Rows in all live segments."""
        return sum(s.rows for s in self.live.values())

    @property
    def next_log(self) -> int:
        """The log index that follows the last archived message."""
        return max((s.last_log + 1 for s in self.live.values()), default=0)


def _covers(new: Segment, old: Sequence[Segment]) -> bool:
    return (
        {s.stream for s in old} == {new.stream}
        and sum(s.rows for s in old) == new.rows
        and sum(s.messages for s in old) == new.messages
        and min(s.first_seq for s in old) == new.first_seq
        and max(s.last_seq for s in old) == new.last_seq
        and min(s.first_log for s in old) == new.first_log
        and max(s.last_log for s in old) == new.last_log
    )


def _numbers(first: int, last: int, level: int) -> tuple[str, str, str]:
    return f"{first:016d}", f"{last:016d}", str(level)


def segment_name(stream: str, time: int, first: int, last: int, level: int) -> str:
    """The path of a segment below the archive; `time` is Unix ns of its first message's storage."""
    day = datetime.datetime.fromtimestamp(time // 1_000_000_000, datetime.UTC).date().isoformat()
    return f"stream={stream}/day={day}/{'-'.join(_numbers(first, last, level))}.parquet"


def read_manifest(directory: Path) -> Manifest:
    """The manifest of an archive, empty if there is none yet.  Raises `ArchiveError` if it cannot be read."""
    try:
        return Manifest(read_regular(directory, MANIFEST, MAX_MANIFEST))
    except FileRefused as exc:
        if not directory.is_dir():
            raise ArchiveError("ARCHIVE_MISSING", f"{directory} is not an archive: no such directory") from None
        if exc.code == "FILE_MISSING":
            return Manifest()
        raise


def unfinished(name: str, manifest: Manifest) -> bool:
    """Whether an unnamed file is what a crash between rename and manifest line leaves.

    Either the next flush of its stream, or a compaction of segments that are live.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        return False
    stream, first, last, level = match.group(1), int(match.group(3)), int(match.group(4)), int(match.group(5))
    if level == 0:
        return first > manifest.resume(stream)
    inside = [s for s in manifest.segments(stream) if first <= s.first_seq and s.last_seq <= last]
    return bool(inside) and inside[0].first_seq == first and inside[-1].last_seq == last


def files(directory: Path) -> list[str]:
    """Every segment and temporary file below `directory`, as relative paths."""
    found = [p for p in directory.glob("stream=*/day=*/*") if p.is_file()]
    found += [p for p in directory.glob(f"*{TEMPORARY}") if p.is_file()]
    return sorted(p.relative_to(directory).as_posix() for p in found)
