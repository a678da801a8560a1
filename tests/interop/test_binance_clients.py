"""The calls that Binance's ordinary Python clients make, byte for byte as they make them, without installing them.

Recorded from python-binance 1.0.37, binance-connector 3.13.0 and binance-sdk-spot 13.3.0, all of which were run against the
paper exchange as well; ccxt, which is installed, runs itself (`test_ccxt_paper`).  They differ in where parameters stand
(query or body, also of a POST), in how they sign (HMAC in hex, Ed25519), and in which streams they open.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import time
import urllib.parse
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from yarl import URL

from tallystick.components.paper_exchange.access import Key
from tallystick.components.paper_exchange.server import Exchange
from tests.support.paper import sign, trade, venue
from tests.support.tls import ServerTls
from tests.support.waiting import until

SECRET = "S" * 32
HMAC_KEY = Key(api_key="hmackey", account="main", permissions=frozenset(("read", "trade")), secret=SECRET)
DAY_MS = 86_400_000


class Client:
    """Sends what it is told to, signed with HMAC as the older clients do."""

    def __init__(self, session: aiohttp.ClientSession, exchange: Exchange, tls: ServerTls) -> None:
        self.session = session
        self.tls = tls.client()
        self.host = f"127.0.0.1:{exchange.port}"

    async def public(self, path: str, headers: dict[str, str] | None = None) -> Any:
        url = URL(f"https://{self.host}{path}", encoded=True)
        async with self.session.get(url, ssl=self.tls, headers=headers) as answer:
            assert answer.content_type == "application/json"
            return await answer.json()

    async def keyed(self, method: str, path: str) -> Any:
        url = URL(f"https://{self.host}{path}", encoded=True)
        async with self.session.request(method, url, ssl=self.tls, headers={"X-MBX-APIKEY": "hmackey"}) as answer:
            return await answer.json()

    async def signed(self, method: str, path: str, *, in_body: bool = False, **fields: Any) -> Any:
        payload = urllib.parse.urlencode(fields | {"timestamp": time.time_ns() // 10**6})
        query = f"{payload}&signature={hmac.new(SECRET.encode(), payload.encode(), hashlib.sha256).hexdigest()}"
        url = URL(f"https://{self.host}{path}" + ("" if in_body else f"?{query}"), encoded=True)
        headers = {"X-MBX-APIKEY": "hmackey", "Content-Type": "application/x-www-form-urlencoded"}
        data = query if in_body else None
        async with self.session.request(method, url, data=data, ssl=self.tls, headers=headers) as answer:
            return await answer.json()

    @contextlib.asynccontextmanager
    async def socket(self, path: str) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        async with self.session.ws_connect(f"wss://{self.host}{path}", ssl=self.tls) as ws:
            yield ws


@contextlib.asynccontextmanager
async def running(tls: ServerTls, path: Path) -> AsyncIterator[tuple[Exchange, Client]]:
    async with venue(tls, path) as exchange, aiohttp.ClientSession() as session:
        exchange.keys.add(HMAC_KEY)
        yield exchange, Client(session, exchange, tls)


async def heard(ws: aiohttp.ClientWebSocketResponse, kind: str) -> Any:
    """The next message of event `kind`, with whatever wraps it."""
    while True:
        message = await asyncio.wait_for(ws.receive_json(), 20)
        event = message.get("data", message.get("event", message))
        if isinstance(event, dict) and event.get("e") == kind:
            return message


async def test_market_data_is_answered_as_every_client_asks_for_it(tls: ServerTls, tmp_path: Path) -> None:
    async with running(tls, tmp_path) as (exchange, client):
        trade(exchange, "0.0013001", "7", buyer_is_maker=True)
        get = client.public
        assert (await get("/api/v3/exchangeInfo?symbols=%5B%22XRPETH%22%5D"))["symbols"][0]["symbol"] == "XRPETH"
        depth = await get("/api/v3/depth?symbol=XRPETH&limit=5")
        assert depth["bids"][0] == ["0.00130010", "7.00000000"]
        assert len(depth["bids"]) == len(depth["asks"]) == 5
        assert [t["qty"] for t in await get("/api/v3/trades?symbol=XRPETH&limit=2")] == ["1000.00000000", "7.00000000"]
        newest = (await get("/api/v3/historicalTrades?symbol=XRPETH&limit=1"))[0]
        aggregates = await get(f"/api/v3/aggTrades?symbol=XRPETH&fromId={newest['id']}")
        assert [(a["a"], a["p"], a["m"]) for a in aggregates] == [(newest["id"], "0.00130010", True)]
        for path in ("klines", "uiKlines"):
            [*_, candle] = await get(f"/api/v3/{path}?symbol=XRPETH&interval=1m&limit=2")
            assert (len(candle), candle[4], candle[6] - candle[0]) == (12, "0.00130010", 59_999)
        assert (await get("/api/v3/avgPrice?symbol=XRPETH"))["mins"] == 5
        day = await get("/api/v3/ticker/24hr?symbol=XRPETH")
        assert (day["lastPrice"], day["highPrice"], day["count"], day["volume"]) == (
            "0.00130010",
            "0.00130020",
            3,
            "2007.00000000",
        )
        assert len(await get("/api/v3/ticker/24hr?type=MINI")) == 1
        assert (await get("/api/v3/ticker?symbol=XRPETH&windowSize=1h"))["count"] == 3
        assert (await get("/api/v3/ticker/tradingDay?symbol=XRPETH"))["symbol"] == "XRPETH"
        assert await get("/api/v3/ticker/price") == [{"symbol": "XRPETH", "price": "0.00130010"}]
        assert (await get("/api/v3/ticker/bookTicker?symbol=XRPETH"))["askPrice"] == "0.00130020"
        assert (await get("/sapi/v1/system/status"))["status"] == 0


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/api/v3/nothing", -1020),
        ("/sapi/v1/asset/dust-btc", -1020),
        ("/api/v1/ping", -1020),
        ("/", -1020),
        ("/api/v3/klines?symbol=XRPETH&interval=7m", -1120),
        ("/api/v3/klines?symbol=XRPETH", -1102),
        ("/api/v3/depth", -1102),
        ("/api/v3/depth?symbol=ETHBTC", -1121),
        ("/api/v3/depth?symbol=XRPETH&limit=0", -1130),
        ("/api/v3/ticker?windowSize=1h", -1128),
        ("/api/v3/ticker?symbol=XRPETH&windowSize=1y", -1100),
        ("/api/v3/ticker/24hr?type=BIG", -1139),
        ("/api/v3/ticker/price?symbol=XRPETH&symbols=%5B%22XRPETH%22%5D", -1128),
        ("/api/v3/ticker/price?symbols=%5B%22XRPETH%22%2C%22XRPETH%22%5D", -1151),
        ("/api/v3/ticker/price?symbols=XRPETH", -1135),
    ],
)
async def test_what_is_not_here_or_not_right_is_answered_in_binances_json(
    tls: ServerTls, tmp_path: Path, path: str, code: int
) -> None:
    async with running(tls, tmp_path) as (_exchange, client):
        assert (await client.public(path))["code"] == code


@pytest.mark.parametrize("in_body", [True, False], ids=["python-binance", "binance-connector"])
async def test_an_hmac_key_trades(tls: ServerTls, tmp_path: Path, in_body: bool) -> None:
    async with running(tls, tmp_path) as (exchange, client):
        order = {
            "symbol": "XRPETH",
            "side": "BUY",
            "type": "LIMIT",
            "timeInForce": "GTC",
            "quantity": 50,
            "price": "0.0012",
        }
        placed = await client.signed("POST", "/api/v3/order", in_body=in_body, **order, newClientOrderId="x-HNA2TXFJ1")
        assert placed["status"] == "NEW"
        which = {"symbol": "XRPETH", "orderId": placed["orderId"]}
        assert (await client.signed("GET", "/api/v3/order", **which))["clientOrderId"] == "x-HNA2TXFJ1"
        assert len(await client.signed("GET", "/api/v3/allOrders", symbol="XRPETH")) == 1
        assert (await client.signed("DELETE", "/api/v3/order", **which))["status"] == "CANCELED"
        assert [o["status"] for o in await client.signed("GET", "/api/v3/allOrders", symbol="XRPETH")] == ["CANCELED"]
        counts = await client.signed("GET", "/api/v3/rateLimit/order")
        assert [c["count"] for c in counts] == [1, 1]
        rates = await client.signed("GET", "/api/v3/account/commission", symbol="XRPETH")
        assert rates["standardCommission"]["maker"] == "0.00100000"
        assert (await client.signed("GET", "/sapi/v1/account/status"))["data"] == "Normal"
        assert (await client.signed("POST", "/api/v3/order/test", in_body=in_body, **order)) == {}
        # Its secret is no secret of another key, and another secret opens nothing.
        stolen = sign(urllib.parse.urlencode(order | {"timestamp": time.time_ns() // 10**6}))
        async with client.session.post(
            f"https://{client.host}/api/v3/order", data=stolen, ssl=client.tls,
            headers={"X-MBX-APIKEY": "hmackey", "Content-Type": "application/x-www-form-urlencoded"},
        ) as answer:  # fmt: skip
            assert (await answer.json())["code"] == -1022
        assert len(exchange.engine.orders()) == 1


async def test_times_are_in_microseconds_for_who_asks_for_them(tls: ServerTls, tmp_path: Path) -> None:
    async with running(tls, tmp_path) as (exchange, client):
        unit = {"X-MBX-TIME-UNIT": "MICROSECOND"}
        before = time.time_ns() // 10**3
        assert (await client.public("/api/v3/time", unit))["serverTime"] >= before - 1_000
        assert (await client.public("/api/v3/trades?symbol=XRPETH", unit))[0]["time"] > 10**15
        [candle, *_] = await client.public("/api/v3/klines?symbol=XRPETH&interval=1m", unit)
        assert candle[6] - candle[0] == 59_999_999
        assert (await client.public("/api/v3/time", {"X-MBX-TIME-UNIT": "HOURS"}))["code"] == -1194
        async with client.socket("/ws/xrpeth@trade?timeUnit=MICROSECOND") as ws:
            await until(lambda: exchange.sockets.open)
            trade(exchange, "0.0013", buyer_is_maker=True)
            event = await heard(ws, "trade")
            assert event["E"] > 10**15
            assert event["t"] == exchange.engine.books["XRPETH"].trade_id  # an id, no time
        # A later moment counts in microseconds as well.
        start = time.time_ns() // 10**3 - DAY_MS * 500
        assert await client.signed("GET", "/api/v3/myTrades", symbol="XRPETH", startTime=start) == []


async def test_streams_come_combined_or_alone(tls: ServerTls, tmp_path: Path) -> None:
    streams = {
        "xrpeth@trade": "trade",
        "xrpeth@aggTrade": "aggTrade",
        "xrpeth@kline_1m": "kline",
        "xrpeth@miniTicker": "24hrMiniTicker",
        "xrpeth@ticker": "24hrTicker",
        "xrpeth@depth@100ms": "depthUpdate",
        "xrpeth@avgPrice": "avgPrice",
    }
    async with running(tls, tmp_path) as (exchange, client):
        async with client.socket(f"/stream?streams={'/'.join([*streams, 'xrpeth@bookTicker', 'xrpeth@depth5'])}") as ws:
            await until(lambda: exchange.sockets.open)
            trade(exchange, "0.0013003", "11", buyer_is_maker=False)
            messages = [await asyncio.wait_for(ws.receive_json(), 20) for _ in range(9)]
            said = {m["stream"]: m["data"] for m in messages}
            assert {name: said[name]["e"] for name in streams} == streams
            assert said["xrpeth@bookTicker"]["a"] == "0.00130030"
            assert said["xrpeth@depth5"]["asks"][0] == ["0.00130030", "11.00000000"]
            assert said["xrpeth@kline_1m"]["k"]["c"] == "0.00130030"
            await ws.send_json({"method": "SET_PROPERTY", "params": ["combined", False], "id": 5})
            assert await asyncio.wait_for(ws.receive_json(), 20) == {"result": None, "id": 5}
            trade(exchange, "0.0013003", "12", buyer_is_maker=False)
            assert "stream" not in await heard(ws, "trade")
        async with client.socket("/ws/xrpeth@trade/xrpeth@nothing") as ws:
            await ws.send_json({"method": "LIST_SUBSCRIPTIONS", "id": 1})
            assert (await asyncio.wait_for(ws.receive_json(), 20))["result"] == ["xrpeth@trade"]


async def test_a_book_kept_from_the_stream_is_the_venues(tls: ServerTls, tmp_path: Path) -> None:
    async with running(tls, tmp_path) as (exchange, client), client.socket("/ws/xrpeth@depth@100ms") as ws:
        await until(lambda: exchange.sockets.open)
        snapshot = await client.public("/api/v3/depth?symbol=XRPETH&limit=5000")
        book = {side: {Decimal(p): Decimal(q) for p, q in snapshot[side]} for side in ("bids", "asks")}
        last = snapshot["lastUpdateId"]
        for i in range(5):
            await asyncio.sleep(0.11)
            trade(exchange, f"0.00130{i:02d}", str(5 + i), buyer_is_maker=i % 2 == 0)
        await asyncio.sleep(0.11)
        exchange._ticks.depth("XRPETH", 1)  # whatever was not told yet
        bids, asks = exchange.engine.depth_of("XRPETH")
        while {p: q for p, q in book["bids"].items() if q} != dict(bids) or {
            p: q for p, q in book["asks"].items() if q
        } != dict(asks):
            event = await heard(ws, "depthUpdate")
            if event["u"] <= snapshot["lastUpdateId"]:
                continue
            assert event["U"] == last + 1
            last = event["u"]
            for side, name in (("bids", "b"), ("asks", "a")):
                book[side] |= {Decimal(p): Decimal(q) for p, q in event[name]}


async def test_an_account_is_followed_by_a_listen_key_until_it_is_closed(tls: ServerTls, tmp_path: Path) -> None:
    async with running(tls, tmp_path) as (exchange, client):
        name = (await client.keyed("POST", "/api/v3/userDataStream"))["listenKey"]
        assert await client.keyed("PUT", f"/api/v3/userDataStream?listenKey={name}") == {}
        assert (await client.keyed("PUT", "/api/v3/userDataStream?listenKey=none"))["code"] == -1125
        async with client.socket(f"/ws/{name}") as alone, client.socket(f"/stream?streams={name}") as combined:
            await until(lambda: len(exchange.sockets.open) == 2)
            market: dict[str, Any] = {"symbol": "XRPETH", "side": "BUY", "type": "MARKET", "quantity": "10"}
            await client.signed("POST", "/api/v3/order", **market)
            event = await heard(alone, "executionReport")
            assert (event["s"], event["o"], event["i"]) == ("XRPETH", "MARKET", exchange.engine.orders()[0].id)
            assert (await heard(combined, "outboundAccountPosition"))["stream"] == name
            pair: dict[str, Any] = {
                "aboveType": "LIMIT_MAKER",
                "abovePrice": "0.0014",
                "belowType": "STOP_LOSS",
                "belowStopPrice": "0.0012",
            }
            await client.signed("POST", "/api/v3/orderList/oco", symbol="XRPETH", side="SELL", quantity="10", **pair)
            assert (await heard(alone, "listStatus"))["L"] == "EXECUTING"
            assert await client.keyed("DELETE", f"/api/v3/userDataStream?listenKey={name}") == {}
            assert (await heard(alone, "listenKeyExpired"))["listenKey"] == name
            assert (await heard(combined, "listenKeyExpired"))["stream"] == name
        async with client.socket(f"/ws/{name}") as ws:
            await ws.send_json({"method": "LIST_SUBSCRIPTIONS", "id": 1})
            assert (await asyncio.wait_for(ws.receive_json(), 20))["result"] == []


async def test_a_revoked_key_loses_its_listen_key(tls: ServerTls, tmp_path: Path) -> None:
    async with running(tls, tmp_path) as (exchange, client):
        name = (await client.keyed("POST", "/api/v3/userDataStream"))["listenKey"]
        async with client.socket(f"/ws/{name}") as ws:
            await until(lambda: exchange.sockets.followed)
            exchange.revoke("hmackey")
            await heard(ws, "listenKeyExpired")
            exchange.on_market_trade("XRPETH", Decimal("0.0013"), Decimal(5), True, 0)
            assert not exchange.sockets.followed
        assert (await client.keyed("POST", "/api/v3/userDataStream"))["code"] == -2015


async def test_orders_go_over_the_websocket_api_signed_or_in_a_session(tls: ServerTls, tmp_path: Path) -> None:
    async with running(tls, tmp_path) as (exchange, client), client.socket("/ws-api/v3") as ws:

        async def ask(method: str, **params: Any) -> Any:
            await ws.send_json({"id": method, "method": method, "params": params})
            answer = await asyncio.wait_for(ws.receive_json(), 20)
            assert answer["id"] == method
            # binance-sdk-spot reads it from every answer.
            assert answer["rateLimits"][0]["rateLimitType"] == "REQUEST_WEIGHT"
            return answer.get("result", answer.get("error"))

        def ed25519(**params: Any) -> dict[str, Any]:
            stamped: dict[str, Any] = params | {"apiKey": "traderkey", "timestamp": time.time_ns() // 10**6}
            payload = "&".join(f"{name}={stamped[name]}" for name in sorted(stamped))
            return stamped | {"signature": urllib.parse.unquote(sign(payload).partition("&signature=")[2])}

        order = {
            "symbol": "XRPETH",
            "side": "BUY",
            "type": "LIMIT",
            "timeInForce": "GTC",
            "quantity": "50",
            "price": "0.0012",
        }
        assert (await ask("depth", symbol="XRPETH", limit=5))["bids"]
        assert (await ask("klines", symbol="XRPETH", interval="1m"))[0][4] == "0.00130020"
        assert (await ask("order.place", **order))["code"] == -1102
        assert (await ask("order.place", **ed25519(**order, newClientOrderId="w1")))["status"] == "NEW"
        logged = await ask("session.logon", **ed25519())
        assert logged["apiKey"] == "traderkey"
        now = {"timestamp": time.time_ns() // 10**6}
        assert (await ask("order.status", symbol="XRPETH", origClientOrderId="w1", **now))["status"] == "NEW"
        assert (await ask("account.status", **now))["canTrade"] is True
        assert (await ask("userDataStream.subscribe"))["subscriptionId"] == 0
        assert (await ask("order.place", **order, nonsense=1, **now))["code"] == -1104
        assert (await ask("no.such.method"))["code"] == -1020
        # A session is worth no more than its key.
        exchange.revoke("traderkey")
        await heard(ws, "eventStreamTerminated")
        assert (await ask("order.cancel", symbol="XRPETH", origClientOrderId="w1", **now))["code"] == -2015
        assert [o.client_id for o in exchange.engine.open_orders("main")] == ["w1"]
    journal = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert [(e["request"], e["verdict"]) for e in journal] == [
        ("POST /api/v3/order", "NEW"),
        ("POST /api/v3/order", "-1104"),
    ]


async def test_an_hmac_key_has_no_session(tls: ServerTls, tmp_path: Path) -> None:
    async with running(tls, tmp_path) as (_exchange, client), client.socket("/ws-api/v3") as ws:
        params: dict[str, Any] = {"apiKey": "hmackey", "timestamp": time.time_ns() // 10**6}
        payload = "&".join(f"{name}={params[name]}" for name in sorted(params))
        params["signature"] = hmac.new(SECRET.encode(), payload.encode(), hashlib.sha256).hexdigest()
        await ws.send_json({"id": 1, "method": "session.logon", "params": params})
        assert (await ws.receive_json())["error"]["code"] == -4056
        await ws.send_json({"id": 2, "method": "userDataStream.subscribe.signature", "params": params})
        assert (await ws.receive_json())["result"] == {"subscriptionId": 0}


def test_a_secret_stands_in_no_text() -> None:
    assert SECRET not in repr(HMAC_KEY)
    assert "hmackey" not in repr(HMAC_KEY)
    assert SECRET.encode() in msgspec.json.encode(HMAC_KEY)  # only where it is kept
