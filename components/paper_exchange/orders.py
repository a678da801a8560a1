"""What the venue trades and keeps: instruments with their filters, orders, trades, balances.  Pure.

Words, numbers and messages are Binance's: Binance Spot API documentation, "REST API", "Filters", "Errors".
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final, Literal

import msgspec

from tallystick.schemas.errors import ConfigError, TallystickError
from tallystick.schemas.event import check_positive

Side = Literal["BUY", "SELL"]
OrderType = Literal["LIMIT", "LIMIT_MAKER", "MARKET"]
TimeInForce = Literal["GTC", "IOC", "FOK"]
Status = Literal["NEW", "PARTIALLY_FILLED", "FILLED", "CANCELED", "EXPIRED", "EXPIRED_IN_MATCH"]
Execution = Literal["NEW", "TRADE", "CANCELED", "EXPIRED", "TRADE_PREVENTION"]

ZERO: Final = Decimal(0)
# Binance keeps every asset to 8 places.
PLACES: Final = 8
_SYMBOL = re.compile("[A-Z0-9]{1,20}")
UNIT: Final = Decimal(1).scaleb(-PLACES)
# Products of price and quantity below this, with 8 places, are exact in the 28 digits of the default context.
MAX_VALUE: Final = Decimal(10) ** 18


class Refused(TallystickError):
    """The venue refuses a request: Binance's error number, its message, and the HTTP status it comes with."""

    def __init__(self, number: int, text: str, status: int = 400) -> None:
        super().__init__(str(number), text)
        self.number = number
        self.status = status


class Instrument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A symbol and its filters; `name` is the unified symbol (`XRP/ETH`) that market data calls it by."""

    symbol: str
    name: str
    base: str
    quote: str
    tick: Decimal
    step: Decimal
    min_notional: Decimal
    max_price: Decimal = Decimal(1_000_000)
    max_qty: Decimal = Decimal(90_000_000)
    max_market_qty: Decimal = Decimal(1_000_000)
    max_notional: Decimal = Decimal(9_000_000)
    max_orders: int = 200

    def __post_init__(self) -> None:
        if not _SYMBOL.fullmatch(self.symbol):
            raise ConfigError("INSTRUMENT", f"symbol {self.symbol[:32]!r} must be 1 to 20 of A-Z and 0-9")
        for value, what in (
            (self.tick, "tick"),
            (self.step, "step"),
            (self.min_notional, "min_notional"),
            (self.max_price, "max_price"),
            (self.max_qty, "max_qty"),
            (self.max_market_qty, "max_market_qty"),
            (self.max_notional, "max_notional"),
        ):
            check_positive(value, f"{self.symbol}: {what}")
        if (self.tick * self.step) % UNIT:
            raise ConfigError("INSTRUMENT", f"{self.symbol}: tick * step has more than {PLACES} places")
        if self.max_price * self.max_qty > MAX_VALUE:
            raise ConfigError("INSTRUMENT", f"{self.symbol}: max_price * max_qty is above {MAX_VALUE:f}")


class Depth(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much each side of the played market shows: `levels` prices, each `multiple` times the last trade there."""

    levels: int = 10
    multiple: Decimal = Decimal(1)


@dataclass(slots=True)
class Balance:
    """One asset of one account: `locked` is the sum over its open orders."""

    free: Decimal = ZERO
    locked: Decimal = ZERO


@dataclass(slots=True, frozen=True)
class Trade:
    """One account's side of a trade; both sides of a trade between accounts carry the same `id`."""

    id: int
    order_id: int
    symbol: str
    price: Decimal
    qty: Decimal
    value: Decimal
    commission: Decimal
    commission_asset: str
    time_ms: int
    is_buyer: bool
    is_maker: bool


@dataclass(slots=True, frozen=True)
class NewOrder:
    """What a client asks for, parsed but not checked."""

    symbol: str
    side: Side
    type: OrderType
    tif: TimeInForce | None = None
    qty: Decimal | None = None
    quote_qty: Decimal | None = None
    price: Decimal | None = None
    client_id: str | None = None


@dataclass(slots=True, eq=False)
class Order:
    """An order; `price` is zero for MARKET, `locked` is what it still holds of the account's locked balance."""

    id: int
    account: str
    symbol: str
    client_id: str
    side: Side
    type: OrderType
    tif: TimeInForce
    price: Decimal
    qty: Decimal
    quote_qty: Decimal
    time_ms: int
    update_ms: int
    locked: Decimal
    status: Status = "NEW"
    executed: Decimal = ZERO
    value: Decimal = ZERO
    trades: list[Trade] = field(default_factory=list)

    @property
    def open(self) -> bool:
        """Whether it can still trade."""
        return self.status in ("NEW", "PARTIALLY_FILLED")


@dataclass(slots=True, frozen=True)
class Report:
    """One thing that happened to an order, with its state right after: what a user stream carries."""

    order: Order
    execution: Execution
    status: Status
    qty: Decimal
    executed: Decimal
    value: Decimal
    trade: Trade | None
    time_ms: int
    cancel_id: str = ""
