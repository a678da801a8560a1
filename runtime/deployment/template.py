"""`deployment.toml` as `tallystick init` writes it: a paper-trading deployment that starts as it is."""

from __future__ import annotations

import json
import secrets as entropy
import socket
from collections.abc import Mapping, Sequence
from typing import Final

from tallystick.runtime.deployment.config import StrategyConfig

DEFAULT_STRATEGIES: Final = (
    StrategyConfig(
        name="momentum",
        module="tallystick.components.strategy.examples.momentum",
        instruments=("XRP/ETH", "BTC/USDT"),
    ),
)
# Below Linux's ephemeral ports (32768 on), so that no outgoing connection takes one between two starts.
PORTS: Final = range(20_000, 32_000)

DEFAULT_TEMPLATE: Final = """\
# What runs in this deployment.  Exact numbers are text.  Venue, instruments, limits, caps and who trades what count as
# the operator signed them (trust/root-*.note): after a change here run `tallystick admit`.

deployment = {deployment}
host = "127.0.0.1"

[broker]
port = {broker}

[authority]
port = {authority}

[vault]
port = {vault}

[venue]
name = "paper"
kind = "paper"
host = "127.0.0.1:{venue}"
account = "main"

# market_price: what an order counts at in the caps unless it names a higher price; well above any plausible price.
[[instruments]]
venue = "paper"
symbol = "XRP/ETH"
venue_symbol = "XRPETH"
base = "XRP"
quote = "ETH"
tick = "0.00000001"
step = "1"
min_notional = "0.005"
market_price = "0.01"

[[instruments]]
venue = "paper"
symbol = "BTC/USDT"
venue_symbol = "BTCUSDT"
base = "BTC"
quote = "USDT"
tick = "0.01"
step = "0.00001"
min_notional = "10"
market_price = "500000"

# Per strategy and per quote asset.  [limits.quote.ASSET], [limits.strategy.NAME] and [limits.strategy.NAME.quote.ASSET]
# override single lines.
[limits]
max_notional = "5000"
max_qty = "10000"
max_open_notional = "20000"
max_position_notional = "20000"
max_gross_notional = "50000"
collar_bps = 200
messages_per_second = 10
burst = 20
stale_ms = 5000

# What custody never exceeds for the account, whatever the gateway permits.  An order counts in both its assets: its
# quantity in the base; in the quote its worth, at market_price or its own price, whichever is higher.
[[caps]]
account = "main"
asset = "ETH"
max_order = "10"
max_hourly = "500"

[[caps]]
account = "main"
asset = "XRP"
max_order = "10000"
max_hourly = "500000"

[[caps]]
account = "main"
asset = "USDT"
max_order = "10000"
max_hourly = "500000"

[[caps]]
account = "main"
asset = "BTC"
max_order = "0.1"
max_hourly = "10"

[market_data]
source = "synthetic"
seed = 1
speed = "1"
"""
# What `tallystick init --rotation` adds.
ROTATION_TEMPLATE: Final = """
# The API keys at the venue are changed by the master account's key, each every so many seconds.
[rotation]
sub_account = "trading@paper.invalid"
addresses = ["127.0.0.1"]
every_s = 86400
"""


def render(template: str, deployment: str, strategies: Sequence[StrategyConfig], tokens: Mapping[str, str]) -> str:
    """`template` filled in; `tokens` are the URIs of those that are named.  A JSON string is a TOML basic string."""
    places = dict(zip(("broker", "authority", "vault", "venue"), _free_ports(4), strict=True))
    text = template.format(deployment=json.dumps(deployment), **places)
    for label, uri in tokens.items():
        text += f"\n[tokens.{label}]\nuri = {json.dumps(uri)}\n"
    for strategy in strategies:
        text += f"\n[[strategies]]\nname = {json.dumps(strategy.name)}\nmodule = {json.dumps(strategy.module)}\n"
        text += f"instruments = {json.dumps(strategy.instruments)}\n"
        if strategy.params:
            text += "\n[strategies.params]\n"
            text += "".join(f"{json.dumps(k)} = {json.dumps(v)}\n" for k, v in strategy.params.items())
    return text


def _free_ports(count: int) -> list[int]:
    """Ports that nothing listens on now."""
    found: list[int] = []
    while len(found) < count:
        port = entropy.choice(PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found
