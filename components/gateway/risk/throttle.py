"""How many orders a strategy may still send: a token bucket, pure."""

from __future__ import annotations

from tallystick.schemas.bounds import SECOND


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
