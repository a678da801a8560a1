"""The requests of every venue against ccxt itself: what ccxt would send, unless ccxt says anything else than the permit."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.utils import base64url_decode

from tallystick.schemas.errors import Unverified
from tallystick.venues import Denied, SignedRequest
from tallystick.venues.capture import Asked, Captured, Request
from tallystick.venues.kraken.request import DEADLINE_MS
from tests.support.parse_back import HOST, NOW_MS, P256, PLACES, Desk, desk

TIFS = ("GTC", "IOC", "FOK", "")
# What a venue has no request for, or no word.
NOT_OFFERED = {
    "okx": {"cancel_all"},
    "kraken": {"cancel_all", "FOK"},
    "coinbase": {"cancel", "cancel_all", "query", "buy "},
}


@pytest.fixture(params=list(PLACES))
def place(request: pytest.FixtureRequest) -> Desk:
    made = desk(request.param)
    made.exchange.options["lastNonce"] = 0
    made.keys.used = 0
    return made


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(Denied) as refusal:
        call()
    return refusal.value.code


def sent(request: SignedRequest) -> Request:
    """As ccxt would send it: with the broker's name, and without what we add."""
    headers = {name: value for name, value in request.headers if name != "expTime"}
    if "X-BAPI-SIGN" in headers and request.method == "POST":
        headers["Referer"] = "CCXT"
    return Request(request.method, request.url, headers, request.body)


def same(place: Desk, ours: SignedRequest, theirs: Request) -> None:
    made = sent(ours)
    if place.name == "coinbase":
        # The nonce in the header is drawn anew, and with it the signature.
        pem = P256.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        unchecked: Any = {"verify_exp": False, "verify_nbf": False, "verify_iat": False}
        claims = [
            jwt.decode(
                each.headers.pop("Authorization").removeprefix("Bearer "),
                pem,
                ["ES256"],
                unchecked,
                audience="retail_rest_api_proxy",
            )
            for each in (made, theirs)
        ]
        assert claims[0] == claims[1]
    assert made == theirs
    assert ours.signed_at == NOW_MS * 1_000_000


@pytest.mark.parametrize("side", ["buy", "sell"])
@pytest.mark.parametrize("tif", TIFS)
def test_an_order_is_byte_for_byte_what_ccxt_would_send(place: Desk, side: str, tif: str) -> None:
    if {tif, f"{side} {tif}"} & NOT_OFFERED.get(place.name, set()):
        assert refused(lambda: place.builder.order(place.record, place.order(side, tif))) in {
            "NOT_OFFERED",
            "FIELD_MISMATCH",
        }
        assert place.keys.used == 0
        return
    ours = place.builder.order(place.record, place.order(side, tif))
    params = place.builder.params(place.order(side, tif), NOW_MS)
    kind, price = ("limit", 64321.5) if tif else ("market", None)
    theirs = place.as_sent_by_ccxt(lambda x: x.create_order(place.record.symbol, kind, side, 0.0025, price, params))
    same(place, ours, theirs)
    assert place.keys.used == 1


def test_cancels_and_questions_are_byte_for_byte_what_ccxt_would_send(place: Desk) -> None:
    symbol, own = place.record.symbol, place.own
    calls: dict[str, tuple[Callable[[], SignedRequest], Callable[[Any], object]]] = {
        "cancel": (
            lambda: place.builder.cancel(place.record, own),
            lambda x: x.cancel_order(None, symbol, {"orderLinkId" if x.id == "bybit" else "clientOrderId": own}),
        ),
        "cancel_all": (lambda: place.builder.cancel_all(place.record), lambda x: x.cancel_all_orders(symbol)),
        "query": (lambda: place.builder.query(place.record, own), lambda x: _query(x, symbol, own)),
        "open_orders": (lambda: place.builder.open_orders(place.record), lambda x: x.fetch_open_orders(symbol)),
    }
    for name, (ours, theirs) in calls.items():
        place.exchange.options["lastNonce"] = 0
        if name in NOT_OFFERED.get(place.name, set()):
            assert refused(ours) == "NOT_OFFERED", name
        else:
            same(place, ours(), place.as_sent_by_ccxt(theirs))


def _query(exchange: Any, symbol: str, own: str) -> object:
    if exchange.id == "bybit":
        return exchange.fetch_open_orders(symbol, None, None, {"orderLinkId": own})
    if exchange.id == "kraken":
        return exchange.fetch_closed_orders(symbol, None, None, {"clientOrderId": own})
    return exchange.fetch_order(None, symbol, {"clientOrderId": own})


def _in_clear(token: re.Match[str]) -> str:
    return " ".join(base64url_decode(part).decode() for part in token.groups())


def test_ccxt_is_asked_under_our_own_name_and_no_broker_leaves_with_an_order(place: Desk) -> None:
    request = place.builder.order(place.record, place.order())
    # A token's header and claims are looked at in clear; its signature, another one each time, may spell anything.
    said = re.sub(r"Bearer ([\w-]+)\.([\w-]+)\.[\w-]+", _in_clear, f"{request.url} {request.body} {request.headers}")
    assert place.own in said
    assert not re.search("ccxt|6b9ad766b55dBCDE|x-[A-Za-z0-9]{8}", said, re.IGNORECASE)


def test_an_order_of_a_type_or_in_a_form_that_permits_do_not_know_is_refused_before_ccxt_sees_it(
    place: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place.exchange, "create_order", lambda *_: pytest.fail("ccxt was asked"))
    limit, market = place.order(), place.order("sell", "")
    changes: list[tuple[Any, dict[str, str], str]] = [
        *((limit, {"type": kind}, "ORDER_TYPE") for kind in ("STOP", "Stop", "post_only", "trigger", "", "LIMIT ")),
        (market, {"price": "1"}, "ORDER_TYPE"),
        (market, {"time_in_force": "GTC"}, "ORDER_TYPE"),
        *((limit, {"time_in_force": tif}, "FIELD_MISMATCH") for tif in ("", "GTX", "PO", "PostOnly", "GTD", "gtc")),
        *((limit, {"quantity": text}, "FIELD_MISMATCH") for text in ("", "1e-2", "0.00250", "+1", ".1", "0.000001")),
        *((limit, {"price": text}, "FIELD_MISMATCH") for text in ("64321.55", "6.4e4", "-1", "1&side=sell", " 1")),
        (limit, {"symbol": "ETHUSDT"}, "FIELD_MISMATCH"),
        (limit, {"side": "Long"}, "FIELD_MISMATCH"),
        *((limit, {"client_order_id": name}, "CLIENT_ORDER_ID") for name in ("", "other", f"{place.own}0", "x-1")),
    ]
    for order, change, expected in changes:
        if place.name.startswith("coinbase") and order is market:
            continue
        changed = order.__class__(**{**{f: getattr(order, f) for f in order.__struct_fields__}, **change})
        assert refused(lambda changed=changed: place.builder.order(place.record, changed)) == expected, change  # type: ignore[misc]
    assert place.keys.used == 0


def test_another_partys_order_is_neither_cancelled_nor_asked_for(place: Desk) -> None:
    for name in ("", "web_1", place.own.upper() + "-", f"{place.own}&symbol=x", f"{place.own}0"):
        for ask in (place.builder.cancel, place.builder.query):
            code = refused(lambda ask=ask, name=name: ask(place.record, name))  # type: ignore[misc]
            assert code == ("NOT_OFFERED" if place.name == "coinbase" else "ORDER_ID_NOT_OURS")
    assert place.keys.used == 0


HOSTILE: dict[str, Callable[[Any], dict[str, Any]]] = {
    "host": lambda r: {"url": r["url"].replace(HOST, "attacker.example")},
    "plain http": lambda r: {"url": r["url"].replace("https://", "http://")},
    "user in the url": lambda r: {"url": r["url"].replace("https://", "https://x@")},
    "path": lambda r: {"url": f"{r['url']}/"},
    "query": lambda r: {"url": f"{r['url']}?a=1"},
    "method": lambda r: {"method": "PUT"},
    "body": lambda r: {"body": r["body"].replace("0.0025", "0.9025")},
    "space in the body": lambda r: {"body": r["body"] + " "},
    "no body": lambda r: {"body": None},
    "header more": lambda r: {"headers": r["headers"] | {"X-Forwarded-Host": "attacker.example"}},
    "header less": lambda r: {"headers": dict(list(r["headers"].items())[1:])},
    "another account": lambda r: {
        "headers": {name: "other" if "KEY" in name.upper() else v for name, v in r["headers"].items()}
        | {"Authorization": "Bearer x"}
    },
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_what_a_hostile_ccxt_changes_after_the_signature_leaves_with_nobody(
    place: Desk, monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], dict[str, Any]]
) -> None:
    honest = place.exchange.sign

    def sign(*args: Any) -> Any:
        request = honest(*args)
        return request | change(request)

    monkeypatch.setattr(place.exchange, "sign", sign)
    assert refused(lambda: place.builder.order(place.record, place.order())) == "ENDPOINT"
    assert place.builder._capture.idle


ELSEWHERE: dict[str, list[Callable[[Any], object]]] = {
    "bybit": [
        lambda x: x.private_post_v5_asset_withdraw_create({"coin": "BTC", "address": "attacker", "amount": "1"}),
        lambda x: x.private_post_v5_position_set_leverage(
            {"category": "linear", "symbol": "BTCUSDT", "buyLeverage": "9"}
        ),
        lambda x: x.private_get_v5_account_wallet_balance({"accountType": "UNIFIED"}),
    ],
    "okx": [
        lambda x: x.private_post_asset_withdrawal({"ccy": "BTC", "amt": "1", "dest": "4", "toAddr": "attacker"}),
        lambda x: x.private_post_account_set_leverage({"instId": "BTC-USDT", "lever": "9", "mgnMode": "cross"}),
        lambda x: x.private_get_account_balance(),
    ],
    "binance-usdm": [
        lambda x: x.fapiprivate_post_leverage({"symbol": "BTCUSDT", "leverage": "100"}),
        lambda x: x.fapiprivate_post_margintype({"symbol": "BTCUSDT", "marginType": "ISOLATED"}),
        lambda x: x.fapiprivate_get_income(),
    ],
    "kraken": [
        lambda x: x.private_post_withdraw({"asset": "XBT", "key": "attacker", "amount": "1"}),
        lambda x: x.private_post_cancelall(),
        lambda x: x.private_post_balance(),
    ],
    "coinbase": [
        lambda x: x.v3_private_post_brokerage_convert_quote({"from_account": "a", "to_account": "b"}),
        lambda x: x.v3_private_get_brokerage_accounts(),
        lambda x: x.v2_private_post_accounts_account_id_transactions({"account_id": "a", "to": "attacker"}),
    ],
}


def test_a_withdrawal_a_balance_and_more_leverage_are_not_signed(place: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    for call in ELSEWHERE[place.name.removesuffix("-rsa")]:
        monkeypatch.setattr(place.exchange, "create_order", lambda *_, call=call: call(place.exchange))
        assert refused(lambda: place.builder.order(place.record, place.order())) == "FIELD_MISMATCH"
    assert place.keys.used == 0


def test_another_signature_a_second_one_or_none_leaves_with_nobody(
    place: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = place.exchange
    honest = x.create_order

    def twice(*args: Any) -> object:
        with pytest.raises(Captured):
            honest(*args)
        return honest(*args)

    for call in (twice, lambda *_: x.fetch(f"https://{HOST}/", "POST", {}, ""), lambda *_: x.load_markets(True)):
        monkeypatch.setattr(x, "create_order", call)
        assert refused(lambda: place.builder.order(place.record, place.order())) == "ENDPOINT"
    assert place.keys.used == 1


def test_a_symbol_that_could_carry_another_field_is_refused(place: Desk) -> None:
    for bad in ("BTC&a=b", 'BTC","side":"sell', "btcusdt", "BTC/USDT", ""):
        record = place.record.__class__(
            **{**{f: getattr(place.record, f) for f in place.record.__struct_fields__}, "venue_symbol": bad}
        )
        with pytest.raises(Unverified, match="INSTRUMENT"):
            place.build((record,), place.keys)


def test_our_ids_name_each_intent_and_no_two_the_same(place: Desk) -> None:
    ids = [bytes(16), bytes([255] * 16), bytes(15) + b"\x01", b"\x01" + bytes(15)]
    names = {place.words.name(each) for each in ids}
    assert len(names) == len(ids)
    for name in names:
        place.words.require_own(name)
        # OKX takes the shortest: 32 letters and digits.
        assert len(name) <= (32 if place.name in {"okx", "kraken"} else 36)


def test_requests_are_signed_for_as_short_as_the_venue_allows() -> None:
    made = {name: desk(name).builder.order(desk(name).record, desk(name).order()) for name in PLACES}
    assert dict(made["bybit"].headers)["X-BAPI-RECV-WINDOW"] == "1000"
    assert "&recvWindow=1000&" in made["binance-usdm"].body
    assert dict(made["okx"].headers)["expTime"] == str(NOW_MS + 1_000)
    deadline = re.search(r"deadline=2024-11-22T15%3A23%3A(\d\d)\.000Z", made["kraken"].body)
    assert deadline is not None
    assert int(deadline[1]) * 1_000 == NOW_MS % 60_000 + DEADLINE_MS
    token = dict(made["coinbase"].headers)["Authorization"].removeprefix("Bearer ").split(".")[1]
    assert f'"exp":{NOW_MS // 1_000 + 120}' in base64.urlsafe_b64decode(token + "==").decode()


@pytest.mark.parametrize(
    "change",
    [
        {"alg": "none"},
        {"alg": "HS256"},
        {"kid": "organizations/1/apiKeys/3"},
        {"typ": "jwt"},
        {"crit": ["b64"]},
        {"jku": "https://attacker.example"},
        {"nonce": ""},
        {"nonce": 1},
        {"nonce": "f" * 33},
        {"nonce": None},
    ],
    ids=str,
)
def test_a_token_of_another_kind_or_key_is_not_signed(change: dict[str, Any]) -> None:
    coinbase = desk("coinbase")
    opts = {"kid": coinbase.place.login.api_key, "alg": "ES256", "typ": "JWT", "nonce": "ab"}
    operation = coinbase.builder.operation(coinbase.builder.placing(coinbase.order(), NOW_MS), NOW_MS)
    token = dict(coinbase.builder.order(coinbase.record, coinbase.order()).headers)["Authorization"]
    claims = token.removeprefix("Bearer ").split(".")[1]

    def asked(header: dict[str, Any]) -> Asked:
        text = json.dumps(header, separators=(",", ":")).encode()
        return Asked(base64.urlsafe_b64encode(text).rstrip(b"=") + b"." + claims.encode(), {})

    operation.check(asked(opts))
    with pytest.raises(Denied, match="FIELD_MISMATCH"):
        operation.check(asked(opts | change))
