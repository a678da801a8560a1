"""The bounds of time that several processes hold each other to, each once, with its reason.  Pure.

- What two processes must agree on stands here and nowhere else; what one process decides alone stands there.
- Times are integer nanoseconds.  Every bound allows at its value and refuses beyond it.
- Limits of money and rate are the deployment's (`[limits]`) and the operator's (caps in the trust root);
  here are only the defaults that two processes share.
"""

from __future__ import annotations

from typing import Final

NS_PER_MS: Final = 1_000_000
SECOND: Final = 1_000_000_000

# --- clocks --------------------------------------------------------------------------------------

# Clocks of one site agree to well below this; a statement further ahead is refused.
MAX_SKEW_NS: Final = SECOND
# So long a message that was stored may be sent again under its id; every stream knows its ids for longer (`topology`).
REPEATABLE_S: Final = 90

# --- who may act now -----------------------------------------------------------------------------

# The authority states its list every second: one may be lost, and what was revoked acts no longer than this.
MAX_LIST_AGE_NS: Final = 3 * SECOND
# The breaker beats four times a second: two may be lost, and a breaker that died stops orders within this.
MAX_HEARTBEAT_AGE_NS: Final = SECOND
# A session issued since then may be heard before its listing, which comes by another stream, …
FRESH_SESSION_NS: Final = 5 * SECOND
# … so what it sent waits this long for the listing, once: others queue behind it.
LISTING_NS: Final = 250 * NS_PER_MS
# Arming leases remembered: operators arm a few times a day; beyond it memory is under attack.
MAX_LEASES: Final = 16

# --- an order's way ------------------------------------------------------------------------------

# A strategy's wish is worth seconds: the market has moved on, and a kept intent is a replayed one.
MAX_INTENT_AGE_NS: Final = 3 * SECOND
# What the gateway gives: long enough for execution's queue and custody, too short to keep for a better moment.
PERMIT_NS: Final = 2 * SECOND
# What custody takes at most, whatever a gateway gives; a permit that execution does not know lived this long.
MAX_PERMIT_NS: Final = 10 * SECOND

# --- rates ---------------------------------------------------------------------------------------

# A strategy's orders where `[limits]` say nothing: the gateway's throttle, and what a burst is measured against.
MESSAGES_PER_SECOND: Final = 10
MESSAGE_BURST: Final = 20
# The most that `[limits]` may say of either.
MAX_MESSAGES: Final = 10_000
