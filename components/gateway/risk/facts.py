"""Everything that one decision rests on, as plain values.

- `Caller` is who asks, for an order or a cancellation; `Order` is what is asked; `Facts` are both and the world.
- House rules are asked about `Caller` and `Order` alone: limits and freshness are no matter of theirs.
- Ages are ns.  None means "not known", which denies.
"""

from __future__ import annotations

from decimal import Decimal

import msgspec

from tallystick.schemas.limits import Limits
from tallystick.schemas.orders import Denial
from tallystick.schemas.trust import Instrument


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks, where, and whether it may ask now."""

    strategy: str
    venue: str
    symbol: str
    ready: bool  # the gateway has applied the history
    error: Denial | None  # why trust root or session list do not vouch for the session; None: they do
    list_age: int | None
    intent_age: int
    duplicate: bool


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked, what it is worth, and what the strategy would have if all that is open filled."""

    side: str
    type: str
    tif: str
    qty: Decimal
    price: Decimal | None
    deviation_bps: int | None
    notional: Decimal | None
    # this order included
    open_notional: Decimal | None
    position_notional: Decimal | None
    gross_notional: Decimal | None
    reducing: bool


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the decision on an order rests on."""

    caller: Caller
    order: Order
    instrument: Instrument
    limits: Limits
    # asset, what the order counts in it as custody counts, and the operator's cap per order (None: none is signed)
    caps: tuple[tuple[str, Decimal, Decimal | None], ...]
    lease: tuple[int, int] | None  # an operator's lease for the venue: from, until
    armed: bool
    custody: bytes | None
    heartbeat_age: int | None
    tripped: tuple[str, ...]
    feed: str
    data_age: int | None
    messages_left: int
