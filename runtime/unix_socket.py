"""A server on a Unix socket that knows, by the kernel's word, who is at the other end.

- The socket's file is made with mode 0600 where our own user is the only one allowed, else 0666: then the kernel's
  word alone decides.  It replaces the one that a crash left behind, and goes with the server.
- A peer of another user than the allowed ones (`SO_PEERCRED`, unix(7)) is closed before it is read.
- Whoever connects gets in: above the bound on connections, and above a process's own share of it, another one has to
  go.  That is one of the process that has most: one that said nothing when it should have, else the longest idle.
  So no number of open connections keeps a person out, and a process pushes its own out first.
- They are let in a few at a time between all other work, and of one process no more than `PER_SECOND` in the long run: who
  connects again and again is closed at once.
- Who says nothing for `FIRST_S` after it connected is closed.
- Each request waits its turn: who sends without pause is read once for each round of the others, and what a process
  asks above its rate waits.
- What a connection serves ends with the server.

Nobody is trusted for what they say: who connects is what the kernel says, and no more than a user.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Final, NamedTuple, SupportsIndex

from tallystick.runtime.bus.tasks import Tasks, end
from tallystick.schemas.errors import ConfigError

BACKLOG: Final = 128
AT_ONCE: Final = 32
BURST: Final = 32
PER_SECOND: Final = 16
# No process has connected for as long as its credit takes to be whole again: it is forgotten.
KNOWN: Final = 1024
# Without a free descriptor nobody can be let in.
EXHAUSTED_S: Final = 0.1
_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid
FIRST_S: Final = 2.0
# Programs speak when they have connected; from then on the mute go first.
MUTE_S: Final = 0.25
# The part of all connections that one process may have open.
SHARE: Final = 4


class Peer(NamedTuple):
    """The process at the other end, when it connected."""

    pid: int
    uid: int


class _Credit:
    """How often a process may do something: `burst` times at once, `per_second` in the long run."""

    def __init__(self, burst: float, per_second: float) -> None:
        self._burst = burst
        self._per_second = per_second
        self._left: dict[int, tuple[float, float]] = {}

    def wait(self, pid: int, now: float) -> float:
        """Spend one; or the seconds until there is one to spend."""
        if len(self._left) > KNOWN:
            whole = now - self._burst / self._per_second
            self._left = {p: c for p, c in self._left.items() if c[1] > whole}
        left, last = self._left.get(pid, (self._burst, now))
        left = min(self._burst, left + (now - last) * self._per_second)
        missing = max(0.0, 1.0 - left)
        self._left[pid] = (left if missing else left - 1.0, now)
        return missing / self._per_second


class _Reader(asyncio.StreamReader):
    """Knows when the peer was heard last, and lets the other connections have their turn before each request.

    What lies in the buffer is read without waiting: without a turn, a peer that keeps it full has the loop alone.
    Who has no credit left is not even read, so that it waits instead of keeping the machine busy.
    """

    def __init__(self, limit: int, credit: _Credit) -> None:
        super().__init__(limit=limit, loop=asyncio.get_running_loop())
        self.heard = 0.0
        self.pid = 0
        self._credit = credit
        self._its: asyncio.Transport | None = None

    def set_transport(self, transport: asyncio.BaseTransport) -> None:
        super().set_transport(transport)
        if isinstance(transport, asyncio.Transport):
            self._its = transport

    def feed_data(self, data: Iterable[SupportsIndex]) -> None:
        self.heard = asyncio.get_running_loop().time()
        super().feed_data(data)

    async def readexactly(self, n: int) -> bytes:
        await self._turn()
        return await super().readexactly(n)

    async def readline(self) -> bytes:
        await self._turn()
        return await super().readline()

    async def _turn(self) -> None:
        await asyncio.sleep(0)
        while seconds := self._credit.wait(self.pid, asyncio.get_running_loop().time()):
            if self._its is not None and self._its.is_reading():
                self._its.pause_reading()
            await asyncio.sleep(seconds)
        if self._its is not None and not self._its.is_closing() and not self._its.is_reading():
            self._its.resume_reading()


class _Connection(NamedTuple):
    peer: Peer
    since: float
    reader: _Reader
    task: asyncio.Task[None]


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter, Peer], Awaitable[None]]


def _peer(its: socket.socket) -> Peer:
    pid, uid, _ = _CREDENTIALS.unpack(its.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return Peer(pid, uid)


async def connect(path: Path, limit: int, timeout: float = 5.0) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to the server at `path`, however many wait before us.  Raises `OSError`.

    The kernel lets those in who wait for room; to who does not wait (asyncio's way) it says that there is none.
    """

    def enter() -> socket.socket:
        its = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            seconds = struct.pack("ll", int(timeout), int(timeout % 1 * 1_000_000))
            its.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds)
            its.connect(str(path))
            its.setblocking(False)
        except OSError:
            its.close()
            raise
        return its

    return await asyncio.open_unix_connection(sock=await asyncio.to_thread(enter), limit=limit)


class UnixServer:
    """Calls `serve` for each connection of `uids`, `refused` with every other peer, and with each that was pushed out.

    `connections` bounds how many are open at once, `limit` what a reader buffers of one, `per_second` how often one
    process is read; `within` hears of failures.
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
        per_second: float,
        within: Tasks | None = None,
    ) -> None:
        self._path = path
        self._serve_peer = serve
        self._refused = refused
        self._uids = uids
        self._bound = connections
        self._limit = limit
        self._tasks = Tasks(within)
        self._listener: socket.socket | None = None
        self._open: list[_Connection] = []
        self._entries = _Credit(BURST, PER_SECOND)
        self._requests = _Credit(per_second, per_second)

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
        listener.listen(BACKLOG)
        listener.setblocking(False)
        self._listener = listener
        self._tasks.start(self._accept(listener), f"accept {self._path.name}")
        self._tasks.start(self._close_the_mute(), f"mute {self._path.name}")

    async def stop(self) -> None:
        """Stop listening and drop all peers."""
        if self._listener is None:
            return
        await self._tasks.end()
        self._listener.close()
        self._listener = None
        await end(*(c.task for c in self._open))
        self._path.unlink(missing_ok=True)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()

        while True:
            entered = []
            try:
                entered.append((await loop.sock_accept(listener))[0])
                while len(entered) < AT_ONCE:
                    entered.append(listener.accept()[0])
            except BlockingIOError:
                pass
            except OSError:
                await asyncio.sleep(EXHAUSTED_S)
            for its in entered:
                its.setblocking(False)
                peer = _peer(its)
                if peer.uid not in self._uids:
                    self._refused(peer)
                    its.close()
                elif self._entries.wait(peer.pid, loop.time()):
                    its.close()
                else:
                    self._tasks.start(self._let_in(its), "let in")
            await asyncio.sleep(0)

    async def _let_in(self, its: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        await loop.connect_accepted_socket(
            lambda: asyncio.StreamReaderProtocol(_Reader(self._limit, self._requests), self._serve, loop=loop), its
        )

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = _peer(writer.get_extra_info("socket"))
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        if task is None or not isinstance(reader, _Reader):
            raise TypeError("streams are made by `_accept`")
        reader.pid = peer.pid
        self._make_room(peer.pid)
        connection = _Connection(peer, loop.time(), reader, task)
        self._open.append(connection)
        try:
            await self._serve_peer(reader, writer, peer)
        except asyncio.CancelledError:
            # Pushed out, or the server stops: this task ends here either way, and asyncio complains of cancelled ones.
            return
        finally:
            if connection in self._open:
                self._open.remove(connection)
            writer.close()

    def _make_room(self, pid: int) -> None:
        """Push one out where another connection of the process `pid` would be one too many."""
        have = Counter(c.peer.pid for c in self._open)
        if have[pid] >= max(1, self._bound // SHARE):
            self._push_out([c for c in self._open if c.peer.pid == pid])
        elif len(self._open) >= self._bound:
            most = max(have.values())
            self._push_out([c for c in self._open if have[c.peer.pid] == most])

    def _push_out(self, among: list[_Connection]) -> None:
        now = asyncio.get_running_loop().time()
        out = min(among, key=lambda c: (bool(c.reader.heard) or now - c.since < MUTE_S, c.reader.heard or c.since))
        self._open.remove(out)
        out.task.cancel()
        self._refused(out.peer)

    async def _close_the_mute(self) -> None:
        while True:
            await asyncio.sleep(FIRST_S / 4)
            now = asyncio.get_running_loop().time()
            for connection in list(self._open):
                if not connection.reader.heard and now - connection.since >= FIRST_S:
                    self._push_out([connection])
