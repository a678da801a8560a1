from __future__ import annotations

import itertools
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from tallystick.components.portfolio import book as book_module
from tallystick.components.portfolio.book import GRACE_NS, Book, Holding
from tallystick.schemas.errors import Malformed
from tallystick.schemas.ids import EventIds
from tallystick.schemas.orders import Decision, Fee, Fill, OrderEvent, Permit, Position, Side, VenueOrder
from tallystick.schemas.security import Notice
from tallystick.schemas.subjects import subject
from tallystick.venues import FillReport

NOW = 1_800_000_000_000_000_000
D = Decimal


def maker() -> Callable[..., Any]:
    ids = EventIds(bytes(8))
    ticks = itertools.count(NOW)

    def new(kind: type, causes: tuple[bytes, ...] = (), **fields: Any) -> Any:
        now = next(ticks)
        return kind(id=ids.next(now), ts=now, causes=causes, **fields)

    return new


NEW = maker()


def fresh() -> Any:
    return Book(NEW)


def permit(
    client: str, side: str = "BUY", qty: str = "10", price: str = "2", strategy: str = "momentum"
) -> tuple[Any, Decision]:
    order = VenueOrder("XRPETH", side, "LIMIT", "GTC", qty, price, client)
    decision = NEW(
        Decision,
        verdict="permit",
        intent_id=bytes(15) + b"i",
        intent_hash=bytes(32),
        trust_root=bytes(32),
        permit=Permit("main", order, bytes(32), bytes(16), NOW),
    )
    return subject("order.decision", strategy=strategy, venue="paper", symbol="XRP/ETH"), decision


def report(
    trade_id: int, client: str = "c1", side: Side = "buy", qty: str = "4", price: str = "2", **over: Any
) -> FillReport:
    fields: dict[str, Any] = {"symbol": "XRP/ETH", "venue_order_id": "77", "commission_asset": "ETH"} | over
    return FillReport(
        client_order_id=client,
        trade_id=trade_id,
        side=side,
        price=D(price),
        qty=D(qty),
        commission=D("0.001"),
        maker=False,
        time=NOW,
        **fields,
    )


def traded(side: Side, price: Decimal, qty: Decimal, fee: str = "0", asset: str = "ETH") -> FillReport:
    return msgspec.structs.replace(
        report(1, side=side), price=price, qty=qty, commission=D(fee), commission_asset=asset
    )


def kinds(outputs: list[Any]) -> list[str]:
    return [where.text if where.kind != "guard" else event.code for where, event in outputs]


def test_a_fill_is_booked_under_the_strategy_of_its_permit_with_its_position() -> None:
    book = fresh()
    where, decision = permit("c1")
    assert book.on_decision(where, decision, NOW) == []
    outputs = book.on_report("paper", report(5), NOW)
    assert kinds(outputs) == ["fill.momentum.paper.XRP-ETH", "position.momentum.paper.XRP-ETH"]
    fill, position = outputs[0][1], outputs[1][1]
    assert isinstance(fill, Fill)
    assert isinstance(position, Position)
    assert (fill.intent_id, fill.causes) == (decision.intent_id, (decision.id,))
    assert position.causes == (fill.id,)
    assert (position.qty, position.average_price, position.realized, position.fills) == (D(4), D(2), D(0), 1)
    assert (position.fees, position.net, position.other_fees) == (D("0.001"), D("-0.001"), ())


def test_a_fill_reported_twice_counts_once() -> None:
    book = fresh()
    book.on_decision(*permit("c1"), NOW)
    book.on_report("paper", report(5), NOW)
    assert book.on_report("paper", report(5), NOW) == []
    assert book.on_report("paper", report(5, client=""), NOW) == []
    assert book.position("momentum", "paper", "XRP/ETH").qty == D(4)


def test_the_same_trade_id_of_another_instrument_is_another_fill() -> None:
    book = fresh()
    book.on_decision(*permit("c1"), NOW)
    book.on_report("paper", report(5), NOW)
    assert book.on_report("paper", report(5, symbol="BTC/USDT", client="x"), NOW) == []
    assert len(book.on_time(NOW + GRACE_NS)) == 3


def test_a_fill_without_a_permit_waits_and_is_then_unknown_and_alarmed() -> None:
    book = fresh()
    assert book.on_report("paper", report(5), NOW) == []
    assert book.on_time(NOW + GRACE_NS - 1) == []
    outputs = book.on_time(NOW + GRACE_NS)
    assert kinds(outputs) == ["fill.unknown.paper.XRP-ETH", "position.unknown.paper.XRP-ETH", "FILL_WITHOUT_PERMIT"]
    notice = outputs[2][1]
    assert isinstance(notice, Notice)
    assert "trade 5 of XRP/ETH at paper: buy 4 at 2, order 77 (c1): no permit" in notice.text
    assert outputs[0][1].intent_id == b""
    assert book.position("momentum", "paper", "XRP/ETH") == Holding()


def test_a_report_that_overtakes_its_decision_is_booked_when_the_decision_comes() -> None:
    book = fresh()
    assert book.on_report("paper", report(5), NOW) == []
    assert book.on_report("paper", report(6, qty="1"), NOW) == []
    outputs = book.on_decision(*permit("c1"), NOW + 1)
    assert [e.trade_id for _, e in outputs if isinstance(e, Fill)] == [5, 6]
    assert book.position("momentum", "paper", "XRP/ETH").qty == D(5)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (report(5, side="sell"), "permit is to buy"),
        (report(5, price="2.00000001"), "permit allows 2"),
        (report(5, qty="10.00000001"), "permit has 10 left"),
        (report(5, symbol="BTC/USDT"), "permit is for XRP/ETH"),
    ],
)
def test_a_fill_that_its_permit_does_not_cover_is_a_fill_without_a_permit(bad: FillReport, why: str) -> None:
    book = fresh()
    book.on_decision(*permit("c1"), NOW)
    outputs = book.on_report("paper", bad, NOW)
    assert kinds(outputs)[2] == "FILL_WITHOUT_PERMIT"
    assert why in outputs[2][1].text


def test_fills_beyond_the_permitted_quantity_are_alarmed_also_piece_by_piece() -> None:
    book = fresh()
    book.on_decision(*permit("c1", qty="10"), NOW)
    for trade_id in (1, 2):
        assert len(book.on_report("paper", report(trade_id, qty="4"), NOW)) == 2
    assert kinds(book.on_report("paper", report(3, qty="4"), NOW))[2] == "FILL_WITHOUT_PERMIT"


def test_a_client_order_id_used_again_after_its_permit_is_filled_has_no_permit() -> None:
    book = fresh()
    book.on_decision(*permit("c1", qty="4"), NOW)
    book.on_report("paper", report(1), NOW)
    # Sent a second time: there is no permit to wait for.
    outputs = book.on_report("paper", report(2, venue_order_id="78"), NOW)
    assert kinds(outputs)[::2] == ["fill.unknown.paper.XRP-ETH", "FILL_WITHOUT_PERMIT"]
    notice = outputs[2][1]
    assert isinstance(notice, Notice)
    assert "order 78 (c1): the permit for 4 is used up" in notice.text


def test_a_trade_fetched_without_client_order_id_finds_its_permit_by_the_venues_order_id() -> None:
    book = fresh()
    book.on_decision(*permit("c1"), NOW)
    book.on_order("paper", "XRP/ETH", "77", "c1")
    assert kinds(book.on_report("paper", report(5, client=""), NOW))[0] == "fill.momentum.paper.XRP-ETH"


def order_event(state: str, executed: str | None = None, client: str = "c1") -> tuple[Any, OrderEvent]:
    event = NEW(
        OrderEvent,
        intent_id=bytes(15) + b"i",
        decision_id=bytes(16),
        client_order_id=client,
        state=state,
        venue_order_id="77",
        executed=None if executed is None else D(executed),
    )
    return subject("order.event", strategy="momentum", venue="paper", symbol="XRP/ETH"), event


def test_a_closed_order_can_be_filled_only_as_far_as_execution_says() -> None:
    book = fresh()
    book.on_decision(*permit("c1", qty="10"), NOW)
    assert len(book.on_report("paper", report(1, qty="4"), NOW)) == 2
    book.on_order_event(*order_event("closed", "7"))
    assert len(book.on_report("paper", report(2, qty="3"), NOW)) == 2
    assert kinds(book.on_report("paper", report(3, qty="1"), NOW))[2] == "FILL_WITHOUT_PERMIT"


def test_a_closed_order_of_unknown_execution_keeps_its_permit() -> None:
    book = fresh()
    book.on_decision(*permit("c1", qty="10"), NOW)
    book.on_order_event(*order_event("closed"))
    book.on_order_event(*order_event("accepted", "0"))
    assert len(book.on_report("paper", report(1, qty="10"), NOW)) == 2


@pytest.mark.parametrize("state", ["rejected", "void"])
def test_a_fill_of_an_order_that_never_reached_the_venue_has_no_permit(state: str) -> None:
    book = fresh()
    book.on_decision(*permit("c1"), NOW)
    book.on_order_event(*order_event(state))
    assert kinds(book.on_report("paper", report(1), NOW))[2] == "FILL_WITHOUT_PERMIT"


def test_a_permit_that_is_used_up_is_known_as_such_after_a_restart_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(book_module, "MAX_SPENT", 1)
    book = fresh()
    book.on_decision(*permit("c1", qty="4"), NOW)
    book.on_report("paper", report(1), NOW)
    again = fresh()
    again.restore({name: list(rows) for name, rows in book.snapshot().items()})
    assert kinds(again.on_report("paper", report(2), NOW))[2] == "FILL_WITHOUT_PERMIT"


def test_permits_of_ended_orders_do_not_pile_up() -> None:
    book = fresh()
    for i in range(100):
        book.on_decision(*permit(f"c{i}"), NOW)
        book.on_order_event(*order_event("closed", "0", client=f"c{i}"))
    assert book._permits == {}


def test_a_sell_below_its_limit_is_not_covered_and_above_is() -> None:
    book = fresh()
    book.on_decision(*permit("c1", side="SELL"), NOW)
    assert len(book.on_report("paper", report(1, side="sell", price="2.5"), NOW)) == 2
    assert len(book.on_report("paper", report(2, side="sell", price="1.9"), NOW)) == 3


def test_a_market_order_is_covered_at_any_price() -> None:
    book = fresh()
    book.on_decision(*permit("c1", price=""), NOW)
    assert len(book.on_report("paper", report(1, price="999"), NOW)) == 2


def test_history_restores_positions_permits_and_known_trades() -> None:
    first, second = fresh(), fresh()
    where, decision = permit("c1", qty="10")
    first.on_decision(where, decision, NOW)
    second.on_decision(where, decision, NOW)
    for output_where, event in first.on_report("paper", report(5, qty="6"), NOW):
        if isinstance(event, Fill):
            second.booked(output_where, event)
        else:
            second.stated(output_where, event)
    assert second.resume() == []
    assert second.on_report("paper", report(5, qty="6"), NOW) == []
    assert second.position("momentum", "paper", "XRP/ETH") == first.position("momentum", "paper", "XRP/ETH")
    assert second.ask_from("paper", "XRP/ETH") == -1
    assert kinds(second.on_report("paper", report(6, qty="5"), NOW))[2] == "FILL_WITHOUT_PERMIT"


def test_a_position_lost_in_a_crash_after_its_fill_is_stated_at_start() -> None:
    first, second = fresh(), fresh()
    first.on_decision(*permit("c1"), NOW)
    where, fill = first.on_report("paper", report(5), NOW)[0]
    second.booked(where, fill)
    [(position_where, position)] = second.resume()
    assert position_where.text == "position.momentum.paper.XRP-ETH"
    assert (position.qty, position.fills) == (D(4), 1)


def test_a_trade_older_than_all_remembered_is_refused_not_counted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(book_module, "REMEMBERED", 3)
    book = fresh()
    book.on_decision(*permit("c1", qty="100"), NOW)
    for trade_id in range(1, 6):
        book.on_report("paper", report(trade_id, qty="1"), NOW)
    assert kinds(book.on_report("paper", report(1, qty="1"), NOW)) == ["FILL_TOO_OLD"]
    assert book.position("momentum", "paper", "XRP/ETH").qty == D(5)


def test_the_venue_is_asked_far_enough_back_for_a_torn_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(book_module, "OVERLAP", 3)
    book = fresh()
    assert book.ask_from("paper", "XRP/ETH") == -1
    book.on_decision(*permit("c1", qty="100"), NOW)
    for trade_id in (10, 20):
        book.on_report("paper", report(trade_id, qty="1"), NOW)
        assert book.ask_from("paper", "XRP/ETH") == -1
    for trade_id in (30, 40):
        book.on_report("paper", report(trade_id, qty="1"), NOW)
    assert book.ask_from("paper", "XRP/ETH") == 20


def test_the_oldest_permit_tells_since_when_fills_can_be_ours() -> None:
    book = fresh()
    where, decision = permit("c1")
    assert book.first_permit("paper", "XRP/ETH") is None
    book.on_decision(where, decision, NOW)
    book.on_decision(*permit("c2"), NOW)
    assert book.first_permit("paper", "XRP/ETH") == decision.ts


def test_profit_is_realized_at_the_average_price() -> None:
    holding = (
        Holding().after("XRP/ETH", traded("buy", D("10"), D("2"))).after("XRP/ETH", traded("buy", D("13"), D("1")))
    )
    assert (holding.qty, holding.average_price) == (D(3), D(11))
    holding = holding.after("XRP/ETH", traded("sell", D("12"), D("1")))
    assert (holding.qty, holding.average_price, holding.realized) == (D(2), D(11), D(1))


def test_crossing_zero_closes_and_opens_at_the_fills_price() -> None:
    holding = Holding().after("XRP/ETH", traded("buy", D(10), D(2))).after("XRP/ETH", traded("sell", D(15), D(5)))
    assert (holding.qty, holding.average_price, holding.realized) == (D(-3), D(15), D(10))
    holding = holding.after("XRP/ETH", traded("buy", D(14), D(3)))
    assert (holding.qty, holding.average_price, holding.realized, holding.fills) == (D(0), D(0), D(13), 3)


def test_an_average_is_rounded_to_18_places_half_to_even() -> None:
    holding = Holding().after("XRP/ETH", traded("buy", D(1), D(1))).after("XRP/ETH", traded("buy", D(2), D(2)))
    assert holding.average_price == D("1.666666666666666667")
    tie = (
        Holding()
        .after("XRP/ETH", traded("buy", D("0.000000000000000001"), D(1)))
        .after("XRP/ETH", traded("buy", D("0.000000000000000002"), D(1)))
    )
    assert tie.average_price == D("0.000000000000000002")


def test_a_position_beyond_the_wires_decimals_is_refused_and_reported() -> None:
    with pytest.raises(Malformed):
        Holding(qty=D("99999999999999999999")).after("XRP/ETH", traded("buy", D(1), D(1)))
    book = fresh()
    book.on_decision(*permit("c1", qty="99999999999999999999", price=""), NOW)
    book.on_decision(*permit("c2", qty="5", price=""), NOW)
    book.on_report("paper", report(1, qty="99999999999999999999"), NOW)
    assert kinds(book.on_report("paper", report(2, client="c2", qty="5"), NOW)) == ["POSITION_RANGE"]


def test_commission_in_the_base_lessens_what_can_be_sold_and_counts_at_the_fills_price() -> None:
    holding = Holding().after("XRP/ETH", traded("buy", D(2), D(11), "0.011", "XRP"))
    assert (holding.qty, holding.average_price, holding.realized, holding.fees) == (D("10.989"), D(2), D(0), D("0.022"))
    holding = holding.after("XRP/ETH", traded("sell", D(3), D(10), "0.03", "ETH"))
    assert (holding.qty, holding.realized, holding.fees) == (D("0.989"), D(10), D("0.052"))
    # 22 went out and 29.97 came in for what is left at 2.
    assert holding.realized - holding.fees == D("29.97") - D(22) + D("0.989") * 2


def test_a_sale_whose_commission_is_in_the_base_takes_both() -> None:
    bnb = Holding().after("BNB/USDT", traded("buy", D(600), D(2), "0", "BNB"))
    bnb = bnb.after("BNB/USDT", traded("sell", D(700), D(1), "0.001", "BNB"))
    assert (bnb.qty, bnb.realized, bnb.fees) == (D("0.999"), D("100.1"), D("0.7"))


def test_commission_in_a_third_asset_is_kept_in_its_own_units() -> None:
    holding = Holding()
    for asset, fee in (("BNB", "0.002"), ("ABC", "5"), ("BNB", "0.001"), ("XYZ", "0")):
        holding = holding.after("XRP/ETH", traded("buy", D(2), D(1), fee, asset))
    assert holding.other_fees == (Fee("ABC", D(5)), Fee("BNB", D("0.003")))
    assert (holding.qty, holding.fees) == (D(4), D(0))


def test_a_position_that_was_stated_otherwise_is_stated_anew_at_the_next_start() -> None:
    book = fresh()
    book.on_decision(*permit("c1"), NOW)
    [(where, fill), (_, position)] = book.on_report("paper", report(5, commission_asset="XRP"), NOW)
    again = fresh()
    again.on_decision(*permit("c1"), NOW)
    again.booked(where, fill)
    again.stated(where, msgspec.structs.replace(position, qty=D(4)))
    [(_, stated)] = again.resume()
    assert stated.qty == D("3.999")
    again.stated(where, stated)
    assert again.resume() == []
