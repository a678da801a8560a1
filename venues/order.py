"""An intent as a venue's order, and what such an order says; each venue has `Words` of its own.  Pure.

- Each number has one form: no sign, exponent, leading or trailing zero.  Another form is refused, not read.
- Quantity and price are whole steps and ticks of the operator's record; nothing is rounded.
- Limit and market orders; every other type is refused by name.  A market order has no price.

Whoever made the order is not trusted: an attacker who chooses its strings can at most have it refused, or have it
read as what it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal

import msgspec

from tallystick.schemas.amounts import EXACT
from tallystick.schemas.event import check_positive
from tallystick.schemas.orders import Intent, VenueOrder
from tallystick.schemas.trust import Instrument
from tallystick.venues import Denied

_PLAIN = re.compile(r"(?:0|[1-9][0-9]{0,19})(?:\.[0-9]{0,17}[1-9])?")


def plain(value: Decimal) -> str:
    """A decimal without exponent, sign or trailing zeros: one string for each number."""
    return format(value.normalize(EXACT), "f")


def client_order_id(intent_id: bytes) -> str:
    """`ts` and the intent's id in hex: 34 characters."""
    return f"ts{intent_id.hex()}"


OWN_ID = re.compile(r"ts[0-9a-f]{32}")


class Words(msgspec.Struct, frozen=True, kw_only=True):
    """How a venue calls what an order can say.

    - `buy`, `sell`, `limit`, `market`: its words; `tifs`: the times in force that it knows for a limit order.
    - `name`: the client order id of an intent's id, one-to-one; `own`: all ids that it makes.
    - `named`, `rule`: the client order ids that a permit may hold, where that is more, and in words.
    """

    buy: str
    sell: str
    limit: str
    market: str
    tifs: tuple[str, ...] = ("GTC", "IOC", "FOK")
    name: Callable[[bytes], str] = client_order_id
    own: re.Pattern[str] = OWN_ID
    named: re.Pattern[str] | None = None
    rule: str = "`ts` and 32 hex digits"

    def venue_order(self, record: Instrument, intent: Intent) -> VenueOrder:
        """The order that `intent` asks for, in the venue's strings."""
        limit = intent.price is not None
        return VenueOrder(
            symbol=record.venue_symbol,
            side=self.buy if intent.side == "buy" else self.sell,
            type=self.limit if limit else self.market,
            time_in_force=intent.tif if limit else "",
            quantity=plain(intent.qty),
            price="" if intent.price is None else plain(intent.price),
            client_order_id=self.name(intent.id),
        )

    def amounts(self, record: Instrument, order: VenueOrder) -> tuple[Decimal, Decimal | None]:
        """Quantity and price (None for a market order).  Raises `Denied` for an order that is not plainly the record's."""
        if order.symbol != record.venue_symbol:
            raise Denied("FIELD_MISMATCH", f"symbol: order {order.symbol[:32]!r}, record {record.venue_symbol!r}")
        if order.side not in {self.buy, self.sell}:
            raise Denied("FIELD_MISMATCH", f"side: {order.side[:32]!r} is neither {self.buy} nor {self.sell}")
        quantity, price = _amount(order.quantity, record.step, "quantity"), None
        if order.type == self.limit:
            if order.time_in_force not in self.tifs:
                raise Denied(
                    "FIELD_MISMATCH", f"timeInForce: {order.time_in_force[:32]!r} is none of {', '.join(self.tifs)}"
                )
            price = _amount(order.price, record.tick, "price")
        else:
            self.require_market(order)
        self.check_client_order_id(order.client_order_id)
        return quantity, price

    def require_market(self, order: VenueOrder) -> None:
        """Raise `Denied` unless `order`, which is no limit order, is a plain market order."""
        if order.type != self.market or order.price or order.time_in_force:
            raise Denied(
                "ORDER_TYPE",
                f"{self.limit}, or {self.market} without price and time in force, got {order.type[:32]!r}",
            )

    def check_client_order_id(self, value: str) -> str:
        """Return `value` if a permit may hold it as client order id.  Raises `Denied`."""
        if not (self.named or self.own).fullmatch(value):
            raise Denied("CLIENT_ORDER_ID", f"{self.rule}, got {value[:64]!r}")
        return value

    def require_own(self, value: str) -> None:
        """Raise `Denied` unless `value` is an id that an order of ours can have."""
        if not self.own.fullmatch(value):
            raise Denied(
                "ORDER_ID_NOT_OURS", f"{value[:64]!r}; our orders are named by their intents: {self.own.pattern}"
            )


def _amount(text: str, unit: Decimal, what: str) -> Decimal:
    if not _PLAIN.fullmatch(text):
        raise Denied("FIELD_MISMATCH", f"{what}: {text[:40]!r} is not a plain decimal without trailing zeros")
    value = Decimal(text)
    check_positive(value, what)
    if EXACT.remainder(value, unit):
        raise Denied("FIELD_MISMATCH", f"{what}: {text} is not a multiple of {unit}")
    return value
