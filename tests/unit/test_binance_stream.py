"""Binance's messages in our words; the messages are those of its documentation, shortened."""

from __future__ import annotations

import base64
import json
import urllib.parse
from decimal import Decimal
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tallystick.schemas.errors import Malformed
from tallystick.schemas.nats_jwt import SessionKey
from tallystick.venues import BalanceReport, FillReport
from tallystick.venues.binance.answers import VenueError, parse_error, parse_trades
from tallystick.venues.binance.follow import UserStream
from tallystick.venues.binance.stream import Ended, Item, OrderNamed, is_answer, parse_push, signed_query, subscription

D = Decimal
KEY = SessionKey(bytes(32))
PUBLIC = Ed25519PublicKey.from_public_bytes(KEY.public)
NOW = 1_800_000_000_123_456_789
REPORT: dict[str, Any] = {
    "e": "executionReport",
    "E": 1499405658658,
    "s": "ETHBTC",
    "c": "mUvoqJxFIILMdfAW5iGSOW",
    "S": "BUY",
    "o": "LIMIT",
    "C": "",
    "x": "TRADE",
    "X": "FILLED",
    "i": 4293153,
    "l": "1.00000000",
    "L": "0.10264410",
    "n": "0.00100000",
    "N": "ETH",
    "T": 1499405658657,
    "t": 77,
    "m": False,
    "somethingNew": [1, 2],
}


def said(event: Any) -> list[Item]:
    return parse_push(json.dumps({"subscriptionId": 0, "event": event}), {"ETHBTC": "ETH/BTC"}, NOW)


def test_a_trade_report_is_a_fill() -> None:
    [fill] = said(REPORT)
    assert fill == FillReport(
        symbol="ETH/BTC",
        client_order_id="mUvoqJxFIILMdfAW5iGSOW",
        venue_order_id="4293153",
        trade_id=77,
        side="buy",
        price=D("0.1026441"),
        qty=D(1),
        commission=D("0.001"),
        commission_asset="ETH",
        maker=False,
        time=1499405658657 * 10**6,
    )


def test_a_fill_of_an_instrument_that_is_not_ours_is_told_under_the_venues_name() -> None:
    [fill] = said(REPORT | {"s": "DOGEUSDT"})
    assert isinstance(fill, FillReport)
    assert fill.symbol == "DOGEUSDT"


def test_the_report_of_a_cancel_names_the_order_not_the_cancel() -> None:
    cancelled = REPORT | {"x": "CANCELED", "c": "the-cancel", "C": "the-order", "n": "0", "N": None, "t": -1}
    assert said(cancelled) == [OrderNamed("ETH/BTC", "4293153", "the-order")]
    new = REPORT | {"x": "NEW", "N": None, "t": -1}
    assert said(new) == [OrderNamed("ETH/BTC", "4293153", "mUvoqJxFIILMdfAW5iGSOW")]


def test_balances_ends_and_what_is_not_known() -> None:
    position = {"e": "outboundAccountPosition", "B": [{"a": "ETH", "f": "10000.000000", "l": "0.5"}]}
    assert said(position) == [BalanceReport("ETH", D(10000), D("0.5"))]
    assert said({"e": "eventStreamTerminated", "E": 1}) == [Ended("eventStreamTerminated")]
    assert said({"e": "balanceUpdate", "d": "1"}) == []
    assert parse_push('{"id":"1","status":200,"result":{}}', {}, NOW) == []


@pytest.mark.parametrize(
    "change",
    [
        {"L": "NaN"},
        {"L": "-1"},
        {"L": "1e5"},
        {"L": "1_0"},
        {"L": " 1"},
        {"L": "٣"},
        {"L": ""},
        {"L": "."},
        {"L": "1.2.3"},
        {"L": 0.1},
        {"l": None},
        {"S": "HOLD"},
        {"i": "7"},
        {"t": None},
        {"m": "yes"},
        {"s": 7},
        {"T": 1.5},
    ],
    ids=str,
)
def test_a_report_that_is_not_as_documented_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        said(REPORT | change)


def test_a_fill_of_nothing_is_refused() -> None:
    with pytest.raises(Malformed, match="above zero"):
        said(REPORT | {"l": "0.00000000"})


@pytest.mark.parametrize(
    ("number", "code"), [(-2015, "VENUE_CREDENTIAL"), (-1022, "VENUE_CREDENTIAL"), (-1003, "VENUE_REFUSED")]
)
def test_a_refused_credential_is_told_apart_from_other_refusals(number: int, code: str) -> None:
    text = json.dumps({"id": "1", "status": 401, "error": {"code": number, "msg": "no"}})
    with pytest.raises(VenueError) as caught:
        is_answer(text, "1", NOW)
    assert (caught.value.code, caught.value.number) == (code, number)
    assert parse_error(401, json.dumps({"code": number, "msg": "no"}).encode()).code == code
    assert parse_error(502, b"<html>").number == 0


def test_trades_come_oldest_first_whatever_the_order_of_the_answer() -> None:
    row = {
        "symbol": "ETHBTC",
        "orderId": 1,
        "price": "2",
        "qty": "3",
        "commission": "0",
        "commissionAsset": "ETH",
        "time": 5,
        "isBuyer": False,
        "isMaker": True,
    }
    fills = parse_trades(json.dumps([row | {"id": 9}, row | {"id": 8}]).encode(), "ETH/BTC")
    assert [f.trade_id for f in fills] == [8, 9]
    assert (fills[0].side, fills[0].client_order_id, fills[0].time) == ("sell", "", 5 * 10**6)
    assert fills[0].symbol == "ETH/BTC"


def test_a_request_is_signed_over_what_is_sent() -> None:
    query = signed_query({"symbol": "XRPETH", "fromId": "7"}, NOW, KEY)
    payload, _, signature = query.partition("&signature=")
    assert payload == "symbol=XRPETH&fromId=7&recvWindow=5000&timestamp=1800000000123"
    PUBLIC.verify(base64.b64decode(urllib.parse.unquote(signature)), payload.encode())


def test_a_subscription_is_signed_over_its_sorted_parameters() -> None:
    request = json.loads(subscription("1", "key", NOW, KEY))
    params = request["params"]
    payload = f"apiKey=key&recvWindow=5000&timestamp={params['timestamp']}"
    PUBLIC.verify(base64.b64decode(params["signature"]), payload.encode())
    assert request["method"] == "userDataStream.subscribe.signature"


@pytest.mark.parametrize(
    ("paper", "host", "socket"),
    [
        (True, "127.0.0.1:9443", "wss://127.0.0.1:9443/ws-api/v3"),
        (False, "api.binance.com", "wss://ws-api.binance.com/ws-api/v3"),
        (False, "testnet.binance.vision", "wss://ws-api.testnet.binance.vision/ws-api/v3"),
    ],
)
def test_the_websocket_api_is_where_the_venue_has_it(paper: bool, host: str, socket: str) -> None:
    nothing: Any = None
    stream = UserStream(
        host=host,
        paper=paper,
        api_key="key",
        signer=KEY,
        symbols={},
        tls=nothing,
        clock=lambda: NOW,
        listener=nothing,
    )
    assert (stream._rest_url, stream._socket_url) == (f"https://{host}/api/v3", socket)
