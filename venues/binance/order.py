"""An intent as Binance's order (POST /api/v3/order), and what such an order says (`venues.order`).  Pure."""

from __future__ import annotations

from typing import Final

from tallystick.venues.binance.codes import CLIENT_ORDER_ID
from tallystick.venues.order import Words

WORDS: Final = Words(
    buy="BUY",
    sell="SELL",
    limit="LIMIT",
    market="MARKET",
    named=CLIENT_ORDER_ID,
    rule="8 to 36 of A-Z, a-z, 0-9, '_' and '-', not from 'x-'",
)
venue_order = WORDS.venue_order
amounts = WORDS.amounts
require_own = WORDS.require_own
