"""What Binance's answers mean: a refusal only where the venue plainly did nothing."""

from __future__ import annotations

from decimal import Decimal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallystick.venues import NoAnswer, NotFound, OrderReport, Rejected
from tallystick.venues.binance.answers import order_answer, orders_answer

# https://developers.binance.com/docs/binance-spot-api-docs/rest-api/trading-endpoints, "Conditional fields" left out
RESULT = b"""{"symbol":"XRPETH","orderId":28,"orderListId":-1,"clientOrderId":"ts01","transactTime":1507725176595,
"price":"0.00100000","origQty":"10.00000000","executedQty":"4.00000000","origQuoteOrderQty":"0.000000",
"cummulativeQuoteQty":"0.00400000","status":"PARTIALLY_FILLED","timeInForce":"GTC","type":"LIMIT","side":"SELL",
"workingTime":1507725176595,"selfTradePreventionMode":"NONE"}"""
CANCELED = b"""{"symbol":"XRPETH","origClientOrderId":"ts01","orderId":28,"orderListId":-1,"clientOrderId":"cancelMyOrder1",
"transactTime":1684804350068,"price":"2.00000000","origQty":"1.00000000","executedQty":"0.00000000",
"origQuoteOrderQty":"0.000000","cummulativeQuoteQty":"0.00000000","status":"CANCELED","timeInForce":"GTC",
"type":"LIMIT","side":"BUY","selfTradePreventionMode":"NONE"}"""


def error(code: int, msg: str = "x") -> bytes:
    return msgspec.json.encode({"code": code, "msg": msg})


def test_a_description_of_an_order_is_read_exactly() -> None:
    assert order_answer(200, RESULT, "XRPETH") == OrderReport(
        "ts01", "28", "PARTIALLY_FILLED", Decimal("4.00000000"), final=False
    )


def test_the_answer_to_a_cancel_names_our_order_and_not_the_cancels_own_id() -> None:
    assert order_answer(200, CANCELED, "XRPETH") == OrderReport("ts01", "28", "CANCELED", Decimal("0E-8"), final=True)


def test_a_list_is_read_whole_or_not_at_all() -> None:
    assert orders_answer(200, b"[" + RESULT + b"," + CANCELED + b"]", "XRPETH") == (
        OrderReport("ts01", "28", "PARTIALLY_FILLED", Decimal("4.00000000"), final=False),
        OrderReport("ts01", "28", "CANCELED", Decimal("0E-8"), final=True),
    )
    assert orders_answer(200, b"[]", "XRPETH") == ()
    assert isinstance(orders_answer(200, b"[" + RESULT + b",{}]", "XRPETH"), NoAnswer)


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (400, error(-1013, "Filter failure: NOTIONAL"), "-1013"),
        (400, error(-2010, "Account has insufficient balance for requested action."), "-2010"),
        (400, error(-2011, "Unknown order sent."), "-2011"),
        (400, error(-1021), "-1021"),
        (401, error(-2015), "-2015"),
        (429, error(-1003), "-1003"),
        (418, error(-1003), "-1003"),
    ],
)
def test_a_plain_refusal_is_final(status: int, body: bytes, code: str) -> None:
    outcome = order_answer(status, body, "XRPETH")
    assert isinstance(outcome, Rejected)
    assert outcome.code == code


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, error(-1006)),
        (503, error(-1008)),
        (504, b"<html>gateway timeout</html>"),
        (400, error(-1007, "Timeout waiting for response from backend server. Send status unknown")),
        (400, error(-1006)),
        (400, error(-2010, "Duplicate order sent.")),
        (403, b"<html>firewall</html>"),
        (400, b""),
        (400, b'{"code":"-1013","msg":"text where a number belongs"}'),
        (302, error(-1)),
        (200, b""),
        (200, b"{}"),
        (200, RESULT.replace(b"XRPETH", b"BTCUSDT")),
        (200, RESULT.replace(b"4.00000000", b"-4.00000000")),
        (200, RESULT.replace(b"4.00000000", b"NaN")),
        (200, RESULT.replace(b"4.00000000", b"1E+50")),
        (200, b"[]"),
        (200, RESULT.replace(b"XRPETH", b"XRP\x80TH")),
        (400, b'{"code":-1013,"msg":"\x80"}'),
        (200, error(-1013)),
    ],
)
def test_everything_unclear_is_asked_for(status: int, body: bytes) -> None:
    assert isinstance(order_answer(status, body, "XRPETH"), NoAnswer)


def test_not_found_is_neither_refused_nor_unclear() -> None:
    assert order_answer(400, error(-2013, "Order does not exist."), "XRPETH") == NotFound()


def test_refusals_of_key_and_signature_are_security_matters() -> None:
    for code in (-2015, -2014, -1022, -1002):
        assert order_answer(401, error(code), "XRPETH") == Rejected(str(code), "x", "credential")
    for code in (-1013, -1003):
        assert order_answer(400, error(code), "XRPETH") == Rejected(str(code), "x", "request")


def test_a_refused_timestamp_is_a_matter_of_clocks() -> None:
    assert order_answer(400, error(-1021), "XRPETH") == Rejected("-1021", "x", "clock")


def test_a_cancel_of_all_that_finds_nothing_has_cancelled_all_and_one_of_an_order_is_refused() -> None:
    assert orders_answer(400, error(-2011), "XRPETH") == ()
    assert order_answer(400, error(-2011), "XRPETH") == Rejected("-2011", "x")
    assert isinstance(orders_answer(500, error(-2011), "XRPETH"), NoAnswer)
    assert orders_answer(429, error(-1003), "XRPETH") == Rejected("-1003", "x")


@pytest.mark.parametrize(
    ("status", "final"),
    [("NEW", False), ("PENDING_CANCEL", False), ("PARTIALLY_FILLED", False), ("FILLED", True), ("CANCELED", True),
     ("REJECTED", True), ("EXPIRED", True), ("EXPIRED_IN_MATCH", True)],
)  # fmt: skip
def test_only_the_venues_final_words_end_an_order(status: str, final: bool) -> None:
    outcome = order_answer(200, RESULT.replace(b"PARTIALLY_FILLED", status.encode()), "XRPETH")
    assert isinstance(outcome, OrderReport)
    assert (outcome.status, outcome.final) == (status, final)


@settings(max_examples=100)
@given(st.integers(100, 599), st.binary(max_size=300))
def test_no_answer_breaks_the_parser_or_passes_for_a_refusal(status: int, body: bytes) -> None:
    assert isinstance(order_answer(status, body, "XRPETH"), NoAnswer)
    assert isinstance(orders_answer(status, body, "XRPETH"), NoAnswer | tuple)
