"""One HTTPS request, to the authority or a venue, over a connection of its own.

The standard library's parts are enough for that: an HTTP library is 9 MB and a fifth of a second in each process.
"""

from __future__ import annotations

import asyncio
import http.client
import io
import ssl
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

from tallystick.schemas.errors import Unreachable

if TYPE_CHECKING:
    import socket


class NotConnected(Unreachable):
    """There was not even a connection: nothing was asked."""


async def post(url: str, body: bytes, tls: ssl.SSLContext, *, timeout_s: float, limit: int) -> tuple[int, bytes]:
    """Status and body of the answer.  Raises `NotConnected`; `Unreachable` where no answer of at most `limit` bytes came."""
    headers = (("Content-Type", "application/json"), ("Content-Length", str(len(body))))
    hint = "is the deployment up (`tallystick up`)?"
    return await _ask("POST", url, headers, body, tls, timeout_s, limit, code="AUTHORITY_UNREACHABLE", hint=hint)


async def get(
    url: str, headers: tuple[tuple[str, str], ...], tls: ssl.SSLContext, *, timeout_s: float, limit: int
) -> tuple[int, bytes]:
    """Status and body of a venue's answer.  Raises as `post`; `headers` and `url` go out as they are."""
    return await _ask("GET", url, headers, b"", tls, timeout_s, limit, code="VENUE_AWAY", hint="it is tried again")


async def _ask(
    method: str,
    url: str,
    headers: tuple[tuple[str, str], ...],
    body: bytes,
    tls: ssl.SSLContext,
    timeout_s: float,
    limit: int,
    *,
    code: str,
    hint: str,
) -> tuple[int, bytes]:
    where = urlsplit(url)
    path = f"{where.path}?{where.query}" if where.query else where.path
    lines = (f"{method} {path} HTTP/1.1", f"Host: {where.netloc}", *(f"{k}: {v}" for k, v in headers))
    head = "\r\n".join((*lines, "Connection: close\r\n\r\n"))
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(where.hostname, where.port or 443, ssl=tls)
            writer.write(head.encode("ascii") + body)
            answer = b""
            while len(answer) <= limit and (more := await reader.read(limit)):
                answer += more
        if len(answer) > limit:
            raise http.client.HTTPException(f"an answer of more than {limit} bytes")
        response = http.client.HTTPResponse(cast("socket.socket", _Read(answer)))
        response.begin()
        return response.status, response.read()
    except (OSError, http.client.HTTPException) as exc:
        text = f"{where.scheme}://{where.netloc}{where.path}: {type(exc).__name__}: {exc}; {hint}"
        if writer is None:
            raise NotConnected(code, text) from exc
        raise Unreachable(code, text) from exc
    finally:
        if writer is not None:
            writer.transport.abort()


class _Read:
    """Stands where the standard library's parser expects a socket."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _: str) -> io.BytesIO:
        return io.BytesIO(self._data)
