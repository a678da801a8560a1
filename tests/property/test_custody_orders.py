"""Whatever strings a permit holds: custody refuses, or signs a request that says exactly them."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallystick.schemas import signing
from tallystick.schemas.orders import VenueOrder
from tests.support.custody import MARKET_PRICE, OWN, Desk

ORDER = {"LIMIT": {"GTC", "IOC", "FOK"}, "MARKET": {""}}
number = st.one_of(
    st.decimals(min_value=0, max_value=6000, places=0, allow_nan=False).map(lambda d: f"{d:f}"),
    st.decimals(min_value=0, max_value=1, places=7, allow_nan=False).map(lambda d: f"{d.normalize():f}"),
    st.decimals(allow_nan=True).map(str),
    st.text(alphabet="0123456789.-+eE&=% ", max_size=12),
)
tricky = st.sampled_from(["", "&", "=", "%26", "&side=SELL", "\n", "\u0661", " ", "x-"])


def either(*values: str) -> st.SearchStrategy[str]:
    """Mostly a value that may pass, sometimes one with something behind it."""
    return st.one_of(
        st.sampled_from(values),
        st.sampled_from(values),
        st.builds(lambda value, tail: value + tail, st.sampled_from(values), tricky),
    )


orders = st.builds(
    VenueOrder,
    symbol=either("XRPETH"),
    side=either("BUY", "SELL"),
    type=either("LIMIT", "MARKET"),
    time_in_force=either("GTC", "IOC", "FOK", ""),
    quantity=number,
    price=st.one_of(number, st.just("")),
    client_order_id=either(OWN, "other-order-1"),
)


@settings(max_examples=60, deadline=None)
@given(order=orders)
def test_a_signed_request_says_what_the_permit_says(
    tmp_path_factory: pytest.TempPathFactory, order: VenueOrder
) -> None:
    desk = Desk(tmp_path_factory.mktemp("custody"))
    reply = desk.sign(order=order)
    if isinstance(reply, signing.Refused):
        return
    assert isinstance(reply, signing.Signed)
    assert reply.method == "POST"
    assert Path(reply.url).name == "order"
    fields = dict(part.split("=") for part in reply.body.split("&"))
    expected = {
        "symbol": order.symbol,
        "side": order.side,
        "type": order.type,
        "timeInForce": order.time_in_force,
        "quantity": order.quantity,
        "price": order.price,
    }
    # Only the id that names the intent is signed.
    assert order.client_order_id == OWN
    assert re.fullmatch("ts[0-9a-f]{32}", fields.pop("newClientOrderId"))
    assert {name: fields.pop(name, "") for name in expected} == expected
    assert fields.keys() == {"newOrderRespType", "recvWindow", "timestamp", "signature"}
    assert order.time_in_force in ORDER[order.type]
    assert Decimal(order.quantity) > 0
    assert Decimal(order.quantity) * max(Decimal(order.price or 0), MARKET_PRICE) <= 5


@settings(max_examples=60, deadline=None)
@given(quantity=st.integers(1, 1000), ticks=st.integers(1, 125_000), side=st.sampled_from(["BUY", "SELL"]))
def test_every_order_in_whole_steps_and_ticks_within_the_cap_is_signed(
    tmp_path_factory: pytest.TempPathFactory, quantity: int, ticks: int, side: str
) -> None:
    desk = Desk(tmp_path_factory.mktemp("custody"))
    price = (ticks * Decimal("0.0000001")).normalize()
    order = VenueOrder("XRPETH", side, "LIMIT", "GTC", str(quantity), f"{price:f}", OWN)
    reply = desk.sign(order=order)
    if quantity * max(price, MARKET_PRICE) <= 5:
        assert isinstance(reply, signing.Signed), reply
    else:
        assert isinstance(reply, signing.Refused)
        assert reply.code == "CAP_EXCEEDED"
