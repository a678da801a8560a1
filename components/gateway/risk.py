"""Pre-trade risk controls: facts in, denials out; all state explicit, the clock an argument.

- `check` is a pure function of `Facts`.  A fact that is not known (None) denies.
- Every control allows at its limit and denies beyond it.  All of them are evaluated, so a decision
  names every reason.
- Money is Decimal in an exact context: what cannot be computed exactly raises, nothing is rounded.
- Money limits hold per strategy and *per quote asset*; amounts of different assets are never added.
- An order is reserved in full when its permit is made.  Fills move it from reservation to position;
  it is released by a final order event (after the fills that this event reports), or when its permit
  expired `PERMIT_GRACE_NS` ago and no submission of it was ever stored: execution sends nothing before
  its `submitting` event is durable.
- A market order is valued at the last trade plus the collar, the worst price that a limit order could
  have named.
- A position is the sum of fills; the portfolio's own statement replaces it once it counts at least as
  many fills.

Sources of the controls: MiFID II RTS 6 (Delegated Regulation (EU) 2017/589) articles 15 to 17, SEC
Rule 15c3-5, FIA best practices for automated trading risk controls.
"""

from __future__ import annotations

import decimal
from collections import OrderedDict
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, Final

import msgspec

from tallystick.schemas.bounds import (
    MAX_HEARTBEAT_AGE_NS,
    MAX_INTENT_AGE_NS,
    MAX_LIST_AGE_NS,
    MAX_MESSAGES,
    MAX_SKEW_NS,
    MESSAGE_BURST,
    MESSAGES_PER_SECOND,
    NS_PER_MS,
    SECOND,
)
from tallystick.schemas.errors import ConfigError, Malformed
from tallystick.schemas.event import check_positive
from tallystick.schemas.orders import Denial, Fill, OrderEvent, Position, Side
from tallystick.schemas.subjects import Subject, check_name
from tallystick.schemas.trust import Instrument

# 38 digits times 38 digits, with room for sums: no product of wire decimals is ever rounded.
EXACT: Final = decimal.Context(
    prec=120,
    traps=[decimal.Inexact, decimal.InvalidOperation, decimal.DivisionByZero, decimal.Overflow],
)
ZERO: Final = Decimal(0)
BPS: Final = 10_000

# Custody never signs after expiry, so a submission stored later than this cannot have reached a venue.
PERMIT_GRACE_NS: Final = 10 * SECOND
# Fills remembered per instrument against a second publication of the same trade.
FILLS_REMEMBERED: Final = 4096

# code -> what it means; docs/denial-codes.md is kept equal by a test
CODES: Final[dict[str, str]] = {
    "TRUST_ROOT_EXPIRED": "the trust root that the gateway runs with is not valid now",
    "SESSIONS_STALE": "the authority's session list is missing or older than 3 s",
    "SESSION_UNLISTED": "the authority's current list does not hold the session that sealed the intent",
    "SESSION_EXPIRED": "the session that sealed the intent has expired",
    "SESSION_REVOKED": "the session that sealed the intent, or its boot, was revoked or has ended",
    "STALE_INTENT": (
        "the intent, or the time in its id, is older than 3 s or lies ahead of the clock, "
        "or it was sent before a restarted gateway was ready"
    ),
    "DUPLICATE_INTENT": "an intent with this id was decided before",
    "UNKNOWN_INSTRUMENT": "the trust root has no such instrument at this venue",
    "UNKNOWN_ORDER": "the intent to cancel names no open order of this strategy and instrument",
    "NOT_ARMED": "no operator's lease lets execution trade at this venue",
    "LEASE_EXPIRED": "the operator's lease for execution is over or has not begun",
    "CUSTODY_UNKNOWN": "the session list does not name exactly one live custody process",
    "BREAKER_HEARTBEAT_MISSING": "the breaker was not heard for more than 1 s",
    "BREAKER_TRIPPED": "a breaker whose scope covers the order is tripped",
    "FEED_NOT_LIVE": "the instrument's feed is unknown, stale, reconnecting or has ended",
    "MARKET_DATA_STALE": "the instrument's last trade is missing (none since a gap, too) or older than the limit",
    "PRICE_OUTSIDE_COLLAR": "the limit price is too far from the last trade, in either direction",
    "TICK_SIZE": "the price is no multiple of the instrument's tick",
    "LOT_SIZE": "the quantity is no multiple of the instrument's step",
    "NOTIONAL_BELOW_MINIMUM": "price times quantity is below the instrument's minimum",
    "QUANTITY_EXCEEDS_LIMIT": "the order's quantity exceeds the strategy's limit",
    "NOTIONAL_EXCEEDS_LIMIT": "price times quantity exceeds the strategy's limit per order",
    "NOTIONAL_EXCEEDS_CAP": "the notional, as custody counts it, exceeds the operator's cap, or there is no cap",
    "MARKET_UNBOUNDED": "a market order where the instrument's record names no market price to count it at",
    "MESSAGE_RATE_EXCEEDED": "the strategy sends orders faster than its throttle allows",
    "OPEN_NOTIONAL_EXCEEDS_LIMIT": "the strategy's open orders in this quote asset would exceed its limit",
    "POSITION_EXCEEDS_LIMIT": "the position would exceed its limit if all open orders of this side filled",
    "GROSS_EXPOSURE_EXCEEDS_LIMIT": "positions and open orders in this quote asset would exceed the limit",
    "POLICY_DENIED": "a policy forbids it, or none permits it",
    "POLICY_ERROR": "a policy could not be evaluated for it",
}


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The limits of one strategy; money in quote units, `max_qty` in base units, each per order or per asset."""

    max_notional: Decimal
    max_qty: Decimal
    max_open_notional: Decimal
    max_position_notional: Decimal
    max_gross_notional: Decimal
    collar_bps: int = 200
    messages_per_second: int = MESSAGES_PER_SECOND
    burst: int = MESSAGE_BURST
    stale_ms: int = 5_000

    def __post_init__(self) -> None:
        for name in ("max_notional", "max_qty", "max_open_notional", "max_position_notional", "max_gross_notional"):
            check_positive(getattr(self, name), name)
        for name, most in (
            ("collar_bps", BPS),
            ("messages_per_second", MAX_MESSAGES),
            ("burst", MAX_MESSAGES),
            ("stale_ms", 86_400_000),
        ):
            number: int = getattr(self, name)
            if not 1 <= number <= most:
                raise Malformed("LIMIT", f"{name} must be 1 to {most}, got {number}")


class LimitBook:
    """The limits of every strategy, from the deployment's `[limits]` table."""

    __slots__ = ("_default", "_own")

    def __init__(self, default: Limits, own: Mapping[str, Limits] | None = None) -> None:
        self._default = default
        self._own = dict(own or {})

    @classmethod
    def parse(cls, table: Mapping[str, Any]) -> LimitBook:
        """From `{key: value, …, "strategy": {name: {key: value}}}`; a strategy's keys override the others.

        Money is text or integer, never a float.  Raises `ConfigError`.
        """
        default = {k: v for k, v in table.items() if k != "strategy"}
        own = table.get("strategy", {})
        if not isinstance(own, Mapping):
            raise ConfigError("LIMITS", "limits.strategy must be a table of tables")
        return cls(
            _limits("limits", default),
            {name: _limits(f"limits.strategy.{name}", _merge(name, default, keys)) for name, keys in own.items()},
        )

    def of(self, strategy: str) -> Limits:
        """The limits of `strategy`."""
        return self._own.get(strategy, self._default)


def _merge(name: str, default: Mapping[str, Any], keys: object) -> dict[str, Any]:
    if not isinstance(keys, Mapping):
        raise ConfigError("LIMITS", f"limits.strategy.{name} must be a table")
    try:
        check_name(name, "strategy")
    except Malformed as exc:
        raise ConfigError("LIMITS", f"limits.strategy: {exc.text}") from exc
    return {**default, **keys}


def _limits(where: str, keys: Mapping[str, Any]) -> Limits:
    wrong = [k for k, v in keys.items() if isinstance(v, float | bool)]
    if wrong:
        raise ConfigError("LIMITS", f'{where}.{wrong[0]}: write amounts as text, such as "0.5"')
    texts = {k: str(v) if isinstance(v, int) and k.startswith("max_") else v for k, v in keys.items()}
    try:
        return msgspec.convert(texts, Limits)
    except (msgspec.ValidationError, Malformed) as exc:
        raise ConfigError("LIMITS", f"{where}: {exc}") from exc


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


def check_caller(facts: Facts) -> list[Denial]:
    """The controls on who asks: they hold for orders and cancellations."""
    out: list[Denial] = []
    if facts.list_age is None or facts.list_age > MAX_LIST_AGE_NS:
        out.append(_denial("SESSIONS_STALE", f"age={_age(facts.list_age)}, limit={_age(MAX_LIST_AGE_NS)}"))
    elif facts.caller_error is not None:
        out.append(facts.caller_error)
    if not facts.ready:
        out.append(_denial("STALE_INTENT", "sent before the gateway had applied the history, limit=after it"))
    elif not -MAX_SKEW_NS <= facts.intent_age <= MAX_INTENT_AGE_NS:
        bounds = f"{_age(-MAX_SKEW_NS)} to {_age(MAX_INTENT_AGE_NS)}"
        out.append(_denial("STALE_INTENT", f"age={_age(facts.intent_age)}, limit={bounds}"))
    if facts.duplicate:
        out.append(_denial("DUPLICATE_INTENT", "id was decided before, limit=one decision an id"))
    return out


def check(facts: Facts) -> list[Denial]:
    """All denials of an order, in a fixed order; empty means that no control objects."""
    out = check_caller(facts)
    limits, instrument = facts.limits, facts.instrument
    if instrument is None:
        out.append(
            _denial("UNKNOWN_INSTRUMENT", f"{facts.symbol} at {facts.venue}, limit=the trust root's instruments")
        )
        return out
    if not facts.armed:
        if facts.lease is None:
            out.append(_denial("NOT_ARMED", f"no lease for {facts.venue}, limit=an operator's lease"))
        else:
            out.append(_denial("LEASE_EXPIRED", f"not held now, limit=from {facts.lease[0]} until {facts.lease[1]} ns"))
    if facts.custody is None:
        out.append(_denial("CUSTODY_UNKNOWN", "no single live custody process, limit=exactly one"))
    if facts.heartbeat_age is None or facts.heartbeat_age > MAX_HEARTBEAT_AGE_NS:
        out.append(
            _denial("BREAKER_HEARTBEAT_MISSING", f"age={_age(facts.heartbeat_age)}, limit={_age(MAX_HEARTBEAT_AGE_NS)}")
        )
    if facts.tripped:
        out.append(_denial("BREAKER_TRIPPED", f"scope={' '.join(facts.tripped)}, limit=none tripped"))
    if facts.feed != "live":
        out.append(_denial("FEED_NOT_LIVE", f"feed={facts.feed or 'unknown'}, limit=live"))
    if facts.data_age is None or facts.data_age > limits.stale_ms * NS_PER_MS:
        out.append(_denial("MARKET_DATA_STALE", f"age={_age(facts.data_age)}, limit={limits.stale_ms} ms"))
    with decimal.localcontext(EXACT):
        out += _check_order(facts, instrument)
    if facts.messages_left < 1:
        out.append(
            _denial(
                "MESSAGE_RATE_EXCEEDED",
                f"no message left, limit={limits.messages_per_second}/s with bursts of {limits.burst}",
            )
        )
    out += _check_exposure(facts, instrument.quote)
    return out


def _check_order(facts: Facts, instrument: Instrument) -> list[Denial]:
    out: list[Denial] = []
    limits, quote = facts.limits, instrument.quote
    if facts.deviation_bps is None or facts.deviation_bps > limits.collar_bps:
        seen = "unknown" if facts.deviation_bps is None else f"{facts.deviation_bps} bps"
        out.append(_denial("PRICE_OUTSIDE_COLLAR", f"deviation={seen}, limit={limits.collar_bps} bps"))
    if facts.price is not None and facts.price % instrument.tick:
        out.append(_denial("TICK_SIZE", f"price={facts.price:f} {quote}, limit=multiples of {instrument.tick:f}"))
    if facts.qty <= 0 or facts.qty % instrument.step:
        out.append(
            _denial("LOT_SIZE", f"quantity={facts.qty:f} {instrument.base}, limit=multiples of {instrument.step:f}")
        )
    if facts.qty > limits.max_qty:
        out.append(
            _denial(
                "QUANTITY_EXCEEDS_LIMIT",
                f"quantity={facts.qty:f} {instrument.base}, limit={limits.max_qty:f} {instrument.base}",
            )
        )
    notional = facts.notional
    if notional is None or notional < instrument.min_notional:
        out.append(
            _denial(
                "NOTIONAL_BELOW_MINIMUM",
                f"notional={_money(notional, quote)}, limit={instrument.min_notional:f} {quote}",
            )
        )
    if notional is None or notional > limits.max_notional:
        out.append(
            _denial(
                "NOTIONAL_EXCEEDS_LIMIT", f"notional={_money(notional, quote)}, limit={limits.max_notional:f} {quote}"
            )
        )
    if facts.type == "market" and instrument.market_price <= 0:
        out.append(_denial("MARKET_UNBOUNDED", "type=market, limit=instruments whose record has a market_price"))
    elif facts.cap is None or facts.cap_notional is None or facts.cap_notional > facts.cap:
        limit = "no cap is signed" if facts.cap is None else f"{facts.cap:f} {quote}"
        out.append(_denial("NOTIONAL_EXCEEDS_CAP", f"notional={_money(facts.cap_notional, quote)}, limit={limit}"))
    return out


def _check_exposure(facts: Facts, quote: str) -> list[Denial]:
    limits = facts.limits
    out: list[Denial] = []
    for code, name, value, limit, free in (
        ("OPEN_NOTIONAL_EXCEEDS_LIMIT", "open", facts.open_notional, limits.max_open_notional, False),
        ("POSITION_EXCEEDS_LIMIT", "position", facts.position_notional, limits.max_position_notional, False),
        ("GROSS_EXPOSURE_EXCEEDS_LIMIT", "gross", facts.gross_notional, limits.max_gross_notional, facts.reducing),
    ):
        if not free and (value is None or value > limit):
            out.append(_denial(code, f"{name}={_money(value, quote)}, limit={limit:f} {quote}"))
    return out


def _denial(code: str, text: str) -> Denial:
    return Denial(code=code, text=text)


def _money(value: Decimal | None, quote: str) -> str:
    return "unknown" if value is None else f"{value:f} {quote}"


def _age(ns: int | None) -> str:
    return "unknown" if ns is None else f"{ns / NS_PER_MS:.3f} ms"


def notional(price: Decimal, qty: Decimal) -> Decimal:
    """Price times quantity, exactly."""
    return EXACT.multiply(price, qty)


def worst_price(last: Decimal, collar_bps: int) -> Decimal:
    """The last trade plus the collar: what a market order is valued at."""
    return EXACT.multiply(last, Decimal(BPS + collar_bps).scaleb(-4))


def deviation_bps(price: Decimal, last: Decimal) -> int:
    """How far `price` is from `last`, in basis points, rounded up."""
    with decimal.localcontext(EXACT):
        whole, rest = divmod(abs(price - last) * BPS, last)
        return int(whole) + bool(rest)


class Throttle:
    """A token bucket: `rate` messages a second, at most `burst` at once; full at `now` (ns).

    Credit is earned when the clock passes the latest time that was ever shown, birth included: in any stretch of
    calls at most `burst` and `rate` times what that latest time gained.  A clock that steps back earns nothing,
    neither on its way back nor on the way forth again.  Integers only: nothing is rounded, a part of a message is kept.
    """

    __slots__ = ("_burst", "_credit", "_latest", "_rate")

    def __init__(self, rate: int, burst: int, now: int) -> None:
        self._rate = rate
        self._burst = burst
        # One message costs SECOND; a nanosecond earns `rate`.
        self._credit = burst * SECOND
        self._latest = now

    def left(self, now: int) -> int:
        """How many messages may be sent at `now` (ns)."""
        latest = max(now, self._latest)
        self._credit = min(self._burst * SECOND, self._credit + (latest - self._latest) * self._rate)
        self._latest = latest
        return self._credit // SECOND

    def take(self) -> None:
        """Spend one message that `left` has shown."""
        self._credit -= SECOND


class OpenOrder(msgspec.Struct, kw_only=True):
    """A permitted order until it is final; owned and changed by `Exposure` alone.

    `price` is what a unit is reserved at; None (a market order found in history) reserves `whole`.
    """

    intent_id: bytes
    strategy: str
    venue: str
    symbol: str
    quote: str
    side: Side
    qty: Decimal
    price: Decimal | None
    whole: Decimal
    expires_at: int
    filled: Decimal = ZERO
    executed: Decimal | None = None  # once final: what the venue executed; released when the fills reach it

    @property
    def remaining(self) -> Decimal:
        """Base quantity that may still become a position."""
        goal = self.qty if self.executed is None else self.executed
        return max(ZERO, EXACT.subtract(goal, self.filled))

    @property
    def notional(self) -> Decimal:
        """Quote amount that is still reserved."""
        return self.whole if self.price is None else EXACT.multiply(self.price, self.remaining)


class _Holding:
    """A position: signed base quantity, the number of fills in it, and the last price seen for it."""

    __slots__ = ("fills", "mark", "qty")

    def __init__(self) -> None:
        self.qty = ZERO
        self.fills = 0
        self.mark: Decimal | None = None


class Exposure:
    """Open orders and positions of every strategy, from decisions, order events, fills and positions.

    Totals are kept as orders change, so that a decision costs the same however many are open.
    """

    __slots__ = ("_holdings", "_notionals", "_orders", "_quantities", "_trades", "_unsubmitted")

    def __init__(self) -> None:
        self._orders: dict[tuple[str, bytes], OpenOrder] = {}
        self._unsubmitted: OrderedDict[tuple[str, bytes], OpenOrder] = OrderedDict()
        self._notionals: dict[tuple[str, str], Decimal] = {}
        self._quantities: dict[tuple[str, str, str, str], Decimal] = {}
        self._holdings: dict[str, dict[tuple[str, str], tuple[str, _Holding]]] = {}
        self._trades: dict[tuple[str, str], OrderedDict[int, None]] = {}

    def reserve(self, order: OpenOrder) -> None:
        """Count a permitted order; one that is known already is left as it is."""
        key = (order.strategy, order.intent_id)
        if key not in self._orders:
            self._orders[key] = self._unsubmitted[key] = order
            self._count(order, EXACT.add)

    def order(self, strategy: str, intent_id: bytes) -> OpenOrder | None:
        """The open order of `strategy` with this intent id; not to be changed."""
        return self._orders.get((strategy, intent_id))

    def apply_event(self, strategy: str, event: OrderEvent) -> None:
        """Apply what execution says about an order."""
        order = self.order(strategy, event.intent_id)
        if order is None:
            return
        if event.state in {"rejected", "void"}:
            self._count(order, EXACT.subtract)
            self._drop(order)
        elif event.state == "closed":
            # Unknown executed quantity: all of it may still come as fills.
            executed = order.qty if event.executed is None else min(event.executed, order.qty)
            self._change(order, executed=executed)
        else:
            self._change(order)

    def apply_fill(self, subject: Subject, quote: str, fill: Fill) -> None:
        """Move a fill from reservation to position; a trade that was seen before has no effect."""
        trades = self._trades.setdefault((subject.venue, subject.symbol), OrderedDict())
        if fill.trade_id in trades:
            return
        trades[fill.trade_id] = None
        if len(trades) > FILLS_REMEMBERED:
            trades.popitem(last=False)
        holding = self._holding(subject, quote)
        holding.qty = (EXACT.add if fill.side == "buy" else EXACT.subtract)(holding.qty, fill.qty)
        holding.fills += 1
        holding.mark = fill.price
        order = self.order(subject.strategy, fill.intent_id)
        if order is not None:
            self._change(order, filled=EXACT.add(order.filled, fill.qty))

    def apply_position(self, subject: Subject, quote: str, position: Position) -> None:
        """Adopt the portfolio's statement unless it counts fewer fills than were seen here."""
        holding = self._holding(subject, quote)
        if position.fills >= holding.fills:
            holding.qty = position.qty
            holding.fills = position.fills
            if holding.mark is None and position.average_price > 0:
                holding.mark = position.average_price

    def expire(self, now: int) -> None:
        """Release permits that expired without a stored submission (see the module docstring)."""
        while self._unsubmitted:
            order = next(iter(self._unsubmitted.values()))
            if now <= order.expires_at + PERMIT_GRACE_NS:
                return
            self._count(order, EXACT.subtract)
            self._drop(order)

    def open_notional(self, strategy: str, quote: str) -> Decimal:
        """What the open orders of `strategy` in `quote` still reserve."""
        return self._notionals.get((strategy, quote), ZERO)

    def open_qty(self, strategy: str, venue: str, symbol: str, side: str) -> Decimal:
        """Base quantity of the strategy's open orders on one side of an instrument."""
        return self._quantities.get((strategy, venue, symbol, side), ZERO)

    def position(self, strategy: str, venue: str, symbol: str) -> Decimal:
        """Signed base quantity."""
        found = self._holdings.get(strategy, {}).get((venue, symbol))
        return ZERO if found is None else found[1].qty

    def positions_notional(self, strategy: str, quote: str, last: Mapping[tuple[str, str], Decimal]) -> Decimal | None:
        """Sum of absolute positions in `quote` at the last trades; None where one has no known price."""
        total = ZERO
        for key, (asset, holding) in self._holdings.get(strategy, {}).items():
            if asset == quote and holding.qty:
                price = last.get(key, holding.mark)
                if price is None:
                    return None
                total = EXACT.add(total, EXACT.multiply(EXACT.abs(holding.qty), price))
        return total

    def _holding(self, subject: Subject, quote: str) -> _Holding:
        own = self._holdings.setdefault(subject.strategy, {})
        return own.setdefault((subject.venue, subject.symbol), (quote, _Holding()))[1]

    def _change(self, order: OpenOrder, filled: Decimal | None = None, executed: Decimal | None = None) -> None:
        """Change an order that was submitted, as now is known; it is dropped once nothing of it remains."""
        self._count(order, EXACT.subtract)
        self._unsubmitted.pop((order.strategy, order.intent_id), None)
        if filled is not None:
            order.filled = filled
        if executed is not None:
            order.executed = executed
        if order.remaining == 0:
            self._drop(order)
        else:
            self._count(order, EXACT.add)

    def _drop(self, order: OpenOrder) -> None:
        key = (order.strategy, order.intent_id)
        self._orders.pop(key, None)
        self._unsubmitted.pop(key, None)

    def _count(self, order: OpenOrder, how: Callable[[Decimal, Decimal], Decimal]) -> None:
        """Add an order to the totals of its strategy, or subtract it; totals of zero take no memory."""
        quote = (order.strategy, order.quote)
        side = (order.strategy, order.venue, order.symbol, order.side)
        self._notionals[quote] = how(self._notionals.get(quote, ZERO), order.notional)
        self._quantities[side] = how(self._quantities.get(side, ZERO), order.remaining)
        if not self._notionals[quote]:
            del self._notionals[quote]
        if not self._quantities[side]:
            del self._quantities[side]
