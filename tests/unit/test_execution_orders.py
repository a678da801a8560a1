"""The order state machine, one rule at a time; random interleavings are in tests/property."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from tallystick.components.execution import effects as fx
from tallystick.components.execution import orders as o
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.orders import Decision, OrderEvent, Permit, VenueOrder
from tallystick.schemas.signing import Signed
from tallystick.schemas.standing import LISTED
from tallystick.schemas.subjects import Subject, subject
from tallystick.venues import SKEW_NS, VALID_NS, NoAnswer, NotFound, OrderReport, Rejected
from tests.support.breaker import heartbeat, trip

NOW = 1_732_289_000_000_000_000
WHERE = subject("order.decision", strategy="alpha", venue="paper", symbol="XRP/ETH")
EVENT = subject("order.event", strategy="alpha", venue="paper", symbol="XRP/ETH")
LATE = ("PERMIT_EXPIRED", "read too late")


def decision(number: int = 1, name: str = "", **changes: Any) -> Decision:
    intent = number.to_bytes(16, "big")
    order = VenueOrder("XRPETH", "BUY", "LIMIT", "GTC", "1", "0.001", name or intent.hex())
    fields: dict[str, Any] = {
        "id": (1000 + number).to_bytes(16, "big"),
        "ts": NOW,
        "verdict": "permit",
        "intent_id": intent,
        "intent_hash": b"",
        "trust_root": b"",
        "permit": Permit("main", order, b"", b"", NOW + 3 * SECOND),
    }
    return Decision(**{**fields, **changes})


def event(state: Any, number: int = 1, **changes: Any) -> OrderEvent:
    intent = number.to_bytes(16, "big")
    fields: dict[str, Any] = {
        "id": bytes(16),
        "ts": NOW,
        "intent_id": intent,
        "decision_id": (1000 + number).to_bytes(16, "big"),
        "client_order_id": intent.hex(),
        "state": state,
    }
    return OrderEvent(**{**fields, **changes})


def signed(at: int = NOW) -> Signed:
    return Signed(id=1, method="POST", url="", headers=(), body="", signed_at=at)


def report(order: fx.Order, status: str = "NEW") -> OrderReport:
    return OrderReport(order.client_order_id, "7", status, Decimal(0), status in {"FILLED", "CANCELED"})


def machine(*, recovered: bool = True) -> o.Orders:
    made = o.Orders([("paper", "XRP/ETH"), ("paper", "BTC/USDT")], NOW)
    made.on_breaker(heartbeat(stated=NOW), LISTED, NOW)
    if recovered:
        made.recover(NOW)
    return made


def submit(orders: o.Orders, number: int = 1, now: int = NOW, where: Subject = WHERE) -> fx.Order:
    effects = orders.decided(where, decision(number), now)
    assert [type(e) for e in effects] == [fx.Sign, fx.Publish]
    order = orders.orders()[number.to_bytes(16, "big")]
    assert order.state == "submitting"
    return order


def place(orders: o.Orders, number: int = 1) -> fx.Order:
    order = submit(orders, number)
    assert orders.durable(order, NOW) == []
    assert orders.signed(order, signed(), NOW) == [fx.Send(order, signed())]
    assert states(orders.answered(order, report(order), NOW)) == ["accepted"]
    return order


def states(effects: list[fx.Effect]) -> list[str]:
    return [e.state for e in effects if isinstance(e, fx.Publish)]


def codes(effects: list[fx.Effect]) -> list[str]:
    return [e.code for e in effects if isinstance(e, fx.Publish | fx.Alarm)]


@pytest.mark.parametrize("first", ["durable", "signed"])
def test_it_is_sent_when_durable_and_signed_in_either_order_and_once(first: str) -> None:
    orders = machine()
    order = submit(orders)
    steps = [lambda: orders.durable(order, NOW), lambda: orders.signed(order, signed(), NOW)]
    if first == "signed":
        steps.reverse()
    assert steps[0]() == []
    assert steps[1]() == [fx.Send(order, signed())]
    assert orders.durable(order, NOW) == orders.signed(order, signed(), NOW) == []


def test_a_signature_that_waited_too_long_for_durability_is_not_sent() -> None:
    orders = machine()
    order = submit(orders)
    orders.signed(order, signed(), NOW)
    orders.on_breaker(heartbeat(stated=NOW + 1), LISTED, NOW + SECOND)
    assert codes(orders.durable(order, NOW + VALID_NS)) == ["SIGNATURE_STALE"]


def test_a_permit_before_the_first_heartbeat_or_after_silence_is_void() -> None:
    fresh = o.Orders([("paper", "XRP/ETH")], NOW)
    fresh.recover(NOW)
    assert codes(fresh.decided(WHERE, decision(), NOW)) == ["BREAKER_HEARTBEAT_MISSING"]
    orders = machine()
    late = decision(permit=Permit("main", decision().permit.order, b"", b"", NOW + 9 * SECOND))  # type: ignore[union-attr]
    assert codes(orders.decided(WHERE, late, NOW + o.SILENCE_NS + 1)) == ["BREAKER_HEARTBEAT_MISSING"]


def test_a_trip_between_signature_and_sending_stops_the_order() -> None:
    orders = machine()
    order = submit(orders)
    orders.signed(order, signed(), NOW)
    orders.on_breaker(trip("strategy-alpha", NOW + 1), LISTED, NOW + 1)
    assert codes(orders.durable(order, NOW + 2)) == ["BREAKER_TRIPPED"]
    assert order.final


def test_a_cancel_between_signature_and_sending_stops_the_order() -> None:
    orders = machine()
    order = submit(orders)
    cancel = decision(2, verdict="cancel", permit=None, intent_id=order.intent_id)
    assert orders.decided(WHERE, cancel, NOW) == []
    orders.signed(order, signed(), NOW)
    assert codes(orders.durable(order, NOW)) == ["CANCELLED"]


def test_what_is_accepted_after_the_trip_is_cancelled_as_soon_as_it_is_known() -> None:
    orders = machine()
    order = submit(orders)
    orders.durable(order, NOW)
    orders.signed(order, signed(), NOW)
    assert fx.CancelAll("paper", "XRP/ETH") in orders.on_breaker(trip("all", NOW + 1), LISTED, NOW + 1)
    effects = orders.answered(order, report(order), NOW + 2)
    assert states(effects) == ["accepted"]
    assert fx.Cancel(order) in effects


def test_a_trip_of_a_strategy_cancels_its_orders_and_nobody_elses() -> None:
    orders = machine()
    mine = place(orders, 1)
    beta = subject("order.decision", strategy="beta", venue="paper", symbol="XRP/ETH")
    orders.decided(beta, decision(2), NOW)
    other = orders.orders()[(2).to_bytes(16, "big")]
    orders.durable(other, NOW)
    orders.signed(other, signed(), NOW)
    orders.answered(other, report(other), NOW)
    assert orders.on_breaker(trip("strategy-alpha", NOW + 1), LISTED, NOW + 1) == [fx.Cancel(mine)]


def test_cancelling_repeats_until_the_venue_has_answered() -> None:
    orders = machine()
    order = place(orders)
    effects = orders.on_breaker(trip("venue-paper", NOW + 1), LISTED, NOW + 1)
    assert effects == [fx.CancelAll("paper", "XRP/ETH"), fx.CancelAll("paper", "BTC/USDT")]
    orders.all_cancelled("paper", "XRP/ETH", NoAnswer("LOST", ""), NOW + 2)
    orders.all_cancelled("paper", "BTC/USDT", (), NOW + 2)
    later = NOW + 1 + o.CANCEL_RETRY_NS
    assert [e for e in orders.tick(later) if isinstance(e, fx.CancelAll)] == [fx.CancelAll("paper", "XRP/ETH")]
    effects = orders.all_cancelled("paper", "XRP/ETH", (report(order, "CANCELED"),), later)
    assert states(effects) == ["closed"]
    assert not [e for e in orders.tick(later + o.CANCEL_RETRY_NS) if isinstance(e, fx.CancelAll)]


def test_a_cancel_that_the_venue_refuses_for_another_reason_is_repeated() -> None:
    orders = machine()
    place(orders)
    orders.on_breaker(trip("all", NOW + 1), LISTED, NOW + 1)
    orders.all_cancelled("paper", "XRP/ETH", Rejected("-1003", "too many requests"), NOW + 2)
    again = orders.tick(NOW + 1 + o.CANCEL_RETRY_NS)
    assert fx.CancelAll("paper", "XRP/ETH") in again


def test_silence_cancels_everything_also_what_is_not_known() -> None:
    orders = machine()
    effects = orders.tick(NOW + o.SILENCE_NS + 1)
    assert codes(effects) == ["BREAKER_HEARTBEAT_MISSING"]
    assert [e for e in effects if isinstance(e, fx.CancelAll)] == [
        fx.CancelAll("paper", "XRP/ETH"),
        fx.CancelAll("paper", "BTC/USDT"),
    ]
    assert orders.tick(NOW + o.SILENCE_NS + 2) == []


def test_a_start_does_not_cancel_before_the_breaker_could_speak() -> None:
    orders = o.Orders([("paper", "XRP/ETH")], NOW)
    orders.decided(WHERE, decision(), NOW, LATE)
    orders.remembered(EVENT, event("submitting"), NOW)
    orders.remembered(EVENT, event("accepted"), NOW)
    assert not [e for e in orders.recover(NOW) if isinstance(e, fx.Cancel | fx.CancelAll)]
    effects = orders.on_breaker(heartbeat("strategy-alpha", stated=NOW + 1), LISTED, NOW + 1)
    assert [type(e) for e in effects] == [fx.Cancel]


def test_not_found_is_final_only_when_the_request_can_no_longer_arrive() -> None:
    orders = machine()
    order = submit(orders)
    orders.durable(order, NOW)
    orders.signed(order, signed(), NOW)
    assert fx.Query(order) in orders.answered(order, NoAnswer("LOST", ""), NOW)
    deadline = NOW + VALID_NS + SKEW_NS
    assert orders.queried(order, NotFound(), deadline - 1, deadline + 5) == []
    assert order.state == "unknown"
    assert codes(orders.queried(order, NotFound(), deadline, deadline + 5)) == ["NOT_AT_VENUE"]


def test_after_a_crash_not_found_waits_for_the_permits_end_as_well() -> None:
    orders = o.Orders([("paper", "XRP/ETH")], NOW)
    orders.on_breaker(heartbeat(stated=NOW), LISTED, NOW)
    orders.decided(WHERE, decision(), NOW, LATE)
    orders.remembered(EVENT, event("submitting"), NOW)
    effects = orders.recover(NOW)
    assert states(effects) == ["unknown"]
    (order,) = orders.orders().values()
    deadline = NOW + 3 * SECOND + VALID_NS + SKEW_NS
    assert orders.queried(order, NotFound(), deadline - 1, deadline) == []
    assert codes(orders.queried(order, NotFound(), deadline, deadline)) == ["NOT_AT_VENUE"]


def test_a_permit_that_nobody_carried_out_is_void_after_a_restart() -> None:
    orders = machine(recovered=False)
    assert orders.decided(WHERE, decision(), NOW) == []
    assert codes(orders.recover(NOW)) == ["PERMIT_EXPIRED"]


def test_a_permit_read_too_late_is_void() -> None:
    orders = machine()
    assert codes(orders.decided(WHERE, decision(), NOW, LATE)) == ["PERMIT_EXPIRED"]
    assert codes(orders.decided(WHERE, decision(2), NOW + 3 * SECOND)) == ["PERMIT_EXPIRED"]


def test_what_ended_before_the_crash_stays_ended() -> None:
    orders = machine(recovered=False)
    for number, state in enumerate(("rejected", "void", "closed"), start=1):
        orders.decided(WHERE, decision(number), NOW, LATE)
        orders.remembered(EVENT, event("submitting", number), NOW)
        orders.remembered(EVENT, event(state, number), NOW)
        orders.remembered(EVENT, event("submitting", number), NOW)
    assert orders.recover(NOW) == []
    assert orders.open == 0


def test_the_last_words_of_a_predecessor_are_heeded() -> None:
    orders = machine()
    orders.decided(WHERE, decision(), NOW, LATE)  # void: nobody seemed to have carried it out
    assert orders.remembered(EVENT, event("submitting"), NOW) == []


def test_events_of_orders_that_nobody_permitted_are_an_alarm_and_no_work() -> None:
    """80,000 `accepted` of a stolen execution once had each asked for and signed: honest orders waited until they were void."""
    orders = machine(recovered=False)
    for number in range(1, 500):
        for state in ("submitting", "accepted", "unknown"):
            assert codes(orders.remembered(EVENT, event(state, number), NOW)) == ["ORDER_WITHOUT_PERMIT"]
    assert orders.recover(NOW) == []
    assert orders.tick(NOW + o.FOLLOW_NS) == []
    assert not orders.orders()
    assert codes(orders.remembered(EVENT, event("accepted", 7), NOW)) == ["ORDER_WITHOUT_PERMIT"]
    assert orders.tick(NOW + o.FOLLOW_NS) == []


def test_a_second_permit_for_an_order_is_not_carried_out() -> None:
    orders = machine()
    place(orders)
    again = decision(id=bytes(15) + b"\x63")
    assert codes(orders.decided(WHERE, again, NOW)) == ["PERMIT_REPEATED"]
    taken = decision(2, name=(1).to_bytes(16, "big").hex())
    assert codes(orders.decided(WHERE, taken, NOW)) == ["CLIENT_ORDER_ID_REUSED", "CLIENT_ORDER_ID_REUSED"]


def test_an_open_order_that_is_not_ours_raises_one_alarm() -> None:
    orders = machine()
    stranger = OrderReport("somebody-elses", "9", "NEW", Decimal(0), final=False)
    assert codes(orders.listed("paper", "XRP/ETH", [stranger], NOW, NOW)) == ["ORDER_NOT_OURS"]
    assert orders.listed("paper", "XRP/ETH", [stranger], NOW, NOW) == []


def test_an_order_that_ended_and_is_open_all_the_same_raises_an_alarm() -> None:
    orders = machine()
    order = place(orders)
    orders.queried(order, report(order, "CANCELED"), NOW, NOW)
    assert codes(orders.listed("paper", "XRP/ETH", [report(order)], NOW + 1, NOW + 2)) == ["ORDER_NOT_OURS"]


def test_open_orders_are_followed_and_asked_for_when_they_are_gone() -> None:
    orders = machine()
    order = place(orders)
    assert orders.tick(NOW + o.FOLLOW_NS) == [fx.ListOpen("paper", "XRP/ETH")]
    assert orders.tick(NOW + o.FOLLOW_NS) == []
    assert orders.listed("paper", "XRP/ETH", [report(order)], NOW, NOW) == []
    assert orders.listed("paper", "XRP/ETH", [], NOW, NOW) == [fx.Query(order)]
    assert states(orders.queried(order, report(order, "FILLED"), NOW, NOW)) == ["closed"]


def test_history_does_not_fill_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(o, "MAX_HISTORY", 100)
    orders = machine(recovered=False)
    for number in range(1, 1000):
        orders.decided(WHERE, decision(number), NOW, LATE)
        orders.remembered(EVENT, event("closed", number), NOW, NOW - o.KEEP_NS - 1)
    assert len(orders.orders()) <= 101
    orders.recover(NOW)
    assert not orders.orders()


def test_an_order_is_kept_until_its_end_is_on_record() -> None:
    orders = machine()
    order = place(orders)
    orders.stored(event("submitting"))
    orders.stored(event("accepted"))
    assert states(orders.queried(order, report(order, "FILLED"), NOW, NOW)) == ["closed"]
    late = NOW + 2 * o.KEEP_NS
    orders.tick(late)
    [row] = orders.snapshot()
    assert row.told.state == "accepted", "a start now would have to ask for it"
    orders.stored(event("closed"))
    orders.tick(late)
    assert not orders.orders()
