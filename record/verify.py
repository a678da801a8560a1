"""Verifies an archive offline: it needs the archive and the pinned operator root, and trusts nothing else.

Steps; each reports every defect with file, row, stream, sequence and event, and goes on:

1. the trust roots (signed notes in the archive) open under the pinned operator root;
2. the manifest's lines are canonical, numbered, linked by hashes, go on where the last ended, and replace only what
   they cover; each part begins with what the lines before it come to;
3. no file is there that the manifest does not name;
4. every live segment is a regular file of the size and SHA-256 of its line, laid out as the archive's writer does;
5. sequences of each stream follow each other without hole, log indexes over all streams too;
6. every message's seal holds, and `chains` finds no hole, fork or broken link in the log;
7. every row of every message, computed again from its payload, equals the archived row; statistics and Bloom filters
   are those of the rows; the extents are those of the line;
8. every checkpoint that audit sealed on the bus names the hash of the manifest line it claims, and what each stream
   came to; so does one that was kept elsewhere, where it is given;
9. heads that components stated in heartbeats are stored, and nothing is absent that sealed statements speak of.

Every row of every live segment is judged, whatever extents its line claims.  Not provable from the archive alone:
that nothing was cut off its end, and when the broker stored what no checkpoint covers yet (`Report.open_messages`).
"""

from __future__ import annotations

from collections.abc import Callable
from io import BufferedReader
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from tallystick.record.archive import STATE
from tallystick.record.checkpoints import Expected, hold_expected, hold_sealed
from tallystick.record.files import FileRefused, open_regular
from tallystick.record.judge import ORDER, Judge, Totals, Window, check_schema
from tallystick.record.manifest import (
    MANIFEST,
    TEMPORARY,
    Manifest,
    Segment,
    is_temporary,
    read_history,
    read_manifest,
    segment_files,
    unfinished,
)
from tallystick.record.parquet import LayoutError, read_layout
from tallystick.record.place import Place, judge_trust
from tallystick.record.report import Problem, Report
from tallystick.record.segment import check_bytes
from tallystick.schemas.subjects import SECURITY

# How often one file may be replaced while it is looked for: levels rise with each compaction.
MAX_RETURNS: Final = 100

Progress = Callable[[str, int], None]


def verify(place: Place, progress: Progress = lambda stream, done: None, expected: Expected | None = None) -> Report:
    """Verify an archive; `progress` is called with each stream and the number of rows just done.

    `expected` is a checkpoint that was kept elsewhere.  Raises `TallystickError` if it could not be carried out (no
    archive, no permission, a pinned key that is none): whatever is wrong in the archive is in the report.
    """
    return Verification(place, progress, expected).run()


class Verification:
    """One run; what a running deployment writes after `__init__` is not judged."""

    def __init__(
        self, place: Place, progress: Progress = lambda stream, done: None, expected: Expected | None = None
    ) -> None:
        self.directory = place.archive
        self.report = Report()
        self.progress = progress
        self.expected = expected
        self.verifiers, problems = judge_trust(place)
        for problem in problems:
            self.report.add(problem)
        self.manifest = read_history(self.directory)
        end = max((s.last_time for s in self.manifest.live.values()), default=0)
        self.judge = Judge(self.verifiers, self.report, end)

    def run(self) -> Report:
        """Judge everything.  Raises `ArchiveError` if the manifest cannot be read."""
        report, judge = self.report, self.judge
        report.roots = len(self.verifiers)
        report.deployment = self.verifiers[-1].trust.deployment if self.verifiers else ""
        self._manifest()
        self._strangers()
        for stream in ORDER:
            self._stream(stream)
            if stream == SECURITY:
                for sealed in judge.checkpoints:
                    for total in sealed.totals:
                        if total.stream in judge.totals and total.stream != SECURITY:
                            judge.totals[total.stream].expect(total, sealed.stream_seq)
            else:
                judge.totals[stream].finish()
        self._recount_security()
        hold_sealed(judge.checkpoints, self.manifest, report)
        if self.expected is not None:
            hold_expected(self.expected, self.manifest, self.verifiers, report)
        missing = judge.seen.missing(self.manifest.next_log)
        if missing:
            shown = ", ".join(f"{a} to {b}" if a != b else str(a) for a, b in missing[:8])
            report.add(Problem("LOG_GAP", f"no message has log index {shown}: messages are missing"))
        for finding in judge.log.dropped():
            judge.finding(finding)
        for problem in judge.evidence.problems({s: self.manifest.resume(s) for s in ORDER}):
            report.add(problem)
        report.torn = judge.log.torn()
        report.chains = sum(len(c.chains) for c in judge.log.streams.values())
        return report

    # -- manifest and files ---------------------------------------------------------------------

    def _manifest(self) -> None:
        report = self.report
        for defect in self.manifest.defects:
            report.add(Problem(defect.code, f"manifest line {defect.line}: {defect.text}", file=MANIFEST))
        for name, exc in self.manifest.refused:
            report.add(Problem(exc.code, exc.text, file=name))
        if self.manifest.first != 1:
            text = f"begins with line {self.manifest.first}: the parts before it are missing"
            report.add(Problem("MANIFEST_CUT", text, file=MANIFEST))
        report.entries = self.manifest.count
        if self.manifest.torn:
            report.notes.append("the manifest ends in a line that was never finished; nothing refers to it")

    def _strangers(self) -> None:
        fresh = self._refresh()
        unnamed = [
            name
            for name in segment_files(self.directory)
            if name not in fresh.live and name not in fresh.replaced and name not in self.manifest.replaced
        ]
        left = unfinished(unnamed, fresh)
        # What a crash in the very first flush leaves, and no more, is no defect: it writes one file after the other.
        more = [name for name in unnamed if name.startswith("stream=") and name not in left]
        if not self.manifest.count and (len(more) > 1 or not all(map(is_temporary, more))):
            text = f"it has no line, but {len(unnamed)} files are there, more than one flush writes: it was emptied"
            self.report.add(Problem("MANIFEST_EMPTY", text, file=MANIFEST))
        for name in unnamed:
            if name not in left and not is_temporary(name):
                self.report.add(Problem("EXTRA_FILE", "the manifest does not name this file", file=name))
            elif name != STATE + TEMPORARY:
                self.report.notes.append(f"{name}: a flush that was not finished; nothing refers to it")

    def _refresh(self) -> Manifest:
        """The manifest as it is now: what it said before must stand unchanged."""
        fresh = read_manifest(self.directory)
        if fresh.first > self.manifest.count + 1:
            fresh = read_history(self.directory)
        known = fresh.hash_of(self.manifest.count) if fresh.first <= self.manifest.count else self.manifest.head
        if self.manifest.count and known != self.manifest.head:
            self.report.add(Problem("MANIFEST_REWRITTEN", "changed while it was read", file=MANIFEST))
        return fresh

    # -- streams --------------------------------------------------------------------------------

    def _stream(self, stream: str) -> None:
        last = 0
        for segment, window in self._held(stream):
            last = self._segment(segment, window, last)

    def _held(self, stream: str) -> list[tuple[Segment, Window]]:
        return [(segment, Window()) for segment in self.manifest.segments(stream)]

    def _open(self, segment: Segment, window: Window) -> tuple[BufferedReader, Segment, Window]:
        """A segment's file, or that of what compaction made of it in the meantime.  Raises `FileRefused`."""
        for _ in range(MAX_RETURNS):
            try:
                return open_regular(self.directory, segment.file), segment, window
            except FileRefused as exc:
                holder = self._refresh().holder(segment) if exc.code == "FILE_MISSING" else None
                if holder is None or holder.level <= segment.level:
                    raise
                # Once more than it held; what is beyond it, or was judged, is left out.
                window = Window(max(window.after, segment.first_seq - 1), min(window.until, segment.last_seq))
                segment = holder
        raise FileRefused("FILE_MISSING", f"{segment.file} is not there")

    def _segment(self, segment: Segment, window: Window, last: int) -> int:
        """Judge one file; returns its stream's last sequence."""
        report, stream = self.report, segment.stream
        try:
            file, segment, window = self._open(segment, window)
        except FileRefused as exc:
            report.add(Problem(exc.code, exc.text, file=segment.file, stream=stream))
            return segment.last_seq
        report.segments += 1
        with file:
            try:
                check_bytes(file, segment)
            except FileRefused as exc:
                report.add(Problem(exc.code, exc.text, file=segment.file, stream=stream))
            try:
                layout = read_layout(file, segment.rows)
                parquet = pq.ParquetFile(file)
                if check_schema(parquet):
                    return self.judge.segment(segment, parquet, layout, last, window, self.progress)
                report.add(
                    Problem("FILE_SCHEMA", "columns are not those of the archive", file=segment.file, stream=stream)
                )
            except LayoutError as exc:
                report.add(Problem(exc.code, exc.text, file=segment.file, stream=stream))
            except (pa.ArrowException, OSError, UnicodeDecodeError, ValueError) as exc:
                text = f"not a readable Parquet file: {exc}"[:300]
                report.add(Problem("FILE_UNREADABLE", text, file=segment.file, stream=stream))
        return segment.last_seq

    def _recount_security(self) -> None:
        """Hold SECURITY, which holds the checkpoints themselves, against what they state of it."""
        totals = Totals(SECURITY, self.report)
        stated = 0
        for sealed in self.judge.checkpoints:
            for total in sealed.totals:
                if total.stream == SECURITY:
                    totals.expect(total, sealed.stream_seq)
                    stated += 1
        if not stated:
            return
        for segment, window in self._held(SECURITY):
            self._recount(segment, totals, window)
        totals.finish()

    def _recount(self, segment: Segment, totals: Totals, window: Window) -> None:
        try:
            file, segment, window = self._open(segment, window)
            with file:
                layout = read_layout(file, segment.rows)
                self.judge.recount(pq.ParquetFile(file), layout, totals, window)
        except (FileRefused, LayoutError, pa.ArrowException, OSError, UnicodeDecodeError, ValueError):
            return  # reported where its rows were judged
