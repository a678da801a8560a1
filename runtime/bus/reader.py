"""Reading: a stream's durable, pulled without acknowledgements; the component owns its position.

- `next` is the stream sequence wanted next.  It moves on only after the handler has returned, so a
  handler that fails leaves the message unread.
- Each pull period ("generation") has a fresh inbox and starts with RESET to `next`; deliveries of an
  earlier period are dropped, and so is every stream sequence below `next`.
- A gap in the consumer sequence, a lost or replaced connection, silence beyond the idle heartbeat, or a
  refusal by the server ends the period; the next one starts where this one stopped.
- Flow control is the number of messages asked for: a slow handler asks for no more.

The broker is not trusted: what it delivers is verified by the handler; what it withholds is seen by
audit, which reads whole streams.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
import nats.errors
from nats.aio.msg import Msg

from tallystick.runtime.bus.link import Connection, Link
from tallystick.runtime.bus.metrics import Metrics
from tallystick.runtime.bus.tasks import Tasks
from tallystick.schemas.errors import TallystickError

BATCH: Final = 512
# A pull that the broker forgot (its account's token changed) shows only by three missing idle heartbeats.
IDLE_S: Final = 1.0
EXPIRES_S: Final = 30.0
REQUEST_TIMEOUT_S: Final = 3.0
RETRY_S: Final = 0.2
# A handler's messages in a row take at most this long before the event loop gets its turn.
BREATH_S: Final = 0.005


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
        log: Any,
        on_caught_up: Callable[[], None],
        start: int | None = 1,
        tail: int = 0,
        api: str = "$JS.API",
    ) -> None:
        """`start`: the first stream sequence wanted; None: the newest `tail` messages and what follows.

        `api` is the prefix under which the component's account imports JetStream's services.
        """
        self.next_service = f"{api}.CONSUMER.MSG.NEXT.{stream}.{durable}"
        self.reset_service = f"{api}.CONSUMER.RESET.{stream}.{durable}"
        self.stream = stream
        self.next = start
        self._tail = tail
        self._link = link
        self.handler = handler
        self._metrics = metrics
        self._log = log
        self._on_caught_up = on_caught_up
        self._caught_up = False
        self._breathed = 0.0
        self.lock = asyncio.Lock()
        self.generation = 0
        self._tasks = Tasks(link.tasks)
        self._tasks.start(self._run(), f"read {stream}")

    async def stop(self) -> None:
        """Stop after the message that is being handled.  Idempotent."""
        self.generation += 1
        async with self.lock:
            await self._tasks.end()

    async def kill(self) -> None:
        """Stop at once, as a crash would, whatever the handler is waiting for."""
        self.generation += 1
        await self._tasks.end()

    async def _run(self) -> None:
        while True:
            connection = await self._link.connection()
            self.generation += 1
            try:
                if self.next is None:
                    self.next = await seek_tail(connection, self.reset_service, self._tail)
                period = _Period(self, connection, self.generation, self.next)
                await period.run()
            except ReadRefused as exc:
                self._metrics.add("reads_refused")
                self._log.warning("read refused, trying again", stream=self.stream, code=exc.code, text=exc.text)
                await asyncio.sleep(RETRY_S)
            except (TimeoutError, nats.errors.Error, OSError) as exc:
                self._log.warning("read interrupted", stream=self.stream, error=f"{type(exc).__name__}: {exc}")
                if connection.alive and isinstance(exc, asyncio.TimeoutError | nats.errors.TimeoutError):
                    self._link.abandon(connection, f"no answer to a read of {self.stream}")
                await asyncio.sleep(RETRY_S)

    def count(self, name: str) -> None:
        """Count something in the component's metrics."""
        self._metrics.add(name)

    async def breathe(self) -> None:
        """Let the rest of the process run: a queue that is never empty would starve renewal and heartbeat."""
        now = asyncio.get_running_loop().time()
        if now - self._breathed > BREATH_S:
            await asyncio.sleep(0)
            self._breathed = asyncio.get_running_loop().time()

    def caught_up(self) -> None:
        """Called when nothing lies behind the last message."""
        if not self._caught_up:
            self._caught_up = True
            self._on_caught_up()


class _Period:
    """One generation of pulls on one connection."""

    def __init__(self, reader: StreamReader, connection: Connection, generation: int, first: int) -> None:
        self.reader = reader
        self.first = first
        self.connection = connection
        self.generation = generation
        self.inbox = connection.new_inbox()
        self.outstanding = 0
        self.consumer_seq = 0
        self.heard = asyncio.get_running_loop().time()
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        reader, client = self.reader, self.connection.client
        pending = await reset(self.connection, reader.reset_service, self.first)
        if pending == 0:
            reader.caught_up()
        subscription = await client.subscribe(
            self.inbox, cb=self._on_message, pending_msgs_limit=-1, pending_bytes_limit=-1
        )
        superseded = asyncio.ensure_future(self.connection.superseded.wait())
        try:
            await self._pull()
            while True:
                await asyncio.wait((self.ended, superseded), timeout=IDLE_S, return_when=asyncio.FIRST_COMPLETED)
                if self.ended.done():
                    reason = self.ended.result()
                    if reason:
                        raise ReadRefused("READ_ENDED", reason)
                    return
                if superseded.done():
                    return
                if asyncio.get_running_loop().time() - self.heard > 3 * IDLE_S and not reader.lock.locked():
                    raise TimeoutError(f"nothing heard for {3 * IDLE_S} s")
        finally:
            superseded.cancel()
            if not self.connection.lost.is_set():
                await subscription.unsubscribe()

    async def _pull(self) -> None:
        self.outstanding += BATCH
        request = {"batch": BATCH, "expires": int(EXPIRES_S * 1e9), "idle_heartbeat": int(IDLE_S * 1e9)}
        await self.connection.client.publish(
            self.reader.next_service,
            json.dumps(request).encode(),
            reply=self.inbox,
        )

    def _end(self, reason: str = "") -> None:
        if not self.ended.done():
            self.ended.set_result(reason)

    async def _on_message(self, message: Msg) -> None:
        reader = self.reader
        self.heard = asyncio.get_running_loop().time()
        if self.ended.done() or reader.generation != self.generation:
            return
        if not message.reply.startswith("$JS.ACK."):
            await self._on_status(message)
            return
        # $JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>, or with
        # <domain>.<account> before <stream> and a token behind (ADR-15 of NATS).
        tokens = message.reply.split(".")
        first = 2 if len(tokens) == 9 else 4
        try:
            stream_seq, consumer_seq, stored, pending = (int(t) for t in tokens[first + 3 : first + 7])
        except ValueError:
            self._end(f"unreadable delivery {message.reply[:120]!r}")
            return
        if consumer_seq != self.consumer_seq + 1:
            # A delivery was lost, or went to a pull of the period before: start again where we are.
            reader.count("read_gaps")
            self._end()
            return
        self.consumer_seq = consumer_seq
        self.outstanding -= 1
        async with reader.lock:
            if reader.generation != self.generation or reader.next is None or stream_seq < reader.next:
                return
            try:
                result = reader.handler(
                    Delivery(
                        subject=message.subject,
                        payload=message.data,
                        stream_seq=stream_seq,
                        stored=stored,
                        pending=pending,
                    )
                )
                if result is not None:
                    await result
            except Exception as exc:  # noqa: BLE001 - handed to the task, which ends the process
                # nats-py would log a handler's exception and go on with the next message: the event
                # would be lost.  The position stays before it and the component stops.
                if not self.ended.done():
                    self.ended.set_exception(exc)
                return
            reader.next = stream_seq + 1
        if pending == 0:
            reader.caught_up()
        await reader.breathe()
        if self.outstanding <= BATCH // 2:
            await self._pull()

    async def _on_status(self, message: Msg) -> None:
        headers = message.headers or {}
        status = headers.get("Status", "")
        if status == "100":  # idle heartbeat
            # Another process of this name, half dead, may hold pulls of the same durable: on a quiet stream its
            # share would show neither as a gap nor as an error.
            delivered = headers.get("Nats-Last-Consumer", "0")
            if delivered.isdigit() and int(delivered) > self.consumer_seq:
                self.reader.count("read_gaps")
                self._end()
            return
        if status in ("404", "408"):  # the pull ran out; what it still owed will not come
            self.outstanding = max(0, self.outstanding - int(headers.get("Nats-Pending-Messages", BATCH)))
            if self.outstanding <= BATCH // 2:
                await self._pull()
            return
        self._end(f"{status} {headers.get('Description', '')}".strip() or "unknown answer to a pull")


async def _request(connection: Connection, subject: str, body: bytes) -> dict[str, Any]:
    message = await connection.client.request(subject, body, timeout=REQUEST_TIMEOUT_S)
    try:
        answer = json.loads(message.data)
    except ValueError as exc:
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


async def seek_tail(connection: Connection, service: str, tail: int) -> int:
    """The lowest stream sequence from which at most `tail` messages of the durable's filter are pending.

    The only right that a component has over its durable is RESET, whose answer counts what is pending
    from a sequence: bisecting it finds the end of a stream in some 2 log2(n) requests.
    """
    low, high = 1, 1
    while await reset(connection, service, high) > tail:
        low, high = high + 1, high * 2
    while low < high:
        middle = (low + high) // 2
        if await reset(connection, service, middle) > tail:
            low = middle + 1
        else:
            high = middle
    return high
