"""The broker's client protocol, as far as a component needs it (NATS client protocol, docs.nats.io).

- One login over TLS with a session's token; never reconnects (`link` does).
- What arrives is handed on in the order and in the turn of the event loop in which it arrived: no task and no queue
  between the socket and the reader.  Callbacks return at once and raise nothing.
- What is written is written at once; `drained` waits while the socket takes no more.
- A peer that says nothing for `PING_S` x `MAX_UNANSWERED` is gone.

The broker is not trusted: a line or message beyond its limit, or that cannot be read, ends the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from tallystick.runtime.writing import at_once

PING_S: Final = 5.0
MAX_UNANSWERED: Final = 2
CLOSE_S: Final = 0.3
MAX_LINE: Final = 65_536
MAX_MESSAGE: Final = 8 << 20
# Unwritten bytes above which a writer waits.
HIGH_WATER: Final = 1 << 20
READ_BYTES: Final = 1 << 16

_MSG, _HMSG = ord("M"), ord("H")
_HEADER: Final = b"NATS/1.0"
_SPEAKABLE: Final = re.compile(r"[^\s\x00-\x1f\x7f]+")
_VALUE: Final = re.compile(r"[^\x00-\x1f\x7f]*")

Callback = Callable[["Message"], None]


class WireError(ConnectionError):
    """The connection broke, or the broker does not speak the protocol."""


class BrokerError(WireError):
    """The broker said `-ERR`."""


class NoResponders(WireError):
    """Nobody serves the subject of a request."""


class Message:
    """What arrived on a subscription: nothing of it is verified."""

    __slots__ = ("_head", "data", "reply", "subject")

    def __init__(self, subject: str, reply: str, head: bytes, data: bytes) -> None:
        self.subject = subject
        self.reply = reply
        self.data = data
        self._head = head

    @property
    def headers(self) -> dict[str, str]:
        """The headers; a status line is `Status` and `Description`.  What cannot be read is left out."""
        if not self._head:
            return {}
        first, *lines = self._head.decode("utf-8", "replace").split("\r\n")
        status, _, description = first[len(_HEADER) :].strip().partition(" ")
        headers = {"Status": status, "Description": description} if status else {}
        for line in lines:
            name, colon, value = line.partition(":")
            if colon:
                headers[name.strip()] = value.strip()
        return headers


class _Info(msgspec.Struct):
    nonce: str = ""


_info_decoder = msgspec.json.Decoder(_Info)


def frame(subject: str, payload: bytes, reply: str = "", headers: Mapping[str, str] | None = None) -> bytes:
    """One message as it is written.  Raises `WireError` for a subject or header that would read as something else."""
    if not _SPEAKABLE.fullmatch(subject) or (reply and not _SPEAKABLE.fullmatch(reply)):
        raise WireError(f"no subject: {subject[:120]!r} {reply[:120]!r}")
    to = f"{subject} {reply}" if reply else subject
    if not headers:
        return b"PUB %b %d\r\n%b\r\n" % (to.encode(), len(payload), payload)
    for name, value in headers.items():
        if not _SPEAKABLE.fullmatch(name) or ":" in name or not _VALUE.fullmatch(value):
            raise WireError(f"no header: {name[:120]!r}")
    head = "".join(("NATS/1.0\r\n", *(f"{name}: {value}\r\n" for name, value in headers.items()), "\r\n")).encode()
    return b"HPUB %b %d %d\r\n%b%b\r\n" % (to.encode(), len(head), len(head) + len(payload), head, payload)


class Wire(asyncio.BufferedProtocol):
    """One connection.  `on_error` hears what the broker refuses on it, `on_lost` once that it is gone."""

    def __init__(self, on_error: Callable[[BrokerError], None], on_lost: Callable[[], None]) -> None:
        """For `connect`."""
        self._on_error = on_error
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._transport: Any = None
        self._info: asyncio.Future[_Info] = self._loop.create_future()
        self._logged_in: asyncio.Future[None] = self._loop.create_future()
        self._gone = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._cause: WireError | None = None
        self._pongs: deque[asyncio.Future[None] | None] = deque()
        # Pings since anything was heard.
        self._silent = 0
        self._callbacks: dict[int, Callback] = {}
        self._subscribed = 0
        # What has arrived of a line or message, and how many bytes make it whole.
        self._parts: list[bytes] = []
        self._held = 0
        self._need = 0
        # A buffer of its own: without one TLS asks the system for 256 KiB at each read, and gives them back.
        self._buffer = memoryview(bytearray(READ_BYTES))

    # -- life -----------------------------------------------------------------------------------

    @classmethod
    async def connect(
        cls,
        url: str,
        *,
        tls: ssl.SSLContext,
        name: str,
        token: str,
        sign: Callable[[str], bytes],
        timeout_s: float,
        on_error: Callable[[BrokerError], None],
        on_lost: Callable[[], None],
    ) -> Wire:
        """Log in to `url` (tls://host:port) with `token`, the user's JWT; `sign` answers the broker's nonce, in base64.

        Raises `BrokerError`, `WireError`, `OSError`, `TimeoutError`, or what `sign` raises.
        """
        where = urlsplit(url)
        wire = cls(on_error, on_lost)
        try:
            async with asyncio.timeout(timeout_s):
                host = where.hostname or ""
                raw, _ = await wire._loop.create_connection(asyncio.Protocol, host, where.port or 4222)
                at_once(raw)
                wire._transport = raw
                wire._transport = await wire._loop.start_tls(raw, wire, tls, server_hostname=host)
                wire._transport.set_write_buffer_limits(high=HIGH_WATER)
                nonce = (await wire._info).nonce
                login = {
                    "verbose": False,
                    "pedantic": False,
                    "lang": "tallystick",
                    "version": "1",
                    "protocol": 1,
                    "headers": True,
                    "no_responders": True,
                    "echo": True,
                    "tls_required": True,
                    "name": name,
                    "jwt": token,
                    "sig": sign(nonce).decode("ascii"),
                }
                wire._pongs.append(wire._logged_in)
                wire.write(b"CONNECT %b\r\nPING\r\n" % msgspec.json.encode(login))
                await wire._logged_in
        except BaseException:
            wire._abort()
            raise
        return wire

    async def close(self) -> None:
        """Close, in `CLOSE_S` at most; idempotent."""
        if self._transport is None or self._gone.is_set():
            return
        # At a second close asyncio's TLS forgets what it writes to.
        if not self._transport.is_closing():
            self._transport.close()
        # TLS waits half a minute for a peer that does not answer its goodbye.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self._gone.wait()
                return
        self._abort()

    @property
    def lost(self) -> bool:
        """Whether the connection is gone."""
        return self._gone.is_set()

    @property
    def _open(self) -> bool:
        """Whether it takes what is written; one that closes does not, and is gone soon."""
        return not (self._gone.is_set() or self._transport is None or self._transport.is_closing())

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
        self._end(None)

    def _fail(self, cause: WireError) -> None:
        self._cause = self._cause or cause
        self._abort()

    def _end(self, exc: Exception | None) -> None:
        if self._gone.is_set():
            return
        self._gone.set()
        self._writable.set()
        cause = self._cause or WireError(f"connection lost: {exc or 'closed'}")
        for future in (self._info, self._logged_in, *self._pongs):
            if future is not None and not future.done():
                future.set_exception(cause)
                future.exception()  # who does not wait for it is told nothing
        self._pongs.clear()
        self._callbacks.clear()
        self._on_lost()

    async def keep_alive(self) -> None:
        """Ask whether the broker is there, until the connection is gone; whoever connects runs this beside."""
        while self._open:
            if self._silent >= MAX_UNANSWERED:
                self._fail(WireError(f"nothing heard for {self._silent * PING_S:.0f} s"))
                return
            self._silent += 1
            self._pongs.append(None)
            self.write(b"PING\r\n")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PING_S):
                    await self._gone.wait()

    # -- writing --------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Send frames.  Raises `WireError` when the connection is gone."""
        if not self._open:
            raise self._cause or WireError("connection closed")
        self._transport.write(data)

    async def drained(self) -> None:
        """Wait until the socket takes more.  A connection that breaks meanwhile shows at the next `write`."""
        await self._writable.wait()

    def send(self, subject: str, payload: bytes, reply: str = "", headers: Mapping[str, str] | None = None) -> None:
        """Send one message.  Raises `WireError`."""
        self.write(frame(subject, payload, reply, headers))

    def subscribe(self, subject: str, callback: Callback) -> int:
        """Hand what arrives on `subject` to `callback`; the number is for `unsubscribe`.  Raises `WireError`."""
        self._subscribed += 1
        self._callbacks[self._subscribed] = callback
        if not _SPEAKABLE.fullmatch(subject):
            raise WireError(f"no subject: {subject[:120]!r}")
        self.write(b"SUB %b %d\r\n" % (subject.encode(), self._subscribed))
        return self._subscribed

    def unsubscribe(self, number: int) -> None:
        """Hear no more of it; idempotent, also when the connection is gone."""
        if self._callbacks.pop(number, None) is not None and self._open:
            self.write(b"UNSUB %d\r\n" % number)

    async def flush(self) -> None:
        """Wait until the broker has taken all that was sent.  Raises `WireError`."""
        future: asyncio.Future[None] = self._loop.create_future()
        self.write(b"PING\r\n")
        self._pongs.append(future)
        await future

    # -- reading: asyncio.BufferedProtocol ------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Of `asyncio.BufferedProtocol`."""
        # `connect` has the transport already.

    def connection_lost(self, exc: Exception | None) -> None:
        """Of `asyncio.BufferedProtocol`."""
        self._end(exc)

    def pause_writing(self) -> None:
        """Of `asyncio.BufferedProtocol`."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Of `asyncio.BufferedProtocol`."""
        self._writable.set()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Of `asyncio.BufferedProtocol`."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Of `asyncio.BufferedProtocol`."""
        self.take(bytes(self._buffer[:nbytes]))

    def take(self, data: bytes) -> None:
        """Read what has arrived, in whatever pieces."""
        self._silent = 0
        if self._parts:
            self._parts.append(data)
            self._held += len(data)
            if self._held < self._need:
                return
            data = b"".join(self._parts)
            self._parts = []
        try:
            done, self._need = self._read(data)
        except (ValueError, IndexError, OSError, msgspec.MsgspecError) as exc:
            self._fail(WireError(f"the broker does not speak the protocol: {exc}"))
            return
        if done < len(data):
            self._parts = [data[done:]]
            self._held = len(data) - done

    def _read(self, data: bytes) -> tuple[int, int]:
        """Hand on what is whole: how far that reaches, and how many bytes from there make the next one whole."""
        at, size = 0, len(data)
        find, callbacks = data.find, self._callbacks
        while at < size and not self._gone.is_set():
            end = find(b"\r\n", at)
            if end < 0:
                if size - at > MAX_LINE:
                    raise ValueError("a line without end")
                return at, size - at + 1
            first = data[at]
            if first not in (_MSG, _HMSG):
                self._command(data[at:end])
                at = end + 2
                continue
            # MSG subject sid [reply] size; HMSG subject sid [reply] size-of-headers size
            words = data[at:end].split(b" ")
            begin, length = end + 2, int(words[-1])
            head = int(words[-2]) if first == _HMSG else 0
            if not 0 <= head <= length <= MAX_MESSAGE:
                raise ValueError(f"a message of {length} bytes, {head} of them headers")
            after = begin + length + 2
            if after > size:
                return at, after - at
            number, reply = int(words[2]), words[3] if len(words) == (6 if first == _HMSG else 5) else b""
            callback = callbacks.get(number)
            if callback is not None:
                body = begin + head
                callback(Message(words[1].decode(), reply.decode(), data[begin:body], data[body : after - 2]))
            at = after
        return size, 0

    def _command(self, line: bytes) -> None:
        if line == b"PING":
            if self._open:
                self.write(b"PONG\r\n")
        elif line == b"PONG":
            future = self._pongs.popleft() if self._pongs else None
            if future is not None and not future.done():
                future.set_result(None)
        elif line.startswith(b"INFO "):
            if not self._info.done():
                self._info.set_result(_info_decoder.decode(line[5:]))
        elif line.startswith(b"-ERR"):
            said = line[4:].decode("utf-8", "replace")
            error = BrokerError(said.strip(" '")[:300])
            if not self._logged_in.done():
                self._fail(error)
            else:
                # It closes by itself what it does not suffer to stay open.
                self._on_error(error)
        elif line != b"+OK":
            raise ValueError(f"{line[:40]!r}")
