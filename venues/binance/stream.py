"""What the user data stream says, and how it and the account are asked for.  Pure.

- Only reading requests are made; the key that signs them may do nothing else.
- REST: Ed25519 over the query as it is sent, base64, percent-encoded in `signature`.  WebSocket API: over the
  parameters sorted by name, `name=value` joined by `&`.
- Unknown fields and unknown kinds of events are ignored, as the documentation asks; known fields are read strictly.

Source: Binance Spot API documentation, "User Data Streams" and "WebSocket API".
"""

from __future__ import annotations

import base64
import urllib.parse
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final, Literal

import msgspec

from tallystick.schemas.bounds import NS_PER_MS
from tallystick.schemas.nats_jwt import Signer
from tallystick.venues import BalanceReport, FillReport
from tallystick.venues.binance.answers import MAX_TEXT, VenueError, amount, busy_until, decode
from tallystick.venues.binance.codes import READ_WINDOW_MS

_ZERO: Final = Decimal(0)


class OrderNamed(msgspec.Struct, frozen=True):
    """An order under both its ids."""

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


_push = msgspec.json.Decoder(_Push)
_event = msgspec.json.Decoder(_Event)
_held = msgspec.json.Decoder(_Held)
_execution = msgspec.json.Decoder(_Execution)

Item = FillReport | OrderNamed | BalanceReport | Ended


def parse_push(data: bytes | str, symbols: Mapping[str, str], now: int) -> list[Item]:
    """What a message of the user data stream says.  Raises `Malformed`, `VenueError` for an error answer.

    `symbols` maps the venue's symbols to unified ones; others stay as they are.  `now` is Unix nanoseconds.
    """
    push = decode(_push, data, "user stream")
    if push.error is not None or push.status >= 400:
        error = push.error or {}
        number = error.get("code")
        text = f"user stream: {str(error.get('msg', ''))[:MAX_TEXT]}"
        until = busy_until(push.status, {}, msgspec.json.encode(error), now)
        raise VenueError(number if isinstance(number, int) else 0, text, until)
    if not bytes(push.event):
        return []
    kind = decode(_event, push.event, "user stream").e
    if kind in ("eventStreamTerminated", "serverShutdown"):
        return [Ended(kind)]
    if kind == "outboundAccountPosition":
        held = decode(_held, push.event, kind).B
        return [BalanceReport(a.a, amount(a.f, "free"), amount(a.l, "locked")) for a in held]
    if kind != "executionReport":
        return []
    r = decode(_execution, push.event, kind)
    symbol = symbols.get(r.s, r.s)
    # In the report of a cancel, `c` is the cancel's own id and `C` the order's.
    client_order_id = r.C if r.C and r.x == "CANCELED" else r.c
    if r.x != "TRADE":
        return [OrderNamed(symbol, str(r.i), client_order_id)]
    fill = FillReport(
        symbol=symbol,
        client_order_id=client_order_id,
        venue_order_id=str(r.i),
        trade_id=r.t,
        side="buy" if r.S == "BUY" else "sell",
        price=amount(r.L, "L"),
        qty=amount(r.l, "l"),
        commission=amount(r.n, "n") if r.n is not None else _ZERO,
        commission_asset=r.N or "",
        maker=r.m,
        time=r.T * NS_PER_MS,
    )
    return [fill]


def is_answer(data: bytes | str, request_id: str, now: int) -> bool:
    """Whether a message answers our request.  Raises as `parse_push` for an error answer."""
    if decode(_push, data, "user stream").id != request_id:
        return False
    parse_push(data, {}, now)
    return True


def signed_query(parameters: dict[str, str], now_ns: int, signer: Signer) -> str:
    """The query of a signed REST request."""
    stamped = {**parameters, "recvWindow": str(READ_WINDOW_MS), "timestamp": str(now_ns // NS_PER_MS)}
    query = urllib.parse.urlencode(stamped)
    signature = base64.b64encode(signer.sign(query.encode("ascii"))).decode()
    return f"{query}&signature={urllib.parse.quote(signature, safe='')}"


def subscription(request_id: str, api_key: str, now_ns: int, signer: Signer) -> bytes:
    """The request that starts the user data stream on a WebSocket API connection."""
    params: dict[str, str | int] = {
        "apiKey": api_key,
        "recvWindow": READ_WINDOW_MS,
        "timestamp": now_ns // NS_PER_MS,
    }
    payload = "&".join(f"{name}={params[name]}" for name in sorted(params))
    params["signature"] = base64.b64encode(signer.sign(payload.encode("ascii"))).decode()
    return msgspec.json.encode(
        {"id": request_id, "method": "userDataStream.subscribe.signature", "params": params}, order="deterministic"
    )
