"""A server on a Unix socket that knows, by the kernel's word, who is at the other end.

- The socket's file is made with mode 0600 where our own user is the only one allowed, else 0666: then the kernel's
  word alone decides.  It replaces the one that a crash left behind, and goes with the server.
- A peer of another user than the allowed ones (`SO_PEERCRED`, unix(7)), or above the bound on connections, is closed
  before it is read.
- What a connection serves ends with the server.

Nobody is trusted for what they say: who connects is what the kernel says, and no more than a user.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, NamedTuple

from tallystick.runtime.bus.tasks import end
from tallystick.schemas.errors import ConfigError

_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid


class Peer(NamedTuple):
    """The process at the other end, when it connected."""

    pid: int
    uid: int


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter, Peer], Awaitable[None]]


class UnixServer:
    """Calls `serve` for each connection of `uids`, `refused` with every other peer.

    `connections` bounds how many are open at once, `limit` what a reader buffers of one.
    """

    def __init__(
        self,
        path: Path,
        serve: Serve,
        refused: Callable[[Peer], None],
        *,
        uids: frozenset[int],
        connections: int,
        limit: int,
    ) -> None:
        self._path = path
        self._serve_peer = serve
        self._refused = refused
        self._uids = uids
        self._bound = connections
        self._limit = limit
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen.  Raises `ConfigError` where the path cannot be bound."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        old = os.umask(0o177)  # never open to others, not even between bind and chmod
        try:
            self._path.unlink(missing_ok=True)
            listener.bind(str(self._path))
            if self._uids != {os.geteuid()}:
                self._path.chmod(0o666)
        except OSError as exc:
            listener.close()
            raise ConfigError("SOCKET", f"cannot listen at {self._path}: {exc.strerror or exc}") from exc
        finally:
            os.umask(old)
        self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=self._limit)

    async def stop(self) -> None:
        """Stop listening and drop all peers."""
        if self._server is None:
            return
        self._server.close()
        await end(*self._tasks)
        await self._server.wait_closed()
        self._server = None
        self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        its: socket.socket = writer.get_extra_info("socket")
        pid, uid, _ = _CREDENTIALS.unpack(its.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        peer = Peer(pid, uid)
        try:
            if uid not in self._uids or len(self._tasks) >= self._bound:
                self._refused(peer)
                return
            if (task := asyncio.current_task()) is not None:
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            await self._serve_peer(reader, writer, peer)
        finally:
            writer.close()
