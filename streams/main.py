"""The process `streams`: windowed detectors over verified events, their state exact.

- Source: the runtime's verified subscription to ORDERS, from the position after the committed one.  What was read waits
  in order; one event in Faust's channel stands for all that waits when the agent comes to it, since an event of Faust
  costs more than a step.  A handler that waits is the back-pressure: too many waiting, no more is asked for.
- One message is one step: windows, findings and position change together, without an await between them; a commit
  (`store`) takes all three.  A crash anywhere leaves the last commit, and the steps after it are made again.
- An alert is published as soon as it is found.  It is a function of what caused it, so one that is published again
  after a crash is the same event, id and all; what is committed and not known to be durable is published at start.
- Where the state began empty (`rebuilding`), history builds it and causes nothing: only findings of the last
  `FRESH_NS` are published.
- What cannot be detected upon (`TallystickError`) is dead-lettered and passed over; any other exception stops the
  process before its step is committed, and so does a failed publish or commit, or a lease that another worker took.

The process is trusted to raise alerts: an attacker who controls it can at most stay silent or trip breakers.  The
gateway's own throttle and limits do not depend on it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Awaitable
from typing import Final

import msgspec

from tallystick.runtime.bus.reader import Delivery
from tallystick.runtime.bus.received import Received
from tallystick.runtime.deployment.service import Service, ServiceContext
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.errors import Malformed, TallystickError, Unverified
from tallystick.schemas.limits import LimitBook
from tallystick.schemas.orders import Intent
from tallystick.streams.app import TOPIC, LogBridge, StreamsApp
from tallystick.streams.detectors.burst import EMPTY, Bucket, Rules, alert_of, observe
from tallystick.streams.store import MAX_CHANGES, JetStream, Lease, StateStore
from tallystick.streams.table import Key, StateTable

STREAM: Final = "ORDERS"
PATTERNS: Final = ("order.>", "fill.>")
# Messages between reader and agent; the reader waits while there are more.
MAX_WAITING: Final = 128
# Steps in a row before the rest of the process gets its turn.
TURN: Final = 64
# How often state goes to the store: bounds what is read again after a crash.
COMMIT_S: Final = 0.25
# Windows are kept for a look back by people; detection needs two.
EXPIRES_S: Final = 60
# Bounds the changes of one step; a step adds at most one window.
EXPIRE_STEP: Final = 64
# Changes at which the agent commits before its next step, so that no commit exceeds an atomic batch.
FULL: Final = MAX_CHANGES - EXPIRE_STEP - 2
# A finding older than this is history to a worker that began without state.
FRESH_NS: Final = 60 * SECOND


class _Published(msgspec.Struct, frozen=True):
    """The alert of this window is durable."""

    key: Key


class Streams(Service):
    """One worker.  Everything but the channel belongs to the agent; `_lock` makes commits one at a time."""

    def __init__(self, *, rules: Rules | None = None, commit_s: float = COMMIT_S, expires_s: int = EXPIRES_S) -> None:
        """`rules`: other than the operator's limits give; `expires_s`: how long windows stay, in stream time."""
        self._rules_given = rules
        self._commit_s = commit_s
        self._expires_s = expires_s

    async def start(self, ctx: ServiceContext) -> None:
        """Take the lease and the state, and read on from there.  Raises `ConfigError` while another worker is live."""
        self._ctx = ctx
        self._rules = self._rules_given or Rules(LimitBook(ctx.trust.limits))
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stopping = False
        self._waiting: deque[Received | _Published] = deque()
        # Whether an event in the channel stands for them.
        self._called = False
        self._room = asyncio.Event()
        self._room.set()
        self._lock = asyncio.Lock()
        self._pending: dict[Key, asyncio.Future[int]] = {}
        self._bridge = LogBridge(ctx.log)
        self._bridge.attach()
        self._build()

        jetstream = JetStream(ctx.link, ctx.metrics, ctx.log)
        self._store = StateStore(jetstream, TOPIC, ctx.boot, ctx.entropy)
        self._lease = Lease(jetstream, TOPIC, ctx.boot, ctx.clock)
        await self._lease.take()
        await self._store.take_over()
        try:
            keys = await self._store.load(self._restore)
        except (Unverified, Malformed) as exc:
            ctx.notice("STATE_REBUILT", f"the state cannot be used and is rebuilt from {STREAM}: {exc}")
            await self._store.reset()
            self._build()
            keys = 0
        position = self._store.position
        self._applied = self._handed = position.applied
        self._time = position.time
        self._rebuilding = position.rebuilding
        ctx.log.info("state", applied=self._applied, keys=keys, rebuilding=self._rebuilding)

        await self._app.start()
        self._app.flow_control.resume()
        for key, bucket in sorted(self._table.data.items()):
            if bucket.finding is not None and not bucket.finding.published:
                # Found before a crash, not known to be durable: the same event once more.
                self._publish(key, bucket)
        for work in (self._watch(), self._guarded(self._keep_committing()), self._guarded(self._lease.keep())):
            ctx.spawn(work)
        ctx.subscribe(PATTERNS, self._on_message, after=self._applied)
        ctx.at_stop(self._finish)

    async def ready(self) -> None:
        """History is applied and committed; what is found from here on is news."""
        while self._applied < self._handed:
            await asyncio.sleep(0.01)
            self._raise_failure()
        self._rebuilding = False
        await self._commit()

    async def _finish(self) -> None:
        """Commit what is applied and give the lease back; what is still queued is read again next time."""
        self._stopping = True
        await self._commit()
        # What is left has no effect; the reader must not be left waiting.
        self._waiting.clear()
        self._room.set()
        await self._app.stop()
        await self._lease.release()
        self._bridge.detach()

    def _build(self) -> None:
        self._app = StreamsApp("streams", self._fail)
        self._channel = self._app.channel()
        window = self._rules.window_s
        self._table = StateTable(self._app, name="intents", default=lambda: EMPTY, partitions=1, value=Bucket)
        self._table.tumbling(window, expires=self._expires_s)
        self._app.serve(self._channel, self._apply)

    def _restore(self, table: str, key: bytes, value: bytes) -> None:
        if table != self._table.name:
            raise Unverified("STATE", f"unknown table {table[:64]!r}")
        self._table.restore(key, value)

    # -- source ---------------------------------------------------------------------------------

    def _on_message(self, received: Received) -> Awaitable[None] | None:
        self._raise_failure()
        if self._stopping:
            return None
        self._handed = received.stream_seq
        self._waiting.append(received)
        return None if self._called and len(self._waiting) < MAX_WAITING else self._call()

    async def _call(self) -> None:
        """Call the agent to what waits, and wait while that is too much."""
        if not self._called:
            self._called = True
            await self._channel.put(self._app.event(None, self._handed, self._time // SECOND))
        if len(self._waiting) >= MAX_WAITING:
            self._room.clear()
            await self._room.wait()

    # -- agent ----------------------------------------------------------------------------------

    async def _apply(self, event: object) -> None:
        """Everything that waits, in order."""
        for number in itertools.count(1):
            # After a failure or stop nothing has an effect, and the reader is not held up.
            if not self._waiting or self._stopping or self._failed.done():
                break
            value = self._waiting.popleft()
            try:
                if isinstance(value, _Published):
                    self._mark_published(value.key)
                else:
                    # The broker's clock may step back; stream time does not.
                    now = max(self._time, value.stored)
                    if self._pending:
                        await self._durable_before_expiry(now)
                    try:
                        self._step(value, now)
                    except TallystickError as exc:
                        self._dead_letter(value, exc)
                if len(self._table.dirty) >= FULL:
                    await self._commit()
            except Exception as exc:  # noqa: BLE001 - Faust would acknowledge the event and go on: nothing may follow it
                self._fail(exc)
            if number % TURN == 0:
                self._room.set()
                await asyncio.sleep(0)
        self._called = False
        self._room.set()

    def _step(self, received: Received, now: int) -> None:
        """State and position change together: no await in here.  `now` is the stream time."""
        self._time = now
        strategy = received.subject.strategy
        intents: tuple[bytes, ...] = ()
        if received.subject.kind == "order.intent":
            intents = tuple(e.id for e in received.events if isinstance(e, Intent))
        table, seconds = self._table, float(now // SECOND)
        if intents:
            rule = self._rules.of(strategy)
            key = table.window_key(strategy, seconds)
            current = table.data.get(key, EMPTY)
            previous = table.data.get(table.window_key(strategy, seconds - rule.window_s), EMPTY)
            bucket = table[key] = observe(rule, previous, current, now, received.stream_seq, intents)
            if bucket.finding is not None and current.finding is None:
                self._found(key, bucket)
            self._ctx.metrics.add("intents_counted", len(intents))
        if expired := table.expire(seconds, EXPIRE_STEP):
            self._ctx.metrics.add("windows_expired", expired)
        self._applied = received.stream_seq

    def _found(self, key: Key, bucket: Bucket) -> None:
        finding = bucket.finding
        if finding is None:
            return
        self._ctx.metrics.add("findings")
        if self._rebuilding and self._ctx.clock() - finding.at > FRESH_NS:
            self._ctx.log.info("finding of history", strategy=key[0], value=finding.value, limit=finding.limit)
            self._mark_published(key)
            return
        self._publish(key, bucket)

    def _publish(self, key: Key, bucket: Bucket) -> None:
        """Crash before the alert is durable: it is found or taken up again, and published as the same event."""
        if bucket.finding is None:
            return
        to, alert = alert_of(key[0], self._rules.of(key[0]), bucket.finding)
        future = self._ctx.publish(to, alert)
        self._pending[key] = future
        future.add_done_callback(lambda done: self._published(key, done))
        self._ctx.log.warning("alert", code=alert.code, scope=alert.scope, text=alert.text)

    def _published(self, key: Key, future: asyncio.Future[int]) -> None:
        self._pending.pop(key, None)
        if future.cancelled() or self._stopping:
            return
        error = future.exception()
        if error is not None:
            self._fail(error)
            return
        self._ctx.metrics.add("alerts_published")
        # Tables change only inside the agent.
        self._waiting.append(_Published(key))
        self._ctx.spawn(self._call())

    def _mark_published(self, key: Key) -> None:
        bucket = self._table.data.get(key)
        if bucket is not None and bucket.finding is not None:
            finding = msgspec.structs.replace(bucket.finding, published=True)
            self._table[key] = msgspec.structs.replace(bucket, finding=finding)

    async def _durable_before_expiry(self, now: int) -> None:
        """Hold the stream at `now` rather than let a window expire whose alert is still on its way."""
        horizon = float(now // SECOND) - self._expires_s / 2
        while self._pending:
            key, future = next(iter(self._pending.items()))
            if key[1][1] > horizon:
                return
            await asyncio.wait((future, self._failed), return_when=asyncio.FIRST_COMPLETED)
            self._raise_failure()

    def _dead_letter(self, received: Received, error: TallystickError) -> None:
        delivery = Delivery(
            subject=received.subject.text,
            payload=received.verified.payload,
            stream_seq=received.stream_seq,
            stored=received.stored,
            pending=0,
        )
        self._ctx.dead_letter(delivery, STREAM, error)
        self._applied = received.stream_seq

    # -- commit ---------------------------------------------------------------------------------

    async def _keep_committing(self) -> None:
        while True:
            await asyncio.sleep(self._commit_s)
            await self._commit()

    async def _commit(self) -> None:
        async with self._lock:
            self._raise_failure()
            before = self._store.position
            position = msgspec.structs.replace(
                before, applied=self._applied, time=self._time, rebuilding=self._rebuilding
            )
            # No await between the position above and the changes below: they belong to the same step.
            changes = self._table.take()
            if changes or position != before:
                # Crash here or later, before the batch is stored: the steps since the last commit are made again.
                await self._store.commit(position, changes)

    # -- failure --------------------------------------------------------------------------------

    def _fail(self, exc: BaseException) -> None:
        """Nothing is applied or committed from here on; the process ends with `exc`."""
        if not self._failed.done():
            self._failed.set_exception(exc)

    def _raise_failure(self) -> None:
        if self._failed.done():
            self._failed.result()

    async def _guarded(self, work: Awaitable[None]) -> None:
        try:
            await work
        except Exception as exc:
            self._fail(exc)
            raise

    async def _watch(self) -> None:
        await asyncio.shield(self._failed)


SERVICE = Streams
