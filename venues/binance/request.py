"""Exchange requests, built by ccxt from operator-signed records and permits, signed in the HSM.

Rules, beside those of `venues.capture`, by which each request is captured and checked:

- It is built from the venue and instrument records of the trust root and from strings of a verified
  permit (or of our own order ids) alone; markets are preset, so that ccxt has nothing to ask for.
- The only signing method is Ed25519.
- What ccxt wants signed is parsed strictly and must equal the expected fields one by one, no more and no less.
- The request goes to the operator's host, to the operation's path, with the signed fields, the signature and two known headers.
- Where ccxt built an order of the same instrument, side, type and time in force before, that request is filled with the
  order's own strings, in the same order of fields, and parsed back as any other: it takes a third of the time.

The API key stands in the header of every request and is no secret towards execution.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import quote

from tallystick.schemas.errors import Unverified
from tallystick.schemas.nats_jwt import Signer
from tallystick.schemas.orders import VenueOrder
from tallystick.schemas.trust import Instrument, Venue
from tallystick.venues import SignedRequest
from tallystick.venues.binance.codes import (
    API,
    ENDPOINTS,
    ORDER_TYPES,
    RECV_WINDOW_MS,
    RESPONSE_TYPE,
    SYMBOL,
)
from tallystick.venues.binance.order import WORDS
from tallystick.venues.builder import market, signed_request
from tallystick.venues.capture import Asked, Capture, Ed25519Keys, Request, Signed, parse_form, require_same
from tallystick.venues.signing.schemes import require_signable

FORM: Final = "application/x-www-form-urlencoded"


class SignedForm:
    """One request of Binance's: `expected` fields, to `endpoint`, a method and a path.

    What is signed is the query, or the form, before `&signature=` (https://developers.binance.com/docs/binance-spot-api-docs,
    "Request security").
    """

    def __init__(
        self, endpoint: tuple[str, str], host: str, api_key: str, expected: dict[str, str], now_ms: int
    ) -> None:
        self._endpoint = endpoint
        self._host = host
        self._api_key = api_key
        self.expected = expected | {"timestamp": str(now_ms), "recvWindow": str(RECV_WINDOW_MS)}

    def check(self, asked: Asked) -> None:
        """See `capture.Operation`."""
        require_same(parse_form(asked.text()), self.expected)

    def request(self, signed: Signed) -> Request:
        """See `capture.Operation`."""
        method, path = self._endpoint
        signature = quote(base64.b64encode(signed.signature).decode("ascii"), safe="")
        full, endpoint = f"{signed.text()}&signature={signature}", f"https://{self._host}{path}"
        if method == "POST":
            return Request(method, endpoint, {"Content-Type": FORM, "X-MBX-APIKEY": self._api_key}, full)
        return Request(method, f"{endpoint}?{full}", {"X-MBX-APIKEY": self._api_key})


class RequestBuilder:
    """Builds the signed requests of one venue account.

    - `venue`, `records`: the operator-signed records of venue and instruments; `api_key`: the account's, sent in a header.
    - `signer`: the Ed25519 key, in the HSM.
    - `clock`: Unix nanoseconds.

    Not for use from several threads: one request is built at a time.
    """

    def __init__(
        self,
        venue: Venue,
        records: tuple[Instrument, ...],
        api_key: str,
        signer: Signer,
        clock: Callable[[], int],
    ) -> None:
        self._venue = venue
        self._api_key = api_key
        # The fields of an order as ccxt wrote them, in their order.
        self._shapes: dict[tuple[str, str, str, str], tuple[str, ...]] = {}
        for record in records:
            if not SYMBOL.fullmatch(record.venue_symbol):
                raise Unverified("INSTRUMENT", f"venue symbol {record.venue_symbol[:64]!r} of {record.symbol[:64]}")
        config = {
            "apiKey": api_key,
            "options": {
                "recvWindow": RECV_WINDOW_MS,
                "newOrderRespType": {"market": RESPONSE_TYPE, "limit": RESPONSE_TYPE},
                "maxRetriesOnFailure": 0,
            },
        }
        self._capture = Capture("binance", require_signable("binance", "ed25519"), Ed25519Keys(signer), config, clock)
        exchange = self._capture.exchange
        api = f"https://{venue.host}{API}"
        exchange.urls["api"] = {"public": api, "private": api}
        exchange.set_markets([market(record, orderTypes=list(ORDER_TYPES)) for record in records])

    def order(self, record: Instrument, order: VenueOrder) -> SignedRequest:
        """The request that places exactly `order`.  Raises `Denied` where ccxt would change any of it."""
        expected = {
            "symbol": order.symbol,
            "side": order.side,
            "type": order.type,
            "quantity": order.quantity,
            "newClientOrderId": WORDS.check_client_order_id(order.client_order_id),
            "newOrderRespType": RESPONSE_TYPE,
        }
        price: str | None = None
        params = {"newClientOrderId": order.client_order_id}
        if order.type == "LIMIT":
            price = expected["price"] = order.price
            params["timeInForce"] = expected["timeInForce"] = order.time_in_force
        else:
            WORDS.require_market(order)
        kind = (record.symbol, order.side, order.type, order.time_in_force)
        shape = self._shapes.get(kind)
        if shape is not None:
            return self._fill(shape, expected)
        made = self._build(
            "order",
            expected,
            lambda exchange: exchange.create_order(
                record.symbol, order.type.lower(), order.side.lower(), order.quantity, price, params
            ),
        )
        self._shapes[kind] = tuple(part.partition("=")[0] for part in made.body.split("&")[:-1])
        return made

    def cancel(self, record: Instrument, client_order_id: str) -> SignedRequest:
        """The request that cancels one order of ours."""
        name = WORDS.check_client_order_id(client_order_id)
        return self._build(
            "cancel",
            {"symbol": record.venue_symbol, "origClientOrderId": name},
            lambda exchange: exchange.cancel_order(None, record.symbol, {"origClientOrderId": name}),
        )

    def cancel_all(self, record: Instrument) -> SignedRequest:
        """The request that cancels every open order of one instrument."""
        return self._build(
            "cancel_all", {"symbol": record.venue_symbol}, lambda exchange: exchange.cancel_all_orders(record.symbol)
        )

    def query(self, record: Instrument, client_order_id: str) -> SignedRequest:
        """The request that asks what became of one order of ours."""
        name = WORDS.check_client_order_id(client_order_id)
        return self._build(
            "query",
            {"symbol": record.venue_symbol, "origClientOrderId": name},
            lambda exchange: exchange.fetch_order(None, record.symbol, {"origClientOrderId": name}),
        )

    def open_orders(self, record: Instrument) -> SignedRequest:
        """The request that lists the open orders of one instrument."""
        return self._build(
            "open_orders", {"symbol": record.venue_symbol}, lambda exchange: exchange.fetch_open_orders(record.symbol)
        )

    def _making(self, name: str, expected: dict[str, str]) -> Callable[[int], SignedForm]:
        return lambda now_ms: SignedForm(ENDPOINTS[name], self._venue.host, self._api_key, expected, now_ms)

    def _fill(self, shape: tuple[str, ...], expected: dict[str, str]) -> SignedRequest:
        """The request for an order of a kind that ccxt built before."""

        def query(operation: SignedForm) -> bytes:
            fields = operation.expected
            return "&".join(f"{name}={quote(fields[name], safe='')}" for name in shape).encode("ascii")

        return signed_request(*self._capture.fill(self._making("order", expected), query))

    def _build(self, name: str, expected: dict[str, str], call: Callable[[Any], object]) -> SignedRequest:
        return signed_request(*self._capture.build(self._making(name, expected), call))
