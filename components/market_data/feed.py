"""The state of feeds: which trades are missing, which feed is stale or down.  Pure.

- A feed starts without a state.  Its first fresh trade or quote makes it `live`.
- Where ids are contiguous, a jump is a `gap` that names the missing ids; the feed stays live after it.
  An id that was already seen is no news and is dropped (where ids are not contiguous: of the last `RECENT`).  Lower
  ids with later times than ever before are a venue that began to count anew: a `gap`, and they count.
- A trade that is older than `stale_after_ns` by the venue's own time is history, which venues send at subscription: it
  is passed over and makes nothing live.  If the feed had traded before, it is missing: a `gap`.
- Without a fresh trade for `stale_after_ns` a feed is `stale`, said once, also one that never traded; the next trade
  makes it `live` again.
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
        self._last_time = 0
        self._recent: OrderedDict[int, None] = OrderedDict()
        self._heard: int | None = None
        self._passed = 0
        self._age = 0

    def trade(self, trade_id: int, now: int, time_ns: int = 0) -> tuple[bool, list[Change]]:
        """A trade arrived, of the venue's time `time_ns` (0: of no matter): whether it is new, and what changed."""
        if trade_id in self._recent:
            return False, []
        if self._stale_after and time_ns and now - time_ns >= self._stale_after:
            self._age = now - time_ns
            if not self._contiguous:
                self._remember(trade_id)
                self._passed += self._last_id >= 0
            return False, []
        changes: list[Change] = []
        if self._contiguous and 0 <= self._last_id != trade_id - 1:
            if trade_id > self._last_id:
                count = trade_id - self._last_id - 1
                changes.append(Change(self.symbol, "gap", f"{count} trades missing", self._last_id + 1, trade_id - 1))
            elif time_ns > self._last_time:
                changes.append(Change(self.symbol, "gap", f"ids begin anew at {trade_id}, after {self._last_id}"))
            else:
                return False, []
        if not self._contiguous:
            self._remember(trade_id)
        self._last_id = trade_id
        self._last_time = max(self._last_time, time_ns)
        return True, changes + self.quote(now)

    def _remember(self, trade_id: int) -> None:
        self._recent[trade_id] = None
        if len(self._recent) > RECENT:
            self._recent.popitem(last=False)

    def passed(self) -> list[Change]:
        """After a batch of trades: what the old ones among them mean."""
        changes: list[Change] = []
        if self._passed:
            changes.append(Change(self.symbol, "gap", f"{self._passed} trades came too late to count as fresh"))
        if self._age and self.state in (None, "reconnecting"):
            self.state = "stale"
            changes.append(Change(self.symbol, "stale", f"the newest trade is {self._age / 1e9:.1f} s old"))
        self._passed = self._age = 0
        return changes

    def missed(self, why: str) -> list[Change]:
        """Trades came that could not be taken; where ids are contiguous, the next id tells."""
        return [] if self._contiguous else [Change(self.symbol, "gap", why[:MAX_TEXT])]

    def quote(self, now: int) -> list[Change]:
        """A quote arrived: what changed."""
        self._heard = now
        if self.state == "live":
            return []
        self.state = "live"
        return [Change(self.symbol, "live")]

    def tick(self, now: int) -> list[Change]:
        """Time passed: a feed that was live, or never was, may have become stale."""
        if self._heard is None:
            self._heard = now
        if not self._stale_after or self.state not in ("live", None) or now - self._heard < self._stale_after:
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
