"""Where ccxt signs outside of `sign`: wallets' messages, logins, and the authentication of its websockets."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import ccxt.async_support
import ccxt.pro
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature

from tallystick.runtime.keys import hsm
from tallystick.runtime.keys.keystore import Secret
from tallystick.venues import Denied
from tallystick.venues.capture import Asked, Capture, Request, Signed
from tallystick.venues.signing.exchange import signed_exchange
from tallystick.venues.signing.handle import MARK
from tallystick.venues.signing.schemes import SCHEMES, Scheme, all_schemes
from tallystick.venues.signing.token_keys import TokenKeys, take_in
from tests.support.exchanges import P256, WALLET, Desk, Outcome, Result, compare, frozen, outcome, secret_of

__all__ = ["frozen"]
PIN = Secret("methods-test-pin-29c1")
HASH = f"0x{'ab' * 32}"
USD_SEND = {
    "HyperliquidTransaction:UsdSend": [
        {"name": name, "type": kind}
        for name, kind in (
            ("hyperliquidChain", "string"),
            ("destination", "string"),
            ("amount", "string"),
            ("time", "uint64"),
        )
    ]
}
ORDER = {"a": 0, "b": True, "p": "1", "s": "1", "r": False, "t": {"limit": {"tif": "Gtc"}}}


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[hsm.Token]:
    directory = tmp_path_factory.mktemp("hsm") / "venue"
    hsm.create_token(directory, "venue", Secret("methods-test-so-pin"), PIN)
    with hsm.Token.open(directory, "venue", PIN, writable=True) as opened:
        yield opened


@pytest.fixture(scope="module")
def desk(token: hsm.Token) -> Desk:
    return Desk(token)


def scheme_of(exchange_id: str, kind: str) -> Scheme:
    return next(scheme for scheme in SCHEMES[exchange_id] if scheme.kind == kind)


METHODS: list[tuple[str, str, Callable[[Any], Any]]] = [
    ("hyperliquid", "secp256k1", lambda x: x.sign_l1_action({"type": "order", "orders": [ORDER], "grouping": "na"}, 1_760_000_000_000)),
    ("hyperliquid", "secp256k1", lambda x: x.sign_user_signed_action(USD_SEND, {"hyperliquidChain": "Mainnet", "destination": f"0x{'1' * 40}", "amount": "1", "time": 1})),
    ("derive", "secp256k1", lambda x: x.sign_message("1760000000000", x.privateKey)),
    ("nado", "secp256k1", lambda x: x.sign_hash(HASH, x.privateKey)),
    ("polymarket", "secp256k1", lambda x: x.sign_message(b"hello", x.privateKey)),
    ("polymarket", "secp256k1", lambda x: x.eth_get_address_from_private_key(x.privateKey)),
    ("grvt", "secp256k1", lambda x: x.create_signed_request({"address": f"0x{'11' * 20}", "signature": {"nonce": 1, "expiration": "1", "r": "", "s": "", "v": 0}}, "EIP712_WALLETLOGIN_TYPE")),
    ("hibachi", "secp256k1", lambda x: x.sign_message(b"abc", x.privateKey)),
    ("hibachi", "hmac", lambda x: x.sign_message(b"abc", x.privateKey)),
    ("pacifica", "ed25519", lambda x: x.sign_message({"timestamp": 1, "expiry_window": 5000, "type": "create_order"}, {"a": 1}, x.privateKey)),
    ("coinbaseinternational", "p256", lambda x: x.create_auth_token(1_760_000_000, "GET", "https://api.international.coinbase.com/x", False)),
    ("coinbaseinternational", "ed25519", lambda x: x.create_auth_token(1_760_000_000, "GET", "https://api.international.coinbase.com/x", True)),
]  # fmt: skip


@pytest.mark.parametrize(("exchange_id", "kind", "call"), METHODS)
def test_what_methods_sign_is_what_ccxt_signs(
    desk: Desk, frozen: None, exchange_id: str, kind: str, call: Callable[[Any], Any]
) -> None:
    pair, result = desk.pair(exchange_id, scheme_of(exchange_id, kind)), Result(different=[])
    software = outcome(lambda: call(pair.software))
    assert not software.error
    compare(pair, result, exchange_id, software, lambda: outcome(lambda: call(pair.token)))
    assert result.different == []
    assert result.signed or "address" in software.request or software.request.startswith('"0x')


PLAIN: list[tuple[str, Callable[[Any], Any]]] = [
    # The key of a trading session, which ccxt makes of a signature and uses in plaintext.
    ("polymarket", lambda x: x.eth_get_address_from_private_key(HASH)),
    ("polymarket", lambda x: x.sign_message(b"hello", HASH)),
    ("hyperliquid", lambda x: x.sign_hash(HASH, HASH)),
    ("hyperliquid", lambda x: x.ecdsa("ab" * 32, x.privateKey[:-1], "secp256k1", None)),
    ("pacifica", lambda x: x.sign_message({"timestamp": 1, "expiry_window": 5000, "type": "a"}, {}, "1" * 44)),
    ("coinbase", lambda x: x.jwt({}, "a key of its own", "sha256", False, {"alg": "ES256"})),
    ("binance", lambda x: x.rsa("data", "a key of its own")),
]


@pytest.mark.parametrize(("exchange_id", "call"), PLAIN)
def test_no_key_pair_but_the_tokens_signs(
    desk: Desk, frozen: None, exchange_id: str, call: Callable[[Any], Any]
) -> None:
    pair = desk.pair(exchange_id, SCHEMES[exchange_id][0])
    assert outcome(lambda: call(pair.token)).denied in {"SIGNATURE_KIND", "SECRET_USED"}


def test_a_captured_request_is_signed_in_the_token_after_its_check(token: hsm.Token) -> None:
    """As custody's builders do it (`venues.capture`), with keys of two kinds; the checks themselves: `test_capture.py`."""
    prehash: list[str] = []

    class Anything:
        def check(self, asked: Asked) -> None:
            prehash.append(asked.text())
            if "withdraw" in asked.text():
                raise Denied("FIELD_MISMATCH", "no order")

        def request(self, signed: Signed) -> Request:
            return made(signed)

    scheme, secret = SCHEMES["okx"][0], secret_of(SCHEMES["okx"][0])
    take_in(token, b"captured", "captured", Secret(secret), scheme)
    config = {"apiKey": "key", "password": "passphrase"}
    capture = Capture("okx", scheme, TokenKeys(token, b"captured", scheme), config, lambda: 1_760_000_000_123_000_000)

    def made(signed: Signed) -> Request:
        digest = hmac.digest(secret.encode(), prehash[-1].encode(), "sha256")
        assert signed.signature == digest
        at = prehash[-1].partition("POST")[0]
        headers = {"OK-ACCESS-KEY": "key", "OK-ACCESS-PASSPHRASE": "passphrase", "OK-ACCESS-TIMESTAMP": at}
        headers |= {"OK-ACCESS-SIGN": base64.b64encode(digest).decode(), "Content-Type": "application/json"}
        body = '{"instId":"BTC-USDT","ordId":"1"}'
        return Request("POST", "https://www.okx.com/api/v5/trade/cancel-order", headers, body)

    fields = {"instId": "BTC-USDT", "ordId": "1"}
    request, at_ms = capture.build(lambda _: Anything(), lambda x: x.private_post_trade_cancel_order(fields))
    assert (request.method, at_ms) == ("POST", 1_760_000_000_123)
    uses = token.uses.total()
    with pytest.raises(Denied, match="no order"):
        capture.build(lambda _: Anything(), lambda x: x.private_post_asset_withdrawal(fields))
    assert token.uses.total() == uses
    p256 = scheme_of("coinbase", "p256")
    take_in(token, b"captured-jwt", "captured", Secret(secret_of(p256)), p256)
    keys = TokenKeys(token, b"captured-jwt", p256)
    coinbase = Capture(
        "coinbase", p256, keys, {"apiKey": "organizations/1"}, lambda: 1_760_000_000_123_000_000, jwt=True
    )
    kept: list[Signed] = []

    class Kept(Anything):
        def request(self, signed: Signed) -> Request:
            kept.append(signed)
            return Request("", "", {})

    # Nothing that was made equals nothing: it is refused, having been signed.
    with pytest.raises(Denied, match="ENDPOINT"):
        coinbase.build(lambda _: Kept(), lambda x: x.v3_private_post_brokerage_orders({}))
    (only,) = kept
    r, s = (int.from_bytes(part, "big") for part in (only.signature[:32], only.signature[32:]))
    P256.public_key().verify(encode_dss_signature(r, s), only.data, ec.ECDSA(hashes.SHA256()))


def captured(exchange_id: str) -> type:
    """ccxt.pro's class, which keeps what it would send and waits for an answer that never comes."""

    def keep(self: Any, *what: Any) -> asyncio.Future[None]:
        self.sent.append(what)
        return asyncio.get_running_loop().create_future()

    def watch(self: Any, url: Any, message_hash: Any, message: Any = None, *_: Any, **__: Any) -> Any:
        return keep(self, "watch", url, message_hash, message)

    def fetch(self: Any, url: Any, method: Any = "GET", headers: Any = None, body: Any = None) -> Any:
        return keep(self, "fetch", url, method, headers, body)

    async def load_markets(self: Any, *_: Any, **__: Any) -> Any:
        return {}

    base = getattr(ccxt.pro, exchange_id)
    own = {"watch": watch, "watch_multiple": watch, "fetch": fetch, "load_markets": load_markets}
    return type(base.__name__, (base,), own)


def authenticated(exchange: Any, loop: asyncio.AbstractEventLoop) -> Outcome:
    """What its `authenticate` sends until it waits for an answer."""

    async def run() -> object:
        exchange.sent = []
        exchange.timeout_on_exit, exchange.ssl_context = 0, TLS
        made = exchange.authenticate(*ARGUMENTS.get(exchange.id, ()))
        if not asyncio.iscoroutine(made):
            await exchange.close()
            return [made, exchange.sent]
        task = asyncio.create_task(made)
        for _ in range(20):
            await asyncio.sleep(0)
        background = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for each in background:
            each.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await exchange.close()
        if task.done() and not task.cancelled() and task.exception():
            raise task.exception() or AssertionError
        return exchange.sent

    return outcome(lambda: loop.run_until_complete(run()))


TLS = ssl.create_default_context()
URL = "wss://example.invalid/ws"
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("apex", "bitopro", "bybit", "bybiteu", "bybitid", "weex"), (URL,)),
    **dict.fromkeys(("gate", "gateeu"), (URL, "spot")),
    "htx": ({"url": URL, "hostname": "example.invalid", "type": "spot"},),
    "mexc": ("subscription",),
}


def test_websockets_are_authenticated_as_ccxt_does(desk: Desk, frozen: None) -> None:
    loop = asyncio.new_event_loop()
    signed: list[str] = []
    different: list[str] = []
    try:
        for exchange_id, scheme in all_schemes():
            base = getattr(ccxt.pro, exchange_id, None)
            if base is None or not hasattr(base, "authenticate"):
                continue
            pair, result = desk.pair(exchange_id, scheme, "pro", base=captured(exchange_id)), Result(different=[])
            if (exchange_id, scheme.kind) == ("bybit", "rsa"):
                # ccxt would use the text of the private key as an HMAC secret there; nothing is sent here.
                assert authenticated(pair.token, loop).denied == "SECRET_USED"
                continue
            software = authenticated(pair.software, loop)
            compare(pair, result, exchange_id, software, lambda p=pair: authenticated(p.token, loop))
            different += result.different
            signed += [f"{exchange_id} {scheme.kind}"] if result.signed else []
    finally:
        loop.close()
    assert different == []
    assert len(signed) >= 45, signed


async def test_a_login_that_would_send_the_secret_itself_sends_nothing(desk: Desk, frozen: None) -> None:
    okx = desk.pair("okx", SCHEMES["okx"][0], "pro").token
    okx.ssl_context = TLS
    sent: list[object] = []

    class Connection:
        async def send(self, message: object) -> None:
            sent.append(message)

    connection = Connection()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ccxt.async_support.Exchange, "client", lambda *_: connection)
        for message in ({"op": "login", "args": [{"secret": okx.secret}]}, json.dumps({"secret": okx.secret})):
            with pytest.raises(Denied, match="SECRET_SENT"):
                await okx.client(URL).send(message)
        with pytest.raises(Denied, match="SECRET_SENT"):
            okx.client(f"{URL}?{json.dumps(okx.secret)}")
        await okx.client(URL).send({"op": "ping"})
    assert sent == [{"op": "ping"}]


def test_an_ecdsa_signature_of_the_token_is_taken_by_the_curve(token: hsm.Token, frozen: None) -> None:
    """Without the twin: what would really be sent."""
    scheme = SCHEMES["hyperliquid"][0]
    take_in(token, b"wallet", "wallet", Secret(secret_of(scheme)), scheme)
    exchange = signed_exchange(
        "hyperliquid", "sync", "secp256k1", TokenKeys(token, b"wallet", scheme), {"walletAddress": "0x0"}
    )
    for number in range(8):
        digest = bytes([number]) * 32
        made = exchange.sign_hash(f"0x{digest.hex()}", exchange.privateKey)
        r, s = int(made["r"], 16), int(made["s"], 16)
        WALLET.public_key().verify(encode_dss_signature(r, s), digest, ec.ECDSA(Prehashed(hashes.SHA256())))
        assert s <= 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141 // 2
        assert made["v"] in (27, 28)
        assert MARK not in json.dumps(made)
