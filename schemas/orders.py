"""The order's way: signals, intents, decisions with their permits, order events, fills, positions.

Venue, symbol and strategy stand in the subject alone, which the seal signs; nothing repeats them.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Literal

import msgspec

from tallystick.schemas.amounts import EXACT
from tallystick.schemas.errors import Malformed
from tallystick.schemas.event import (
    Boot,
    Count,
    Event,
    Hash,
    Id,
    Int64,
    check_decimal,
    check_length,
    check_positive,
)
from tallystick.schemas.ids import ID_BYTES
from tallystick.schemas.merkle import HASH_BYTES

Side = Literal["buy", "sell"]
OrderType = Literal["limit", "market"]
TimeInForce = Literal["GTC", "IOC", "FOK"]


class Signal(Event, frozen=True, array_like=True, kw_only=True, tag="signal/1"):
    """What a strategy thinks: `[…, name, value, text]`."""

    name: str
    value: Decimal
    text: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_decimal(self.value, "value")


class Intent(Event, frozen=True, array_like=True, kw_only=True, tag="order.intent/1"):
    """A strategy asks for an order: `[…, side, type, qty, price, tif]`; `price` is nil for a market order.

    Its `id` names the order everywhere.
    """

    side: Side
    type: OrderType
    qty: Decimal
    price: Decimal | None = None
    tif: TimeInForce = "GTC"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self.qty, "qty")
        if self.type == "limit":
            if self.price is None:
                raise Malformed("INTENT_PRICE", "a limit order needs a price")
            check_positive(self.price, "price")
        elif self.price is not None:
            raise Malformed("INTENT_PRICE", "a market order has no price")


class CancelIntent(Event, frozen=True, array_like=True, kw_only=True, tag="order.cancel/1"):
    """A strategy asks to cancel one of its orders: `[…, intent_id]`."""

    intent_id: Id


class Denial(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One reason for a denial: `[code, text]`; text is the cause with its numbers."""

    code: str
    text: str


class VenueOrder(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The exact order in the venue's own strings.

    `[symbol, side, type, time_in_force, quantity, price, client_order_id]`; `time_in_force` and
    `price` are "" for a market order.  For Binance spot: `XRPETH`, `BUY`, `LIMIT`, `GTC`, …
    """

    symbol: str
    side: str
    type: str
    time_in_force: str
    quantity: str
    price: str
    client_order_id: str

    def amounts(self) -> tuple[Decimal, Decimal | None]:
        """Quantity and price (None for a market order) as numbers.  Raises `Malformed` unless plain and above zero."""
        return _plain(self.quantity, "quantity"), _plain(self.price, "price") if self.price else None


def _plain(text: str, what: str) -> Decimal:
    # `Decimal` alone would also take NaN, infinities and exponents, which break whoever counts with them.
    if len(text) > 40 or not text.isascii() or not text.replace(".", "", 1).isdigit():
        raise Malformed("ORDER_AMOUNT", f"{what} is {text[:48]!r}, expected a plain decimal")
    value = Decimal(text)
    check_positive(value, what)
    return value


class Permit(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What custody may sign, once: `[account, order, instrument_hash, audience, expires_at]`.

    `account` names the venue account; `instrument_hash` is the SHA-256 of the operator-signed
    instrument record; `audience` is the boot id of the custody process that it is meant for;
    `expires_at` is Unix nanoseconds, at most `MAX_PERMIT_NS` after the decision was sealed.
    """

    account: str
    order: VenueOrder
    instrument_hash: Hash
    audience: Boot
    expires_at: Int64


class Decision(Event, frozen=True, array_like=True, kw_only=True, tag="order.decision/1"):
    """The gateway's answer to an intent.

    `[…, verdict, intent_id, intent_hash, trust_root, denials, policy_hash, policies, permit]`

    - `verdict`: `permit` carries a permit and no denial; `deny` carries denials and no permit;
      `cancel` passes a `CancelIntent` on and carries neither.
    - `intent_hash`: the RFC 6962 leaf hash of the sealed message that held the intent.
    - `trust_root`: SHA-256 of the signed document by whose limits, caps, instruments and house rules it was made.
    - `policy_hash`: SHA-256 of policy and schema text; `policies`: ids of the determining policies.
    """

    verdict: Literal["permit", "deny", "cancel"]
    intent_id: Id
    intent_hash: Hash
    trust_root: Hash
    denials: tuple[Denial, ...] = ()
    policy_hash: bytes = b""
    policies: tuple[str, ...] = ()
    permit: Permit | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_length(self.policy_hash, HASH_BYTES, "policy_hash")
        if (self.verdict == "permit") != (self.permit is not None):
            raise Malformed("DECISION", f"verdict {self.verdict} with permit={self.permit is not None}")
        if (self.verdict == "deny") != bool(self.denials):
            raise Malformed("DECISION", f"verdict {self.verdict} with {len(self.denials)} denials")


OrderState = Literal[
    "submitting",  # durable before anything is sent
    "accepted",  # the venue acknowledged it
    "rejected",  # the venue refused it; final
    "unknown",  # no answer; being resolved by asking the venue
    "void",  # never reached the venue (permit expired, custody refused, venue says not found after the window); final
    "closed",  # the venue reports it filled, cancelled or expired; final
]


class OrderEvent(Event, frozen=True, array_like=True, kw_only=True, tag="order.event/1"):
    """What happened to an order: `[…, intent_id, decision_id, client_order_id, state, venue_order_id, status, code, text, executed]`.

    `status` is the venue's own word (`NEW`, `FILLED`, `CANCELED` …), `code` and `text` say why it was
    refused or voided, `decision_id` is empty where no decision is known, `executed` is the filled quantity known to execution (nil if unknown).
    """

    intent_id: Id
    decision_id: bytes
    client_order_id: str
    state: OrderState
    venue_order_id: str = ""
    status: str = ""
    code: str = ""
    text: str = ""
    executed: Decimal | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_length(self.decision_id, ID_BYTES, "decision_id")
        if self.executed is not None:
            check_decimal(self.executed, "executed")
            if self.executed < 0:
                raise Malformed("DECIMAL_SIGN", f"executed must not be below zero, got {self.executed}")


class Fill(Event, frozen=True, array_like=True, kw_only=True, tag="fill/1"):
    """One execution reported by the venue's user stream.

    `[…, intent_id, client_order_id, venue_order_id, trade_id, side, price, qty, commission,
    commission_asset, maker, time]`; `intent_id` is empty where no permit is known for it.  The venue took `commission`
    out of what the account holds of `commission_asset`: a purchase whose commission is in the base leaves less than `qty`.
    """

    intent_id: bytes
    client_order_id: str
    venue_order_id: str
    trade_id: Int64
    side: Side
    price: Decimal
    qty: Decimal
    commission: Decimal
    commission_asset: str
    maker: bool
    time: Int64

    def __post_init__(self) -> None:
        super().__post_init__()
        check_length(self.intent_id, ID_BYTES, "intent_id")
        check_positive(self.price, "price")
        check_positive(self.qty, "qty")
        check_decimal(self.commission, "commission")


def moved(side: Side, qty: Decimal, base: str, commission: Decimal, commission_asset: str) -> Decimal:
    """The signed base quantity by which a fill changes what can be sold."""
    signed = qty if side == "buy" else -qty
    return EXACT.subtract(signed, commission) if commission_asset == base else signed


class Fee(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Commission in one asset: `[asset, amount]`."""

    asset: str
    amount: Decimal

    def __post_init__(self) -> None:
        check_decimal(self.amount, "fee")


class Position(Event, frozen=True, array_like=True, kw_only=True, tag="position/1"):
    """A strategy's position in one instrument: `[…, qty, average_price, realized, fills, fees, other_fees]`.

    - `qty`: signed base quantity that can be sold: commission that the venue took in the base is not in it.
    - `average_price`: of the open quantity, in the quote, without fees; 0 when flat.
    - `realized`: profit in the quote before fees (gross); `fills`: the number applied so far.
    - `fees`: commission in the quote: what was taken in it, and what was taken in the base at its fill's price.
    - `other_fees`: commission in any other asset, each in its own units, by name; they are not in `fees`.
    """

    qty: Decimal
    average_price: Decimal
    realized: Decimal
    fills: Count
    fees: Decimal = Decimal(0)
    other_fees: tuple[Fee, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for value, what in (
            (self.qty, "qty"),
            (self.average_price, "average_price"),
            (self.realized, "realized"),
            (self.fees, "fees"),
        ):
            check_decimal(value, what)
        assets = [fee.asset for fee in self.other_fees]
        if assets != sorted(set(assets)):
            raise Malformed("POSITION_FEES", "other_fees must name each asset once, by name")

    @property
    def net(self) -> Decimal:
        """Profit in the quote after fees; `other_fees` come on top."""
        return EXACT.subtract(self.realized, self.fees)


class Balance(Event, frozen=True, array_like=True, kw_only=True, tag="balance/1"):
    """An account's balance of one asset at the venue: `[…, free, locked]`."""

    free: Decimal
    locked: Decimal

    def __post_init__(self) -> None:
        super().__post_init__()
        check_decimal(self.free, "free")
        check_decimal(self.locked, "locked")


class Corrected(Event, frozen=True, array_like=True, kw_only=True, tag="order.correction/1"):
    """An operator sets right what the record says of an order or a position: `[…, note]` (see `trust.Correction`)."""

    note: str
