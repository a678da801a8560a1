from __future__ import annotations

import itertools
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tallystick.components.breaker import states
from tallystick.components.breaker.states import Breakers, Output
from tallystick.schemas.errors import Malformed, Unverified
from tallystick.schemas.ids import EventIds
from tallystick.schemas.note import open_note
from tallystick.schemas.orders import Fill
from tallystick.schemas.security import (
    QUOTA_EXCEEDED,
    Alert,
    BreakerHeartbeat,
    BreakerRearmed,
    BreakerTripped,
    SessionRevoked,
)
from tallystick.schemas.subjects import Subject, subject
from tallystick.schemas.trust import OPERATOR_KEY_NAME, Rearm, TrustRoot, open_rearm, sign_document

NOW = 1_800_000_000_000_000_000


class Key:
    def __init__(self) -> None:
        self._key = Ed25519PrivateKey.generate()
        self.public = self._key.public_key().public_bytes_raw()

    def sign(self, data: bytes) -> bytes:
        return self._key.sign(data)


OPERATOR, STRANGER = Key(), Key()
SCOPES = frozenset(
    ("all", "venue-paper", "strategy-runaway", "strategy-a", "strategy-beta", *(f"strategy-s{i}" for i in range(300)))
)
ROOT = TrustRoot(
    deployment="demo",
    number=1,
    issued=0,
    expires=2 * NOW,
    operator_root=OPERATOR.public.hex(),
    operator=OPERATOR.public.hex(),
    core_account="",
    components={},
    venues={},
    instruments=(),
    caps=(),
    limits=(),
    listings=(),
    policy=bytes(32).hex(),
)


class World:
    """Breakers with a clock, and the history that they published."""

    def __init__(self, standing_clock: bool = False) -> None:
        ids = EventIds(bytes(8))
        ticks = itertools.repeat(NOW) if standing_clock else itertools.count(NOW)

        def new(kind: type, causes: tuple[bytes, ...] = (), **fields: Any) -> Any:
            now = next(ticks)
            return kind(id=ids.next(now), ts=now, causes=causes, **fields)

        self.new: Callable[..., Any] = new
        self.log: list[Output] = []
        self.breakers = self.start()

    def start(self, crash_before: int = 0, read_from: int = 0) -> Breakers:
        """Start anew from the history, of which the last `crash_before` events were never stored."""
        self.breakers = Breakers(self.new, lambda note: open_rearm(note, ROOT), SCOPES)
        del self.log[len(self.log) - crash_before :]
        for where, event in self.log[read_from:]:
            assert self.breakers.on_event(where, event) == []
        self.log += self.breakers.resume(complete=read_from == 0)
        return self.breakers

    def happens(self, where: Subject, event: Any) -> list[Output]:
        self.log.append((where, event))
        out = self.breakers.on_event(where, event)
        self.log += out
        return out

    def alert(self, severity: str = "high", scope: str = "strategy-runaway") -> list[Output]:
        alert = self.new(Alert, code="INTENT_RATE", scope=scope, text="300 intents in 1 s")
        return self.happens(subject("alert", detector="rate", severity=severity), alert)

    def unknown_fill(self, strategy: str = "unknown") -> list[Output]:
        fill = self.new(
            Fill,
            intent_id=b"",
            client_order_id="",
            venue_order_id="1",
            trade_id=9,
            side="buy",
            price=Decimal(2),
            qty=Decimal(3),
            commission=Decimal(0),
            commission_asset="ETH",
            maker=False,
            time=NOW,
        )
        return self.happens(subject("fill", strategy=strategy, venue="paper", symbol="XRP/ETH"), fill)

    def kill(self, scope: str = "all") -> None:
        self.log += self.breakers.kill(scope, "drill", "uid 0")

    def rearm(self, note: str) -> None:
        self.log += self.breakers.rearm(note)

    def beat(self) -> BreakerHeartbeat:
        where, event = self.breakers.heartbeat()
        assert where.text == "control.breaker.all"
        assert isinstance(event, BreakerHeartbeat)
        self.log.append((where, event))
        return event

    @property
    def scopes(self) -> list[str]:
        return [t.scope for t in self.breakers.tripped]

    def note(self, scope: str, key: Key = OPERATOR, since: int | None = None, deployment: str = "demo") -> str:
        if since is None:
            since = next(t.since for t in self.breakers.tripped if t.scope == scope)
        return sign_document(Rearm(deployment=deployment, scope=scope, since=since), (OPERATOR_KEY_NAME, key))


def test_a_fresh_deployment_has_nothing_tripped() -> None:
    assert World().beat().tripped == ()


@pytest.mark.parametrize("severity", ["high", "critical"])
def test_a_dangerous_alert_trips_its_scope_with_the_alert_as_cause(severity: str) -> None:
    world = World()
    [(where, event)] = world.alert(severity)
    assert where.text == "control.breaker.strategy-runaway"
    assert isinstance(event, BreakerTripped)
    assert event.causes == (world.log[0][1].id,)
    [trip] = world.beat().tripped
    assert (trip.scope, trip.reason, trip.since, trip.by) == (
        "strategy-runaway",
        "INTENT_RATE: 300 intents in 1 s",
        event.ts,
        "rate",
    )


@pytest.mark.parametrize("severity", ["info", "warning"])
def test_a_lesser_alert_trips_nothing(severity: str) -> None:
    world = World()
    assert world.alert(severity) == []
    assert world.scopes == []


@pytest.mark.parametrize("scope", ["", "everything", "strategy-", "component-x", "strategy-nosuch", "venue-*", "ALL"])
def test_a_dangerous_alert_of_an_unknown_scope_trips_everything(scope: str) -> None:
    world = World()
    world.alert("critical", scope)
    assert world.scopes == ["all"]


def test_a_person_is_told_which_scopes_there_are() -> None:
    world = World()
    for scope in ("strategy-nosuch", "venue-other", ""):
        with pytest.raises(Malformed, match=r"BREAKER_SCOPE: .* is none of all, .*venue-paper"):
            world.kill(scope)
    assert world.scopes == []


def test_a_fill_without_a_permit_trips_everything_and_a_permitted_one_nothing() -> None:
    world = World()
    assert world.unknown_fill("momentum") == []
    world.unknown_fill()
    [trip] = world.beat().tripped
    assert (trip.scope, trip.by) == ("all", "portfolio")
    assert "FILL_WITHOUT_PERMIT: trade 9 of XRP/ETH at paper: buy 3 at 2" in trip.reason


def test_a_person_trips_a_scope_and_only_a_scope() -> None:
    world = World()
    world.kill("venue-paper")
    assert world.scopes == ["venue-paper"]
    with pytest.raises(Malformed, match="none of all"):
        world.kill("paper")


def test_the_operators_note_closes_the_scope_that_it_names() -> None:
    world = World()
    world.kill("all")
    world.kill("venue-paper")
    world.rearm(world.note("venue-paper"))
    assert world.scopes == ["all"]
    where, event = world.log[-1]
    assert where.text == "control.breaker.venue-paper"
    assert isinstance(event, BreakerRearmed)
    open_note(event.note, ROOT.operator_keys)


def test_a_note_of_a_stranger_closes_nothing() -> None:
    world = World()
    world.kill()
    with pytest.raises(Unverified):
        world.rearm(world.note("all", STRANGER))
    assert world.scopes == ["all"]


def test_a_note_of_another_deployment_closes_nothing() -> None:
    world = World()
    world.kill()
    with pytest.raises(Unverified):
        world.rearm(world.note("all", deployment="replay"))
    assert world.scopes == ["all"]


@pytest.mark.parametrize("standing_clock", [False, True])
def test_a_used_note_does_not_close_the_next_trip(standing_clock: bool) -> None:
    world = World(standing_clock)
    world.kill()
    note = world.note("all")
    world.rearm(note)
    with pytest.raises(Unverified, match="REARM_NOT_TRIPPED"):
        world.rearm(note)
    world.kill()
    with pytest.raises(Unverified, match="REARM_OTHER_TRIP"):
        world.rearm(note)
    world.start()
    with pytest.raises(Unverified, match="REARM_OTHER_TRIP"):
        world.rearm(note)
    assert world.scopes == ["all"]


def test_a_note_signed_before_a_further_alert_does_not_close_over_it() -> None:
    world = World()
    world.alert()
    note = world.note("strategy-runaway")
    world.alert()
    with pytest.raises(Unverified, match="REARM_OTHER_TRIP"):
        world.rearm(note)


def test_a_restart_keeps_what_is_tripped_and_the_heartbeat_counts_on() -> None:
    world = World()
    world.kill("venue-paper")
    world.alert()
    before = world.beat()
    world.start()
    after = world.beat()
    assert after.tripped == before.tripped
    assert after.number == before.number + 1
    world.rearm(world.note("venue-paper"))
    world.start()
    assert world.scopes == ["strategy-runaway"]


def test_a_trigger_unanswered_in_a_crash_is_answered_at_start() -> None:
    world = World()
    world.alert()
    world.start(crash_before=1)
    assert world.scopes == ["strategy-runaway"]
    assert isinstance(world.log[-1][1], BreakerTripped)
    world.start()
    assert len(world.log) == 2
    world.unknown_fill()
    world.start(crash_before=1)
    assert world.scopes == ["all", "strategy-runaway"]


def test_a_re_armed_alert_does_not_trip_again_at_the_next_start() -> None:
    world = World()
    world.alert()
    world.rearm(world.note("strategy-runaway"))
    world.start()
    assert world.scopes == []


def test_a_forged_re_arming_in_history_closes_nothing() -> None:
    world = World()
    world.kill()
    for note in ("", world.note("all", STRANGER), world.note("all", since=1)):
        world.log.append((subject("control.breaker", scope="all"), world.new(BreakerRearmed, note=note)))
    world.start()
    assert world.scopes == ["all"]


def test_a_re_arming_told_on_another_scopes_subject_closes_nothing() -> None:
    world = World()
    world.kill("all")
    event = world.new(BreakerRearmed, note=world.note("all"))
    world.log.append((subject("control.breaker", scope="venue-paper"), event))
    world.start()
    assert world.scopes == ["all"]


def test_an_empty_heartbeat_in_history_closes_nothing_and_a_full_one_trips() -> None:
    world = World()
    world.kill()
    trips = world.breakers.tripped
    where = subject("control.breaker", scope="all")
    world.log.append((where, world.new(BreakerHeartbeat, number=9, tripped=())))
    world.start()
    assert world.scopes == ["all"]
    world.log = [(where, world.new(BreakerHeartbeat, number=9, tripped=trips))]
    world.start()
    assert world.breakers.tripped == trips
    assert world.beat().number == 10


def test_too_many_scopes_trip_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "MAX_SCOPES", 3)
    world = World()
    for i in range(5):
        world.alert(scope=f"strategy-s{i}")
    assert "all" in world.scopes
    assert len(world.scopes) <= 4


def test_a_partial_history_with_a_heartbeat_is_enough() -> None:
    world = World()
    world.unknown_fill()
    world.kill("venue-paper")
    world.rearm(world.note("all"))
    cut = len(world.log) - 1
    world.beat()
    world.start(read_from=cut + 1)
    assert world.scopes == ["venue-paper"]


def test_a_trigger_that_was_answered_before_the_history_read_does_not_trip_again() -> None:
    world = World()
    world.unknown_fill()
    fill = world.log[0]
    world.rearm(world.note("all"))
    world.beat()
    world.log = [fill, *world.log]  # fills are read from another stream, further back
    breakers = Breakers(world.new, lambda note: open_rearm(note, ROOT), SCOPES)
    for where, event in (fill, world.log[-1]):
        breakers.on_event(where, event)
    assert breakers.resume(complete=False) == []
    assert breakers.tripped == ()


def test_without_a_heartbeat_in_a_partial_history_everything_is_tripped() -> None:
    world = World()
    world.kill("venue-paper")
    world.start(read_from=1)
    assert world.scopes == ["all"]
    assert "STATE_UNKNOWN" in world.breakers.tripped[0].reason


def test_a_finding_stated_again_under_its_id_trips_once_and_another_one_again() -> None:
    world = World()
    where = subject("alert", detector="burst", severity="high")
    alert = world.new(Alert, code="INTENT_BURST", scope="strategy-a", text="too many")
    assert len(world.breakers.on_event(where, alert)) == 1
    since = world.breakers.tripped[0].since
    assert world.breakers.on_event(where, alert) == []
    assert world.breakers.tripped[0].since == since
    again = world.new(Alert, code="INTENT_BURST", scope="strategy-a", text="too many")
    assert len(world.breakers.on_event(where, again)) == 1


def test_a_strategy_that_the_authority_cut_off_for_its_quota_is_tripped_and_nothing_else_is() -> None:
    world = World()
    world.start()
    reason = f"{QUOTA_EXCEEDED}: 9,000 messages"
    for component, why in (
        ("gateway", reason),
        ("observer-one", reason),
        ("strategy-alpha", "replaced by a new boot"),
        ("strategy-beta", reason),
    ):
        event = world.new(SessionRevoked, boot=bytes(16), reason=why)
        world.happens(subject("cred", component=component), event)
    assert [(t.scope, t.reason) for t in world.breakers.tripped] == [("strategy-beta", reason)]
