"""Asks for a small order at every `every`-th trade: one that fills at once, one that rests, in turn."""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal

from tallystick.runtime.bus.strategy import Strategy, StrategyContext
from tallystick.schemas.market import Trade


class Steady(Strategy):
    params = {"every": 16}  # noqa: RUF012

    def on_start(self, ctx: StrategyContext) -> None:
        self.seen = 0

    def on_trade(self, ctx: StrategyContext, symbol: str, trade: Trade) -> None:
        self.seen += 1
        if self.seen % ctx.params["every"]:
            return
        market = ctx.instrument(symbol)
        qty = (market.min_notional * 2 / trade.price / market.step).to_integral_value(ROUND_CEILING) * market.step
        turn = self.seen // ctx.params["every"] % 3
        if turn == 0:
            price = trade.price * Decimal("0.995")
            ctx.buy(symbol, qty, price - price % market.tick, "GTC")
        else:
            price = trade.price * Decimal("1.005" if turn == 1 else "0.995")
            place = ctx.buy if turn == 1 else ctx.sell
            place(symbol, qty, price - price % market.tick, "IOC")
