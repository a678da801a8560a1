"""What a strategy is and what it can do: the part of the SDK for trading ideas.

    class BuyTheDip(Strategy):
        params = {"size": Decimal(10), "dip": Decimal("0.002")}

        def on_start(self, ctx: StrategyContext) -> None:
            self.high: dict[str, Decimal] = {}

        def on_trade(self, ctx: StrategyContext, symbol: str, trade: Trade) -> None:
            high = self.high[symbol] = max(self.high.get(symbol, trade.price), trade.price)
            if trade.price < high * (1 - ctx.params["dip"]) and not ctx.position(symbol):
                ctx.buy(symbol, ctx.params["size"])

- Callbacks are plain functions, called one at a time, and must be quick.  The same events in the same order give the
  same intents: take the time from `ctx.now` and chance from a seed of your own.
- Money is `Decimal`, or text or whole numbers that become one; a float is refused.
- `buy`, `sell` and `cancel` *ask*: the gateway decides, `on_decision` tells.
- A callback that raises halts the strategy for good: nothing that it asked for in that call is sent, its open orders
  are cancelled, and a person has to restart it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, ClassVar, Protocol

import msgspec

from tallystick.runtime.bus.log import Log
from tallystick.schemas.market import Quote, Trade
from tallystick.schemas.orders import Decision, Fill, OrderEvent, Position, TimeInForce
from tallystick.schemas.trust import Instrument

Number = Decimal | int | str


class OpenOrder(msgspec.Struct, frozen=True):
    """An order of the strategy that is not known to have ended: `intent_id` names it."""

    intent_id: bytes
    symbol: str


class StrategyContext(Protocol):
    """What callbacks get."""

    name: str
    """The strategy's name."""
    venue: str
    """The venue's name."""
    symbols: tuple[str, ...]
    """The instruments that the deployment lets it trade."""
    params: Mapping[str, Any]
    """`Strategy.params`, overridden by the deployment's, of the defaults' types."""
    log: Log
    """A structured logger: `ctx.log.info("crossed", symbol=symbol)`."""

    @property
    def now(self) -> int:
        """The time of the event that is being handled (Unix nanoseconds)."""

    def buy(
        self,
        symbol: str,
        qty: Number,
        price: Number | None = None,
        tif: TimeInForce = "GTC",
        causes: Sequence[bytes] = (),
    ) -> bytes:
        """Ask to buy `qty` (base units) at `price` (quote units; None: a market order); returns the intent's id.

        `causes`: ids of further events that led to it, besides the one being handled.  Raises `Malformed`.
        """

    def sell(
        self,
        symbol: str,
        qty: Number,
        price: Number | None = None,
        tif: TimeInForce = "GTC",
        causes: Sequence[bytes] = (),
    ) -> bytes:
        """Ask to sell; as `buy`."""

    def cancel(self, intent_id: bytes) -> bool:
        """Ask to cancel an order; False if it is not open any more."""

    def signal(self, symbol: str, name: str, value: Number, text: str = "") -> None:
        """Say what the strategy thinks, for people and for other components."""

    def position(self, symbol: str) -> Decimal:
        """The strategy's position in an instrument: signed base units."""

    def open_orders(self, symbol: str | None = None) -> tuple[OpenOrder, ...]:
        """Its open orders, oldest first."""

    def instrument(self, symbol: str) -> Instrument:
        """The operator-signed record: tick, step, minimum notional.  Raises `Unverified` for an unknown one."""


class Strategy:
    """Base of user strategies: override what you need.  `params` are the defaults of what a deployment can set."""

    params: ClassVar[Mapping[str, Decimal | int | str]] = {}

    def on_start(self, ctx: StrategyContext) -> None:
        """Positions and open orders of before are known; live events follow."""

    def on_trade(self, ctx: StrategyContext, symbol: str, trade: Trade) -> None:
        """A trade in the market."""

    def on_quote(self, ctx: StrategyContext, symbol: str, quote: Quote) -> None:
        """A new best bid or ask."""

    def on_decision(self, ctx: StrategyContext, symbol: str, decision: Decision) -> None:
        """The gateway permitted or denied an intent (`decision.verdict`, `decision.denials`)."""

    def on_order(self, ctx: StrategyContext, symbol: str, order: OrderEvent) -> None:
        """Something happened to an order."""

    def on_fill(self, ctx: StrategyContext, symbol: str, fill: Fill) -> None:
        """An order was filled, wholly or in part; `ctx.position` follows with `on_position`."""

    def on_position(self, ctx: StrategyContext, symbol: str, position: Position) -> None:
        """The position changed."""
