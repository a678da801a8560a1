"""A desk that ran for some minutes, archived by the real projector: renewals, lists, heartbeats, checkpoints, orders.

And what somebody can do to it who writes to the disk and has no key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from typer.testing import CliRunner

from tallystick.cli.audit import app
from tallystick.components.audit.projector import Stored
from tallystick.record.archive import Archive, segment_options
from tallystick.record.manifest import MANIFEST, Entry, Segment, encode_entry, segment_name
from tallystick.record.rows import SCHEMA
from tallystick.schemas.event import At
from tallystick.schemas.orders import Signal
from tallystick.schemas.security import ListedSession, SessionList
from tests.support.archive import Session, Story, Vault

ROUNDS = 6
SECOND = 1_000_000_000


class Desk:
    """The story's two orders, then `ROUNDS` rounds of 30 s, each with a checkpoint; a last one that none covers."""

    def __init__(self, directory: Path) -> None:
        self.story = Story()
        self.streams = self.story.streams
        self.custody = self.streams.session("custody")
        self.vault = Vault(directory)
        s = self.story
        self.sessions: list[Session] = [
            self.streams.authority, s.market, s.strategy, s.gateway, s.execution, s.portfolio, s.audit, self.custody,
        ]  # fmt: skip
        self.vault.project(self.streams.stored, flush=12)
        for number in range(ROUNDS):
            self._round(number)
            self.vault.project(self.streams.stored, flush=40)
            if number < ROUNDS - 1:
                self.vault.checkpoint(self.streams, s.audit)

    def _round(self, number: int) -> None:
        streams = self.streams
        streams.now += 30 * SECOND
        for session in self.sessions:
            if number % 3 == 2:
                session.renew(f"{session.component}-{number}")
                streams.issue(session)
        live = tuple(_listed(session) for session in self.sessions)
        streams.authority.say(("cred.authority", [streams.new(SessionList, number=number, live=live, revoked=())]))
        streams.ticks(self.story.market, 2)
        read = max(m.stream_seq for m in streams.stored if m.stream == "MARKET")
        signal = streams.new(Signal, name="drift", value=Decimal(1), text="", at=(At(stream="MARKET", seq=read),))
        self.story.strategy.say(("signal.alpha.paper.XRP-ETH", [signal]))
        for session in self.sessions:
            session.heartbeat()


def _listed(session: Session) -> ListedSession:
    c = session.credential
    return ListedSession(c.component, c.boot, c.digest, c.expires_at, c.session_key)


# -- what can be done without a key -----------------------------------------------------------------


def append_line(vault: Vault, entry: Entry) -> None:
    """Append one more line to the manifest, linked as it should be."""
    manifest = vault.manifest
    line = encode_entry(Entry(manifest.count + 1, manifest.head, entry.segments, entry.replaces))
    with (vault.path / MANIFEST).open("ab") as file:
        file.write(line + b"\n")


def write_segment(vault: Vault, stream: str, table: pa.Table, level: int = 0, **claims: object) -> Segment:
    """Write a file as the archive does, and describe it truly but for `claims`."""
    seqs = table["stream_seq"].to_pylist()
    times = table["received"].cast(pa.int64()).to_pylist()
    name = segment_name(stream, min(times), min(seqs), max(seqs), level)
    path = vault.path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.cast(SCHEMA), path, **segment_options())
    return describe(vault, name, table, stream, level, **claims)


def describe(vault: Vault, name: str, table: pa.Table, stream: str, level: int, **claims: object) -> Segment:
    """The manifest's description of a file that is there."""
    data = (vault.path / name).read_bytes()
    seqs, logs = table["stream_seq"].to_pylist(), table["log_index"].to_pylist()
    times = table["received"].cast(pa.int64()).to_pylist()
    true: dict[str, object] = {
        "file": name,
        "sha256": hashlib.sha256(data).hexdigest(),
        "size": len(data),
        "stream": stream,
        "level": level,
        "rows": table.num_rows,
        "messages": table.num_rows - table["payload"].null_count,
        "first_seq": min(seqs),
        "last_seq": max(seqs),
        "first_log": min(logs),
        "last_log": max(logs),
        "first_time": min(times),
        "last_time": max(times),
    }
    return msgspec.convert({**true, **claims}, Segment)


def column(table: pa.Table, name: str, values: Sequence[object]) -> pa.Table:
    """The table with another column; times are Unix ns."""
    field = table.schema.field(name)
    kind = pa.int64() if pa.types.is_timestamp(field.type) else field.type
    array = pa.array(values, kind).cast(field.type)
    return table.set_column(table.schema.get_field_index(name), field, array)


def compacted(vault: Vault, stream: str, change: Callable[[pa.Table], pa.Table]) -> Segment:
    """Append an unsigned compaction of a whole stream's files of its first day, its rows changed."""
    segments = vault.segments(stream)
    segments = [s for s in segments if Path(s.file).parent == Path(segments[0].file).parent]
    table = change(pa.concat_tables([vault.table(s) for s in segments]))
    segment = write_segment(vault, stream, table, max(s.level for s in segments) + 1)
    append_line(vault, Entry(0, "", (segment,), tuple(s.file for s in segments)))
    for old in segments:
        (vault.path / old.file).unlink()
    return segment


def rebuilt(vault: Vault, messages: Sequence[Stored]) -> None:
    """Make the archive anew from some of the messages, with all numbers closed up: what fits is all that is left."""
    for path in sorted(vault.path.rglob("*.parquet")):
        path.unlink()
    for name in (MANIFEST, "state"):
        (vault.path / name).unlink(missing_ok=True)
    seqs: dict[str, int] = {}
    kept = []
    for message in messages:
        seqs[message.stream] = seqs.get(message.stream, 0) + 1
        kept.append(message._replace(stream_seq=seqs[message.stream]))
    vault.project(kept, flush=40)


def compact_all(vault: Vault) -> None:
    """Let the archive compact what it can."""
    archive = Archive(vault.path)
    for stream in ("SECURITY", "GUARD", "ORDERS", "SIGNALS", "MARKET"):
        while archive.compact(stream, 0) is not None:
            pass
    archive.sweep(1 << 62)
    archive.close()


def run(vault: Vault, *more: str) -> tuple[int, str]:
    """`tallystick audit verify`: its exit code and what it printed."""
    result = CliRunner().invoke(app, ["verify", str(vault.deployment), *more])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output
