"""Stands at the best bid until it holds a lot, then at the best ask until it is sold: a maker, led by quotes.

One order at a time.  When the market moves away from it by more than `away_ticks`, the order is cancelled, and the next
quote places a new one.
"""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal

from tallystick.runtime.bus.strategy import Strategy, StrategyContext
from tallystick.schemas.market import Quote


class Touch(Strategy):
    """`lots` are multiples of the minimum notional, `pause_ms` is between two requests."""

    params = {"lots": 3, "away_ticks": 5, "pause_ms": 500}  # noqa: RUF012

    def on_start(self, ctx: StrategyContext) -> None:
        """Nothing stands yet; what stood before is left to whoever restarts it."""
        self.standing: dict[str, tuple[bytes, Decimal]] = {}
        self.next: dict[str, int] = {}

    def on_quote(self, ctx: StrategyContext, symbol: str, quote: Quote) -> None:
        """Place, leave or cancel the one order."""
        if ctx.now < self.next.get(symbol, 0):
            return
        market = ctx.instrument(symbol)
        held = ctx.position(symbol)
        held -= held % market.step
        selling = held * quote.bid >= market.min_notional
        price = quote.ask if selling else quote.bid
        if ctx.open_orders(symbol):
            intent_id, placed = self.standing.get(symbol, (b"", price))
            if abs(price - placed) <= ctx.params["away_ticks"] * market.tick or not ctx.cancel(intent_id):
                return
        elif selling:
            self.standing[symbol] = ctx.sell(symbol, held, price), price
        else:
            wanted = market.min_notional * ctx.params["lots"] / price
            qty = (wanted / market.step).to_integral_value(ROUND_CEILING) * market.step
            self.standing[symbol] = ctx.buy(symbol, qty, price), price
        self.next[symbol] = ctx.now + ctx.params["pause_ms"] * 1_000_000
