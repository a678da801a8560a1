"""Custody, as execution sees it: the signing protocol over its Unix socket.

- Requests are pipelined on one connection; replies come in order.
- Whatever goes wrong, a request has failed for good: its reply is never waited for twice.  A signature
  that was made and got lost is harmless: nobody has it.
- The connection is made anew for the next request after a failure.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tallystick.runtime.bus.tasks import Tasks
from tallystick.runtime.unix_socket import connect
from tallystick.runtime.writing import at_once
from tallystick.schemas import signing
from tallystick.schemas.errors import Malformed, TallystickError

# Signing takes half a millisecond; what waits this long would be stale at the venue.
TIMEOUT_S: Final = 1.0


class NotSigned(TallystickError):
    """Custody refused or is away: there is no signature."""


class CustodyClient:
    """A client of custody's socket at `path`.  One event loop."""

    def __init__(self, path: Path, within: Tasks) -> None:
        self._path = path
        self._tasks = Tasks(within)
        self._lock = asyncio.Lock()
        self._writer: asyncio.StreamWriter | None = None
        self._waiting: deque[tuple[int, asyncio.Future[signing.Reply]]] = deque()
        self._next = 0

    async def close(self) -> None:
        """Close the connection; what waits fails."""
        await self._tasks.end()

    async def sign(self, make: Callable[[int], signing.Request]) -> signing.Signed:
        """The signed request for `make(id)`.  Raises `NotSigned`."""
        reply = await self._ask(make)
        if isinstance(reply, signing.Refused):
            raise NotSigned(reply.code, reply.text)
        if not isinstance(reply, signing.Signed):
            raise NotSigned("CUSTODY", f"custody answered {type(reply).__name__}")
        return reply

    async def status(self) -> signing.Status:
        """Custody's status.  Raises `NotSigned`."""
        reply = await self._ask(lambda number: signing.StatusRequest(id=number))
        if not isinstance(reply, signing.Status):
            raise NotSigned("CUSTODY", f"custody answered {type(reply).__name__}")
        return reply

    async def _ask(self, make: Callable[[int], signing.Request]) -> signing.Reply:
        future: asyncio.Future[signing.Reply] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                writer = self._writer or await self._connect()
                self._next += 1
                frame = signing.encode_frame(make(self._next))
                self._waiting.append((self._next, future))
                writer.write(frame)
                return await future
        except (OSError, TimeoutError) as exc:
            raise NotSigned("CUSTODY_AWAY", f"{self._path}: {type(exc).__name__}: {exc}") from exc

    async def _connect(self) -> asyncio.StreamWriter:
        async with self._lock:
            if self._writer is None:
                reader, self._writer = await connect(self._path, signing.MAX_FRAME + signing.LENGTH.size)
                at_once(self._writer.transport)
                self._tasks.start(self._read(reader, self._writer), "custody")
            return self._writer

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        error: Exception = ConnectionResetError("custody closed the connection")
        try:
            while True:
                (length,) = signing.LENGTH.unpack(await reader.readexactly(signing.LENGTH.size))
                reply = signing.decode_reply(await reader.readexactly(signing.frame_length(length)))
                number = self._waiting[0][0] if self._waiting else 0
                if number != reply.id:
                    error = NotSigned("CUSTODY", f"reply {reply.id} where {number} was due")
                    break
                _, future = self._waiting.popleft()
                if not future.done():
                    future.set_result(reply)
        except (OSError, asyncio.IncompleteReadError):
            pass
        except Malformed as exc:
            error = NotSigned(exc.code, exc.text)
        finally:
            self._writer = None
            waiting, self._waiting = self._waiting, deque()
            for _, future in waiting:
                if not future.done():
                    future.set_exception(error)
            writer.close()
