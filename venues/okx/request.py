"""OKX's requests (API v5, spot, without margin), built by ccxt and read back.

- Signed is the text of time, method, path with query, and body.  Host and headers are not in it.
- OKX refuses what is older than `WINDOW_S` by its clock.  `expTime` ends an order's request sooner, but is a header that no signature
  covers: it bounds what an honest carrier delays, and not what a thief of the request does with it.
- The passphrase stands in a header of every request, so execution, which sends it, sees it: by itself it signs nothing.
- Nothing is borrowed: `tdMode` is `cash`.  Quantities are in the base (`tgtCcy`), of market orders as well.
- Client order ids are of at most 32 letters and digits: ours is `ts` and the intent's id in base32hex, 28 characters.
- OKX has no request that cancels all of one spot instrument: `open_orders` names them, and each is cancelled by its name.

Source: https://www.okx.com/docs-v5/en/#overview-rest-authentication, #order-book-trading-trade-post-place-order.

Trust: whoever holds a signed request can send it as it is within `WINDOW_S`, and again once the first order is closed: OKX
refuses a `clOrdId` that is taken, and does not say that one stays so.  A fill beyond its permit trips the breaker.
"""

from __future__ import annotations

import base64
import re
from types import MappingProxyType
from typing import Any, Final, Never

from tallystick.schemas.bounds import NS_PER_MS
from tallystick.schemas.orders import VenueOrder
from tallystick.schemas.trust import Instrument
from tallystick.venues import VALID_NS, Login, SignedRequest
from tallystick.venues.builder import Builder, Call, Headed, iso
from tallystick.venues.capture import Request, Signed
from tallystick.venues.order import Words

# "The request is expired if the timestamp deviates by more than 30 seconds": OKX's error 50102.
WINDOW_S: Final = 30
EXPIRES_MS: Final = VALID_NS // NS_PER_MS
_KINDS: Final = {"GTC": "limit", "IOC": "ioc", "FOK": "fok", "": "market"}


def client_order_id(intent_id: bytes) -> str:
    """`ts` and the intent's id in base32hex (RFC 4648, 7) in small letters: 28 characters."""
    return f"ts{base64.b32hexencode(intent_id).decode('ascii').rstrip('=').lower()}"


class _Operation(Headed):
    def __init__(self, call: Call, host: str, login: Login, now_ms: int) -> None:
        self._login = login
        self._time = iso(now_ms)
        super().__init__(call, host, f"{self._time}{call.method}{call.path}{'?' if call.method == 'GET' else ''}")

    def request(self, signed: Signed) -> Request:
        """See `capture.Operation`."""
        headers = {
            "OK-ACCESS-KEY": self._login.api_key,
            "OK-ACCESS-PASSPHRASE": self._login.passphrase,
            "OK-ACCESS-TIMESTAMP": self._time,
            "OK-ACCESS-SIGN": base64.b64encode(signed.signature).decode("ascii"),
        }
        return self.carried(signed, headers, {"Content-Type": "application/json"})


class RequestBuilder(Builder):
    """See `builder.Builder`."""

    EXCHANGE = "okx"
    KIND = "hmac"
    WORDS = Words(
        buy="buy",
        sell="sell",
        limit="limit",
        market="market",
        name=client_order_id,
        # 128 bits: the last of 26 letters holds three of them.
        own=re.compile(r"ts[0-9a-v]{25}[048cgkos]"),
        rule="`ts` and 26 letters of base32hex",
    )
    SYMBOL = re.compile(r"[A-Z0-9]{1,16}-[A-Z0-9]{1,16}")
    OPTIONS = MappingProxyType({"createOrder": "privatePostTradeOrder", "defaultMarginMode": "cash"})

    def urls(self) -> dict[str, str]:
        """See `Builder`."""
        return {"rest": f"https://{self.host}"}

    def placing(self, order: VenueOrder, now_ms: int) -> Call:
        """See `Builder`."""
        fields: dict[str, Any] = {
            "instId": order.symbol,
            "tdMode": "cash",
            "tgtCcy": "base_ccy",
            "side": order.side,
            "ordType": _KINDS[order.time_in_force],
            "sz": order.quantity,
            "clOrdId": order.client_order_id,
        }
        if order.type == self.WORDS.limit:
            fields["px"] = order.price
        return Call("POST", "/api/v5/trade/order", fields)

    def operation(self, call: Call, now_ms: int) -> _Operation:
        """See `Builder`."""
        return _Operation(call, self.host, self.login, now_ms)

    def params(self, order: VenueOrder, now_ms: int) -> dict[str, Any]:
        """See `Builder`."""
        told = {"clOrdId": order.client_order_id}
        return told | ({"timeInForce": order.time_in_force} if order.time_in_force else {})

    def finish(self, request: Request, now_ms: int) -> Request:
        """See `Builder`: an order ends soon, in honest hands."""
        if not request.url.endswith("/trade/order"):
            return request
        headers = {**request.headers, "expTime": str(now_ms + EXPIRES_MS)}
        return Request(request.method, request.url, headers, request.body)

    def cancel(self, record: Instrument, client_order_id: str) -> SignedRequest:
        """The request that cancels one order of ours."""
        name = self.own(client_order_id)
        return self.build(
            lambda _: Call("POST", "/api/v5/trade/cancel-order", {"instId": record.venue_symbol, "clOrdId": name}),
            lambda exchange: exchange.cancel_order(None, record.symbol, {"clOrdId": name}),
        )

    def cancel_all(self, record: Instrument) -> Never:
        """Refused: OKX has no such request."""
        self.not_offered("cancels one order at a time: list the open ones, and cancel each")

    def query(self, record: Instrument, client_order_id: str) -> SignedRequest:
        """The request that asks what became of one order of ours."""
        name = self.own(client_order_id)
        return self.build(
            lambda _: Call("GET", "/api/v5/trade/order", {"instId": record.venue_symbol, "clOrdId": name}),
            lambda exchange: exchange.fetch_order(None, record.symbol, {"clOrdId": name}),
        )

    def open_orders(self, record: Instrument) -> SignedRequest:
        """The request that lists the open orders of one instrument."""
        return self.build(
            lambda _: Call("GET", "/api/v5/trade/orders-pending", {"instId": record.venue_symbol}),
            lambda exchange: exchange.fetch_open_orders(record.symbol),
        )
