"""The audit process: reads every stream whole, verifies, archives, and states checkpoints.

- Messages of all streams are put into one log; `merge` says in which order.  How far each stream goes is asked every
  `ASK_S`; while the broker does not say, or does not bring what it holds, nothing is logged that depends on it, and
  after `HELD_BACK_S` a notice tells.
- At most `FLUSH_S` after a message was logged it is archived.  The archive's manifest is the only record
  of progress: a crash at any point means that reading goes on after the last durable flush.
- A finding becomes a notice on `guard.audit`, one for each code and component in a while.
- Every `CHECKPOINT_S` the manifest's head, and what each stream comes to, is sealed into `audit.checkpoint`: from
  then on nobody without audit's session key can rewrite what stands before it.
- An archive that cannot be written stops the process: halt rather than drop an entry.

- At a stop what the broker holds then is logged and archived; the rest is read at the next start.

Audit is not trusted with the truth: an attacker who controls it can leave messages out or stop archiving,
which holes, heads and the streams themselves show; it can forge no event of another component.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from tallystick.components.audit.merge import Merge, Queued, Source
from tallystick.components.audit.projector import Projector, Stored
from tallystick.record.archive import Archive
from tallystick.record.chains import Finding
from tallystick.record.files import ArchiveError
from tallystick.record.manifest import TRUST
from tallystick.record.totals import stated
from tallystick.runtime.bus.reader import Delivery
from tallystick.runtime.deployment.service import Service, ServiceContext
from tallystick.runtime.durable import write_durably
from tallystick.schemas.errors import Malformed
from tallystick.schemas.seal import Verified, Verifier
from tallystick.schemas.security import Checkpoint
from tallystick.schemas.subjects import STREAMS, subject
from tallystick.schemas.trust import open_trust_roots, public_key_bytes

ASK_S: Final = 0.4
PAUSE_S: Final = 0.02
# A message that waits longer for what the broker holds: nothing is lost, but people should know.
HELD_BACK_S: Final = 10.0
# How long a stop waits for the streams' ends; a broker that is silent ends it sooner.
CATCH_UP_S: Final = 6.0
FLUSH_S: Final = 0.8
CHECKPOINT_S: Final = 5.0
COMPACT_S: Final = 10.0
SAVE_S: Final = 30.0
# What is gathered beyond this is written at once, and the log waits: memory stays flat whatever is sent, and while the
# disk is slow.
MAX_GATHERED: Final = 64 << 20
# Messages logged between two looks at the rest of the process.
BURST: Final = 256
# One notice for each code and component in this time; `verify` shows every single finding.
NOTICE_EVERY_NS: Final = 10_000_000_000
DEFECT_EVERY_NS: Final = 1_000_000_000


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
        ctx.log.info("archive open", entries=self.archive.manifest.count, rows=self.projector.archived)
        self._sources = {stream: Source(self.projector.positions[stream]) for stream in STREAMS}
        self._room = {stream: asyncio.Event() for stream in STREAMS}
        self._merge = Merge(self._sources, self.projector.awaits)
        self._wake = asyncio.Event()
        self._here = asyncio.Event()
        self._full = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()
        self._writing = asyncio.Lock()
        self._ending = self._stopping = False
        self._noticed: dict[tuple[str, str], int] = {}
        self._dropped: set[str] = set()
        self._torn: set[tuple[bytes, str, int]] = {(t.boot, t.stream, t.seq) for t in self.projector.log.torn()}
        self._save_due = ctx.clock()
        for stream in STREAMS:
            ctx.subscribe_raw(stream, self._reader(stream), self.projector.positions[stream])
        ctx.spawn(self._ask_ends())
        ctx.spawn(self._log_messages())
        ctx.spawn(self._keep_archive())
        ctx.spawn(self._state_checkpoints())
        ctx.spawn(self._compact())
        ctx.at_stop(self._finish)

    async def _finish(self) -> None:
        """Log and archive what is stored now; what comes later is read at the next start, or from the next audit."""
        self._ending = True
        await self._flush(save=False)  # should the broker be silent, this much is done
        asked = asyncio.get_running_loop().time()
        with suppress(TimeoutError):
            async with asyncio.timeout(CATCH_UP_S):
                while any(source.as_of <= asked for source in self._sources.values()):
                    self._here.set()
                    await asyncio.sleep(PAUSE_S)
        self._stopping = True
        for room in self._room.values():
            room.set()
        while (ready := self._merge.next()) is not None:
            self._take(ready)
            if self.projector.weight >= MAX_GATHERED:
                await self._flush(save=False)
        await self._flush(save=True)
        self.archive.close()

    def _reader(self, stream: str) -> Callable[[Delivery], Awaitable[None]]:
        source, room = self._sources[stream], self._room[stream]

        async def handle(delivery: Delivery) -> None:
            if self._stopping:
                return  # not logged, so read again at the next start
            # A subject that is no text would not fit a row; it is refused under what can be shown of it.
            shown = delivery.subject.encode("utf-8", "backslashreplace").decode()
            message = Stored(stream, delivery.stream_seq, shown, delivery.payload, delivery.stored)
            opened = self.projector.open(message)
            source.put(Queued(message, opened, asyncio.get_running_loop().time()))
            self._wake.set()
            self._here.set()
            if source.full:
                room.clear()
                await room.wait()

        return handle

    async def _ask_ends(self) -> None:
        """Ask how far streams go for as long as something waits for that."""
        loop = asyncio.get_running_loop()
        while True:
            await self._here.wait()
            self._here.clear()
            unknown = STREAMS if self._ending else self._merge.unknown()
            sources = [self._sources[stream] for stream in unknown]
            asked, here = loop.time(), [source.count for source in sources]
            held = await asyncio.gather(
                *(self.ctx.beyond(stream, source.read) for stream, source in zip(unknown, sources, strict=True))
            )
            for source, count, more in zip(sources, here, held, strict=True):
                if more is not None:
                    source.asked(asked, count + more)
            self._wake.set()
            self._tell_what_waits(loop.time())
            # Readers that wait for room wait for the answer.
            crowded = any(source.full for source in self._sources.values())
            await asyncio.sleep(PAUSE_S if crowded or self._ending else ASK_S)
            if any(source.queue for source in self._sources.values()):
                self._here.set()

    def _tell_what_waits(self, now: float) -> None:
        waiting = [s for s in self._sources.values() if s.queue and now - s.queue[0].arrived > HELD_BACK_S]
        unknown = self._merge.unknown() if waiting else ()
        if unknown:
            message = min(waiting, key=lambda s: s.queue[0].message.stored).queue[0].message
            text = f"waits for what the broker holds of {', '.join(unknown)} and does not bring"
            self._notice(Finding("HELD_BACK", text, message.stream, message.stream_seq, "", defect=False))

    async def _log_messages(self) -> None:
        while True:
            logged = 0
            while logged < BURST and self.projector.weight < MAX_GATHERED and (source := self._merge.next()):
                self._take(source)
                logged += 1
            if self.projector.weight >= MAX_GATHERED:
                self._drained.clear()
                self._full.set()
                await self._drained.wait()
            elif logged:
                await asyncio.sleep(0)
            else:
                self._wake.clear()
                await self._wake.wait()

    def _take(self, source: Source) -> None:
        item = source.take()
        if source.roomy:
            self._room[item.message.stream].set()
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
            with suppress(TimeoutError):
                async with asyncio.timeout(FLUSH_S):
                    await self._full.wait()
            self._full.clear()
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
        entries = manifest.count
        if entries:
            head = bytes.fromhex(manifest.hash_of(entries))
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
