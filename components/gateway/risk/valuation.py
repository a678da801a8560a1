"""What an order is worth, and what it would make of its strategy's exposure if all that is open filled.

- A market order is valued at the last trade plus the collar, the worst price that a limit order could have
  named.  (What it counts in the operator's caps, `Instrument.counts` says.)
- A position is valued at the order's price or the last trade, whichever is higher.
- Without a last trade nothing that needs one is known (None), which denies.
"""

from __future__ import annotations

import decimal

from tallystick.components.gateway.risk.amounts import ZERO, deviation_bps, notional, worst_price
from tallystick.components.gateway.risk.exposure import Exposure
from tallystick.components.gateway.risk.facts import Order
from tallystick.components.gateway.risk.markets import Markets
from tallystick.schemas.amounts import EXACT
from tallystick.schemas.orders import Intent
from tallystick.schemas.subjects import Subject
from tallystick.schemas.trust import Instrument


def value_order(
    subject: Subject, instrument: Instrument, intent: Intent, collar_bps: int, markets: Markets, exposure: Exposure
) -> Order:
    """`intent` on `subject`, valued exactly."""
    strategy, quote = subject.strategy, instrument.quote
    last = markets.of(subject.venue, subject.symbol).price
    price = intent.price
    deviation: int | None = None
    if last is not None:
        deviation = 0 if price is None else deviation_bps(price, last)
        price = worst_price(last, collar_bps) if price is None else price
    worth = opened = position = gross = None
    with decimal.localcontext(EXACT):
        held = exposure.position(strategy, subject.venue, subject.symbol)
        signed = held if intent.side == "buy" else -held
        filled = signed + exposure.open_qty(strategy, subject.venue, subject.symbol, intent.side) + intent.qty
        if price is not None:
            worth = notional(price, intent.qty)
            opened = exposure.open_notional(strategy, quote) + worth
            position = max(ZERO, filled) * max(price, last or price)
            positions = exposure.positions_notional(strategy, quote, markets.last)
            gross = None if positions is None else positions + opened
    return Order(
        side=intent.side,
        type=intent.type,
        tif=intent.tif,
        qty=intent.qty,
        price=intent.price,
        deviation_bps=deviation,
        notional=worth,
        open_notional=opened,
        position_notional=position,
        gross_notional=gross,
        reducing=filled <= 0,
    )
