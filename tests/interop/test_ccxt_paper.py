"""The real ccxt, REST and websocket, against the paper exchange over TLS 1.3 with an Ed25519 key."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import statistics
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import ccxt.async_support as ccxt_async
import ccxt.pro as ccxt_pro
import pytest
from ccxt.base import errors as ccxt_errors

from tallystick.components.paper_exchange.server import Exchange, Fault
from tests.support.paper import client, trade, venue
from tests.support.tls import ServerTls

pytestmark = pytest.mark.uvloop


@contextlib.asynccontextmanager
async def serving(
    tls: ServerTls, path: Path, kind: Any = ccxt_async.binance, faults: dict[str, Fault] | None = None
) -> AsyncIterator[tuple[Exchange, Any]]:
    async with venue(tls, path, faults) as exchange:
        each = client(kind, exchange.port, tls.client())
        try:
            yield exchange, each
        finally:
            await each.close()


async def test_ccxt_loads_markets_and_time(tls: ServerTls, tmp_path: Path) -> None:
    async with serving(tls, tmp_path) as (_exchange, c):
        markets = await c.load_markets()
        assert list(markets) == ["XRP/ETH"]
        market = markets["XRP/ETH"]
        assert (market["precision"]["amount"], market["precision"]["price"]) == (1.0, 1e-07)
        assert market["limits"]["cost"]["min"] == 0.005
        assert abs(await c.fetch_time() - time.time_ns() // 10**6) < 2000
        fee = await c.fetch_trading_fee("XRP/ETH")
        assert fee["maker"] == fee["taker"] == 0.001
        rights = await c.sapi_get_account_apirestrictions()
        assert rights["ipRestrict"] is True
        assert rights["enableWithdrawals"] is False
        assert rights["enableSpotAndMarginTrading"] is True


async def test_ccxt_places_queries_and_cancels(tls: ServerTls, tmp_path: Path) -> None:
    async with serving(tls, tmp_path) as (exchange, c):
        await c.load_markets()
        bought = await c.create_order("XRP/ETH", "market", "buy", 100, None, {"newClientOrderId": "m1"})
        assert (bought["status"], bought["filled"], bought["average"]) == ("closed", 100, 0.0013002)
        assert [(f["cost"], f["currency"]) for f in bought["fees"]] == [(0.1, "XRP")]
        value = await c.create_order("XRP/ETH", "market", "buy", None, None, {"cost": 0.13002})
        assert value["filled"] == 100

        resting = await c.create_order("XRP/ETH", "limit", "buy", 50, 0.0012, {"newClientOrderId": "l1"})
        assert (resting["status"], resting["clientOrderId"]) == ("open", "l1")
        maker = await c.create_order("XRP/ETH", "limit", "sell", 10, 0.0014, {"postOnly": True})
        with pytest.raises(ccxt_errors.OrderImmediatelyFillable):
            await c.create_order("XRP/ETH", "limit", "sell", 10, 0.0012, {"postOnly": True})
        fetched = await c.fetch_order(resting["id"], "XRP/ETH")
        assert fetched["remaining"] == 50
        assert (await c.fetch_order(None, "XRP/ETH", {"origClientOrderId": "l1"}))["id"] == resting["id"]
        assert [o["id"] for o in await c.fetch_open_orders("XRP/ETH")] == [resting["id"], maker["id"]]
        assert len(await c.fetch_open_orders()) == 2
        balance = await c.fetch_balance()
        assert balance["ETH"]["used"] == 0.06
        assert balance["XRP"]["used"] == 10

        trade(exchange, "0.0012", "20", buyer_is_maker=True)
        assert (await c.fetch_order(resting["id"], "XRP/ETH"))["filled"] == 20
        assert (await c.cancel_order(resting["id"], "XRP/ETH"))["status"] == "canceled"
        with pytest.raises(ccxt_errors.OrderNotFound):
            await c.cancel_order(resting["id"], "XRP/ETH")
        with pytest.raises(ccxt_errors.OrderNotFound):
            await c.fetch_order("999", "XRP/ETH")
        await c.create_order("XRP/ETH", "limit", "buy", 50, 0.0011)
        await c.cancel_all_orders("XRP/ETH")
        assert await c.fetch_open_orders("XRP/ETH") == []
        mine = await c.fetch_my_trades("XRP/ETH")
        assert [(t["amount"], t["takerOrMaker"]) for t in mine] == [(100, "taker"), (100, "taker"), (20, "maker")]
        with pytest.raises(ccxt_errors.InsufficientFunds):
            await c.create_order("XRP/ETH", "limit", "buy", 5_000_000, 0.0013)
        with pytest.raises(ccxt_errors.AuthenticationError):
            await client_withdraw(c)


async def client_withdraw(c: Any) -> None:
    # ccxt reads -2015 after a success as rate limiting unless told that there was none.
    c.options["hasAlreadyAuthenticatedSuccessfully"] = False
    await c.sapi_post_capital_withdraw_apply({"coin": "ETH", "address": "0xdead", "amount": "1"})


async def test_ccxt_watches_trades(tls: ServerTls, tmp_path: Path) -> None:
    async with serving(tls, tmp_path, ccxt_pro.binance) as (exchange, c):
        await c.load_markets()

        async def feed() -> None:
            while True:
                await asyncio.sleep(0.05)
                trade(exchange, "0.0012999", "7", buyer_is_maker=True)

        feeding = asyncio.create_task(feed())
        seen = await c.watch_trades("XRP/ETH")
        feeding.cancel()
        assert (seen[0]["price"], seen[0]["amount"], seen[0]["side"]) == (0.0012999, 7, "sell")
        quote = asyncio.create_task(c.watch_bids_asks(["XRP/ETH"]))
        await asyncio.sleep(0.3)
        trade(exchange, "0.0012998", "9", buyer_is_maker=True)
        assert (await quote)["XRP/ETH"]["bid"] == 0.0012998


async def test_ccxt_watches_only_its_own_orders(tls: ServerTls, tmp_path: Path) -> None:
    async with serving(tls, tmp_path, ccxt_pro.binance) as (exchange, c):
        await c.load_markets()
        other = client(ccxt_async.binance, exchange.port, ccxt_context(c), "otherkey")
        watching = asyncio.create_task(c.watch_orders("XRP/ETH"))
        await asyncio.sleep(0.3)
        await other.load_markets()
        await other.create_order("XRP/ETH", "limit", "buy", 10, 0.001, {"newClientOrderId": "not-yours"})
        await other.close()
        await c.create_order("XRP/ETH", "limit", "buy", 50, 0.0013001, {"newClientOrderId": "w1"})
        states = await watching
        assert [(o["clientOrderId"], o["status"]) for o in states] == [("w1", "open")]
        watching = asyncio.create_task(c.watch_orders("XRP/ETH"))
        trade(exchange, "0.0013", "60", buyer_is_maker=True)
        done = (await watching)[-1]
        assert (done["clientOrderId"], done["status"], done["filled"], done["average"]) == (
            "w1",
            "closed",
            50,
            0.0013001,
        )
        assert done["trades"][-1]["takerOrMaker"] == "maker"
        await asyncio.sleep(0.1)  # the balance follows the order
        assert c.balance["spot"]["XRP"]["total"] == pytest.approx(100_000 + 50 - 0.05)


def ccxt_context(c: Any) -> ssl.SSLContext:
    context = c.ssl_context
    assert isinstance(context, ssl.SSLContext)
    return context


async def test_a_revoked_key_loses_its_stream_and_its_requests(tls: ServerTls, tmp_path: Path) -> None:
    async with serving(tls, tmp_path, ccxt_pro.binance) as (exchange, c):
        await c.load_markets()
        watching = asyncio.create_task(c.watch_orders("XRP/ETH"))
        await asyncio.sleep(0.3)
        exchange.revoke("traderkey")
        with pytest.raises(ccxt_errors.ExchangeError):
            await c.create_order("XRP/ETH", "market", "buy", 100)
        assert not exchange.engine.trades["main"]
        watching.cancel()


async def test_lost_acknowledgement_leaves_the_order_done(tls: ServerTls, tmp_path: Path) -> None:
    faults = {"POST /api/v3/order": Fault("drop_after")}

    async with serving(tls, tmp_path, faults=faults) as (_exchange, c):
        await c.load_markets()
        with pytest.raises(ccxt_errors.NetworkError):
            await c.create_order("XRP/ETH", "limit", "buy", 50, 0.0012, {"newClientOrderId": "lost"})
        assert (await c.fetch_order(None, "XRP/ETH", {"origClientOrderId": "lost"}))["status"] == "open"


async def test_lost_request_leaves_nothing(tls: ServerTls, tmp_path: Path) -> None:
    faults = {"POST /api/v3/order": Fault("drop_before")}

    async with serving(tls, tmp_path, faults=faults) as (_exchange, c):
        await c.load_markets()
        with pytest.raises(ccxt_errors.NetworkError):
            await c.create_order("XRP/ETH", "limit", "buy", 50, 0.0012, {"newClientOrderId": "lost"})
        with pytest.raises(ccxt_errors.OrderNotFound):
            await c.fetch_order(None, "XRP/ETH", {"origClientOrderId": "lost"})
        assert (tmp_path / "journal.jsonl").read_bytes() == b""


async def test_a_delayed_request_still_arrives(tls: ServerTls, tmp_path: Path) -> None:
    faults = {"GET /api/v3/time": Fault("delay", seconds=0.2)}

    async with serving(tls, tmp_path, faults=faults) as (_exchange, c):
        started = time.monotonic()
        await c.fetch_time()
        assert time.monotonic() - started >= 0.2


async def test_tls_1_2_is_refused(tls: ServerTls, tmp_path: Path) -> None:
    async with serving(tls, tmp_path) as (exchange, _c):
        context = ssl.create_default_context(cafile=str(tls.ca))
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        # The server may reset the connection before its alert is read.
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            await asyncio.open_connection("127.0.0.1", exchange.port, ssl=context)
        _, writer = await asyncio.open_connection("127.0.0.1", exchange.port, ssl=tls.client())
        assert writer.get_extra_info("ssl_object").version() == "TLSv1.3"
        writer.close()
        old = client(ccxt_async.binance, exchange.port, context)
        with pytest.raises(ccxt_errors.NetworkError):
            await old.fetch_time()
        await old.close()


@pytest.mark.slow
async def test_orders_take_the_server_little_time(tls: ServerTls, tmp_path: Path) -> None:
    async with serving(tls, tmp_path) as (_exchange, c):
        await c.load_markets()
        times = []
        for _ in range(100):
            started = time.perf_counter()
            await c.create_order("XRP/ETH", "limit", "buy", 50, 0.0012)
            times.append(time.perf_counter() - started)
        # Both ends share this event loop: ccxt's own work is in here.  Ten times what is measured on an idle core.
        assert statistics.median(times) < 0.020
