"""The paper exchange's own side of a deployment: its instruments, what the account has, and who may do what there."""

from __future__ import annotations

import base64
import secrets as entropy
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from tallystick.infra.nats import topology
from tallystick.runtime.deployment.config import MASTER, Config

_API_KEY_ALPHABET: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"

# What the paper exchange gives the account to play with, of quote assets alone: what a strategy sells it must have bought.
# So many times the asset's hourly cap, and of what most people trade in no less than this.
_BALANCES: Final = {"USDT": Decimal(100_000), "ETH": Decimal(100)}
_BALANCE_CAPS: Final = 10
_MAX_BALANCE: Final = Decimal(10**15)


# Queries of its own orders come under "read" at the venue; custody signs no other reading request.
API_PERMISSIONS: Final = {
    "custody": ["read", "trade"],
    "portfolio": ["read"],
    topology.KEYMASTER: ["read", "manage"],
}


def paper_exchange(config: Config, api_keys: Mapping[str, tuple[str, bytes]]) -> dict[str, Any]:
    """What its file holds: instruments, balances, and the API keys with no more permissions than they need.

    `api_keys`: of each component, its API key and the raw public key that goes with it.
    """
    keys = [
        {
            "api_key": api_key,
            "public_key": base64.b64encode(public).decode(),
            "account": MASTER if component == topology.KEYMASTER else config.venue.account,
            "permissions": API_PERMISSIONS[component],
            "ips": ["127.0.0.1"],
            # Execution sees the name of the key that signs for it, and must not read balances with it.
            "listen_keys": False,
        }
        for component, (api_key, public) in api_keys.items()
    ]
    instruments = [
        {
            "symbol": i.venue_symbol,
            "name": i.symbol,
            "base": i.base,
            "quote": i.quote,
            "tick": f"{i.tick:f}",
            "step": f"{i.step:f}",
            "min_notional": f"{i.min_notional:f}",
        }
        for i in config.instruments
    ]
    quotes = {i.quote for i in config.instruments}
    given = dict(_BALANCES)
    for cap in config.caps:
        if cap.asset in quotes:
            wanted = min(cap.max_hourly * _BALANCE_CAPS, _MAX_BALANCE)
            given[cap.asset] = max(wanted, given.get(cap.asset, Decimal(0)))
    account = config.venue.account
    document: dict[str, Any] = {
        "instruments": instruments,
        "accounts": {account: {asset: f"{amount:.8f}" for asset, amount in given.items()}},
        "keys": keys,
    }
    if config.rotation is not None:
        document["accounts"] |= {MASTER: {}}
        document["sub_accounts"] = {config.rotation.sub_account: {"master": MASTER, "account": account}}
    return document


def new_api_key() -> str:
    """As the exchange would make one."""
    return "".join(entropy.choice(_API_KEY_ALPHABET) for _ in range(64))
