"""Exchange requests, built by ccxt from operator-signed records and permits, signed in the HSM.

Rules, in this order, for every request:

- It is built from the venue and instrument records of the trust root and from strings of a verified
  permit (or of our own order ids) alone; markets are preset, so that ccxt has nothing to ask for.
- ccxt holds no secret: it gets a handle that answers what ccxt sniffs, and refuses to be formatted,
  joined or cut.  The only signing method is Ed25519; every other raises.
- What ccxt wants signed is parsed strictly and must equal the expected fields one by one, no more and
  no less, before the HSM sees it.
- ccxt's `fetch` is replaced: it captures and ends the call.  Nothing is ever sent from here.
- Exactly one request was captured, to the allowed host, path and method, with the checked fields, the
  signature and two known headers.
- Where ccxt built an order of the same instrument, side, type and time in force before, that request is filled with the
  order's own strings, in the same order of fields, and parsed back as any other: it takes a third of the time.

ccxt is not trusted: an attacker who controls what it returns can at most make custody refuse; the code
runs in custody's process, though, so its release is pinned by hash.  The API key stands in the header of
every request and is no secret towards execution.
"""

from __future__ import annotations

import base64
import importlib
import re
from collections.abc import Callable
from typing import Any, Final, Never, Self
from urllib.parse import quote, unquote_to_bytes

from tallystick.runtime import lean
from tallystick.schemas.bounds import NS_PER_MS
from tallystick.schemas.errors import TallystickError, Unverified
from tallystick.schemas.nats_jwt import Signer
from tallystick.schemas.orders import VenueOrder
from tallystick.schemas.trust import Instrument, Venue
from tallystick.venues import Denied, SignedRequest
from tallystick.venues.binance.codes import (
    API,
    ENDPOINTS,
    ORDER_TYPES,
    RECV_WINDOW_MS,
    RESPONSE_TYPE,
    SYMBOL,
)
from tallystick.venues.binance.order import check_client_order_id, plain, require_market

FORM: Final = "application/x-www-form-urlencoded"
# A symbol may hold letters of any script, which stand percent-encoded.
_FIELD = re.compile(r"([A-Za-z]+)=((?:[A-Za-z0-9._-]|%[89A-F][0-9A-F])+)")


class SecretHandle(str):
    """Stands where ccxt keeps the secret, and is none.

    ccxt takes a binance secret that contains `PRIVATE KEY` for an asymmetric key, and one longer than
    120 characters for RSA: this one says Ed25519.  Whatever would put it into a request raises `Denied`.
    """

    __slots__ = ()

    def __new__(cls) -> Self:
        """The one handle there is; it has no content of its own."""
        return super().__new__(cls, "PRIVATE KEY in the HSM")

    def _refuse(self, *_: object) -> Never:
        raise Denied("SECRET_USED", "the exchange library tried to read or to send the secret")

    __format__ = __str__ = __add__ = __radd__ = __mod__ = __mul__ = __getitem__ = __iter__ = _refuse
    encode = format = join = split = replace = strip = lower = upper = zfill = _refuse  # type: ignore[assignment]

    def __repr__(self) -> str:
        return "<secret in the HSM>"


class _Captured(Exception):
    """Ends ccxt's call with the request that it would have sent."""

    def __init__(self, url: str, method: str, headers: dict[str, str] | None, body: str | None) -> None:
        super().__init__("captured")
        self.request = (url, method, headers or {}, body or "")


def parse_fields(query: str) -> dict[str, str]:
    """The fields of a raw query, none twice, nothing escaped that need not be.  Raises `Denied`."""
    fields: dict[str, str] = {}
    for part in query.split("&"):
        match = _FIELD.fullmatch(part)
        if match is None:
            raise Denied("FIELD_MISMATCH", f"not a plain field of a request: {part[:64]!r}")
        name, escaped = match.groups()
        if name in fields:
            raise Denied("FIELD_MISMATCH", f"{name} stands twice in the request")
        try:
            fields[name] = unquote_to_bytes(escaped).decode("utf-8")
        except UnicodeDecodeError as exc:
            raise Denied("FIELD_MISMATCH", f"not UTF-8 in a field of a request: {part[:64]!r}") from exc
    return fields


def _compare(fields: dict[str, str], expected: dict[str, str]) -> None:
    """Raise `Denied` unless both are equal, naming the first field that is not."""
    for name in sorted(expected.keys() | fields.keys()):
        if fields.get(name) != expected.get(name):
            raise Denied(
                "FIELD_MISMATCH",
                f"{name}: the request says {fields.get(name, 'nothing')[:64]!r}, "
                f"the permit {expected.get(name, 'nothing')[:64]!r}",
            )


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
        self._signer = signer
        self._clock = clock
        self._expected: dict[str, str] | None = None
        self._signed: tuple[str, str] | None = None
        self._captures = 0
        self._now_ms = 0
        # The fields of an order as ccxt wrote them, in their order.
        self._shapes: dict[tuple[str, str, str, str], tuple[str, ...]] = {}
        for record in records:
            if not SYMBOL.fullmatch(record.venue_symbol):
                raise Unverified("INSTRUMENT", f"venue symbol {record.venue_symbol[:64]!r} of {record.symbol[:64]}")
        self._exchange = self._create(records)

    def _create(self, records: tuple[Instrument, ...]) -> Any:
        # By name, not by statement: ccxt ships no types, and only custody should pay for it, at its start.  Without its
        # hundred other exchanges it takes a third of the time, and 33 MB less.
        with lean.hollow("ccxt"):
            base = importlib.import_module("ccxt.binance").binance
        builder = self

        def eddsa(request: bytes, secret: object, curve: str = "ed25519", url_encode: bool = False) -> str:
            if not isinstance(secret, SecretHandle) or curve != "ed25519" or url_encode:
                raise Denied("SIGNATURE_KIND", f"only Ed25519 with the HSM's key is signed, not {curve}")
            return builder._sign(request)

        def refuse(*_: object, **__: object) -> Never:
            raise Denied("SIGNATURE_KIND", "only Ed25519 with the HSM's key is signed")

        def fetch(_: object, url: str, method: str = "GET", headers: Any = None, body: Any = None) -> Never:
            builder._captures += 1
            raise _Captured(url, method, headers, body)

        def unreachable(*_: object, **__: object) -> Never:
            raise Denied("ENDPOINT", "the exchange library tried to load what it was not given")

        namespace: dict[str, Any] = {
            name: staticmethod(refuse) for name in ("hmac", "rsa", "ecdsa", "jwt", "totp", "eth_sign_message")
        }
        namespace |= {
            "eddsa": staticmethod(eddsa),
            "fetch": fetch,
            "load_markets": unreachable,
            "milliseconds": staticmethod(lambda: builder._now_ms),
            "nonce": staticmethod(lambda: builder._now_ms),
        }
        exchange = type("binance_in_custody", (base,), namespace)(
            {
                "apiKey": self._api_key,
                "secret": "",
                "enableRateLimit": False,
                "options": {
                    "recvWindow": RECV_WINDOW_MS,
                    "newOrderRespType": {"market": RESPONSE_TYPE, "limit": RESPONSE_TYPE},
                    "maxRetriesOnFailure": 0,
                },
            }
        )
        exchange.secret = SecretHandle()
        exchange.session = None
        api = f"https://{self._venue.host}{API}"
        exchange.urls["api"] = {"public": api, "private": api}
        exchange.set_markets([_market(record) for record in records])
        return exchange

    def order(self, record: Instrument, order: VenueOrder) -> SignedRequest:
        """The request that places exactly `order`.  Raises `Denied` where ccxt would change any of it."""
        expected = {
            "symbol": order.symbol,
            "side": order.side,
            "type": order.type,
            "quantity": order.quantity,
            "newClientOrderId": check_client_order_id(order.client_order_id),
            "newOrderRespType": RESPONSE_TYPE,
        }
        price: str | None = None
        params = {"newClientOrderId": order.client_order_id}
        if order.type == "LIMIT":
            price = expected["price"] = order.price
            params["timeInForce"] = expected["timeInForce"] = order.time_in_force
        else:
            require_market(order)
        kind = (record.symbol, order.side, order.type, order.time_in_force)
        shape = self._shapes.get(kind)
        if shape is not None:
            return self._fill(shape, expected)
        made = self._build(
            "order",
            expected,
            lambda: self._exchange.create_order(
                record.symbol, order.type.lower(), order.side.lower(), order.quantity, price, params
            ),
        )
        self._shapes[kind] = tuple(part.partition("=")[0] for part in made.body.split("&")[:-1])
        return made

    def cancel(self, record: Instrument, client_order_id: str) -> SignedRequest:
        """The request that cancels one order of ours."""
        name = check_client_order_id(client_order_id)
        return self._build(
            "cancel",
            {"symbol": record.venue_symbol, "origClientOrderId": name},
            lambda: self._exchange.cancel_order(None, record.symbol, {"origClientOrderId": name}),
        )

    def cancel_all(self, record: Instrument) -> SignedRequest:
        """The request that cancels every open order of one instrument."""
        return self._build(
            "cancel_all", {"symbol": record.venue_symbol}, lambda: self._exchange.cancel_all_orders(record.symbol)
        )

    def query(self, record: Instrument, client_order_id: str) -> SignedRequest:
        """The request that asks what became of one order of ours."""
        name = check_client_order_id(client_order_id)
        return self._build(
            "query",
            {"symbol": record.venue_symbol, "origClientOrderId": name},
            lambda: self._exchange.fetch_order(None, record.symbol, {"origClientOrderId": name}),
        )

    def open_orders(self, record: Instrument) -> SignedRequest:
        """The request that lists the open orders of one instrument."""
        return self._build(
            "open_orders", {"symbol": record.venue_symbol}, lambda: self._exchange.fetch_open_orders(record.symbol)
        )

    def _sign(self, payload: bytes) -> str:
        """The base64 signature over `payload`, which must hold exactly the expected fields."""
        if self._expected is None or self._signed is not None:
            raise Denied("ENDPOINT", "the exchange library wants a signature that nobody asked for")
        try:
            query = payload.decode("ascii")
        except UnicodeDecodeError as exc:
            raise Denied("FIELD_MISMATCH", "the request is not ASCII") from exc
        _compare(parse_fields(query), self._expected)
        signature = base64.b64encode(self._signer.sign(payload)).decode("ascii")
        self._signed = (query, signature)
        return signature

    def _fill(self, shape: tuple[str, ...], expected: dict[str, str]) -> SignedRequest:
        """The request for an order of a kind that ccxt built before."""
        self._begin(expected)
        try:
            signed = self._expected or {}
            query = "&".join(f"{name}={quote(signed[name], safe='')}" for name in shape)
            signature = self._sign(query.encode("ascii"))
        finally:
            self._expected = None
        method, path = ENDPOINTS["order"]
        headers = (("Content-Type", FORM), ("X-MBX-APIKEY", self._api_key))
        body = f"{query}&signature={quote(signature, safe='')}"
        return SignedRequest(method, f"https://{self._venue.host}{path}", headers, body, self._now_ms * NS_PER_MS)

    def _begin(self, expected: dict[str, str]) -> None:
        self._now_ms = self._clock() // NS_PER_MS
        self._expected = expected | {"timestamp": str(self._now_ms), "recvWindow": str(RECV_WINDOW_MS)}
        self._signed, self._captures = None, 0

    def _build(self, operation: str, expected: dict[str, str], call: Callable[[], object]) -> SignedRequest:
        self._begin(expected)
        try:
            call()
        except _Captured as captured:
            url, method, headers, body = captured.request
        except TallystickError:
            raise
        except Exception as exc:  # ccxt's own errors and its bugs alike: nothing was captured, nothing is signed
            raise Denied(
                "EXCHANGE_LIBRARY", f"the exchange library refused: {type(exc).__name__}: {str(exc)[:200]}"
            ) from exc
        else:
            raise Denied("ENDPOINT", "the exchange library made no request")
        finally:
            self._expected = None
        return self._check(operation, url, method, headers, body)

    def _check(self, operation: str, url: str, method: str, headers: dict[str, str], body: str) -> SignedRequest:
        """The captured request, if it is to the operation's endpoint and carries the signed fields alone."""
        if self._signed is None or self._captures != 1:
            raise Denied("ENDPOINT", f"{self._captures} requests, signed: {self._signed is not None}; expected one")
        query, signature = self._signed
        allowed, path = ENDPOINTS[operation]
        full = f"{query}&signature={quote(signature, safe='')}"
        endpoint = f"https://{self._venue.host}{path}"
        wanted_headers = {"X-MBX-APIKEY": self._api_key}
        if allowed == "POST":
            wanted_url, wanted_body = endpoint, full
            wanted_headers["Content-Type"] = FORM
        else:
            wanted_url, wanted_body = f"{endpoint}?{full}", ""
        if method != allowed or url != wanted_url or body != wanted_body or headers != wanted_headers:
            raise Denied(
                "ENDPOINT", f"{operation} is {allowed} {path}, the request was {method} {url.partition('?')[0]}"
            )
        return SignedRequest(method, url, tuple(sorted(headers.items())), body, self._now_ms * NS_PER_MS)


def _market(record: Instrument) -> dict[str, Any]:
    """The instrument record as ccxt's market structure.

    https://docs.ccxt.com/#/?id=market-structure; precisions are text, so that no float comes between.
    """
    return {
        "id": record.venue_symbol,
        "symbol": record.symbol,
        "base": record.base,
        "quote": record.quote,
        "baseId": record.base,
        "quoteId": record.quote,
        "type": "spot",
        "spot": True,
        "margin": False,
        "swap": False,
        "future": False,
        "option": False,
        "contract": False,
        "active": True,
        "precision": {"amount": plain(record.step), "price": plain(record.tick)},
        "info": {"orderTypes": list(ORDER_TYPES)},
    }
