"""When a component says that it lives, and what its chains came to.  Pure: the time is an argument.

- Each second while there is news: a dropped end shows within a second.
- Without news every `QUIET_S`: a minute of silence is what audit makes something of.
- What a heartbeat states of GUARD, its own stream, changes with each and is no news; its place in the chain says the same.
"""

from __future__ import annotations

from typing import Final

from tallystick.schemas.security import Head
from tallystick.schemas.subjects import GUARD

HEARTBEAT_S: Final = 1.0
QUIET_S: Final = 5.0


class Heartbeats:
    """Remembers what was stated last; asked every `HEARTBEAT_S`."""

    def __init__(self) -> None:
        self._stated: tuple[Head, ...] = ()
        self._due = 0.0

    def due(self, heads: tuple[Head, ...], now: float) -> bool:
        """Whether `heads` are to be stated at `now` (seconds of any clock that does not go back)."""
        news = tuple(head for head in heads if head.stream != GUARD)
        if news == self._stated and now < self._due:
            return False
        self._stated, self._due = news, now + QUIET_S
        return True
