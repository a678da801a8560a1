"""An intent as Binance's order (POST /api/v3/order), and what such an order says.  Pure.

- Each number has one form: no sign, exponent, leading or trailing zero.  Another form is refused, not read.
- Quantity and price are whole steps and ticks of the operator's record; nothing is rounded.
- A market order has no price.

Whoever made the order is not trusted: an attacker who chooses its strings can at most have it refused, or have it
read as what it is.
"""

from __future__ import annotations

import re
from decimal import Decimal

from tallystick.schemas.amounts import EXACT
from tallystick.schemas.event import check_positive
from tallystick.schemas.orders import Intent, VenueOrder
from tallystick.schemas.trust import Instrument
from tallystick.venues import Denied
from tallystick.venues.binance.codes import CLIENT_ORDER_ID

_OWN_ID = re.compile(r"ts[0-9a-f]{32}")
_PLAIN = re.compile(r"(?:0|[1-9][0-9]{0,19})(?:\.[0-9]{0,17}[1-9])?")


def venue_order(record: Instrument, intent: Intent) -> VenueOrder:
    """The order that `intent` asks for, in the venue's strings."""
    limit = intent.price is not None
    return VenueOrder(
        symbol=record.venue_symbol,
        side="BUY" if intent.side == "buy" else "SELL",
        type="LIMIT" if limit else "MARKET",
        time_in_force=intent.tif if limit else "",
        quantity=plain(intent.qty),
        price="" if intent.price is None else plain(intent.price),
        client_order_id=client_order_id(intent.id),
    )


def plain(value: Decimal) -> str:
    """A decimal without exponent, sign or trailing zeros: one string for each number."""
    return format(value.normalize(EXACT), "f")


def client_order_id(intent_id: bytes) -> str:
    """`ts` and the intent's id in hex: 34 characters."""
    return f"ts{intent_id.hex()}"


def check_client_order_id(value: str) -> str:
    """Return `value` if it may be one of our order ids.  Raises `Denied`."""
    if not CLIENT_ORDER_ID.fullmatch(value):
        raise Denied("CLIENT_ORDER_ID", f"8 to 36 of A-Z, a-z, 0-9, '_' and '-', not from 'x-', got {value[:64]!r}")
    return value


def require_own(value: str) -> None:
    """Raise `Denied` unless `value` is an id that an order of ours can have."""
    if not _OWN_ID.fullmatch(value):
        raise Denied(
            "ORDER_ID_NOT_OURS", f"{value[:64]!r}; our orders are named by their intents, `ts` and 32 hex digits"
        )


def amounts(record: Instrument, order: VenueOrder) -> tuple[Decimal, Decimal | None]:
    """Quantity and price (None for a market order).  Raises `Denied` for an order that is not plainly the record's."""
    if order.symbol != record.venue_symbol:
        raise Denied("FIELD_MISMATCH", f"symbol: order {order.symbol[:32]!r}, record {record.venue_symbol!r}")
    if order.side not in {"BUY", "SELL"}:
        raise Denied("FIELD_MISMATCH", f"side: {order.side[:32]!r} is neither BUY nor SELL")
    quantity, price = _amount(order.quantity, record.step, "quantity"), None
    if order.type == "LIMIT":
        if order.time_in_force not in {"GTC", "IOC", "FOK"}:
            raise Denied("FIELD_MISMATCH", f"timeInForce: {order.time_in_force[:32]!r} is none of GTC, IOC, FOK")
        price = _amount(order.price, record.tick, "price")
    else:
        require_market(order)
    check_client_order_id(order.client_order_id)
    return quantity, price


def require_market(order: VenueOrder) -> None:
    """Raise `Denied` unless `order`, which is no limit order, is a plain market order."""
    if order.type != "MARKET" or order.price or order.time_in_force:
        raise Denied("ORDER_TYPE", f"LIMIT, or MARKET without price and time in force, got {order.type[:32]!r}")


def _amount(text: str, unit: Decimal, what: str) -> Decimal:
    if not _PLAIN.fullmatch(text):
        raise Denied("FIELD_MISMATCH", f"{what}: {text[:40]!r} is not a plain decimal without trailing zeros")
    value = Decimal(text)
    check_positive(value, what)
    if EXACT.remainder(value, unit):
        raise Denied("FIELD_MISMATCH", f"{what}: {text} is not a multiple of {unit}")
    return value
