"""The state of feeds: which trades are missing, which feed is stale or down.  Pure.

- A feed starts without a state.  Its first trade or quote makes it `live`.
- Where ids are contiguous, a jump is a `gap` that names the missing ids; the feed stays live after it.
  An id that was already seen is no news and is dropped (where ids are not contiguous: of the last `RECENT`).
- Without a trade for `stale_after_ns` a live feed is `stale`, said once; the next trade makes it `live` again.
- `down` makes it `reconnecting`, said once; what was missed meanwhile shows as a gap at the next trade.
- `ended` is final: a recording is over.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, Literal

import msgspec

State = Literal["live", "stale", "gap", "reconnecting", "ended"]
MAX_TEXT: Final = 200
# Exchanges that send the newest trades again after a reconnect send at most this many.
RECENT: Final = 2_000


class Change(msgspec.Struct, frozen=True):
    """What to publish as a `FeedStatus`: `missing_from` and `missing_to` are the first and last id of a gap."""

    symbol: str
    state: State
    text: str = ""
    missing_from: int = 0
    missing_to: int = 0


class Feed:
    """One symbol's feed.  Times are nanoseconds of one clock; `stale_after_ns` 0 switches staleness off."""

    def __init__(self, symbol: str, stale_after_ns: int = 0, contiguous: bool = True) -> None:
        self.symbol = symbol
        self.state: State | None = None
        self._stale_after = stale_after_ns
        self._contiguous = contiguous
        self._last_id = -1
        self._recent: OrderedDict[int, None] = OrderedDict()
        self._heard = 0

    def trade(self, trade_id: int, now: int) -> tuple[bool, list[Change]]:
        """A trade arrived: whether it is new, and what changed."""
        self._heard = now
        changes: list[Change] = []
        if self._contiguous and self._last_id >= 0:
            if trade_id <= self._last_id:
                return False, changes
            if trade_id > self._last_id + 1:
                count = trade_id - self._last_id - 1
                changes.append(Change(self.symbol, "gap", f"{count} trades missing", self._last_id + 1, trade_id - 1))
        if not self._contiguous:
            if trade_id in self._recent:
                return False, changes
            self._recent[trade_id] = None
            if len(self._recent) > RECENT:
                self._recent.popitem(last=False)
        self._last_id = trade_id
        if self.state != "live":
            self.state = "live"
            changes.append(Change(self.symbol, "live"))
        return True, changes

    def quote(self, now: int) -> list[Change]:
        """A quote arrived: what changed."""
        self._heard = now
        if self.state == "live":
            return []
        self.state = "live"
        return [Change(self.symbol, "live")]

    def tick(self, now: int) -> list[Change]:
        """Time passed: a feed that was live may have become stale."""
        if not self._stale_after or self.state != "live" or now - self._heard < self._stale_after:
            return []
        self.state = "stale"
        return [Change(self.symbol, "stale", f"no trade for {(now - self._heard) / 1e9:.1f} s")]

    def down(self, why: str) -> list[Change]:
        """The connection is lost."""
        if self.state == "reconnecting":
            return []
        self.state = "reconnecting"
        return [Change(self.symbol, "reconnecting", why[:MAX_TEXT])]

    def ended(self, why: str) -> list[Change]:
        """Nothing more will come."""
        self.state = "ended"
        return [Change(self.symbol, "ended", why[:MAX_TEXT])]


class Backoff:
    """Waiting times before a reconnect: doubling from `first` to `last` seconds, back to `first` after `reset`."""

    def __init__(self, first: float = 0.5, last: float = 30.0) -> None:
        self._first, self._last, self._next = first, last, first

    def next(self) -> float:
        """Seconds to wait now."""
        wait, self._next = self._next, min(self._next * 2, self._last)
        return wait

    def reset(self) -> None:
        """It works again."""
        self._next = self._first
