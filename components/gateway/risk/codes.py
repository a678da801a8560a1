"""The codes of denials and what they mean; docs/denial-codes.md is kept equal by a test."""

from __future__ import annotations

from typing import Final

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
