"""Attacks on the API keys of sub-accounts, over the wire: what a master's key, a made key and a deleted key may not do."""

from __future__ import annotations

import base64
import hmac
import time
import urllib.parse
from pathlib import Path

import aiohttp
import pytest
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tallystick.components.paper_exchange.access import Limits
from tallystick.components.paper_exchange.journal import read_journal
from tests.support.paper import Raw, raw
from tests.support.sub_keys import (
    ADDRESSES,
    FOREIGN,
    KEYS,
    MANAGER,
    NEW,
    RIGHTS,
    SUB,
    make_key,
    new_key,
    pem,
    serving,
    signed_by,
    stamp,
)
from tests.support.tls import ServerTls

ORDER = "/api/v3/order"
LIMIT = "symbol=XRPETH&side=BUY&type=LIMIT&timeInForce=GTC&quantity=50&price=0.0012"
DENIED = (401, -2015)


async def listed(client: Raw) -> dict[str, str]:
    """Label -> API key of what the API made."""
    status, answer = await client.send("GET", KEYS, stamp(f"email={SUB}&size=100"), MANAGER)
    assert status == 200, answer
    return {row["apiName"]: row["apikey"] for row in answer["list"] if row["apiName"]}


async def test_a_new_key_trades_and_says_what_it_may_do(tls: ServerTls, tmp_path: Path) -> None:
    secret = Ed25519PrivateKey.generate()
    async with serving(tls, tmp_path) as life, raw(life, tls) as client:
        before = time.time_ns() // 10**6
        made = await make_key(client, "ts-1", secret)
        status, answer = await client.send("POST", ORDER, signed_by(secret, LIMIT), made)
        assert (status, answer["status"]) == (200, "NEW")
        status, rights = await client.send("GET", RIGHTS, signed_by(secret), made)
        assert status == 200
        assert rights["createTime"] >= before
        on = {name for name, value in rights.items() if value is True}
        assert on == {"ipRestrict", "enableReading", "enableSpotAndMarginTrading"}
        assert "tradingAuthorityExpirationTime" not in rights
        assert await listed(client) == {"ts-1": made}


async def test_the_venue_makes_a_secret_where_no_public_key_is_given_and_says_it_once(
    tls: ServerTls, tmp_path: Path
) -> None:
    async with serving(tls, tmp_path) as life, raw(life, tls) as client:
        _, answer = await client.send("POST", NEW, stamp(new_key("hmac")), MANAGER)
        text = f"timestamp={time.time_ns() // 10**6}"
        mac = hmac.digest(answer["secretKey"].encode(), text.encode(), "sha256").hex()
        assert (await client.send("GET", RIGHTS, f"{text}&signature={mac}", answer["apiKey"]))[0] == 200
        _, rows = await client.send("GET", KEYS, stamp(f"email={SUB}"), MANAGER)
        assert answer["secretKey"] not in str(rows)


async def test_an_rsa_key_signs_and_another_one_does_not(tls: ServerTls, tmp_path: Path) -> None:
    secret, other = (rsa.generate_private_key(65537, 2048) for _ in range(2))
    public = secret.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    async with serving(tls, tmp_path) as life, raw(life, tls) as client:
        _, answer = await client.send("POST", NEW, stamp(new_key("rsa", public)), MANAGER)
        text = f"timestamp={time.time_ns() // 10**6}"
        for signer, expected in ((secret, (200, 0)), (other, (400, -1022))):
            mark = base64.b64encode(signer.sign(text.encode(), padding.PKCS1v15(), SHA256())).decode()
            signed = f"{text}&signature={urllib.parse.quote(mark, safe='')}"
            assert await client.code("GET", RIGHTS, signed, answer["apiKey"]) == expected


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        (new_key("twice"), -2009),
        (new_key("x", email=FOREIGN), -1099),
        (new_key("x", email="nobody@desk.example"), -1099),
        (new_key("x", more="&canFuturesTrade=true"), -9000),
        (new_key("x", more="&canUniversalTransfer=true"), -9000),
        (new_key("x", more="&canWithdraw=true"), -1104),
        (new_key("x", ips="127.0.0.1,not-an-address"), -1130),
        (new_key("x", ips="").replace("status=1", "status=3"), -9000),
        (new_key("x", ips="").replace("status=1", "status=2"), -1102),
        (new_key("a-label-of-more-than-20"), -1100),
        (new_key("x", "bm8ga2V5"), -1100),
        (new_key("x").replace("email", "mail"), -1104),
    ],
)
async def test_a_key_that_may_not_be_is_refused_in_binances_words(
    tls: ServerTls, tmp_path: Path, fields: str, code: int
) -> None:
    async with serving(tls, tmp_path) as life, raw(life, tls) as client:
        await make_key(client, "twice", Ed25519PrivateKey.generate())
        before = await listed(client)
        assert (await client.code("POST", NEW, stamp(fields), MANAGER))[1] == code
        assert await listed(client) == before


async def test_a_public_key_in_the_address_of_a_request_is_refused(tls: ServerTls, tmp_path: Path) -> None:
    async with serving(tls, tmp_path) as life, raw(life, tls) as client:
        fields = stamp(new_key("x", pem(Ed25519PrivateKey.generate())))
        _, code = await client.code("POST", f"{NEW}?{fields}", "", MANAGER)
        assert code == -1104
        assert await listed(client) == {}


async def test_no_more_keys_than_an_account_may_have(tls: ServerTls, tmp_path: Path) -> None:
    limits = Limits(weight_minute=100_000, orders_10s=10_000, api_keys=6)
    async with serving(tls, tmp_path, limits=limits) as life, raw(life, tls) as client:
        held = len(life.keys.of("main"))
        for number in range(6 - held):
            await make_key(client, f"k{number}", Ed25519PrivateKey.generate())
        assert await client.code("POST", NEW, stamp(new_key("over")), MANAGER) == (400, -9000)


async def test_a_key_that_manages_keys_cannot_trade_withdraw_or_make_another_manager(
    tls: ServerTls, tmp_path: Path
) -> None:
    async with serving(tls, tmp_path) as life, raw(life, tls) as client:
        assert await client.code("POST", ORDER, stamp(LIMIT), MANAGER) == DENIED
        assert await client.code("DELETE", "/api/v3/openOrders", stamp("symbol=XRPETH"), MANAGER) == DENIED
        withdrawal = stamp("coin=ETH&address=0xdead&amount=1")
        assert await client.code("POST", "/sapi/v1/capital/withdraw/apply", withdrawal, MANAGER) == DENIED
        secret = Ed25519PrivateKey.generate()
        made = await make_key(client, "ts-1", secret)
        for path, method, fields in ((NEW, "POST", new_key("ts-2")), (KEYS, "GET", f"email={SUB}")):
            assert await client.code(method, path, signed_by(secret, fields), made) == DENIED
        withdrawal = signed_by(secret, "coin=ETH&address=0xdead&amount=1")
        assert await client.code("POST", "/sapi/v1/capital/withdraw/apply", withdrawal, made) == DENIED


async def test_a_trading_key_manages_no_keys(tls: ServerTls, tmp_path: Path) -> None:
    async with serving(tls, tmp_path) as life, raw(life, tls) as client:
        which = f"email={SUB}&subAccountApiKey=readerkey"
        for method, path, fields in (
            ("POST", NEW, new_key("x")),
            ("GET", KEYS, f"email={SUB}"),
            ("DELETE", KEYS, which),
            ("POST", f"{KEYS}Permission", f"{which}&canTrade=true"),
            ("GET", ADDRESSES, which),
            ("POST", ADDRESSES.replace("v1", "v2"), f"{which}&status=1"),
            ("DELETE", f"{ADDRESSES}/ipList", f"{which}&ipAddress=127.0.0.1"),
        ):
            assert await client.code(method, path, stamp(fields), "traderkey") == DENIED, path


async def test_keys_of_another_master_are_out_of_reach(tls: ServerTls, tmp_path: Path) -> None:
    async with serving(tls, tmp_path) as life, raw(life, tls) as client:
        # Its own sub-account's e-mail with a stranger's key, and the stranger's e-mail: neither.
        for email, code in ((SUB, -2008), (FOREIGN, -1099)):
            which = f"email={email}&subAccountApiKey=otherkey"
            assert (await client.code("DELETE", KEYS, stamp(which), MANAGER))[1] == code
        assert (await client.code("GET", KEYS, stamp(f"email={FOREIGN}"), MANAGER))[1] == -1099
        assert (await client.send("GET", "/api/v3/account", stamp(), "otherkey"))[0] == 200


async def test_a_key_is_used_from_its_addresses_alone_as_soon_as_they_are_set(tls: ServerTls, tmp_path: Path) -> None:
    secret = Ed25519PrivateKey.generate()
    async with serving(tls, tmp_path) as life, raw(life, tls) as client:
        made = await make_key(client, "ts-1", secret, ips="")
        which = f"email={SUB}&subAccountApiKey={made}"
        _, rights = await client.send("GET", RIGHTS, signed_by(secret), made)
        assert not rights["ipRestrict"]
        assert rights["tradingAuthorityExpirationTime"] > rights["createTime"]
        restrict = ADDRESSES.replace("v1", "v2")
        status, answer = await client.send("POST", restrict, stamp(f"{which}&status=2&ipAddress=192.0.2.7"), MANAGER)
        assert (status, answer["ipList"]) == (200, ["192.0.2.7"])
        assert await client.code("GET", RIGHTS, signed_by(secret), made) == DENIED
        await client.send("POST", restrict, stamp(f"{which}&status=2&ipAddress=127.0.0.1"), MANAGER)
        assert await client.code("GET", RIGHTS, signed_by(secret), made) == (200, 0)
        gone = stamp(f"{which}&ipAddress=192.0.2.7")
        assert (await client.send("DELETE", f"{ADDRESSES}/ipList", gone, MANAGER))[1]["ipList"] == ["127.0.0.1"]
        # The last address cannot be taken away: the key would be open to all.
        last = stamp(f"{which}&ipAddress=127.0.0.1")
        assert (await client.code("DELETE", f"{ADDRESSES}/ipList", last, MANAGER))[1] == -9000
        _, answer = await client.send("GET", ADDRESSES, stamp(which), MANAGER)
        assert (answer["ipRestrict"], answer["ipList"]) == ("true", ["127.0.0.1"])


async def test_a_right_that_is_taken_away_is_gone_at_once(tls: ServerTls, tmp_path: Path) -> None:
    secret = Ed25519PrivateKey.generate()
    async with serving(tls, tmp_path) as life, raw(life, tls) as client:
        made = await make_key(client, "ts-1", secret)
        which = f"email={SUB}&subAccountApiKey={made}"
        await client.send("POST", f"{KEYS}Permission", stamp(f"{which}&canTrade=false"), MANAGER)
        assert await client.code("POST", ORDER, signed_by(secret, LIMIT), made) == DENIED
        assert await client.code("GET", RIGHTS, signed_by(secret), made) == (200, 0)
        assert (await client.code("POST", f"{KEYS}Permission", stamp(f"{which}&canFuturesTrade=true"), MANAGER))[
            1
        ] == -9000


async def test_an_unbound_key_trades_for_ninety_days_and_no_longer(tls: ServerTls, tmp_path: Path) -> None:
    now = [time.time_ns()]
    async with serving(tls, tmp_path, clock=lambda: now[0]) as life, raw(life, tls) as client:
        _, answer = await client.send("POST", NEW, stamp(new_key("hmac", ips=""), lambda: now[0]), MANAGER)

        async def order(days: int) -> tuple[int, int]:
            text = f"{LIMIT}&timestamp={(now[0] + days * 86_400 * 10**9) // 10**6}"
            mac = hmac.digest(answer["secretKey"].encode(), text.encode(), "sha256").hex()
            now[0] += days * 86_400 * 10**9
            return await client.code("POST", ORDER, f"{text}&signature={mac}", answer["apiKey"])

        assert await order(89) == (200, 0)
        assert await order(1) == DENIED


async def test_a_deleted_key_is_refused_at_once_by_every_door(tls: ServerTls, tmp_path: Path) -> None:
    secret = Ed25519PrivateKey.generate()
    async with serving(tls, tmp_path) as life, raw(life, tls) as client, aiohttp.ClientSession() as session:
        made = await make_key(client, "ts-1", secret)
        url = f"wss://127.0.0.1:{life.port}/ws-api/v3"
        async with session.ws_connect(url, ssl=tls.client()) as ws:

            async def ask(method: str, signed: bool = True) -> dict[str, object]:
                parameters: dict[str, object] = {}
                if signed:
                    parameters = {"apiKey": made, "timestamp": time.time_ns() // 10**6}
                    text = "&".join(f"{name}={parameters[name]}" for name in sorted(parameters))
                    parameters["signature"] = base64.b64encode(secret.sign(text.encode())).decode()
                else:
                    parameters = {"timestamp": time.time_ns() // 10**6}
                await ws.send_json({"id": 1, "method": method, "params": parameters})
                answer: dict[str, object] = await ws.receive_json()
                return answer

            assert (await ask("session.logon"))["status"] == 200
            assert (await ask("userDataStream.subscribe", signed=False))["status"] == 200
            assert (await ask("account.status", signed=False))["status"] == 200
            gone = stamp(f"email={SUB}&subAccountApiKey={made}")
            assert await client.send("DELETE", KEYS, gone, MANAGER) == (200, {})
            # The open stream ends of its own accord.
            assert (await ws.receive_json())["event"]["e"] == "eventStreamTerminated"
            # Signed by itself and over the session that it had logged on: refused as a credential, both.
            for signed in (True, False):
                answer = await ask("account.status", signed=signed)
                assert (answer["status"], answer["error"]["code"]) == DENIED, answer  # type: ignore[index]
            assert (await ask("userDataStream.subscribe", signed=False))["status"] == 401
        assert await client.code("POST", ORDER, signed_by(secret, LIMIT), made) == DENIED
        assert (await client.code("DELETE", KEYS, stamp(f"email={SUB}&subAccountApiKey={made}"), MANAGER))[1] == -2008
        assert await listed(client) == {}


async def test_what_was_done_to_keys_stands_in_the_journal_and_no_secret_does(tls: ServerTls, tmp_path: Path) -> None:
    async with serving(tls, tmp_path) as life, raw(life, tls) as client:
        _, answer = await client.send("POST", NEW, stamp(new_key("hmac")), MANAGER)
        await client.send("DELETE", KEYS, stamp(f"email={SUB}&subAccountApiKey={answer['apiKey']}"), MANAGER)
        await client.code("POST", NEW, stamp(new_key("x", email=FOREIGN)), MANAGER)
        path = tmp_path / "requests.jsonl"
        entries = read_journal(path)
        assert [(e.request.split()[0], e.verdict) for e in entries] == [
            ("POST", "OK"),
            ("DELETE", "OK"),
            ("POST", "-1099"),
        ]
        assert answer["secretKey"] not in path.read_text()
        assert answer["apiKey"] not in path.read_text()
