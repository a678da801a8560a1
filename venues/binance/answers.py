"""What the venue's answers mean (REST): pure, from status and body.

- Only an answer that says plainly that nothing was done is a refusal (`Rejected`): a 4xx with Binance's
  `{code, msg}`.  Everything unclear, every 5xx and every time-out is `NoAnswer`, to be resolved by asking.
- -2013 to a query is `NotFound`; -1006 and -1007 say "status unknown" themselves; "Duplicate order sent."
  means that an order with our id is there, so it is asked for.  -2011 to a cancel of all means that nothing is open.
- -2014, -2015, -1022 and -1002 concern key or signature: after a success they mean that the key was
  revoked or is misused, which is a security matter and never retried as if it were a rate limit.
- Unknown fields are ignored, as the documentation asks; known fields are read strictly, amounts as plain decimals.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Final, Literal, TypeVar

import msgspec

from tallystick.schemas.bounds import NS_PER_MS, SECOND
from tallystick.schemas.errors import NOT_DECODED, Malformed, TallystickError
from tallystick.venues import BalanceReport, FillReport, NoAnswer, NotFound, OrderReport, Outcome, Rejected
from tallystick.venues.binance.codes import (
    BANNED_UNTIL,
    CLOCK_ERROR,
    CREDENTIAL_ERRORS,
    DUPLICATE,
    FINAL_STATUS,
    NOT_FOUND,
    NOTHING_TO_CANCEL,
    PAUSE_S,
    UNKNOWN_ERRORS,
)
from tallystick.venues.limits import MAX_BACKOFF_S, retry_after

MAX_TEXT: Final = 200
_T = TypeVar("_T")


class VenueError(TallystickError):
    """The venue refused a request.

    `number` is its error code (0 where it gave none), `until` when (Unix ns) it may be asked again, 0: at once.
    """

    def __init__(self, number: int, text: str, until: int = 0) -> None:
        code = "VENUE_CREDENTIAL" if number in CREDENTIAL_ERRORS else "VENUE_REFUSED"
        super().__init__("VENUE_BACKOFF" if until else code, text)
        self.number = number
        self.until = until


class _Error(msgspec.Struct, frozen=True):
    code: int
    msg: str


class _Pause(msgspec.Struct, frozen=True, rename="camel"):
    retry_after: int


class _Paused(msgspec.Struct, frozen=True):
    """The WebSocket API says in `data` when it may be asked again (Unix ms)."""

    data: _Pause


class _Order(msgspec.Struct, frozen=True, rename="camel"):
    """The fields that every description of an order has; an answer to a cancel names ours `origClientOrderId`."""

    symbol: str
    order_id: int
    client_order_id: str
    status: str
    executed_qty: str
    orig_client_order_id: str = ""


class _Trade(msgspec.Struct, frozen=True, rename="camel"):
    id: int
    order_id: int
    price: str
    qty: str
    commission: str
    commission_asset: str
    time: int
    is_buyer: bool
    is_maker: bool


class _Asset(msgspec.Struct, frozen=True):
    asset: str
    free: str
    locked: str


class _Account(msgspec.Struct, frozen=True):
    balances: list[_Asset]


_error = msgspec.json.Decoder(_Error)
_paused = msgspec.json.Decoder(_Paused)
_order = msgspec.json.Decoder(_Order)
_orders = msgspec.json.Decoder(list[_Order])
_trades: msgspec.json.Decoder[list[_Trade]] = msgspec.json.Decoder(list[_Trade])
_account = msgspec.json.Decoder(_Account)


def decode(decoder: msgspec.json.Decoder[_T], data: bytes | str | msgspec.Raw, what: str) -> _T:
    """`data` as what `decoder` reads.  Raises `Malformed`."""
    try:
        return decoder.decode(data)
    except NOT_DECODED as exc:
        raise Malformed("VENUE_ANSWER", f"{what}: {exc}") from exc


def amount(text: str, what: str) -> Decimal:
    """The number of a plain decimal.  Raises `Malformed`: `Decimal` alone would also take exponents, blanks and NaN."""
    if not text or len(text) > 40 or text.strip("0123456789.") or text.count(".") > 1:
        raise Malformed("VENUE_ANSWER", f"{what} is {text[:48]!r}, expected a plain decimal")
    try:
        return Decimal(text)
    except ArithmeticError as exc:
        raise Malformed("VENUE_ANSWER", f"{what} is {text[:48]!r}, expected a plain decimal") from exc


def order_answer(status: int, body: bytes, venue_symbol: str) -> Outcome:
    """The answer to a new order, a cancel or a query of one order, as what it means."""
    if status != 200:
        return _refusal(status, body)
    try:
        return parse_order(body, venue_symbol)
    except Malformed as exc:
        return _unreadable(exc)


def orders_answer(status: int, body: bytes, venue_symbol: str) -> tuple[OrderReport, ...] | Outcome:
    """The answer to a list of open orders or to a cancel of all, as reports or what went wrong."""
    if status != 200:
        outcome = _refusal(status, body)
        nothing = isinstance(outcome, Rejected) and outcome.code == str(NOTHING_TO_CANCEL)
        return () if nothing else outcome
    try:
        return tuple(_report(order, venue_symbol) for order in decode(_orders, body, "orders"))
    except Malformed as exc:
        return _unreadable(exc)


def failure(status: int, body: bytes) -> Rejected | NoAnswer | None:
    """What went wrong with a request that is about no order; None: nothing, the body is its answer."""
    if status == 200:
        return None
    outcome = _refusal(status, body)
    if isinstance(outcome, NotFound):
        return Rejected(str(NOT_FOUND), "unknown order")
    # One request too many says nothing of what was asked.
    return NoAnswer(outcome.code, outcome.text) if status in PAUSE_S else outcome


def busy_until(status: int, headers: Mapping[str, str], body: bytes, now: int) -> int:
    """Until when (Unix ns) an answer asks for no more requests; 0 if it does not.

    By its header, else by its text (`data.retryAfter`, "IP banned until"), else as long as such pauses last at least.
    """
    pause = PAUSE_S.get(status)
    if pause is None:
        return 0
    until = retry_after(headers.get("Retry-After", ""), now)
    if until is None and (banned := BANNED_UNTIL.search(body[:512].decode("utf-8", "replace"))):
        until = int(banned[1]) * NS_PER_MS
    if until is None:
        try:
            until = decode(_paused, body, "error").data.retry_after * NS_PER_MS
        except Malformed:
            until = now + pause * SECOND
    return max(now + 1, min(until, now + MAX_BACKOFF_S * SECOND))


def parse_order(body: bytes, venue_symbol: str) -> OrderReport:
    """The description of one order of `venue_symbol`.  Raises `Malformed`."""
    return _report(decode(_order, body, "order"), venue_symbol)


def parse_trades(body: bytes, symbol: str) -> list[FillReport]:
    """The rows of `myTrades` of one `symbol`, oldest first; they carry no client order id.  Raises `Malformed`."""
    rows = decode(_trades, body, "myTrades")
    return [
        FillReport(
            symbol=symbol,
            client_order_id="",
            venue_order_id=str(trade.order_id),
            trade_id=trade.id,
            side="buy" if trade.is_buyer else "sell",
            price=amount(trade.price, "price"),
            qty=amount(trade.qty, "qty"),
            commission=amount(trade.commission, "commission"),
            commission_asset=trade.commission_asset,
            maker=trade.is_maker,
            time=trade.time * NS_PER_MS,
        )
        for trade in sorted(rows, key=lambda trade: trade.id)
    ]


def parse_account(body: bytes) -> list[BalanceReport]:
    """The balances of `account`.  Raises `Malformed`."""
    held = decode(_account, body, "account").balances
    return [BalanceReport(b.asset, amount(b.free, "free"), amount(b.locked, "locked")) for b in held]


def parse_error(status: int, body: bytes, until: int = 0) -> VenueError:
    """The error in an answer with another HTTP status than 200; `until` as `VenueError` has it."""
    try:
        error = decode(_error, body, "error")
    except Malformed:
        return VenueError(0, f"HTTP {status}", until)
    return VenueError(error.code, f"HTTP {status}, {error.code}: {error.msg[:MAX_TEXT]}", until)


def _report(order: _Order, venue_symbol: str) -> OrderReport:
    if order.symbol != venue_symbol:
        raise Malformed("VENUE_ANSWER", f"about {order.symbol[:32]!r}, asked for {venue_symbol}")
    return OrderReport(
        client_order_id=order.orig_client_order_id or order.client_order_id,
        venue_order_id=str(order.order_id),
        status=order.status[:32],
        executed=amount(order.executed_qty, "executedQty"),
        final=order.status in FINAL_STATUS,
    )


def _unreadable(exc: Malformed) -> NoAnswer:
    return NoAnswer("VENUE_ANSWER", f"unreadable answer: {exc.text[:MAX_TEXT]}")


def _refusal(status: int, body: bytes) -> Rejected | NotFound | NoAnswer:
    try:
        error = decode(_error, body, "error")
    except Malformed:
        return NoAnswer(f"HTTP_{status}", "an answer without Binance's error code")
    code, text = str(error.code), error.msg[:MAX_TEXT]
    if error.code == NOT_FOUND:
        return NotFound()
    if not 400 <= status < 500 or error.code in UNKNOWN_ERRORS or error.msg == DUPLICATE:
        return NoAnswer(code, text)
    about: Literal["request", "credential", "clock"] = "request"
    if error.code in CREDENTIAL_ERRORS:
        about = "credential"
    elif error.code == CLOCK_ERROR:
        about = "clock"
    return Rejected(code, text, about)
