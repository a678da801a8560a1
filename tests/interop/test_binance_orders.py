"""What ordinary clients send as orders, and what Binance answers: each line as its documentation or its users say."""

from __future__ import annotations

import time
import urllib.parse
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.support.paper import Raw, raw, sign, venue
from tests.support.tls import ServerTls

ORDER = "/api/v3/order"
LIMIT = {"symbol": "XRPETH", "side": "BUY", "type": "LIMIT", "timeInForce": "GTC", "quantity": "10", "price": "0.0012"}


def query(fields: dict[str, Any]) -> str:
    stamped = {"timestamp": time.time_ns() // 10**6} | fields
    return sign("&".join(f"{name}={urllib.parse.quote(str(value), safe='')}" for name, value in stamped.items()))


async def ask(client: Raw, method: str, path: str, **fields: Any) -> tuple[int, Any]:
    status, answer = await client.send(method, path, query(fields))
    return (status, answer) if status == 200 else (answer["code"], answer["msg"])


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"quantity": "10.00000000", "price": "0.00120000"}, 200),
        ({"price": "0.001200000"}, -1111),
        ({"price": "1.2e-3"}, -1100),
        ({"price": ".0012"}, -1100),
        ({"price": "0,0012"}, -1100),
        ({"price": "+0.0012"}, -1100),
        ({"quantity": "-10"}, -1100),
        ({"quantity": "10.5"}, -1013),
        ({"quantity": "1"}, -1013),
        ({"price": "0.00120005"}, -1013),
        ({"newClientOrderId": "bot.grid:7/1"}, 200),
        ({"timestamp": "in 1200 ms"}, -1021),
        ({"timestamp": "6000 ms ago"}, -1021),
        ({"timestamp": "in microseconds"}, 200),
        ({"recvWindow": "5000.5"}, 200),
        ({"recvWindow": "5000.1234"}, -1100),
        ({"recvWindow": "60001"}, -1131),
        ({"recvWindow": "60000.1"}, -1131),
        ({"side": "buy"}, -1117),
        ({"symbol": "币安人生USDT"}, -1121),
        ({"timeInForce": None}, -1102),
        ({"strategyId": "7", "strategyType": "1000001"}, 200),
        ({"strategyType": "999999"}, -1134),
        ({"icebergQty": "1"}, -2010),
        ({"trailingDelta": "100"}, -2010),
        ({"type": "STOP_LOSS_LIMIT", "side": "SELL", "stopPrice": "0.00115", "price": "0.0011"}, 200),
        ({"type": "STOP_LOSS_LIMIT", "side": "SELL", "stopPrice": "0.0014", "price": "0.0011"}, -2010),
        ({"type": "TAKE_PROFIT_LIMIT", "side": "SELL", "price": "0.0014"}, -1102),
    ],
    ids=str,
)
async def test_an_order_is_taken_or_refused_as_at_binance(
    tls: ServerTls, tmp_path: Path, change: dict[str, Any], code: int
) -> None:
    now = time.time_ns()
    stamps = {
        "in 1200 ms": now // 10**6 + 1_200,
        "6000 ms ago": now // 10**6 - 6_000,
        "in microseconds": now // 10**3,
    }
    fields = {name: value for name, value in (LIMIT | change).items() if value is not None}
    if "timestamp" in fields:
        fields["timestamp"] = stamps[fields["timestamp"]]
    async with venue(tls, tmp_path) as exchange, raw(exchange, tls) as client:
        assert (await ask(client, "POST", ORDER, **fields))[0] == code


async def test_orders_end_as_at_binance(tls: ServerTls, tmp_path: Path) -> None:
    async with venue(tls, tmp_path) as exchange, raw(exchange, tls) as client:
        market = {"symbol": "XRPETH", "side": "BUY", "type": "MARKET"}
        _, bought = await ask(client, "POST", ORDER, **market, quantity="10")
        assert (bought["status"], bought["fills"][0]["commissionAsset"]) == ("FILLED", "XRP")
        code, text = await ask(client, "POST", ORDER, **market | {"side": "SELL"}, quantity="100010")
        assert (code, text) == (-2010, "Account has insufficient balance for requested action.")
        _, by_value = await ask(client, "POST", ORDER, **market, quoteOrderQty="0.01234567")
        assert (by_value["status"], Decimal(by_value["executedQty"]) % 1) == ("FILLED", Decimal(0))
        deep = LIMIT | {"price": "0.0013002"}
        _, whole = await ask(client, "POST", ORDER, **deep | {"quantity": "90000", "timeInForce": "FOK"})
        assert (whole["status"], Decimal(whole["executedQty"])) == ("EXPIRED", Decimal(0))
        _, part = await ask(client, "POST", ORDER, **deep | {"quantity": "5000", "timeInForce": "IOC"})
        assert part["status"] == "EXPIRED"
        assert Decimal(part["executedQty"]) > 0
        _, rests = await ask(client, "POST", ORDER, **LIMIT, newOrderRespType="FULL", newClientOrderId="twice")
        assert (rests["status"], rests["fills"]) == ("NEW", [])
        assert (await ask(client, "POST", ORDER, **LIMIT, newClientOrderId="twice"))[0] == -2010
        one = {"symbol": "XRPETH", "origClientOrderId": "twice"}
        restricted = await ask(client, "DELETE", ORDER, **one, cancelRestrictions="ONLY_PARTIALLY_FILLED")
        assert restricted == (-2011, "Order was not canceled due to cancel restrictions.")
        assert (await ask(client, "DELETE", ORDER, **one, cancelRestrictions="ALL"))[0] == -1145
        assert (await ask(client, "DELETE", ORDER, **one, cancelRestrictions="ONLY_NEW"))[1]["status"] == "CANCELED"
        assert (await ask(client, "DELETE", ORDER, **one))[0] == -2011
        nobody = {"symbol": "XRPETH", "origClientOrderId": "nobody"}
        assert (await ask(client, "DELETE", ORDER, **nobody))[0] == -2011
        assert (await ask(client, "GET", ORDER, **nobody))[0] == -2013
        assert (await ask(client, "GET", ORDER, symbol="XRPETH", orderId=1))[0] == -2013
        assert (await ask(client, "GET", "/api/v3/openOrders", symbol="xrpeth"))[0] == -1100


async def test_queries_have_binances_bounds(tls: ServerTls, tmp_path: Path) -> None:
    now = time.time_ns() // 10**6
    async with venue(tls, tmp_path) as exchange, raw(exchange, tls) as client:
        for path in ("/api/v3/myTrades", "/api/v3/allOrders"):
            assert (await ask(client, "GET", path, symbol="XRPETH", limit=1001))[0] == 200
            assert (await ask(client, "GET", path, symbol="XRPETH", limit=0))[0] == -1130
            span = {"startTime": now - 3 * 86_400_000, "endTime": now}
            assert (await ask(client, "GET", path, symbol="XRPETH", **span))[0] == -1127


async def test_cancel_replace_says_what_became_of_each_half(tls: ServerTls, tmp_path: Path) -> None:
    path = "/api/v3/order/cancelReplace"
    async with venue(tls, tmp_path) as exchange, raw(exchange, tls) as client:
        await ask(client, "POST", ORDER, **LIMIT, newClientOrderId="first")
        replace = LIMIT | {"price": "0.0011", "cancelReplaceMode": "STOP_ON_FAILURE", "newClientOrderId": "second"}
        status, done = await client.send("POST", path, query(replace | {"cancelOrigClientOrderId": "first"}))
        assert (status, done["cancelResult"], done["newOrderResult"]) == (200, "SUCCESS", "SUCCESS")
        assert done["newOrderResponse"]["clientOrderId"] == "second"
        status, failed = await client.send("POST", path, query(replace | {"cancelOrigClientOrderId": "first"}))
        assert (status, failed["code"], failed["data"]["newOrderResult"]) == (400, -2022, "NOT_ATTEMPTED")
        anyway = replace | {"cancelReplaceMode": "ALLOW_FAILURE", "newClientOrderId": "third"}
        status, half = await client.send("POST", path, query(anyway | {"cancelOrigClientOrderId": "first"}))
        assert (status, half["code"], half["data"]["newOrderResult"]) == (409, -2021, "SUCCESS")
        dear = replace | {"quantity": "90000000", "newClientOrderId": "fourth"}
        status, half = await client.send("POST", path, query(dear | {"cancelOrigClientOrderId": "second"}))
        assert (status, half["code"]) == (409, -2021)
        assert (half["data"]["cancelResult"], half["data"]["newOrderResponse"]["code"]) == ("SUCCESS", -2010)
        # What was done of it is kept and told.
        assert [o.client_id for o in exchange.engine.open_orders("main")] == ["third"]


async def test_a_pair_of_orders_is_placed_asked_for_and_cancelled(tls: ServerTls, tmp_path: Path) -> None:
    async with venue(tls, tmp_path) as exchange, raw(exchange, tls) as client:
        shared = {"symbol": "XRPETH", "side": "SELL", "quantity": "10"}
        new = shared | {
            "aboveType": "LIMIT_MAKER",
            "abovePrice": "0.0014",
            "belowType": "STOP_LOSS",
            "belowStopPrice": "0.0012",
        }
        old = shared | {
            "price": "0.0014",
            "stopPrice": "0.0012",
            "stopLimitPrice": "0.0011",
            "stopLimitTimeInForce": "GTC",
        }
        for path, fields in (("/api/v3/orderList/oco", new), ("/api/v3/order/oco", old)):
            _, made = await ask(client, "POST", path, **fields, listClientOrderId="pair")
            assert (made["contingencyType"], made["listOrderStatus"], len(made["orderReports"])) == (
                "OCO",
                "EXECUTING",
                2,
            )
            number = {"orderListId": made["orderListId"]}
            assert (await ask(client, "GET", "/api/v3/orderList", **number))[1]["listClientOrderId"] == "pair"
            assert len((await ask(client, "GET", "/api/v3/openOrderList"))[1]) == 1
            # The cancel of one cancels both.
            first = {"symbol": "XRPETH", "orderId": made["orders"][0]["orderId"]}
            _, gone = await ask(client, "DELETE", ORDER, **first)
            assert (gone["listOrderStatus"], [o["status"] for o in gone["orderReports"]]) == (
                "ALL_DONE",
                ["CANCELED"] * 2,
            )
            assert (await ask(client, "DELETE", "/api/v3/orderList", symbol="XRPETH", **number))[0] == -2011
        assert len((await ask(client, "GET", "/api/v3/allOrderList"))[1]) == 2
        assert not exchange.engine.open_orders("main")
