"""Kraken's requests (REST, spot, without leverage), built by ccxt and read back.

- Signed is the path, and the SHA-256 of the nonce and the form: with them everything but the host.
- A nonce is taken once, and none below it, where the key's nonce window is 0: so a request can be sent once.  One that was never
  sent stays good until a later one was: an order carries a `deadline` besides, `DEADLINE_MS` after its time; Kraken takes none
  nearer than two seconds, and one second is for the way there.  Cancels and questions have none.
- A clock that is put back by more than a second has nothing signed until it has caught up: Kraken would refuse the lower nonces.
- `leverage` does not stand in an order: nothing is borrowed.  `cl_ord_id` is the intent's id in hex, a "short UUID".
- Kraken knows GTC and IOC; FOK is refused here.
- What became of an order is told by `query` once it is closed, and by `open_orders` while it is open: Kraken has no single
  request that names an order by our id whether open or closed.  `open_orders` lists the account's, of every instrument.
- Kraken cancels one order, or all of the account: `cancel_all` of one instrument is refused.  List the open ones, and cancel each.

Source: https://docs.kraken.com/api/docs/guides/spot-rest-auth and /api/docs/rest-api/add-order ("deadline", "cl_ord_id").

Trust: whoever holds a signed order can send it as it is, once, before its deadline; where the key has a nonce window, as
often as that lets through.  `cl_ord_id` is unique among open orders alone.
"""

from __future__ import annotations

import base64
import re
from typing import Any, Final, Never

from tallystick.schemas.orders import VenueOrder
from tallystick.schemas.trust import Instrument
from tallystick.venues import Denied, SignedRequest
from tallystick.venues.builder import Builder, Call, iso
from tallystick.venues.capture import Asked, Request, Signed, parse_form, require_same
from tallystick.venues.order import Words

# "min now() + 2 seconds, max now() + 60 seconds", by Kraken's clock when the request is there.
LEAST_DEADLINE_MS: Final = 2_000
DEADLINE_MS: Final = LEAST_DEADLINE_MS + 1_000
# ccxt counts on within a millisecond: that many requests in one.
_NONCES: Final = 1_000
FORM: Final = "application/x-www-form-urlencoded"


class _Operation:
    def __init__(self, call: Call, host: str, api_key: str, now_ms: int) -> None:
        self._call = call
        self._host = host
        self._api_key = api_key
        self._now_ms = now_ms
        self._path = call.path.encode("ascii")

    def _form(self, asked: Asked) -> str:
        # The nonce stands before the form and first in it, and has as many digits as the time.
        return asked.preimage(asked.data[len(self._path) :])[len(str(self._now_ms)) :]

    def check(self, asked: Asked) -> None:
        """See `capture.Operation`."""
        require_same({"path": asked.data[: len(self._path)]}, {"path": self._path})
        form = self._form(asked)
        fields = parse_form(form)
        nonce = fields.get("nonce", "")
        if not (nonce.isascii() and nonce.isdigit()) or int(nonce) - self._now_ms not in range(_NONCES):
            raise Denied("FIELD_MISMATCH", f"the nonce {nonce[:32]!r} is not of now")
        require_same(fields, {**self._call.fields, "nonce": nonce})
        require_same({"hashed": asked.preimage(asked.data[len(self._path) :])}, {"hashed": nonce + form})

    def request(self, signed: Signed) -> Request:
        """See `capture.Operation`."""
        headers = {
            "API-Key": self._api_key,
            "API-Sign": base64.b64encode(signed.signature).decode("ascii"),
            "Content-Type": FORM,
        }
        return Request("POST", f"https://{self._host}{self._call.path}", headers, self._form(signed))


class RequestBuilder(Builder):
    """See `builder.Builder`."""

    EXCHANGE = "kraken"
    KIND = "hmac"
    WORDS = Words(
        buy="buy",
        sell="sell",
        limit="limit",
        market="market",
        tifs=("GTC", "IOC"),
        name=bytes.hex,
        own=re.compile(r"[0-9a-f]{32}"),
        rule="32 hex digits",
    )
    SYMBOL = re.compile(r"[A-Z0-9.]{2,32}")

    def urls(self) -> dict[str, str]:
        """See `Builder`."""
        return {"private": f"https://{self.host}"}

    def placing(self, order: VenueOrder, now_ms: int) -> Call:
        """See `Builder`."""
        fields: dict[str, Any] = {
            "pair": order.symbol,
            "type": order.side,
            "ordertype": order.type,
            "volume": order.quantity,
            "cl_ord_id": order.client_order_id,
            "deadline": iso(now_ms + DEADLINE_MS),
        }
        if order.type == self.WORDS.limit:
            fields |= {"price": order.price, "timeinforce": order.time_in_force}
        return Call("POST", "/0/private/AddOrder", fields)

    def operation(self, call: Call, now_ms: int) -> _Operation:
        """See `Builder`."""
        return _Operation(call, self.host, self.login.api_key, now_ms)

    def params(self, order: VenueOrder, now_ms: int) -> dict[str, Any]:
        """See `Builder`."""
        return super().params(order, now_ms) | {"deadline": iso(now_ms + DEADLINE_MS)}

    def cancel(self, record: Instrument, client_order_id: str) -> SignedRequest:
        """The request that cancels one order of ours."""
        name = self.own(client_order_id)
        return self.build(
            lambda _: Call("POST", "/0/private/CancelOrder", {"cl_ord_id": name}),
            lambda exchange: exchange.cancel_order(None, record.symbol, {"clientOrderId": name}),
        )

    def cancel_all(self, record: Instrument) -> Never:
        """Refused: Kraken would cancel the orders of every other instrument, too."""
        self.not_offered("cancels one order, or all of the account: list the open ones, and cancel each")

    def query(self, record: Instrument, client_order_id: str) -> SignedRequest:
        """The request that asks what became of one order of ours, once it is closed."""
        name = self.own(client_order_id)
        return self.build(
            lambda _: Call("POST", "/0/private/ClosedOrders", {"cl_ord_id": name}),
            lambda exchange: exchange.fetch_closed_orders(record.symbol, None, None, {"clientOrderId": name}),
        )

    def open_orders(self, record: Instrument) -> SignedRequest:
        """The request that lists the account's open orders, those of other instruments as well."""
        return self.build(
            lambda _: Call("POST", "/0/private/OpenOrders", {}),
            lambda exchange: exchange.fetch_open_orders(record.symbol),
        )
