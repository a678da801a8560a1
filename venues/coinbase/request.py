"""Coinbase's requests (Advanced Trade, spot), built by ccxt and read back.

- Signed is a JSON Web Token of key name, method, host and path, good for `TOKEN_S` as ccxt writes it.  **Neither body nor
  query are in it**: the body is compared whole before the request leaves, but whoever holds the token can send any other
  order with it, as often as wanted, until then.  So no signature binds an order here, and custody must not hand one out:
  it would have to send the request itself.  Until it does, nothing trades here.
- Our id stands in an order (`client_order_id`, which answers a repetition with the first order), but no request takes it to
  cancel an order or to ask for one: `cancel` and `query` are refused.
- Neither `leverage` nor `margin_type` stands in an order: it is a spot order.  `post_only` is false.
- A market purchase names what to spend, not a quantity, and is refused: it would not say what the permit says.

Source: https://docs.cdp.coinbase.com/coinbase-app/authentication-authorization/api-key-authentication and
/api-reference/advanced-trade-api/rest-api/orders/create-order.

Trust: whoever holds a signed request can place any order of the account for `TOKEN_S`.
"""

from __future__ import annotations

import base64
import json
import re
from typing import Any, Final, Never
from urllib.parse import urlencode

from tallystick.schemas.orders import VenueOrder
from tallystick.schemas.trust import Instrument
from tallystick.venues import Denied, SignedRequest
from tallystick.venues.builder import Builder, Call
from tallystick.venues.capture import Asked, Request, Signed, parse_jwt, require_same
from tallystick.venues.order import Words

# "JWTs expire after 2 minutes".
TOKEN_S: Final = 120
ORDERS: Final = "/api/v3/brokerage/orders"
# 128 bits in hex, as ccxt writes a number: without leading zeros.
_NONCE: Final = re.compile(r"[0-9a-f]{1,32}")
_LIMITS: Final = {"GTC": "limit_limit_gtc", "IOC": "sor_limit_ioc", "FOK": "limit_limit_fok"}


class _Operation:
    def __init__(self, call: Call, host: str, api_key: str, now_ms: int) -> None:
        self._call = call
        self._host = host
        self._api_key = api_key
        self._seconds = now_ms // 1_000

    def check(self, asked: Asked) -> None:
        """See `capture.Operation`; of the body it says nothing."""
        header, claims = parse_jwt(asked)
        nonce = header.pop("nonce", None)
        if not isinstance(nonce, str) or not _NONCE.fullmatch(nonce):
            raise Denied("FIELD_MISMATCH", f"the token's nonce {str(nonce)[:64]!r} is not of 32 hex digits at most")
        require_same(header, {"alg": "ES256", "typ": "JWT", "kid": self._api_key})
        expected = {
            "aud": ["retail_rest_api_proxy"],
            "iss": "coinbase-cloud",
            "nbf": self._seconds,
            "iat": self._seconds,
            "exp": self._seconds + TOKEN_S,
            "sub": self._api_key,
            "uri": f"{self._call.method} {self._host}{self._call.path}",
        }
        require_same(claims, expected)

    def request(self, signed: Signed) -> Request:
        """See `capture.Operation`: here the body, or the query, has to be what was asked for."""
        signature = base64.urlsafe_b64encode(signed.signature).rstrip(b"=").decode("ascii")
        headers = {"Authorization": f"Bearer {signed.text()}.{signature}", "Content-Type": "application/json"}
        url = f"https://{self._host}{self._call.path}"
        if self._call.method == "POST":
            return Request("POST", url, headers, json.dumps(self._call.fields, separators=(",", ":")))
        return Request("GET", f"{url}?{urlencode(self._call.fields)}", headers)


class RequestBuilder(Builder):
    """See `builder.Builder`; the key is an ECDSA P-256 key, `login.api_key` its name (`organizations/…/apiKeys/…`)."""

    EXCHANGE = "coinbase"
    KIND = "p256"
    WORDS = Words(buy="BUY", sell="SELL", limit="LIMIT", market="MARKET")
    SYMBOL = re.compile(r"[A-Z0-9]{1,16}-[A-Z0-9]{1,16}")
    JWT = True

    def urls(self) -> dict[str, str]:
        """See `Builder`."""
        return {"rest": f"https://{self.host}"}

    def placing(self, order: VenueOrder, now_ms: int) -> Call:
        """See `Builder`; in the order in which ccxt writes it, since the body is compared to the letter."""
        if order.type == self.WORDS.limit:
            priced = {"base_size": order.quantity, "limit_price": order.price}
            kind: dict[str, Any] = {_LIMITS[order.time_in_force]: priced}
            if order.time_in_force == "GTC":
                kind[_LIMITS["GTC"]] = {**priced, "post_only": False}
        elif order.side == self.WORDS.sell:
            kind = {"market_market_ioc": {"base_size": order.quantity}}
        else:
            self.not_offered("takes what to spend in a market purchase, not a quantity: give a limit")
        fields = {
            "client_order_id": order.client_order_id,
            "product_id": order.symbol,
            "side": order.side,
            "order_configuration": kind,
        }
        return Call("POST", ORDERS, fields)

    def operation(self, call: Call, now_ms: int) -> _Operation:
        """See `Builder`."""
        return _Operation(call, self.host, self.login.api_key, now_ms)

    def params(self, order: VenueOrder, now_ms: int) -> dict[str, Any]:
        """See `Builder`: ccxt takes the venue's own name of the id alone."""
        told = {"client_order_id": order.client_order_id}
        return told | ({"timeInForce": order.time_in_force} if order.time_in_force else {})

    def cancel(self, record: Instrument, client_order_id: str) -> Never:
        """Refused: Coinbase cancels by its own ids alone."""
        self.not_offered("cancels by its own order id, not by ours")

    def cancel_all(self, record: Instrument) -> Never:
        """Refused: Coinbase cancels by its own ids alone."""
        self.not_offered("cancels by its own order ids alone")

    def query(self, record: Instrument, client_order_id: str) -> Never:
        """Refused: Coinbase tells of an order by its own id alone."""
        self.not_offered("tells of an order by its own id, not by ours: list the open ones")

    def open_orders(self, record: Instrument) -> SignedRequest:
        """The request that lists the open orders of one instrument, the first hundred."""
        fields = {"order_status": "OPEN", "product_id": record.venue_symbol, "limit": 100}
        return self.build(
            lambda _: Call("GET", f"{ORDERS}/historical/batch", fields),
            lambda exchange: exchange.fetch_open_orders(record.symbol),
        )
