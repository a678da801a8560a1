"""The request builder against ccxt itself: the same bytes as ccxt would send, and nothing that ccxt adds."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import ccxt
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tallystick.schemas.orders import VenueOrder
from tallystick.schemas.trust import Instrument, Venue
from tallystick.venues import Denied, SignedRequest, capture
from tallystick.venues.binance.request import RequestBuilder
from tallystick.venues.order import plain as written
from tests.support import world
from tests.support.custody import API_KEY, VENUE_KEY, order, shared_builder, shared_now, trust_root

NAME = order().client_order_id
RECORD = trust_root().instruments[0]


class Ccxt:
    """Plain ccxt with the same key in software, its network replaced, its clock ours."""

    def __init__(self) -> None:
        key = Ed25519PrivateKey.from_private_bytes(world.seed("venue"))
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        captured: list[tuple[str, str, dict[str, str], str | None]] = []
        self.captured = captured

        class Capture(ccxt.binance):  # type: ignore[misc]
            def fetch(self, url: str, method: str = "GET", headers: Any = None, body: Any = None) -> Any:
                captured.append((url, method, headers, body))
                raise ccxt.ExchangeError("captured")

            def milliseconds(self) -> int:
                return world.NOW // 1_000_000

        options = {"recvWindow": 1000, "newOrderRespType": {"market": "RESULT", "limit": "RESULT"}}
        self.exchange = Capture({"apiKey": API_KEY, "secret": pem, "options": options, "enableRateLimit": False})
        self.exchange.urls["api"]["private"] = "https://localhost/api/v3"
        # As `load_markets` reads them from exchangeInfo, without margin pairs.
        self.exchange.options |= {"crossMarginPairsData": [], "isolatedMarginPairsData": []}
        market = self.exchange.parse_market(
            {
                "symbol": "XRPETH",
                "status": "TRADING",
                "baseAsset": "XRP",
                "quoteAsset": "ETH",
                "baseAssetPrecision": 8,
                "quotePrecision": 8,
                "orderTypes": ["LIMIT", "LIMIT_MAKER", "MARKET"],
                "isSpotTradingAllowed": True,
                "permissions": [],
                "filters": [
                    {"filterType": "PRICE_FILTER", "tickSize": "0.00000010", "minPrice": "0.0000001", "maxPrice": "9"},
                    {"filterType": "LOT_SIZE", "stepSize": "1.00000000", "minQty": "1", "maxQty": "9000"},
                ],
            }
        )
        self.exchange.set_markets([market])

    def request(self, call: Callable[[Any], object]) -> tuple[str, str, dict[str, str], str]:
        with pytest.raises(ccxt.ExchangeError, match="captured"):
            call(self.exchange)
        url, method, headers, body = self.captured.pop()
        return url, method, headers, body or ""


@pytest.fixture(scope="module")
def plain() -> Ccxt:
    return Ccxt()


@pytest.fixture(autouse=True)
def fixed_clock() -> None:
    shared_now[0] = world.NOW


def as_sent(request: SignedRequest) -> tuple[str, str, dict[str, str], str]:
    return request.url, request.method, dict(request.headers), request.body


LIMITS = [
    ("BUY", "GTC", "100", "0.0012345"),
    ("SELL", "IOC", "1", "0.001"),
    ("BUY", "FOK", "9000", "0.0000001"),
    ("SELL", "GTC", "250", "1"),
]


@pytest.mark.parametrize(("side", "tif", "quantity", "price"), LIMITS)
def test_a_limit_order_is_byte_for_byte_what_ccxt_would_send_also_where_it_built_one_before(
    plain: Ccxt, monkeypatch: pytest.MonkeyPatch, side: str, tif: str, quantity: str, price: str
) -> None:
    monkeypatch.setattr(shared_builder(), "_shapes", {})
    wanted = VenueOrder("XRPETH", side, "LIMIT", tif, quantity, price, NAME)
    first = shared_builder().order(RECORD, msgspec.structs.replace(wanted, quantity="7", price="0.5"))
    monkeypatch.setattr(
        shared_builder()._capture.exchange, "create_order", lambda *_: pytest.fail("ccxt was asked again")
    )
    ours = shared_builder().order(RECORD, wanted)
    assert first.body != ours.body
    theirs = plain.request(
        lambda x: x.create_order(
            "XRP/ETH",
            "limit",
            side.lower(),
            float(quantity),
            float(price),
            {"newClientOrderId": NAME, "timeInForce": tif},
        )
    )
    assert as_sent(ours) == theirs


@pytest.mark.parametrize("side", ["BUY", "SELL"])
def test_a_market_order_is_byte_for_byte_what_ccxt_would_send(plain: Ccxt, side: str) -> None:
    shared_builder().order(RECORD, VenueOrder("XRPETH", side, "MARKET", "", "7", "", NAME))
    ours = shared_builder().order(RECORD, VenueOrder("XRPETH", side, "MARKET", "", "42", "", NAME))
    theirs = plain.request(
        lambda x: x.create_order("XRP/ETH", "market", side.lower(), 42, None, {"newClientOrderId": NAME})
    )
    assert as_sent(ours) == theirs


def test_cancels_and_queries_are_byte_for_byte_what_ccxt_would_send(plain: Ccxt) -> None:
    ours = shared_builder()
    params = {"origClientOrderId": NAME}
    pairs = [
        (ours.cancel(RECORD, NAME), lambda x: x.cancel_order(None, "XRP/ETH", params)),
        (ours.cancel_all(RECORD), lambda x: x.cancel_all_orders("XRP/ETH")),
        (ours.query(RECORD, NAME), lambda x: x.fetch_order(None, "XRP/ETH", params)),
        (ours.open_orders(RECORD), lambda x: x.fetch_open_orders("XRP/ETH")),
    ]
    for request, call in pairs:
        assert as_sent(request) == plain.request(call)


def test_ccxt_left_alone_would_put_its_brokers_name_into_the_order_id(plain: Ccxt) -> None:
    body = plain.request(lambda x: x.create_order("XRP/ETH", "limit", "buy", 1, 1))[3]
    assert "newClientOrderId=x-" in body


class Rogue:
    """A builder whose ccxt does something else than it was asked to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.builder = shared_builder()
        self.exchange = self.builder._capture.exchange
        self.monkeypatch = monkeypatch
        # ccxt is asked anew, whatever it built before.
        monkeypatch.setattr(self.builder, "_shapes", {})

    def does(self, call: Callable[..., object]) -> str:
        self.monkeypatch.setattr(self.exchange, "create_order", call)
        with pytest.raises(Denied) as refusal:
            self.builder.order(RECORD, order())
        assert self.builder._capture.idle
        return refusal.value.code


@pytest.fixture
def rogue(monkeypatch: pytest.MonkeyPatch) -> Rogue:
    return Rogue(monkeypatch)


def fields(**changes: str | None) -> dict[str, str]:
    base: dict[str, str | None] = {
        "symbol": "XRPETH",
        "side": "BUY",
        "type": "LIMIT",
        "timeInForce": "GTC",
        "quantity": "100",
        "price": "0.0012345",
        "newClientOrderId": NAME,
        "newOrderRespType": "RESULT",
        **changes,
    }
    return {k: v for k, v in base.items() if v is not None}


def test_the_rogues_honest_request_passes(rogue: Rogue) -> None:
    rogue.monkeypatch.setattr(rogue.exchange, "create_order", lambda *_: rogue.exchange.private_post_order(fields()))
    assert rogue.builder.order(RECORD, order()).method == "POST"


@pytest.mark.parametrize(
    "changes",
    [
        {"quantity": "1000"},
        {"price": "0.0012346"},
        {"side": "SELL"},
        {"symbol": "BTCUSDT"},
        {"timeInForce": None},
        {"newClientOrderId": "x-ABCDEFGH0000"},
        {"recvWindow": "60000"},
        {"timestamp": "1"},
        {"stopPrice": "0.001"},
        {"quoteOrderQty": "1"},
        {"icebergQty": "1"},
        {"price": "0.0012345%20"},
    ],
    ids=str,
)
def test_any_field_that_ccxt_changes_adds_or_drops_is_refused_unsigned(
    rogue: Rogue, changes: dict[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(_: bytes) -> bytes:
        raise AssertionError("the key was used")

    class Key:
        public = VENUE_KEY.public
        sign = staticmethod(never)

    monkeypatch.setattr(rogue.builder._capture, "_keys", capture.Ed25519Keys(Key()))
    assert rogue.does(lambda *_: rogue.exchange.private_post_order(fields(**changes))) == "FIELD_MISMATCH"


def test_a_withdrawal_by_ccxt_is_refused(rogue: Rogue) -> None:
    x = rogue.exchange
    assert rogue.does(lambda *_: x.withdraw("ETH", 1, "0x" + "ab" * 20)) in {
        "FIELD_MISMATCH",
        "EXCHANGE_LIBRARY",
        "ENDPOINT",
    }
    params = {"coin": "ETH", "address": "0xab", "amount": "1"}
    x.urls["api"]["sapi"] = "https://localhost/sapi/v1"
    try:
        assert rogue.does(lambda *_: x.sapi_post_capital_withdraw_apply(params)) == "FIELD_MISMATCH"
    finally:
        del x.urls["api"]["sapi"]


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x.private_post_order_test(fields()),
        lambda x: x.private_post_sor_order(fields()),
        lambda x: x.private_delete_order(fields()),
        lambda x: x.private_get_order(fields()),
    ],
    ids=["test", "sor", "delete", "get"],
)
def test_the_right_fields_to_the_wrong_endpoint_are_refused(rogue: Rogue, call: Callable[[Any], object]) -> None:
    assert rogue.does(lambda *_: call(rogue.exchange)) == "ENDPOINT"


def test_another_host_is_refused(rogue: Rogue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rogue.exchange.urls["api"], "private", "https://attacker.example/api/v3")
    assert rogue.does(lambda *_: rogue.exchange.private_post_order(fields())) == "ENDPOINT"


def test_two_requests_are_refused(rogue: Rogue) -> None:
    def twice(*args: object) -> None:
        for _ in range(2):
            try:
                rogue.exchange.private_post_order(fields())
            except capture.Captured:
                continue
        raise capture.Captured("https://localhost/api/v3/order", "POST", {}, "")

    assert rogue.does(twice) == "ENDPOINT"


def test_no_request_is_refused(rogue: Rogue) -> None:
    assert rogue.does(lambda *_: {"id": "1"}) == "ENDPOINT"


def test_ccxt_cannot_look_for_markets_or_use_another_signature(rogue: Rogue) -> None:
    x = rogue.exchange
    assert rogue.does(lambda *_: x.load_markets(True)) == "ENDPOINT"
    for sign in (x.hmac, x.rsa, x.ecdsa, x.jwt, x.totp):
        assert rogue.does(partial(sign, b"data", x.secret)) == "SIGNATURE_KIND"
    assert rogue.does(lambda *_: x.eddsa(b"data", "another secret", "ed25519")) == "SIGNATURE_KIND"
    assert rogue.does(lambda *_: x.eddsa(b"data", x.secret, "p256")) == "SIGNATURE_KIND"
    assert rogue.does(lambda *_: x.eddsa(b"anything else", x.secret, "ed25519")) == "FIELD_MISMATCH"


@pytest.mark.parametrize(
    "changes", [{"client_order_id": f"{NAME[:-2]}&a"}, {"client_order_id": "x-ABCDEFGH0000"}, {"quantity": "1&price=9"}]
)
def test_what_would_read_as_another_field_is_refused_where_ccxt_is_not_asked(changes: dict[str, str]) -> None:
    builder = shared_builder()
    builder.order(RECORD, order())
    with pytest.raises(Denied):
        builder.order(RECORD, order(**changes))


def test_outside_a_build_nothing_is_signed() -> None:
    exchange = shared_builder()._capture.exchange
    with pytest.raises(Denied, match="ENDPOINT"):
        exchange.eddsa(b"symbol=XRPETH", exchange.secret, "ed25519")
    with pytest.raises(Denied, match="ENDPOINT"):
        exchange.sign("order", ["private", "DELETE"], "DELETE", {"symbol": "XRPETH"})


@pytest.mark.parametrize(
    "use",
    [
        lambda s: f"{s}",
        lambda s: "%s" % s,  # noqa: UP031
        lambda s: "key=" + s,
        lambda s: s + "",
        str,
        lambda s: s[0],
        list,
        lambda s: s.encode(),
        lambda s: s.split("\n"),
        lambda s: s.replace("a", "b"),
        lambda s: s.strip(),
        lambda s: s * 2,
    ],
)
def test_the_secrets_handle_refuses_every_way_into_a_request(use: Callable[[str], object]) -> None:
    with pytest.raises(Denied, match="SECRET_USED"):
        use(shared_builder()._capture.exchange.secret)


def test_the_secrets_handle_answers_what_ccxt_sniffs() -> None:
    handle = shared_builder()._capture.exchange.secret
    assert handle.find("PRIVATE KEY") > -1
    assert len(handle) <= 120
    assert repr(handle) == "<key in the HSM >"


def test_a_signed_request_shows_neither_key_nor_signature() -> None:
    request = shared_builder().order(RECORD, order())
    assert API_KEY not in repr(request)
    assert "signature" not in repr(request)


def test_a_venue_symbol_that_could_carry_a_field_is_refused() -> None:
    bad = RECORD.__class__(**{**{f: getattr(RECORD, f) for f in RECORD.__struct_fields__}, "venue_symbol": "X&a=b"})
    with pytest.raises(Exception, match="venue symbol"):
        RequestBuilder(Venue(kind="binance-spot", account="main", host="h"), (bad,), API_KEY, VENUE_KEY, lambda: 0)


MAGNITUDES = [
    ("BTCJPY", "BTC/JPY", "1", "0.00001", "0.5", "14100249"),
    ("BTCIDR", "BTC/IDR", "1", "0.00001", "0.00001", "1500000000"),
    ("PEPEUSDT", "PEPE/USDT", "0.00000001", "1", "277500000", "0.00000711"),
    ("ETHBTC", "ETH/BTC", "0.000001", "0.0001", "0.0481", "0.061233"),
    ("1000SATSUSDT", "1000SATS/USDT", "0.00001", "1", "629", "0.02124"),
    ("币安人生USDT", "币安人生/USDT", "0.0001", "0.1", "13.1", "0.2131"),
]


@pytest.mark.parametrize(("venue_symbol", "symbol", "tick", "step", "quantity", "price"), MAGNITUDES)
def test_symbols_of_every_script_and_magnitude_are_signed_as_they_are(
    venue_symbol: str, symbol: str, tick: str, step: str, quantity: str, price: str
) -> None:
    base, _, quote_asset = symbol.partition("/")
    record = Instrument(
        venue="paper",
        symbol=symbol,
        venue_symbol=venue_symbol,
        base=base,
        quote=quote_asset,
        tick=Decimal(tick),
        step=Decimal(step),
        min_notional=Decimal(0),
        market_price=Decimal(price) * 4,
    )
    venue = trust_root().venues["paper"]
    builder = RequestBuilder(venue, (record,), API_KEY, VENUE_KEY, lambda: world.NOW)
    wanted = VenueOrder(venue_symbol, "BUY", "LIMIT", "GTC", quantity, price, NAME)
    body = builder.order(record, wanted).body
    assert builder.order(record, wanted).body == body
    fields = dict(part.split("=", 1) for part in body.split("&"))
    assert (fields["symbol"], fields["quantity"], fields["price"]) == (quote(venue_symbol), quantity, price)
    for request in (
        builder.cancel(record, NAME),
        builder.query(record, NAME),
        builder.cancel_all(record),
        builder.open_orders(record),
    ):
        assert f"symbol={quote(venue_symbol)}&" in request.url


@pytest.mark.parametrize("raw", ["symbol=%41", "symbol=%2F", "symbol=%E5", "symbol=a%C0%80", "symbol=%e5%b8%81"])
def test_an_escape_that_need_not_be_or_is_no_utf8_is_refused(raw: str) -> None:
    with pytest.raises(Denied):
        capture.parse_form(raw)


def test_orders_in_every_symbol_of_binance_are_signed_as_they_are(shared_data: Path) -> None:
    with gzip.open(shared_data / "binance-exchangeInfo-2021-10-12.json.gz") as file:
        symbols = json.load(file)["symbols"]
    records, largest = [], {}
    for each in symbols:
        rules = {rule["filterType"]: rule for rule in each["filters"]}
        tick, step = Decimal(rules["PRICE_FILTER"]["tickSize"]), Decimal(rules["LOT_SIZE"]["stepSize"])
        highest, most = Decimal(rules["PRICE_FILTER"]["maxPrice"]), Decimal(rules["LOT_SIZE"]["maxQty"])
        largest[each["symbol"]] = (most - most % step, highest - highest % tick)
        records.append(
            Instrument(
                venue="paper",
                symbol=f"{each['baseAsset']}/{each['quoteAsset']}",
                venue_symbol=each["symbol"],
                base=each["baseAsset"],
                quote=each["quoteAsset"],
                tick=tick,
                step=step,
                min_notional=Decimal(rules["MIN_NOTIONAL"]["minNotional"]),
                market_price=highest,
            )
        )
    builder = RequestBuilder(trust_root().venues["paper"], tuple(records), API_KEY, VENUE_KEY, lambda: world.NOW)
    assert len(records) > 1_000
    for record in records[::20]:
        sizes = ((record.step, record.tick), (record.step * 13, record.tick * 137), largest[record.venue_symbol])
        for quantity, price in sizes:
            wanted = VenueOrder(record.venue_symbol, "SELL", "LIMIT", "GTC", written(quantity), written(price), NAME)
            fields = dict(part.split("=", 1) for part in builder.order(record, wanted).body.split("&"))
            assert (fields["quantity"], fields["price"]) == (written(quantity), written(price))
