"""Custody's way from a permit to a signed request, with the key in SoftHSM, and what other exchanges' signatures cost there.

An order is asked for as execution asks: two sealed messages and a signed frame, opened, checked, written to the journal and
signed; the socket's two ways are not in it.  The peer is the token's signature alone.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import msgspec

from benchmarks.report import Row, Void, percentiles, say
from tallystick.runtime.keys.hsm import Token, create_token
from tallystick.runtime.keys.keystore import Secret
from tallystick.schemas.signing import Signed
from tallystick.venues.binance.request import RequestBuilder
from tallystick.venues.signing.exchange import signed_exchange
from tallystick.venues.signing.schemes import SCHEMES
from tallystick.venues.signing.token_keys import TokenKeys, take_in
from tests.support.custody import API_KEY, PEER, Desk, trust_root
from tests.support.exchanges import secret_of

ORDERS = 2_000
WARM = 200
PIN = Secret("benchmark pin 29c1")
KINDS = {"hmac": "kraken", "ed25519": "backpack", "rsa": "bybit", "p256": "coinbase", "secp256k1": "aster"}

WHAT = {
    "order": "custody: permit to signed request (Ed25519 in SoftHSM)",
    **{kind: f"custody: a request of {name} signed in SoftHSM ({kind})" for kind, name in KINDS.items()},
}
TARGETS = {"hmac": "p50 ≤ 0.5 ms"}


def timed(call: Callable[[int], object], times: int) -> list[float]:
    """Milliseconds of each call."""
    taken = []
    for number in range(times):
        began = time.perf_counter()
        call(number)
        taken.append((time.perf_counter() - began) * 1e3)
    return taken


def orders(token: Token, folder: Path) -> Row:
    """The way of an order, beside the signature alone."""
    root = trust_root()
    wide = [msgspec.structs.replace(cap, max_hourly=Decimal(10**12)) for cap in root.caps]
    desk = Desk(folder, msgspec.structs.replace(root, caps=tuple(wide)))
    signer = token.signer(b"venue")
    venue = desk.trust.venues["paper"]
    builder = RequestBuilder(venue, desk.trust.instruments, API_KEY, signer, lambda: desk.now)
    desk.server._builders = {"paper": builder}  # noqa: SLF001 - the desk of the tests has a software key
    # As in the product: the journal's sync runs beside the next order, in a thread.
    del desk.server._sync_soon  # noqa: SLF001 - the desk of the tests has no loop to run it in
    requests = [desk.request() for _ in range(WARM + ORDERS)]

    async def ask() -> list[float]:
        taken = []
        for request in requests:
            began = time.perf_counter()
            opened = await desk.server._opened(request)  # noqa: SLF001 - as `_serve` does, without the socket
            reply = desk.server.answer(request, PEER, opened)
            taken.append((time.perf_counter() - began) * 1e3)
            if not isinstance(reply, Signed):
                raise Void(f"custody refused: {reply}")
            # The sync has its turn to begin.
            await asyncio.sleep(0)
        await desk.server.stop()
        return taken[WARM:]

    taken = asyncio.run(ask())
    alone = timed(lambda number: signer.sign(b"x" * 200 + bytes([number % 256])), ORDERS)
    (p50, p99), (bare, _) = percentiles(taken), percentiles(alone)
    return Row(WHAT["order"], p50, "ms", "p50 ≤ 0.7 ms, p99 ≤ 2 ms", bare, "the token's signature alone", p99)


def others(token: Token, kind: str) -> Row:
    """A private request of another exchange, built by ccxt and signed in the token, beside ccxt with its secret."""
    name = KINDS[kind]
    scheme = next(scheme for scheme in SCHEMES[name] if scheme.kind == kind)
    secret = secret_of(scheme)
    take_in(token, kind.encode(), kind, Secret(secret), scheme)
    config = {
        "apiKey": "key",
        "password": "phrase",
        "walletAddress": f"0x{'ab' * 20}",
        "options": {"v2CloudAPiKey": False},
    }
    if scheme.form == "ec-pem":
        config["apiKey"] = "organizations/x/apiKeys/y"
    import ccxt

    ours = signed_exchange(name, "sync", kind, TokenKeys(token, kind.encode(), scheme), config)
    theirs = getattr(ccxt, name)(config)
    setattr(theirs, scheme.field, secret)
    path, api, method = PATHS[name]
    times = 100 if kind == "rsa" else 500
    taken = timed(lambda _: ours.sign(path, api, method, {"symbol": "BTCUSDT"}), times)
    bare = timed(lambda _: theirs.sign(path, api, method, {"symbol": "BTCUSDT"}), times)
    (p50, p99), (peer, _) = percentiles(taken), percentiles(bare)
    return Row(WHAT[kind], p50, "ms", TARGETS.get(kind, ""), peer, "ccxt with the secret in memory", p99)


# Where each has its orders placed, as ccxt names it.
PATHS: dict[str, tuple[str, list[str], str]] = {
    "kraken": ("AddOrder", ["private"], "POST"),
    "backpack": ("api/v1/order", ["private"], "POST"),
    "bybit": ("v5/order/create", ["private"], "POST"),
    "coinbase": ("brokerage/orders", ["v3", "private"], "POST"),
    "aster": ("v3/order", ["fapiPrivate"], "POST"),
}


def rows() -> list[Row]:
    """An order's way, and one row for each kind of signature."""
    say("custody: signing")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        create_token(folder / "token", "bench", Secret("benchmark so pin"), PIN)
        with Token.open(folder / "token", "bench", PIN, writable=True) as token:
            token.generate_ed25519(b"venue", "venue")
            return [orders(token, folder / "desk"), *(others(token, kind) for kind in KINDS)]
