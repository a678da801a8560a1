"""The topology of a replay zone: derived from the shipped one, by the deployment's id alone."""

from __future__ import annotations

import pytest

from tallystick.infra.nats import topology
from tallystick.infra.nats.topology import REPLAY, REPLAY_PREFIX, deployed, load, replay_zone
from tallystick.schemas.subjects import KINDS, matches

ZONE = f"{REPLAY_PREFIX}0123"


def test_nobody_in_a_zone_faces_a_venue_or_holds_a_key_to_one() -> None:
    outward = {name for name, c in load().expand(("alpha",)).components.items() if c.zone in ("edge", "vault", "venue")}
    assert {"custody", "execution", "portfolio", "market-data", "paper-exchange"} <= outward
    assert not outward & set(deployed(ZONE, ("alpha",), ()).components)


def test_replay_publishes_every_kind_but_what_a_deployment_says_of_itself() -> None:
    replay = deployed(ZONE, (), ()).component(REPLAY)
    played = {kind for kind, spec in KINDS.items() if any(matches(p, spec.pattern) for p in replay.publishes)}
    assert set(KINDS) - played == {"cred", "audit.checkpoint", "audit.cosignature", "guard", "dead"}
    assert [p for p in replay.publishes if p.startswith(("guard", "dead"))] == ["guard.replay", "dead.replay"]
    assert replay.reads == {"SECURITY": ("cred.>",)}


def test_everybody_else_is_what_it_is_in_a_live_deployment() -> None:
    live, zone = deployed("desk", ("alpha",), ()), deployed(ZONE, ("alpha",), ())
    for name, component in zone.components.items():
        if name != REPLAY:
            assert component == live.components[name]
    assert zone.streams == live.streams


@pytest.mark.parametrize("name", ["desk", "my-replay", "replay", "replays", "Replay-x", "", " replay-x"])
def test_no_other_id_makes_a_zone(name: str) -> None:
    assert deployed(name, ("alpha",), (), rotates=True) == load().expand(("alpha",))


def test_a_live_deployment_knows_no_replay() -> None:
    assert REPLAY not in deployed("desk", (), ()).components
    assert replay_zone(load()) != load()
    assert topology.REPLAY_PREFIX == "replay-"
