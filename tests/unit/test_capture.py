"""Capture over three ways to sign: a text of time, method, path and body (OKX), a path with a digest (Kraken), a JWT (Coinbase).

The exchange library is ccxt itself; where it is in other hands, its functions are replaced.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import ccxt
import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from tallystick.venues import Denied
from tallystick.venues.capture import (
    Asked,
    Capture,
    Captured,
    Operation,
    Request,
    Signed,
    parse_form,
    parse_json,
    parse_jwt,
    require_same,
)
from tallystick.venues.signing.schemes import require_signable
from tests.support import world
from tests.support.parse_back import NOW_MS, P256, SECRET, Keys

ORDER = {"instId": "BTC-USDT", "side": "buy", "ordType": "limit", "sz": "2", "px": "3", "clOrdId": "ts01"}
KRAKEN = {"pair": "XBTUSD", "type": "buy", "ordertype": "limit", "volume": "2", "price": "3", "cl_ord_id": "ts01"}
COINBASE = {"client_order_id": "ts01", "product_id": "BTC-USD", "side": "BUY"}


class Okx:
    """https://www.okx.com/docs-v5/en/#overview-rest-authentication-signature: time, method, path with query, body."""

    def __init__(self, now_ms: int) -> None:
        self._time = ccxt.Exchange.iso8601(now_ms)
        self._head = f"{self._time}POST/api/v5/trade/order"

    def check(self, asked: Asked) -> None:
        head, body = asked.text()[: len(self._head)], asked.text()[len(self._head) :]
        require_same({"head": head}, {"head": self._head})
        require_same(parse_json(body), ORDER)

    def request(self, signed: Signed) -> Request:
        headers = {
            "OK-ACCESS-KEY": "key",
            "OK-ACCESS-PASSPHRASE": "passphrase",
            "OK-ACCESS-TIMESTAMP": self._time,
            "OK-ACCESS-SIGN": base64.b64encode(signed.signature).decode(),
            "Content-Type": "application/json",
        }
        return Request("POST", "https://www.okx.com/api/v5/trade/order", headers, signed.text()[len(self._head) :])


class Kraken:
    """https://docs.kraken.com/api/docs/guides/spot-rest-auth: path, and SHA-256 of the nonce and the form."""

    PATH = "/0/private/AddOrder"

    def __init__(self, now_ms: int) -> None:
        self._now_ms = now_ms

    def _form(self, asked: Asked) -> str:
        text = asked.preimage(asked.data[len(self.PATH) :])
        return text[len(str(self._now_ms)) :]

    def check(self, asked: Asked) -> None:
        require_same({"path": asked.data[: len(self.PATH)]}, {"path": self.PATH.encode()})
        form = self._form(asked)
        fields = parse_form(form)
        nonce = fields.get("nonce", "")
        # Each is above the one before, also within a millisecond.
        if not nonce.isdecimal() or int(nonce) - self._now_ms not in range(1_000):
            raise Denied("FIELD_MISMATCH", f"the nonce {nonce[:32]!r} is not of now")
        require_same(fields, KRAKEN | {"nonce": nonce})
        require_same({"hashed": asked.preimage(asked.data[len(self.PATH) :])}, {"hashed": nonce + form})

    def request(self, signed: Signed) -> Request:
        headers = {
            "API-Key": "key",
            "API-Sign": base64.b64encode(signed.signature).decode(),
            "Content-Type": "application/x-www-form-urlencoded",
        }
        return Request("POST", f"https://api.kraken.com{self.PATH}", headers, self._form(signed))


class Coinbase:
    """https://docs.cdp.coinbase.com/api-reference/v2/authentication: method, host and path; not the body."""

    PATH = "api.coinbase.com/api/v3/brokerage/orders"

    def __init__(self, now_ms: int) -> None:
        self._seconds = now_ms // 1_000

    def check(self, asked: Asked) -> None:
        header, claims = parse_jwt(asked)
        require_same(header | {"nonce": ""}, {"alg": "ES256", "typ": "JWT", "kid": "organizations/1", "nonce": ""})
        expected = {
            "aud": ["retail_rest_api_proxy"],
            "iss": "coinbase-cloud",
            "nbf": self._seconds,
            "iat": self._seconds,
            "exp": self._seconds + 120,
            "sub": "organizations/1",
            "uri": f"POST {self.PATH}",
        }
        require_same(claims, expected)

    def request(self, signed: Signed) -> Request:
        signature = base64.urlsafe_b64encode(signed.signature).rstrip(b"=").decode()
        headers = {"Authorization": f"Bearer {signed.text()}.{signature}", "Content-Type": "application/json"}
        return Request("POST", f"https://{self.PATH}", headers, json.dumps(COINBASE, separators=(",", ":")))


class Case:
    """One venue: its operation, and the call of ccxt that makes it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.keys = Keys()
        operations: dict[str, Callable[[int], Operation]] = {"okx": Okx, "kraken": Kraken, "coinbase": Coinbase}
        self.make = operations[name]
        self.fields = {"okx": ORDER, "kraken": KRAKEN, "coinbase": COINBASE}[name]
        self.config = {"apiKey": "organizations/1" if name == "coinbase" else "key", "password": "passphrase"}
        scheme = require_signable(name, "p256" if name == "coinbase" else "hmac")
        jwt_only = name == "coinbase"
        self.capture = Capture(name, scheme, self.keys, self.config, lambda: world.NOW, jwt=jwt_only)

    def call(self, exchange: Any, **changes: str) -> object:
        fields = dict(self.fields) | changes
        if self.name == "okx":
            return exchange.private_post_trade_order(fields)
        if self.name == "kraken":
            return exchange.private_post_addorder(fields)
        return exchange.v3_private_post_brokerage_orders(fields)

    def build(self, call: Callable[[Any], object] | None = None) -> Request:
        return self.capture.build(self.make, call or self.call)[0]

    def refused(self, call: Callable[[Any], object]) -> str:
        with pytest.raises(Denied) as refusal:
            self.build(call)
        assert self.capture.idle
        return refusal.value.code


@pytest.fixture(params=["okx", "kraken", "coinbase"])
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def _given(data: bytes, _: Operation) -> bytes:
    return data


def plain(case: Case) -> Request:
    """The request of ccxt with the secret in software."""

    class Software(getattr(ccxt, case.name)):  # type: ignore[misc]
        def fetch(self, url: str, method: str = "GET", headers: Any = None, body: Any = None) -> Any:
            raise Captured(url, method, headers, body)

        def milliseconds(self) -> int:
            return NOW_MS

        def seconds(self) -> int:
            return NOW_MS // 1_000

    pem = P256.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()).decode()
    exchange = Software({**case.config, "secret": pem if case.name == "coinbase" else SECRET, "enableRateLimit": False})
    with pytest.raises(Captured) as captured:
        case.call(exchange)
    return captured.value.request


def test_an_honest_request_is_the_one_of_ccxt_signed_once(case: Case) -> None:
    made, theirs = case.build(), plain(case)
    if case.name != "coinbase":
        assert made == theirs
    else:
        # The nonce in its header is drawn anew.
        assert (made.method, made.url, made.body) == (theirs.method, theirs.url, theirs.body)
        token = made.headers["Authorization"].removeprefix("Bearer ")
        pem = P256.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        unchecked: Any = {"verify_exp": False, "verify_nbf": False, "verify_iat": False}
        claims = jwt.decode(token, pem, ["ES256"], unchecked, audience="retail_rest_api_proxy")
        assert claims["uri"] == f"POST {Coinbase.PATH}"
    assert case.keys.used == 1
    assert case.capture.idle


def test_a_field_that_the_library_changes_adds_or_drops_leaves_with_nobody(case: Case) -> None:
    name = next(iter(case.fields))
    for changes in ({name: "another"}, {"more": "1"}):
        # A JWT does not cover the body: it is signed, and the request goes no further.
        expected = "ENDPOINT" if case.name == "coinbase" else "FIELD_MISMATCH"
        assert case.refused(partial(case.call, **changes)) == expected
    assert case.keys.used == (2 if case.name == "coinbase" else 0)


@pytest.mark.parametrize(
    "change",
    [
        lambda r: {"url": r["url"].replace("https://", "https://attacker.example/")},
        lambda r: {"url": r["url"] + "/"},
        lambda r: {"method": "DELETE"},
        lambda r: {"body": r["body"].replace("ts01", "ts02")},
        lambda r: {"body": r["body"] + " "},
        lambda r: {"headers": r["headers"] | {"X-Forwarded-Host": "attacker.example"}},
        lambda r: {"headers": dict(list(r["headers"].items())[1:])},
    ],
)
def test_what_is_changed_after_it_was_signed_leaves_with_nobody(
    case: Case, monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any]
) -> None:
    honest = case.capture.exchange.sign

    def changed(*args: Any) -> Any:
        request = honest(*args)
        return request | change(request)

    monkeypatch.setattr(case.capture.exchange, "sign", changed)
    assert case.refused(case.call) == "ENDPOINT"


def test_two_requests_or_two_signatures_are_refused(case: Case) -> None:
    def twice(exchange: Any) -> object:
        with pytest.raises(Captured):
            case.call(exchange)
        return case.call(exchange)

    assert case.refused(twice) == "ENDPOINT"
    assert case.keys.used == 1

    def again(exchange: Any) -> object:
        with pytest.raises(Captured) as first:
            case.call(exchange)
        request = first.value.request
        return exchange.fetch(request.url, request.method, request.headers, request.body)

    assert case.refused(again) == "ENDPOINT"


def test_no_request_another_request_and_an_unsigned_one_are_refused(case: Case) -> None:
    assert case.refused(lambda _: None) == "ENDPOINT"
    assert case.refused(lambda x: x.fetch("https://www.okx.com/api/v5/trade/order", "POST", {}, "")) == "ENDPOINT"
    withdrawals: dict[str, Callable[[Any], object]] = {
        "okx": lambda x: x.private_post_asset_withdrawal({"ccy": "BTC", "amt": "1", "dest": "4", "toAddr": "attacker"}),
        "kraken": lambda x: x.private_post_withdraw({"asset": "XBT", "key": "attacker", "amount": "1"}),
        "coinbase": lambda x: x.v3_private_post_brokerage_convert_quote({"from_account": "a", "to_account": "b"}),
    }
    assert case.refused(withdrawals[case.name]) == "FIELD_MISMATCH"
    assert case.keys.used == 0


def test_every_other_way_to_sign_and_every_other_key_is_refused(case: Case) -> None:
    x = case.capture.exchange
    ways: list[Callable[[Any], object]] = [
        lambda x: x.rsa("data", x.secret),
        lambda x: x.eddsa(b"data", x.secret),
        lambda x: x.hmac(b"data", b"a key of its own", hashlib.sha256),
        lambda x: x.totp(x.secret),
        lambda x: x.ecdsa("ab" * 32, x.encode(x.secret) if case.name == "coinbase" else x.secret, "p256", None),
        lambda x: x.jwt({}, b"a key of its own"),
    ]
    for way in ways:
        assert case.refused(way) == "SIGNATURE_KIND"
    assert case.refused(lambda x: x.hmac(b"data", x.secret.upper(), hashlib.sha256)) == "SECRET_USED"
    assert case.refused(lambda x: x.load_markets(True)) == "ENDPOINT"
    assert case.keys.used == 0
    with pytest.raises(Denied, match="ENDPOINT"):
        case.call(x)
    assert case.keys.used == 0


def test_a_digest_of_something_unknown_is_not_signed() -> None:
    kraken = Case("kraken")
    digest = hashlib.sha256(b"another order").digest()
    data = Kraken.PATH.encode() + digest
    sign = lambda x: x.hmac(data, x.base64_to_binary(x.secret), hashlib.sha512, "base64")  # noqa: E731
    assert kraken.refused(sign) == "FIELD_MISMATCH"
    coinbase = Case("coinbase")
    with pytest.raises(Denied, match="digest of something unknown"):
        coinbase.capture.exchange.secret.keys.ecdsa(digest, b"this order")
    assert (kraken.keys.used, coinbase.keys.used) == (0, 0)


def test_a_request_of_a_known_kind_is_filled_under_the_same_check() -> None:
    okx = Case("okx")
    built = okx.build()
    okx.capture.exchange = None
    body = json.dumps(ORDER, separators=(",", ":"))
    head = f"{ccxt.Exchange.iso8601(NOW_MS)}POST/api/v5/trade/order"
    filled, at = okx.capture.fill(okx.make, lambda _: f"{head}{body}".encode())
    assert (filled, at) == (built, NOW_MS)
    for forged in (body.replace("ts01", "ts02"), body + body, body[:-1] + ',"px":"3"}', body.replace('"2"', "2.0")):
        data = f"{head}{forged}".encode()
        with pytest.raises(Denied, match="FIELD_MISMATCH"):
            okx.capture.fill(okx.make, partial(_given, data))
    assert okx.keys.used == 2


@pytest.mark.parametrize(
    "text", ["", "[]", "1", '{"a":1.5}', '{"a":NaN}', '{"a":1,"a":1}', '{"a":{"b":1,"b":2}}', "{" * 5_000, '{"a":1e5}']
)
def test_json_that_two_readers_could_read_differently_is_refused(text: str) -> None:
    with pytest.raises(Denied, match="FIELD_MISMATCH"):
        parse_json(text)


def test_a_field_of_another_type_is_another_field() -> None:
    for said in (1, True, None, "nothing"):
        with pytest.raises(Denied, match="FIELD_MISMATCH"):
            require_same({"a": said}, {"a": "1"})
    with pytest.raises(Denied, match="b: the request says 'nothing'"):
        require_same({"a": "1"}, {"a": "1", "b": "nothing"})
    pairs: list[tuple[object, object]] = [
        (True, 1),
        ([True], [1]),
        ({"b": True}, {"b": 1}),
        ([1], [1, 1]),
        ({"b": 1, "c": 1}, {"b": 1}),
    ]
    for told, wanted in pairs:
        require_same({"a": told}, {"a": told})
        with pytest.raises(Denied, match="FIELD_MISMATCH: a: "):
            require_same({"a": told}, {"a": wanted})


@pytest.mark.parametrize("data", [b"e30", b"e30.e30.e30", b"e30.!!!", b"e30.MQ", b"\xff.e30", b"e30.e31"])
def test_what_is_no_token_is_not_read_as_one(data: bytes) -> None:
    with pytest.raises(Denied, match="FIELD_MISMATCH"):
        parse_jwt(Asked(data, {}))
