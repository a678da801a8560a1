"""One HTTPS request to the authority, over a connection of its own.

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
    where = urlsplit(url)
    head = (
        f"POST {where.path} HTTP/1.1\r\nHost: {where.netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(where.hostname, where.port, ssl=tls)
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
        text = f"{url}: {type(exc).__name__}: {exc}; is the deployment up (`tallystick up`)?"
        if writer is None:
            raise NotConnected("AUTHORITY_UNREACHABLE", text) from exc
        raise Unreachable("AUTHORITY_UNREACHABLE", text) from exc
    finally:
        if writer is not None:
            writer.transport.abort()


class _Read:
    """Stands where the standard library's parser expects a socket."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _: str) -> io.BytesIO:
        return io.BytesIO(self._data)
