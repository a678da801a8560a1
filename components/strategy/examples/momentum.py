"""Follows the trend: buys when a fast average of the price crosses above a slow one, sells when it falls below.

It holds one lot at the most, uses immediate-or-cancel orders a little beyond the last price, and waits between them.
"""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal

from tallystick.runtime.bus.strategy import Strategy, StrategyContext
from tallystick.schemas.market import Trade

BPS = Decimal(10_000)


class Momentum(Strategy):
    """`fast` and `slow` are trades, `lots` multiples of the minimum notional; `slip_bps`, and a tick at least, beyond the last price."""

    params = {"fast": 20, "slow": 100, "lots": 3, "slip_bps": 10, "pause_ms": 400}  # noqa: RUF012

    def on_start(self, ctx: StrategyContext) -> None:
        """No averages yet."""
        self.fast: dict[str, Decimal] = {}
        self.slow: dict[str, Decimal] = {}
        self.seen: dict[str, int] = {}
        self.next: dict[str, int] = {}

    def on_trade(self, ctx: StrategyContext, symbol: str, trade: Trade) -> None:
        """Update the averages; trade if they crossed."""
        fast = self._average(self.fast, symbol, trade.price, ctx.params["fast"])
        slow = self._average(self.slow, symbol, trade.price, ctx.params["slow"])
        self.seen[symbol] = self.seen.get(symbol, 0) + 1
        if self.seen[symbol] < ctx.params["slow"] or ctx.now < self.next.get(symbol, 0) or ctx.open_orders(symbol):
            return
        held = ctx.position(symbol)
        market = ctx.instrument(symbol)
        slip = max(market.tick, trade.price * ctx.params["slip_bps"] / BPS)
        # What a partly filled sale left over may be too little to sell: that counts as holding nothing.
        flat = held * (trade.price - slip) < market.min_notional
        if fast > slow and flat:
            wanted = market.min_notional * ctx.params["lots"] / trade.price
            qty = (wanted / market.step).to_integral_value(ROUND_CEILING) * market.step
            price = trade.price + slip
        elif fast < slow and not flat:
            qty = held - held % market.step
            price = trade.price - slip
        else:
            return
        price -= price % market.tick
        ctx.signal(symbol, "trend", ((fast / slow - 1) * BPS).quantize(Decimal("0.0001")), "basis points")
        if flat:
            ctx.buy(symbol, qty, price, "IOC")
        else:
            ctx.sell(symbol, qty, price, "IOC")
        self.next[symbol] = ctx.now + ctx.params["pause_ms"] * 1_000_000

    @staticmethod
    def _average(averages: dict[str, Decimal], symbol: str, price: Decimal, trades: int) -> Decimal:
        """Exponential moving average."""
        last = averages.get(symbol, price)
        average = averages[symbol] = last + (price - last) * 2 / (trades + 1)
        return average
