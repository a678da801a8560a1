"""The client of the venue: what counts as unsent, what as lost, and whom it talks to."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from tallystick.schemas.errors import ConfigError
from tallystick.schemas.signing import Signed
from tallystick.venues import adapter
from tallystick.venues.client import MAX_BODY, Lost, Unsent, VenueClient
from tests.support.tls import ServerTls, make_server_tls

BINANCE = adapter("binance-spot")


def request(port: int, path: str = "/api/v3/order", body: str = "symbol=XRPETH&signature=a%2Fb%3D%3D") -> Signed:
    headers = (("Content-Type", "application/x-www-form-urlencoded"), ("X-MBX-APIKEY", "k"))
    return Signed(id=1, method="POST", url=f"https://127.0.0.1:{port}{path}", headers=headers, body=body, signed_at=0)


@contextlib.asynccontextmanager
async def against(
    tls: ServerTls,
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    server: ssl.SSLContext | None = None,
) -> AsyncIterator[tuple[VenueClient, int]]:
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=server or tls.server())
    await site.start()
    port = runner.addresses[0][1]
    client = VenueClient(BINANCE, f"127.0.0.1:{port}", tls.client(), time.time_ns)
    try:
        yield client, port
    finally:
        await client.close()
        await runner.cleanup()


async def ok(_: web.Request) -> web.Response:
    return web.Response(body=b"{}")


async def test_url_and_body_go_out_byte_for_byte(tls: ServerTls) -> None:
    seen: list[tuple[str, bytes, str]] = []

    async def keep(r: web.Request) -> web.Response:
        seen.append((r.raw_path, await r.read(), r.headers["X-MBX-APIKEY"]))
        return web.Response(body=b"{}")

    async with against(tls, keep) as (client, port):
        body = "symbol=XRPETH&signature=a%2Fb%3D%3D%2B"
        assert await client.send(request(port, body=body)) == (200, b"{}")
        get = Signed(
            id=1,
            method="GET",
            url=f"https://127.0.0.1:{port}/api/v3/order?{body}",
            headers=(("X-MBX-APIKEY", "k"),),
            body="",
            signed_at=0,
        )
        await client.send(get)
        assert seen == [("/api/v3/order", body.encode(), "k"), (f"/api/v3/order?{body}", b"", "k")]


async def test_a_venue_that_is_not_there_was_sent_nothing(tls: ServerTls) -> None:
    async with against(tls, ok):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            gone = free.getsockname()[1]
        other = VenueClient(BINANCE, f"127.0.0.1:{gone}", tls.client(), time.time_ns)
        with pytest.raises(Unsent, match="VENUE_AWAY"):
            await other.send(request(gone))
        with pytest.raises(Unsent, match="VENUE_AWAY"):
            await other.warm()
        await other.close()


async def test_a_certificate_of_another_authority_is_sent_nothing(tls: ServerTls, tmp_path: Path) -> None:
    reached = []

    async def note(r: web.Request) -> web.Response:
        reached.append(r)
        return web.Response()

    async with against(tls, note, server=make_server_tls(tmp_path).server()) as (client, port):
        with pytest.raises(Unsent, match="VENUE_AWAY"):
            await client.send(request(port))
        assert not reached


async def test_tls_1_2_is_refused_on_both_sides(tls: ServerTls) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    old.load_cert_chain(tls.certificate, tls.key)

    async with against(tls, ok, server=old) as (client, port):
        with pytest.raises(Unsent, match="VENUE_AWAY"):
            await client.send(request(port))
    weak = tls.client()
    weak.minimum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ConfigError, match="VENUE_TLS"):
        VenueClient(BINANCE, "127.0.0.1:1", weak, time.time_ns)
    blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    blind.minimum_version = ssl.TLSVersion.TLSv1_3
    blind.check_hostname = False
    blind.verify_mode = ssl.CERT_NONE
    with pytest.raises(ConfigError, match="VENUE_TLS"):
        VenueClient(BINANCE, "127.0.0.1:1", blind, time.time_ns)


async def test_a_request_for_another_host_is_not_sent(tls: ServerTls) -> None:
    async with against(tls, ok) as (client, port):
        with pytest.raises(Unsent, match="ENDPOINT"):
            await client.send(request(port + 1))


async def test_a_redirect_is_an_answer_and_not_followed(tls: ServerTls) -> None:
    paths = []

    async def redirect(r: web.Request) -> web.Response:
        paths.append(r.path)
        return web.Response(status=307, headers={"Location": "/elsewhere"})

    async with against(tls, redirect) as (client, port):
        assert (await client.send(request(port)))[0] == 307
        assert paths == ["/api/v3/order"]


async def test_a_connection_cut_before_the_answer_is_lost(tls: ServerTls) -> None:
    received = []

    async def cut(r: web.Request) -> web.Response:
        received.append(await r.read())
        assert r.transport is not None
        r.transport.abort()
        return web.Response()

    async with against(tls, cut) as (client, port):
        with pytest.raises(Lost, match="NO_ANSWER"):
            await client.send(request(port))
        assert len(received) == 1  # and not sent again


async def test_an_endless_answer_is_lost_and_bounded(tls: ServerTls) -> None:
    async def endless(r: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(r)
        for _ in range(MAX_BODY // 65536 + 2):
            await response.write(bytes(65536))
        return response

    async with against(tls, endless) as (client, port):
        with pytest.raises(Lost, match="VENUE_ANSWER"):
            await client.send(request(port))


@pytest.mark.parametrize(
    ("status", "header", "seconds"),
    [
        (429, "7", 7),
        (418, "7200", 7200),
        (418, "259200", 259_200),
        (429, "0", 0),
        (429, "soon", 60),
        (429, "-5", 60),
        (418, "", 120),
        (418, "99999999999999999999", 7 * 86_400),
    ],
)
async def test_a_rate_limit_is_waited_out_to_its_end_by_all_but_cancels(
    tls: ServerTls, status: int, header: str, seconds: int
) -> None:
    asked = []

    async def limited(r: web.Request) -> web.Response:
        asked.append(r.method)
        return web.Response(status=status, headers={"Retry-After": header}, body=b'{"code":-1003,"msg":"x"}')

    async with against(tls, limited) as (client, port):
        before = time.time_ns()
        assert (await client.send(request(port)))[0] == status
        assert before + seconds * 10**9 <= client.allowance.until <= time.time_ns() + seconds * 10**9
        if not seconds:
            return
        for method in ("POST", "GET"):
            with pytest.raises(Unsent, match="VENUE_BACKOFF"):
                await client.send(msgspec.structs.replace(request(port), method=method))
        await client.warm()
        await client.send(msgspec.structs.replace(request(port), method="DELETE"))
        assert asked == ["POST", "DELETE"]


async def test_questions_leave_a_part_of_the_venues_weight_to_orders(tls: ServerTls) -> None:
    async def used(_: web.Request) -> web.Response:
        return web.Response(headers={"X-MBX-USED-WEIGHT-1M": "5690"}, body=b"{}")

    async with against(tls, used) as (client, port):
        question = msgspec.structs.replace(request(port), method="GET")
        await client.send(request(port))  # weighs 1; a question 4, and 9 of their 5,700 are left
        await client.send(question)
        await client.send(question)
        with pytest.raises(Unsent, match="VENUE_BACKOFF"):
            await client.send(question)
        await client.send(request(port))
