"""The maker that is led by quotes."""

from __future__ import annotations

from typing import Any

from tallystick.components.strategy.examples.touch import Touch
from tallystick.schemas.market import Quote
from tallystick.schemas.orders import CancelIntent, Intent
from tests.unit.test_strategy_host import XRP, D, World


def quoted(world: World, bid: str, ask: str) -> list[Any]:
    quote = world.new(Quote, bid=D(bid), bid_qty=D(9), ask=D(ask), ask_qty=D(9), time=0)
    return [e for e in world.hear("md.quote", quote) if isinstance(e, Intent | CancelIntent)]


def test_it_buys_at_the_bid_sells_at_the_ask_and_follows_the_market() -> None:
    world = World(Touch(), {"pause_ms": "0", "away_ticks": "5"})
    world.start()
    (buy,) = quoted(world, "0.0013", "0.0014")
    assert (buy.side, buy.price, buy.tif) == ("buy", D("0.0013"), "GTC")
    assert buy.qty % XRP.step == 0
    assert buy.qty * buy.price >= XRP.min_notional
    near = D("0.0013") + 5 * XRP.tick
    assert quoted(world, str(near), "0.0014") == []
    far = near + XRP.tick
    (cancel,) = quoted(world, str(far), "0.0014")
    assert isinstance(cancel, CancelIntent)
    assert cancel.intent_id == buy.id
    world.order(buy.id, "closed")
    (again,) = quoted(world, str(far), "0.0014")
    assert again.price == far
    # Commission is taken from what was bought: whole steps are sold.
    world.order(again.id, "closed")
    world.position(again.qty - D("0.011"))
    (sell,) = quoted(world, "0.0013", "0.0014")
    assert (sell.side, sell.price, sell.qty) == ("sell", D("0.0014"), again.qty - XRP.step)
    assert not world.host.halted


def test_it_waits_between_requests() -> None:
    world = World(Touch())
    world.start()
    assert len(quoted(world, "0.0013", "0.0014")) == 1
    assert quoted(world, "0.0023", "0.0024") == []
