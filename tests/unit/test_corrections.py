"""The operator's corrections of positions and orders: who may, what counts, and that none counts twice."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from tallystick.components.execution import effects as fx
from tallystick.components.execution import orders as execution
from tallystick.components.portfolio.book import Book, Holding
from tallystick.schemas.errors import Malformed, Unverified
from tallystick.schemas.orders import Corrected, Decision, Permit, Position, VenueOrder
from tallystick.schemas.subjects import subject
from tallystick.schemas.trust import Correction, open_correction, sign_document
from tests.support import world
from tests.support.gateway import LAST, NOW, XRP, World, fill, hold, wide

WHERE = subject("order.correction", strategy="alpha", venue="paper", symbol="XRP/ETH")


def correction(**fields: Any) -> Correction:
    given = {
        "deployment": "test",
        "strategy": "alpha",
        "venue": "paper",
        "symbol": "XRP/ETH",
        "issued": NOW,
        "reason": "r",
    }
    return Correction(**{**given, **fields})


def note(key: str = "operator", **fields: Any) -> str:
    return sign_document(correction(**fields), ("operator", world.key(key)))


def apply(w: World, key: str = "operator", **fields: Any) -> None:
    w.apply("breaker", f"order.correction.alpha.{XRP}", Corrected(**w.base(), note=note(key, **fields)))


def position(w: World) -> Decimal:
    return w.gateway.exposure.position("alpha", "paper", "XRP/ETH")


def test_a_position_is_what_the_operator_says_once_and_only_from_what_it_was() -> None:
    w = World(wide(max_position_notional=Decimal("0.8")))
    hold(w, "700")
    assert w.codes(w.intent(qty="200")) == ["POSITION_EXCEEDS_LIMIT"]
    apply(w, was="700", position="100")
    assert position(w) == 100
    assert w.alarms == []
    assert w.codes(w.intent(qty="200")) == []
    # The portfolio says the same from then on, after as many fills.
    said = Position(**w.base(), qty=Decimal(100), average_price=LAST, realized=Decimal(0), fills=1)
    w.apply("portfolio", f"position.alpha.{XRP}", said)
    assert w.alarms == []
    # The same note again, an older one, one that starts elsewhere: nothing, and it is told.
    apply(w, was="700", position="100")
    apply(w, was="100", position="5", issued=NOW - 1)
    apply(w, was="99", position="5", issued=NOW + 1)
    assert position(w) == 100
    assert w.alarms == ["CORRECTION_PASSED_OVER"] * 3
    # Whoever holds what it shall be already is content.
    apply(w, was="500000", position="100", issued=NOW + 2)
    assert position(w) == 100
    assert len(w.alarms) == 3


def test_an_order_that_the_operator_ended_reserves_nothing_any_more() -> None:
    w = World(wide(max_open_notional=Decimal("0.5")))
    order = w.intent(qty="500")
    assert w.codes(order) == []
    assert w.codes(w.intent(qty="100")) == ["OPEN_NOTIONAL_EXCEEDS_LIMIT"]
    apply(w, intent_id=order.id.hex(), executed="100")
    assert w.codes(w.intent(qty="400")) == []
    fill(w, order.id, "100")
    assert position(w) == 100
    assert w.alarms == []


def test_only_the_operator_corrects_and_only_where_he_said() -> None:
    w = World()
    hold(w, "100")
    for wrong in (
        {"key": "stranger"},
        {"deployment": "replay"},
        {"strategy": "beta"},
        {"symbol": "BTC/USDT"},
        {"venue": "other"},
    ):
        with pytest.raises(Unverified):
            apply(w, was="100", position="0", **wrong)
    with pytest.raises(Malformed):
        w.apply("breaker", f"order.correction.alpha.{XRP}", Corrected(**w.base(), note="junk"))
    assert position(w) == 100
    assert open_correction(note(was="1", position="-2"), w.trust, WHERE).after == -2


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"was": "1"},
        {"position": "1"},
        {"intent_id": "00" * 16},
        {"was": "1", "position": "2", "intent_id": "00" * 16, "executed": "1"},
        {"was": "1", "position": "NaN"},
        {"was": "1", "position": "1e9"},
        {"was": "1", "position": "9" * 30},
        {"intent_id": "00" * 16, "executed": "-1"},
        {"intent_id": "xx", "executed": "1"},
        {"intent_id": "0A" * 16, "executed": "1"},
        {"was": "1", "position": "2", "reason": "r" * 401},
    ],
)
def test_a_correction_says_one_thing_in_plain_numbers(fields: dict[str, str]) -> None:
    with pytest.raises(Malformed, match="CORRECTION"):
        correction(**fields)


def test_execution_follows_an_ended_order_no_more() -> None:
    for recovered in (True, False):
        orders = execution.Orders([("paper", "XRP/ETH")], NOW)
        where = subject("order.decision", strategy="alpha", venue="paper", symbol="XRP/ETH")
        intent = bytes(15) + bytes([7])
        permit = Permit(
            "main", VenueOrder("XRPETH", "BUY", "LIMIT", "GTC", "10", "0.001", "c1"), bytes(32), bytes(16), NOW
        )
        base: dict[str, Any] = {"id": bytes(16), "ts": NOW, "verdict": "permit", "trust_root": bytes(32)}
        orders.decided(where, Decision(**base, intent_id=intent, intent_hash=bytes(32), permit=permit), NOW)
        if recovered:
            orders._recovered = True
        orders.orders()[intent].state = "accepted"
        made = orders.corrected(correction(intent_id=intent.hex(), executed="3"), NOW)
        order = orders.orders()[intent]
        assert order.state == "closed"
        assert order.executed == 3
        assert made == ([fx.Publish(order, "closed", "CORRECTED", "r")] if recovered else [])
        assert orders.corrected(correction(intent_id=intent.hex(), executed="4"), NOW) == []
        assert order.executed == 3
        other = correction(strategy="beta", intent_id=intent.hex(), executed="4")
        assert orders.corrected(other, NOW) == []


def test_the_portfolio_states_the_corrected_position() -> None:
    w = World()
    book = Book(lambda kind, causes=(), **fields: kind(**w.base(), causes=causes, **fields))
    key = ("alpha", "paper", "XRP/ETH")
    book._holdings[key] = Holding(qty=Decimal(500_000), average_price=LAST, realized=Decimal(1), fills=9)
    ((where, said),) = book.correct(WHERE, correction(was="500000", position="0"))
    assert where.text == f"position.alpha.{XRP}"
    assert isinstance(said, Position)
    assert [said.qty, said.average_price, said.realized] == [Decimal(0), Decimal(0), Decimal(1)]
    assert said.fills == 9
    assert book.correct(WHERE, correction(was="0", position="7")) == [], "it was issued no later"
    assert book.correct(WHERE, correction(was="8", position="7", issued=NOW + 1)) == []
    assert book.position(*key).qty == 0
