"""Bybit's requests (API v5, category spot, unified account), built by ccxt and read back.

- Signed is the text of time, API key, `recv_window`, and the body (POST) or the query (GET).  Method, host and path are not
  in it, so the same fields can be sent to another path: a cancel's to `cancel-all`, an order's to `amend`, where they change
  nothing.  A path that does more with them is not known: withdrawals want a coin and an address, leverage a leverage.
- Bybit refuses what is older than `RECV_WINDOW_MS` or a second ahead of its clock.
- Spot orders borrow nothing: `isLeverage` does not stand in them, and is 0 then.
- An order is named by `orderLinkId`.  Bybit refuses one that it knows; for how long it knows that of a closed order, its documents
  do not say.  It tells of closed orders by it for as long as they are among the last 500.
- ccxt names itself in the header `Referer`, a broker's commission.  No signature covers it, and it is left out of what leaves.

Source: https://bybit-exchange.github.io/docs/v5/guide, "Authentication"; /v5/order/create-order, cancel-order, cancel-all, open-order.

Trust: whoever holds a signed request can send it as it is, within its window; a market order again, if Bybit has
forgotten its id by then.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, Final, Literal

from tallystick.schemas.bounds import NS_PER_MS
from tallystick.schemas.orders import VenueOrder
from tallystick.schemas.trust import Instrument
from tallystick.venues import VALID_NS, Login, SignedRequest
from tallystick.venues.builder import Builder, Call, Headed
from tallystick.venues.capture import Request, Signed
from tallystick.venues.order import Words
from tallystick.venues.signing.handle import SigningKeys

# "server_time - recv_window <= timestamp < server_time + 1000", in milliseconds.
RECV_WINDOW_MS: Final = VALID_NS // NS_PER_MS
SPOT: Final = "spot"
_BROKER: Final = "CCXT"


class _Operation(Headed):
    def __init__(self, call: Call, host: str, api_key: str, now_ms: int, kind: str) -> None:
        self._now = str(now_ms)
        self._api_key = api_key
        self._kind = kind
        super().__init__(call, host, f"{now_ms}{api_key}{RECV_WINDOW_MS}")

    def request(self, signed: Signed) -> Request:
        """See `capture.Operation`."""
        made = signed.signature
        headers = {
            "Content-Type": "application/json",
            "X-BAPI-API-KEY": self._api_key,
            "X-BAPI-TIMESTAMP": self._now,
            "X-BAPI-RECV-WINDOW": str(RECV_WINDOW_MS),
            "X-BAPI-SIGN": made.hex() if self._kind == "hmac" else base64.b64encode(made).decode("ascii"),
        }
        return self.carried(signed, headers, {"Referer": _BROKER})


class RequestBuilder(Builder):
    """See `builder.Builder`; `kind`: whether the key is an RSA key, which can be born in the token, or a secret for HMAC."""

    EXCHANGE = "bybit"
    WORDS = Words(buy="Buy", sell="Sell", limit="Limit", market="Market")
    SYMBOL = re.compile(r"[A-Z0-9]{2,32}")
    OPTIONS = MappingProxyType(
        {
            "recvWindow": RECV_WINDOW_MS,
            "brokerId": _BROKER,
            # Known, so that ccxt does not ask: a classic account has another API.
            "enableUnifiedMargin": False,
            "enableUnifiedAccount": True,
        }
    )

    def __init__(
        self,
        host: str,
        records: tuple[Instrument, ...],
        login: Login,
        keys: SigningKeys,
        clock: Callable[[], int],
        *,
        kind: Literal["hmac", "rsa"] = "hmac",
    ) -> None:
        self.KIND = kind
        super().__init__(host, records, login, keys, clock)

    def urls(self) -> dict[str, str]:
        """See `Builder`."""
        return {"private": f"https://{self.host}"}

    def placing(self, order: VenueOrder, now_ms: int) -> Call:
        """See `Builder`."""
        fields: dict[str, Any] = {
            "category": SPOT,
            "symbol": order.symbol,
            "side": order.side,
            "orderType": order.type,
            "qty": order.quantity,
            "orderLinkId": order.client_order_id,
        }
        if order.type == self.WORDS.limit:
            fields |= {"price": order.price, "timeInForce": order.time_in_force}
        else:
            # Of a purchase as well: the quantity is in the base, not what to spend.
            fields["marketUnit"] = "baseCoin"
        return Call("POST", "/v5/order/create", fields)

    def operation(self, call: Call, now_ms: int) -> _Operation:
        """See `Builder`."""
        return _Operation(call, self.host, self.login.api_key, now_ms, self.KIND)

    def finish(self, request: Request, now_ms: int) -> Request:
        """See `Builder`: without the broker."""
        kept = {name: value for name, value in request.headers.items() if name != "Referer"}
        return Request(request.method, request.url, kept, request.body)

    def cancel(self, record: Instrument, client_order_id: str) -> SignedRequest:
        """The request that cancels one order of ours."""
        name = self.own(client_order_id)
        fields = {"category": SPOT, "symbol": record.venue_symbol, "orderFilter": "Order", "orderLinkId": name}
        return self.build(
            lambda _: Call("POST", "/v5/order/cancel", fields),
            lambda exchange: exchange.cancel_order(None, record.symbol, {"orderLinkId": name}),
        )

    def cancel_all(self, record: Instrument) -> SignedRequest:
        """The request that cancels every open order of one instrument."""
        fields = {"category": SPOT, "symbol": record.venue_symbol}
        return self.build(
            lambda _: Call("POST", "/v5/order/cancel-all", fields),
            lambda exchange: exchange.cancel_all_orders(record.symbol),
        )

    def query(self, record: Instrument, client_order_id: str) -> SignedRequest:
        """The request that asks what became of one order of ours."""
        fields = {"category": SPOT, "symbol": record.venue_symbol, "orderLinkId": self.own(client_order_id)}
        return self.build(
            lambda _: Call("GET", "/v5/order/realtime", fields),
            lambda exchange: exchange.fetch_open_orders(
                record.symbol, None, None, {"orderLinkId": fields["orderLinkId"]}
            ),
        )

    def open_orders(self, record: Instrument) -> SignedRequest:
        """The request that lists the open orders of one instrument."""
        fields = {"category": SPOT, "symbol": record.venue_symbol}
        return self.build(
            lambda _: Call("GET", "/v5/order/realtime", fields),
            lambda exchange: exchange.fetch_open_orders(record.symbol),
        )
