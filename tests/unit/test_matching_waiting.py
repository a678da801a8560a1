"""Orders that wait for their stop price, and lists of two of which one at most trades."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tallystick.components.paper_exchange.matching import Engine
from tallystick.components.paper_exchange.orders import (
    NewOrder,
    OrderList,
    OrderType,
    Refused,
    Report,
    Side,
    TimeInForce,
)
from tests.unit.test_matching import NOW, D, played


def waiting(kind: OrderType, side: Side, qty: str, stop: str, price: str | None = None, **fields: Any) -> NewOrder:
    tif: TimeInForce | None = None if price is None else "GTC"
    limit = None if price is None else D(price)
    return NewOrder(symbol="XRPETH", side=side, type=kind, qty=D(qty), stop=D(stop), price=limit, tif=tif, **fields)


def said(e: Engine) -> list[tuple[Any, ...]]:
    return [
        (r.execution, r.status, r.order.type) if isinstance(r, Report) else ("list", r.order_list.done)
        for r in e.drain()
    ]


@pytest.mark.parametrize(
    ("kind", "side", "stop", "price", "not_yet", "reached"),
    [
        ("STOP_LOSS", "SELL", "9", None, "9.01", "9"),
        ("STOP_LOSS_LIMIT", "SELL", "9", "8.9", "9.01", "8.99"),
        ("STOP_LOSS", "BUY", "11", None, "10.99", "11"),
        ("STOP_LOSS_LIMIT", "BUY", "11", "11.1", "10.99", "11.01"),
        ("TAKE_PROFIT", "SELL", "11", None, "10.99", "11"),
        ("TAKE_PROFIT_LIMIT", "SELL", "11", "10.9", "10.99", "11.05"),
        ("TAKE_PROFIT", "BUY", "9", None, "9.01", "9"),
        ("TAKE_PROFIT_LIMIT", "BUY", "9", "9.1", "9.01", "8.95"),
    ],
)
def test_an_order_with_a_stop_price_waits_until_the_last_price_reaches_it(
    kind: OrderType, side: Side, stop: str, price: str | None, not_yet: str, reached: str
) -> None:
    e = played()
    order = e.place("a", waiting(kind, side, "5", stop, price), NOW)
    assert (order.waits, order.status, e.open_orders("a")) == (True, "NEW", [order])
    with pytest.raises(Refused, match="would trigger immediately"):
        # At the other side of the last price it would be reached already.
        e.place("a", waiting(kind, side, "5", "20" if D(stop) < 10 else "1", price), NOW)
    e.market_trade("XRPETH", D(not_yet), D(50), True, NOW)
    e.market_trade("XRPETH", D(not_yet), D(50), False, NOW)
    assert order.waits
    assert not order.executed
    e.market_trade("XRPETH", D(reached), D(50), side == "SELL", NOW + 1)
    assert (order.waits, order.status, order.executed, order.working_ms) == (False, "FILLED", D(5), NOW + 1)
    assert not e.open_orders("a")


def test_a_waiting_order_is_cancelled_and_its_funds_are_free_again() -> None:
    e = played()
    before = {asset: b.free for asset, b in e.accounts["a"].items()}
    order = e.place("a", waiting("STOP_LOSS_LIMIT", "SELL", "5", "9", "8.9"), NOW)
    assert e.accounts["a"]["XRP"].locked == 5
    e.cancel("a", "XRPETH", order.id, None, NOW)
    assert {asset: b.free for asset, b in e.accounts["a"].items()} == before
    e.market_trade("XRPETH", D("8.5"), D(50), True, NOW)
    assert order.status == "CANCELED"


def test_a_stop_to_buy_at_the_market_that_cannot_be_paid_any_more_expires() -> None:
    e = played()
    order = e.place("a", waiting("STOP_LOSS", "BUY", "5", "11"), NOW)
    e.withdraw("a", "ETH", e.accounts["a"]["ETH"].free)
    e.market_trade("XRPETH", D(11), D(50), False, NOW)
    assert (order.status, order.executed) == ("EXPIRED", D(0))


def test_of_two_orders_in_a_list_one_at_most_trades() -> None:
    for reached, buyer_is_maker, filled in (("11", False, 0), ("8.9", True, 1)):
        e = played()
        above = NewOrder(symbol="XRPETH", side="SELL", type="LIMIT_MAKER", qty=D(5), price=D(11))
        below = waiting("STOP_LOSS", "SELL", "5", "9")
        of = e.place_list("a", above, below, "pair", NOW)
        assert e.accounts["a"]["XRP"].locked == 5
        assert said(e) == [("NEW", "NEW", "LIMIT_MAKER"), ("NEW", "NEW", "STOP_LOSS"), ("list", False)]
        e.market_trade("XRPETH", D(reached), D(50), buyer_is_maker, NOW)
        assert [o.status for o in of.orders] == (["FILLED", "EXPIRED"] if filled == 0 else ["EXPIRED", "FILLED"])
        assert (of.done, e.accounts["a"]["XRP"].locked, e.open_lists("a")) == (True, D(0), [])
        assert ("list", True) in said(e)


def test_a_list_is_cancelled_as_a_whole_by_each_of_its_names() -> None:
    cancels: tuple[Callable[[Engine, OrderList], object], ...] = (
        lambda e, of: e.cancel("a", "XRPETH", of.orders[1].id, None, NOW),
        lambda e, of: e.cancel_list("a", "XRPETH", of.id, None, NOW),
        lambda e, of: e.cancel_list("a", "XRPETH", None, "pair", NOW),
        lambda e, of: e.cancel_all("a", "XRPETH", NOW),
    )
    for cancel in cancels:
        e = played()
        above = waiting("STOP_LOSS_LIMIT", "BUY", "5", "11", "11.2")
        below = NewOrder(symbol="XRPETH", side="BUY", type="LIMIT_MAKER", qty=D(5), price=D(9))
        of = e.place_list("a", above, below, "pair", NOW)
        assert e.accounts["a"]["ETH"].locked == 56  # what the dearer needs, once
        cancel(e, of)
        assert [o.status for o in of.orders] == ["CANCELED", "CANCELED"]
        assert e.accounts["a"]["ETH"].locked == 0
        with pytest.raises(Refused, match="Unknown order"):
            e.cancel_list("a", "XRPETH", of.id, None, NOW)


@pytest.mark.parametrize(
    ("above", "below", "number"),
    [
        (("LIMIT_MAKER", "11", None), ("LIMIT_MAKER", "9", None), -1168),
        (("LIMIT_MAKER", "11", None), ("TAKE_PROFIT", None, "9"), -1199),
        (("STOP_LOSS", None, "11"), ("STOP_LOSS", None, "9"), -1197),
        (("STOP_LOSS", None, "11"), ("LIMIT_MAKER", "9", None), -1166),
        (("LIMIT_MAKER", "9.5", None), ("STOP_LOSS", None, "9"), -2010),
        (("LIMIT_MAKER", "12", None), ("STOP_LOSS", None, "11"), -2010),
    ],
)
def test_a_list_whose_prices_do_not_fit_is_refused(above: Any, below: Any, number: int) -> None:
    e = played()
    legs = [
        NewOrder(symbol="XRPETH", side="SELL", type=kind, qty=D(5), price=price and D(price), stop=stop and D(stop))
        for kind, price, stop in (above, below)
    ]
    before = {asset: (b.free, b.locked) for asset, b in e.accounts["a"].items()}
    with pytest.raises(Refused) as refused:
        e.place_list("a", legs[0], legs[1], None, NOW)
    assert refused.value.number == number
    assert {asset: (b.free, b.locked) for asset, b in e.accounts["a"].items()} == before
