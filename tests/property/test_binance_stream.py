from __future__ import annotations

import contextlib
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tallystick.components.market_data.live import parse_trade, trade_number
from tallystick.schemas.control import parse_request
from tallystick.schemas.errors import TallystickError
from tallystick.venues import FillReport
from tallystick.venues.binance import answers
from tallystick.venues.binance.stream import parse_push

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
REPORT: dict[str, Any] = {
    "e": "executionReport", "s": "ETHBTC", "c": "a", "C": "", "S": "BUY", "x": "TRADE", "i": 1, "t": 2,
    "l": "1", "L": "2", "n": "0", "N": "ETH", "T": 5, "m": True,
}  # fmt: skip
TRADE = {"id": "7", "price": "1.5", "amount": "2", "timestamp": 1, "side": "sell"}


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_only_our_errors(data: bytes) -> None:
    for parse in (
        lambda data: parse_push(data, {}, 0),
        lambda data: answers.parse_trades(data, "XRP/ETH"),
        answers.parse_account,
        lambda data: answers.parse_order(data, "XRPETH"),
        parse_request,
    ):
        with contextlib.suppress(TallystickError):
            parse(data)
    answers.parse_error(400, data)
    assert 0 < answers.busy_until(418, {"Retry-After": data.decode("latin-1")}, data, 0) <= 7 * 86_400 * 10**9


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(REPORT)), values)
def test_a_report_with_one_wrong_field_is_refused_or_still_exact(name: str, value: Any) -> None:
    text = json.dumps({"subscriptionId": 0, "event": REPORT | {name: value}}, allow_nan=True)
    with contextlib.suppress(TallystickError):
        for item in parse_push(text, {}, 0):
            if isinstance(item, FillReport):
                assert item.price > 0
                assert item.qty > 0


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(TRADE)), values))
def test_a_live_trade_with_wrong_fields_is_refused_or_exact(changes: dict[str, Any]) -> None:
    with contextlib.suppress(TallystickError):
        trade = parse_trade(TRADE | changes)
        assert trade.price > 0
        assert trade.qty > 0
        assert trade.trade_id >= 0


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40))
def test_every_trade_id_becomes_a_number_that_the_wire_holds(raw: str) -> None:
    assert 0 <= trade_number(raw) < 2**63
