"""The websocket logins of ccxt.pro, and the exchanges that sign messages of a wallet: as ccxt with the secret in software."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import ccxt.pro
import coincurve
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tallystick.venues import Denied
from tests.support.signing import (
    SIGNABLE,
    CountingKeys,
    Credentials,
    credentials,
    frozen,
    in_token,
    outcome,
    plain,
    schemes,
)
from tests.support.signing_websocket import ANSWER, connected, login, logins

# ccxt's websockets of these ask nothing private, or log in with what a signed request of the REST API gave.
NO_SIGNED_LOGIN = {
    *("bittrade", "coincheck", "coinone", "grvt", "hyperliquid", "independentreserve", "ndax", "p2b", "pacifica"),
    "polymarket",
}


@pytest.fixture(scope="module")
def creds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Credentials]:
    with credentials(tmp_path_factory.mktemp("hsm")) as made, frozen():
        yield made


async def test_every_websocket_login_is_the_one_of_ccxt(creds: Credentials) -> None:
    signed: Counter[str] = Counter()
    seen = set()
    for exchange_id in SIGNABLE:
        if exchange_id not in ccxt.pro.exchanges:
            continue
        for scheme in schemes(exchange_id):
            if not scheme.websocket:
                continue
            seen.add(exchange_id)
            keys = CountingKeys(creds.keys(scheme), scheme)
            theirs, ours = plain(exchange_id, "pro", scheme), in_token(exchange_id, "pro", scheme, keys)
            for name in logins(theirs):
                before = keys.uses
                wanted, made = await login(theirs, name), await login(ours, name)
                assert made == wanted, (exchange_id, scheme.name, name)
                signed[exchange_id] += keys.uses > before
    assert {exchange_id for exchange_id in seen if not signed[exchange_id]} == NO_SIGNED_LOGIN
    assert signed.total() >= 270


async def test_another_key_makes_every_signed_websocket_login_differ(creds: Credentials) -> None:
    compared = 0
    for exchange_id in ("okx", "bitget", "deribit", "modetrade"):
        scheme = schemes(exchange_id)[0]
        keys = CountingKeys(creds.keys(scheme, "somebody else"), scheme, "somebody else")
        theirs, ours = plain(exchange_id, "pro", scheme), in_token(exchange_id, "pro", scheme, keys)
        for name in logins(theirs):
            before = keys.uses
            wanted, made = await login(theirs, name), await login(ours, name)
            if keys.uses > before:
                compared += 1
                assert made != wanted
    assert compared >= 15


async def test_a_login_that_sends_the_secret_itself_sends_nothing(creds: Credentials) -> None:
    scheme = schemes("okx")[0]
    okx = in_token("okx", "pro", scheme, creds.keys(scheme))
    sent: list[Any] = []
    with connected(sent):
        client = okx.client("wss://host/private")
        for message in ({"op": "login", "args": [{"secret": okx.secret}]}, json.dumps({"secret": okx.secret})):
            with pytest.raises(Denied, match="SECRET_USED"):
                await client.send(message)
        with pytest.raises(Denied, match="SECRET_USED"):
            okx.client("wss://host/?secret=" + "".join([okx.secret]))
        okx.watch("wss://host/private", "login", {"secret": okx.secret}, "login")
        for _ in range(8):
            await asyncio.sleep(0)
    assert sent == [("failed", "SECRET_USED")]
    assert ANSWER


# --- messages of a wallet ----------------------------------------------------------------------------

ORDER = {"type": "order", "orders": [{"a": 0, "b": True, "p": "1", "s": "1", "r": False}], "grouping": "na"}
TRANSFER = [
    {"name": "hyperliquidChain", "type": "string"},
    {"name": "destination", "type": "string"},
    {"name": "amount", "type": "string"},
    {"name": "time", "type": "uint64"},
]
NADO_ORDER = {
    "sender": "0x" + "ab" * 32,
    "priceX18": "1",
    "amount": "1",
    "expiration": "1760000000",
    "nonce": "1",
    "appendix": "1",
}
GRVT_LOGIN = {"address": "0x" + "11" * 20, "signature": {"nonce": 1, "expiration": "1", "r": "", "s": "", "v": 0}}
MESSAGES: list[tuple[str, int, Callable[[Any], object]]] = [
    ("aster", 0, lambda x: x.sign_message(b"hello", x.privateKey)),
    ("derive", 0, lambda x: x.sign_message("1760000000000", x.privateKey)),
    ("derive", 0, lambda x: x.sign_order([("bytes32", "0x" + "ab" * 32)], x.privateKey)),
    ("grvt", 0, lambda x: x.create_signed_request(json.loads(json.dumps(GRVT_LOGIN)), "EIP712_WALLETLOGIN_TYPE")),
    ("grvt", 0, lambda x: x.eth_get_address_from_private_key(x.privateKey)),
    ("hibachi", 0, lambda x: x.sign_message(b"order", x.privateKey)),
    ("hibachi", 1, lambda x: x.sign_message(b"order", x.privateKey)),
    ("hyperliquid", 0, lambda x: x.sign_l1_action(ORDER, 1_760_000_000_000)),
    (
        "hyperliquid",
        0,
        lambda x: x.sign_user_signed_action(
            {"HyperliquidTransaction:UsdSend": TRANSFER},
            {"hyperliquidChain": "Mainnet", "destination": "0x" + "1" * 40, "amount": "1", "time": 1},
        ),
    ),
    ("nado", 0, lambda x: x.sign_hash("0x" + "ab" * 32, x.privateKey)),
    ("nado", 0, lambda x: x.sign_order(NADO_ORDER, 2, "57073")),
    (
        "pacifica",
        0,
        lambda x: x.sign_message({"timestamp": 1, "expiry_window": 5, "type": "a"}, {"a": 1}, x.privateKey),
    ),
    ("polymarket", 0, lambda x: x.sign_message("hello", x.privateKey)),
    ("polymarket", 0, lambda x: x.eth_get_address_from_private_key(x.privateKey)),
]


@pytest.mark.parametrize("api", ["sync", "async", "pro"])
async def test_messages_of_a_wallet_are_signed_as_ccxt_does(creds: Credentials, api: Any) -> None:
    for exchange_id, number, call in MESSAGES:
        scheme = schemes(exchange_id)[number]
        if api == "pro" and exchange_id not in ccxt.pro.exchanges:
            continue
        keys = CountingKeys(creds.keys(scheme), scheme)
        theirs, ours = plain(exchange_id, api, scheme), in_token(exchange_id, api, scheme, keys)
        made = outcome(lambda ours=ours, call=call: call(ours))
        assert made[0] == "ok", (exchange_id, made)
        assert made == outcome(lambda theirs=theirs, call=call: call(theirs)), exchange_id
        assert keys.uses == keys.verified or scheme.kind in {"hmac", "ed25519"}


def test_a_wallets_own_signature_names_its_address(creds: Credentials) -> None:
    scheme = schemes("hyperliquid")[0]
    keys = creds.keys(scheme)
    exchange = in_token("hyperliquid", "sync", scheme, keys)
    seen = set()
    for number in range(24):
        digest = hashlib.sha256(b"%d" % number).digest()
        made = exchange.ecdsa(digest.hex(), exchange.privateKey[-64:][-64:], "secp256k1", None)
        raw = bytes.fromhex(made["r"] + made["s"]) + bytes([made["v"]])
        found = coincurve.PublicKey.from_signature_and_message(raw, digest, hasher=None)
        assert found.format(compressed=False) == keys.public()
        # The lower half alone is accepted by verifiers that want one signature to have one form (EIP-2).
        assert int(made["s"], 16) <= 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141 // 2
        seen.add(made["v"])
    assert seen == {0, 1}


def test_a_tokens_own_jwt_verifies_in_another_library(creds: Credentials) -> None:
    scheme = schemes("coinbase")[0]
    keys = creds.keys(scheme)
    coinbase = in_token("coinbase", "sync", scheme, keys)
    token = coinbase.create_auth_token(1_760_000_000, "GET", "https://api.coinbase.com/api/v3/brokerage/orders?x=1")
    public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), keys.public())
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    options: Any = {"verify_exp": False, "verify_nbf": False, "verify_iat": False}
    claims = jwt.decode(token, pem, ["ES256"], options, audience="retail_rest_api_proxy")
    assert claims["uri"] == "GET api.coinbase.com/api/v3/brokerage/orders"
    with pytest.raises(jwt.InvalidSignatureError):
        jwt.decode(token[:-6] + "AAAAAA", pem, ["ES256"], options, audience="retail_rest_api_proxy")


@pytest.mark.parametrize(
    ("exchange_id", "call"),
    [
        # The session's key, which ccxt makes of a signature, and uses in plaintext.
        ("polymarket", lambda x: x.create_proxy_credentials()),
        ("polymarket", lambda x: x.sign_message("hello", "0x" + "ab" * 32)),
        ("hyperliquid", lambda x: x.sign_hash("0x" + "ab" * 32, "0x" + "ab" * 32)),
        ("pacifica", lambda x: x.sign_message({"timestamp": 1, "expiry_window": 5, "type": "a"}, {}, "1" * 44)),
        ("hyperliquid", lambda x: x.ecdsa("ab" * 32, x.privateKey[:-1], "secp256k1", None)),
        ("hyperliquid", lambda x: x.ecdsa("ab" * 32, x.privateKey[-64:], "secp256k1", None)),
        ("hyperliquid", lambda x: x.ecdsa("ab" * 20, x.privateKey, "secp256k1", None)),
        ("hyperliquid", lambda x: x.ecdsa("ab" * 32, x.privateKey, "p256", None)),
        ("hyperliquid", lambda x: x.starknet_sign("1", x.privateKey)),
    ],
)
def test_no_other_key_than_the_tokens_signs(
    creds: Credentials, exchange_id: str, call: Callable[[Any], object]
) -> None:
    scheme = schemes(exchange_id)[0]
    with pytest.raises(Denied):
        call(in_token(exchange_id, "sync", scheme, creds.keys(scheme)))
