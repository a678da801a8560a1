"""Reads an archive: the segments that the manifest names, pruned, streamed, each message examined.

- Only the columns that are needed are read, in batches: memory does not grow with the history.
- A segment must have the SHA-256 of its manifest line, so its statistics, by which row groups are skipped, are
  those that audit wrote.  Sequences within what is read must follow each other.  Either defect is a `Failure`.
- Order: within a stream its own; across streams the next message is the one with the earliest statement time,
  the earlier of `selection.ORDER` where they are equal.  The same archive always gives the same sequence.
- A running deployment goes on writing: what counts is the manifest at the start.

Whether anything is missing at the end, and whether rows agree with their messages, is `tallystick audit verify`'s
to say: a replay reads the sealed messages and nothing else of a row that could change them.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterator
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tallystick.record.manifest import Manifest, Segment, read_manifest
from tallystick.record.place import Place, load_verifiers
from tallystick.record.rows import OK
from tallystick.replay.selection import ORDER, Selection
from tallystick.replay.verify import Examined, Failure, Judge, Recorded
from tallystick.schemas.errors import Unverified
from tallystick.schemas.seal import MAX_INT
from tallystick.schemas.subjects import SECURITY

# A batch of single events of 1.5 KB is 25 MB, of market data in large messages far less.
BATCH_ROWS: Final = 16_384
_COLUMNS: Final = ("stream_seq", "subject", "payload", "received", "log_index", "status", "code", "statement_time")
_CREDENTIALS: Final = Selection(patterns=("cred.>",))

Progress = Callable[[str, int], None]


class ArchiveReader:
    """One replay of an archive.  `judge` holds the counts; `progress` is told a stream and the rows just read."""

    def __init__(self, place: Place, selection: Selection, progress: Progress = lambda stream, rows: None) -> None:
        """Read the manifest and the trust roots.  Raises `TallystickError` for an archive that cannot be used."""
        self.place = place
        self.selection = selection
        self.manifest = read_manifest(place.archive)
        if self.manifest.defects:
            first = self.manifest.defects[0]
            raise Unverified(first.code, f"manifest line {first.line}: {first.text}; see: tallystick audit verify")
        self.judge = Judge(load_verifiers(place))
        self._progress = progress
        self._end = self.manifest.next_log
        self._hashed: dict[str, bool] = {}

    def held(self) -> dict[str, tuple[int, int, int, int]]:
        """For each stream: its first and last sequence, and when the broker stored them (Unix ns)."""
        found = {}
        for stream in ORDER:
            segments = self.manifest.segments(stream)
            if segments:
                first, last = segments[0], segments[-1]
                found[stream] = (first.first_seq, last.last_seq, first.first_time, last.last_time)
        return found

    def __iter__(self) -> Iterator[Examined]:
        """Everything selected, examined, in order.  Failures stand where they were met."""
        for recorded in self._stream(SECURITY, _CREDENTIALS):
            if isinstance(recorded, Failure):
                yield recorded
            else:
                self.judge.learn(recorded)
        streams = [self._examined(stream) for stream in self.selection.wanted]
        if len(streams) == 1:
            yield from streams[0]
        else:
            rank = {stream: i for i, stream in enumerate(ORDER)}
            yield from heapq.merge(*streams, key=lambda item: (item.time, rank[item.stream]))

    def _examined(self, stream: str) -> Iterator[Examined]:
        examine, wanted = self.judge.examine, self.selection.time
        for recorded in self._stream(stream, self.selection):
            if isinstance(recorded, Failure):
                yield recorded
                continue
            examined = examine(recorded)
            if examined is not None and wanted(examined.time):
                yield examined

    def _stream(self, stream: str, selection: Selection) -> Iterator[Recorded | Failure]:
        done = 0
        manifest = self.manifest
        while True:
            for segment in manifest.segments(stream):
                outside = segment.last_seq < selection.first or segment.first_seq > selection.last
                if segment.last_seq <= done or segment.first_log >= self._end or outside:
                    continue
                if done and segment.first_seq > done + 1:
                    yield _lost(stream, segment.first_seq, done, segment.first_time)
                try:
                    yield from self._segment(segment, selection, done)
                except FileNotFoundError:
                    manifest = self._replaced(segment)
                    break
                done = segment.last_seq
            else:
                return

    def _replaced(self, segment: Segment) -> Manifest:
        """The manifest anew, if compaction replaced `segment` while it was read."""
        fresh = read_manifest(self.place.archive)
        if fresh.holder(segment) is None:
            raise Unverified("FILE_MISSING", f"{segment.file} is in the manifest but not there")
        return fresh

    def _segment(self, segment: Segment, selection: Selection, done: int) -> Iterator[Recorded | Failure]:
        path = self.place.archive / segment.file
        if segment.file not in self._hashed:
            with path.open("rb") as file:
                self._hashed[segment.file] = hashlib.file_digest(file, "sha256").hexdigest() == segment.sha256
            if not self._hashed[segment.file]:
                text = f"{segment.file} has not the SHA-256 that the manifest names: it was changed or swapped"
                yield Failure(segment.stream, 0, "", "FILE_HASH", text, segment.first_time)
        try:
            yield from self._rows(segment, pq.ParquetFile(path), selection, done)
        except (pa.ArrowException, KeyError, OSError) as exc:
            if isinstance(exc, FileNotFoundError):
                raise
            text = f"{segment.file} is no readable segment: {exc}"[:300]
            yield Failure(segment.stream, 0, "", "FILE_UNREADABLE", text, segment.first_time)

    def _rows(
        self, segment: Segment, file: pq.ParquetFile, selection: Selection, done: int
    ) -> Iterator[Recorded | Failure]:
        wanted: dict[str, bool] = {}
        for groups in _runs(_selected(file, selection)):
            last = 0  # what lies between runs was not read
            for batch in file.iter_batches(BATCH_ROWS, row_groups=groups, columns=list(_COLUMNS)):
                self._progress(segment.stream, batch.num_rows)
                heads = batch.filter(pc.is_valid(batch.column("payload")))
                if not heads.num_rows:
                    continue
                seqs = heads.column("stream_seq").to_pylist()
                broken = _broken(heads.column("stream_seq"), last)
                if broken is not None:
                    before = seqs[broken - 1] if broken else last
                    yield _lost(segment.stream, seqs[broken], before, segment.first_time)
                last = seqs[-1]
                rows = _filtered(heads, selection, done, self._end, wanted)
                columns: list[list[Any]] = [rows.column(name).to_pylist() for name in _COLUMNS[:3]]
                stored = rows.column("received").cast(pa.int64()).to_pylist()
                rest = [rows.column(name).to_pylist() for name in _COLUMNS[4:7]]
                for seq, subject, payload, at, position, status, code in zip(*columns, stored, *rest, strict=True):
                    yield Recorded(segment.stream, seq, subject, payload, at, position, status, code)


def _lost(stream: str, seq: int, before: int, stored: int) -> Failure:
    return Failure(stream, seq, "", "SEQUENCE", f"follows {before}: lost, reordered or twice", stored)


def _broken(seqs: pa.Array, last: int) -> int | None:
    """The index at which sequences do not follow each other (`last` is the one before, 0 for unknown)."""
    if last and seqs[0].as_py() != last + 1:
        return 0
    if len(seqs) > 1:
        steps = pc.subtract(seqs.slice(1), seqs.slice(0, len(seqs) - 1))
        wrong = pc.index(pc.equal(steps, 1), value=False).as_py()
        if wrong >= 0:
            return int(wrong) + 1
    return None


def _selected(file: pq.ParquetFile, selection: Selection) -> list[int]:
    """The row groups in which something selected may stand, by their statistics."""
    names = {file.metadata.schema.column(i).path: i for i in range(file.metadata.num_columns)}
    found = []
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        seq = _bounds(group.column(names["stream_seq"]))
        time = _bounds(group.column(names["statement_time"]))
        if seq is not None and (seq[1] < selection.first or seq[0] > selection.last):
            continue
        # Messages that could not be opened have no time; they are judged by their status anyway.
        if time is not None and (time[1] < selection.since or time[0] >= selection.until):
            continue
        found.append(number)
    return found


def _bounds(column: Any) -> tuple[int, int] | None:
    statistics = column.statistics
    if statistics is None or not statistics.has_min_max:
        return None
    return int(statistics.min_raw), int(statistics.max_raw)


def _runs(groups: list[int]) -> Iterator[list[int]]:
    """Row groups as runs of neighbours."""
    run: list[int] = []
    for group in groups:
        if run and group != run[-1] + 1:
            yield run
            run = []
        run.append(group)
    if run:
        yield run


def _filtered(heads: Any, selection: Selection, done: int, end: int, known: dict[str, bool]) -> Any:
    """The first rows of messages that are selected; `known` remembers which subjects are."""
    seq, log = heads.column("stream_seq"), heads.column("log_index")
    first = max(selection.first, done + 1)
    mask = pc.and_(pc.greater_equal(seq, first), pc.less(log, end))
    if selection.last < MAX_INT:
        mask = pc.and_(mask, pc.less_equal(seq, selection.last))
    if selection.since or selection.until < MAX_INT:
        # The signed time is looked at again once it is verified; rows without one are judged by their status.
        stated = heads.column("statement_time").cast(pa.int64())
        inside = pc.and_(pc.greater_equal(stated, selection.since), pc.less(stated, selection.until))
        mask = pc.and_(mask, pc.fill_null(inside, pc.not_equal(heads.column("status"), OK)))
    if not selection.whole:
        subjects = pc.unique(heads.column("subject")).to_pylist()
        for subject in subjects:
            if subject not in known:
                known[subject] = selection.subject(subject)
        chosen = pa.array([s for s in subjects if known[s]], pa.string())
        mask = pc.and_(mask, pc.is_in(heads.column("subject"), value_set=chosen))
    return heads.filter(mask)
