"""How much a venue may be asked, and for how long not at all.  Pure: times are arguments, in Unix nanoseconds.

- A venue counts a weight for each request, by address and minute, and says in its answers how much is used: so one
  process sees what another at the same address uses.
- Who asks too much is told how long to wait, in seconds or as a date, from a second to days.  It is waited out to
  its end: asking meanwhile makes it longer.
- The venue's minutes are not quite ours: a minute counts as begun `MARGIN_NS` late.

A venue is not trusted: an attacker who controls it can at most make us wait, `MAX_BACKOFF_S` at a time.
"""

from __future__ import annotations

import email.utils
from typing import Final

from tallystick.schemas.bounds import SECOND

MINUTE_NS: Final = 60 * SECOND
# How far the venue's clock may stand from ours (`venues.SKEW_NS`), and a request's way.
MARGIN_NS: Final = 2 * SECOND
# Binance bans for up to three days.
MAX_BACKOFF_S: Final = 7 * 86_400


def retry_after(text: str, now: int) -> int | None:
    """When a `Retry-After` (RFC 9110: seconds or a date) ends; None where it says nothing that can be read."""
    if text.isascii() and text.isdigit():
        wait = int(text[:12])
    else:
        try:
            wait = int(email.utils.parsedate_to_datetime(text).timestamp()) - now // SECOND
        except (ValueError, OverflowError):
            return None
    return now + min(max(wait, 0), MAX_BACKOFF_S) * SECOND


class Allowance:
    """What one process may ask of a venue: `weight_minute` is the most that may be used at its address in a minute.

    `until` is the time before which the venue wants no requests.
    """

    def __init__(self, weight_minute: int) -> None:
        self.until = 0
        self._most = weight_minute
        self._minute = -1
        self._used = 0

    def back_off(self, until: int) -> None:
        """The venue wants no requests before `until`; what it said before holds as well."""
        self.until = max(self.until, until)

    def wait(self, weight: int, now: int) -> int:
        """How long (ns) to wait before something of `weight` may be asked; 0: not at all.  Counts nothing."""
        self._roll(now)
        if now < self.until:
            return self.until - now
        if self._used and self._used + weight > self._most:
            return (self._minute + 1) * MINUTE_NS + MARGIN_NS - now
        return 0

    def asked(self, weight: int, now: int) -> None:
        """Something of `weight` is being asked."""
        self._roll(now)
        self._used += weight

    def answered(self, used: str, now: int) -> None:
        """The venue says that `used` (decimal digits; else ignored) is used in this minute, by everybody here."""
        self._roll(now)
        if used.isascii() and used.isdigit():
            self._used = max(self._used, int(used[:12]))

    def _roll(self, now: int) -> None:
        minute = (now - MARGIN_NS) // MINUTE_NS
        if minute != self._minute:
            self._minute, self._used = minute, 0
