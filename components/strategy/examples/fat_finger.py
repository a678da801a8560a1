"""Makes mistakes on purpose: what the gateway is there to stop.

Every `every` trades of a symbol it asks for something small and proper, and in between for, in turn: a size far too
large, a price far off the market, an instrument that does not exist, a price between two ticks, a size between two
steps, and a size below the minimum.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import ROUND_CEILING, Decimal

from tallystick.runtime.bus.strategy import Strategy, StrategyContext
from tallystick.schemas.market import Trade
from tallystick.schemas.trust import Instrument


class FatFinger(Strategy):
    """`every`: trades of a symbol between two intents; what is proper goes `slip_bps`, and a tick at least, beyond the last price."""

    params = {"every": 150, "lots": 2, "slip_bps": 10}  # noqa: RUF012

    def on_start(self, ctx: StrategyContext) -> None:
        """Nothing asked yet."""
        self.seen: dict[str, int] = {}
        self.turns = 0
        self.mistakes: tuple[Callable[[StrategyContext, Instrument, Decimal, Decimal], None], ...] = (
            self._too_large,
            self._off_the_market,
            self._nowhere,
            self._between_ticks,
            self._between_steps,
            self._too_small,
        )

    def on_trade(self, ctx: StrategyContext, symbol: str, trade: Trade) -> None:
        """Ask, properly or not."""
        self.seen[symbol] = self.seen.get(symbol, 0) + 1
        if self.seen[symbol] % ctx.params["every"]:
            return
        market = ctx.instrument(symbol)
        wanted = market.min_notional * ctx.params["lots"] / trade.price
        qty = (wanted / market.step).to_integral_value(ROUND_CEILING) * market.step
        price = trade.price - trade.price % market.tick
        turn, self.turns = self.turns, self.turns + 1
        if turn % 2:
            self.mistakes[turn // 2 % len(self.mistakes)](ctx, market, qty, price)
            return
        slip = price * ctx.params["slip_bps"] / 10_000
        slip = max(market.tick, slip - slip % market.tick)
        if ctx.position(symbol) >= qty:
            ctx.sell(symbol, qty, price - slip, "IOC")
        else:
            ctx.buy(symbol, qty, price + slip, "IOC")

    @staticmethod
    def _too_large(ctx: StrategyContext, market: Instrument, qty: Decimal, price: Decimal) -> None:
        ctx.buy(market.symbol, qty * 100_000, price, "IOC")

    @staticmethod
    def _off_the_market(ctx: StrategyContext, market: Instrument, qty: Decimal, price: Decimal) -> None:
        ctx.buy(market.symbol, qty, price * 3, "IOC")

    @staticmethod
    def _nowhere(ctx: StrategyContext, market: Instrument, qty: Decimal, price: Decimal) -> None:
        ctx.buy("TULIP/" + market.quote, qty, price, "IOC")

    @staticmethod
    def _between_ticks(ctx: StrategyContext, market: Instrument, qty: Decimal, price: Decimal) -> None:
        ctx.buy(market.symbol, qty, price + market.tick / 2, "IOC")

    @staticmethod
    def _between_steps(ctx: StrategyContext, market: Instrument, qty: Decimal, price: Decimal) -> None:
        ctx.buy(market.symbol, qty + market.step / 2, price, "IOC")

    @staticmethod
    def _too_small(ctx: StrategyContext, market: Instrument, qty: Decimal, price: Decimal) -> None:
        ctx.buy(market.symbol, min(qty, market.step), price, "IOC")
