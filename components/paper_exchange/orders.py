"""What the venue trades and keeps: instruments with their filters, orders, trades, balances.  Pure.

Words, numbers and messages are Binance's: Binance Spot API documentation, "REST API", "Filters", "Errors".
"""

from __future__ import annotations

import decimal
import re
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final, Literal

import msgspec

from tallystick.schemas.errors import ConfigError, TallystickError
from tallystick.schemas.event import check_positive

Side = Literal["BUY", "SELL"]
OrderType = Literal[
    "LIMIT", "LIMIT_MAKER", "MARKET", "STOP_LOSS", "STOP_LOSS_LIMIT", "TAKE_PROFIT", "TAKE_PROFIT_LIMIT"
]
TimeInForce = Literal["GTC", "IOC", "FOK"]
Status = Literal["NEW", "PARTIALLY_FILLED", "FILLED", "CANCELED", "EXPIRED", "EXPIRED_IN_MATCH"]
Execution = Literal["NEW", "TRADE", "CANCELED", "EXPIRED", "TRADE_PREVENTION"]

# Types that have no price when they trade; types that wait until the last price reaches their stop price.
AT_MARKET: Final = frozenset(("MARKET", "STOP_LOSS", "TAKE_PROFIT"))
WAITING: Final = frozenset(("STOP_LOSS", "STOP_LOSS_LIMIT", "TAKE_PROFIT", "TAKE_PROFIT_LIMIT"))
ZERO: Final = Decimal(0)
# Binance keeps every asset to 8 places.
PLACES: Final = 8
# Binance's own legal range, in which letters of any script but small Latin ones stand.
SYMBOL: Final = re.compile(r"(?:[^\Wa-z]|[-.]){1,50}")
UNIT: Final = Decimal(1).scaleb(-PLACES)
# Sums of amounts below this, with 8 places, are exact in the 28 digits of the default context.
MAX_VALUE: Final = Decimal(10) ** 18
_DOWN: Final = decimal.Context(prec=120, rounding=decimal.ROUND_DOWN)
_UP: Final = decimal.Context(prec=120, rounding=decimal.ROUND_UP)


def worth(price: Decimal, qty: Decimal) -> Decimal:
    """What a trade is booked at in the quote asset: price times quantity, rounded down to 8 places as Binance does."""
    return _DOWN.multiply(price, qty).quantize(UNIT, context=_DOWN)


def reserve(price: Decimal, qty: Decimal) -> Decimal:
    """What an order to buy locks: price times quantity, rounded up to 8 places, so that no fill is worth more."""
    return _UP.multiply(price, qty).quantize(UNIT, context=_UP)


def share(amount: Decimal, part: Decimal) -> Decimal:
    """A part of an amount, rounded down to 8 places."""
    return worth(amount, part)


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
    # Wide enough for a coin in rupiah and for coins that trade by the billion.
    max_price: Decimal = Decimal(10) ** 10
    max_qty: Decimal = Decimal(10) ** 12
    max_market_qty: Decimal = Decimal(10) ** 12
    max_notional: Decimal = Decimal(10) ** 13
    max_orders: int = 200

    def __post_init__(self) -> None:
        if not SYMBOL.fullmatch(self.symbol):
            raise ConfigError(
                "INSTRUMENT", f"symbol {self.symbol[:64]!r} must be 1 to 50 letters and digits, none small"
            )
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
        for value, what in ((self.tick, "tick"), (self.step, "step")):
            if value % UNIT:
                raise ConfigError("INSTRUMENT", f"{self.symbol}: {what} {value:f} has more than {PLACES} places")
        for value, what in (
            (self.max_price, "max_price"),
            (self.max_qty, "max_qty"),
            (self.max_notional, "max_notional"),
        ):
            if value > MAX_VALUE:
                raise ConfigError("INSTRUMENT", f"{self.symbol}: {what} is above {MAX_VALUE:f}")


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
    stop: Decimal | None = None
    strategy_id: int | None = None
    strategy_type: int | None = None


@dataclass(slots=True, eq=False)
class Order:
    """An order.

    `price` is zero where it has none, `stop` likewise; `locked` is what it still holds of the account's locked balance.
    `working_ms` is when it came to the book, -1 while it waits for its stop price; `list_id` is -1 outside of a list.
    """

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
    stop: Decimal = ZERO
    working_ms: int = 0
    list_id: int = -1
    list_client_id: str = ""
    strategy_id: int | None = None
    strategy_type: int | None = None

    @property
    def at_market(self) -> bool:
        """Whether it has no price."""
        return self.type in AT_MARKET

    @property
    def waits(self) -> bool:
        """Whether the last price has not reached its stop price yet."""
        return self.working_ms < 0

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


@dataclass(slots=True, eq=False)
class OrderList:
    """Two orders of which one at most trades (OCO), named by one id; `done` once one of them began to, or both ended."""

    id: int
    account: str
    symbol: str
    client_id: str
    orders: tuple[Order, ...]
    time_ms: int
    done: bool = False


@dataclass(slots=True, frozen=True)
class ListReport:
    """What happened to a list."""

    order_list: OrderList
    time_ms: int

    @property
    def order(self) -> Order:
        """One of its orders, which says whose it is."""
        return self.order_list.orders[0]
