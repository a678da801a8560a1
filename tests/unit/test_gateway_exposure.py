"""The gateway's core counts what is open and what is held, for each strategy and quote."""

from __future__ import annotations

from decimal import Decimal

from tallystick.components.gateway.decide import REMEMBER_NS
from tallystick.components.gateway.risk.exposure import FILLS_REMEMBERED, PERMIT_GRACE_NS
from tallystick.schemas.bounds import MAX_LEASES, PERMIT_NS
from tallystick.schemas.orders import Position
from tests.support import world
from tests.support.gateway import (
    LAST,
    NOW,
    SECOND,
    XRP,
    World,
    fill,
    hold,
    order_event,
    wide,
)


def test_open_orders_add_up_to_the_limit_and_are_released_when_final() -> None:
    w = World(wide(max_open_notional=Decimal(1)))
    intents = [w.intent(qty="400") for _ in range(2)]
    assert [w.codes(i) for i in intents] == [[], []]
    assert w.codes(w.intent(qty="201")) == ["OPEN_NOTIONAL_EXCEEDS_LIMIT"]
    assert w.codes(w.intent(qty="200")) == []
    order_event(w, intents[0].id, "rejected")
    order_event(w, intents[1].id, "accepted")
    assert w.codes(w.intent(qty="401")) == ["OPEN_NOTIONAL_EXCEEDS_LIMIT"]
    assert w.codes(w.intent(qty="400")) == []


def test_closed_order_keeps_its_reservation_until_its_fills_have_come() -> None:
    w = World(wide(max_open_notional=Decimal("0.5")))
    intent = w.intent(qty="500")
    assert w.codes(intent) == []
    order_event(w, intent.id, "closed", executed=Decimal(300))
    assert w.codes(w.intent(qty="201")) == ["OPEN_NOTIONAL_EXCEEDS_LIMIT"]
    fill(w, intent.id, "300")
    assert w.codes(w.intent(qty="500")) == []
    assert w.gateway.exposure.position("alpha", "paper", "XRP/ETH") == 300


def test_fill_moves_from_reservation_to_position_once() -> None:
    w = World(wide())
    intent = w.intent(qty="100")
    w.ask(intent)
    for _ in range(2):
        fill(w, intent.id, "40", trade_id=7)
    assert w.gateway.exposure.open_notional("alpha", "ETH") == Decimal("0.060")
    assert w.gateway.exposure.position("alpha", "paper", "XRP/ETH") == 40


def test_position_limit_counts_open_orders_and_lets_reductions_pass() -> None:
    w = World(wide(max_position_notional=Decimal("0.8")))
    hold(w, "500")
    assert w.codes(w.intent(qty="200")) == []
    assert w.codes(w.intent(qty="101")) == ["POSITION_EXCEEDS_LIMIT"]
    assert w.codes(w.intent(qty="1300", side="sell")) == []
    assert w.codes(w.intent(qty="10", side="sell")) == ["POSITION_EXCEEDS_LIMIT"]


def test_gross_exposure_counts_everything_of_a_quote_and_lets_reductions_pass() -> None:
    w = World(wide(max_gross_notional=Decimal("1.5")))
    hold(w, "1400")
    assert w.codes(w.intent(qty="101")) == ["GROSS_EXPOSURE_EXCEEDS_LIMIT"]
    assert w.codes(w.intent(qty="100")) == []
    assert w.codes(w.intent(qty="1400", side="sell")) == [], "it can only bring the position nearer to zero"


def test_order_that_could_turn_the_position_is_no_reduction() -> None:
    w = World(wide(max_gross_notional=Decimal("0.1")))
    hold(w, "100")
    assert w.codes(w.intent(qty="60", side="sell")) == []
    assert w.codes(w.intent(qty="41", side="sell")) == ["GROSS_EXPOSURE_EXCEEDS_LIMIT"], "60 are on their way"
    assert w.codes(w.intent(qty="40", side="sell")) == []


def test_position_is_valued_at_the_last_trade_where_that_is_higher() -> None:
    w = World(wide(max_position_notional=Decimal("0.1")))
    assert w.codes(w.intent(qty="101", price="0.00099")) == ["POSITION_EXCEEDS_LIMIT"]
    assert w.codes(w.intent(qty="100", price="0.00099")) == []


def test_positions_of_another_quote_are_not_added() -> None:
    w = World(wide(max_gross_notional=Decimal(1)))
    w.trade(Decimal(50000), "paper.BTC-USDT")
    hold(w, "2", "paper.BTC-USDT")
    assert w.codes(w.intent(qty="1000")) == []


def test_memory_is_flat() -> None:
    w = World()
    for n in range(40):
        w.arm(until=NOW + (n + 1) * SECOND)
    assert len(w.gateway._leases._leases) == MAX_LEASES
    for n in range(FILLS_REMEMBERED + 10):
        hold(w, "1", trade_id=n)
    assert len(w.gateway.exposure._trades["paper", "XRP/ETH"]) == FILLS_REMEMBERED
    for _ in range(30):
        w.now += SECOND
        w.ask(w.intent())
    assert len(w.gateway._deciding) == REMEMBER_NS // SECOND + 1


def test_what_no_permit_backs_is_an_alarm_and_counts_nowhere() -> None:
    """One false position and one false fill once denied half of a strategy's orders for ever."""
    w = World(wide(max_position_notional=Decimal("0.8")))
    order = hold(w, "100")
    assert w.alarms == []
    # of an order that nobody permitted; of another's; beyond the permit; of the other side
    fill(w, b"", "500000", trade_id=2)
    fill(w, bytes(16), "500000", trade_id=3)
    fill(w, order, "1", trade_id=4)
    fill(w, order, "1", side="sell", trade_id=5)
    assert w.alarms == ["FILL_WITHOUT_PERMIT"] * 4
    for fills, qty in ((2, 500_000), (1, 99), (10**9, -5)):
        position = Position(**w.base(), qty=Decimal(qty), average_price=LAST, realized=Decimal(0), fills=fills)
        w.apply("portfolio", f"position.alpha.{XRP}", position)
    assert w.alarms[4:] == ["POSITION_DIFFERS"] * 3
    order_event(w, bytes(16), "accepted")
    assert w.alarms[7:] == ["ORDER_WITHOUT_PERMIT"]
    assert w.gateway.exposure.position("alpha", "paper", "XRP/ETH") == 100
    assert w.codes(w.intent(qty="700")) == []
    assert w.codes(w.intent(qty="701")) == ["POSITION_EXCEEDS_LIMIT"]


def test_the_portfolios_own_statement_raises_no_alarm() -> None:
    w = World(wide())
    order = hold(w, "100")
    for fills, qty in ((0, 0), (1, 100)):
        position = Position(**w.base(), qty=Decimal(qty), average_price=LAST, realized=Decimal(0), fills=fills)
        w.apply("portfolio", f"position.alpha.{XRP}", position)
    fill(w, order, "100", trade_id=1)  # the same trade, published again after a crash
    order_event(w, order, "closed")
    assert w.alarms == []


def test_permit_that_was_never_submitted_is_released_after_its_expiry() -> None:
    w = World(wide(max_open_notional=Decimal("0.5")))
    w.ask(w.intent(qty="500"))
    w.now += PERMIT_NS + PERMIT_GRACE_NS
    w.refresh()
    assert w.codes(w.intent(qty="100")) == ["OPEN_NOTIONAL_EXCEEDS_LIMIT"]
    w.now += 1
    assert w.codes(w.intent(qty="100")) == []


def test_submitted_order_stays_reserved_without_end() -> None:
    w = World(wide(max_open_notional=Decimal("0.5")))
    intent = w.intent(qty="500")
    w.ask(intent)
    order_event(w, intent.id, "submitting")
    w.now += 3600 * SECOND - 2 * SECOND
    w.credentials = {n: world.credential(n, w.trust, boot=c.boot, issued_at=w.now)[0] for n, c in w.credentials.items()}
    w.refresh()
    assert w.codes(w.intent(qty="100")) == ["OPEN_NOTIONAL_EXCEEDS_LIMIT"]
