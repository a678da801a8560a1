"""What an order must be before anything is done for it: complete, within its instrument's filters, and makeable.  Pure.

Source: Binance Spot API documentation, "New order", "Order lists", "Filters", "Errors".
"""

from __future__ import annotations

from typing import Final

from tallystick.components.paper_exchange.book import Book, is_reached
from tallystick.components.paper_exchange.orders import AT_MARKET, WAITING, Instrument, NewOrder, Refused
from tallystick.schemas.amounts import EXACT

_RELATION: Final = "The relationship of the prices for the orders is not correct."


def missing(name: str) -> Refused:
    """The refusal of a request without a parameter."""
    return Refused(-1102, f"Mandatory parameter '{name}' was not sent, was empty/null, or malformed.")


def _unwanted(name: str) -> Refused:
    return Refused(-1106, f"Parameter '{name}' sent when not required.")


def check(book: Book, new: NewOrder) -> None:
    """Raise `Refused` unless the order is complete and passes the instrument's filters."""
    if new.type == "MARKET":
        if new.qty is None and new.quote_qty is None:
            raise Refused(-1102, "Param 'quantity' or 'quoteOrderQty' must be sent, but both were empty/null!")
        if new.qty is not None and new.quote_qty is not None:
            raise _unwanted("quoteOrderQty")
    else:
        if new.qty is None:
            raise missing("quantity")
        if new.quote_qty is not None:
            raise _unwanted("quoteOrderQty")
    if new.type in AT_MARKET:
        if new.price is not None:
            raise _unwanted("price")
        if new.tif is not None:
            raise _unwanted("timeInForce")
    else:
        if new.price is None:
            raise missing("price")
        if new.type == "LIMIT_MAKER" and new.tif is not None:
            raise _unwanted("timeInForce")
        if new.type != "LIMIT_MAKER" and new.tif is None:
            raise missing("timeInForce")
    if new.type in WAITING and new.stop is None:
        raise missing("stopPrice")
    if new.type not in WAITING and new.stop is not None:
        raise _unwanted("stopPrice")
    for value, what in (
        (new.qty, "quantity"),
        (new.quote_qty, "quoteOrderQty"),
        (new.price, "price"),
        (new.stop, "stopPrice"),
    ):
        if value is not None and not value > 0:
            raise Refused(-1013, f"Invalid {what}.")
    _filter(book.instrument, book, new)


def _filter(instrument: Instrument, book: Book, new: NewOrder) -> None:
    for price in (new.price, new.stop):
        if price is not None and not (
            instrument.tick <= price <= instrument.max_price and price % instrument.tick == 0
        ):
            raise Refused(-1013, "Filter failure: PRICE_FILTER")
    if new.qty is not None:
        if not (instrument.step <= new.qty <= instrument.max_qty and new.qty % instrument.step == 0):
            raise Refused(-1013, "Filter failure: LOT_SIZE")
        if new.type in AT_MARKET and new.qty > instrument.max_market_qty:
            raise Refused(-1013, "Filter failure: MARKET_LOT_SIZE")
    at = new.price or new.stop or book.last
    value = new.quote_qty if new.qty is None else EXACT.multiply(at, new.qty)
    # A market order before the first trade has no price to value it at.
    if value and not instrument.min_notional <= value <= instrument.max_notional:
        raise Refused(-1013, "Filter failure: NOTIONAL")


def check_waiting(book: Book, new: NewOrder) -> None:
    """Raise `Refused` for an order whose stop price is reached already."""
    if new.stop is not None and is_reached(new.side, new.type, new.stop, book.last):
        raise Refused(-2010, "Order would trigger immediately.")


def check_pair(book: Book, above: NewOrder, below: NewOrder) -> None:
    """Raise `Refused` unless the two may form an OCO: one above the last price and one below it, not both at a limit."""
    limits = [leg for leg in (above, below) if leg.type == "LIMIT_MAKER"]
    if len(limits) == 2:
        raise Refused(-1168, "At least one OCO order must be contingent.")
    buys = above.side == "BUY"
    if limits and (limits[0] is above) == buys:
        raise Refused(
            *(
                (-1165, "A limit order in a buy OCO must be below.")
                if buys
                else (-1166, "A limit order in a sell OCO must be above.")
            )
        )
    for leg, is_above in ((above, True), (below, False)):
        if leg.type == "LIMIT":
            raise Refused(-1158, "Order type not supported in OCO.")
        if leg.type.startswith("STOP_LOSS") and is_above != buys:
            raise Refused(
                *(
                    (-1196, "A stop loss order in a buy OCO must be above.")
                    if buys
                    else (-1197, "A stop loss order in a sell OCO must be below.")
                )
            )
        if leg.type.startswith("TAKE_PROFIT") and is_above == buys:
            raise Refused(
                *(
                    (-1198, "A take profit order in a buy OCO must be below.")
                    if buys
                    else (-1199, "A take profit order in a sell OCO must be above.")
                )
            )
    up, down = above.stop or above.price, below.stop or below.price
    if up is None or down is None or not down < up or (book.last and not down < book.last < up):
        raise Refused(-2010, _RELATION)
