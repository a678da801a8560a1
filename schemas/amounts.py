"""Exact decimal arithmetic: what cannot be computed exactly raises, nothing is rounded.  Pure."""

from __future__ import annotations

import decimal
from typing import Final

# DECIMAL(38,18) times DECIMAL(38,18), with room for sums: no product of wire decimals is ever rounded.
EXACT: Final = decimal.Context(
    prec=120,
    traps=[decimal.Inexact, decimal.InvalidOperation, decimal.DivisionByZero, decimal.Overflow],
)
