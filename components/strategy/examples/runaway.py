"""Behaves for a while and then runs wild, as a bug would: what detectors and breakers are there to stop.

It asks for one small order every `every` trades, until it has seen `after` trades; from then on it buys `burst` times at
every trade, until it has asked for `orders` in all.  Selling as wildly, before it hears of its fills, it would sell what
other strategies on its account have bought.
"""

from __future__ import annotations

from decimal import ROUND_CEILING

from tallystick.runtime.bus.strategy import Strategy, StrategyContext
from tallystick.schemas.market import Trade


class Runaway(Strategy):
    """See the module docstring; `lots` are multiples of the minimum notional."""

    params = {"every": 200, "after": 3_000, "burst": 10, "orders": 1_000, "lots": 2}  # noqa: RUF012

    def on_start(self, ctx: StrategyContext) -> None:
        """Nothing seen or asked yet."""
        self.seen = self.asked = 0

    def on_trade(self, ctx: StrategyContext, symbol: str, trade: Trade) -> None:
        """One small order, or too many."""
        self.seen += 1
        wild = self.seen > ctx.params["after"] and self.asked < ctx.params["orders"]
        if not wild and self.seen % ctx.params["every"]:
            return
        market = ctx.instrument(symbol)
        wanted = market.min_notional * ctx.params["lots"] / trade.price
        qty = (wanted / market.step).to_integral_value(ROUND_CEILING) * market.step
        price = trade.price - trade.price % market.tick
        for _ in range(ctx.params["burst"] if wild else 1):
            self.asked += 1
            if not wild and ctx.position(symbol) >= qty:
                ctx.sell(symbol, qty, price, "IOC")
            else:
                ctx.buy(symbol, qty, price, "IOC")
