"""Whatever ccxt would have signed instead of what the permit says, at every venue: no key is used for it.

ccxt's own fields of an honest order are taken, one is changed, and ccxt is made to send that; and the very text that it
wants signed is changed, letter by letter.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qsl

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallystick.schemas.orders import Intent
from tallystick.venues import Denied, SignedRequest
from tallystick.venues.capture import Asked, Operation
from tests.support import world
from tests.support.parse_back import HOST, INTENT, PLACES, Desk, desk

# The endpoint that places an order, as ccxt calls it.
PLACING = {
    "bybit": "private_post_v5_order_create",
    "bybit-rsa": "private_post_v5_order_create",
    "okx": "private_post_trade_order",
    "binance-usdm": "fapiprivate_post_order",
    "kraken": "private_post_addorder",
    "coinbase": "v3_private_post_brokerage_orders",
}
# What makes an order another one without touching its fields.
MORE = [
    ("isLeverage", 1),
    ("isLeverage", "1"),
    ("reduceOnly", True),
    ("reduceOnly", "true"),
    ("positionIdx", 1),
    ("positionSide", "SHORT"),
    ("closePosition", "true"),
    ("leverage", "5"),
    ("lever", "100"),
    ("margin_type", "CROSS"),
    ("mgnMode", "cross"),
    ("ccy", "USDT"),
    ("posSide", "short"),
    ("reduce_only", "true"),
    ("oflags", "viqc"),
    ("close", "x"),
    ("triggerPrice", "1"),
    ("stopPrice", "1"),
    ("takeProfit", "1"),
    ("validate", "false"),
    ("tag", "broker"),
    ("account", "other"),
    ("subAccountId", "2"),
    ("portfolio_id", "other"),
    ("retail_portfolio_id", "other"),
    ("recvWindow", "60000"),
    ("deadline", "2030-01-01T00:00:00.000Z"),
    ("quoteOrderQty", "1"),
    ("", ""),
]


def honest(place: Desk, ask: Callable[[Any], SignedRequest]) -> tuple[Operation, bytes, SignedRequest]:
    """The operation of what `ask` asks of the builder, the text that ccxt has signed for it, and the request."""
    capture, seen = place.builder._capture, []
    guard = place.exchange.secret.keys
    signing = guard._sign

    def sign(data: bytes, key: Callable[[bytes], bytes]) -> Any:
        seen.append((capture._operation, data))
        return signing(data, key)

    guard._sign = sign
    place.exchange.options["lastNonce"] = 0
    try:
        request = ask(place.builder)
    finally:
        guard._sign = signing
    ((operation, data),) = seen
    return operation, data, request


def order_fields(place: Desk) -> dict[str, Any]:
    """The fields that ccxt sends for the order."""
    body = honest(place, lambda builder: builder.order(place.record, place.order()))[2].body
    fields: dict[str, Any] = json.loads(body) if body.startswith("{") else dict(parse_qsl(body))
    return {n: v for n, v in fields.items() if n not in {"timestamp", "recvWindow", "signature", "nonce"}}


def changed(fields: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """The same fields but for one: another value or form of it, dropped, renamed, or one more."""

    def another(value: Any) -> st.SearchStrategy[Any]:
        if isinstance(value, dict):
            return changed(value)
        forms: list[Any] = [None, "", [value], {"a": value}, True, False]
        if isinstance(value, str):
            forms += [value + " ", " " + value, value + "0", "0" + value, value + "\u200b", value.swapcase() + "x"]
            forms += [f"{value}&side=sell", f'{value}","side":"sell', value + "%20", value[:-1], value[::-1] + "1"]
        if isinstance(value, str) and value.replace(".", "", 1).isdigit():
            number = Decimal(value)
            forms += [float(value), f"{number * 10:f}", f"{number:E}", f"+{value}", f"-{value}", f"{value}e0"]
            forms += [int(number), f"{number + 1:f}", value.replace(".", ","), "NaN", "Infinity"]
        return st.one_of(st.sampled_from(forms), st.text(max_size=12), st.integers(), st.floats(allow_nan=False))

    def replaced(name: str) -> st.SearchStrategy[dict[str, Any]]:
        return another(fields[name]).map(lambda value: {**fields, name: value})

    names = sorted(fields)
    dropped = st.sampled_from(names).map(lambda name: {n: v for n, v in fields.items() if n != name})
    renamed = st.sampled_from(names).map(lambda n: {(f"{m}2" if m == n else m): v for m, v in fields.items()})
    more = st.sampled_from([extra for extra in MORE if extra[0] not in fields]).map(lambda e: {**fields, e[0]: e[1]})
    return st.one_of(st.sampled_from(names).flatmap(replaced), dropped, renamed, more)


def _in_a_form(fields: dict[str, Any]) -> str:
    """A form knows text alone: 1 and "1" are the same there, and the order of fields says nothing."""
    return repr(sorted((name, str(value)) for name, value in fields.items()))


def _in_json(fields: dict[str, Any]) -> str:
    return json.dumps(fields, sort_keys=True)


@pytest.mark.parametrize("name", PLACES)
def test_one_field_that_says_anything_else_is_signed_by_nobody(name: str) -> None:
    place = desk(name)
    fields = order_fields(place)
    written = _in_a_form if name in {"kraken", "binance-usdm"} else _in_json
    place_order, create = getattr(place.exchange, PLACING[name]), place.exchange.create_order

    @settings(max_examples=150, deadline=None, database=None)
    @given(forged=changed(fields))
    def forge(forged: dict[str, Any]) -> None:
        if written(forged) == written(fields):
            return
        place.exchange.create_order = lambda *_: place_order(forged)
        used = place.keys.used
        with pytest.raises(Denied) as refusal:
            place.builder.order(place.record, place.order())
        assert refusal.value.code in {"FIELD_MISMATCH", "EXCHANGE_LIBRARY", "ENDPOINT"}
        if name == "coinbase":
            # Its signature knows nothing of the body: it was made, and stays here with the request.
            assert place.keys.used <= used + 1
        else:
            assert place.keys.used == used

    try:
        # So the forgeries fail by what they say, not by how they are sent.
        place.exchange.create_order = lambda *_: place_order(dict(fields))
        assert place.builder.order(place.record, place.order()).method == "POST"
        forge()
    finally:
        place.exchange.create_order = create


# What is signed under a permit, and what is signed always.
ASKED: dict[str, Callable[[Desk], Callable[[Any], SignedRequest]]] = {
    "order": lambda place: lambda builder: builder.order(place.record, place.order()),
    "cancel": lambda place: lambda builder: builder.cancel(place.record, place.own),
    "cancel_all": lambda place: lambda builder: builder.cancel_all(place.record),
    "query": lambda place: lambda builder: builder.query(place.record, place.own),
    "open_orders": lambda place: lambda builder: builder.open_orders(place.record),
}
OFFERED = [
    (name, asked)
    for name in PLACES
    for asked in ASKED
    if not (name in {"okx", "kraken"} and asked == "cancel_all")
    and not (name == "coinbase" and asked in {"cancel", "cancel_all", "query"})
]


@pytest.mark.parametrize(("name", "asked"), OFFERED)
def test_one_letter_more_less_or_other_in_what_is_signed_is_refused(name: str, asked: str) -> None:
    place = desk(name)
    operation, data, request = honest(place, ASKED[asked](place))
    text = data

    def rewrap(edited: bytes) -> Asked:
        return Asked(edited, {})

    if name == "kraken":
        # The digest's text is what is edited; the digest follows, as ccxt would have it.
        path = request.url.removeprefix(f"https://{HOST}").encode()
        text = place.builder._capture._hashed[data[len(path) :]]

        def rewrap(edited: bytes) -> Asked:
            digest = hashlib.sha256(edited).digest()
            return Asked(path + digest, {digest: edited})

    if name == "coinbase":
        # The token's nonce is drawn anew for each, and may be any; so may its letters.
        head, claims = (base64.urlsafe_b64decode(part + b"==") for part in data.split(b"."))
        text = claims

        def rewrap(edited: bytes) -> Asked:
            return Asked(b".".join(base64.urlsafe_b64encode(p).rstrip(b"=") for p in (head, edited)), {})

    operation.check(rewrap(text))

    @settings(max_examples=150, deadline=None, database=None)
    @given(
        at=st.integers(0, len(text) - 1),
        cut=st.integers(0, 3),
        put=st.one_of(
            st.binary(max_size=3), st.sampled_from([b"&side=sell", b',"side":"sell"', b"%2E", b"\\u0042", b" "])
        ),
    )
    def edit(at: int, cut: int, put: bytes) -> None:
        edited = text[:at] + put + text[at + cut :]
        if edited != text:
            with pytest.raises(Denied, match="FIELD_MISMATCH"):
                operation.check(rewrap(edited))

    edit()


@pytest.mark.parametrize("name", ["bybit", "okx", "binance-usdm"])
def test_a_field_that_stands_twice_is_refused(name: str) -> None:
    place = desk(name)
    operation, data, _ = honest(place, ASKED["order"](place))
    text = data.decode()
    for twice in (text.replace("{", '{"side":"sell",'), text.replace("}", ',"side":"Buy"}'), f"{text}&side=BUY"):
        if twice != text:
            with pytest.raises(Denied, match="FIELD_MISMATCH"):
                operation.check(Asked(twice.encode(), {}))


@pytest.mark.parametrize("name", PLACES)
def test_every_order_in_whole_steps_and_ticks_is_signed_as_it_is(name: str) -> None:
    place = desk(name)

    @settings(max_examples=60, deadline=None, database=None)
    @given(
        steps=st.integers(1, 10**9),
        ticks=st.integers(1, 10**8),
        side=st.sampled_from(["buy", "sell"]),
        tif=st.sampled_from(place.words.tifs),
    )
    def sign(steps: int, ticks: int, side: Any, tif: Any) -> None:
        qty, price = steps * place.record.step, ticks * place.record.tick
        intent = Intent(id=INTENT, ts=world.NOW, side=side, type="limit", qty=qty, price=price, tif=tif)
        order = place.words.venue_order(place.record, intent)
        assert place.words.amounts(place.record, order) == (qty, price)
        body = place.builder.order(place.record, order).body
        assert order.quantity in body
        assert order.price in body

    place.exchange.options["lastNonce"] = 0
    sign()


@pytest.mark.parametrize("name", [name for name in PLACES if name != "coinbase"])
def test_what_is_signed_without_a_permit_says_no_order(name: str) -> None:
    place = desk(name)
    fields = order_fields(place)
    amounts = {key for key, value in fields.items() if value in {place.order().quantity, place.order().price}}
    assert len(amounts) == 2
    for asked in ("cancel", "cancel_all", "query", "open_orders"):
        if (name, asked) in OFFERED:
            operation, data, _ = honest(place, ASKED[asked](place))
            text = data if name != "kraken" else next(iter(place.builder._capture._hashed.values()))
            for word in (*amounts, "side", "type", "ordType"):
                assert not re.search(rf'[?&"{{]{word}["=]', text.decode()), (asked, word)
            order = honest(place, ASKED["order"](place))
            with pytest.raises(Denied, match="FIELD_MISMATCH"):
                operation.check(Asked(order[1], place.builder._capture._hashed))


@pytest.mark.parametrize("name", PLACES)
def test_an_honest_order_of_ccxt_is_none_for_another_permit(name: str) -> None:
    place = desk(name)
    fields, permitted = order_fields(place), place.order()
    place_order, create = getattr(place.exchange, PLACING[name]), place.exchange.create_order
    others: list[dict[str, str]] = [
        {"side": place.order("sell").side},
        {"time_in_force": "IOC"},
        {"quantity": "0.00251"},
        {"price": "64321.6"},
        {"client_order_id": place.words.name(bytes(16))},
    ]
    place.exchange.create_order = lambda *_: place_order(dict(fields))
    used = place.keys.used
    try:
        for other in others:
            with pytest.raises(Denied, match="ENDPOINT" if name == "coinbase" else "FIELD_MISMATCH"):
                place.builder.order(place.record, msgspec.structs.replace(permitted, **other))
    finally:
        place.exchange.create_order = create
    assert place.keys.used == used + (len(others) if name == "coinbase" else 0)
