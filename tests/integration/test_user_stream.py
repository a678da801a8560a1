"""What follows the account, against the paper exchange: whatever the stream keeps back is asked for, within the limits."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from tallystick.components.paper_exchange.access import Config, Limits
from tallystick.components.paper_exchange.orders import NewOrder
from tallystick.components.paper_exchange.server import Exchange
from tallystick.runtime.bus.tasks import Tasks, end
from tallystick.schemas.errors import Unverified
from tallystick.venues import BalanceReport, FillReport
from tallystick.venues.binance.follow import UserStream
from tests.support.paper import SECRET, XRPETH, config, venue
from tests.support.tls import ServerTls
from tests.support.waiting import until

D = Decimal
SECOND = 10**9


class Heard:
    """A listener that keeps what it hears; `permitted` says since when a fill can be ours."""

    def __init__(self, permitted: int | None = 0) -> None:
        self.permitted = permitted
        self.fills: list[FillReport] = []
        self.balances: list[BalanceReport] = []
        self.connection: list[tuple[bool, str]] = []

    def ask_from(self, symbol: str) -> int:
        return -1

    def since(self, symbol: str) -> int | None:
        return self.permitted

    def client_order_id(self, symbol: str, venue_order_id: str) -> str:
        return "known"

    def on_report(self, report: FillReport) -> None:
        self.fills.append(report)

    def on_order(self, symbol: str, venue_order_id: str, client_order_id: str) -> None:
        pass

    def on_balance(self, balance: BalanceReport) -> None:
        self.balances.append(balance)

    def on_connection(self, up: bool, code: str, text: str) -> None:
        self.connection.append((up, code))


@contextlib.asynccontextmanager
async def following(
    port: int, tls: ServerTls, heard: Any, symbols: dict[str, str] | None = None, **over: Any
) -> AsyncIterator[asyncio.Task[None]]:
    fields: dict[str, Any] = {"clock": time.time_ns} | over
    stream = UserStream(
        host=f"127.0.0.1:{port}",
        paper=True,
        api_key="readerkey",
        signer=SECRET,  # type: ignore[arg-type]
        symbols=symbols or {"XRPETH": "XRP/ETH"},
        tls=tls.client(),
        listener=heard,
        **fields,
    )
    task = asyncio.create_task(stream.run())
    try:
        yield task
    finally:
        await end(task)


def trade_unheard(exchange: Exchange, symbol: str = "XRPETH", qty: int = 10) -> None:
    """An order is filled, and the stream says nothing of it."""
    new = NewOrder(symbol=symbol, side="BUY", type="MARKET", qty=D(qty))
    exchange.engine.place("main", new, exchange._clock() // 10**6)
    exchange.engine.drain()


def counted(exchange: Exchange) -> tuple[collections.Counter[int], list[Exception]]:
    """The weight used in each minute, and every refusal, from now on."""
    used: collections.Counter[int] = collections.Counter()
    refused: list[Exception] = []
    count = exchange._rates.request

    def request(remote: str, weight: int, now_ms: int) -> int:
        used[now_ms // 60_000] += weight
        try:
            return count(remote, weight, now_ms)
        except Exception as exc:
            refused.append(exc)
            raise

    exchange._rates.request = request  # type: ignore[method-assign]
    return used, refused


async def test_a_lost_fill_is_found_while_the_connection_only_pongs(tls: ServerTls, tmp_path: Path) -> None:
    heard = Heard()
    async with venue(tls, tmp_path) as exchange, following(exchange.port, tls, heard, reconcile_s=1.0, ping_s=0.2):
        await until(lambda: (True, "") in heard.connection)
        before = time.monotonic()
        trade_unheard(exchange)
        await until(lambda: heard.fills)
        assert time.monotonic() - before < 4.0
        assert [f.qty for f in heard.fills] == [D(10)]


async def test_a_balance_that_the_stream_did_not_tell_is_told_also_when_it_is_gone(
    tls: ServerTls, tmp_path: Path
) -> None:
    heard = Heard()
    async with venue(tls, tmp_path) as exchange, following(exchange.port, tls, heard, reconcile_s=0.3):
        await until(lambda: heard.balances)
        exchange.engine.withdraw("main", "XRP", D(100_000))
        await until(lambda: BalanceReport("XRP", D(0), D(0)) in heard.balances)


async def test_noise_on_the_stream_does_not_put_a_question_off(tls: ServerTls, tmp_path: Path) -> None:
    heard = Heard()
    async with venue(tls, tmp_path) as exchange, following(exchange.port, tls, heard, reconcile_s=0.5):
        await until(lambda: (True, "") in heard.connection)
        trade_unheard(exchange)

        def noise() -> bool:
            exchange.sockets.tell("main", [{"e": "balanceUpdate", "d": "1"}])
            return bool(heard.fills)

        await until(noise)


def many(count: int) -> Config:
    """As many instruments as a desk may have, in one account that holds ETH."""
    made = tuple(
        msgspec.structs.replace(XRPETH, symbol=f"A{i}ETH", name=f"A{i}/ETH", base=f"A{i}") for i in range(count)
    )
    return msgspec.structs.replace(config(Limits()), instruments=made)


async def test_310_instruments_come_up_without_one_refusal_and_a_lost_fill_among_them_is_found_at_once(
    tls: ServerTls, tmp_path: Path
) -> None:
    # A minute of the venue ends soon: 310 questions weigh more than one allows.
    ahead = 60 * SECOND - time.time_ns() % (60 * SECOND) - 3 * SECOND

    def clock() -> int:
        return time.time_ns() + ahead

    exchange = Exchange(many(310), clock=clock, tls=tls.server(), within=Tasks(), journal=tmp_path / "j")
    await exchange.start()
    used, refused = counted(exchange)
    heard = Heard(permitted=clock() - SECOND)
    names = {i.symbol: i.name for i in exchange._config.instruments}
    try:
        async with following(exchange.port, tls, heard, names, clock=clock, reconcile_s=1.0):
            await until(lambda: (True, "") in heard.connection, timeout=25.0)
            assert not refused
            assert sum(used.values()) >= 310 * 20
            assert max(used.values()) <= 4_800 + 10
            exchange.on_market_trade("A299ETH", D("0.0013"), D(1000), False, clock())
            trade_unheard(exchange, "A299ETH")
            await until(lambda: heard.fills, timeout=5.0)
            assert not refused
    finally:
        await exchange.stop()


async def test_instruments_that_nothing_was_permitted_for_do_not_hold_up_the_others(
    tls: ServerTls, tmp_path: Path
) -> None:
    class Some(Heard):
        def since(self, symbol: str) -> int | None:
            return 0 if symbol == "A7/ETH" else None

    exchange = Exchange(many(310), clock=time.time_ns, tls=tls.server(), within=Tasks(), journal=tmp_path / "j")
    await exchange.start()
    used, _ = counted(exchange)
    heard = Some()
    names = {i.symbol: i.name for i in exchange._config.instruments}
    try:
        async with following(exchange.port, tls, heard, names):
            await until(lambda: (True, "") in heard.connection)
            assert sum(used.values()) < 1_000
    finally:
        await exchange.stop()


async def test_an_instrument_without_fills_is_asked_once_however_long_ago_its_permit_was(
    tls: ServerTls, tmp_path: Path
) -> None:
    heard = Heard(permitted=time.time_ns() - 90 * 86_400 * SECOND)
    async with venue(tls, tmp_path) as exchange:
        used, _ = counted(exchange)
        async with following(exchange.port, tls, heard):
            await until(lambda: (True, "") in heard.connection)
            assert sum(used.values()) <= 20 + 20 + 2


async def test_fills_of_the_stream_wait_for_those_that_came_before_them(tls: ServerTls, tmp_path: Path) -> None:
    heard = Heard()
    async with venue(tls, tmp_path) as exchange:
        for _ in range(3):
            trade_unheard(exchange)
        asked = exchange.engine.trades["main"]
        async with following(exchange.port, tls, heard):
            await until(lambda: exchange.sockets.followed)
            exchange.engine.place("main", NewOrder(symbol="XRPETH", side="BUY", type="MARKET", qty=D(7)), 0)
            exchange._publish(0)
            await until(lambda: len({f.trade_id for f in heard.fills}) == 4)
            first = [f.trade_id for f in heard.fills][:3]
            assert first == [t.id for t in asked][:3]


async def test_what_the_listener_raises_is_not_taken_for_the_venues(tls: ServerTls, tmp_path: Path) -> None:
    class Broken(Heard):
        def on_balance(self, balance: BalanceReport) -> None:
            raise Unverified("BACKPRESSURE", "too much waits")

    heard = Broken()
    async with venue(tls, tmp_path) as exchange, following(exchange.port, tls, heard) as task:
        with pytest.raises(Unverified, match="BACKPRESSURE"):
            await task
    assert heard.connection == []


@contextlib.asynccontextmanager
async def fake(tls: ServerTls, answer: Callable[[web.Request], web.Response], handshake: int = 0) -> AsyncIterator[int]:
    """A venue whose stream is silent and whose every REST answer is `answer`'s; `handshake`: refuses the stream so."""

    async def stream(request: web.Request) -> web.StreamResponse:
        if handshake:
            return answer(request)
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        async for message in ws:
            await ws.send_str(json.dumps({"id": json.loads(message.data)["id"], "status": 200, "result": {}}))
        return ws

    async def rest(request: web.Request) -> web.StreamResponse:
        return answer(request)

    app = web.Application()
    app.router.add_get("/ws-api/v3", stream)
    app.router.add_get("/{tail:.*}", rest)
    runner = web.AppRunner(app, shutdown_timeout=0.2)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls.server())
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(("status", "at_handshake"), [(429, False), (418, False), (418, True)])
async def test_a_pause_of_three_days_is_kept_whatever_asks_again(
    tls: ServerTls, status: int, at_handshake: bool
) -> None:
    asked = []
    put_on = 0

    def refuse(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(status=status, headers={"Retry-After": "259200"}, body=b'{"code":-1003,"msg":"x"}')

    heard = Heard()
    async with (
        fake(tls, refuse, status if at_handshake else 0) as port,
        following(port, tls, heard, clock=lambda: time.time_ns() + put_on, reconcile_s=0.1),
    ):
        await until(lambda: heard.connection)
        await asyncio.sleep(0.5)
        put_on = 259_190 * SECOND
        await asyncio.sleep(1.5)
        assert len(asked) == 1
        put_on = 259_201 * SECOND
        await until(lambda: len(asked) == 2)
        assert heard.connection[0] == (False, "VENUE_BACKOFF")


async def test_a_venue_that_never_answers_the_subscription_is_left(
    tls: ServerTls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tallystick.venues.binance.follow.TIMEOUT_S", 0.5)

    async def stream(request: web.Request) -> web.StreamResponse:
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        with contextlib.suppress(ConnectionError):
            while not ws.closed:
                await ws.send_str('{"event":{"e":"balanceUpdate"}}')
                await asyncio.sleep(0.05)
        return ws

    app = web.Application()
    app.router.add_get("/ws-api/v3", stream)
    runner = web.AppRunner(app, shutdown_timeout=0.2)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls.server())
    await site.start()
    heard = Heard()
    try:
        async with following(runner.addresses[0][1], tls, heard):
            await until(lambda: (False, "VENUE_ANSWER") in heard.connection)
    finally:
        await runner.cleanup()
