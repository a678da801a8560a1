"""Reading: a stream's durable, pulled without acknowledgements; the component owns its position.

- `next` is the stream sequence wanted next.  It moves on only after the handler has returned: what a handler
  raises, of whatever type, ends the reading with the message unread.
- The broker's failures end in `_ask`, in which no handler runs: neither is ever taken for the other.
- Each pull period ("generation") has a fresh inbox and starts with RESET to `next`; deliveries of an
  earlier period are dropped, and so is every stream sequence below `next`.
- A gap in the consumer sequence, a lost or replaced connection, silence beyond the idle heartbeat, or a
  refusal by the server ends the period; the next one starts where this one stopped.
- Flow control is the number of messages asked for: a slow handler asks for no more.
- Who lingers asks for one message; when it has come, and what lay behind it, it waits a while before it asks again, so
  that it wakes up once for what was stored meanwhile.

The broker is not trusted: what it delivers is verified by the handler; what it withholds is seen by
audit, which reads whole streams.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import msgspec

from tallystick.runtime.bus.link import Connection, Link
from tallystick.runtime.bus.log import Log
from tallystick.runtime.bus.metrics import Metrics
from tallystick.runtime.bus.tasks import Tasks, end
from tallystick.runtime.bus.wire import Message
from tallystick.schemas.errors import TallystickError

BATCH: Final = 512
# More than two pulls and their heartbeats hold.
MAX_ARRIVED: Final = 4 * BATCH
# Who lingers fetches more than this at once: it is behind.
FEW: Final = 64
# A pull that the broker forgot (its account's token changed) shows only by three missing idle heartbeats.
IDLE_S: Final = 1.0
MISSED: Final = 3
EXPIRES_S: Final = 30.0
REQUEST_TIMEOUT_S: Final = 3.0
RETRY_S: Final = 0.2
# A handler's messages in a row take at most this long before the event loop gets its turn.
BREATH_S: Final = 0.005

T = TypeVar("T")


class Delivery(msgspec.Struct, frozen=True):
    """One stored message as the broker delivered it: nothing of it is verified.

    `stored` is the broker's time in Unix nanoseconds, `pending` how many messages of the durable's
    filter lay behind this one.
    """

    subject: str
    payload: bytes
    stream_seq: int
    stored: int
    pending: int


class ReadRefused(TallystickError):
    """The broker refused a read request."""


class StreamReader:
    """Reads one durable.  `handler` sees every message once, in stream order, one at a time.

    What the handler raises fails the link's tasks.
    """

    def __init__(
        self,
        stream: str,
        durable: str,
        link: Link,
        handler: Callable[[Delivery], Awaitable[None] | None],
        *,
        metrics: Metrics,
        log: Log,
        on_caught_up: Callable[[], None],
        start: int | None = 1,
        tail: int = 0,
        api: str = "$JS.API",
        linger_s: float = 0.0,
        hint: int = 1,
    ) -> None:
        """`start`: the first stream sequence wanted; None: the newest `tail` messages, searched from `hint` on, and what follows.

        `api` is the prefix under which the component's account imports JetStream's services; `linger_s`: see above.
        """
        self.next_service = f"{api}.CONSUMER.MSG.NEXT.{stream}.{durable}"
        self.reset_service = f"{api}.CONSUMER.RESET.{stream}.{durable}"
        self.stream = stream
        self.next = start
        self.tail = tail
        self.hint = hint
        self.linger_s = linger_s
        self._link = link
        self._handler = handler
        self._metrics = metrics
        self._log = log
        self._on_caught_up = on_caught_up
        self._caught_up = False
        # Messages that lay there when reading began and have not been handled yet; what is stored later does not
        # count, or whoever publishes without pause would keep everybody from ever being ready.
        self._behind: int | None = None
        self._breathed = 0.0
        # Held while the handler runs: `stop` cancels only between messages.
        self._lock = asyncio.Lock()
        self._tasks = Tasks(link.tasks)
        self._tasks.start(self._run(), f"read {stream}")

    async def stop(self) -> None:
        """Stop after the message that is being handled.  Idempotent."""
        async with self._lock:
            await self._tasks.end()

    async def kill(self) -> None:
        """Stop at once, as a crash would, whatever the handler is waiting for."""
        await self._tasks.end()

    async def _run(self) -> None:
        while True:
            connection = await self._link.connection()
            period = _Period(self, connection)
            watching = self._tasks.start(period.watch())
            try:
                pending = await self._ask(connection, period.open())
                if pending is not None:
                    self._behind = pending if self._behind is None else min(self._behind, pending)
                    if self._behind == 0:
                        self._catch_up()
                while (delivery := await self._ask(connection, period.next())) is not None:
                    await self._handle(delivery)
            finally:
                await end(watching)
                period.close()

    async def _ask(self, connection: Connection, question: Awaitable[T]) -> T | None:
        """What the broker answers; None when it refuses or fails, after a pause: the period is over."""
        try:
            return await question
        except ReadRefused as exc:
            self._metrics.add("reads_refused")
            self._log.warning("read refused, trying again", stream=self.stream, code=exc.code, text=exc.text)
        except OSError as exc:
            self._log.warning("read interrupted", stream=self.stream, error=f"{type(exc).__name__}: {exc}")
            if connection.alive and isinstance(exc, TimeoutError):
                self._link.abandon(connection, f"no answer to a read of {self.stream}")
        await asyncio.sleep(RETRY_S)
        return None

    async def _handle(self, delivery: Delivery) -> None:
        async with self._lock:
            result = self._handler(delivery)
            if result is not None:
                await result
            self.next = delivery.stream_seq + 1
        if self._behind is not None and not self._caught_up:
            self._behind = 0 if delivery.pending == 0 else self._behind - 1
            if self._behind <= 0:
                self._catch_up()
        # Let the rest of the process run: a queue that is never empty would starve renewal and heartbeat.
        now = asyncio.get_running_loop().time()
        if now - self._breathed > BREATH_S:
            await asyncio.sleep(0)
            self._breathed = asyncio.get_running_loop().time()

    def _catch_up(self) -> None:
        """All that lay there when reading began was handled."""
        if not self._caught_up:
            self._caught_up = True
            self._on_caught_up()

    def gap(self) -> None:
        """Count a delivery that is missing."""
        self._metrics.add("read_gaps")


class _Period:
    """One generation of pulls on one connection.  Only the broker's failures are raised here."""

    def __init__(self, reader: StreamReader, connection: Connection) -> None:
        self._reader = reader
        self._connection = connection
        self._inbox = connection.new_inbox()
        self._subscription = 0
        self._arrived: deque[Message] = deque()
        self._wake = asyncio.Event()
        self._over = False
        self._outstanding = 0
        self._consumer_seq = 0
        # How many messages lay behind the one that was delivered last.
        self._pending = 0
        self._asked = 0.0

    async def watch(self) -> None:
        """End the period when the connection is lost or replaced."""
        await self._connection.superseded.wait()
        self._over = True
        self._wake.set()

    async def open(self) -> int:
        """Reset the durable and subscribe; how many messages are pending.  Raises `ReadRefused`, or the client's errors."""
        reader = self._reader
        if reader.next is None:
            reader.next = await seek_tail(self._connection, reader.reset_service, reader.tail, reader.hint)
        self._pending = pending = await reset(self._connection, reader.reset_service, reader.next)
        self._subscription = self._connection.wire.subscribe(self._inbox, self._on_message)
        return pending

    def close(self) -> None:
        """Give the inbox up."""
        if self._subscription and self._connection.alive:
            self._connection.wire.unsubscribe(self._subscription)

    async def next(self) -> Delivery | None:
        """The next message wanted; None when the period is over.  Raises `ReadRefused`, or the client's errors."""
        while self._subscription and not self._over:
            if self._reader.linger_s and self._outstanding == 0 and not self._arrived:
                await self._linger()
            elif not self._reader.linger_s and self._outstanding <= BATCH // 2:
                self._pull(BATCH)
            elif not self._arrived:
                await self._hear()
            elif (delivery := self._read(self._arrived.popleft())) is not None:
                return delivery
        return None

    async def _linger(self) -> None:
        """Fetch what lies there; where that is little or nothing, wait a while before."""
        if self._pending < FEW:
            rest = self._reader.linger_s - (asyncio.get_running_loop().time() - self._asked)
            with contextlib.suppress(TimeoutError):
                if rest > 0:
                    self._wake.clear()
                    async with asyncio.timeout(rest):
                        await self._wake.wait()
            if self._over:
                return
            self._asked = asyncio.get_running_loop().time()
        self._pull(min(BATCH, max(1, self._pending)))

    def _pull(self, count: int) -> None:
        self._outstanding += count
        request = {"batch": count, "expires": int(EXPIRES_S * 1e9), "idle_heartbeat": int(IDLE_S * 1e9)}
        self._connection.wire.send(self._reader.next_service, json.dumps(request).encode(), self._inbox)

    async def _hear(self) -> None:
        """Wait until something has arrived.  Raises `TimeoutError` after `MISSED` idle heartbeats."""
        self._wake.clear()
        # One by one: after the first, what arrived while this process stood still is there.
        for _ in range(MISSED):
            try:
                async with asyncio.timeout(IDLE_S):
                    await self._wake.wait()
            except TimeoutError:
                continue
            return
        raise TimeoutError(f"nothing heard for {MISSED * IDLE_S} s")

    def _on_message(self, message: Message) -> None:
        if len(self._arrived) > MAX_ARRIVED:
            # The broker sends what nobody asked for.
            self._reader.gap()
            self._over = True
        else:
            self._arrived.append(message)
        self._wake.set()

    def _read(self, message: Message) -> Delivery | None:
        if not message.reply.startswith("$JS.ACK."):
            self._on_status(message)
            return None
        # $JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>, or with
        # <domain>.<account> before <stream> and a token behind (ADR-15 of NATS).
        tokens = message.reply.split(".")
        first = 2 if len(tokens) == 9 else 4
        try:
            stream_seq, consumer_seq, stored, pending = (int(t) for t in tokens[first + 3 : first + 7])
        except ValueError as exc:
            raise ReadRefused("READ_ENDED", f"unreadable delivery {message.reply[:120]!r}") from exc
        if consumer_seq != self._consumer_seq + 1:
            # A delivery was lost, or went to a pull of the period before: start again where we are.
            self._reader.gap()
            self._over = True
            return None
        self._consumer_seq = consumer_seq
        self._outstanding -= 1
        self._pending = pending
        if self._reader.next is None or stream_seq < self._reader.next:
            return None
        return Delivery(
            subject=message.subject,
            payload=message.data,
            stream_seq=stream_seq,
            stored=stored,
            pending=pending,
        )

    def _on_status(self, message: Message) -> None:
        headers = message.headers
        status = headers.get("Status", "")
        if status == "100":  # idle heartbeat
            # Another process of this name, half dead, may hold pulls of the same durable: on a quiet stream its
            # share would show neither as a gap nor as an error.
            delivered = headers.get("Nats-Last-Consumer", "0")
            if delivered.isdigit() and int(delivered) > self._consumer_seq:
                self._reader.gap()
                self._over = True
        elif status in ("404", "408"):  # the pull ran out; what it still owed will not come
            owed = headers.get("Nats-Pending-Messages", "")
            self._outstanding = max(0, self._outstanding - (int(owed) if owed.isdigit() else BATCH))
        else:
            text = f"{status} {headers.get('Description', '')}".strip()
            raise ReadRefused("READ_ENDED", text or "unknown answer to a pull")


async def _request(connection: Connection, subject: str, body: bytes) -> dict[str, Any]:
    message = await connection.request(subject, body, timeout_s=REQUEST_TIMEOUT_S)
    try:
        answer = json.loads(message.data)
    except (ValueError, RecursionError) as exc:
        raise ReadRefused("JS_ANSWER", f"{subject}: not JSON") from exc
    if not isinstance(answer, dict):
        raise ReadRefused("JS_ANSWER", f"{subject}: not an object")
    error = answer.get("error")
    if error is not None:
        raise ReadRefused(f"JS_{error.get('err_code', 0)}", f"{subject}: {error.get('description')}")
    return answer


async def reset(connection: Connection, service: str, seq: int) -> int:
    """Make a durable deliver from stream sequence `seq`; returns how many messages are pending from there.

    `service` is the durable's RESET subject.  Raises `ReadRefused`.
    """
    answer = await _request(connection, service, json.dumps({"seq": seq}).encode())
    try:
        return int(answer["num_pending"])
    except (KeyError, ValueError, TypeError) as exc:
        raise ReadRefused("JS_ANSWER", f"{service} does not say what is pending") from exc


async def seek_tail(connection: Connection, service: str, tail: int, hint: int = 1) -> int:
    """The lowest stream sequence from which at most `tail` messages of the durable's filter are pending.

    The only right that a component has over its durable is RESET, whose answer counts what is pending from a sequence:
    bisecting it finds the end of a stream.  To count from the middle of a long stream the broker reads half of it from the
    disk; near the end, or beyond, next to nothing.  So the search goes out in growing steps from `hint`, where the stream
    ended when it was read last; a wrong one costs time alone.
    """
    low, high, step = 1, max(1, hint), tail + 1
    if await reset(connection, service, high) > tail:
        low, high = high + 1, high + step
        while await reset(connection, service, high) > tail:
            step *= 2
            low, high = high + 1, high + step
    else:
        while low < high:
            earlier = max(1, high - step)
            if await reset(connection, service, earlier) > tail:
                low = earlier + 1
                break
            high, step = earlier, step * 2
    while low < high:
        middle = (low + high) // 2
        if await reset(connection, service, middle) > tail:
            low = middle + 1
        else:
            high = middle
    return high
