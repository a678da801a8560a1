"""Attacks on the paper exchange, over the wire.  Two are *accepted*, as at Binance, and the journal shows them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import ssl
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tallystick.components.paper_exchange.access import Config, Key, Keys, Limits, fingerprint, parse_config
from tallystick.components.paper_exchange.journal import Journal, read_journal
from tallystick.components.paper_exchange.server import MAX_BODY, Exchange
from tallystick.runtime.bus.tasks import Tasks
from tallystick.schemas.errors import ConfigError
from tests.support.paper import SECRET, SPKI, Raw, config, key, raw, sign, trade, venue
from tests.support.tls import ServerTls

ORDER = "/api/v3/order"
LIMIT = "symbol=XRPETH&side=BUY&type=LIMIT&timeInForce=GTC&quantity=50&price=0.0012"
MARKET = "symbol=XRPETH&side=BUY&type=MARKET&quantity=50"
NONSENSE = ("{", '{"method":"SUBSCRIBE","params":[1]}', '{"method":"SUBSCRIBE","params":["x@trade"],"id":1}')
DENIED = (401, -2015)
FORGED = (400, -1022)


@dataclass
class Clock:
    """A clock that moves when told to, in ns."""

    now: int = 1_732_289_000_000_000_000

    def __call__(self) -> int:
        return self.now

    def advance(self, ms: int) -> None:
        self.now += ms * 1_000_000


Attack = Callable[..., contextlib.AbstractAsyncContextManager[tuple[Exchange, Raw]]]


@pytest.fixture
def attack(tls: ServerTls, tmp_path: Path) -> Attack:
    """A fresh venue and its client."""

    @contextlib.asynccontextmanager
    async def begin(**options: Any) -> AsyncIterator[tuple[Exchange, Raw]]:
        async with venue(tls, tmp_path, **options) as exchange, raw(exchange, tls) as client:
            yield exchange, client

    return begin


def stamped(parameters: str, clock: Callable[[], int] = time.time_ns, ahead_ms: int = 0) -> str:
    prefix = f"{parameters}&" if parameters else ""
    return f"{prefix}timestamp={clock() // 1_000_000 + ahead_ms}"


def untouched(exchange: Exchange) -> bool:
    """Nothing was ordered, traded or moved."""
    held = exchange.engine.accounts["main"]
    return not exchange.engine.open_orders("main") and (held["ETH"].free, held["XRP"].free) == (
        Decimal(1000),
        Decimal(100_000),
    )


async def test_an_honest_order_is_accepted(attack: Attack) -> None:
    async with attack() as (exchange, client):
        status, answer = await client.send("POST", ORDER, sign(stamped(LIMIT)))
        assert (status, answer["status"]) == (200, "NEW")
        assert not untouched(exchange)


async def test_forged_and_altered_requests_are_refused(attack: Attack) -> None:
    async with attack() as (exchange, client):
        good = sign(stamped(LIMIT))
        other = Ed25519PrivateKey.generate()
        payload = stamped(LIMIT)
        wrong = base64.b64encode(other.sign(payload.encode())).decode().replace("+", "%2B").replace("/", "%2F")
        for forged in (
            f"{payload}&signature={wrong}",
            good.replace("quantity=50", "quantity=51"),
            good.replace("price=0.0012", "price=0.0013"),
            good.replace("side=BUY", "side=SELL"),
            good.replace("symbol=XRPETH&side=BUY", "side=BUY&symbol=XRPETH"),
            good.replace("&signature=", "&newClientOrderId=mine&signature="),
            f"{payload}&signature=",
            f"{payload}&signature=AAAA",
            f"{payload}&signature={'A' * 86}%3D%3D",
            f"{payload}&signature=%ff%00",
            good + "%3D",
            good + "%20",
        ):
            assert await client.code("POST", ORDER, forged) == FORGED, forged
        for unsigned in (payload, "", good + "&price=0.0011", "&signature=", "signature=AAAA"):
            assert await client.code("POST", ORDER, unsigned) in (FORGED, (400, -1102)), unsigned
        assert untouched(exchange)
        assert await client.code("POST", ORDER, good) == (200, 0)


async def test_a_signature_holds_for_the_raw_bytes_and_for_no_re_encoding(attack: Attack) -> None:
    async with attack() as (exchange, client):
        plain, escaped = stamped(LIMIT), stamped(LIMIT.replace("XRPETH", "XRP%45TH"))
        signature = sign(plain).rpartition("&signature=")[2]
        # Both mean the same; the signature is over one of them.
        assert await client.code("POST", ORDER, f"{escaped}&signature={signature}") == FORGED
        assert await client.code("POST", ORDER, f"{plain.replace('=', '%3D', 1)}&signature={signature}") == FORGED
        assert untouched(exchange)
        assert await client.code("POST", ORDER, sign(escaped)) == (200, 0)


async def test_parameters_moved_between_query_and_body_do_not_change_what_was_signed(
    attack: Attack,
) -> None:
    async with attack() as (exchange, client):
        good = sign(stamped(LIMIT))
        # A signed body with more parameters in the query, and one parameter in both.
        for query in ("newClientOrderId=mine", "price=0.0013", "quantity=5000"):
            assert await client.code("POST", f"{ORDER}?{query}", good) == FORGED
        assert untouched(exchange)
        # Binance signs the query directly followed by the body.
        first, second = "symbol=XRPETH&side=BUY&type=LIMIT&timeInForce=GTC", stamped("quantity=50&price=0.0012")
        signature = sign(first + second).rpartition("&signature=")[2]
        assert await client.code("POST", f"{ORDER}?{first}", f"{second}&signature={signature}") == (200, 0)
        doubled = stamped("symbol=XRPETH&quantity=1")
        signature = sign(first + doubled).rpartition("&signature=")[2]
        assert await client.code("POST", f"{ORDER}?{first}", f"{doubled}&signature={signature}") == (400, -1101)


async def test_a_replay_outside_its_window_is_refused(attack: Attack) -> None:
    clock = Clock()

    async with attack(clock=clock) as (exchange, client):
        late = sign(stamped(f"{MARKET}&recvWindow=1000", clock))
        default = sign(stamped(MARKET, clock))
        clock.advance(1001)
        assert await client.code("POST", ORDER, late) == (400, -1021)
        clock.advance(4000)
        assert await client.code("POST", ORDER, default) == (400, -1021)
        assert await client.code("POST", ORDER, sign(stamped(MARKET, clock, ahead_ms=1000))) == (400, -1021)
        assert await client.code("POST", ORDER, sign(stamped(f"{MARKET}&recvWindow=60001", clock))) == (400, -1131)
        assert await client.code("POST", ORDER, sign(stamped(f"{MARKET}&recvWindow=-1", clock))) == (400, -1100)
        assert await client.code("POST", ORDER, sign(MARKET)) == (400, -1102)
        assert untouched(exchange)
        assert await client.code("POST", ORDER, sign(stamped(MARKET, clock, ahead_ms=999))) == (200, 0)


async def test_a_replayed_market_order_is_accepted_within_its_window_and_the_journal_shows_it(
    attack: Attack, tmp_path: Path
) -> None:
    async with attack() as (exchange, client):
        once = sign(stamped(f"{MARKET}&newClientOrderId=once&recvWindow=5000"))
        for _ in range(2):
            status, answer = await client.send("POST", ORDER, once)
            assert (status, answer["status"]) == (200, "FILLED")
        assert exchange.engine.accounts["main"]["XRP"].free == Decimal(100_100) - Decimal("0.1")
        newest = sign(stamped("symbol=XRPETH&origClientOrderId=once"))
        assert (await client.send("GET", ORDER, newest))[1]["orderId"] == max(
            order.id for order in exchange.engine.orders()
        )
    first, second = read_journal(tmp_path / "journal.jsonl")
    assert first.payload_sha256 == second.payload_sha256
    assert (first.client_order_id, second.order_id - first.order_id) == ("once", 1)
    assert (first.key, first.account, first.request, first.verdict) == (
        fingerprint("traderkey"),
        "main",
        "POST /api/v3/order",
        "FILLED",
    )


async def test_a_replayed_resting_order_is_refused_while_it_is_open(attack: Attack, tmp_path: Path) -> None:
    async with attack() as (_exchange, client):
        once = sign(stamped(f"{LIMIT}&newClientOrderId=once"))
        assert await client.code("POST", ORDER, once) == (200, 0)
        assert await client.code("POST", ORDER, once) == (400, -2010)
        cancel = sign(stamped("symbol=XRPETH&origClientOrderId=once"))
        assert await client.code("DELETE", ORDER, cancel) == (200, 0)
        assert await client.code("POST", ORDER, once) == (200, 0)
    entries = read_journal(tmp_path / "journal.jsonl")
    assert [e.verdict for e in entries] == ["NEW", "-2010", "CANCELED", "NEW"]
    assert [e.client_order_id for e in entries] == ["once"] * 4


async def test_keys_do_only_what_they_may(attack: Attack, tmp_path: Path) -> None:
    async with attack() as (exchange, client):
        order, account = sign(stamped(LIMIT)), sign(stamped(""))
        withdrawal = sign(stamped("coin=ETH&address=0xdead&amount=1"))
        apply, read = "/sapi/v1/capital/withdraw/apply", "/api/v3/account"
        assert await client.code("POST", ORDER, order, "readerkey") == DENIED
        assert await client.code("POST", f"{ORDER}/test", order, "readerkey") == DENIED
        assert await client.code("DELETE", "/api/v3/openOrders", sign(stamped("symbol=XRPETH")), "readerkey") == DENIED
        assert await client.code("POST", apply, withdrawal, "traderkey") == DENIED
        assert await client.code("POST", apply, withdrawal, "readerkey") == DENIED
        assert await client.code("GET", read, account, "placerkey") == DENIED
        assert await client.code("GET", read, account, "elsewherekey") == DENIED
        assert await client.code("POST", ORDER, order, "elsewherekey") == DENIED
        assert await client.code("GET", read, account, "nosuchkey") == DENIED
        assert await client.code("GET", read, account, None) == (401, -2014)
        assert await client.code("GET", read, account, "not a key!") == (401, -2014)
        assert untouched(exchange)
        assert await client.code("POST", apply, withdrawal, "withdrawkey") == (200, 0)
        assert exchange.engine.withdrawn == {"ETH": Decimal(1)}
        assert await client.code("GET", read, account, "readerkey") == (200, 0)
        assert await client.code("POST", ORDER, order, "placerkey") == (200, 0)
    denied = [e for e in read_journal(tmp_path / "journal.jsonl") if e.verdict == "-2015"]
    # Only what was signed by a known key from its own address is journalled.
    assert {e.key for e in denied} == {fingerprint("readerkey"), fingerprint("traderkey")}
    # Half of what opens an account stands nowhere in the clear.
    for name in (b"readerkey", b"traderkey"):
        assert name not in (tmp_path / "journal.jsonl").read_bytes()


async def test_a_revoked_key_is_dead_at_once(attack: Attack) -> None:
    async with attack() as (exchange, client):
        good = sign(stamped(MARKET))
        assert await client.code("POST", ORDER, good) == (200, 0)
        exchange.revoke("traderkey")
        assert await client.code("POST", ORDER, good) == DENIED
        with pytest.raises(ConfigError):
            exchange.revoke("traderkey")
        exchange.keys.add(key("traderkey2", "main", "read"))
        assert await client.code("POST", ORDER, good, "traderkey2") == DENIED
        assert await client.code("GET", "/api/v3/account", sign(stamped("")), "traderkey2") == (200, 0)


async def test_another_accounts_orders_are_out_of_reach(attack: Attack) -> None:
    async with attack() as (exchange, client):
        _, mine = await client.send("POST", ORDER, sign(stamped(f"{LIMIT}&newClientOrderId=mine")))
        for which in (f"orderId={mine['orderId']}", "origClientOrderId=mine"):
            asked = sign(stamped(f"symbol=XRPETH&{which}"))
            assert await client.code("GET", ORDER, asked, "otherkey") == (400, -2013)
            assert await client.code("DELETE", ORDER, asked, "otherkey") == (400, -2011)
        everything = sign(stamped("symbol=XRPETH"))
        assert await client.code("DELETE", "/api/v3/openOrders", everything, "otherkey") == (400, -2011)
        assert (await client.send("GET", "/api/v3/openOrders", everything, "otherkey"))[1] == []
        trade(exchange, "0.0012", buyer_is_maker=True)
        assert (await client.send("GET", "/api/v3/myTrades", everything, "otherkey"))[1] == []
        assert len((await client.send("GET", "/api/v3/myTrades", everything))[1]) == 1


@pytest.mark.parametrize(
    ("change", "number"),
    [
        (("quantity=50", "quantity=NaN"), -1100),
        (("quantity=50", "quantity=Infinity"), -1100),
        (("quantity=50", "quantity=5e1"), -1100),
        (("quantity=50", "quantity=-50"), -1100),
        (("quantity=50", "quantity=%2B50"), -1100),
        (("quantity=50", "quantity=+50"), -1100),
        (("quantity=50", "quantity=5_0"), -1100),
        (("quantity=50", "quantity=%D9%A5%D9%A0"), -1100),  # Arabic-Indic digits
        (("quantity=50", "quantity=50%00"), -1100),
        (("quantity=50", "quantity=%zz"), -1100),
        (("quantity=50", "quantity=50."), -1100),
        (("quantity=50", "quantity=.5"), -1100),
        (("quantity=50", f"quantity={'9' * 21}"), -1100),
        (("quantity=50", "quantity=50.000000000"), -1111),
        (("quantity=50", "quantity=50.5"), -1013),
        (("quantity=50", "quantity=0"), -1013),
        (("quantity=50", f"quantity={'9' * 20}"), -1013),
        (("quantity=50", "quantity="), -1105),
        (("quantity=50", "quantity=50&quantity=50"), -1101),
        (("quantity=50", "quantity=50&nonsense=1"), -1104),
        (("quantity=50", "quantity=50&stopPrice=0.0011"), -1106),
        (("quantity=50&", ""), -1102),
        (("price=0.0012", "price=0.00120001"), -1013),
        (("price=0.0012", "price=0.00000001"), -1013),
        (("symbol=XRPETH", "symbol=xrpeth"), -1100),
        (("symbol=XRPETH", "symbol=ETHBTC"), -1121),
        (("side=BUY", "side=buy"), -1117),
        (("type=LIMIT", "type=TRAILING"), -1116),
        (("type=LIMIT", "type=STOP_LOSS"), -1106),
        (("type=LIMIT", "type=STOP_LOSS_LIMIT"), -1102),
        (("timeInForce=GTC", "timeInForce=GTX"), -1115),
        (("price=0.0012", "price=0.0012&newClientOrderId=a%20b"), -1100),
        (("price=0.0012", f"price=0.0012&newClientOrderId={'a' * 37}"), -1100),
        (("price=0.0012", "price=0.0012&newOrderRespType=ALL"), -1130),
        (("price=0.0012", "price=0.0012&selfTradePreventionMode=NONE"), -1013),
    ],
)
async def test_signed_nonsense_is_refused_by_name(attack: Attack, change: tuple[str, str], number: int) -> None:
    async with attack() as (exchange, client):
        assert await client.code("POST", ORDER, sign(stamped(LIMIT.replace(*change)))) == (400, number)
        assert untouched(exchange)


async def test_oversized_requests_are_refused(attack: Attack) -> None:
    async with attack() as (exchange, client):
        big = sign(stamped(f"{LIMIT}&newClientOrderId={'a' * MAX_BODY}"))
        assert await client.code("POST", ORDER, big) == (413, -1101)
        assert await client.code("GET", "/api/v3/time", "x=1") == (400, -1104)
        assert untouched(exchange)
        assert await client.code("GET", "/api/v3/time", "") == (200, 0)


async def test_request_weight_and_order_counts_are_limited(attack: Attack) -> None:
    clock = Clock()
    async with attack(clock=clock, limits=Limits(orders_10s=2, orders_day=3)) as (_, client):
        for expected in ((200, 0), (200, 0), (429, -1015), (429, -1015)):
            assert await client.code("POST", ORDER, sign(stamped(LIMIT, clock))) == expected
        clock.advance(10_000)
        assert await client.code("POST", ORDER, sign(stamped(LIMIT, clock))) == (200, 0)
        # The other account has a count of its own.
        assert await client.code("POST", ORDER, sign(stamped(LIMIT, clock)), "otherkey") == (200, 0)
        clock.advance(10_000)
        assert await client.code("POST", ORDER, sign(stamped(LIMIT, clock))) == (429, -1015)  # the day's
    async with attack(clock=clock, limits=Limits(weight_minute=40)) as (_, client):
        for expected in ((200, 0), (200, 0), (429, -1003)):
            assert await client.code("GET", "/api/v3/account", sign(stamped("", clock))) == expected
        assert await client.code("GET", "/api/v3/time", "") == (429, -1003)
        clock.advance(60_000)
        assert await client.code("GET", "/api/v3/time", "") == (200, 0)


async def test_a_full_disk_does_not_hide_an_order(attack: Attack) -> None:
    async with attack() as (exchange, client):
        exchange._journal.close()
        exchange._journal = Journal(Path("/dev/full"))
        status, answer = await client.send("POST", ORDER, sign(stamped(LIMIT)))
        assert (status, answer["code"]) == (500, -1006)  # unknown: the client must ask
        assert len(exchange.engine.open_orders("main")) == 1


async def socket(client: Raw, path: str) -> aiohttp.ClientWebSocketResponse:
    return await client.session.ws_connect(f"wss://127.0.0.1:{client.port}{path}", ssl=client.context)


def subscription(api_key: str = "traderkey", **changes: Any) -> dict[str, Any]:
    parameters: dict[str, Any] = {"apiKey": api_key, "timestamp": time.time_ns() // 1_000_000} | changes
    payload = "&".join(f"{name}={parameters[name]}" for name in sorted(parameters))
    parameters["signature"] = base64.b64encode(SECRET.sign(payload.encode())).decode()
    return {"id": "1", "method": "userDataStream.subscribe.signature", "params": parameters}


async def test_malformed_socket_messages_are_answered_and_change_nothing(attack: Attack) -> None:
    async with attack() as (exchange, client):
        for path, bad in (
            ("/ws/1", NONSENSE),
            ("/ws-api/v3", ("[" * 2000, "null", '{"id":1,"method":"order.place","params":{}}', '{"id":1,"x":2}')),
        ):
            ws = await socket(client, path)
            for text in bad:
                await ws.send_str(text)
                assert "error" in await ws.receive_json(timeout=5)
            await ws.close()
        for path in ("/ws/1", "/ws-api/v3"):
            ws = await socket(client, path)
            await ws.send_str(" " * 5000)
            assert (await ws.receive(timeout=5)).type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
            ws = await socket(client, path)
            await ws.send_bytes(b"{}")
            assert (await ws.receive(timeout=5)).type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
        ws = await socket(client, "/ws/1")
        for _ in range(7):
            await ws.send_str("{}")
        answers = [(await ws.receive(timeout=5)).type for _ in range(6)]
        assert aiohttp.WSMsgType.CLOSE in answers  # more than five in a second
        ws = await socket(client, "/ws-api/v3")  # counts weights, also of what it cannot read
        exchange._rates._limits = Limits(weight_minute=20)
        numbers: list[int] = []
        # One after the other: what is on its way when the venue closes may be lost with its answers.
        with contextlib.suppress(ConnectionError):
            await ws.send_str("{")
            while (answer := await ws.receive(timeout=5)).type is aiohttp.WSMsgType.TEXT and len(numbers) < 40:
                numbers.append(json.loads(answer.data)["error"]["code"])
                await ws.send_str("{")
        assert set(numbers[:-1]) <= {-1135}
        assert numbers[-1] in {-1135, -1003}
        assert len(numbers) <= 20
        assert ws.closed


@pytest.mark.uvloop
async def test_a_user_stream_wants_a_reading_key_and_a_fresh_signature(attack: Attack) -> None:
    async with attack() as (exchange, client):
        forged = subscription()
        forged["params"]["timestamp"] += 1
        stale = subscription(timestamp=time.time_ns() // 1_000_000 - 6000)
        refused = (
            (forged, -1022),
            (stale, -1021),
            (subscription("placerkey"), -2015),
            (subscription("elsewherekey"), -2015),
            (subscription("nosuchkey"), -2015),
            (subscription(account="main"), -1104),
        )
        for request, code in refused:
            ws = await socket(client, "/ws-api/v3")
            await ws.send_json(request)
            assert (await ws.receive_json(timeout=5))["error"]["code"] == code
        listeners = []
        for api_key in ("readerkey", "otherkey"):
            ws = await socket(client, "/ws-api/v3")
            await ws.send_json(subscription(api_key))
            assert (await ws.receive_json(timeout=5))["result"] == {"subscriptionId": 0}
            listeners.append(ws)
        reader, other = listeners
        await client.send("POST", ORDER, sign(stamped(LIMIT)))
        assert (await reader.receive_json(timeout=5))["event"]["e"] == "executionReport"
        assert (await reader.receive_json(timeout=5))["event"]["B"][1]["l"] == "0.06000000"
        with pytest.raises(asyncio.TimeoutError):
            await other.receive(timeout=0.2)
        exchange.revoke("readerkey")
        assert (await reader.receive_json(timeout=5))["event"]["e"] == "eventStreamTerminated"
        await client.send("POST", ORDER, sign(stamped(LIMIT)))
        with pytest.raises(asyncio.TimeoutError):
            await reader.receive(timeout=0.2)


async def test_a_reader_that_does_not_keep_up_is_cut_off(attack: Attack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tallystick.components.paper_exchange.sockets.MAX_BACKLOG", 10)

    async with attack() as (exchange, client):
        ws = await socket(client, "/ws/xrpeth@trade")
        await asyncio.sleep(0.1)
        for _ in range(12):  # without giving the writer a turn
            trade(exchange, "0.0013", buyer_is_maker=True)
        for _ in range(20):
            if (await ws.receive(timeout=5)).type is not aiohttp.WSMsgType.TEXT:
                break
        assert ws.closed
        assert not exchange.sockets.open


def test_the_venue_does_not_start_below_tls_1_3(tls: ServerTls, tmp_path: Path) -> None:
    context = tls.server()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ConfigError):
        Exchange(config(), clock=time.time_ns, tls=context, within=Tasks(), journal=tmp_path / "journal.jsonl")


@pytest.mark.parametrize(
    "change",
    [
        {"public_key": "AAAA"},
        {"public_key": "not base64"},
        # SubjectPublicKeyInfo of an X25519 key (RFC 8410, OID 1.3.101.110).
        {"public_key": base64.b64encode(bytes.fromhex("302a300506032b656e032100") + bytes(range(32))).decode()},
        {"account": "nobody"},
        {"api_key": "a b"},
        {"api_key": ""},
        {"ips": ("localhost",)},
    ],
)
def test_a_key_that_cannot_be_checked_is_not_registered(change: dict[str, Any]) -> None:
    good: dict[str, Any] = {"api_key": "k", "public_key": SPKI, "account": "main", "permissions": frozenset(("read",))}
    keys = Keys([], ["main"])
    with pytest.raises(ConfigError):
        keys.add(Key(**(good | change)))
    keys.add(Key(**good))
    with pytest.raises(ConfigError):
        keys.add(Key(**good))


def test_the_documented_configuration_is_one(tls: ServerTls, tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "paper-exchange.md").read_text("utf-8")
    example = text.partition("```json\n")[2].partition("```")[0]
    example = example.replace("base64 of an Ed25519 key, raw or SubjectPublicKeyInfo", SPKI)
    exchange = Exchange(
        parse_config(example.encode()),
        clock=time.time_ns,
        tls=tls.server(),
        within=Tasks(),
        journal=tmp_path / "journal.jsonl",
    )
    assert exchange.engine.accounts["main"]["ETH"].free == Decimal(100)
    # What it shows as optional has the default values.
    short = example.partition('  "commission"')[0].rstrip().rstrip(",") + "}"
    assert parse_config(short.encode()) == parse_config(example.encode())


def test_a_configuration_is_read_strictly() -> None:
    text = (
        b'{"instruments":[{"symbol":"XRPETH","name":"XRP/ETH","base":"XRP","quote":"ETH","tick":"0.0000001",'
        b'"step":"1","min_notional":"0.005"}],"accounts":{"main":{"ETH":"10"}},'
        b'"keys":[{"api_key":"k","public_key":"%s","account":"main","permissions":["read"]}]}' % SPKI.encode()
    )
    parsed = parse_config(text)
    assert isinstance(parsed, Config)
    assert parsed.accounts["main"]["ETH"] == Decimal(10)
    for bad in (b"", b"{}", text.replace(b'"read"', b'"root"'), text.replace(b'"tick"', b'"tik"')):
        with pytest.raises(ConfigError):
            parse_config(bad)
    with pytest.raises(ConfigError):
        parse_config(text.replace(b'"tick":"0.0000001"', b'"tick":"NaN"'))
