"""The bus as one component has it: publish, subscribe, time, log.

- Every message that reaches a handler has passed `seal.Verifier.open` and `ReaderChains.accept`, and its session is
  not revoked.  Whether that session may act now, `admit` says.
- A message that fails goes to `dead.<component>` with code and bytes, and is counted; reading goes on.
- A handler's `TallystickError` dead-letters its message too; any other exception is a defect and stops
  the process before its position moves on, so nothing is skipped.
- Nothing is learned from a message whose session is revoked when it is received, whatever time it claims, nor
  a session list from one that is ahead of this clock.
- History (what was stored before this process caught up) arrives with `live = False`: it builds state
  and must cause nothing.  Stale messages have `live = False` as well, with `refusal` saying why.  Neither is
  handled before SECURITY has been read, which says whose sessions were ever announced.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final, TypeVar

from tallystick import __version__
from tallystick.runtime.bus.admission import Admission
from tallystick.runtime.bus.dead import DeadLetters
from tallystick.runtime.bus.heartbeats import HEARTBEAT_S, Heartbeats
from tallystick.runtime.bus.link import Link
from tallystick.runtime.bus.log import Log
from tallystick.runtime.bus.metrics import Metrics
from tallystick.runtime.bus.publisher import ChainPublisher
from tallystick.runtime.bus.reader import Delivery, ReadRefused, StreamReader, reset
from tallystick.runtime.bus.received import Handler, RawHandler, Received, Start, Subscription, known, stream_of
from tallystick.runtime.bus.snapshots import Binding, Kept, Snapshots, Vault
from tallystick.runtime.bus.stopping import give_up
from tallystick.runtime.bus.tasks import Tasks, end
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.credential import Credential
from tallystick.schemas.errors import Ahead, ConfigError, Stale, TallystickError, Unverified
from tallystick.schemas.event import At, Event
from tallystick.schemas.ids import EventIds
from tallystick.schemas.seal import ReaderChains, Verified, Verifier, require_live
from tallystick.schemas.security import Head, Heartbeat, Notice
from tallystick.schemas.sessions import SessionView
from tallystick.schemas.standing import Standing
from tallystick.schemas.subjects import GUARD, SECURITY, Subject, matches, parse_subject, subject
from tallystick.schemas.trust import TrustRoot

E = TypeVar("E", bound=Event)

# The newest messages of SECURITY that a component reads at start: the session list and the breaker's
# heartbeat come several times a second, so this holds seconds to minutes of them.
SECURITY_TAIL: Final = 64
# Chains of sessions that nobody announced: a thief of a role key mints as many boots as he likes.
MAX_STRANGERS: Final = 1024
# Chains of announced sessions before those of boots that ended are looked for.
MAX_CHAINS: Final = 1024
# What a notice keeps of its evidence: a digest, a name, a short message.
MAX_EVIDENCE: Final = 8_192


class Unpublished(TallystickError):
    """A component had to end before all that it published was known to be stored."""


_ALWAYS: Final = asyncio.Event()
_ALWAYS.set()


class BusContext:
    """See the module docstring.  Built by `process`; tests build it with their own link.

    Owns the publishers, readers, chains and positions; handlers run one at a time per stream.  A failure among
    `tasks`, or those that are made within them, stops the component.  User code gets `component.Context`, which hands
    on what it may use.
    """

    def __init__(
        self,
        *,
        component: str,
        boot: bytes,
        link: Link,
        trust: TrustRoot,
        clock: Callable[[], int],
        entropy: Callable[[int], bytes],
        metrics: Metrics,
        log: Log,
        reads: dict[str, tuple[str, ...]],
        api: str,
        linger_s: float = 0.0,
        vault: Vault | None = None,
    ) -> None:
        """`reads` (stream -> durable's filters), `api` (prefix of JetStream's services), `linger_s`: the topology's; `vault`: snapshots'."""
        self.component = component
        self.boot = boot
        self.link = link
        self.trust = trust
        self.clock = clock
        self.entropy = entropy
        self.metrics = metrics
        self.log = log
        self._admission = Admission(clock, trust)
        self.verifier = Verifier(trust)
        self._ids = EventIds(entropy(8))
        self._reads = reads
        self._api = api
        self._linger_s = linger_s
        self._vault = vault
        self._ends = {} if vault is None else vault.ends()
        self._kept: dict[str, Snapshots] = {}
        self._subscriptions: dict[str, list[Subscription]] = {}
        self._raw: dict[str, tuple[RawHandler, int]] = {}
        self._chains: dict[str, ReaderChains] = {}
        self._strangers: dict[str, ReaderChains] = {}
        self._most_chains: dict[str, int] = {}
        self._applied: dict[str, int] = {}
        self._publishers: dict[str, ChainPublisher] = {}
        self._readers: dict[str, StreamReader] = {}
        self._caught_up: dict[str, asyncio.Event] = {}
        self.tasks = Tasks(link.tasks)
        self._at_stop: list[Callable[[], Awaitable[None] | None]] = []
        self._closing = False
        self._guard = subject("guard", component=component)
        dead = subject("dead", component=component)
        self._letters = DeadLetters(lambda letter: self.publish(dead, letter), self.new, clock, metrics, log)

    # -- events ---------------------------------------------------------------------------------

    def new(self, kind: type[E], *, causes: Sequence[bytes] = (), **fields: Any) -> E:
        """A new event of type `kind`, its id, time and input positions filled in."""
        now = self.clock()
        at = tuple(At(stream=s, seq=q) for s, q in sorted(self._applied.items()))
        return kind(id=self._ids.next(now), ts=now, causes=tuple(causes), at=at, **fields)

    def new_id(self) -> bytes:
        """A fresh event id, for an event that is built elsewhere."""
        return self._ids.next(self.clock())

    @property
    def at(self) -> tuple[At, ...]:
        """The last applied position of each input."""
        return tuple(At(stream=s, seq=q) for s, q in sorted(self._applied.items()))

    # -- publishing -----------------------------------------------------------------------------

    def publish(self, to: Subject | str, *events: Event) -> asyncio.Future[int]:
        """Queue events on a subject; the future is the stream sequence once they are durable.

        Raises `Malformed` for a wrong subject or event, `Unverified` for a subject that is not this
        component's, `Backpressure` when the queue is full (`await room(stream)` first).
        """
        target = parse_subject(to) if isinstance(to, str) else to
        self.trust.require_scope(self.component, target.text)
        return self._publisher(target.stream).publish(target, events)

    async def room(self, stream: str) -> None:
        """Wait until the stream's queue has drained: for those who publish much."""
        await self._publisher(stream).room()

    def notice(self, code: str, text: str, evidence: bytes = b"") -> asyncio.Future[int]:
        """Tell security people what this component saw, on `guard.<component>`."""
        self.metrics.add("notices")
        self.log.warning("notice", code=code, text=text)
        return self.publish(self._guard, self.new(Notice, code=code, text=text, evidence=evidence[:MAX_EVIDENCE]))

    def dead_letter(self, delivery: Delivery, stream: str, error: TallystickError) -> asyncio.Future[int]:
        """Put a message that cannot be processed on `dead.<component>`, with the reason; see `dead`."""
        return self._letters.send(delivery, stream, error)

    def _publisher(self, stream: str) -> ChainPublisher:
        publisher = self._publishers.get(stream)
        if publisher is None:
            publisher = self._publishers[stream] = ChainPublisher(
                stream,
                self.link,
                clock=self.clock,
                entropy=self.entropy,
                metrics=self.metrics,
                log=self.log,
            )
            if stream in self._reads:
                publisher.on_sealed = self.verifier.know
            publisher.on_notice = lambda code, text: self.spawn(self._pass_on(code, text))
        return publisher

    async def _pass_on(self, code: str, text: str) -> None:
        await self.notice(code, text)

    # -- subscribing ----------------------------------------------------------------------------

    def subscribe(
        self,
        patterns: str | Sequence[str],
        handler: Handler,
        start: Start = "new",
        after: int | None = None,
        newest_s: int | None = None,
    ) -> None:
        """Call `handler` with every verified message that matches; takes effect when `start` of the component returns.

        `start`: "new" from now on; "all" from the beginning of the stream; a number: the newest so
        many messages of the stream's durable first.  `after`, in its place: everything beyond this stream
        sequence, for those who keep their own position.  `newest_s`: of history, what the broker stored earlier than so
        many seconds ago is passed over unread: for what old age alone makes worthless.  Raises `ConfigError` for a
        pattern that the topology does not let this component read.
        """
        wanted = (patterns,) if isinstance(patterns, str) else tuple(patterns)
        for pattern in wanted:
            stream = stream_of(pattern)
            if stream not in self._reads:
                raise ConfigError(
                    "READ_SCOPE", f"{self.component} reads nothing of {stream}: {pattern} (topology.toml)"
                )
            entry = Subscription(
                pattern=pattern,
                handler=handler,
                start=start if after is None else "all",
                after=after or 0,
                newest_ns=None if newest_s is None else newest_s * SECOND,
            )
            self._subscriptions.setdefault(stream, []).append(entry)

    def subscribe_raw(self, stream: str, handler: RawHandler, after_seq: int = 0) -> None:
        """Call `handler` with every delivery of a stream, unverified: for audit, which keeps the bad ones too."""
        if stream not in self._reads:
            raise ConfigError("READ_SCOPE", f"{self.component} reads nothing of {stream} (topology.toml)")
        self._raw[stream] = (handler, after_seq)

    def keep(self, stream: str, kept: Kept) -> None:
        """Keep in snapshots what `kept` builds from a stream: the next start reads what came since, after `resume`."""
        if self._vault is not None:
            name, filters = self.trust.deployment, tuple(self._reads[stream])
            made = Binding(name, self.component, stream, filters, self.trust.digest, __version__, kept.version)
            self._kept[stream] = Snapshots(
                kept, self._vault, made, clock=self.clock, within=self.tasks, metrics=self.metrics, log=self.log
            )

    async def resume(self) -> None:
        """Take up what is kept in snapshots, where it holds; called between the component's `start` and `open`."""
        for stream, kept in self._kept.items():
            await kept.resume(functools.partial(self._reader, stream), self.notice)
            if kept.position:
                self._applied[stream] = kept.position

    async def beyond(self, stream: str, seq: int) -> int | None:
        """How many messages the broker holds of a stream beyond sequence `seq`; None while it does not say.

        For who reads whole streams alone: nobody else may ask.
        """
        connection = await self.link.connection()
        try:
            return await reset(connection, f"{self._api}.CONSUMER.RESET.{stream}.{self.component}-end", seq + 1)
        except (ReadRefused, OSError) as exc:
            self.metrics.add("ends_unknown")
            self.log.warning("end of a stream unknown", stream=stream, error=f"{type(exc).__name__}: {exc}")
            return None

    async def caught_up(self, *streams: str) -> None:
        """Wait until everything stored before now of the given streams (default: all read) was handled."""
        for stream in streams or tuple(self._caught_up):
            await self._caught_up[stream].wait()

    def position(self, stream: str) -> int:
        """The last applied sequence of a stream (0: none)."""
        return self._applied.get(stream, 0)

    # -- who may act now ------------------------------------------------------------------------

    @property
    def sessions(self) -> SessionView:
        """The sessions that the authority listed and announced."""
        return self._admission.sessions

    async def admit(self, received: Received) -> Standing:
        """What the session that sealed the message may do now; see `admission`.

        Raises `Unverified` for a session that is revoked, not listed or was never announced: no effect at all.
        """
        return await self._admission.standing(received)

    async def require_listed(self, credential: Credential, stream: str) -> None:
        """The same for what did not come by the bus: raise `Unverified` unless the session is listed now."""
        await self._admission.require_listed(credential, stream)

    # -- life -----------------------------------------------------------------------------------

    def open(self) -> None:
        """Start the readers for what was subscribed, and the heartbeat."""
        if SECURITY in self._reads and SECURITY not in self._raw:
            self._subscriptions.setdefault(SECURITY, [])
        self._caught_up = {stream: asyncio.Event() for stream in (*self._subscriptions, *self._raw)}
        for stream, subscriptions in self._subscriptions.items():
            starts = [s.start for s in subscriptions]
            first = 1 + min((s.after for s in subscriptions if s.start == "all"), default=-1)
            if (kept := self._kept.get(stream)) is not None:
                first, self._strangers[stream] = max(first, kept.position + 1), kept.strangers
            tail = max([s for s in starts if isinstance(s, int)], default=0)
            if stream == SECURITY:
                tail = max(tail, SECURITY_TAIL)
            self._chains[stream] = ReaderChains() if kept is None else kept.chains
            self._open_reader(stream, self._handler(stream), first or None, tail)
        for stream, (handler, after) in self._raw.items():
            self._open_reader(stream, self._counted(stream, handler), after + 1, 0)
        self.spawn(self._heartbeat())
        if self._vault is not None:
            self.spawn(self._vault.keep_ends(self._applied, self.log))

    def _open_reader(self, stream: str, handler: RawHandler, start: int | None, tail: int) -> None:
        self._readers[stream] = self._reader(stream, handler, self._caught_up[stream].set, start, tail)

    def _reader(
        self, stream: str, handler: RawHandler, caught_up: Callable[[], None], start: int | None, tail: int = 0
    ) -> StreamReader:
        return StreamReader(
            stream,
            self.component,
            self.link,
            handler,
            metrics=self.metrics,
            log=self.log,
            on_caught_up=caught_up,
            start=start,
            tail=tail,
            api=self._api,
            linger_s=self._linger_s,
            hint=self._ends.get(stream, 1),
        )

    def at_stop(self, release: Callable[[], Awaitable[None] | None]) -> None:
        """Call `release` before the readers stop and the chains are closed; the last one named first.

        Named at once where something is acquired, so that it is let go whatever became of the start.
        """
        self._at_stop.append(release)

    async def release(self) -> None:
        """Let go what was acquired."""
        while self._at_stop:
            released = self._at_stop.pop()()
            if released is not None:
                await released

    async def close(self) -> None:
        """Let go what was acquired, stop reading, send what is queued, close each chain, log out.

        Raises `Unpublished`, when all is closed, where the broker did not take what was queued: it was silent, or the
        whole took `stopping.LONGEST_STOP_S`.
        """
        self._closing = True
        finishing = asyncio.create_task(self._finish(), name="finish")
        cut = await give_up(self.link, finishing)
        if cut:
            await end(finishing)
            await self.tasks.end()
            for reader in self._readers.values():
                await reader.kill()
            for kept in self._kept.values():
                await kept.kill()
            for publisher in self._publishers.values():
                await publisher.kill()
        await self.link.stop()
        left = {stream: p.unstored for stream, p in sorted(self._publishers.items()) if p.unstored}
        if left:
            counts = ", ".join(f"{stream} {count}" for stream, count in left.items())
            raise Unpublished(
                "UNPUBLISHED", f"{sum(left.values())} events are not known to be stored ({counts}): {cut}"
            )
        if cut:
            self.log.warning("stopped short", text=cut)
        else:
            finishing.result()

    async def _finish(self) -> None:
        sound = not self.tasks.failure.future.done()
        if sound:  # what failed is let go by the end of its process alone
            await self.release()
        await self.tasks.end()
        for reader in self._readers.values():
            await reader.stop()
        for kept in self._kept.values() if sound else ():  # a handler that failed has left a message half applied
            await kept.close()
        # GUARD last: the others may still have something to report.
        for publisher in sorted(self._publishers.values(), key=lambda p: p.stream == GUARD):
            await publisher.close()

    async def failed(self) -> None:
        """Wait for the first failure of link, reader, publisher or background task, and raise it."""
        await self.tasks.failed()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run background work whose failure stops the component."""
        return self.tasks.start(work)

    async def _heartbeat(self) -> None:
        beats, loop = Heartbeats(), asyncio.get_running_loop()
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            if beats.due(heads := self.heads(), loop.time()):
                self.publish(self._guard, self.new(Heartbeat, heads=heads))
            if beyond := self._letters.report():
                self.notice("DEAD_LETTERS_DROPPED", beyond)

    def heads(self) -> tuple[Head, ...]:
        """The newest acknowledged statement of each chain of this boot."""
        return tuple(p.head for _, p in sorted(self._publishers.items()) if p.head is not None)

    # -- the way of a message -------------------------------------------------------------------

    def _announced(self, verified: Verified, delivery: Delivery) -> bool:
        try:
            self.sessions.require_announced(verified.credential, max(verified.statement.time, delivery.stored))
        except Unverified:
            return verified.subject.kind == "cred"
        return True

    def _counted(self, stream: str, handler: RawHandler) -> RawHandler:
        async def handle(delivery: Delivery) -> None:
            result = handler(delivery)
            if result is not None:
                await result
            self._applied[stream] = delivery.stream_seq

        return handle

    def _passed(self, stream: str, delivery: Delivery) -> None:
        self._applied[stream] = delivery.stream_seq
        if (kept := self._kept.get(stream)) is not None:
            kept.passed(delivery)

    def _handler(self, stream: str) -> RawHandler:
        chains, strangers = self._chains[stream], self._strangers.setdefault(stream, ReaderChains())
        subscriptions = self._subscriptions[stream]
        caught_up = self._caught_up[stream]
        first = self._caught_up.get(SECURITY) if stream != SECURITY else None
        security = first or _ALWAYS

        async def handle(delivery: Delivery) -> None:
            while not security.is_set():
                if self._closing:
                    return
                await asyncio.sleep(0.005)
            now = self.clock()
            history = not caught_up.is_set()
            wanted = [
                entry
                for entry in subscriptions
                if matches(entry.pattern, delivery.subject) and entry.wants(delivery, history, now)
            ]
            if not wanted and history and stream != SECURITY and known(subscriptions, delivery.subject):
                # What nobody wants of history proves nothing: it is neither opened nor told of.
                self.metrics.add("history_skipped")
                self._passed(stream, delivery)
                return
            try:
                verified = self.verifier.open(delivery.subject, stream, delivery.payload)
                live, refusal = not history, None
                try:
                    # Before it can count as merely old: a thief dates his messages as he likes.
                    self.sessions.require_not_revoked(verified.credential)
                    require_live(verified, now)
                except Unverified as exc:
                    # Old is history; everything else wrong with a message received now has no effect.
                    if live and not isinstance(exc, Stale):
                        raise
                    if isinstance(exc, Ahead) and verified.subject.kind == "cred":
                        raise
                    live, refusal = False, exc
                # Only now is anything learned from it: positions that a refused message names are not used up.
                # Who was never announced has chains apart: one that claims another's boot uses up nothing of it.
                if self._announced(verified, delivery):
                    chains.accept(verified)
                    if len(chains) > self._most_chains.get(stream, MAX_CHAINS):
                        # What a boot that ended says now is refused for that; only the living need their place.
                        chains.forget(lambda _, boot: not self.sessions.is_dead(boot))
                        self._most_chains[stream] = max(MAX_CHAINS, 2 * len(chains))
                else:
                    if len(strangers) >= MAX_STRANGERS:
                        strangers.forget(lambda *_: False)
                    strangers.accept(verified)
                self._admission.learn(verified)
                received = Received(
                    verified=verified,
                    stream_seq=delivery.stream_seq,
                    stored=delivery.stored,
                    received=now,
                    live=live,
                    refusal=refusal,
                )
                for entry in wanted:
                    result = entry.handler(received)
                    if result is not None:
                        await result
                self.metrics.add("messages_received")
                self.metrics.add("events_received", len(verified.events))
            except TallystickError as exc:
                self.dead_letter(delivery, stream, exc)
            self._passed(stream, delivery)

        return handle
