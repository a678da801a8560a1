"""Publishing: sealed, durable, self-clocking.

One `ChainPublisher` a stream, one flush in flight each: while a flush is unacknowledged the next one
gathers, so a quiet chain has the latency of one message and a burst batches itself.

- `publish` only queues; its future is done when JetStream has stored the message.
- A flush is sealed once.  Its bytes and message ids are sent again, on whatever connection is current,
  until every message is acknowledged: nothing is lost, and a repeat is dropped by the stream's
  duplicate window, or by every reader (`REPLAY`).
- A broker that dies may have lost what it acknowledged last: a stream that is not synced is in its memory
  for some milliseconds.  So what was stored in the last `KEEP_S` is sent again first on the connection that
  follows a lost one, in its order; what the stream has is dropped as a repeat, and what it has not comes to
  lie where it lay, since such a stream has one writer (`topology`).
- No acknowledgement for `WATCHDOG_S`: the connection is abandoned and the flush sent again on a new
  one; a client cut off from its cluster keeps a healthy socket, so only this moves it.
- `duplicate` in answer to a first attempt means that somebody used our message id: the event would
  vanish.  It is counted, reported and sent again under a fresh id.
- A crash may leave one flush partly stored; whoever waits for its future never acted on it, and audit
  records it as torn.

Message ids are random: a guessed one suppresses the victim's event.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from tallystick.runtime.bus.link import Connection, Link, Outgoing, PubAck, PublishRefused
from tallystick.runtime.bus.log import Log
from tallystick.runtime.bus.metrics import Metrics
from tallystick.runtime.bus.tasks import Tasks, end
from tallystick.schemas.bounds import REPEATABLE_S
from tallystick.schemas.credential import Credential
from tallystick.schemas.errors import Malformed, TallystickError
from tallystick.schemas.event import Event
from tallystick.schemas.registry import MAX_SIZE, encode_events, join_events
from tallystick.schemas.seal import ChainWriter
from tallystick.schemas.security import Head
from tallystick.schemas.subjects import Subject, parse_subject

WATCHDOG_S: Final = 2.0
RETRY_S: Final = 0.2
# Limits of one flush: enough that signing costs nothing per event, little enough that it stays fresh.  Those of a
# message are its kind's (`registry.MAX_SIZE`), where these are not narrower.
MAX_FLUSH_EVENTS: Final = 16_384
MAX_FLUSH_MESSAGES: Final = 512
MAX_MESSAGE_EVENTS: Final = 1_024
MAX_MESSAGE_BYTES: Final = 262_144
# Queued events above which `publish` refuses: the caller must wait for `room`.
MAX_QUEUED: Final = 131_072
LOW_WATER: Final = 32_768
# What is kept of the messages that were stored: none longer than this before the newest, and no more than so many bytes.
KEEP_S: Final = 2.0
KEEP_BYTES: Final = 4 << 20
# A kept message's own weight beside its payload.
_OBJECT_BYTES: Final = 512


class Backpressure(TallystickError):
    """The queue of a stream is full: the caller did not wait for `room`."""


class _Message:
    __slots__ = (
        "attempts", "count", "encoded", "futures", "id", "most", "payload", "seq", "size", "stored_s", "subject",
    )  # fmt: skip

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self.most = MAX_SIZE[parse_subject(subject).kind]
        self.encoded: list[tuple[int, bytes]] = []
        self.count = 0
        self.size = 0
        self.futures: list[asyncio.Future[int]] = []
        self.payload = b""
        self.id = ""
        self.attempts = 0
        self.seq = 0
        self.stored_s = 0.0

    def has_room(self, count: int, size: int) -> bool:
        """Whether so many more events and bytes may stand in it."""
        events, most = self.most
        # The array's header may grow by four bytes.
        return self.count + count <= min(events, MAX_MESSAGE_EVENTS) and self.size + size <= min(
            most - 4, MAX_MESSAGE_BYTES
        )


class ChainPublisher:
    """The chain of one stream.  Owns the chain writer; the link owns session and connection.

    Its task ends by `close`, `kill` or a defect, which fails the link's tasks.
    """

    def __init__(
        self,
        stream: str,
        link: Link,
        *,
        clock: Callable[[], int],
        entropy: Callable[[int], bytes],
        metrics: Metrics,
        log: Log,
    ) -> None:
        self.stream = stream
        self.head: Head | None = None
        self._link = link
        self._clock = clock
        self._entropy = entropy
        self._metrics = metrics
        self._log = log
        self._session = link.session
        self._writer = ChainWriter(self._session.credential, self._session.key, stream)
        self._queue: deque[tuple[str, int, bytes, asyncio.Future[int]]] = deque()
        self._queued = 0
        self._sending: list[_Message] = []
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._closing = False
        self._last_subject = ""
        # Stored a short while ago, oldest first.
        self._kept: deque[_Message] = deque()
        self._kept_bytes = 0
        # Where the last message went.
        self._used: Connection | None = None
        self.on_notice: Callable[[str, str], object] | None = None
        self.on_sealed: Callable[[bytes, Credential], None] | None = None
        self._tasks = Tasks(link.tasks)
        self._task = self._tasks.start(self._run(), f"publish {stream}")
        self._watching = self._tasks.start(self._watch(), f"watch {stream}")

    def publish(self, subject: Subject, events: tuple[Event, ...]) -> asyncio.Future[int]:
        """Queue events for one message's worth of `subject`; the future is the stream sequence once stored.

        Raises `Backpressure` when the queue is full, `Malformed` for events that may not stand there or
        are too large for one message.
        """
        encoded = encode_events(subject.kind, events)
        if len(encoded) > MAX_MESSAGE_BYTES:
            raise Malformed("EVENTS_SIZE", f"{len(encoded)} bytes in one publish, limit {MAX_MESSAGE_BYTES}")
        if self._queued + len(events) > MAX_QUEUED or self._closing:
            why = "closing" if self._closing else f"{self._queued} events queued, limit {MAX_QUEUED}"
            raise Backpressure("BACKPRESSURE", f"{self.stream}: {why}; await room() before publishing")
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        future.add_done_callback(_retrieve)
        self._queue.append((subject.text, len(events), encoded, future))
        self._queued += len(events)
        if self._queued > LOW_WATER:
            self._room.clear()
        self._wake.set()
        return future

    async def room(self) -> None:
        """Wait until the queue has drained below the low-water mark."""
        await self._room.wait()

    async def close(self) -> None:
        """Send what is queued, then the closing statement, and stop.  Idempotent."""
        self._closing = True
        self._wake.set()
        await self._task
        await end(self._watching)

    @property
    def unstored(self) -> int:
        """How many events were published and are not known to be stored."""
        return self._queued + sum(message.count for message in self._sending if not message.seq)

    async def kill(self) -> None:
        """Stop at once, as a crash would."""
        await self._tasks.end()

    def _gather(self) -> list[_Message]:
        messages: dict[str, _Message] = {}
        full: list[_Message] = []
        taken = 0
        while self._queue and taken < MAX_FLUSH_EVENTS and len(messages) + len(full) < MAX_FLUSH_MESSAGES:
            subject, count, encoded, future = self._queue.popleft()
            message = messages.get(subject)
            if message is not None and not message.has_room(count, len(encoded)):
                full.append(messages.pop(subject))
                message = None
            if message is None:
                message = messages[subject] = _Message(subject)
            message.encoded.append((count, encoded))
            message.count += count
            message.size += len(encoded)
            message.futures.append(future)
            taken += count
        self._queued -= taken
        if self._queued <= LOW_WATER:
            self._room.set()
        return [*full, *messages.values()]

    async def _watch(self) -> None:
        """Wake up when the connection is another one: what is missing is missed, also while nothing is published."""
        while True:
            connection = await self._link.connection()
            await connection.superseded.wait()
            self._wake.set()

    async def _run(self) -> None:
        while True:
            if not self._queue:
                if self._closing:
                    break
                self._wake.clear()
                await self._wake.wait()
                if not self._queue and self._kept and not self._closing:
                    await self._send([], await self._link.connection())
                continue
            await self._flush(self._gather(), close=False)
        if self._last_subject:
            closing = _Message(self._last_subject)
            closing.encoded.append((0, encode_events(parse_subject(closing.subject).kind, ())))
            await self._flush([closing], close=True)

    async def _flush(self, messages: list[_Message], *, close: bool) -> None:
        self._sending = messages
        connection, now = await self._usable()
        if connection.session is not self._session:
            self._session = connection.session
            self._writer.renew(self._session.credential, self._session.key)
        parts = [(message.subject, join_events(message.encoded)) for message in messages]
        self._last_subject = parts[-1][0]
        sealed = self._writer.seal(parts, now, close=close)
        if self.on_sealed is not None:
            self.on_sealed(sealed[0][1], self._session.credential)
        for message, (_, payload) in zip(messages, sealed, strict=True):
            message.payload = payload
            message.id = self._entropy(16).hex()
        # Crash here or before the last acknowledgement: the flush may be stored in part.  Nobody acted
        # on it; audit records it as torn when the boot ends.
        await self._send(messages, connection)
        self.head = Head(stream=self.stream, seq=self._writer.seq - 1, hash=self._writer.prev)
        self._metrics.add("flushes")
        self._metrics.add("messages_published", len(messages))
        for message in messages:
            self._metrics.add("events_published", message.count)
            for future in message.futures:
                if not future.done():
                    future.set_result(message.seq)
        self._sending = []
        self._keep(messages)

    async def _usable(self) -> tuple[Connection, int]:
        """A connection whose session holds now, and now.

        A process that was held up may wake after its session's end with the connection still open: what it seals then
        is refused by every reader, and leaves a hole in its chain.
        """
        while True:
            connection, now = await self._link.connection(), self._clock()
            if now < connection.session.credential.expires_at:
                return connection, now
            self._link.abandon(connection, "its session is over")
            # Where our own clock is wrong the next session is over as well: the authority is not to be flooded.
            await asyncio.sleep(RETRY_S)

    async def _send(self, messages: list[_Message], connection: Connection) -> None:
        """Send until everything is stored; first what a lost connection makes doubtful."""
        waiting, careful, lost = messages, False, list[int]()
        while True:
            if self._used is not connection:
                if self._used is not None and self._used.lost.is_set():
                    waiting, careful = [*self._doubtful(), *messages], True
                self._used = connection
            if not waiting:
                break
            # A broker that is just starting refuses the first of many and stores the last: one goes ahead.
            batch = waiting[:1] if careful else waiting
            answers = await self._try(batch, connection)
            lost += [m.seq for m, ack in zip(batch, answers, strict=False) if _was_lost(m, ack)]
            missing = [m for m, ack in itertools.zip_longest(batch, answers) if not self._stored(m, ack)]
            waiting, careful = [*missing, *waiting[len(batch) :]], bool(missing)
            if missing:
                self._metrics.add("messages_retried", len(missing))
                await asyncio.sleep(RETRY_S if connection.alive else 0)
                connection = await self._link.connection()
        if lost:
            self._metrics.add("messages_restored", len(lost))
            text = f"of {self.stream} from {lost[0]} on were lost, and were stored again"
            self._tell("BROKER_LOST", f"{len(lost)} acknowledged messages {text}")

    async def _try(self, messages: list[_Message], connection: Connection) -> Sequence[PubAck | PublishRefused | None]:
        """Send once; what was answered, as far as anything was."""
        for message in messages:
            message.attempts += 1
        answers: Sequence[PubAck | PublishRefused | None] = ()
        try:
            flight = await connection.publish(*(Outgoing(m.subject, m.payload, m.id) for m in messages))
            answers = flight.answers
            async with asyncio.timeout(WATCHDOG_S):
                # A lost connection ends it.
                await flight.done.wait()
        except TimeoutError:
            self._metrics.add("watchdog")
            self._link.abandon(connection, f"no acknowledgement on {self.stream} for {WATCHDOG_S} s")
        except OSError as exc:
            self._link.abandon(connection, f"publish: {type(exc).__name__}")
        return answers

    def _stored(self, message: _Message, ack: PubAck | PublishRefused | None) -> bool:
        if ack is None:
            return False
        if isinstance(ack, PublishRefused):
            self._metrics.add("publishes_refused")
            self._log.error("publish refused, trying again", subject=message.subject, code=ack.code, text=ack.text)
            return False
        if ack.duplicate and message.attempts == 1:
            self._metrics.add("suppressed")
            self._log.error("message id was taken: sending again", subject=message.subject, stream_seq=ack.seq)
            self._tell(
                "MSG_ID_SUPPRESSED", f"an event on {message.subject} met its own message id at the first attempt"
            )
            message.id = self._entropy(16).hex()
            message.attempts = 0
            return False
        message.seq = ack.seq
        return True

    # -- what a broker lost that it had acknowledged ------------------------------------------------

    def _keep(self, messages: list[_Message]) -> None:
        """They are stored: keep them for a while."""
        now = asyncio.get_running_loop().time()
        for message in messages:
            message.stored_s = now
            message.encoded, message.futures = [], []
            self._kept_bytes += len(message.payload) + _OBJECT_BYTES
        self._kept.extend(messages)
        while self._kept_bytes > KEEP_BYTES or self._kept[0].stored_s < now - KEEP_S:
            self._kept_bytes -= len(self._kept.popleft().payload) + _OBJECT_BYTES

    def _doubtful(self) -> list[_Message]:
        """What to send again before anything else, oldest first."""
        known = asyncio.get_running_loop().time() - REPEATABLE_S
        return [message for message in self._kept if message.stored_s > known]

    def _tell(self, code: str, text: str) -> None:
        if self.on_notice is not None:
            self.on_notice(code, text)


def _was_lost(message: _Message, ack: PubAck | PublishRefused | None) -> bool:
    """Whether a message that was acknowledged before was stored anew."""
    return message.seq > 0 and isinstance(ack, PubAck) and not ack.duplicate


def _retrieve(future: asyncio.Future[int]) -> None:
    # Whoever does not wait for durability does not see the failure either; it is logged where it arises.
    if not future.cancelled():
        future.exception()
