"""Exact decimal arithmetic: what cannot be computed exactly raises, nothing is rounded.  Pure."""

from __future__ import annotations

import decimal
from typing import Final

# DECIMAL(38,18) times DECIMAL(38,18), with room for sums: no product of wire decimals is ever rounded.
EXACT: Final = decimal.Context(
    prec=120,
    traps=[decimal.Inexact, decimal.InvalidOperation, decimal.DivisionByZero, decimal.Overflow],
)

# Market data beyond these is no market's: the dearest unit is quoted at some 10^10, the cheapest is traded by 10^14.  Within
# them whatever is computed from one trade fits DECIMAL(38,18): a price of 1e20 once halted every strategy that multiplied.
MAX_PRICE: Final = decimal.Decimal(10) ** 12
MAX_QTY: Final = decimal.Decimal(10) ** 16
MAX_VALUE: Final = decimal.Decimal(10) ** 18
