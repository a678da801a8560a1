"""The archive: immutable Parquet segments and the manifest that names them.

    DIR/manifest.jsonl                                    one line a flush or compaction, hash-chained: the last part
    DIR/manifest/<first line>.jsonl                       the parts before it
    DIR/stream=ORDERS/day=2026-11-22/<first>-<last>-<level>.parquet     sequences of the stream, 16 digits
    DIR/trust/root-1.note …                               the trust roots under which it verifies
    DIR/state                                             the log's state at a manifest line (a cache)

`day` is the UTC day on which the broker stored a message: it rises with the
stream, so the segments of a day are one range of it; a statement's own time is only a claim.

Rules:

- A segment is written whole: temporary file, fsync, rename, fsync of its directory, and only then named by
  a manifest line, which is appended and fsynced.  What no line names does not exist for any reader.
- All segments of one flush stand in one line: a flush is archived whole or not at all.
- Live segments are those named and not replaced by a later line; in each stream they follow each other
  without overlap.  Compaction replaces neighbours by one segment with the same rows in the same order.
- The next flush of a stream goes on after the last sequence that the manifest names: this is the only
  record of progress, so nothing is archived twice or left out after a crash.
- One process writes (an advisory lock); any number read.

The disk is not trusted: an attacker who controls it can destroy the archive, and otherwise at most cut
what no checkpoint or heartbeat on the bus has vouched for yet; `verify` shows everything else.  File
modes (0444) guard against accidents, not attackers.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tallystick.record.files import ArchiveError, read_regular
from tallystick.record.manifest import (
    MANIFEST,
    MAX_PART,
    TEMPORARY,
    Carry,
    Entry,
    Manifest,
    Segment,
    encode_entry,
    find_hash,
    is_temporary,
    part_name,
    read_manifest,
    segment_files,
    segment_name,
    unfinished,
)
from tallystick.record.parquet import PAGE_VALUES, ROW_GROUP
from tallystick.record.rows import SCHEMA
from tallystick.runtime.durable import append_durably, sync, write_durably
from tallystick.schemas.errors import NOT_DECODED

STATE: Final = "state"
LOCK: Final = ".lock"
# The manifest's last part is followed by another one beyond so many bytes, and beyond so many times what that would
# begin with: so it stays short, and all parts together grow by a quarter at the most.
PART_BYTES: Final = 1 << 20
PART_FACTOR: Final = 4
# Compaction: so many neighbours of one level become one of the next, unless it would be larger than this.
FAN_IN: Final = 16
MAX_LEVEL: Final = 99
MAX_MERGED_ROWS: Final = 4 * ROW_GROUP
# How long replaced segments stay for readers that opened the manifest before.
GRACE_NS: Final = 60_000_000_000
NS_PER_DAY: Final = 86_400_000_000_000

_BLOOM: Final = ("event_id", "order_id")
_PLAIN: Final = ("event_id", "payload", "data", "ts", "log_index", "stream_seq", "pos", "causes.list.element")


def plan_compaction(segments: Sequence[Segment]) -> list[Segment]:
    """Neighbours (in stream order, of one stream) that should become one segment; empty if none should.

    `FAN_IN` neighbours of one day and level are merged while the result stays below `MAX_MERGED_ROWS`,
    so a row is rewritten at most a few times and a day holds few files.  A day that is over is merged as far as that
    goes, whatever the levels: so the number of files grows with rows and days alone.
    """
    for day, group in itertools.groupby(segments, key=lambda s: Path(s.file).parent):
        held: list[Segment] = []
        for segment in group if day != Path(segments[-1].file).parent else ():
            if sum(s.rows for s in held) + segment.rows > MAX_MERGED_ROWS and len(held) > 1:
                return held
            if sum(s.rows for s in held) + segment.rows > MAX_MERGED_ROWS:
                held = []
            held.append(segment)
        if len(held) > 1 and max(s.level for s in held) < MAX_LEVEL:
            return held
    run: list[Segment] = []
    for segment in segments:
        if run and (segment.level != run[-1].level or Path(segment.file).parent != Path(run[-1].file).parent):
            run = []
        run.append(segment)
        while sum(s.rows for s in run) > MAX_MERGED_ROWS:
            run.pop(0)
        if len(run) == FAN_IN:
            return run
    return []


class Recovery(msgspec.Struct, frozen=True):
    """What opening an archive for writing found and put right after a crash."""

    torn_line: int
    temporary: tuple[str, ...]
    orphans: tuple[str, ...]


class Archive:
    """The writer.  Owns the directory: the lock guarantees that there is one.

    `append` and `compact` may run in two threads; `_lock` guards the manifest (in memory and its file).
    """

    def __init__(self, directory: Path) -> None:
        """Open `directory` for writing, create it if needed, and recover.

        Raises `ArchiveError` if another process writes, or if the manifest or its files are damaged in a
        way that no crash explains.
        """
        self.directory = directory
        self._lock = threading.Lock()
        self._doomed: list[tuple[int, str]] = []
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o750)
            self._lock_fd = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ArchiveError("ARCHIVE_LOCKED", f"another process writes to {directory}") from None
        except OSError as exc:
            raise ArchiveError("ARCHIVE_UNUSABLE", f"{directory}: {exc.strerror}") from exc
        try:
            self.manifest = read_manifest(directory)
            self._part_bytes = self._manifest_bytes()
            self.manifest.entries.clear()
            if self.manifest.defects:
                first = self.manifest.defects[0]
                raise ArchiveError(first.code, f"{directory / MANIFEST} line {first.line}: {first.text}")
            self.recovered = self._recover()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give up the lock."""
        os.close(self._lock_fd)

    def _manifest_bytes(self) -> int:
        path = self.directory / MANIFEST
        return path.stat().st_size if path.exists() else 0

    def _recover(self) -> Recovery:
        torn = len(self.manifest.torn)
        if torn:  # crashed while appending: no reader has counted the line
            path = self.directory / MANIFEST
            with path.open("r+b") as file:
                file.truncate(path.stat().st_size - torn)
                os.fsync(file.fileno())
            self.manifest.torn = b""
        part = self.directory / part_name(self.manifest.first)
        if part.exists():  # crashed after the last part was kept under its name, before another one took its place
            part.unlink()
        temporary, orphans = [], []
        unnamed = [name for name in segment_files(self.directory) if name not in self.manifest.live]
        left = unfinished(unnamed, self.manifest)
        for name in unnamed:
            if is_temporary(name):  # crashed while writing a segment
                temporary.append(name)
            elif name in self.manifest.replaced or name in left:
                orphans.append(name)  # crashed between rename and manifest line, or before replaced files went
            else:
                continue  # not ours: nothing reads it, `verify` reports it, evidence is not deleted
            (self.directory / name).unlink()
        for segment in self.manifest.live.values():
            try:
                size = (self.directory / segment.file).stat().st_size
            except FileNotFoundError:
                raise ArchiveError("FILE_MISSING", f"{segment.file} is in the manifest but not there") from None
            if size != segment.size:
                raise ArchiveError("SEGMENT_SIZE", f"{segment.file} has {size} bytes, its manifest line {segment.size}")
        return Recovery(torn, tuple(temporary), tuple(orphans))

    def append(self, tables: Iterable[tuple[str, pa.Table]]) -> Entry:
        """Archive one flush: (stream, table of `SCHEMA` in stream order), each stream at most once.

        Durable when it returns.  On any error nothing of the flush counts, and the same may be tried again.
        """
        segments = [self._write(stream, 0, [part]) for stream, table in tables for part in _by_day(table)]
        return self._commit(tuple(segments), ())

    def compact(self, stream: str, now: int) -> Entry | None:
        """Merge one run of neighbours of `stream` if there is one; `now` (Unix ns) dates the old files' grace."""
        with self._lock:
            run = plan_compaction(self.manifest.segments(stream))
        if not run:
            return None
        parts = (
            pa.Table.from_batches([batch], SCHEMA)
            for segment in run
            for batch in pq.ParquetFile(self.directory / segment.file).iter_batches(ROW_GROUP)
        )
        segment = self._write(stream, max(s.level for s in run) + 1, parts)
        entry = self._commit((segment,), tuple(s.file for s in run))
        # Crash here: the replaced files are there, but not live; opening removes them.
        self._doomed.extend((now + GRACE_NS, s.file) for s in run)
        return entry

    def sweep(self, now: int) -> int:
        """Delete replaced segments whose grace is over at `now` (Unix ns); returns how many."""
        due = [name for when, name in self._doomed if when <= now]
        self._doomed = [(when, name) for when, name in self._doomed if when > now]
        for name in due:
            (self.directory / name).unlink(missing_ok=True)
        return len(due)

    def save_state(self, state: bytes) -> None:
        """Keep the log's state at the manifest's present end, for a quick start (see `load_state`)."""
        with self._lock:
            data = msgspec.msgpack.encode([self.manifest.count, self.manifest.head, state])
        temporary = self.directory / (STATE + TEMPORARY)
        temporary.write_bytes(data)
        os.replace(temporary, self.directory / STATE)  # a cache: lost or torn, it is made again from the rows

    def load_state(self) -> bytes | None:
        """The newest saved state if it belongs to a line of this manifest, else None."""
        try:
            number, head, state = msgspec.msgpack.decode(
                read_regular(self.directory, STATE, MAX_PART), type=tuple[int, str, bytes]
            )
        except (ArchiveError, *NOT_DECODED):
            return None
        return state if number >= 1 and find_hash(self.directory, self.manifest, number) == head else None

    def _write(self, stream: str, level: int, parts: Iterable[pa.Table]) -> Segment:
        """Write one segment durably under its final name; it counts only when a manifest line names it."""
        temporary = self.directory / f"stream={stream}-{level}{TEMPORARY}"
        bounds: dict[str, Any] = {}
        rows = messages = 0
        try:
            with pq.ParquetWriter(temporary, SCHEMA, **segment_options()) as writer:
                for chunk in _row_groups(parts):
                    writer.write_table(chunk, row_group_size=ROW_GROUP)
                    rows += chunk.num_rows
                    messages += chunk.num_rows - chunk["payload"].null_count
                    _widen(bounds, chunk)
            os.chmod(temporary, 0o444)
            with temporary.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())
            # Crash before this: a temporary file, removed at the next opening.
            name = segment_name(stream, bounds["first_time"], bounds["first_seq"], bounds["last_seq"], level)
            path = self.directory / name
            _make_durable_dir(path.parent)
            size = temporary.stat().st_size
            os.rename(temporary, path)
            sync(path.parent)
        except (OSError, pa.ArrowException) as exc:
            temporary.unlink(missing_ok=True)
            raise ArchiveError("SEGMENT_WRITE", f"{stream}: cannot write a segment to {self.directory}: {exc}") from exc
        # Crash after this, before the manifest line: an orphan, removed at the next opening; its messages are
        # read from the stream again, since the manifest is the only record of progress.
        return Segment(
            file=name, sha256=digest, size=size, stream=stream, level=level, rows=rows, messages=messages, **bounds
        )

    def _commit(self, segments: tuple[Segment, ...], replaces: tuple[str, ...]) -> Entry:
        with self._lock:
            path = self.directory / MANIFEST
            try:
                if self._part_bytes > max(PART_BYTES, PART_FACTOR * self.manifest.carry_bytes):
                    self._begin_part(path)
                entry = Entry(self.manifest.count + 1, self.manifest.head, segments, replaces)
                line = encode_entry(entry)
                # Crash in here: a line without newline, cut at the next opening; its segments are orphans.
                append_durably(path, line + b"\n", 0o640)
            except OSError as exc:
                raise ArchiveError("MANIFEST_WRITE", f"cannot write {path}: {exc.strerror}") from exc
            # Durable: from here on the flush counts, and the stream's position moves.
            self._part_bytes += len(line) + 1
            self.manifest.append(entry, line)
            return entry

    def _begin_part(self, path: Path) -> None:
        """Keep the manifest's last part under its own name, and begin the next with what is live."""
        manifest = self.manifest
        doomed = tuple(sorted({name for _, name in self._doomed}))
        carry = Carry(manifest.count + 1, manifest.head, manifest.carried(), doomed)
        line = encode_entry(carry)
        part = self.directory / part_name(manifest.first)
        _make_durable_dir(part.parent)
        os.link(path, part)
        sync(part.parent)
        # Crash here: the part has two names, and loses the new one at the next opening.
        write_durably(path, line + b"\n", 0o640)
        self.manifest = Manifest(line + b"\n")
        self._part_bytes = len(line) + 1


def segment_options() -> dict[str, Any]:
    """How the archive writes Parquet."""
    dictionary = [n for n in SCHEMA.names if n not in _PLAIN and n != "causes"]
    return {
        "compression": "zstd",
        "compression_level": 1,
        "use_dictionary": dictionary,
        "bloom_filter_options": {name: {"ndv": ROW_GROUP, "fpp": 0.01} for name in _BLOOM},
        "store_schema": True,
        "write_batch_size": PAGE_VALUES,
    }


def _row_groups(parts: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The rows of `parts` in tables of `ROW_GROUP` rows, the last one of what is left."""
    held = SCHEMA.empty_table()
    for part in parts:
        held = pa.concat_tables([held, part])
        while held.num_rows >= ROW_GROUP:
            yield held.slice(0, ROW_GROUP)
            held = held.slice(ROW_GROUP)
    if held.num_rows:
        yield held


def _by_day(table: pa.Table) -> list[pa.Table]:
    """The table cut where the day of storage changes (never inside a message)."""
    days = pc.divide(table["received"].cast(pa.int64()), NS_PER_DAY)
    if pc.min(days) == pc.max(days):
        return [table]
    values = days.to_pylist()
    cuts = [0, *(i for i in range(1, len(values)) if values[i] != values[i - 1]), len(values)]
    return [table.slice(a, b - a) for a, b in itertools.pairwise(cuts)]


def _widen(bounds: dict[str, Any], chunk: pa.Table) -> None:
    for column, low, high in (
        ("stream_seq", "first_seq", "last_seq"),
        ("log_index", "first_log", "last_log"),
        ("received", "first_time", "last_time"),
    ):
        found = pc.min_max(chunk[column].cast(pa.int64())).as_py()
        bounds[low] = min(bounds.get(low, found["min"]), found["min"])
        bounds[high] = max(bounds.get(high, found["max"]), found["max"])


def _make_durable_dir(path: Path) -> None:
    if not path.is_dir():
        path.mkdir(parents=True, exist_ok=True, mode=0o750)
        sync(path.parent)
        sync(path.parent.parent)
