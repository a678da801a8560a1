"""The venues whose requests are read back: builders with keys in software, and plain ccxt to compare with."""

from __future__ import annotations

import base64
import functools
import hmac
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

import ccxt
import msgspec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tallystick.schemas.orders import Intent, VenueOrder
from tallystick.schemas.trust import Instrument
from tallystick.venues import Login, parse_back
from tallystick.venues.capture import Captured, Request
from tallystick.venues.order import Words
from tallystick.venues.signing.handle import SigningKeys
from tests.support import world

NOW_MS = world.NOW // 1_000_000
HOST = "venue.example"
SECRET = base64.b64encode(world.seed("venue")).decode()
ED25519 = Ed25519PrivateKey.from_private_bytes(world.seed("venue"))
P256 = ec.derive_private_key(int.from_bytes(world.seed("venue"), "big") >> 1, ec.SECP256R1())
INTENT = bytes(range(16))


@functools.cache
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


class Keys:
    """The venue's keys in software; counts their uses."""

    point = b""

    def __init__(self) -> None:
        self.used = 0

    def mac(self, transforms: tuple[str, ...], algorithm: str, data: bytes) -> bytes:
        self.used += 1
        key = base64.b64decode(SECRET) if transforms == ("base64",) else SECRET.encode()
        return hmac.digest(key, data, algorithm)

    def ed25519(self, data: bytes) -> bytes:
        self.used += 1
        return ED25519.sign(data)

    def rsa(self, data: bytes, algorithm: str) -> bytes:
        assert algorithm == "sha256"
        self.used += 1
        return rsa_key().sign(data, padding.PKCS1v15(), hashes.SHA256())

    def ecdsa(self, digest: bytes, of: bytes = b"") -> tuple[int, int]:
        self.used += 1
        made = P256.sign(digest, ec.ECDSA(utils.Prehashed(hashes.SHA256()), deterministic_signing=True))
        return utils.decode_dss_signature(made)


def _pem(key: Any, form: PrivateFormat = PrivateFormat.PKCS8) -> str:
    return key.private_bytes(Encoding.PEM, form, NoEncryption()).decode()  # type: ignore[no-any-return]


def secret_of(name: str) -> str:
    """The secret of a venue's login as the venue would write it."""
    match name:
        case "binance-usdm":
            return _pem(ED25519)
        case "bybit-rsa":
            return _pem(rsa_key())
        case "coinbase":
            return _pem(P256, PrivateFormat.TraditionalOpenSSL)
        case _:
            return SECRET


class Place(msgspec.Struct, frozen=True):
    """A venue: its kind, ccxt's id, its name of the pair and the unified one."""

    kind: str
    exchange: str
    venue_symbol: str
    symbol: str = "BTC/USDT"
    extra: Mapping[str, str] = {}
    login: Login = Login("key", "passphrase")


PLACES = {
    "bybit": Place("bybit-spot", "bybit", "BTCUSDT"),
    "bybit-rsa": Place("bybit-spot", "bybit", "BTCUSDT", extra={"kind": "rsa"}),
    "okx": Place("okx-spot", "okx", "BTC-USDT"),
    "binance-usdm": Place("binance-usdm", "binanceusdm", "BTCUSDT", "BTC/USDT:USDT"),
    "kraken": Place("kraken-spot", "kraken", "XBTUSDT"),
    "coinbase": Place("coinbase-spot", "coinbase", "BTC-USDT", login=Login("organizations/1/apiKeys/2")),
}


class Desk:
    """One venue's builder under a clock that stands still."""

    def __init__(self, name: str) -> None:
        self.place = place = PLACES[name]
        self.name = name
        self.keys = Keys()
        self.record = Instrument(
            venue="there",
            symbol=place.symbol,
            venue_symbol=place.venue_symbol,
            base="BTC",
            quote="USDT",
            tick=Decimal("0.1"),
            step=Decimal("0.00001"),
            min_notional=Decimal(5),
            market_price=Decimal(200_000),
        )
        self.now = world.NOW
        self.builder: Any = self.build((self.record,), self.keys)
        self.words: Words = self.builder.WORDS
        self.own = self.words.name(INTENT)

    def build(self, records: tuple[Instrument, ...], keys: SigningKeys) -> Any:
        """A request builder of this venue."""
        make: Any = parse_back(self.place.kind).request_builder
        return make(HOST, records, self.place.login, keys, lambda: self.now, **self.place.extra)

    @property
    def exchange(self) -> Any:
        """The ccxt inside."""
        return self.builder._capture.exchange

    def order(self, side: str = "buy", tif: str = "GTC", **changes: Any) -> VenueOrder:
        """A limit order, or a market order for tif "", as the gateway would make it; `changes` replace its strings."""
        fields: dict[str, Any] = {"type": "limit", "price": Decimal("64321.5"), "tif": tif}
        if not tif:
            fields = {"type": "market"}
        intent = Intent(id=INTENT, ts=world.NOW, side=side, qty=Decimal("0.00250"), **fields)  # type: ignore[arg-type]
        return msgspec.structs.replace(self.words.venue_order(self.record, intent), **changes)

    def as_sent_by_ccxt(self, call: Callable[[Any], object]) -> Request:
        """What plain ccxt, with the secret in software and floats for numbers, would send."""
        exchange = _plain(self.name)
        exchange.options["lastNonce"] = 0
        try:
            call(exchange)
        except Captured as captured:
            return captured.request
        raise AssertionError("ccxt sent nothing")


@functools.cache
def desk(name: str) -> Desk:
    """ccxt is set up once a venue and test process."""
    return Desk(name)


@functools.cache
def _plain(name: str) -> Any:
    made = desk(name)

    class Software(getattr(ccxt, made.place.exchange)):  # type: ignore[misc]
        def fetch(self, url: str, method: str = "GET", headers: Any = None, body: Any = None) -> Any:
            raise Captured(url, method, headers, body)

        def milliseconds(self) -> int:
            return NOW_MS

        def seconds(self) -> int:
            return NOW_MS // 1_000

    login = made.place.login
    exchange = Software(
        {"apiKey": login.api_key, "password": login.passphrase, "secret": secret_of(name), "enableRateLimit": False}
    )
    exchange.urls["api"] = made.exchange.urls["api"]
    # As one who knows his account would set it.
    for option in ("recvWindow", "enableUnifiedMargin", "enableUnifiedAccount", "createOrder"):
        if option in made.exchange.options:
            exchange.options[option] = made.exchange.options[option]
    exchange.set_markets(list(made.exchange.markets.values()))
    return exchange
