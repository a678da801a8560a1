"""What one strategy sends beyond all measure costs the gateway next to nothing, and nobody else anything."""

from __future__ import annotations

from typing import Any

from tallystick.components.gateway.intake import INTAKE, MAX_LEFT, SINGLY, Intake
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.market import FeedStatus
from tallystick.schemas.orders import CancelIntent, Decision
from tests.support.gateway import LIMITS, XRP, World

PER_MESSAGE = 64


def message(w: World, events: list[Any], strategy: str = "alpha") -> Any:
    return w.verified(f"strategy-{strategy}", f"order.intent.{strategy}.{XRP}", *events)


def cancels(w: World, count: int = PER_MESSAGE) -> list[CancelIntent]:
    return [CancelIntent(**w.base(), intent_id=w.ids.next(w.now)) for _ in range(count)]


def test_a_flood_of_valid_cancels_is_denied_a_message_at_once_and_others_are_decided() -> None:
    w = World()
    door = Intake(w.gateway)
    singly = INTAKE * LIMITS.burst
    answers: list[Decision] = []
    sent: list[CancelIntent] = []
    for _ in range(100):
        events = cancels(w)
        sent += events
        answers += door.decide(message(w, events), w.now)
    assert len(answers) <= singly + 100
    assert {cause for answer in answers for cause in answer.causes} == {event.id for event in sent}, "each is answered"
    assert answers[-1].denials[0].code == "INTAKE_RATE"
    assert [a.verdict for a in door.decide(message(w, [w.intent()], "beta"), w.now)] == ["permit"]
    # A second later it is heard again, as far as its rate goes.
    w.now += SECOND
    w.refresh()
    late = list(door.decide(message(w, cancels(w)), w.now))
    assert [a.denials[0].code for a in late].count("UNKNOWN_ORDER") == INTAKE * LIMITS.messages_per_second


def test_a_strategy_that_floods_can_still_cancel_what_it_has_open_and_not_without_end() -> None:
    w = World()
    door = Intake(w.gateway)
    order = w.intent()
    assert [a.verdict for a in door.decide(message(w, [order]), w.now)] == ["permit"]
    for _ in range(10):
        list(door.decide(message(w, cancels(w)), w.now))
    again = [CancelIntent(**w.base(), intent_id=order.id) for _ in range(PER_MESSAGE)]
    answers = list(door.decide(message(w, again), w.now))
    assert [a.verdict for a in answers] == ["cancel", "deny"]
    assert len(answers[1].causes) == PER_MESSAGE - 1


def test_what_a_flood_left_undecided_is_bounded_and_answered_a_message_at_a_time() -> None:
    w = World(ready=False)
    door = Intake(w.gateway)
    messages = 2 * MAX_LEFT // PER_MESSAGE
    for _ in range(messages):
        assert list(door.decide(message(w, cancels(w)), w.now)) == []
    list(door.decide(message(w, [w.intent(), w.intent()], "beta"), w.now))
    answers = w.gateway.caught_up(w.now)
    mine = [d for where, d in answers if where.strategy == "alpha"]
    assert len(mine) == MAX_LEFT // PER_MESSAGE
    assert {len(d.causes) for d in mine} == {PER_MESSAGE}
    assert [len(d.causes) for where, d in answers if where.strategy == "beta"] == [1, 1], "few are answered one by one"
    assert all(d.denials[0].code == "STALE_INTENT" for _, d in answers)
    assert SINGLY < MAX_LEFT


def test_markets_are_kept_of_the_operators_instruments_alone() -> None:
    w = World()
    for n in range(100):
        w.feed("live", symbol=f"X{n}/ETH")
        w.trade(subject=f"paper.X{n}-ETH")
    w.apply("market-data", "ref.market.paper", FeedStatus(**w.base(), symbol="S" * 30_000, state="live"))
    assert set(w.gateway.markets._markets) == {("paper", "XRP/ETH")}
    assert set(w.gateway.markets.last) == {("paper", "XRP/ETH")}
