"""Plays examined messages at a chosen speed.  Pure but for what it is given: clock, sleep and sink.

- A message that was stated `d` after the first one is due `d / speed` after the start; at speed 0 (`max`) at once.
- Where statement times step back (clocks of several machines), a message is due at once: order is never changed.
- The sink is awaited for every message, so a slow one slows the replay and nothing piles up.
- Whoever asks to stop (`stopped`) is heard before every message and during every wait.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from decimal import Decimal
from typing import Final, Protocol

from tallystick.replay.verify import Examined, Failure, Played, Tally
from tallystick.schemas.errors import ConfigError, TallystickError

# A wait is cut into pieces of this length, so that a stop is heard.
MAX_WAIT_NS: Final = 200_000_000
# A message is not worth waiting for less than a timer's resolution.
MIN_WAIT_NS: Final = 500_000


class ReplayFailed(TallystickError):
    """A message must not be played, and the replay was not told to go on."""


class Sink(Protocol):
    """Where messages go."""

    async def play(self, played: Played) -> None:
        """Take the next message; returns when there is room for another."""
        ...


class Schedule:
    """When messages are due: `speed` times as fast as they were stated, 0 at once.  Times are Unix ns."""

    def __init__(self, speed: Decimal) -> None:
        self._ratio = speed.as_integer_ratio()
        self._origin: tuple[int, int] | None = None

    def wait(self, stated: int, now: int) -> int:
        """How long (ns) from `now` until a message stated at `stated` is due."""
        over, under = self._ratio
        if not over:
            return 0
        if self._origin is None:
            self._origin = (stated, now)
        first, start = self._origin
        return max(0, start + (stated - first) * under // over - now)


async def play(
    examined: AsyncIterator[Examined],
    sink: Sink,
    tally: Tally,
    *,
    schedule: Schedule,
    clock: Callable[[], int],
    sleep: Callable[[float], Awaitable[None]],
    keep_going: bool = False,
    limit: int = 0,
    stopped: Callable[[], bool] = lambda: False,
    on_failure: Callable[[Failure], None] = lambda failure: None,
) -> None:
    """Play everything, or `limit` messages; counts in `tally`.

    Raises `ReplayFailed` at the first failure unless `keep_going`; `on_failure` is told each.
    """
    async for item in examined:
        if stopped():
            return
        if isinstance(item, Failure):
            tally.fail(item)
            on_failure(item)
            if not keep_going:
                raise ReplayFailed(item.code, str(item))
            continue
        while (wait := schedule.wait(item.time, clock())) > MIN_WAIT_NS:
            await sleep(min(wait, MAX_WAIT_NS) / 1e9)
            if stopped():
                return
        await sink.play(item)
        tally.messages += 1
        tally.events += len(item.verified.events)
        if limit and tally.messages >= limit:
            return


def parse_speed(text: str) -> Decimal:
    """`max` (0) or a number above zero.  Raises `ConfigError`."""
    if text == "max":
        return Decimal(0)
    try:
        speed = Decimal(text)
    except ArithmeticError:
        speed = Decimal(-1)
    if not (speed.is_finite() and Decimal("1e-6") <= speed <= Decimal("1e9")):
        raise ConfigError("SPEED", f"{text[:32]!r} is no speed: write max, 1 (as recorded), 10, 0.5")
    return speed
