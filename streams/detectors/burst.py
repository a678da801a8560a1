"""A strategy that sends more orders than any strategy may: code `INTENT_BURST`, on `alert.burst.high`.

- What counts is order intents of one strategy, by stream time: when the broker stored the message.  The
  strategy's own time stamps are its own word, and could spread a burst out.
- Cancels do not count: they take risk away, and nothing may keep a strategy from sending them.
- The finding is on the intent that exceeds the limit in the sliding window that ends with it.  Windows are kept
  in tumbling buckets of the same length; two of them decide exactly.
- While a burst lasts there is one finding a window, and never two in one bucket.
- A message's intents share its time: the finding names the first one beyond the limit, `value` counts them all.
- The limit is what the gateway's throttle passes at most in the window (a full bucket and its refill), so only a
  strategy that the gateway already denies orders is found.  The operator's limits decide; nothing else is set here.
"""

from __future__ import annotations

from bisect import bisect_right
from decimal import Decimal
from typing import Final

import msgspec

from tallystick.schemas.bounds import SECOND
from tallystick.schemas.errors import ConfigError
from tallystick.schemas.limits import LimitBook
from tallystick.schemas.security import Alert
from tallystick.schemas.subjects import Subject, subject
from tallystick.streams.detectors.alerts import alert_event

CODE: Final = "INTENT_BURST"
NAME: Final = "burst"
# A burst that breaks a strategy trips its breaker: severity high does.
SEVERITY: Final = "high"
# Long enough that the broker's own pauses do not look like bursts, short enough to stop one early.
WINDOW_S: Final = 1


class Rule(msgspec.Struct, frozen=True):
    """At most `limit` intents in any `window_s` seconds.  Windowed tables count whole seconds only."""

    limit: int
    window_s: int = WINDOW_S

    def __post_init__(self) -> None:
        if self.limit < 1 or self.window_s < 1:
            raise ConfigError(
                "BURST_RULE", f"limit and window must be at least 1, got {self.limit} and {self.window_s}"
            )


class Finding(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What was found, and whether the alert is known to be durable.

    `[at, seq, cause, value, limit, published]`: stream time in ns and sequence of the message, id of the first intent
    beyond the limit, intents in the window, the limit then.
    """

    at: int
    seq: int
    cause: bytes
    value: int
    limit: int
    published: bool = False


class Bucket(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One strategy in one tumbling window: `[count, times, finding]`; `times` are the newest limit + 1 (ns)."""

    count: int = 0
    times: tuple[int, ...] = ()
    finding: Finding | None = None


EMPTY: Final = Bucket()


def observe(rule: Rule, previous: Bucket, current: Bucket, at: int, seq: int, intents: tuple[bytes, ...]) -> Bucket:
    """The bucket `current` after a message with `intents` (their ids), stored `at` as `seq`; maybe with a finding.

    `previous` is the bucket before it (`EMPTY` where there was none).  `at` must not fall.
    """
    horizon = at - rule.window_s * SECOND
    # All of `current` lies within the window; of `previous` what is newer than the horizon.
    before = current.count + len(previous.times) - bisect_right(previous.times, horizon)
    finding = current.finding
    if intents and before + len(intents) > rule.limit and finding is None:
        last = previous.finding
        if last is None or last.at <= horizon:
            first = max(0, rule.limit - before)
            finding = Finding(at, seq, intents[first], before + len(intents), rule.limit)
    times = (*current.times, *((at,) * min(len(intents), rule.limit + 1)))
    return Bucket(current.count + len(intents), times[-(rule.limit + 1) :], finding)


def alert_of(strategy: str, rule: Rule, finding: Finding) -> tuple[Subject, Alert]:
    """The alert that states a finding: the same bits each time."""
    scope = f"strategy-{strategy}"
    event = alert_event(
        rule=NAME,
        code=CODE,
        scope=scope,
        text=f"{finding.value} order intents in {rule.window_s} s, limit={finding.limit}",
        value=Decimal(finding.value),
        limit=Decimal(finding.limit),
        at=finding.at,
        stream="ORDERS",
        seq=finding.seq,
        cause=finding.cause,
    )
    return subject("alert", detector=NAME, severity=SEVERITY), event


class Rules:
    """The rule of each strategy, from the limits that the operator signed."""

    def __init__(self, limits: LimitBook, window_s: int = WINDOW_S) -> None:
        self._limits = limits
        self._known: dict[str, Rule] = {}
        self.window_s = window_s

    def of(self, strategy: str) -> Rule:
        """The rule of `strategy`.  Raises `Unverified` for one that the operator signed no limits for."""
        known = self._known.get(strategy)
        if known is None:
            rate, burst = self._limits.rate(strategy)
            known = self._known[strategy] = Rule(burst + rate * self.window_s, self.window_s)
        return known
