"""What the venue's answers mean (Binance spot REST): pure, from status and body to an `Outcome`.

- Only an answer that says plainly that nothing was done is a refusal (`Rejected`): a 4xx with Binance's
  `{code, msg}`.  Everything unclear, every 5xx and every time-out is `NoAnswer`, to be resolved by asking.
- -2013 to a query is `NotFound`; -1006 and -1007 say "status unknown" themselves; "Duplicate order sent."
  means that an order with our id is there, so it is asked for.
- -2014, -2015, -1022 and -1002 concern key or signature: after a success they mean that the key was
  revoked or is misused, which is a security matter and never retried as if it were a rate limit.

Sources: https://developers.binance.com/docs/binance-spot-api-docs/rest-api/general-api-information (HTTP return
codes) and …/errors.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Final

import msgspec

from tallystick.components.execution.orders import NoAnswer, NotFound, Outcome, Rejected, Report
from tallystick.schemas.errors import Malformed
from tallystick.schemas.event import check_decimal

MAX_BODY: Final = 4_194_304
MAX_TEXT: Final = 200
SECURITY_CODES: Final = frozenset({-1002, -1022, -2014, -2015})
CLOCK_CODE: Final = -1021
RATE_STATUS: Final = frozenset({418, 429})
_UNKNOWN_CODES: Final = frozenset({-1000, -1001, -1006, -1007})
_NOT_FOUND: Final = -2013
_DUPLICATE: Final = "Duplicate order sent."


class _Error(msgspec.Struct, frozen=True):
    code: int
    msg: str


class _Order(msgspec.Struct, frozen=True, rename="camel"):
    """The fields that every description of an order has; an answer to a cancel names ours `origClientOrderId`."""

    symbol: str
    order_id: int
    client_order_id: str
    status: str
    executed_qty: Decimal
    orig_client_order_id: str = ""


_error = msgspec.json.Decoder(_Error)
_order = msgspec.json.Decoder(_Order)
_orders = msgspec.json.Decoder(list[_Order])


def security_code(outcome: object) -> bool:
    """Whether a refusal concerns our key or signature."""
    return isinstance(outcome, Rejected) and outcome.code.lstrip("-").isdigit() and int(outcome.code) in SECURITY_CODES


def order_answer(status: int, body: bytes, venue_symbol: str) -> Outcome:
    """The answer to a new order, a cancel or a query of one order, as what it means."""
    if status == 200:
        try:
            return _report(_order.decode(body), venue_symbol)
        except (msgspec.DecodeError, Malformed, _Strange) as exc:
            return NoAnswer("ANSWER", f"unreadable answer: {str(exc)[:MAX_TEXT]}")
    return _refusal(status, body)


def orders_answer(status: int, body: bytes, venue_symbol: str) -> tuple[Report, ...] | Outcome:
    """The answer to a list of open orders or to a cancel of all, as reports or what went wrong."""
    if status == 200:
        try:
            return tuple(_report(order, venue_symbol) for order in _orders.decode(body))
        except (msgspec.DecodeError, Malformed, _Strange) as exc:
            return NoAnswer("ANSWER", f"unreadable answer: {str(exc)[:MAX_TEXT]}")
    return _refusal(status, body)


class _Strange(ValueError):
    """An answer about something that was not asked for."""


def _report(order: _Order, venue_symbol: str) -> Report:
    check_decimal(order.executed_qty, "executedQty")
    if order.symbol != venue_symbol or order.executed_qty < 0:
        raise _Strange(f"about {order.symbol[:32]!r}, executed {order.executed_qty}")
    return Report(
        client_order_id=order.orig_client_order_id or order.client_order_id,
        venue_order_id=str(order.order_id),
        status=order.status[:32],
        executed=order.executed_qty,
    )


def _refusal(status: int, body: bytes) -> Outcome:
    try:
        error = _error.decode(body)
    except msgspec.DecodeError:
        return NoAnswer(f"HTTP_{status}", "an answer without Binance's error code")
    code, text = str(error.code), error.msg[:MAX_TEXT]
    if error.code == _NOT_FOUND:
        return NotFound()
    if not 400 <= status < 500 or error.code in _UNKNOWN_CODES or error.msg == _DUPLICATE:
        return NoAnswer(code, text)
    return Rejected(code, text)
