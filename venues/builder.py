"""What the request builders of all venues have in common, around `venues.capture`.

- An order is read by the venue's `Words` before ccxt sees it: its record, its type, plain numbers in whole steps.
- ccxt is called as anybody would call it, with strings; what it makes of them is compared field by field before a key is used.
- Orders of ours alone are cancelled and asked for, by an id that an order of ours can have.
- What a venue has no request for is refused by name, never replaced by a request that does more.

The records and permits are verified elsewhere; an attacker who has them changed can at most have an order refused or
built as they say.
"""

from __future__ import annotations

import abc
import datetime
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Never

import msgspec

from tallystick.schemas.bounds import NS_PER_MS
from tallystick.schemas.errors import Unverified
from tallystick.schemas.orders import VenueOrder
from tallystick.schemas.trust import Instrument
from tallystick.venues import Denied, Login, SignedRequest
from tallystick.venues.capture import Asked, Capture, Operation, Request, Signed, parse_form, parse_json, require_same
from tallystick.venues.order import Words, plain
from tallystick.venues.signing.handle import SigningKeys
from tallystick.venues.signing.schemes import Kind, require_signable


class Call(msgspec.Struct, frozen=True):
    """One request of a venue: what its fields must say, no more and no less; a query for GET, the body otherwise."""

    method: str
    path: str
    fields: dict[str, Any]


def iso(now_ms: int) -> str:
    """RFC 3339 in UTC with milliseconds, as ccxt writes it."""
    seconds, rest = divmod(now_ms, 1_000)
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%dT%H:%M:%S}.{rest:03d}Z"


def signed_request(request: Request, at_ms: int) -> SignedRequest:
    """What was captured, as custody hands it out."""
    headers = tuple(sorted(request.headers.items()))
    return SignedRequest(request.method, request.url, headers, request.body, at_ms * NS_PER_MS)


def market(record: Instrument, **info: Any) -> dict[str, Any]:
    """The instrument record as ccxt's market structure of a spot pair; `info` is what the venue would say besides.

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
        "info": info,
    }


class Headed:
    """An operation whose signed text is `head`, and then the query or the body that says `call` (`capture.Operation`)."""

    def __init__(self, call: Call, host: str, head: str) -> None:
        self._call = call
        self._head = head
        self._url = f"https://{host}{call.path}"

    def check(self, asked: Asked) -> None:
        """See `capture.Operation`."""
        text = asked.text()
        require_same({"head": text[: len(self._head)]}, {"head": self._head})
        parse = parse_json if self._call.method == "POST" else parse_form
        require_same(parse(text[len(self._head) :]), self._call.fields)

    def carried(self, signed: Signed, headers: dict[str, str], posted: dict[str, str]) -> Request:
        """The request with what was signed after the head; a body comes with the headers `posted` besides."""
        said = signed.text()[len(self._head) :]
        if self._call.method == "POST":
            return Request("POST", self._url, headers | posted, said)
        return Request(self._call.method, f"{self._url}?{said}", headers)


class Builder(abc.ABC):
    """Builds the signed requests of one account (`venues.Requests`); a venue adds what it calls things.

    - `EXCHANGE`: ccxt's id; `KIND`: of its key; `OPTIONS`: ccxt's; `JWT`: whether it signs tokens.
    - `host`: of the operator's venue record; `records`: the operator's instruments there.
    - `login`: what stands in headers; `keys`: the account's key, in the token; `clock`: Unix nanoseconds.

    Not for use from several threads: one request is built at a time.  Raises `Unverified` for a record whose symbol
    could carry another field.
    """

    EXCHANGE: str
    KIND: Kind
    WORDS: Words
    SYMBOL: re.Pattern[str]
    OPTIONS: Mapping[str, Any] = MappingProxyType({})
    JWT = False

    def __init__(
        self,
        host: str,
        records: tuple[Instrument, ...],
        login: Login,
        keys: SigningKeys,
        clock: Callable[[], int],
    ) -> None:
        for record in records:
            if not self.SYMBOL.fullmatch(record.venue_symbol):
                raise Unverified("INSTRUMENT", f"venue symbol {record.venue_symbol[:64]!r} of {record.symbol[:64]}")
        self.host = host
        self.login = login
        config = {
            "apiKey": login.api_key,
            "password": login.passphrase,
            "options": {"maxRetriesOnFailure": 0, **self.OPTIONS},
        }
        scheme = require_signable(self.EXCHANGE, self.KIND)
        self._capture = Capture(self.EXCHANGE, scheme, keys, config, clock, jwt=self.JWT)
        exchange = self._capture.exchange
        exchange.urls["api"] = self.urls()
        exchange.set_markets([self.market(record) for record in records])

    @abc.abstractmethod
    def urls(self) -> dict[str, str]:
        """Where ccxt finds the venue's private API: at the operator's host alone."""

    @abc.abstractmethod
    def placing(self, order: VenueOrder, now_ms: int) -> Call:
        """The call that places `order`, which `WORDS` has read."""

    @abc.abstractmethod
    def operation(self, call: Call, now_ms: int) -> Operation:
        """What may be signed for `call` and what may leave with it."""

    def market(self, record: Instrument) -> dict[str, Any]:
        """The record as ccxt's market."""
        return market(record)

    def params(self, order: VenueOrder, now_ms: int) -> dict[str, Any]:
        """What ccxt's `create_order` is told besides: our id, the time in force."""
        told: dict[str, Any] = {"clientOrderId": order.client_order_id}
        return told | ({"timeInForce": order.time_in_force} if order.time_in_force else {})

    def finish(self, request: Request, now_ms: int) -> Request:
        """What leaves: headers that no signature covers may be changed here."""
        return request

    def order(self, record: Instrument, order: VenueOrder) -> SignedRequest:
        """The request that places exactly `order`.  Raises `Denied` where ccxt would change any of it."""
        self.WORDS.amounts(record, order)
        side = "buy" if order.side == self.WORDS.buy else "sell"
        kind = "limit" if order.type == self.WORDS.limit else "market"
        return self.build(
            lambda now_ms: self.placing(order, now_ms),
            lambda exchange: exchange.create_order(
                record.symbol,
                kind,
                side,
                order.quantity,
                order.price or None,
                self.params(order, self._capture.now_ms),
            ),
        )

    def build(self, make: Callable[[int], Call], ask: Callable[[Any], object]) -> SignedRequest:
        """The request of `make` that ccxt builds when `ask` asks it."""
        request, at_ms = self._capture.build(lambda now_ms: self.operation(make(now_ms), now_ms), ask)
        return signed_request(self.finish(request, at_ms), at_ms)

    def own(self, client_order_id: str) -> str:
        """Return an id that an order of ours can have.  Raises `Denied`."""
        self.WORDS.require_own(client_order_id)
        return client_order_id

    def not_offered(self, what: str) -> Never:
        """Refuse what the venue has no request for."""
        raise Denied("NOT_OFFERED", f"{self.EXCHANGE} {what}")
