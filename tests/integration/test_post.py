"""A question to the authority over HTTPS: whatever answers, it ends soon, bounded, in one kind of error."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from tallystick.runtime.bus.post import NotConnected, post
from tallystick.schemas.errors import Unreachable
from tests.support.tls import ServerTls, make_server_tls

LIMIT = 4_096


@contextlib.asynccontextmanager
async def peer(tls: ServerTls, said: bytes, *, stays: bool = False) -> AsyncIterator[str]:
    """Answers every request with `said`, and closes unless it `stays`."""
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        if stays:
            await gone.wait()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls.server())
    try:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/session"
    finally:
        gone.set()
        server.close()


async def ask(url: str, tls: ServerTls, timeout_s: float = 3.0) -> tuple[int, bytes]:
    return await post(url, b"{}", tls.client(), timeout_s=timeout_s, limit=LIMIT)


async def test_an_http_server_gets_the_body_and_its_answer_comes_back(tls: ServerTls) -> None:
    async def echo(request: web.Request) -> web.Response:
        body = await request.read()
        return web.Response(status=403, body=body + request.path.encode() + str(request.headers["Host"]).encode())

    app = web.Application()
    app.router.add_post("/v1/session", echo)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls.server()).start()
    where = f"127.0.0.1:{runner.addresses[0][1]}"
    began = time.monotonic()
    try:
        assert await ask(f"https://{where}/v1/session", tls) == (403, b"{}/v1/session" + where.encode())
    finally:
        await runner.cleanup()
    assert time.monotonic() - began < 2.0  # it waits for no connection to run out


async def test_an_answer_in_pieces_is_put_together(tls: ServerTls) -> None:
    async with peer(tls, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n") as url:
        assert await ask(url, tls) == (200, b"{}")


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"\x00",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\ncut",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n" + bytes(LIMIT),
    ],
)
async def test_what_is_no_whole_answer_of_the_right_size_is_none(tls: ServerTls, said: bytes) -> None:
    async with peer(tls, said) as url:
        with pytest.raises(Unreachable, match=r"^AUTHORITY_UNREACHABLE: https://") as caught:
            await ask(url, tls)
    assert not isinstance(caught.value, NotConnected)


async def test_one_that_never_ends_its_answer_is_left(tls: ServerTls) -> None:
    began = time.monotonic()
    async with peer(tls, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", stays=True) as url:
        with pytest.raises(Unreachable, match="TimeoutError"):
            await ask(url, tls, 0.3)
    assert time.monotonic() - began < 2.0


async def test_a_port_where_nobody_listens_and_another_authoritys_server_are_not_connected_to(
    tls: ServerTls, tmp_path: Path
) -> None:
    async with peer(tls, b"") as url:
        with pytest.raises(NotConnected, match="certificate verify failed"):
            await ask(url, make_server_tls(tmp_path))
    with pytest.raises(NotConnected):
        await ask(url, tls)
