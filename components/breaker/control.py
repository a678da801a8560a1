"""The breaker's socket: the control protocol (`schemas.control`) on `DIR/run/breaker.sock`, for people.

- No number of connections and requests keeps a person's own out (`runtime/unix_socket.py`).
- A peer must run under the same user as the breaker: the kernel tells who it is, nothing that the peer says does.
- A kill acts before it is answered; the answer waits until it is durable, or says that it is not (`stored`).

Who reaches the socket is not trusted: without the operator's signature an attacker there can at most halt.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from tallystick.runtime.bus.log import Log
from tallystick.runtime.bus.tasks import Tasks
from tallystick.runtime.unix_socket import Peer, UnixServer
from tallystick.schemas.control import MAX_REQUEST, Request, encode_line, parse_request
from tallystick.schemas.errors import Malformed, TallystickError

IDLE_S: Final = 30.0
MAX_PEERS: Final = 16
# Nobody types faster; a script that asks for the state is served.
PER_SECOND: Final = 20.0

Handle = Callable[[Request, str], Awaitable[dict[str, Any]]]


class ControlSocket:
    """Listens at `path`; `handle(request, by)` answers.  `uid` is the only user let in."""

    def __init__(
        self, path: Path, handle: Handle, log: Log, uid: int | None = None, within: Tasks | None = None
    ) -> None:
        self._handle = handle
        self._log = log
        uids = frozenset((os.geteuid() if uid is None else uid,))
        self._server = UnixServer(
            path,
            self._serve,
            self._refused,
            uids=uids,
            connections=MAX_PEERS,
            limit=MAX_REQUEST,
            per_second=PER_SECOND,
            within=within,
        )

    async def start(self) -> None:
        """Listen.  Raises `ConfigError` where the path cannot be bound."""
        await self._server.start()

    async def stop(self) -> None:
        """Stop listening and drop all peers."""
        await self._server.stop()

    def _refused(self, peer: Peer) -> None:
        self._log.warning("peer refused", uid=peer.uid, pid=peer.pid)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: Peer) -> None:
        try:
            while line := await asyncio.wait_for(self._line(reader), IDLE_S):
                writer.write(encode_line(await self._answer(line, f"uid {peer.uid}")))
                await asyncio.wait_for(writer.drain(), IDLE_S)
        except (OSError, TimeoutError) as exc:
            self._log.info("peer gone", error=f"{type(exc).__name__}: {exc}")

    @staticmethod
    async def _line(reader: asyncio.StreamReader) -> bytes:
        try:
            return await reader.readline()
        except ValueError:  # longer than the limit
            return b"\n"

    async def _answer(self, line: bytes, by: str) -> dict[str, Any]:
        try:
            if not line.endswith(b"\n") or len(line) > MAX_REQUEST or not line.strip():
                raise Malformed("BREAKER_REQUEST", f"a request is one line of JSON of at most {MAX_REQUEST} bytes")
            return {"ok": True, **await self._handle(parse_request(line), by)}
        except TallystickError as exc:
            return {"ok": False, "code": exc.code, "text": exc.text}
