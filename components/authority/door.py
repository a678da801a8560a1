"""The authority's HTTPS door: who crowds it keeps nobody else out, and never delays the list of sessions.

- Connections are taken as they come.  Nothing is done for one before its first byte is there, and without one it is
  closed after `FIRST_S`.  At most `MAX_WAITING` wait for it: above that the source that has most loses its oldest.
- Handshakes are begun at `PER_SECOND`, the newest first, each has `HANDSHAKE_S`, and `MAX_SHAKING` are under way: above
  that the oldest has to go.  So who says nothing, or half of something, holds no place that others need.
- A certificate's component has `PER_COMPONENT` connections: above that its oldest is closed.
- What a component asks above its rate waits (`Pace`), on its own connections alone.

Whoever reaches the port is not trusted: without a certificate he costs a bounded number of handshakes a second.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import Counter, deque
from collections.abc import Callable
from typing import Final

from tallystick.runtime.bus.tasks import Tasks
from tallystick.runtime.keys import pki
from tallystick.schemas.errors import Unverified

BACKLOG: Final = 1024
AT_ONCE: Final = 64
MAX_WAITING: Final = 256
# A desk of a hundred components needs one in some seconds, and all of them at its start.
PER_SECOND: Final = 100.0
BURST: Final = 100.0
FIRST_S: Final = 2.0
MAX_SHAKING: Final = 32
HANDSHAKE_S: Final = 2.0
PER_COMPONENT: Final = 8
# Without a free descriptor nobody can be let in.
EXHAUSTED_S: Final = 0.1
# A component asks once in a minute or so.
ASKS_PER_SECOND: Final = 10.0
ASKS_BURST: Final = 40.0


class Pace:
    """How often somebody may do something: `burst` times at once, `per_second` in the long run."""

    def __init__(self, burst: float, per_second: float) -> None:
        self._burst = burst
        self._per_second = per_second
        self._left: dict[str, tuple[float, float]] = {}

    async def wait(self, who: str) -> None:
        """Wait until `who` may do it once more.  Raises `Unverified` where so many wait already that it would be long."""
        now = asyncio.get_running_loop().time()
        left, last = self._left.get(who, (self._burst, now))
        left = min(self._burst, left + (now - last) * self._per_second) - 1.0
        if left < -self._burst:
            raise Unverified("REQUEST_RATE", f"more than {self._per_second:.0f} requests a second")
        # Below zero it is taken in advance: who comes next waits for longer.
        self._left[who] = (left, now)
        if left < 0:
            await asyncio.sleep(-left / self._per_second)


class Door:
    """Listens at `host`:`port` with `tls` and lets in what passes to the protocols that `made` makes."""

    def __init__(
        self, made: Callable[[], asyncio.Protocol], tls: ssl.SSLContext, deployment: str, tasks: Tasks
    ) -> None:
        self._made = made
        self._tls = tls
        self._deployment = deployment
        self._tasks = Tasks(tasks)
        # socket -> (where it comes from, when it came), the oldest first
        self._mute: dict[socket.socket, tuple[str, float]] = {}
        self._waiting: deque[socket.socket] = deque()
        self._came = asyncio.Event()
        self._shaking: dict[asyncio.Task[None], None] = {}
        self._inside: dict[str, deque[asyncio.Transport]] = {}
        self._pace = Pace(BURST, PER_SECOND)
        self._listener: socket.socket | None = None

    def open(self, host: str, port: int) -> None:
        """Listen.  Raises `Unverified`."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen(BACKLOG)
        except OSError as exc:
            listener.close()
            raise Unverified("PORT_TAKEN", f"port {port} on {host}: {exc.strerror}") from exc
        listener.setblocking(False)
        self._listener = listener
        self._tasks.start(self._accept(listener), "door")
        self._tasks.start(self._begin(), "handshakes")
        self._tasks.start(self._close_the_mute(), "mute")

    async def close(self) -> None:
        """Let nobody in any more.  Who is inside is the server's to close."""
        await self._tasks.end()
        if self._listener is not None:
            self._listener.close()
        for its in [*self._mute]:
            self._forget(its)
            its.close()
        for its in self._waiting:
            its.close()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            came = []
            try:
                came.append(await loop.sock_accept(listener))
                while len(came) < AT_ONCE:
                    came.append(listener.accept())
            except BlockingIOError:
                pass
            except OSError:
                await asyncio.sleep(EXHAUSTED_S)
            for its, address in came:
                its.setblocking(False)
                self._mute[its] = (str(address[0]), loop.time())
                loop.add_reader(its, self._heard, its)
            while len(self._mute) > MAX_WAITING:
                most, _ = Counter(source for source, _ in self._mute.values()).most_common(1)[0]
                out = next(its for its, (source, _) in self._mute.items() if source == most)
                self._forget(out)
                out.close()
            await asyncio.sleep(0)

    def _forget(self, its: socket.socket) -> None:
        asyncio.get_running_loop().remove_reader(its)
        del self._mute[its]

    def _heard(self, its: socket.socket) -> None:
        self._forget(its)
        self._waiting.append(its)
        if len(self._waiting) > MAX_WAITING:
            self._waiting.popleft().close()
        self._came.set()

    async def _close_the_mute(self) -> None:
        while True:
            await asyncio.sleep(FIRST_S / 4)
            since = asyncio.get_running_loop().time() - FIRST_S
            for its in [its for its, (_, came) in self._mute.items() if came < since]:
                self._forget(its)
                its.close()

    async def _begin(self) -> None:
        while True:
            if not self._waiting:
                self._came.clear()
                await self._came.wait()
            await self._pace.wait("")
            if not self._waiting:
                continue
            its = self._waiting.pop()
            if len(self._shaking) >= MAX_SHAKING:
                next(iter(self._shaking)).cancel()
            task = self._tasks.start(self._shake(its), "handshake")
            self._shaking[task] = None
            task.add_done_callback(lambda done: self._shaking.pop(done, None))

    async def _shake(self, its: socket.socket) -> None:
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                transport, _ = await asyncio.get_running_loop().connect_accepted_socket(
                    self._made, its, ssl=self._tls, ssl_handshake_timeout=HANDSHAKE_S, ssl_shutdown_timeout=HANDSHAKE_S
                )
        except (OSError, TimeoutError, asyncio.CancelledError):  # ssl.SSLError is an OSError
            its.close()
            return
        if isinstance(transport, asyncio.Transport):
            self._count(transport)

    def _count(self, transport: asyncio.Transport) -> None:
        inside = self._inside.setdefault(self._whose(transport), deque())
        for gone in [t for t in inside if t.is_closing()]:
            inside.remove(gone)
        inside.append(transport)
        if len(inside) > PER_COMPONENT:
            inside.popleft().abort()

    def _whose(self, transport: asyncio.Transport) -> str:
        tls = transport.get_extra_info("ssl_object")
        der = tls.getpeercert(binary_form=True) if tls is not None else None
        try:
            return pki.spiffe_component(der or b"", self._deployment)
        except Unverified:
            return ""
