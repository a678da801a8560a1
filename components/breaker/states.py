"""What is tripped, why, and who may close it.  Pure.

- A scope is `all`, `strategy-<name>` or `venue-<name>`, of a strategy or a venue that there is.  It is tripped or not;
  a fresh deployment has none tripped.
- Triggers: an alert of severity high or critical (its scope; `all` where that is none of ours), a fill under the
  strategy `unknown`, which no permit covers (`all`), a strategy that the authority cut off for its quota (its scope), and a
  person (`kill`).  Lesser alerts trip nothing.
- Every trigger is answered by one `BreakerTripped` with the trigger as its cause, also where the scope is tripped
  already: `since` then moves on to the newest, so that a re-arming signed before it does not hold any more.
- A scope closes only by a `Rearm` that the operator signed for that scope and that `since`: it cannot be used for
  another trip, nor twice.
- The heartbeat holds everything tripped, whole.  Its number never falls.
- After a restart the state is folded from history: `BreakerTripped` trips; `BreakerRearmed` closes if its note still
  verifies; a heartbeat adds what it lists and removes nothing, so that no forged heartbeat closes a scope.
  A trigger without its answer (we crashed in between) is answered when history ends.
- Only the newest part of a long history is read.  A heartbeat in it tells what was tripped then, and that whatever
  triggered earlier was answered.  Without any, nobody knows: `all` is tripped, for a person to look.

The breaker is trusted to say what is tripped: an attacker who controls it can at most let orders go on within the
operator-signed caps, or halt everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

from tallystick.schemas.errors import Malformed, TallystickError, Unverified
from tallystick.schemas.event import Event
from tallystick.schemas.orders import Fill
from tallystick.schemas.security import (
    QUOTA_EXCEEDED,
    Alert,
    BreakerHeartbeat,
    BreakerRearmed,
    BreakerTripped,
    SessionRevoked,
    Trip,
)
from tallystick.schemas.subjects import Subject, subject
from tallystick.schemas.trust import Rearm, TrustRoot

ALL: Final = "all"
UNKNOWN_STRATEGY: Final = "unknown"
TRIPPING: Final = frozenset(("high", "critical"))
# Far above what a deployment has; beyond it the heartbeat would no longer be small, so everything is tripped.
MAX_SCOPES: Final = 256
MAX_REASON: Final = 400
MAX_ANSWERED: Final = 1024

Output = tuple[Subject, Event]
New = Callable[..., Any]
OpenRearm = Callable[[str], Rearm]


def scopes_of(trust: TrustRoot) -> frozenset[str]:
    """What can be tripped in a deployment."""
    strategies = {name for name in trust.components if name.startswith("strategy-")}
    return frozenset({ALL, *strategies, *(f"venue-{name}" for name in trust.venues)})


class Breakers:
    """All breakers.  Methods return what to publish, in order; the state has changed already."""

    def __init__(self, new: New, open_rearm: OpenRearm, scopes: frozenset[str]) -> None:
        """`new(type, causes=…, **fields)` makes an event of now; `open_rearm(note)` verifies an operator's note.

        `scopes`: those that there are.
        """
        self._new = new
        self._scopes = scopes
        self._open_rearm = open_rearm
        self._tripped: dict[str, Trip] = {}
        self._number = 0
        self._newest = 0
        self._pending: dict[bytes, tuple[int, tuple[str, str, str]]] = {}
        self._known_since: int | None = None
        self._live = False
        # Triggers answered lately: a detector may state a finding again, under the same id, after a crash.
        self._answered: dict[bytes, None] = {}

    @property
    def tripped(self) -> tuple[Trip, ...]:
        """Everything tripped, by scope."""
        return tuple(self._tripped[scope] for scope in sorted(self._tripped))

    def heartbeat(self) -> Output:
        """The next heartbeat."""
        self._number += 1
        return subject("control.breaker", scope=ALL), self._new(
            BreakerHeartbeat, number=self._number, tripped=self.tripped
        )

    def on_event(self, where: Subject, event: Event) -> list[Output]:
        """A verified event of the bus: folded while history lasts, acted upon afterwards."""
        if where.kind == "control.breaker" and not self._live:
            self._fold(where.scope, event)
            return []
        trigger = self._trigger(where, event)
        if trigger is None:
            return []
        if not self._live:
            self._pending[event.id] = (event.ts, trigger)
            return []
        if event.id in self._answered:
            return []
        self._answered[event.id] = None
        if len(self._answered) > MAX_ANSWERED:
            del self._answered[next(iter(self._answered))]
        return [self._trip(*trigger, causes=(event.id,))]

    def remember(self, trips: Iterable[Trip]) -> None:
        """What was tripped by our own notes, before `resume`: a broker that keeps the end of the history back loses none."""
        for trip in trips:
            self._tripped.setdefault(trip.scope, trip)
            self._newest = max(self._newest, trip.since)

    def resume(self, complete: bool) -> list[Output]:
        """History has ended: from here on triggers are answered at once, those left unanswered now.

        `complete`: it was read from the very beginning.
        """
        self._live = True
        pending, self._pending = self._pending, {}
        self._answered = dict.fromkeys(list(pending)[-MAX_ANSWERED:])
        since = 0 if complete else self._known_since
        if since is None:
            return [
                self._trip(ALL, "STATE_UNKNOWN: no heartbeat of the breaker in the history that was read", "breaker")
            ]
        return [self._trip(*trigger, causes=(cause,)) for cause, (ts, trigger) in pending.items() if ts >= since]

    def kill(self, scope: str, reason: str, by: str) -> list[Output]:
        """A person trips `scope`.  Raises `Malformed` for one that there is not."""
        if scope not in self._scopes:
            raise Malformed("BREAKER_SCOPE", f"{scope[:64]!r} is none of {', '.join(sorted(self._scopes))}")
        return [self._trip(scope, reason, by)]

    def rearm(self, note: str) -> list[Output]:
        """A person closes a scope.  Raises `Malformed` or `Unverified`; the state is then unchanged."""
        scope = self._closed_by(self._open_rearm(note), None)
        del self._tripped[scope]
        return [(subject("control.breaker", scope=scope), self._new(BreakerRearmed, note=note))]

    def _closed_by(self, rearm: Rearm, subject_scope: str | None) -> str:
        trip = self._tripped.get(rearm.scope)
        if subject_scope not in (None, rearm.scope):
            raise Unverified("REARM_SCOPE", f"the note is for {rearm.scope}, not {subject_scope}")
        if trip is None:
            raise Unverified("REARM_NOT_TRIPPED", f"{rearm.scope[:64]} is not tripped")
        if trip.since != rearm.since:
            raise Unverified(
                "REARM_OTHER_TRIP",
                f"{rearm.scope} tripped at {trip.since} ({trip.reason}); the note is for a trip at {rearm.since}",
            )
        return rearm.scope

    def _trip(self, scope: str, reason: str, by: str, causes: tuple[bytes, ...] = ()) -> Output:
        if len(self._tripped) >= MAX_SCOPES and scope not in self._tripped:
            scope, reason = ALL, f"more than {MAX_SCOPES} scopes tripped, the last: {scope}: {reason}"
        event = self._new(BreakerTripped, causes=causes, reason=reason[:MAX_REASON], by=by)
        if event.ts <= self._newest:  # two trips never share a `since`, or one note could close both
            event = msgspec.structs.replace(event, ts=self._newest + 1)
        self._newest = event.ts
        self._tripped[scope] = Trip(scope, event.reason, event.ts, by)
        return subject("control.breaker", scope=scope), event

    def _trigger(self, where: Subject, event: Event) -> tuple[str, str, str] | None:
        if isinstance(event, Alert) and where.kind == "alert" and where.severity in TRIPPING:
            reason = f"{event.code}: {event.text}"
            if event.scope in self._scopes:
                return event.scope, reason, where.detector
            # A dangerous alert of a scope that nobody knows must not be without effect.
            return ALL, f"{reason} (scope {event.scope[:48]!r} unknown)", where.detector
        if (
            isinstance(event, SessionRevoked)
            and where.kind == "cred"
            and where.component.startswith("strategy-")
            and event.reason.startswith(QUOTA_EXCEEDED)
        ):
            return self._known(where.component), event.reason, "authority"
        if isinstance(event, Fill) and where.kind == "fill" and where.strategy == UNKNOWN_STRATEGY:
            text = f"FILL_WITHOUT_PERMIT: trade {event.trade_id} of {where.symbol} at {where.venue}: "
            return ALL, f"{text}{event.side} {event.qty} at {event.price}", "portfolio"
        return None

    def _known(self, scope: str) -> str:
        return scope if scope in self._scopes else ALL

    def _fold(self, scope: str, event: Event) -> None:
        if isinstance(event, BreakerTripped):
            self._tripped[scope] = Trip(scope, event.reason, event.ts, event.by)
            self._newest = max(self._newest, event.ts)
            for cause in event.causes:
                self._pending.pop(cause, None)
        elif isinstance(event, BreakerHeartbeat):
            self._number = max(self._number, event.number)
            self._known_since = event.ts if self._known_since is None else self._known_since
            for trip in event.tripped:
                self._tripped.setdefault(trip.scope, trip)
        elif isinstance(event, BreakerRearmed):
            try:
                del self._tripped[self._closed_by(self._open_rearm(event.note), scope)]
            except TallystickError:  # fails closed: the scope stays tripped, and a person can re-arm it anew
                return
