"""Which breakers are open, as the breaker last said: the pure view that gateway, custody and execution share.

- A heartbeat names all tripped scopes, whole.  One stated before the newest is ignored; the newest replaces every
  trip that was stated before it, and none that was stated with it or after it.
- A heartbeat is as old as its statement; one stated ahead of this clock counts from its receipt, so that it is not
  fresh for longer.  A clock that is put back behind it makes its age unknown.
- Silence is a trip: `require_closed` fails closed where no heartbeat was heard, or none lately; how long silence may
  last, the caller says.
- A heartbeat opens, so it counts from a listed session alone.  A trip halts, so it counts from an unproven one as
  well.  What is past counts for nothing: the next heartbeat, in a moment, says everything.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from tallystick.schemas.bounds import MAX_SKEW_NS
from tallystick.schemas.errors import Unverified
from tallystick.schemas.seal import Verified
from tallystick.schemas.security import BreakerHeartbeat, BreakerTripped
from tallystick.schemas.standing import Standing

ALL: Final = "all"


def covering(strategy: str, venue: str) -> tuple[str, str, str]:
    """The scopes that stop an order of `strategy` at `venue`."""
    return ALL, f"strategy-{strategy}", f"venue-{venue}"


class BreakerView:
    """See the module docstring.  Times are Unix nanoseconds."""

    def __init__(self) -> None:
        self._stated = 0
        self._heard = 0
        self._beaten: frozenset[str] = frozenset()  # what the newest heartbeat names
        self._trips: dict[str, int] = {}  # scopes tripped since, and when it was stated

    def learn(self, verified: Verified, standing: Standing, now: int) -> tuple[str, ...]:
        """Take in a message of `control.breaker.>`.  Returns the scopes that it trips and that were not, sorted."""
        before, stated = set(self.tripped), verified.statement.time
        for event in verified.events:
            if isinstance(event, BreakerHeartbeat) and standing.kind == "listed":
                self._heartbeat((trip.scope for trip in event.tripped), stated, now)
            elif isinstance(event, BreakerTripped) and standing.kind != "past":
                self._trips[verified.subject.scope] = max(stated, self._trips.get(verified.subject.scope, 0))
        return tuple(sorted(set(self.tripped) - before))

    def _heartbeat(self, tripped: Iterable[str], stated: int, now: int) -> None:
        if stated < self._stated:
            return
        self._stated, self._heard = stated, min(stated, now)
        self._beaten = frozenset(tripped)
        self._trips = {scope: at for scope, at in self._trips.items() if at >= stated}

    @property
    def heard(self) -> bool:
        """Whether a heartbeat was ever heard."""
        return self._stated != 0

    @property
    def tripped(self) -> tuple[str, ...]:
        """All tripped scopes that were heard of last, sorted."""
        return tuple(sorted(self._beaten | self._trips.keys()))

    def age(self, now: int) -> int | None:
        """How old the newest heartbeat is (ns); None: never heard, or the clock was put back behind it."""
        age = now - self._heard
        return max(0, age) if self.heard and age >= -MAX_SKEW_NS else None

    def tripped_for(self, strategy: str, venue: str) -> tuple[str, ...]:
        """The tripped scopes that stop an order of `strategy` at `venue`."""
        return tuple(s for s in covering(strategy, venue) if s in self._beaten or s in self._trips)

    def require_closed(self, strategy: str, venue: str, now: int, limit: int) -> None:
        """Raise `Unverified` unless a heartbeat at most `limit` ns old trips nothing that stops such an order."""
        age = self.age(now)
        if age is None or age > limit:
            shown = f"{age / 1e9:.3f} s ago" if age is not None else "ahead of this clock" if self.heard else "never"
            raise Unverified("BREAKER_HEARTBEAT_MISSING", f"heartbeat heard {shown}, limit {limit / 1e9:.0f} s")
        scopes = self.tripped_for(strategy, venue)
        if scopes:
            raise Unverified("BREAKER_TRIPPED", f"{' '.join(scopes)} tripped")
