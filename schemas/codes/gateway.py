"""Codes of the gateway (its denials in the order of its checks), of policy, limits and breaker."""

from __future__ import annotations

from typing import Final

from tallystick.schemas.codes.code import DENIAL, ERROR, NOTICE, REFUSAL, Code

_LIMIT: Final = "Send a smaller order, or raise the limit in `[limits]` and have it signed with `tallystick admit DIR`."
_POLICY: Final = "Correct the file in `DIR/policy` at the place that the line names."

CODES: Final = (
    Code(
        "STALE_INTENT",
        DENIAL,
        "The intent, or the time in its id, is older than 3 s or ahead of the clock, or it was sent before a "
        "restarted gateway was ready.",
        "Let the strategy send it again if it still wants it; set the clock if it happens to every intent.",
    ),
    Code(
        "DUPLICATE_INTENT",
        DENIAL,
        "An intent with this id was decided before.",
        "Make a new intent for a new order.",
    ),
    Code(
        "INTAKE_RATE",
        DENIAL | NOTICE,
        "A strategy sent more than ten times what its limits let pass: what is beyond is denied unseen, all of a message "
        "at once.",
        "Look for a loop in the strategy; raise `messages_per_second` or `burst` if it is meant to send so much.",
    ),
    Code(
        "CORRECTION_PASSED_OVER",
        NOTICE,
        "The operator's correction of a position does not fit the position that the gateway counts, or counted before.",
        "Look at the position again and sign another one.",
    ),
    Code(
        "POSITION_DIFFERS",
        NOTICE,
        "The portfolio states another position than the fills with permits add up to.",
        "Compare both with the exchange's own list of trades: one of the two processes may be in other hands.",
    ),
    Code(
        "UNKNOWN_INSTRUMENT",
        ERROR | DENIAL | REFUSAL,
        "The trust root has no such instrument at this venue.",
        "Add it to `[[instruments]]` and let the operator sign it with `tallystick admit DIR`.",
    ),
    Code(
        "UNKNOWN_ORDER",
        DENIAL,
        "The intent to cancel names no open order of this strategy and instrument.",
        "Nothing: the order is closed already, or never was this strategy's.",
    ),
    Code(
        "NOT_ARMED",
        DENIAL | REFUSAL,
        "No operator's lease lets execution trade at this venue.",
        "Arm it with `tallystick arm DIR --hours 8`.",
    ),
    Code(
        "LEASE_EARLY",
        REFUSAL,
        "The operator's lease for execution begins in a moment, by the clock of who was asked.",
        "Set the clocks of both machines (NTP), and arm it again.",
    ),
    Code(
        "LEASE_EXPIRED",
        DENIAL | REFUSAL | NOTICE,
        "The operator's lease for execution is over or has not begun.",
        "Arm it again with `tallystick arm DIR --hours 8`.",
    ),
    Code(
        "CUSTODY_UNKNOWN",
        DENIAL,
        "The session list does not name exactly one live custody process.",
        "Start custody if it is down; if two run, stop one.",
    ),
    Code(
        "BREAKER_HEARTBEAT_MISSING",
        DENIAL | REFUSAL | NOTICE,
        "The breaker was not heard for more than 1 s, so everything counts as tripped.",
        "Start the breaker if it is down; look at its log if it is up.",
    ),
    Code(
        "BREAKER_TRIPPED",
        DENIAL | REFUSAL,
        "A breaker whose scope covers the order is tripped.",
        "Look at why (`tallystick status DIR`), then `tallystick rearm DIR SCOPE`.",
    ),
    Code(
        "FEED_NOT_LIVE",
        DENIAL,
        "The instrument's feed is unknown, stale, reconnecting or has ended.",
        "Start market-data if it is down; its log says what the feed does.",
    ),
    Code(
        "MARKET_DATA_STALE",
        DENIAL,
        "The instrument's last trade is missing (none since a gap, too) or older than the limit.",
        "Wait for the next trade; raise `stale_ms` for an instrument that trades seldom.",
    ),
    Code(
        "PRICE_OUTSIDE_COLLAR",
        DENIAL,
        "The limit price is too far from the last trade, in either direction.",
        "Send a price nearer to the market, or widen `collar_bps`.",
    ),
    Code("TICK_SIZE", DENIAL, "The price is no multiple of the instrument's tick.", "Round the price to the tick."),
    Code(
        "LOT_SIZE",
        DENIAL,
        "The quantity is no multiple of the instrument's step.",
        "Round the quantity to the step.",
    ),
    Code(
        "NOTIONAL_BELOW_MINIMUM",
        DENIAL,
        "Price times quantity is below the instrument's minimum.",
        "Send a larger order.",
    ),
    Code("QUANTITY_EXCEEDS_LIMIT", DENIAL, "The order's quantity exceeds the strategy's limit.", _LIMIT),
    Code("NOTIONAL_EXCEEDS_LIMIT", DENIAL, "Price times quantity exceeds the strategy's limit per order.", _LIMIT),
    Code(
        "LIMITS_MISSING",
        REFUSAL,
        "The operator signed no limits for this strategy and quote asset.",
        "Run `tallystick admit DIR`: it signs a row for every strategy and quote asset of `deployment.toml`.",
    ),
    Code(
        "ORDER_EXCEEDS_CAP",
        DENIAL,
        "The order, as custody counts it in its base or its quote, exceeds the operator's cap, or there is no cap.",
        "Send a smaller order, or let the operator sign a higher cap with `tallystick admit DIR`.",
    ),
    Code(
        "MESSAGE_RATE_EXCEEDED",
        DENIAL,
        "The strategy sends orders faster than its throttle allows.",
        "Send fewer orders, or raise `messages_per_second`.",
    ),
    Code(
        "OPEN_NOTIONAL_EXCEEDS_LIMIT",
        DENIAL,
        "The strategy's open orders in this quote asset would exceed its limit.",
        "Cancel open orders, or raise the limit in `[limits]`.",
    ),
    Code(
        "POSITION_EXCEEDS_LIMIT",
        DENIAL,
        "The position would exceed its limit if all open orders of this side filled.",
        "Reduce the position first, or raise the limit in `[limits]`.",
    ),
    Code(
        "GROSS_EXPOSURE_EXCEEDS_LIMIT",
        DENIAL,
        "Positions and open orders in this quote asset would exceed the limit.",
        "Reduce positions first, or raise the limit in `[limits]`.",
    ),
    Code(
        "POLICY_DENIED",
        DENIAL,
        "A policy forbids it, or none permits it.",
        "The text names the policy: change it in `DIR/policy`, or do not send such orders.",
    ),
    Code("POLICY_ERROR", DENIAL, "A policy could not be evaluated for it.", "Correct the policy that the text names."),
    Code("POLICY", ERROR, "The policies cannot be read together, or one does not parse.", _POLICY),
    Code("POLICY_FILE", ERROR, "A policy file cannot be read, is no text, or is too long.", _POLICY),
    Code(
        "POLICY_UNSIGNED",
        ERROR,
        "The house rules are not the ones that the operator signed.",
        "Take the change back, or have it signed with `tallystick admit DIR`.",
    ),
    Code(
        "TERMS_UNSIGNED",
        ERROR,
        "deployment.toml or the house rules say something else about money than the operator signed.",
        "Take the change back, or have it signed with `tallystick admit DIR`; the line names what differs.",
    ),
    Code(
        "POLICY_FILES",
        ERROR,
        "The policy folder has no policy, or not exactly one schema.",
        "Put one `*.cedarschema` and at least one `*.cedar` into `DIR/policy`.",
    ),
    Code("POLICY_ID", ERROR, "A policy without an @id, or two with the same.", "Give each policy an @id of its own."),
    Code(
        "POLICY_LISTING",
        ERROR,
        "The policies list an instrument that the trust root does not have.",
        "Take it from the list, or add the instrument and admit it.",
    ),
    Code(
        "POLICY_SCHEMA",
        ERROR,
        "The schema does not parse, or does not take the facts that the gateway has.",
        "Put back the schema that `tallystick init` gave.",
    ),
    Code("POLICY_TEMPLATE", ERROR, "A policy template, which is not used here.", "Write the policy out."),
    Code("POLICY_TYPE_CHECK", ERROR, "A policy that does not type-check against the schema.", _POLICY),
    Code(
        "LIMITS",
        ERROR,
        "A limit that is unknown, of the wrong form, or out of its range.",
        "Correct `[limits]` in `deployment.toml`.",
    ),
    Code(
        "BREAKER_REQUEST",
        ERROR,
        "A request on the breaker's socket that is not one line of JSON in its form.",
        "Use `tallystick kill`, `rearm`, `arm` and `status`, of the same release.",
    ),
    Code(
        "BREAKER_ANSWER",
        ERROR,
        "The breaker did not answer in time, or not in its form.",
        "Look at the breaker's log; start it again.",
    ),
    Code(
        "BREAKER_SOCKET",
        ERROR,
        "The breaker's socket is not there or cannot be listened on: mostly the deployment is down.",
        "Start it with `tallystick up DIR`.",
    ),
    Code(
        "BREAKER_STATE",
        ERROR,
        "The breaker cannot read or write its state.",
        "Free disk space, and give the deployment's user the folder that the line names.",
    ),
    Code("BREAKER_SCOPE", ERROR, "A scope that cannot be tripped.", "Use `all`, `strategy-NAME` or `venue-NAME`."),
    Code(
        "NOT_TRIPPED",
        ERROR,
        "`rearm` of a breaker that is not tripped.",
        "The line lists what is; so does `tallystick status DIR`.",
    ),
)
