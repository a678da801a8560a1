"""What of the history is wanted: streams, subjects, time, sequences.  Pure.

Times are Unix nanoseconds of the signed statement, not of storage: what a component stated is proven, when the
broker stored it is only claimed.  `until` is exclusive, sequences are inclusive.
"""

from __future__ import annotations

import calendar
import re
from typing import Final

import msgspec

from tallystick.schemas.bounds import SECOND
from tallystick.schemas.errors import ConfigError
from tallystick.schemas.seal import MAX_INT
from tallystick.schemas.subjects import GUARD, KINDS, MARKET, ORDERS, SECURITY, SIGNALS, STREAMS, matches, overlaps

# Which stream speaks first where two messages were stated in the same nanosecond: causes before effects.
ORDER: Final = (SECURITY, MARKET, SIGNALS, ORDERS, GUARD)

_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)(?:[T ](\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?)?(Z|\+00:00)?", re.ASCII | re.IGNORECASE
)
# Smaller numbers may be seconds, milliseconds or microseconds; in nanoseconds they lie before March 1973.
NANOSECONDS: Final = 10**17

_RANGE = re.compile(r"(\d{1,19})(-)?(\d{1,19})?", re.ASCII)


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the history.  Empty `patterns` and `streams` mean all of them."""

    patterns: tuple[str, ...] = ()
    streams: tuple[str, ...] = ()
    since: int = 0
    until: int = MAX_INT
    first: int = 1
    last: int = MAX_INT

    def __post_init__(self) -> None:
        for stream in self.streams:
            if stream not in STREAMS:
                raise ConfigError("REPLAY_STREAM", f"unknown stream {stream[:32]!r}; there are {', '.join(STREAMS)}")
        for pattern in self.patterns:
            if not covered(pattern):
                raise ConfigError(
                    "REPLAY_SUBJECT",
                    f"{pattern[:96]!r} covers no kind of subject; kinds: {', '.join(KINDS)} "
                    "(`*` is one token, a final `>` the rest: order.>, md.trade.*.XRP-ETH)",
                )
        if self.since >= self.until:
            raise ConfigError(
                "REPLAY_TIME", f"nothing lies between {time_text(self.since)} and {time_text(self.until)}"
            )
        if self.first > self.last:
            raise ConfigError("REPLAY_SEQUENCE", f"sequence {self.first} lies behind {self.last}")
        if (self.first, self.last) != (1, MAX_INT) and len(self.wanted) != 1:
            raise ConfigError(
                "REPLAY_SEQUENCE",
                f"sequences count within one stream: choose one of {', '.join(self.wanted)} with --stream",
            )

    @property
    def wanted(self) -> tuple[str, ...]:
        """The streams to read, in the order in which they speak at the same time."""
        named = {kind.stream for kind in KINDS.values() if not self.patterns or kind.name in self._kinds()}
        return tuple(s for s in ORDER if s in named and (not self.streams or s in self.streams))

    def _kinds(self) -> set[str]:
        return {name for pattern in self.patterns for name in covered(pattern)}

    @property
    def whole(self) -> bool:
        """Whether every subject of its streams is wanted."""
        return not self.patterns

    def subject(self, text: str) -> bool:
        """Whether a subject is wanted."""
        return not self.patterns or any(matches(pattern, text) for pattern in self.patterns)

    def time(self, stated: int) -> bool:
        """Whether a statement of this time is wanted."""
        return self.since <= stated < self.until


def covered(pattern: str) -> list[str]:
    """The kinds of subject that a NATS pattern reaches; none for what is no pattern."""
    tokens = pattern.split(".")
    if not all(tokens) or ">" in tokens[:-1] or any(c.isspace() for c in pattern):
        return []
    return [kind.name for kind in KINDS.values() if overlaps(pattern, kind.pattern)]


def parse_time(text: str) -> int:
    """Unix nanoseconds of ISO 8601 in UTC (`2026-11-22`, `2026-11-22T16:00:00.5Z`) or of an integer that is just that.

    Raises `ConfigError`; other time zones, and numbers that may be seconds, are refused rather than guessed.
    """
    if text.isascii() and text.isdigit() and 8 < len(text) < 20:
        value = int(text)
        if NANOSECONDS <= value <= MAX_INT:
            return value
        for unit, factor in (("seconds", SECOND), ("milliseconds", SECOND // 1000), ("microseconds", 1000)):
            if NANOSECONDS <= value * factor <= MAX_INT:
                raise ConfigError(
                    "REPLAY_TIME",
                    f"{text} reads like Unix {unit}: write {time_text(value * factor)}, or {value * factor} for nanoseconds",
                )
    match = _TIME.fullmatch(text)
    if match is not None:
        year, month, day, hour, minute, second = (int(part or 0) for part in match.groups()[:6])
        days = calendar.monthrange(year, month)[1] if year >= 1970 and 1 <= month <= 12 else 0
        if 1 <= day <= days and hour < 24 and minute < 60 and second < 60:
            seconds = calendar.timegm((year, month, day, hour, minute, second))
            value = seconds * SECOND + int((match.group(7) or "0").ljust(9, "0"))
            if value <= MAX_INT:
                return value
    raise ConfigError(
        "REPLAY_TIME",
        f"{text[:64]!r} is no time: write UTC as 2026-11-22T16:00:00.123Z, a day as 2026-11-22, or Unix nanoseconds",
    )


def parse_sequences(text: str) -> tuple[int, int]:
    """First and last sequence of `7`, `7-` or `7-90`.  Raises `ConfigError`."""
    match = _RANGE.fullmatch(text)
    if match is None or (match.group(3) and not match.group(2)):
        raise ConfigError("REPLAY_SEQUENCE", f"{text[:64]!r} is no range of sequences: write 7, 7- or 7-90")
    first = int(match.group(1))
    last = int(match.group(3)) if match.group(3) else MAX_INT if match.group(2) else first
    if not 1 <= first <= MAX_INT or last > MAX_INT:
        raise ConfigError("REPLAY_SEQUENCE", f"sequences go from 1 to {MAX_INT}, got {text[:64]!r}")
    return first, last


def time_text(ns: int) -> str:
    """Unix nanoseconds as ISO 8601 in UTC with nine digits, which `parse_time` reads back."""
    days, rest = divmod(ns // SECOND, 86_400)
    date = _date(days)
    return f"{date}T{rest // 3600:02d}:{rest // 60 % 60:02d}:{rest % 60:02d}.{ns % SECOND:09d}Z"


_days: dict[int, str] = {}


def _date(days: int) -> str:
    known = _days.get(days)
    if known is None:
        import datetime

        known = (datetime.date(1970, 1, 1) + datetime.timedelta(days=days)).isoformat()
        if len(_days) > 1000:
            _days.clear()
        _days[days] = known
    return known
