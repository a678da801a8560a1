"""Alarms at a pace: whatever makes them come in floods, people hear of each kind once a second, and how many there were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tallystick.schemas.bounds import SECOND

PACE_NS: Final = SECOND


class Alarms:
    """`notice(code, text)` tells people; codes are few and fixed.  `say` costs a dictionary look-up when it is silent."""

    def __init__(self, notice: Callable[[str, str], object], clock: Callable[[], int]) -> None:
        self._notice = notice
        self._clock = clock
        # code -> when it was told last (Unix ns), and how often it was not since
        self._told: dict[str, tuple[int, int]] = {}

    def say(self, code: str, text: str) -> None:
        """Tell it now, or count it for the next time."""
        now = self._clock()
        told, more = self._told.get(code, (now - PACE_NS, 0))
        if abs(now - told) < PACE_NS:
            self._told[code] = (told, more + 1)
            return
        self._told[code] = (now, 0)
        self._notice(code, f"{text} (and {more} more since the last of these)" if more else text)
