"""From messages in log order to archived rows: the audit's core, without bus and clock.

- `take` judges the next message of the log and gathers its rows; `flush` archives what was gathered as
  one manifest line, or nothing of it.
- After a crash the log's state is the one saved with a manifest line plus the messages archived after it,
  judged again by the same code; everything else is read from the streams again.

The saved state is not trusted beyond a quick start: an attacker who controls it can make the running audit
miss or invent a finding, which `verify`, that never reads it, shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tallystick.record import totals
from tallystick.record.archive import Archive
from tallystick.record.chains import Judgement, Log, Reference, open_message
from tallystick.record.judge import ORDER
from tallystick.record.manifest import Entry
from tallystick.record.parquet import ROW_GROUP
from tallystick.record.rows import Rows
from tallystick.record.totals import Total
from tallystick.schemas.errors import Malformed, TallystickError
from tallystick.schemas.seal import Verified, Verifier

# What a row takes in memory before it is written, beside its message's bytes: a measured mean.
ROW_WEIGHT: Final = 1_024


class Stored(NamedTuple):
    """One message as a stream holds it; `stored` is the broker's time in Unix ns."""

    stream: str
    stream_seq: int
    subject: str
    payload: bytes
    stored: int


class Cut(NamedTuple):
    """What one flush archives, and what the streams come to with it."""

    rows: dict[str, Rows]
    totals: dict[str, Total]


class Projector:
    """Owns the log's state, the rows not archived yet, and through `archive` the directory."""

    def __init__(self, archive: Archive, verifiers: Sequence[Verifier]) -> None:
        """Rebuild the log's state from the archive.  Raises `TallystickError` if that cannot be done."""
        self.archive = archive
        self.verifiers = verifiers
        self.log, self.totals = Log(verifiers), {stream: Total() for stream in ORDER}
        state = archive.load_state()
        if state is not None:
            with suppress(Malformed):  # a cache of another version or a broken one: the rows tell the same, slower
                log, counted = totals.load(state)
                self.log, self.totals = Log.load(log, verifiers), counted
        self._rows: dict[str, Rows] = {}
        # About how many bytes of memory the rows that are not archived yet take.
        self.weight = 0
        for stream in ORDER:
            for log_index, message in self._archived(stream, self.log.next_index):
                opened = self.open(message)
                self.log.judge(stream, opened, log_index, message.stream_seq, message.subject)
                self._count(log_index, message)
        self.log.next_index = archive.manifest.next_log
        self.positions = {stream: archive.manifest.resume(stream) for stream in ORDER}
        self.archived = archive.manifest.rows
        self.archived_totals = totals.copied(self.totals)

    def _count(self, log_index: int, message: Stored) -> None:
        total = self.totals[message.stream]
        total.add(log_index, message.stream_seq, message.stored, message.subject, message.payload)

    def dump(self) -> bytes:
        """The log's state and the totals as they are now, for `Archive.save_state`."""
        self.log.forget()
        return totals.dump(self.log.dump(), self.totals)

    def _archived(self, stream: str, from_log: int) -> Iterator[tuple[int, Stored]]:
        columns = ["log_index", "stream_seq", "subject", "payload", "received"]
        for segment in self.archive.manifest.segments(stream):
            if segment.last_log < from_log:
                continue
            parquet = pq.ParquetFile(self.archive.directory / segment.file)
            for batch in parquet.iter_batches(ROW_GROUP // 4, columns=columns):
                table = pa.Table.from_batches([batch])
                table = table.filter(
                    pc.and_(pc.is_valid(table["payload"]), pc.greater_equal(table["log_index"], from_log))
                )
                received = table["received"].cast(pa.int64()).to_pylist()
                for index, seq, subject, payload, stored in zip(
                    *(table[name].to_pylist() for name in columns[:4]), received, strict=True
                ):
                    yield index, Stored(stream, seq, subject, payload, stored)

    def open(self, message: Stored) -> Verified | TallystickError:
        """Open a message under the trust root in force when it was stored."""
        return open_message(self.verifiers, message.subject, message.stream, message.payload, message.stored)

    def awaits(self, opened: Verified | TallystickError) -> list[tuple[str, Reference]]:
        """What it refers to and the log does not have yet, with the stream that should hold it."""
        return self.log.awaits(opened)

    def take(self, message: Stored, opened: Verified | TallystickError) -> Judgement:
        """Put the next message into the log; `opened` is what `open` gave for it."""
        log_index = self.log.next_index
        judged = self.log.judge(message.stream, opened, log_index, message.stream_seq, message.subject)
        rows = self._rows.get(message.stream)
        if rows is None:
            rows = self._rows[message.stream] = Rows()
        verified = opened if isinstance(opened, Verified) else None
        count = rows.add(
            log_index,
            message.stream_seq,
            message.subject,
            message.payload,
            message.stored,
            judged.status,
            judged.code,
            verified,
        )
        self.weight += len(message.payload) + count * ROW_WEIGHT
        self.log.next_index = log_index + 1
        self.positions[message.stream] = message.stream_seq
        self._count(log_index, message)
        return judged

    @property
    def gathered(self) -> int:
        """Rows that are not archived yet."""
        return sum(rows.rows for rows in self._rows.values())

    def flush(self) -> Entry | None:
        """Archive what was gathered; None if there is nothing.

        Raises `ArchiveError`: then nothing of it counts, and what was gathered is gone from memory too, so
        the caller stops and reads it from the streams again.
        """
        return self.write(self.cut())

    def cut(self) -> Cut:
        """Take out what was gathered, to be given to `write` (in another thread if need be), in this order."""
        cut, self._rows, self.weight = Cut(self._rows, totals.copied(self.totals)), {}, 0
        return cut

    def write(self, cut: Cut) -> Entry | None:
        """Archive what `cut` took out."""
        if not cut.rows:
            return None
        entry = self.archive.append((stream, rows.table()) for stream, rows in cut.rows.items())
        self.archived += sum(rows.rows for rows in cut.rows.values())
        self.archived_totals = cut.totals
        return entry
