"""Everything that one decision rests on, as plain values: what the controls and the policy are asked with."""

from __future__ import annotations

from decimal import Decimal

import msgspec

from tallystick.components.gateway.risk.amounts import ZERO
from tallystick.components.gateway.risk.limits import Limits
from tallystick.schemas.orders import Denial
from tallystick.schemas.trust import Instrument


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that one decision rests on.  Ages are ns; None means "not known", which denies."""

    strategy: str
    venue: str
    symbol: str
    limits: Limits
    ready: bool
    # who asks
    caller_error: Denial | None  # why trust root or session list do not vouch for the session; None: they do
    list_age: int | None
    intent_age: int
    duplicate: bool
    # the order; nothing of it for a cancellation
    side: str = ""
    type: str = ""
    tif: str = ""
    qty: Decimal = ZERO
    price: Decimal | None = None
    instrument: Instrument | None = None
    notional: Decimal | None = None
    cap: Decimal | None = None  # the operator's cap per order; None: the trust root names none
    cap_notional: Decimal | None = None  # as custody counts it: a market order at the record's market price
    # the world
    lease: tuple[int, int] | None = None  # an operator's lease for the venue: from, until
    armed: bool = False
    custody: bytes | None = None
    heartbeat_age: int | None = None
    tripped: tuple[str, ...] = ()
    feed: str = ""
    data_age: int | None = None
    deviation_bps: int | None = None
    messages_left: int = 0
    # what the strategy has, this order included
    open_notional: Decimal | None = None
    position_notional: Decimal | None = None
    gross_notional: Decimal | None = None
    reducing: bool = False
