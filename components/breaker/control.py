"""The breaker's socket: people kill, re-arm and arm through it, on the machine itself.

- `DIR/run/breaker.sock`, mode 0600.  A peer must run under the same user as the breaker (`SO_PEERCRED`, unix(7)):
  the kernel tells who it is, nothing that the peer says does.
- One request a line, one answer a line, JSON::

    {"op":"kill","scope":"all","reason":"drill"}      {"ok":true,"tripped":[…]}
    {"op":"rearm","note":"…"}                         {"ok":false,"code":"REARM_OTHER_TRIP","text":"…"}
    {"op":"arm","note":"…"}
    {"op":"status"}

- A kill acts before it is answered; the answer waits until it is durable, or says that it is not (`stored`).
- Re-arming and arming need the operator's signature; whoever reaches the socket without it can only halt.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from tallystick.schemas.errors import ConfigError, Malformed, TallystickError

MAX_REQUEST: Final = 65_536
IDLE_S: Final = 30.0
MAX_PEERS: Final = 16
SOCKET_NAME: Final = "breaker.sock"
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid


class Kill(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op", tag="kill"):
    """Trip `scope` (`all`, `strategy-<name>`, `venue-<name>`)."""

    scope: str
    reason: str


class RearmRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op", tag="rearm"):
    """Close what the operator-signed `note` (a `trust.Rearm`) names."""

    note: str


class ArmRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op", tag="arm"):
    """Publish the operator-signed `note` (a `trust.ArmLease`)."""

    note: str


class Status(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op", tag="status"):
    """What is tripped."""


Request = Kill | RearmRequest | ArmRequest | Status
Handle = Callable[[Request, str], Awaitable[dict[str, Any]]]

_decoder = msgspec.json.Decoder(Request, strict=True)


def parse_request(line: bytes) -> Request:
    """A request line.  Raises `Malformed`."""
    try:
        request: Request = _decoder.decode(line)
    except (msgspec.DecodeError, RecursionError) as exc:
        raise Malformed("BREAKER_REQUEST", f"not a request: {exc}") from exc
    return request


def peer_uid(peer: socket.socket) -> int:
    """The user id of the process at the other end of a Unix socket, by the kernel's word."""
    _, uid, _ = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return int(uid)


class ControlSocket:
    """Listens at `path`; `handle(request, by)` answers.  `uid` is the only user let in."""

    def __init__(self, path: Path, handle: Handle, log: Any, uid: int | None = None) -> None:
        self._path = path
        self._handle = handle
        self._log = log
        self._uid = os.geteuid() if uid is None else uid
        self._server: asyncio.Server | None = None
        self._peers: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen.  Raises `ConfigError` where the path cannot be bound."""
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()  # left behind by a crash
        old = os.umask(0o177)  # never open to others, not even between bind and chmod
        try:
            self._server = await asyncio.start_unix_server(self._serve, str(self._path), limit=MAX_REQUEST)
        except OSError as exc:
            raise ConfigError("BREAKER_SOCKET", f"cannot listen at {self._path}: {exc.strerror}") from exc
        finally:
            os.umask(old)

    async def stop(self) -> None:
        """Stop listening and drop all peers."""
        if self._server is not None:
            self._server.close()
            for task in list(self._peers):
                task.cancel()
            await asyncio.gather(*self._peers, return_exceptions=True)
            await self._server.wait_closed()
            self._server = None
            self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._peers.add(task)
            task.add_done_callback(self._peers.discard)
        try:
            uid = peer_uid(writer.get_extra_info("socket"))
            if uid != self._uid or len(self._peers) > MAX_PEERS:
                self._log.warning("peer refused", uid=uid, peers=len(self._peers))
                return
            while line := await asyncio.wait_for(self._line(reader), IDLE_S):
                writer.write(msgspec.json.encode(await self._answer(line, f"uid {uid}")) + b"\n")
                await asyncio.wait_for(writer.drain(), IDLE_S)
        except (OSError, TimeoutError) as exc:
            self._log.info("peer gone", error=f"{type(exc).__name__}: {exc}")
        finally:
            writer.close()

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


async def ask(path: Path, request: Request, timeout: float = 10.0) -> dict[str, Any]:
    """The answer of the breaker at `path`.  Raises `ConfigError` if it is not there, `Malformed` for nonsense."""
    try:
        reader, writer = await asyncio.open_unix_connection(str(path), limit=1 << 22)
    except OSError as exc:
        raise ConfigError(
            "BREAKER_SOCKET", f"no breaker at {path}: {exc.strerror}; is the deployment up (`tallystick up`)?"
        ) from exc
    try:
        writer.write(msgspec.json.encode(request) + b"\n")
        await writer.drain()
        line = await asyncio.wait_for(reader.readline(), timeout)
        answer: dict[str, Any] = msgspec.json.decode(line, type=dict[str, Any])
    except (OSError, TimeoutError, msgspec.DecodeError) as exc:
        raise Malformed("BREAKER_ANSWER", f"{path}: {type(exc).__name__}: {exc}") from exc
    finally:
        writer.close()
    return answer
