"""Judges the rows of an archive: opens every sealed message again, and computes every row from it again.

Everything that a row says is held against its message, everything that a file says of itself against its rows, and each
message against its chain, its stream and the log.  What a file claims bounds nothing: `parquet` bounds what is decoded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tallystick.record import rows
from tallystick.record.archive import segment_options
from tallystick.record.chains import Finding, Log, open_message
from tallystick.record.evidence import Evidence
from tallystick.record.manifest import Segment
from tallystick.record.parquet import Layout, Seen
from tallystick.record.report import Problem, Report
from tallystick.record.totals import Total
from tallystick.schemas.errors import TallystickError
from tallystick.schemas.registry import MAX_EVENTS
from tallystick.schemas.seal import Verified, Verifier
from tallystick.schemas.security import Checkpoint, StreamTotal
from tallystick.schemas.subjects import GUARD, MARKET, ORDERS, SECURITY, SIGNALS

# Sessions first, heads second: what the other streams are judged by.
ORDER: Final = (SECURITY, GUARD, ORDERS, SIGNALS, MARKET)
_JUDGED: Final = ["log_index", "stream_seq", "subject", "received", "status", "code", "payload"]
_COUNTED: Final = ["log_index", "stream_seq", "subject", "received", "payload"]


class Sealed(msgspec.Struct, frozen=True):
    """A checkpoint that audit sealed: its event and totals, where it is archived and when it was sealed (Unix ns)."""

    checkpoint: Checkpoint
    totals: tuple[StreamTotal, ...]
    stream_seq: int
    time: int


class Window(msgspec.Struct, frozen=True):
    """Which sequences of a file to judge: all, but where compaction replaced what was being read."""

    after: int = 0
    until: int = 2**63


class Judge:
    """Owns the log's state, the report and what was seen so far.  Without verifiers nothing is opened."""

    def __init__(self, verifiers: Sequence[Verifier], report: Report, end_time: int) -> None:
        self.verifiers = verifiers
        self.report = report
        self.log = Log(verifiers)
        self.seen = Indexes()
        self.evidence = Evidence(end_time)
        self.checkpoints: list[Sealed] = []
        self.totals = {stream: Totals(stream, report) for stream in ORDER}

    def segment(
        self,
        segment: Segment,
        parquet: pq.ParquetFile,
        layout: Layout,
        last: int,
        window: Window,
        progress: Callable[[str, int], None],
    ) -> int:
        """Judge one file, whose stream was judged up to sequence `last`; returns its last sequence.

        Raises what pyarrow raises for a file that cannot be decoded.
        """
        found = _Extent()
        for first_row, table in _messages(self._batches(segment, parquet, layout)):
            found.widen(table)
            last = self._chunk(segment, table, first_row, window, last)
            progress(segment.stream, table.num_rows)
            if found.values[1] > segment.messages:
                break  # more than its line names: the extent says so, and a small file cannot keep us for ever
        expected = tuple(getattr(segment, name) for name in _Extent.NAMES)
        if found.values != expected:
            wrong = [
                f"{name} is {a}, the manifest names {b}"
                for name, a, b in zip(_Extent.NAMES, found.values, expected, strict=True)
                if a != b
            ]
            self.report.add(Problem("FILE_EXTENT", "; ".join(wrong), file=segment.file, stream=segment.stream))
        return last

    def _batches(self, segment: Segment, parquet: pq.ParquetFile, layout: Layout) -> Iterator[pa.Table]:
        for number, group in enumerate(layout.groups):
            seen = Seen()
            for batch in parquet.iter_batches(layout.batch_rows, row_groups=[number]):
                table = pa.Table.from_batches([batch], rows.SCHEMA)
                seen.add(table, group)
                yield table
            for lie in group.compare(seen):
                text = f"row group {number}: {lie}, so that readers would skip rows"
                self.report.add(Problem("FILE_INDEX", text, file=segment.file, stream=segment.stream))

    def _chunk(self, segment: Segment, table: pa.Table, first_row: int, window: Window, last: int) -> int:
        """Judge whole messages; see `segment`."""
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
            if not window.after < seq <= window.until:
                verdicts.append((start, 0, ""))
                continue
            at = {"file": segment.file, "row": first_row + start, "stream": stream, "stream_seq": seq}
            self._place(log_index, seq, last, at)
            last = max(seq, last)
            self.totals[stream].add(log_index, seq, received, subject, payload)
            report.messages += 1
            if not self.verifiers:
                verdicts.append((start, 0, ""))
                continue
            opened = open_message(self.verifiers, subject, stream, payload, received)
            judged = self.log.judge(stream, opened, log_index, seq, subject)
            why = ""
            if (judged.status, judged.code) != (status, code):
                text = opened.text if isinstance(opened, TallystickError) else f"{judged.status} {judged.code}".strip()
                why = f"archived as {f'{status} {code}'.strip()}, but {judged.code or judged.status}: {text}"
                report.add(Problem("STATUS" if status != rows.OK else "SEAL", why, **at))
            for finding in judged.findings:
                self.finding(finding, **at)
            verified = opened if isinstance(opened, Verified) else None
            count = built.add(log_index, seq, subject, payload, received, judged.status, judged.code, verified)
            verdicts.append((start, count, why))
            report.status[judged.status] += 1
            if verified is not None:
                report.events += len(verified.events)
                if judged.status == rows.OK:
                    self._counts(verified, seq, received)
        report.rows += built.rows if self.verifiers else table.num_rows
        if built.messages:
            self._compare(segment, table, built.table(), first_row, verdicts)
        return last

    def _place(self, log_index: int, seq: int, last: int, at: dict[str, Any]) -> None:
        if seq != last + 1:
            if last:
                missing = f"{last + 1} to {seq - 1} are missing" if seq > last else "out of order or twice"
                self.report.add(Problem("SEQUENCE", f"follows {last}: {missing}", **at))
            elif seq > 1:
                self.report.notes.append(f"{at['stream']} is archived from sequence {seq} on")
        if not self.seen.add(log_index):
            self.report.add(Problem("LOG_INDEX", f"log index {log_index} is used twice or impossible", **at))
        if log_index <= self.totals[at["stream"]].log_index:
            text = f"log index {log_index} follows {self.totals[at['stream']].log_index} in its stream"
            self.report.add(Problem("LOG_INDEX", text, **at))

    def _counts(self, verified: Verified, seq: int, received: int) -> None:
        self.evidence.add(verified, seq, received)
        if verified.subject.kind == "audit.checkpoint":
            totals = tuple(e for e in verified.events if isinstance(e, StreamTotal))
            for event in verified.events:
                if isinstance(event, Checkpoint):
                    self.checkpoints.append(Sealed(event, totals, seq, verified.statement.time))

    def recount(self, parquet: pq.ParquetFile, layout: Layout, totals: Totals, window: Window) -> None:
        """Go over a file's messages again for `totals` alone: a stream whose own messages say what it should come to."""
        for batch in parquet.iter_batches(layout.batch_rows, columns=_COUNTED):
            table = pa.Table.from_batches([batch])
            table = table.filter(pc.is_valid(table["payload"]))
            received = table["received"].cast(pa.int64()).to_pylist()
            for index, seq, subject, payload, stored in zip(
                *(table[n].to_pylist() for n in ("log_index", "stream_seq", "subject", "payload")),
                received,
                strict=True,
            ):
                if window.after < seq <= window.until:
                    totals.add(index, seq, stored, subject, payload)

    def finding(self, finding: Finding, **at: Any) -> None:
        """Record what `chains` found."""
        if finding.defect:
            where = at or {"stream": finding.stream, "stream_seq": finding.stream_seq}
            self.report.add(Problem(finding.code, finding.text, **where))
        else:
            self.report.incident(finding.code, finding.stream, finding.stream_seq, finding.component)

    # -- rows -----------------------------------------------------------------------------------

    def _compare(
        self,
        segment: Segment,
        table: pa.Table,
        expected: pa.Table,
        first_row: int,
        verdicts: list[tuple[int, int, str]],
    ) -> None:
        """Report every cell and row in which the archive differs from what its payloads say."""
        ends = [start for start, _, _ in verdicts[1:]] + [table.num_rows]
        kept = [(start, end, count, why) for (start, count, why), end in zip(verdicts, ends, strict=True) if count]
        have = table if len(kept) == len(verdicts) else pa.concat_tables([table.slice(s, e - s) for s, e, _, _ in kept])
        if expected.equals(have):
            return
        offset = 0
        for start, end, count, why in kept:
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


class Totals:
    """One stream's running total, held against those that audit sealed."""

    def __init__(self, stream: str, report: Report) -> None:
        self.total = Total()
        self.log_index = -1
        self._stream = stream
        self._report = report
        self._stated: dict[int, list[tuple[StreamTotal, int]]] = {}
        self._good = 0
        self._bad = False

    def expect(self, stated: StreamTotal, checkpoint_seq: int) -> None:
        """Hold the stream against what a checkpoint stated, when it comes to that sequence."""
        if stated.messages:
            self._stated.setdefault(stated.last_seq, []).append((stated, checkpoint_seq))

    def add(self, log_index: int, seq: int, received: int, subject: str, payload: bytes) -> None:
        """Go on by one message."""
        self.log_index = max(self.log_index, log_index)
        self.total.add(log_index, seq, received, subject, payload)
        for stated, checkpoint_seq in self._stated.pop(seq, ()):
            self._compare(stated, checkpoint_seq)

    def _compare(self, stated: StreamTotal, checkpoint_seq: int) -> None:
        if (stated.messages, stated.digest) == (self.total.messages, self.total.digest):
            self._good = stated.last_seq
        elif not self._bad:  # every later one would say the same
            self._bad = True
            text = (
                f"sequences {self._good + 1} to {stated.last_seq} are not what audit sealed at SECURITY {checkpoint_seq}: "
                "a message, its place in the log or its time of storage was changed"
            )
            self._report.add(Problem("TOTAL", text, stream=self._stream, stream_seq=stated.last_seq))

    def finish(self) -> None:
        """Report what was stated and never came."""
        if self._stated and not self._bad:
            seq = max(self._stated)
            text = f"audit sealed that sequence {seq} is archived (SECURITY {self._stated[seq][0][1]}): it is not there"
            self._report.add(Problem("TOTAL", text, stream=self._stream, stream_seq=seq))


class _Extent:
    """What a file really holds, to compare with its manifest line."""

    NAMES = ("rows", "messages", "first_seq", "last_seq", "first_log", "last_log", "first_time", "last_time")

    def __init__(self) -> None:
        self.values: tuple[int, ...] = ()

    def widen(self, table: pa.Table) -> None:
        bounds = [pc.min_max(table[n].cast(pa.int64())).as_py() for n in ("stream_seq", "log_index", "received")]
        new = (
            table.num_rows,
            table.num_rows - table["payload"].null_count,
            *(bound[side] for bound in bounds for side in ("min", "max")),
        )
        if self.values:
            how: tuple[Callable[[int, int], int], ...] = (int.__add__, int.__add__, *(min, max) * 3)
            new = tuple(merge(a, b) for merge, a, b in zip(how, self.values, new, strict=True))
        self.values = new


_PAGE: Final = 4096


class Indexes:
    """Which log indexes occurred.  Memory grows with messages that are there, whatever indexes they claim."""

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = {}

    def add(self, index: int) -> bool:
        """Record an index; False if it is impossible or was there before."""
        if index < 0:
            return False
        number, place = divmod(index, _PAGE)
        page = self._pages.get(number)
        if page is None:
            page = self._pages[number] = bytearray(_PAGE // 8)
        bit = 1 << (place & 7)
        new = not page[place >> 3] & bit
        page[place >> 3] |= bit
        return new

    def missing(self, end: int) -> list[tuple[int, int]]:
        """Ranges of indexes below `end` that never occurred."""
        gaps: list[tuple[int, int]] = []
        expected = 0
        for number in sorted(self._pages):
            page, base = self._pages[number], number * _PAGE
            full = page.count(0xFF) == len(page)
            for place in (0,) if full else range(_PAGE):
                if not page[place >> 3] >> (place & 7) & 1:
                    continue
                if base + place > expected:
                    gaps.append((expected, base + place - 1))
                expected = base + (_PAGE if full else place + 1)
        gaps.append((expected, end - 1))
        return [(first, min(last, end - 1)) for first, last in gaps if first < end and first <= last]


def check_schema(parquet: pq.ParquetFile) -> bool:
    """Whether columns are the archive's, as Arrow and as other readers see them."""
    return bool(parquet.schema_arrow.equals(rows.SCHEMA) and parquet.schema.equals(_parquet_schema()))


@functools.cache
def _parquet_schema() -> Any:
    sink = pa.BufferOutputStream()
    pq.write_table(rows.SCHEMA.empty_table(), sink, **segment_options())
    return pq.ParquetFile(sink.getvalue()).schema


def _starts(table: pa.Table) -> list[int]:
    found: list[int] = pc.indices_nonzero(pc.is_valid(table["payload"])).to_pylist()
    return found


def _messages(tables: Iterator[pa.Table]) -> Iterator[tuple[int, pa.Table]]:
    """The rows in tables that begin with a message's first row, with the number of their first row."""
    held, first_row = rows.SCHEMA.empty_table(), 0
    for table in tables:
        held = pa.concat_tables([held, table])
        starts = _starts(held)
        # The last message may go on in the next batch, but not beyond what one message may hold.
        cut = held.num_rows if not starts or held.num_rows - starts[-1] > MAX_EVENTS else starts[-1]
        if cut:
            yield first_row, held.slice(0, cut).combine_chunks()
            first_row += cut
            held = held.slice(cut)
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
