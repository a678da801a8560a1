"""What is known of each instrument's market: the last trade, when it was stated, and the state of its feed.

- A trade makes its feed live, as at its source.
- A gap forgets the last trade, so that the next one decides; any other state lasts until the next trade.
- Positions are valued at the last trade ever seen, gap or not: an old price is better than none there.
"""

from __future__ import annotations

from decimal import Decimal

import msgspec

from tallystick.schemas.bounds import MAX_SKEW_NS
from tallystick.schemas.market import FeedStatus, Trade
from tallystick.schemas.subjects import Subject


class Market(msgspec.Struct):
    """One instrument's market: the last trade's price, when it was stated (ns), the feed's state."""

    price: Decimal | None = None
    stated: int = 0
    feed: str = ""

    def age(self, now: int) -> int | None:
        """How old the last trade is (ns); None: there is none, or the clock has been put back behind it."""
        return None if self.price is None or self.stated > now + MAX_SKEW_NS else max(0, now - self.stated)


class Markets:
    """Every instrument's market by (venue, symbol); `last` holds the last price that was ever seen of each."""

    __slots__ = ("_markets", "last")

    def __init__(self) -> None:
        self._markets: dict[tuple[str, str], Market] = {}
        self.last: dict[tuple[str, str], Decimal] = {}

    def of(self, venue: str, symbol: str) -> Market:
        """The market of an instrument; nothing is known of one that was never heard of."""
        return self._markets.get((venue, symbol)) or Market()

    def on_trade(self, subject: Subject, trade: Trade, sealed: int) -> None:
        """A trade, sealed at `sealed` (ns): the price that orders are measured against."""
        key = (subject.venue, subject.symbol)
        market = self._markets.setdefault(key, Market())
        market.price, market.stated, market.feed = trade.price, min(trade.ts, sealed), "live"
        self.last[key] = trade.price

    def on_feed(self, subject: Subject, status: FeedStatus) -> None:
        """The state of a feed, from market data."""
        market = self._markets.setdefault((subject.venue, status.symbol), Market())
        if status.state == "gap":
            market.price = None
        else:
            market.feed = status.state
