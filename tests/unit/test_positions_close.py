"""Strategies, the paper exchange's engine and the book of positions together: what was bought can be sold again.

The account holds none of the base at the start, so whoever believes to hold more than the venue gave him is refused.
"""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tallystick.components.paper_exchange.matching import Engine
from tallystick.components.paper_exchange.orders import NewOrder, Refused
from tallystick.components.portfolio.book import Book
from tallystick.components.strategy.load import load_strategy
from tallystick.schemas.errors import Malformed
from tallystick.schemas.orders import Decision, Intent, Permit, Side, VenueOrder
from tallystick.schemas.subjects import subject
from tallystick.venues import Denied, FillReport
from tallystick.venues.binance.order import amounts, venue_order
from tests.support.paper import XRPETH
from tests.unit.test_strategy_host import NOW, XRP, World

MS = 1_000_000
EXAMPLES = "tallystick.components.strategy.examples"
INSTRUMENT = subject("fill", strategy="alpha", venue="paper", symbol="XRP/ETH")


class Desk(World):
    """Every intent that is proper is placed at the engine; fills are booked and told back."""

    def __init__(self, strategy: Any, params: dict[str, str]) -> None:
        super().__init__(strategy, params)
        self.engine = Engine([XRPETH], {"main": {"ETH": Decimal(100)}})
        self.book = Book(self.new)
        self.refused: list[Refused] = []

    def market(self, price: Decimal, at: int) -> None:
        # At the bid and at the ask by turns: an order at the last price is filled now and then.
        maker = self.trades // 3 % 2 == 0
        self.engine.market_trade("XRPETH", price, Decimal(1_000), maker, at // MS)
        for event in self.trade(price, at):
            if isinstance(event, Intent):
                self.place(event, at)

    def place(self, intent: Intent, at: int) -> None:
        order = venue_order(XRP, intent)
        try:
            if XRP.counts(*amounts(XRP, order))[0][1] > 10:
                raise Denied("ORDER_NOTIONAL", "too large")
            new = NewOrder(
                "XRPETH",
                "BUY" if intent.side == "buy" else "SELL",
                "LIMIT",
                "IOC",
                intent.qty,
                price=intent.price,
                client_id=order.client_order_id,
            )
            self.engine.check(new)
        except (Denied, Malformed, Refused):
            self.order(intent.id, "rejected")  # a mistake on purpose, which the gateway stops
            return
        permit = Permit(
            "main",
            VenueOrder(order.symbol, order.side, "LIMIT", "IOC", order.quantity, order.price, order.client_order_id),
            bytes(32),
            bytes(16),
            NOW,
        )
        decision = self.new(
            Decision, verdict="permit", intent_id=intent.id, intent_hash=bytes(32), trust_root=bytes(32), permit=permit
        )
        self.book.on_decision(INSTRUMENT, decision, at)
        try:
            placed = self.engine.place("main", new, at // MS)
        except Refused as exc:
            self.refused.append(exc)
            self.order(intent.id, "rejected")
            return
        self.order(intent.id, "closed")
        for t in placed.trades:
            side: Side = "buy" if t.is_buyer else "sell"
            report = FillReport(
                "XRP/ETH",
                placed.client_id,
                str(placed.id),
                t.id,
                side,
                t.price,
                t.qty,
                t.commission,
                t.commission_asset,
                t.is_maker,
                at,
            )
            for where, event in self.book.on_report("paper", report, at):
                self.hear(where.kind, event)


def guide() -> str:
    """The strategy that buys and sells."""
    text = (Path(__file__).parents[2] / "docs" / "write-a-strategy.md").read_text()
    return next(b.split("```")[0] for b in text.split("```python\n")[1:] if "class SellTheRise" in b)


@pytest.mark.parametrize("name", ["momentum", "runaway", "fat_finger", "the guide's"])
def test_what_an_example_bought_from_an_unfunded_account_it_can_sell(name: str, tmp_path: Path) -> None:
    source, params = f"{EXAMPLES}.{name}", {}
    if name == "the guide's":
        (tmp_path / "s.py").write_text(guide())
        source = "s.py"
    elif name != "momentum":
        params = {"every": "5"} | ({"after": "300", "orders": "50"} if name == "runaway" else {})
    desk = Desk(load_strategy(source, tmp_path), params)
    desk.start()
    for i in range(1_200):
        # Up and down, so that what is bought is sold again.
        desk.market(Decimal("0.0013") + Decimal(abs(i % 240 - 120)) * Decimal("0.000001"), NOW + i * 50 * MS)
    assert not desk.refused
    assert not desk.host.halted
    sides = [t.is_buyer for t in desk.engine.trades["main"]]
    assert sides.count(False) > 1
    held = desk.book.position("alpha", "paper", "XRP/ETH")
    assert held.qty == desk.engine.accounts["main"]["XRP"].free == desk.host.position("XRP/ETH")
    # What the account gained or lost is the profit after fees, and what is held at its price.
    gained = desk.engine.accounts["main"]["ETH"].free - 100
    assert abs(held.realized - held.fees - held.qty * held.average_price - gained) < Decimal("0.0000001")
