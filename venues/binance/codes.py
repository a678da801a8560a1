"""Binance spot's numbers and words, each of them once.

Sources: https://developers.binance.com/docs/binance-spot-api-docs, "Errors", "Enums" (order status), "REST API:
General API information" (HTTP return codes), "Account endpoints" and "WebSocket API".
"""

from __future__ import annotations

import re
from typing import Any, Final

from tallystick.schemas.bounds import NS_PER_MS
from tallystick.venues import VALID_NS

API: Final = "/api/v3"
PING: Final = f"{API}/ping"
FEED: Final = "binance"

# --- requests ----------------------------------------------------------------------------------------

# What custody signs moves money and is valid for as long as the port allows; what only reads has Binance's default.
RECV_WINDOW_MS: Final = VALID_NS // NS_PER_MS
READ_WINDOW_MS: Final = 5_000
# Enough to state the order's fate, without the fills, which are portfolio's.
RESPONSE_TYPE: Final = "RESULT"
ORDER_TYPES: Final = ("LIMIT", "MARKET")
# Binance allows 1 to 36 of `.A-Z:/a-z0-9_-`; ours are a subset, and `x-` marks broker ids.
CLIENT_ORDER_ID: Final = re.compile(r"(?!x-)[A-Za-z0-9_-]{8,36}")
# Letters of any script but small Latin ones: 币安人生USDT is one.
SYMBOL: Final = re.compile(r"[^\W_a-z]{2,32}")
# What may be asked for, by operation.  Anything else (withdrawals, transfers, accounts) is never signed by custody.
ENDPOINTS: Final[dict[str, tuple[str, str]]] = {
    "order": ("POST", f"{API}/order"),
    "cancel": ("DELETE", f"{API}/order"),
    "cancel_all": ("DELETE", f"{API}/openOrders"),
    "query": ("GET", f"{API}/order"),
    "open_orders": ("GET", f"{API}/openOrders"),
}
# The most rows of one answer of `myTrades`, and the longest span between its startTime and endTime.
MAX_TRADES: Final = 1_000
MAX_SPAN_MS: Final = 24 * 3_600_000

# Request weight that an address may use in a minute, and what requests weigh that do not weigh 1.
WEIGHT_MINUTE: Final = 6_000
WEIGHTS: Final = {
    f"GET {API}/account": 20,
    f"GET {API}/myTrades": 20,
    f"GET {API}/order": 4,
    f"GET {API}/openOrders": 6,
}
USED_WEIGHT: Final = "X-MBX-USED-WEIGHT-1M"

# --- answers -----------------------------------------------------------------------------------------

FINAL_STATUS: Final = frozenset({"FILLED", "CANCELED", "REJECTED", "EXPIRED", "EXPIRED_IN_MATCH"})
# Too many requests; and banned for having gone on nevertheless.
TOO_MANY: Final = 429
BANNED: Final = 418
# How long to stay away (seconds) where the venue does not say it: its bans last from two minutes to three days.
PAUSE_S: Final = {TOO_MANY: 60, BANNED: 120}
BANNED_UNTIL: Final = re.compile(r"banned until ([0-9]{13})")
# Revoked, unknown, from a wrong address, not allowed to do this, or a wrong signature.
CREDENTIAL_ERRORS: Final = frozenset({-1002, -1022, -2014, -2015})
CLOCK_ERROR: Final = -1021
# "Status unknown", in several words.
UNKNOWN_ERRORS: Final = frozenset({-1000, -1001, -1006, -1007})
NOT_FOUND: Final = -2013
NOTHING_TO_CANCEL: Final = -2011
# An order with our id is there already: no refusal, it is asked for.
DUPLICATE: Final = "Duplicate order sent."


def weight(method: str, path: str) -> int:
    """What a request weighs."""
    return WEIGHTS.get(f"{method} {path}", 1)


def socket_host(host: str, *, paper: bool) -> str:
    """Where the WebSocket API is: Binance has it on a host of its own (`ws-api.binance.com`), the paper exchange not."""
    return host if paper else f"ws-api.{host.removeprefix('api.')}"


def feed_urls(host: str) -> dict[str, Any]:
    """Where ccxt finds the public market data of a paper exchange at `host`."""
    rest = f"https://{host}"
    return {"public": f"{rest}{API}", "v1": f"{rest}/api/v1", "ws": {"spot": f"wss://{host}/ws"}}
