"""The manifest of an archive: one line a flush or compaction, hash-chained, naming the segments that count.

A line is canonical JSON (`Entry`), its `prev` the SHA-256 of the line before (without newline, 64 zeros for the
first).  The rules of what it may say are in `archive`, whose process alone writes it.

The lines are kept in parts: `manifest.jsonl` is the last one, those before it lie in `manifest/`, each named after its
first line's number.  Every part but the first begins with a `Carry`, which says again what is live: so a reader needs
the last part alone, however long the archive's history is, and only `verify` reads all of it.

The manifest is not trusted: an attacker who controls it can at most cut what no checkpoint that is left has vouched
for; every other change is one of its `defects`.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from tallystick.record.files import ArchiveError, FileRefused, read_regular
from tallystick.schemas.errors import NOT_DECODED, Malformed
from tallystick.schemas.subjects import STREAMS

MANIFEST: Final = "manifest.jsonl"
PARTS: Final = "manifest"
TRUST: Final = "trust"
TEMPORARY: Final = ".tmp"
GENESIS: Final = "0" * 64

# Beyond these a file is none of ours; the writer stays far below.
MAX_SEGMENT_ROWS: Final = 1 << 22
MAX_SEGMENT_BYTES: Final = 1 << 32
MAX_INT: Final = 2**63 - 1
# One part of the manifest; the writer begins another one far below.
MAX_PART: Final = 1 << 28

_PART = re.compile(PARTS + r"/(\d{12})\.jsonl")
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
        if (
            match is None
            or match.groups()[2:] != _numbers(self.first_seq, self.last_seq, self.level)
            or match.group(2) != _day(self.first_time)
        ):
            raise Malformed("SEGMENT_NAME", f"{self.file[:128]!r} does not fit its sequences, level and first day")
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


class Carry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The first line of every part but the first: `{"live":[…],"n":…,"prev":…,"replaced":[…]}`.

    It says again what all lines before it come to: the live segments in the order of their streams and sequences, and
    the replaced files that may still be there.
    """

    n: int
    prev: str
    live: tuple[Segment, ...]
    replaced: tuple[str, ...]


_entries = msgspec.json.Decoder(Entry)
_carries = msgspec.json.Decoder(Carry)
_CARRY: Final = b'{"live":'


def encode_entry(entry: Entry | Carry) -> bytes:
    """The line, without its newline."""
    return msgspec.json.encode(entry, order="sorted")


def decode_entry(line: bytes) -> Entry | Carry:
    """The entry of one line (without newline).  Raises `Malformed`."""
    try:
        entry = (_carries if line.startswith(_CARRY) else _entries).decode(line)
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
    """A manifest as read: what is live, the hash of each line, and what is wrong with it.  Pure.

    Given one part alone it begins with that part's carry, which it takes at its word; given all parts one after the
    other (`extend`), it holds each carry against what the lines before it come to.  `torn` holds the bytes after the
    last newline: a line whose writer crashed.  Nothing refers to it.
    """

    def __init__(self, data: bytes = b"") -> None:
        self.first = 1
        self.entries: list[Entry] = []
        self.carry_bytes = 0
        self.defects: list[Defect] = []
        self.live: dict[str, Segment] = {}
        self.replaced: set[str] = set()
        self.torn = b""
        # Parts that could not be read.
        self.refused: list[tuple[str, FileRefused]] = []
        self._hashes = bytearray()
        self._messages: list[int] = []
        self._ends: dict[str, int] = {}
        self._next_log = 0
        self.extend(data)

    def extend(self, data: bytes, *, keep: bool = True) -> None:
        """Take in the lines of the next part; `keep` its entries as well as what they come to."""
        if data and self.torn:
            self.defects.append(Defect(self.count + 1, "MANIFEST_LINE", "a part ends in the middle of a line"))
        *lines, self.torn = data.split(b"\n") if data else [self.torn]
        for line in lines:
            entry = self._add_line(line)
            if keep and isinstance(entry, Entry):
                self.entries.append(entry)

    @property
    def count(self) -> int:
        """The number of the last line; 0 before the first."""
        return self.first - 1 + len(self._messages)

    @property
    def head(self) -> str:
        """The hash that the next line names as `prev`."""
        return self.hash_of(self.count) or GENESIS

    def hash_of(self, number: int) -> str:
        """The hash (hex) of line `number`, counted from 1; empty for one that is not there or in a part before."""
        at = 32 * (number - self.first)
        return self._hashes[at : at + 32].hex() if at >= 0 else ""

    def messages_at(self, number: int) -> int:
        """How many messages the lines up to `number`, which is 0 or one of these, archived."""
        return self._messages[number - self.first] if number >= self.first else 0

    def _add_line(self, line: bytes) -> Entry | Carry | None:
        number = self.count + 1
        try:
            entry = decode_entry(line)
        except Malformed as exc:
            self.defects.append(Defect(number, exc.code, exc.text))
            self._end_line(line)
            return None
        if isinstance(entry, Carry) and not self._messages and entry.n > 1:
            self.first = entry.n
            self.carry_bytes = len(line)
            self._begin(entry)
            self._end_line(line)
            return entry
        if entry.n != number:
            self.defects.append(Defect(number, "MANIFEST_NUMBER", f"says it is entry {entry.n}"))
        if entry.prev != self.head:
            text = f"names {entry.prev[:16]}… as the line before, which is {self.head[:16]}…: edited, cut or reordered"
            self.defects.append(Defect(number, "MANIFEST_LINK", text))
        for code, text in self._apply(entry):
            self.defects.append(Defect(number, code, text))
        self._end_line(line)
        return entry

    def _begin(self, carry: Carry) -> None:
        for segment in carry.live:
            self.live[segment.file] = segment
            self._count(segment)
        self.replaced.update(carry.replaced)

    def _count(self, segment: Segment) -> None:
        self._ends[segment.stream] = max(self._ends.get(segment.stream, 0), segment.last_seq)
        self._next_log = max(self._next_log, segment.last_log + 1)

    def _end_line(self, line: bytes) -> None:
        self._hashes += hashlib.sha256(line).digest()
        self._messages.append(self._next_log)

    def _apply(self, entry: Entry | Carry) -> Iterator[tuple[str, str]]:
        """Bring `live` up to `entry`, yielding (code, text) for what it may not say."""
        if isinstance(entry, Carry):
            if entry.live != self.carried() or not self.replaced.issuperset(entry.replaced):
                yield "MANIFEST_CARRY", "a part begins with other live files than the lines before it come to"
            return
        if entry.replaces:
            yield from self._compact(entry)
        else:
            yield from self._flush(entry)
        for segment in entry.segments:
            if segment.file in self.live or segment.file in self.replaced:
                yield "MANIFEST_FILE", f"{segment.file} is named twice"
            self.live[segment.file] = segment
            self._count(segment)

    def _flush(self, entry: Entry) -> Iterator[tuple[str, str]]:
        """What a flush may not say: it goes on where its streams and the log end, without hole."""
        ends, first = dict(self._ends), self._next_log
        for segment in sorted(entry.segments, key=lambda s: s.first_seq):
            if segment.first_seq <= ends.get(segment.stream, 0):
                yield "MANIFEST_EXTENT", f"{segment.file} overlaps {segment.stream} up to {ends[segment.stream]}"
            ends[segment.stream] = max(ends.get(segment.stream, 0), segment.last_seq)
        if entry.segments:
            low, high = min(s.first_log for s in entry.segments), max(s.last_log for s in entry.segments)
            count = sum(s.messages for s in entry.segments)
            if (low, high) != (first, first + count - 1):
                text = f"{count} messages have log indexes {low} to {high}, they go on at {first}"
                yield "MANIFEST_EXTENT", text

    def _compact(self, entry: Entry) -> Iterator[tuple[str, str]]:
        """What a compaction may not say: it holds the same as the neighbours that it replaces."""
        old = [self.live.pop(name) for name in entry.replaces if name in self.live]
        if len(old) != len(entry.replaces):
            yield "MANIFEST_REPLACES", "replaces a segment that is not live"
        self.replaced.update(entry.replaces)
        if len(entry.segments) != 1 or not old or not _covers(entry.segments[0], old):
            yield "MANIFEST_REPLACES", f"{len(entry.segments)} segments do not hold what {len(old)} held"
        for segment in entry.segments:
            if other := next((s for s in self.live.values() if _overlap(s, segment)), None):
                yield "MANIFEST_EXTENT", f"{segment.file} overlaps {other.file}"

    def append(self, entry: Entry | Carry, line: bytes) -> None:
        """Take in the writer's own next entry."""
        for code, text in self._apply(entry):
            raise ArchiveError(code, text)
        self._end_line(line)

    def carried(self) -> tuple[Segment, ...]:
        """The live segments as a carry names them."""
        return tuple(sorted(self.live.values(), key=lambda s: (s.stream, s.first_seq, s.last_seq)))

    def segments(self, stream: str) -> list[Segment]:
        """Live segments of a stream in its order."""
        return sorted((s for s in self.live.values() if s.stream == stream), key=lambda s: (s.first_seq, s.last_seq))

    def holder(self, segment: Segment) -> Segment | None:
        """The live segment that holds what `segment` held: what compaction made of it."""
        held = (s for s in self.live.values() if s.stream == segment.stream and s.file != segment.file)
        return next((s for s in held if s.first_seq <= segment.first_seq and segment.last_seq <= s.last_seq), None)

    def resume(self, stream: str) -> int:
        """The last sequence of `stream` that is archived; 0 before the first."""
        return self._ends.get(stream, 0)

    @property
    def rows(self) -> int:
        """Rows in all live segments."""
        return sum(s.rows for s in self.live.values())

    @property
    def next_log(self) -> int:
        """The log index that follows the last archived message."""
        return self._next_log


def _overlap(a: Segment, b: Segment) -> bool:
    return a.stream == b.stream and a.first_seq <= b.last_seq and b.first_seq <= a.last_seq


def _covers(new: Segment, old: Sequence[Segment]) -> bool:
    return (
        {s.stream for s in old} == {new.stream}
        and sum(s.rows for s in old) == new.rows
        and sum(s.messages for s in old) == new.messages
        and min(s.first_seq for s in old) == new.first_seq
        and max(s.last_seq for s in old) == new.last_seq
        and min(s.first_log for s in old) == new.first_log
        and max(s.last_log for s in old) == new.last_log
        and min(s.first_time for s in old) == new.first_time
        and max(s.last_time for s in old) == new.last_time
    )


def _numbers(first: int, last: int, level: int) -> tuple[str, str, str]:
    return f"{first:016d}", f"{last:016d}", str(level)


def _day(time: int) -> str:
    """The UTC day of a time in Unix ns; empty for one that no calendar has."""
    try:
        return datetime.datetime.fromtimestamp(time // 1_000_000_000, datetime.UTC).date().isoformat()
    except (ValueError, OverflowError, OSError):
        return ""


def segment_name(stream: str, time: int, first: int, last: int, level: int) -> str:
    """The path of a segment below the archive; `time` is Unix ns of its first message's storage."""
    return f"stream={stream}/day={_day(time)}/{'-'.join(_numbers(first, last, level))}.parquet"


def read_manifest(directory: Path) -> Manifest:
    """What an archive's manifest comes to, from its last part alone; empty if there is none yet.

    Raises `ArchiveError` if it cannot be read.
    """
    try:
        return Manifest(read_regular(directory, MANIFEST, MAX_PART))
    except FileRefused as exc:
        if not directory.is_dir():
            raise ArchiveError("ARCHIVE_MISSING", f"{directory} is not an archive: no such directory") from None
        if exc.code == "FILE_MISSING":
            return Manifest()
        if exc.code == "FILE_UNREADABLE":  # no permission, no disk: nothing that the archive says of itself
            raise ArchiveError("ARCHIVE_UNREADABLE", exc.text) from exc
        raise


def part_name(first: int) -> str:
    """The path below the archive of a part that another one followed, by the number of its first line."""
    return f"{PARTS}/{first:012d}.jsonl"


def parts(directory: Path, before: int) -> list[str]:
    """The parts whose first line comes before line `before`, in their order."""
    found = [(int(match.group(1)), name) for name in names(directory, PARTS) if (match := _PART.fullmatch(name))]
    return [name for first, name in sorted(found) if first < before]


def read_history(directory: Path) -> Manifest:
    """The whole manifest, every line of every part; entries are not kept.  Raises `ArchiveError` as `read_manifest`."""
    last = read_manifest(directory)
    if last.first == 1 and not parts(directory, 2**63):
        return last
    whole = Manifest()
    for name in (*parts(directory, last.first), MANIFEST):
        try:
            whole.extend(read_regular(directory, name, MAX_PART), keep=False)
        except FileRefused as exc:
            if name == MANIFEST:
                raise
            whole.refused.append((name, exc))
    return whole


def find_hash(directory: Path, manifest: Manifest, number: int) -> str:
    """The hash of line `number`, in whichever part it is; empty if it is not there.  Raises `ArchiveError`."""
    if number >= manifest.first:
        return manifest.hash_of(number)
    for name in reversed(parts(directory, number + 1)):
        return Manifest(read_regular(directory, name, MAX_PART)).hash_of(number)
    return ""


def is_temporary(name: str) -> bool:
    """Whether a file lies where the writer puts what it has not finished."""
    return "/" not in name and name.endswith(TEMPORARY)


def unfinished(found: Iterable[str], manifest: Manifest) -> set[str]:
    """Which of these unnamed files are what one crash between rename and manifest line leaves.

    Either the next flush (one file of a stream and day, following each other), or a compaction of live segments.
    """
    left: set[str] = set()
    next_seq: dict[str, int] = {}
    days: set[tuple[str, str]] = set()
    for name in sorted(found):
        match = _NAME.fullmatch(name)
        if match is None:
            continue
        stream, day, first, last = match.group(1), match.group(2), int(match.group(3)), int(match.group(4))
        if int(match.group(5)) == 0:
            goes_on = first == next_seq[stream] if stream in next_seq else first > manifest.resume(stream)
            if not goes_on or (stream, day) in days:
                continue
            next_seq[stream] = last + 1
            days.add((stream, day))
        else:
            inside = [s for s in manifest.segments(stream) if first <= s.first_seq and s.last_seq <= last]
            if not inside or inside[0].first_seq != first or inside[-1].last_seq != last:
                continue
        left.add(name)
    return left


def names(directory: Path, below: str = "") -> list[str]:
    """Everything that lies below an archive, or a folder of it, but folders, as relative paths; follows no link."""
    found: list[str] = []
    for folder, inner, here in os.walk(directory / below):
        linked = [name for name in inner if (Path(folder) / name).is_symlink()]
        found += [(Path(folder) / name).relative_to(directory).as_posix() for name in (*here, *linked)]
    return sorted(found)


def segment_files(directory: Path) -> list[str]:
    """Everything that lies where segments and temporary files do, and every Parquet file elsewhere."""
    return [
        name
        for name in names(directory)
        if name.startswith("stream=") or name.endswith(".parquet") or is_temporary(name)
    ]
