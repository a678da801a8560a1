"""Binance spot's words for what the portfolio asks and hears.  Pure.

Source: Binance Spot API documentation, "User Data Streams", "WebSocket API" and "REST API" (`GET /api/v3/account`,
`/api/v3/myTrades`, `/api/v3/order`).

- Only reading requests are made; the key that signs them may do nothing else.
- REST: Ed25519 over the query as it is sent, base64, percent-encoded in `signature`.  WebSocket API: over the
  parameters sorted by name, `name=value` joined by `&`.
- Unknown fields and unknown kinds of events are ignored, as the documentation asks; known fields are read strictly.
"""

from __future__ import annotations

import base64
import urllib.parse
from decimal import Decimal
from typing import Any, Final, Literal, Protocol, TypeVar

import msgspec

from tallystick.components.portfolio.book import Report
from tallystick.schemas.errors import Malformed, TallystickError
from tallystick.schemas.event import check_decimal
from tallystick.schemas.orders import Side

NS_PER_MS: Final = 1_000_000
RECV_WINDOW_MS: Final = 5_000
MAX_TRADES: Final = 1_000
# `myTrades` refuses a longer span between startTime and endTime.
MAX_SPAN_MS: Final = 24 * 3_600_000
# The venue's answers to a key that is revoked, unknown, from a wrong address, or whose signature is wrong.
CREDENTIAL_ERRORS: Final = frozenset((-2014, -2015, -1022))
_ZERO: Final = Decimal(0)
_T = TypeVar("_T")


class ReadSigner(Protocol):
    """Signs with the venue's read-only key (Ed25519): `sign` gives 64 bytes."""

    def sign(self, data: bytes) -> bytes:
        """The signature of `data`."""


class VenueError(TallystickError):
    """The venue refused a request; `number` is its error code (0 where it gave none)."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__("VENUE_REFUSED" if number not in CREDENTIAL_ERRORS else "VENUE_CREDENTIAL", text)
        self.number = number


class BalanceReport(msgspec.Struct, frozen=True):
    """One asset's balance; amounts in units of the asset."""

    asset: str
    free: Decimal
    locked: Decimal

    def __post_init__(self) -> None:
        check_decimal(self.free, f"free {self.asset[:16]}")
        check_decimal(self.locked, f"locked {self.asset[:16]}")


class OrderNamed(msgspec.Struct, frozen=True):
    """An order under both its ids; `symbol` is the venue's."""

    symbol: str
    venue_order_id: str
    client_order_id: str


class Ended(msgspec.Struct, frozen=True):
    """The venue ends this stream: `reason` is its event's name."""

    reason: str


class _Event(msgspec.Struct):
    e: str


class _Push(msgspec.Struct):
    event: msgspec.Raw = msgspec.Raw()
    id: int | str | None = None
    status: int = 0
    error: dict[str, Any] | None = None


class _Execution(msgspec.Struct):
    s: str
    c: str
    C: str
    S: Literal["BUY", "SELL"]
    x: str
    i: int
    t: int
    l: str  # noqa: E741  # the venue's name
    L: str
    n: str | None
    N: str | None
    T: int
    m: bool


class _HeldAsset(msgspec.Struct):
    a: str
    f: str
    l: str  # noqa: E741  # the venue's name


class _Held(msgspec.Struct):
    B: list[_HeldAsset]


class _AccountAsset(msgspec.Struct):
    asset: str
    free: str
    locked: str


class _Account(msgspec.Struct):
    balances: list[_AccountAsset]


class _Trade(msgspec.Struct, rename="camel"):
    symbol: str
    id: int
    order_id: int
    price: str
    qty: str
    commission: str
    commission_asset: str
    time: int
    is_buyer: bool
    is_maker: bool


class _Order(msgspec.Struct, rename="camel"):
    symbol: str
    order_id: int
    client_order_id: str


class _Error(msgspec.Struct):
    code: int
    msg: str = ""


class FillReport(msgspec.Struct, frozen=True):
    """A fill by the venue's `symbol`; the other fields as in `book.Report`."""

    symbol: str
    client_order_id: str
    venue_order_id: str
    trade_id: int
    side: Side
    price: Decimal
    qty: Decimal
    commission: Decimal
    commission_asset: str
    maker: bool
    time: int

    def at(self, venue: str, symbol: str) -> Report:
        """The fill at `venue` in the instrument `symbol` (unified).  Raises `Malformed`."""
        return Report(**{**msgspec.structs.asdict(self), "venue": venue, "symbol": symbol})


Item = FillReport | OrderNamed | BalanceReport | Ended


def _decode(data: bytes | str | msgspec.Raw, kind: type[_T], what: str) -> _T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, RecursionError) as exc:
        raise Malformed("VENUE_ANSWER", f"{what}: {exc}") from exc


def _amount(text: str, what: str) -> Decimal:
    # The venue writes plain decimals; `Decimal` alone would also take exponents, underscores, blanks and NaN.
    if not text or len(text) > 40 or text.strip("0123456789.") or text.count(".") > 1:
        raise Malformed("VENUE_ANSWER", f"{what} is {text[:48]!r}, expected a plain decimal")
    try:
        return Decimal(text)
    except ArithmeticError as exc:
        raise Malformed("VENUE_ANSWER", f"{what} is {text[:48]!r}, expected a plain decimal") from exc


def parse_push(data: bytes | str) -> list[Item]:
    """What a message of the user data stream says.  Raises `Malformed`, `VENUE_REFUSED` for an error answer."""
    push = _decode(data, _Push, "user stream")
    if push.error is not None or push.status >= 400:
        error = push.error or {}
        number = error.get("code")
        raise VenueError(number if isinstance(number, int) else 0, f"user stream: {str(error.get('msg', ''))[:200]}")
    if not bytes(push.event):
        return []
    kind = _decode(push.event, _Event, "user stream").e
    if kind in ("eventStreamTerminated", "serverShutdown"):
        return [Ended(kind)]
    if kind == "outboundAccountPosition":
        held = _decode(push.event, _Held, kind)
        return [BalanceReport(a.a, _amount(a.f, "free"), _amount(a.l, "locked")) for a in held.B]
    if kind != "executionReport":
        return []
    r = _decode(push.event, _Execution, kind)
    # In the report of a cancel, `c` is the cancel's own id and `C` the order's.
    client_order_id = r.C if r.C and r.x == "CANCELED" else r.c
    if r.x != "TRADE":
        return [OrderNamed(r.s, str(r.i), client_order_id)]
    fill = FillReport(
        symbol=r.s,
        client_order_id=client_order_id,
        venue_order_id=str(r.i),
        trade_id=r.t,
        side="buy" if r.S == "BUY" else "sell",
        price=_amount(r.L, "L"),
        qty=_amount(r.l, "l"),
        commission=_amount(r.n, "n") if r.n is not None else _ZERO,
        commission_asset=r.N or "",
        maker=r.m,
        time=r.T * NS_PER_MS,
    )
    return [fill]


def parse_trades(data: bytes) -> list[FillReport]:
    """The rows of `myTrades`, oldest first; they carry no client order id.  Raises `Malformed`."""
    trades = sorted(_decode(data, list[_Trade], "myTrades"), key=lambda t: t.id)
    return [
        FillReport(
            symbol=t.symbol,
            client_order_id="",
            venue_order_id=str(t.order_id),
            trade_id=t.id,
            side="buy" if t.is_buyer else "sell",
            price=_amount(t.price, "price"),
            qty=_amount(t.qty, "qty"),
            commission=_amount(t.commission, "commission"),
            commission_asset=t.commission_asset,
            maker=t.is_maker,
            time=t.time * NS_PER_MS,
        )
        for t in trades
    ]


def parse_account(data: bytes) -> list[BalanceReport]:
    """The balances of `account`.  Raises `Malformed`."""
    account = _decode(data, _Account, "account")
    return [BalanceReport(b.asset, _amount(b.free, "free"), _amount(b.locked, "locked")) for b in account.balances]


def parse_order(data: bytes) -> OrderNamed:
    """The answer to a query of one order.  Raises `Malformed`."""
    order = _decode(data, _Order, "order")
    return OrderNamed(order.symbol, str(order.order_id), order.client_order_id)


def parse_error(status: int, data: bytes) -> VenueError:
    """The error in an answer with an HTTP status of 400 or more."""
    try:
        error = msgspec.json.decode(data, type=_Error)
    except (msgspec.DecodeError, RecursionError):
        return VenueError(0, f"HTTP {status}")
    return VenueError(error.code, f"HTTP {status}, {error.code}: {error.msg[:200]}")


def signed_query(parameters: dict[str, str], now_ns: int, signer: ReadSigner) -> str:
    """The query of a signed REST request."""
    stamped = {**parameters, "recvWindow": str(RECV_WINDOW_MS), "timestamp": str(now_ns // NS_PER_MS)}
    query = urllib.parse.urlencode(stamped)
    signature = base64.b64encode(signer.sign(query.encode("ascii"))).decode()
    return f"{query}&signature={urllib.parse.quote(signature, safe='')}"


def subscription(request_id: str, api_key: str, now_ns: int, signer: ReadSigner) -> bytes:
    """The request that starts the user data stream on a WebSocket API connection."""
    params: dict[str, str | int] = {
        "apiKey": api_key,
        "recvWindow": RECV_WINDOW_MS,
        "timestamp": now_ns // NS_PER_MS,
    }
    payload = "&".join(f"{name}={params[name]}" for name in sorted(params))
    params["signature"] = base64.b64encode(signer.sign(payload.encode("ascii"))).decode()
    return msgspec.json.encode(
        {"id": request_id, "method": "userDataStream.subscribe.signature", "params": params}, order="deterministic"
    )


def is_answer(data: bytes | str, request_id: str) -> bool:
    """Whether a message answers our request.  Raises as `parse_push` for an error answer."""
    push = _decode(data, _Push, "user stream")
    if push.id != request_id:
        return False
    parse_push(data)
    return True
