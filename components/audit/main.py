"""The audit process: reads every stream whole, verifies, archives, and states checkpoints.

- Messages of all streams are put into one log by the broker's time of storage.  A message waits until no
  stream can still deliver an older one: `HOLD_S` after its receipt for streams that are caught up, until
  they are for those that are not.  One that refers to what is not logged yet (its session's issuance, a
  head of a heartbeat) waits up to `PATIENCE_S`.
- At most `FLUSH_S` after a message was logged it is archived.  The archive's manifest is the only record
  of progress: a crash at any point means that reading goes on after the last durable flush.
- A finding becomes a notice on `guard.audit`, one for each code and component in a while.
- Every `CHECKPOINT_S` the manifest's head, and what each stream comes to, is sealed into `audit.checkpoint`: from
  then on nobody without audit's session key can rewrite what stands before it.
- An archive that cannot be written stops the process: halt rather than drop an entry.

Audit is not trusted with the truth: an attacker who controls it can leave messages out or stop archiving,
which holes, heads and the streams themselves show; it can forge no event of another component.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from tallystick.components.audit.projector import Projector, Stored
from tallystick.record.archive import Archive
from tallystick.record.chains import Finding
from tallystick.record.files import ArchiveError
from tallystick.record.manifest import TRUST
from tallystick.record.totals import stated
from tallystick.runtime.bus.reader import Delivery
from tallystick.runtime.deployment.service import Service, ServiceContext
from tallystick.runtime.durable import write_durably
from tallystick.schemas.errors import Malformed, TallystickError
from tallystick.schemas.seal import Verified, Verifier
from tallystick.schemas.security import Checkpoint
from tallystick.schemas.subjects import STREAMS, subject
from tallystick.schemas.trust import open_trust_roots, public_key_bytes

HOLD_S: Final = 0.05
PATIENCE_S: Final = 2.0
# How long a stop waits for the streams' ends; a broker that is silent ends it sooner.
CATCH_UP_S: Final = 6.0
FLUSH_S: Final = 0.8
CHECKPOINT_S: Final = 5.0
COMPACT_S: Final = 10.0
SAVE_S: Final = 30.0
# Rows gathered or messages queued beyond these make readers wait: memory stays flat while the disk is slow.
MAX_GATHERED: Final = 200_000
MAX_QUEUED: Final = 4_096
# Messages logged between two looks at the rest of the process.
BURST: Final = 256
# One notice for each code and component in this time; `verify` shows every single finding.
NOTICE_EVERY_NS: Final = 10_000_000_000
DEFECT_EVERY_NS: Final = 1_000_000_000


class _Queued(NamedTuple):
    message: Stored
    opened: Verified | TallystickError
    arrived: float


class _Source:
    """What was read of one stream and not logged yet; `behind`: more of it is known to be stored."""

    def __init__(self) -> None:
        self.queue: deque[_Queued] = deque()
        self.behind = True
        self.room = asyncio.Event()
        self.room.set()


class Merge:
    """Chooses the next message of the log; see the module docstring.  Pure but for its queues."""

    def __init__(self, sources: dict[str, _Source], awaits: Callable[[Verified | TallystickError], bool]) -> None:
        self._sources = sources
        self._awaits = awaits

    def next(self, now: float, *, final: bool = False) -> tuple[_Source | None, float]:
        """The source whose head is next, or None and how long (s) to wait; `final`: no more will come."""
        source = min(
            (s for s in self._sources.values() if s.queue), key=lambda s: s.queue[0].message.stored, default=None
        )
        if source is None:
            return None, PATIENCE_S
        head = source.queue[0]
        age = now - head.arrived
        empty = [s for s in self._sources.values() if not s.queue]
        if final or not empty:
            return source, 0.0
        if any(s.behind for s in empty):
            return None, HOLD_S
        limit = PATIENCE_S if age < PATIENCE_S and self._awaits(head.opened) else HOLD_S
        return (source, 0.0) if age >= limit else (None, min(HOLD_S, limit - age))


class Audit(Service):
    """See the module docstring."""

    def __init__(self, archive: Path | None = None, verifiers: list[Verifier] | None = None) -> None:
        """Default: archive and trust roots of the deployment."""
        self._path = archive
        self._verifiers = verifiers

    async def start(self, ctx: ServiceContext) -> None:
        """Take up the archive where it ends.  Raises `ArchiveError` for one that is damaged."""
        self.ctx = ctx
        path = self._path or ctx.deployment.archive
        verifiers = self._verifiers
        if verifiers is None:
            verifiers = keep_trust_roots(ctx.deployment.trust, ctx.deployment.pinned_key, path / TRUST)
        # Off the loop: judging a long tail again must not keep the link from renewing its session.
        self.archive = await asyncio.to_thread(Archive, path)
        found = self.archive.recovered
        if found.torn_line or found.temporary or found.orphans:
            ctx.log.warning("archive recovered", torn=found.torn_line, temporary=found.temporary, orphans=found.orphans)
        self.projector = await asyncio.to_thread(Projector, self.archive, verifiers)
        ctx.log.info("archive open", entries=len(self.archive.manifest.hashes), rows=self.projector.archived)
        self._sources = {stream: _Source() for stream in STREAMS}
        self._merge = Merge(self._sources, self.projector.awaits)
        self._wake = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()
        self._writing = asyncio.Lock()
        self._stopping = False
        self._noticed: dict[tuple[str, str], int] = {}
        self._dropped: set[str] = set()
        self._torn: set[tuple[bytes, str, int]] = {(t.boot, t.stream, t.seq) for t in self.projector.log.torn()}
        self._save_due = ctx.clock()
        for stream in STREAMS:
            ctx.subscribe_raw(stream, self._reader(stream), self.projector.positions[stream])
            ctx.spawn(self._catch_up(stream))
        ctx.spawn(self._log_messages())
        ctx.spawn(self._keep_archive())
        ctx.spawn(self._state_checkpoints())
        ctx.spawn(self._compact())
        ctx.at_stop(self._finish)

    async def _finish(self) -> None:
        """Log and archive what was read, in order; what comes after is read at the next start.

        A heartbeat that is logged before the messages that it counts would make them look dropped: so what others
        said last is waited for, and if it does not come, nothing later than it is logged.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(CATCH_UP_S):
                while any(source.behind for source in self._sources.values()):
                    self._wake.clear()
                    await self._wake.wait()
        self._stopping = True
        whole = not any(source.behind for source in self._sources.values())
        for source in self._sources.values():
            source.room.set()
        while True:
            ready, _ = self._merge.next(math.inf, final=whole)
            if ready is None:
                break
            self._take(ready)
        await self._flush(save=True)
        self.archive.close()

    def _reader(self, stream: str) -> Callable[[Delivery], Awaitable[None]]:
        source = self._sources[stream]

        async def handle(delivery: Delivery) -> None:
            if self._stopping:
                return  # not logged, so read again at the next start
            # A subject that is no text would not fit a row; it is refused under what can be shown of it.
            shown = delivery.subject.encode("utf-8", "backslashreplace").decode()
            message = Stored(stream, delivery.stream_seq, shown, delivery.payload, delivery.stored)
            opened = self.projector.open(message)
            source.queue.append(_Queued(message, opened, asyncio.get_running_loop().time()))
            source.behind = delivery.pending > 0
            self._wake.set()
            if len(source.queue) >= MAX_QUEUED:
                source.room.clear()
                await source.room.wait()

        return handle

    async def _catch_up(self, stream: str) -> None:
        await asyncio.sleep(0)  # readers open when `start` has returned
        await self.ctx.caught_up(stream)
        self._sources[stream].behind = False
        self._wake.set()

    async def _log_messages(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            for _ in range(BURST):
                source, wait = self._merge.next(loop.time())
                if source is None:
                    break
                self._take(source)
            else:
                if self.projector.gathered >= MAX_GATHERED:
                    self._drained.clear()
                    await self._drained.wait()
                await asyncio.sleep(0)
                continue
            self._wake.clear()
            try:
                await asyncio.wait_for(self._wake.wait(), wait)
            except TimeoutError:
                continue  # the head has waited long enough

    def _take(self, source: _Source) -> None:
        item = source.queue.popleft()
        if len(source.queue) <= MAX_QUEUED // 2:
            source.room.set()
        heads = (
            self.projector.log.dropped_heads(item.opened)
            if isinstance(item.opened, Verified) and item.opened.subject.kind == "guard"
            else []
        )
        judged = self.projector.take(item.message, item.opened)
        self.ctx.metrics.add(f"messages_{judged.status}")
        for finding in judged.findings:
            self._notice(finding)
        for defect in heads if judged.status == "ok" else ():
            where = defect.split(" stated")[0]
            if where not in self._dropped:
                self._dropped.add(where)
                component = where.split("/")[0]
                self._notice(
                    Finding("DROPPED", defect, item.message.stream, item.message.stream_seq, component, defect=True)
                )

    def _notice(self, finding: Finding) -> None:
        now, key = self.ctx.clock(), (finding.code, finding.component)
        self.ctx.metrics.add("findings")
        if now < self._noticed.get(key, 0) + (DEFECT_EVERY_NS if finding.defect else NOTICE_EVERY_NS):
            return
        self._noticed[key] = now
        if not self._stopping:
            self.ctx.notice(finding.code, f"{finding.stream} {finding.stream_seq}: {finding.text}"[:1000])

    async def _keep_archive(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_S / 4 if self.projector.gathered >= MAX_GATHERED // 2 else FLUSH_S)
            now = self.ctx.clock()
            save = now >= self._save_due
            await self._flush(save=save)
            if save:
                self._save_due = now + int(SAVE_S * 1e9)

    async def _state_checkpoints(self) -> None:
        # However slow the disk is, even where nothing is new: where audit speaks and seals none, some were removed.
        await asyncio.sleep(2 * FLUSH_S)
        while True:
            self._checkpoint()
            await asyncio.sleep(CHECKPOINT_S)

    async def _compact(self) -> None:
        while True:
            await asyncio.sleep(COMPACT_S)
            for stream in STREAMS:
                await asyncio.to_thread(self.archive.compact, stream, self.ctx.clock())
            await asyncio.to_thread(self.archive.sweep, self.ctx.clock())

    async def _flush(self, *, save: bool) -> None:
        async with self._writing:
            state = self.projector.dump() if save else None
            cut = self.projector.cut()
            entry = await asyncio.to_thread(self.projector.write, cut)
            if state is not None:
                await asyncio.to_thread(self.archive.save_state, state)
        self._drained.set()
        if entry is not None:
            self.ctx.metrics.add("rows_archived", sum(s.rows for s in entry.segments))

    def _checkpoint(self) -> None:
        manifest = self.archive.manifest
        for torn in self.projector.log.torn():
            key = (torn.boot, torn.stream, torn.seq)
            if key not in self._torn:
                self._torn.add(key)
                text = f"{torn.component}/{torn.boot.hex()[:8]} ended in the middle of {torn.stream} seq {torn.seq}"
                self.ctx.notice("TORN", f"{text}: index {', '.join(map(str, torn.missing[:16]))} never stored")
        entries = len(manifest.hashes)
        if entries:
            head = bytes.fromhex(manifest.hashes[entries - 1])
            checkpoint = self.ctx.new(Checkpoint, entries=entries, head=head, rows=self.projector.archived)
            self.ctx.publish(
                subject("audit.checkpoint"), checkpoint, *stated(self.projector.archived_totals, self.ctx.new)
            )


def keep_trust_roots(source: Path, pinned: Path, target: Path) -> list[Verifier]:
    """Copy the deployment's trust roots into the archive, where they stay, and give their verifiers.

    Raises `Unverified` or `Malformed` for a trust root that `pinned` does not vouch for, `ArchiveError`
    if the archive holds another one under the same number.
    """
    try:
        key = public_key_bytes(pinned.read_text("ascii").strip())
        count = len(list(source.glob("root-*.note")))
        notes = [(source / f"root-{n}.note").read_text("utf-8") for n in range(1, count + 1)]
        roots = open_trust_roots(notes, key)
        target.mkdir(parents=True, exist_ok=True, mode=0o750)
        for number, note in enumerate(notes, start=1):
            path = target / f"root-{number}.note"
            if not path.exists():
                write_durably(path, note.encode(), 0o640)
            elif path.read_text("utf-8") != note:
                raise ArchiveError("ARCHIVE_TRUST", f"{path} is another trust root than {source / path.name}")
    except UnicodeDecodeError as exc:
        raise Malformed("TRUST_ROOT", f"{source}: not text: {exc}") from exc
    except OSError as exc:
        raise ArchiveError("ARCHIVE_TRUST", f"{exc.filename}: {exc.strerror}") from exc
    return [Verifier(root) for root in roots]


SERVICE = Audit
