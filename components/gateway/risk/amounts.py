"""What prices and quantities are worth, exactly."""

from __future__ import annotations

import decimal
from decimal import Decimal
from typing import Final

from tallystick.schemas.amounts import EXACT
from tallystick.schemas.limits import BPS

ZERO: Final = Decimal(0)


def notional(price: Decimal, qty: Decimal) -> Decimal:
    """Price times quantity, exactly."""
    return EXACT.multiply(price, qty)


def worst_price(last: Decimal, collar_bps: int) -> Decimal:
    """The last trade plus the collar: what a market order is valued at."""
    return EXACT.multiply(last, Decimal(BPS + collar_bps).scaleb(-4))


def deviation_bps(price: Decimal, last: Decimal) -> int:
    """How far `price` is from `last`, in basis points, rounded up."""
    with decimal.localcontext(EXACT):
        whole, rest = divmod(abs(price - last) * BPS, last)
        return int(whole) + bool(rest)
