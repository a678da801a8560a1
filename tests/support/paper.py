"""A paper exchange with throw-away keys, and clients pointed at it: the real ccxt, and one that signs any bytes."""

from __future__ import annotations

import base64
import contextlib
import ssl
import time
import urllib.parse
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from yarl import URL

from tallystick.components.paper_exchange.access import Config, Key, Limits
from tallystick.components.paper_exchange.orders import Instrument
from tallystick.components.paper_exchange.server import Exchange, Fault
from tallystick.runtime.bus.tasks import Tasks
from tests.support.tls import ServerTls

XRPETH = Instrument(
    symbol="XRPETH",
    name="XRP/ETH",
    base="XRP",
    quote="ETH",
    tick=Decimal("0.0000001"),
    step=Decimal(1),
    min_notional=Decimal("0.005"),
)
SECRET = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PEM = SECRET.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
SPKI = base64.b64encode(SECRET.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).decode()


def key(api_key: str, account: str, *permissions: Any, ips: tuple[str, ...] = ("127.0.0.1",)) -> Key:
    """A registration of `SECRET`'s public key."""
    return Key(api_key=api_key, public_key=SPKI, account=account, permissions=frozenset(permissions), ips=ips)


def config(limits: Limits | None = None) -> Config:
    """One instrument, two accounts, and keys of every kind."""
    return Config(
        instruments=(XRPETH,),
        accounts={"main": {"ETH": Decimal(1000), "XRP": Decimal(100_000)}, "other": {"ETH": Decimal(5)}},
        keys=(
            key("traderkey", "main", "read", "trade"),
            key("readerkey", "main", "read"),
            key("placerkey", "main", "trade"),
            key("withdrawkey", "main", "withdraw"),
            key("elsewherekey", "main", "read", "trade", ips=("192.0.2.1",)),
            key("otherkey", "other", "read", "trade", ips=()),
        ),
        limits=limits or Limits(weight_minute=100_000, orders_10s=10_000),
    )


def client(kind: Any, port: int, context: ssl.SSLContext, api_key: str = "traderkey") -> Any:
    """A ccxt `binance` of class `kind` whose every URL is the paper exchange or a dead one."""
    exchange = kind(
        {
            "apiKey": api_key,
            "secret": PEM,
            "enableRateLimit": False,
            "options": {
                "fetchMarkets": {"types": ["spot"]},
                "fetchMargins": False,
                "warnOnFetchOpenOrdersWithoutSymbol": False,
            },
        }
    )
    exchange.ssl_context = context
    base = f"https://127.0.0.1:{port}"
    dead = "https://invalid.invalid"
    api: dict[str, Any] = {name: dead for name, url in exchange.urls["api"].items() if isinstance(url, str)}
    api |= {
        "public": f"{base}/api/v3",
        "private": f"{base}/api/v3",
        "v1": f"{base}/api/v1",
        "sapi": f"{base}/sapi/v1",
        "ws": {"spot": f"wss://127.0.0.1:{port}/ws", "ws-api": {"spot": f"wss://127.0.0.1:{port}/ws-api/v3"}},
    }
    exchange.urls["api"] = api
    return exchange


@contextlib.asynccontextmanager
async def venue(
    tls: ServerTls,
    path: Path,
    faults: dict[str, Fault] | None = None,
    *,
    clock: Callable[[], int] = time.time_ns,
    limits: Limits | None = None,
) -> AsyncIterator[Exchange]:
    """A running exchange whose journal is `path/journal.jsonl`, with a market of 1,000 at 0.0013 and 0.0013002."""
    exchange = Exchange(
        config(limits), clock=clock, tls=tls.server(), within=Tasks(), journal=path / "journal.jsonl", faults=faults
    )
    await exchange.start()
    trade(exchange, "0.0013", buyer_is_maker=True)
    trade(exchange, "0.0013002", buyer_is_maker=False)
    try:
        yield exchange
    finally:
        await exchange.stop()


def trade(exchange: Exchange, price: str, qty: str = "1000", *, buyer_is_maker: bool) -> None:
    """Play one market trade."""
    exchange.on_market_trade("XRPETH", Decimal(price), Decimal(qty), buyer_is_maker, time.time_ns())


def sign(payload: str) -> str:
    """`payload` with its signature, as a client sends it."""
    signature = base64.b64encode(SECRET.sign(payload.encode())).decode()
    return f"{payload}&signature={urllib.parse.quote(signature, safe='')}"


@dataclass
class Raw:
    """A client that sends exactly what it is told to."""

    session: aiohttp.ClientSession
    port: int
    context: ssl.SSLContext

    async def send(
        self, method: str, path: str, signed: str = "", api_key: str | None = "traderkey"
    ) -> tuple[int, Any]:
        """`(HTTP status, answer)`; POST sends `signed` as its body, every other method as the query."""
        url, body = f"https://127.0.0.1:{self.port}{path}", None
        headers = {} if api_key is None else {"X-MBX-APIKEY": api_key}
        if method == "POST":
            body = signed.encode()
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        elif signed:
            url = f"{url}?{signed}"
        target = URL(url, encoded=True)
        async with self.session.request(method, target, data=body, headers=headers, ssl=self.context) as answer:
            return answer.status, await answer.json(content_type=None)

    async def code(self, method: str, path: str, signed: str, api_key: str | None = "traderkey") -> tuple[int, int]:
        """`(HTTP status, Binance's error number)`, 0 for an answer that is no error."""
        status, answer = await self.send(method, path, signed, api_key)
        return status, answer["code"] if isinstance(answer, dict) and "code" in answer else 0


@contextlib.asynccontextmanager
async def raw(exchange: Exchange, tls: ServerTls) -> AsyncIterator[Raw]:
    """A raw client of a running exchange."""
    async with aiohttp.ClientSession() as session:
        yield Raw(session, exchange.port, tls.client())
