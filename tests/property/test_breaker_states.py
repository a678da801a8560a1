"""Breakers through any mix of triggers, re-arming, forgeries and crashes: nothing dangerous is ever forgotten."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tallystick.components.breaker.states import Breakers
from tallystick.schemas.errors import TallystickError, Unverified
from tallystick.schemas.ids import EventIds
from tallystick.schemas.security import Alert, BreakerHeartbeat, BreakerRearmed, BreakerTripped
from tallystick.schemas.subjects import subject
from tallystick.schemas.trust import Rearm

NOW = 1_800_000_000_000_000_000
SCOPES = ("all", "strategy-a", "venue-paper")


def open_rearm(note: str) -> Rearm:
    """A note that the operator signed reads `signed SCOPE SINCE`."""
    word, scope, since = note.split()
    if word != "signed":
        raise Unverified("NOTE_UNSIGNED", "not signed")
    return Rearm(deployment="demo", scope=scope, since=int(since))


class World:
    def __init__(self) -> None:
        self.ids = EventIds(bytes(8))
        self.ticks = itertools.count(NOW)
        self.log: list[tuple[Any, Any]] = []
        self.last: list[tuple[Any, Any]] = []
        self.notes: list[str] = []
        self.breakers = Breakers(self.new, open_rearm, frozenset(SCOPES))
        self.breakers.resume(complete=True)

    def new(self, kind: type, causes: tuple[bytes, ...] = (), **fields: Any) -> Any:
        now = next(self.ticks)
        return kind(id=self.ids.next(now), ts=now, causes=causes, **fields)

    def out(self, outputs: list[tuple[Any, Any]]) -> None:
        self.last = outputs
        self.log += outputs

    def alert(self, scope: str) -> None:
        where = subject("alert", detector="rate", severity="high")
        event = self.new(Alert, code="X", scope=scope, text="x")
        self.log.append((where, event))
        self.out(self.breakers.on_event(where, event))

    def kill(self, scope: str) -> None:
        self.out(self.breakers.kill(scope, "drill", "uid 0"))

    def rearm(self, scope: str) -> None:
        since = next((t.since for t in self.breakers.tripped if t.scope == scope), 0)
        self.notes.append(f"signed {scope} {since}")
        self.use(self.notes[-1])

    def use(self, note: str) -> None:
        try:
            self.out(self.breakers.rearm(note))
        except TallystickError:
            self.last = []

    def replay_note(self, scope: str) -> None:
        for note in list(self.notes):
            self.use(note)

    def forge(self, scope: str) -> None:
        trip = next((t for t in self.breakers.tripped if t.scope == scope), None)
        note = f"forged {scope} {trip.since if trip else 0}"
        self.use(note)
        where = subject("control.breaker", scope=scope)
        self.log.append((where, self.new(BreakerRearmed, note=note)))
        self.log.append((where, self.new(BreakerHeartbeat, number=1, tripped=())))

    def beat(self, scope: str) -> None:
        self.out([self.breakers.heartbeat()])

    def restart(self, scope: str) -> None:
        before = self.breakers.tripped
        self.read(0)
        assert self.breakers.tripped == before

    def crash(self, scope: str) -> None:
        """The last outputs were never stored."""
        if self.last:
            del self.log[-len(self.last) :]
        self.read(0)

    def read_tail(self, scope: str) -> None:
        """Start from the newest true heartbeat alone."""
        before = self.breakers.tripped
        beats = [i for i, (_, e) in enumerate(self.log) if isinstance(e, BreakerHeartbeat) and e.number > 1]
        if beats:
            self.read(beats[-1])
            assert self.breakers.tripped == before

    def read(self, first: int) -> None:
        self.breakers = Breakers(self.new, open_rearm, frozenset(SCOPES))
        for where, event in self.log[first:]:
            self.breakers.on_event(where, event)
        self.out(self.breakers.resume(complete=first == 0))

    def check(self) -> None:
        """Every alert is followed by a re-arming of its scope, or its scope is tripped."""
        tripped = {t.scope for t in self.breakers.tripped}
        for scope in SCOPES:
            since = None
            alarmed = False
            for where, event in self.log:
                if isinstance(event, Alert) and event.scope == scope:
                    alarmed = True
                elif where.kind == "control.breaker" and where.scope == scope:
                    if isinstance(event, BreakerTripped):
                        since, alarmed = event.ts, True
                    elif isinstance(event, BreakerRearmed) and event.note == f"signed {scope} {since}":
                        alarmed = False
            assert not alarmed or scope in tripped


ops = st.lists(
    st.tuples(
        st.sampled_from(("alert", "kill", "rearm", "replay_note", "forge", "beat", "restart", "crash", "read_tail")),
        st.sampled_from(SCOPES),
    ),
    max_size=30,
)


@settings(max_examples=100, deadline=None)
@given(ops)
def test_what_was_dangerous_stays_tripped_until_a_person_closes_it(script: list[tuple[str, str]]) -> None:
    world = World()
    for what, scope in script:
        getattr(world, what)(scope)
        world.check()
