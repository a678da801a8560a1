"""Verifies an archive offline: it needs the archive and the pinned operator root, and trusts nothing else.

Steps; each reports every defect with file, row, stream, sequence and event, and goes on:

1. the trust roots (signed notes in the archive) open under the pinned operator root;
2. the manifest's lines are canonical, numbered, linked by hashes, and replace only what they cover;
3. every checkpoint that audit sealed on the bus names the hash of the manifest line it claims;
4. no file is there that the manifest does not name;
5. every live segment has the size and SHA-256 of its line and is a Parquet file of the archive's schema;
6. sequences of each stream follow each other without hole, log indexes over all streams too;
7. every message's seal holds, and `chains` finds no hole, fork or broken link in the log;
8. every row of every message, computed again from its payload, equals the archived row;
9. heads that components stated in heartbeats are stored.

Not provable from the archive alone: when the broker stored a message (`received`), and, beyond the
newest checkpoint and heartbeat in it, that nothing was cut off its end.  The manifest's hashes vouch for
the former from the next checkpoint on.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tallystick.record import rows
from tallystick.record.archive import STATE
from tallystick.record.chains import Finding, Log, Torn, open_message
from tallystick.record.manifest import TEMPORARY, Manifest, Segment, files, read_manifest, unfinished
from tallystick.record.place import Place, load_verifiers
from tallystick.schemas.errors import TallystickError
from tallystick.schemas.seal import Verified, Verifier
from tallystick.schemas.security import Checkpoint
from tallystick.schemas.subjects import GUARD, MARKET, ORDERS, SECURITY, SIGNALS

# Sessions first, heads second: what the other streams are judged by.
ORDER: Final = (SECURITY, GUARD, ORDERS, SIGNALS, MARKET)
# Enough to see what happened; the rest is counted.
MAX_SHOWN: Final = 1000
BATCH_ROWS: Final = 32_768

Progress = Callable[[str, int], None]


class Problem(msgspec.Struct, frozen=True):
    """One defect and where it is.  `row` counts from 0 in its file; -1 and "" mean "not of one row, file, stream"."""

    code: str
    text: str
    file: str = ""
    row: int = -1
    stream: str = ""
    stream_seq: int = -1
    event: int = -1

    def __str__(self) -> str:
        where = []
        if self.stream:
            where.append(self.stream if self.stream_seq < 0 else f"{self.stream} {self.stream_seq}")
        if self.event >= 0:
            where.append(f"event {self.event}")
        if self.file:
            where.append(self.file if self.row < 0 else f"{self.file} row {self.row}")
        return f"{self.code} at {', '.join(where) or 'the archive'}: {self.text}"


class Report(msgspec.Struct):
    """What verification found.  `clean` decides the exit code."""

    messages: int = 0
    events: int = 0
    rows: int = 0
    segments: int = 0
    entries: int = 0
    checkpoints: int = 0
    chains: int = 0
    status: Counter[str] = msgspec.field(default_factory=Counter)
    incidents: Counter[str] = msgspec.field(default_factory=Counter)
    torn: list[Torn] = msgspec.field(default_factory=list)
    notes: list[str] = msgspec.field(default_factory=list)
    problems: list[Problem] = msgspec.field(default_factory=list)
    unshown: int = 0

    @property
    def clean(self) -> bool:
        """Whether no defect was found."""
        return not self.problems

    def add(self, problem: Problem) -> None:
        """Record a defect."""
        if len(self.problems) < MAX_SHOWN:
            self.problems.append(problem)
        else:
            self.unshown += 1


def verify(place: Place, progress: Progress = lambda stream, done: None) -> Report:
    """Verify an archive; `progress` is called with each stream and the number of rows just done.

    Raises `TallystickError` if it could not be carried out (no trust root, unreadable directory).
    """
    verifiers = load_verifiers(place)
    return _Verification(place.archive, verifiers, progress).run()


class _Verification:
    def __init__(self, directory: Path, verifiers: Sequence[Verifier], progress: Progress) -> None:
        self.directory = directory
        self.verifiers = verifiers
        self.progress = progress
        self.report = Report()
        self.log = Log(verifiers)
        self.manifest = read_manifest(directory)
        # A running deployment goes on writing: what is judged ends here.
        self.end = self.manifest.next_log
        self.seen = _Seen()
        self.checkpoints: list[tuple[Checkpoint, int]] = []

    def run(self) -> Report:
        self._manifest()
        self._strangers()
        for stream in ORDER:
            self._stream(stream)
        self._checkpoints()
        missing = self.seen.missing(self.end)
        if missing:
            shown = ", ".join(f"{a} to {b}" if a != b else str(a) for a, b in missing[:8])
            self.report.add(Problem("LOG_GAP", f"no message has log index {shown}: messages are missing"))
        for finding in self.log.dropped():
            self._finding(finding)
        self.report.torn = self.log.torn()
        self.report.chains = sum(len(c.chains) for c in self.log.streams.values())
        return self.report

    # -- manifest and files ---------------------------------------------------------------------

    def _manifest(self) -> None:
        report = self.report
        for defect in self.manifest.defects:
            report.add(Problem(defect.code, f"manifest line {defect.line}: {defect.text}", file="manifest.jsonl"))
        report.entries = len(self.manifest.entries)
        if self.manifest.torn:
            report.notes.append("the manifest ends in a line that was never finished; nothing refers to it")

    def _strangers(self) -> None:
        names = files(self.directory)
        fresh = self._refresh()
        for name in names:
            if name in fresh.live or name in fresh.replaced or name == STATE + TEMPORARY:
                continue
            if name.endswith(TEMPORARY) or unfinished(name, self.manifest):
                self.report.notes.append(f"{name}: a flush that was not finished; nothing refers to it")
            else:
                self.report.add(Problem("EXTRA_FILE", "the manifest does not name this file", file=name))

    def _refresh(self) -> Manifest:
        """The manifest as it is now: what it said before must stand unchanged."""
        fresh = read_manifest(self.directory)
        if fresh.hashes[: len(self.manifest.hashes)] != self.manifest.hashes:
            self.report.add(Problem("MANIFEST_REWRITTEN", "changed while it was read", file="manifest.jsonl"))
        return fresh

    def _checkpoints(self) -> None:
        hashes = self.manifest.hashes
        good = 0
        for checkpoint, stream_seq in self.checkpoints:
            self.report.checkpoints += 1
            at: dict[str, Any] = {"file": "manifest.jsonl", "stream": SECURITY, "stream_seq": stream_seq}
            if checkpoint.entries > len(self._refresh().hashes if checkpoint.entries > len(hashes) else hashes):
                text = f"audit sealed a checkpoint over {checkpoint.entries} lines, {len(hashes)} are there: cut"
                self.report.add(Problem("MANIFEST_CUT", text, **at))
            elif checkpoint.entries > len(hashes):
                continue  # sealed after this verification began
            elif checkpoint.entries < 1 or hashes[checkpoint.entries - 1] != checkpoint.head.hex():
                text = f"line {checkpoint.entries} is not what audit sealed: a line from {good + 1} on was changed"
                self.report.add(Problem("MANIFEST_REWRITTEN", text, **at))
                return  # every later checkpoint would say the same
            else:
                good = checkpoint.entries

    # -- streams --------------------------------------------------------------------------------

    def _stream(self, stream: str) -> None:
        done = last = 0
        manifest = self.manifest
        while True:
            for segment in manifest.segments(stream):
                if segment.last_seq <= done or segment.first_log >= self.end:
                    continue
                try:
                    last = self._segment(segment, done, last)
                except FileNotFoundError:
                    fresh = self._refresh()
                    if segment.file in fresh.replaced:  # compacted in the meantime: go on in what replaced it
                        manifest = fresh
                        break
                    self.report.add(Problem("FILE_MISSING", "the manifest names it", file=segment.file, stream=stream))
                    last = segment.last_seq
                done = segment.last_seq
            else:
                return

    def _segment(self, segment: Segment, done: int, last: int) -> int:
        """Verify one file; messages up to sequence `done` were verified before.  Returns its last sequence."""
        report, path = self.report, self.directory / segment.file
        at: dict[str, Any] = {"file": segment.file, "stream": segment.stream}
        report.segments += 1
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
        if (size, digest) != (segment.size, segment.sha256):
            text = (
                f"{size} bytes with SHA-256 {digest[:16]}…, the manifest names {segment.size} with "
                f"{segment.sha256[:16]}…: the file was changed or swapped"
            )
            report.add(Problem("FILE_HASH", text, **at))
        try:
            parquet = pq.ParquetFile(path, memory_map=True)
            if not parquet.schema_arrow.equals(rows.SCHEMA):
                report.add(Problem("FILE_SCHEMA", "columns are not those of the archive", **at))
                return segment.last_seq
            expected = (segment.rows, segment.messages, segment.first_seq, segment.last_seq)
            found = _Extent()
            for first_row, table in _messages(parquet):
                found.widen(table)
                last = self._chunk(segment, table, first_row, done, last)
                self.progress(segment.stream, table.num_rows)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as exc:
            if isinstance(exc, FileNotFoundError):
                raise
            report.add(Problem("FILE_UNREADABLE", f"not a readable Parquet file: {exc}"[:300], **at))
            return segment.last_seq
        if found.extent != expected:
            text = f"rows, messages, first and last sequence are {found.extent}, the manifest names {expected}"
            report.add(Problem("FILE_EXTENT", text, **at))
        return last

    def _chunk(self, segment: Segment, table: pa.Table, first_row: int, done: int, last: int) -> int:
        """Verify whole messages; see `_segment`."""
        report, stream = self.report, segment.stream
        starts = _starts(table)
        if not starts or starts[0] != 0:
            count = starts[0] if starts else table.num_rows
            text = f"{count} rows belong to no message: its first row, with the payload, is missing"
            report.add(Problem("ROWS", text, file=segment.file, row=first_row, stream=stream))
            table, first_row, starts = table.slice(count), first_row + count, [s - count for s in starts]
        if not starts:
            return last
        first = table.select(_JUDGED).take(pa.array(starts, pa.int64()))
        columns = [first[name] for name in _JUDGED]
        columns[3] = columns[3].cast(pa.int64())
        built = rows.Rows()
        verdicts: list[tuple[int, int, str]] = []  # start row, its rows, why the recorded status is wrong
        for start, log_index, seq, subject, received, status, code, payload in zip(
            starts, *(column.to_pylist() for column in columns), strict=True
        ):
            if seq <= done or log_index >= self.end:
                verdicts.append((start, 0, ""))
                continue
            at = {"file": segment.file, "row": first_row + start, "stream": stream, "stream_seq": seq}
            if seq != last + 1:
                if last:
                    text = (
                        f"follows {last}: {last + 1} to {seq - 1} are missing"
                        if seq > last
                        else f"follows {last}: out of order or twice"
                    )
                    report.add(Problem("SEQUENCE", text, **at))
                elif seq > 1:
                    report.notes.append(f"{stream} is archived from sequence {seq} on")
            last = max(seq, last)
            if not self.seen.add(log_index):
                report.add(Problem("LOG_INDEX", f"log index {log_index} is used twice or impossible", **at))
            opened = open_message(self.verifiers, subject, stream, payload, received)
            judged = self.log.judge(stream, opened, log_index, seq, subject)
            why = ""
            if (judged.status, judged.code) != (status, code):
                text = opened.text if isinstance(opened, TallystickError) else f"{judged.status} {judged.code}".strip()
                why = f"archived as {f'{status} {code}'.strip()}, but {judged.code or judged.status}: {text}"
                report.add(Problem("STATUS" if status != rows.OK else "SEAL", why, **at))
            for finding in judged.findings:
                self._finding(finding, **at)
            verified = opened if isinstance(opened, Verified) else None
            count = built.add(log_index, seq, subject, payload, received, judged.status, judged.code, verified)
            verdicts.append((start, count, why))
            report.messages += 1
            report.status[judged.status] += 1
            if verified is not None:
                report.events += len(verified.events)
                if stream == SECURITY and judged.status == rows.OK and verified.subject.kind == "audit.checkpoint":
                    self.checkpoints += [(e, seq) for e in verified.events if isinstance(e, Checkpoint)]
        report.rows += built.rows
        if built.messages == len(starts):
            expected = built.table()
            if not expected.equals(table):
                self._differences(segment, table, expected, first_row, verdicts)
        elif built.messages:  # part of this chunk was verified before (a compaction while we read)
            kept = [
                table.slice(s, e - s)
                for (s, count, _), e in zip(verdicts, [*starts[1:], table.num_rows], strict=True)
                if count
            ]
            if not built.table().equals(pa.concat_tables(kept)):
                report.add(Problem("ROWS", "rows differ from their payloads", file=segment.file, stream=stream))
        return last

    def _differences(
        self,
        segment: Segment,
        table: pa.Table,
        expected: pa.Table,
        first_row: int,
        verdicts: list[tuple[int, int, str]],
    ) -> None:
        """Report every cell and row in which the archive differs from what its payloads say."""
        ends = [start for start, _, _ in verdicts[1:]] + [table.num_rows]
        offset = 0
        for (start, count, why), end in zip(verdicts, ends, strict=True):
            have, want = table.slice(start, end - start), expected.slice(offset, count)
            offset += count
            if why or have.equals(want):
                continue
            seq = want["stream_seq"][0].as_py()
            at = {"file": segment.file, "stream": segment.stream, "stream_seq": seq}
            if have.num_rows != count:
                text = f"{have.num_rows} rows, its payload holds {count}: rows were added or dropped"
                self.report.add(Problem("ROWS", text, row=first_row + start, **at))
                continue
            for name in rows.SCHEMA.names:
                if have[name].equals(want[name]):
                    continue
                for i, (a, b) in enumerate(zip(_values(have[name]), _values(want[name]), strict=True)):
                    if a != b:
                        text = f"column {name} holds {_shown(a)}, the payload says {_shown(b)}"
                        self.report.add(Problem("ROW", text, row=first_row + start + i, event=i, **at))

    def _finding(self, finding: Finding, **at: Any) -> None:
        if finding.defect:
            where = at or {"stream": finding.stream, "stream_seq": finding.stream_seq}
            self.report.add(Problem(finding.code, finding.text, **where))
        else:
            self.report.incidents[finding.code] += 1


_JUDGED: Final = ["log_index", "stream_seq", "subject", "received", "status", "code", "payload"]


class _Extent:
    """What a file really holds, to compare with its manifest line."""

    def __init__(self) -> None:
        self.extent: tuple[int, ...] = (0, 0, 2**63, 0)

    def widen(self, table: pa.Table) -> None:
        rows_, messages, first, last = self.extent
        found = pc.min_max(table["stream_seq"]).as_py()
        self.extent = (
            rows_ + table.num_rows,
            messages + table.num_rows - table["payload"].null_count,
            min(first, found["min"]),
            max(last, found["max"]),
        )


class _Seen:
    """Which log indexes occurred.  Memory grows with messages that are there, whatever indexes they claim."""

    def __init__(self) -> None:
        self._bits = bytearray()
        self._far: set[int] = set()

    def add(self, index: int) -> bool:
        """Record an index; False if it is impossible or was there before."""
        if index < 0:
            return False
        byte, bit = index >> 3, 1 << (index & 7)
        if byte >= len(self._bits):
            if byte > 2 * len(self._bits) + (1 << 20):
                new = index not in self._far
                self._far.add(index)
                return new
            self._bits.extend(bytes(byte + 1 - len(self._bits) + (1 << 16)))
        if self._bits[byte] & bit or index in self._far:
            return False
        self._bits[byte] |= bit
        return True

    def missing(self, end: int) -> list[tuple[int, int]]:
        """Ranges of indexes below `end` that never occurred."""
        gaps: list[tuple[int, int]] = []
        index = 0
        limit = min(end, len(self._bits) * 8)
        while index < limit:
            byte = self._bits[index >> 3]
            if byte == 0xFF and not index & 7:
                index += 8
                continue
            if not byte >> (index & 7) & 1 and index not in self._far:
                if gaps and gaps[-1][1] == index - 1:
                    gaps[-1] = (gaps[-1][0], index)
                else:
                    gaps.append((index, index))
            index += 1
        if limit < end:
            far = sorted(i for i in self._far if limit <= i < end)
            for a, b in zip([limit - 1, *far], [*far, end], strict=True):
                if b > a + 1:
                    gaps.append((a + 1, b - 1))
        return gaps


def _starts(table: pa.Table) -> list[int]:
    found: list[int] = pc.indices_nonzero(pc.is_valid(table["payload"])).to_pylist()
    return found


def _messages(parquet: pq.ParquetFile) -> Iterator[tuple[int, pa.Table]]:
    """The file's rows in tables that begin with a message's first row, with the number of their first row."""
    held, first_row = rows.SCHEMA.empty_table(), 0
    for batch in parquet.iter_batches(BATCH_ROWS):
        held = pa.concat_tables([held, pa.Table.from_batches([batch], rows.SCHEMA)])
        starts = _starts(held)
        if len(starts) > 1:  # the last message may go on in the next batch
            yield first_row, held.slice(0, starts[-1]).combine_chunks()
            first_row += starts[-1]
            held = held.slice(starts[-1])
    if held.num_rows:
        yield first_row, held.combine_chunks()


def _values(column: pa.ChunkedArray) -> list[Any]:
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    values: list[Any] = column.to_pylist()
    return values


def _shown(value: Any) -> str:
    if isinstance(value, bytes):
        return value.hex()[:64] or "nothing"
    return "nothing" if value is None else str(value)[:120]
