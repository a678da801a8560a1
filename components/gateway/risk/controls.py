"""The controls on orders: facts in, denials out.

- A control is a pure function of `Facts`, or of `Caller`: a `Denial`, or None where it does not object.
- A fact that is not known (None) denies.  Every control allows at its limit and denies beyond it.
- `CALLER` holds for orders and cancellations, `ORDER` for orders.  All of them are asked, in this order, so a
  decision names every reason.
- Money is Decimal in an exact context: what cannot be computed exactly raises, nothing is rounded.
- Money limits hold per strategy and *per quote asset*.

To add a control:

1. give its code, meaning and remedy in `schemas.codes.gateway`, from which docs/denial-codes.md is made;
2. a new number: a field of `Limits` (`limits`), where an operator sets it per strategy; a bound that other
   processes keep too stands in `schemas.bounds`;
3. a new fact: a field in `facts`, None while unknown; the gateway fills it (`decide`, `valuation`);
4. write the function here, text as "what is, limit=what may be", and put it in `ORDER` or `CALLER`;
5. add what it allows and the least that it denies to `MEASURED` in tests/unit/test_gateway_risk.py.

Sources of the controls: MiFID II RTS 6 (Delegated Regulation (EU) 2017/589) articles 15 to 17, SEC
Rule 15c3-5, FIA best practices for automated trading risk controls.
"""

from __future__ import annotations

import decimal
from collections.abc import Callable
from decimal import Decimal
from typing import Final

from tallystick.components.gateway.risk.facts import Caller, Facts
from tallystick.schemas.amounts import EXACT
from tallystick.schemas.bounds import (
    MAX_HEARTBEAT_AGE_NS,
    MAX_INTENT_AGE_NS,
    MAX_LIST_AGE_NS,
    MAX_SKEW_NS,
    NS_PER_MS,
)
from tallystick.schemas.orders import Denial


def check_caller(caller: Caller) -> list[Denial]:
    """The denials of a caller, whatever it asks for; empty means that no control objects."""
    return [denial for control in CALLER if (denial := control(caller)) is not None]


def check(facts: Facts) -> list[Denial]:
    """All denials of an order; empty means that no control objects."""
    with decimal.localcontext(EXACT):
        return check_caller(facts.caller) + [denial for control in ORDER if (denial := control(facts)) is not None]


def unknown_instrument(caller: Caller) -> Denial:
    """The denial of an order that there are no facts about: the operator signed no such instrument."""
    where = f"{caller.symbol} at {caller.venue}"
    return _denial("UNKNOWN_INSTRUMENT", f"{where}, limit=the trust root's instruments")


# --- who asks -------------------------------------------------------------------------------------


def session(caller: Caller) -> Denial | None:
    """The authority's list is fresh, and it and the trust root vouch for the session."""
    if caller.list_age is None or caller.list_age > MAX_LIST_AGE_NS:
        return _denial("SESSIONS_STALE", f"age={_age(caller.list_age)}, limit={_age(MAX_LIST_AGE_NS)}")
    return caller.error


def intent_age(caller: Caller) -> Denial | None:
    """The intent is of now, and not of a time before the gateway knew what is open."""
    if not caller.ready:
        return _denial("STALE_INTENT", "sent before the gateway had applied the history, limit=after it")
    if not -MAX_SKEW_NS <= caller.intent_age <= MAX_INTENT_AGE_NS:
        bounds = f"{_age(-MAX_SKEW_NS)} to {_age(MAX_INTENT_AGE_NS)}"
        return _denial("STALE_INTENT", f"age={_age(caller.intent_age)}, limit={bounds}")
    return None


def duplicate(caller: Caller) -> Denial | None:
    """An intent is decided once."""
    if caller.duplicate:
        return _denial("DUPLICATE_INTENT", "id was decided before, limit=one decision an id")
    return None


# --- may anybody trade now ------------------------------------------------------------------------


def armed(facts: Facts) -> Denial | None:
    """An operator's lease lets execution trade at the venue now."""
    if facts.armed:
        return None
    if facts.lease is None:
        return _denial("NOT_ARMED", f"no lease for {facts.caller.venue}, limit=an operator's lease")
    return _denial("LEASE_EXPIRED", f"not held now, limit=from {facts.lease[0]} until {facts.lease[1]} ns")


def custody_known(facts: Facts) -> Denial | None:
    """There is one custody process that a permit can be made out to."""
    if facts.custody is None:
        return _denial("CUSTODY_UNKNOWN", "no single live custody process, limit=exactly one")
    return None


def heartbeat(facts: Facts) -> Denial | None:
    """The breaker is alive."""
    if facts.heartbeat_age is None or facts.heartbeat_age > MAX_HEARTBEAT_AGE_NS:
        text = f"age={_age(facts.heartbeat_age)}, limit={_age(MAX_HEARTBEAT_AGE_NS)}"
        return _denial("BREAKER_HEARTBEAT_MISSING", text)
    return None


def not_tripped(facts: Facts) -> Denial | None:
    """No breaker that covers the order is tripped."""
    if facts.tripped:
        return _denial("BREAKER_TRIPPED", f"scope={' '.join(facts.tripped)}, limit=none tripped")
    return None


# --- the market -----------------------------------------------------------------------------------


def feed_live(facts: Facts) -> Denial | None:
    """The instrument's feed is live."""
    if facts.feed != "live":
        return _denial("FEED_NOT_LIVE", f"feed={facts.feed or 'unknown'}, limit=live")
    return None


def market_data(facts: Facts) -> Denial | None:
    """The last trade is young enough to measure a price against."""
    most = facts.limits.stale_ms
    if facts.data_age is None or facts.data_age > most * NS_PER_MS:
        return _denial("MARKET_DATA_STALE", f"age={_age(facts.data_age)}, limit={most} ms")
    return None


def collar(facts: Facts) -> Denial | None:
    """The price is near the last trade, in either direction."""
    most = facts.limits.collar_bps
    if facts.order.deviation_bps is None or facts.order.deviation_bps > most:
        seen = "unknown" if facts.order.deviation_bps is None else f"{facts.order.deviation_bps} bps"
        return _denial("PRICE_OUTSIDE_COLLAR", f"deviation={seen}, limit={most} bps")
    return None


# --- the order by itself --------------------------------------------------------------------------


def tick(facts: Facts) -> Denial | None:
    """The price is one that the venue knows."""
    if facts.order.price is not None and facts.order.price % facts.instrument.tick:
        text = f"price={facts.order.price:f} {facts.instrument.quote}, limit=multiples of {facts.instrument.tick:f}"
        return _denial("TICK_SIZE", text)
    return None


def lot(facts: Facts) -> Denial | None:
    """The quantity is one that the venue knows."""
    if facts.order.qty <= 0 or facts.order.qty % facts.instrument.step:
        text = f"quantity={facts.order.qty:f} {facts.instrument.base}, limit=multiples of {facts.instrument.step:f}"
        return _denial("LOT_SIZE", text)
    return None


def quantity(facts: Facts) -> Denial | None:
    """The quantity is within the strategy's limit."""
    most = facts.limits.max_qty
    if facts.order.qty > most:
        text = f"quantity={facts.order.qty:f} {facts.instrument.base}, limit={most:f} {facts.instrument.base}"
        return _denial("QUANTITY_EXCEEDS_LIMIT", text)
    return None


def minimum(facts: Facts) -> Denial | None:
    """The order is worth enough for the venue."""
    least, quote = facts.instrument.min_notional, facts.instrument.quote
    if facts.order.notional is None or facts.order.notional < least:
        text = f"notional={_money(facts.order.notional, quote)}, limit={least:f} {quote}"
        return _denial("NOTIONAL_BELOW_MINIMUM", text)
    return None


def notional(facts: Facts) -> Denial | None:
    """The order is worth no more than the strategy's limit."""
    return _at_most(
        "NOTIONAL_EXCEEDS_LIMIT", "notional", facts.order.notional, facts.limits.max_notional, facts.instrument.quote
    )


def cap(facts: Facts) -> Denial | None:
    """The order is within the operator's caps, as custody counts it."""
    for asset, amount, most in facts.caps:
        if most is None:
            return _denial("ORDER_EXCEEDS_CAP", f"order={amount:f} {asset}, limit=no cap for {asset} is signed")
        if amount > most:
            return _denial("ORDER_EXCEEDS_CAP", f"order={amount:f} {asset}, limit={most:f} {asset}")
    return None


# --- what the strategy has, this order included ---------------------------------------------------


def message_rate(facts: Facts) -> Denial | None:
    """The strategy's throttle lets one more order pass."""
    limits = facts.limits
    if facts.messages_left < 1:
        text = f"no message left, limit={limits.messages_per_second}/s with bursts of {limits.burst}"
        return _denial("MESSAGE_RATE_EXCEEDED", text)
    return None


def open_notional(facts: Facts) -> Denial | None:
    """Open orders stay within the strategy's limit."""
    most = facts.limits.max_open_notional
    return _at_most("OPEN_NOTIONAL_EXCEEDS_LIMIT", "open", facts.order.open_notional, most, facts.instrument.quote)


def position(facts: Facts) -> Denial | None:
    """The instrument's position would stay within the strategy's limit."""
    most = facts.limits.max_position_notional
    return _at_most("POSITION_EXCEEDS_LIMIT", "position", facts.order.position_notional, most, facts.instrument.quote)


def gross(facts: Facts) -> Denial | None:
    """All that the strategy has would stay within its limit; what can only reduce a position passes."""
    if facts.order.reducing:
        return None
    most = facts.limits.max_gross_notional
    return _at_most("GROSS_EXPOSURE_EXCEEDS_LIMIT", "gross", facts.order.gross_notional, most, facts.instrument.quote)


CALLER: Final[tuple[Callable[[Caller], Denial | None], ...]] = (session, intent_age, duplicate)
ORDER: Final[tuple[Callable[[Facts], Denial | None], ...]] = (
    armed,
    custody_known,
    heartbeat,
    not_tripped,
    feed_live,
    market_data,
    collar,
    tick,
    lot,
    quantity,
    minimum,
    notional,
    cap,
    message_rate,
    open_notional,
    position,
    gross,
)


def _at_most(code: str, name: str, amount: Decimal | None, most: Decimal, quote: str) -> Denial | None:
    if amount is None or amount > most:
        return _denial(code, f"{name}={_money(amount, quote)}, limit={most:f} {quote}")
    return None


def _denial(code: str, text: str) -> Denial:
    return Denial(code=code, text=text)


def _money(amount: Decimal | None, quote: str) -> str:
    return "unknown" if amount is None else f"{amount:f} {quote}"


def _age(ns: int | None) -> str:
    return "unknown" if ns is None else f"{ns / NS_PER_MS:.3f} ms"
