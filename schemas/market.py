"""Market data and reference events: `md.*` and `ref.*`."""

from __future__ import annotations

from decimal import Decimal
from typing import Literal

from tallystick.schemas.event import Event, Int64, check_decimal, check_market, check_positive


class Trade(Event, frozen=True, array_like=True, kw_only=True, tag="md.trade/1"):
    """One trade at a venue: `[…, trade_id, price, qty, time, buyer_is_maker]`; `time` is the venue's, ns."""

    trade_id: Int64
    price: Decimal
    qty: Decimal
    time: Int64
    buyer_is_maker: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self.price, "price")
        check_positive(self.qty, "qty")
        check_market(self.price, self.qty)


class Quote(Event, frozen=True, array_like=True, kw_only=True, tag="md.quote/1"):
    """Best bid and ask: `[…, bid, bid_qty, ask, ask_qty, time]`; `time` is the venue's, ns."""

    bid: Decimal
    bid_qty: Decimal
    ask: Decimal
    ask_qty: Decimal
    time: Int64

    def __post_init__(self) -> None:
        super().__post_init__()
        for value, what in ((self.bid, "bid"), (self.ask, "ask")):
            check_positive(value, what)
        for value, what in ((self.bid_qty, "bid_qty"), (self.ask_qty, "ask_qty")):
            check_decimal(value, what)
        check_market(self.bid, self.bid_qty)
        check_market(self.ask, self.ask_qty)


class FeedStatus(Event, frozen=True, array_like=True, kw_only=True, tag="ref.feed/1"):
    """The state of one feed: `[…, symbol, state, text, missing_from, missing_to]` (venue trade ids of a gap)."""

    symbol: str
    state: Literal["live", "stale", "gap", "reconnecting", "ended"]
    text: str = ""
    missing_from: Int64 = 0
    missing_to: Int64 = 0
