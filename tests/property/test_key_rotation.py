"""A rotation of a key, whatever fails and wherever the process dies: custody always signs with a key that the venue takes."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallystick.components.keymaster.rotation import (
    ENDS,
    MAX_TRIES,
    OVERLAP_NS,
    PATIENCE_NS,
    RETRY_NS,
    SETTLE_NS,
    Rotation,
    advance,
    begin,
    decode,
    encode,
    revoke_first,
)
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.errors import Malformed
from tallystick.venues import SKEW_NS, VALID_NS
from tests.support.rotating import FAULTS, OLD, Crashed, World

WAYS = st.lists(st.sampled_from(FAULTS), max_size=60)
ROUNDS = 2_000


def run(coroutine: Coroutine[Any, Any, tuple[Rotation, int]]) -> tuple[Rotation, int]:
    """Nothing in memory ever waits."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        value: tuple[Rotation, int] = end.value
        return value
    raise AssertionError("something waited")


def start(world: World) -> Rotation:
    state = begin("0123456789abcdef", "paper", "custody", OLD, world.now)
    world.disk.append(encode(state))
    return state


def revoke(world: World, state: Rotation) -> Rotation:
    """An operator says that the old key is stolen; nothing is traded from then on."""
    sooner = revoke_first(state, world.now)
    assert sooner is not None
    world.halted = True
    world.disk.append(encode(sooner))
    return sooner


def rotate(world: World, rounds: int = ROUNDS, *, revoked: bool = False) -> Rotation:
    """Go on until it ends; a process that dies is followed by one that reads what it kept."""
    state = start(world)
    if revoked:
        state = revoke(world, state)
    for _ in range(rounds):
        try:
            state, wait = run(advance(state, world, world, world.now, world.keep))
        except Crashed:
            # Whoever comes next comes at once: what was on its way still is.
            state, wait = world.kept(), 0
        world.check()
        if state.step in ENDS:
            break
        world.pass_time(max(wait, 1))
    return state


def go(world: World, state: Rotation, step: str = "") -> Rotation:
    """Go on until `step`, or to an end."""
    for _ in range(ROUNDS):
        if state.step == step or state.step in ENDS:
            break
        state, wait = run(advance(state, world, world, world.now, world.keep))
        world.pass_time(max(wait, 1))
    return state


def require_clean(world: World, state: Rotation) -> None:
    """One key is in use, accepted; the other is dead at the venue and destroyed in the token; nothing else was left."""
    world.pass_time(10 * SETTLE_NS)  # what is still under way arrives
    assert world.kept() == state
    left = {key for key, label in world.keys.items() if label == state.label}
    if state.step == "forgotten":
        assert world.signs_with == state.new
        assert left == {state.new.api_key}
        assert "OLD" not in world.keys
        assert world.token == {state.new.key_id}
        assert state.new.api_key in world.bound
    else:
        assert state.step == "rolled_back"
        assert world.signs_with == OLD
        assert left == set()
        assert world.token == {"api-old"}


def test_a_rotation_that_nothing_disturbs_ends_with_the_new_key_alone() -> None:
    world = World()
    state = rotate(world)
    assert state.step == "forgotten"
    require_clean(world, state)
    assert world.calls == [
        "born", "find", "create", "bind", "require_fit", "switch", "accepts", "delete", "is_dead", "forget",
    ]  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(WAYS)
def test_whatever_fails_and_wherever_it_dies_one_key_is_in_use_and_the_other_proven_dead(faults: list[str]) -> None:
    world = World(faults=faults)
    state = rotate(world)
    assert state.step in ENDS, (state.step, state.text)
    require_clean(world, state)


@pytest.mark.parametrize("fault", FAULTS[1:])
def test_one_fault_at_each_point_of_the_way(fault: str) -> None:
    points = 0
    for at in range(40):
        world = World(faults=["fine"] * at + [fault])
        state = rotate(world)
        assert state.step == "forgotten", (at, state.step, state.text)
        require_clean(world, state)
        points += 1
    assert points == 40


@pytest.mark.parametrize("fault", FAULTS[1:])
def test_two_faults_in_a_row_at_each_point_of_the_way_back(fault: str) -> None:
    for at in range(40):
        world = World(faults=["fine"] * at + [fault, fault])
        world.unfit = True
        state = rotate(world)
        assert state.step == "rolled_back", (at, state.step, state.text)
        require_clean(world, state)
        assert "switch" not in world.calls


def test_a_key_that_can_too_much_is_never_switched_to() -> None:
    world = World()
    world.unfit = True
    state = rotate(world)
    assert state.step == "rolled_back"
    assert "KEY_TOO_BROAD" in state.text
    assert world.calls.count("require_fit") == MAX_TRIES
    require_clean(world, state)


def test_a_venue_that_answers_nothing_leaves_the_old_key_in_use_and_is_given_up_in_time() -> None:
    world = World(faults=["lost_before"] * 600)
    state = rotate(world)
    assert state.step == "rolled_back"
    require_clean(world, state)
    assert PATIENCE_NS > 100 * RETRY_NS


def test_the_new_key_that_the_venue_loses_after_the_switch_gives_way_to_the_old_one() -> None:
    world = World()
    state = start(world)
    state = go(world, state, "switched")
    world.lose(state.new.api_key)
    state = go(world, state)
    assert state.step == "rolled_back"
    assert "KEY_REFUSED" in state.text
    require_clean(world, state)


def test_with_neither_key_accepted_nothing_is_destroyed_and_it_is_said() -> None:
    world = World()
    state = start(world)
    state = go(world, state, "switched")
    world.lose(state.new.api_key)
    world.lose("OLD")
    for _ in range(50):
        state, wait = run(advance(state, world, world, world.now, world.keep))
        world.pass_time(max(wait, 1))
    assert state.step == "back"
    assert state.text.startswith("NO_KEY")
    assert world.token == {"api-old", state.new.key_id}


def test_a_venue_that_refuses_to_delete_the_old_key_is_asked_until_it_does() -> None:
    world = World()
    state = start(world)
    state = go(world, state, "revoking")
    world.befall(["refused", "fine"] * 2 * MAX_TRIES)
    state = go(world, state)
    assert state.step == "forgotten"
    require_clean(world, state)


@pytest.mark.parametrize("unfit", [False, True])
def test_a_key_that_the_venue_still_takes_after_its_deletion_is_not_destroyed_before_it_is_dead(unfit: bool) -> None:
    world = World(lingers_ns=20 * RETRY_NS)
    world.unfit = unfit
    state = go(world, start(world))
    assert state.step == ("rolled_back" if unfit else "forgotten")
    require_clean(world, state)


def test_a_creation_that_is_still_on_its_way_when_the_rotation_is_given_up_leaves_no_key() -> None:
    world = World()
    state = go(world, start(world), "new_key")
    world.befall(["fine", "fine", "dead_late"])  # the list, the disk, the creation
    with pytest.raises(Crashed):
        run(advance(state, world, world, world.now, world.keep))
    state = msgspec.structs.replace(world.kept(), begun=world.now - PATIENCE_NS - 1)
    assert (state.step, world.made) == ("creating", 0)
    state = go(world, state)
    assert (state.step, world.made) == ("rolled_back", 1)
    require_clean(world, state)


def test_an_order_that_the_new_key_signed_is_let_through_on_the_way_back() -> None:
    world = World()
    state = go(world, start(world), "switching")
    world.befall(["lost_after"])
    state, _ = run(advance(state, world, world, world.now, world.keep))
    assert world.signs_with == state.new
    world.befall(["refused", "fine"] * MAX_TRIES)
    while state.step == "switching":
        state, wait = run(advance(state, world, world, world.now, world.keep))
        world.pass_time(max(wait, 1))
    state = go(world, state)
    assert state.step == "rolled_back"
    require_clean(world, state)


def test_the_old_key_that_somebody_else_deletes_meanwhile_does_not_stop_the_new_one() -> None:
    world = World(faults=["fine"] * 12 + ["refused"] * 40)
    state = start(world)
    state = go(world, state, "switched")
    world.lose("OLD")
    state = go(world, state)
    assert state.step == "forgotten"
    require_clean(world, state)


def test_the_old_key_outlives_every_order_that_it_signed() -> None:
    assert SETTLE_NS >= VALID_NS + SKEW_NS
    assert OVERLAP_NS > SETTLE_NS
    world = World()
    state = start(world)
    while state.step != "switched":
        state, _ = run(advance(state, world, world, world.now, world.keep))
    switched = world.now
    go(world, state, "revoked")
    assert world.now - switched >= OVERLAP_NS


def test_a_stolen_key_is_deleted_and_proven_dead_before_there_is_another_one_and_nothing_is_waited_for() -> None:
    world = World()
    begun = world.now
    state = rotate(world, revoked=True)
    assert state.step == "forgotten"
    require_clean(world, state)
    assert world.calls == [
        "delete", "is_dead", "born", "find", "create", "bind", "require_fit", "switch", "accepts", "forget",
    ]  # fmt: skip
    assert state.since - begun < SECOND


@settings(max_examples=300, deadline=None)
@given(WAYS, st.sampled_from(["", "new_key", "creating", "created", "bound", "verified"]))
def test_whatever_fails_a_stolen_key_is_dead_and_another_one_in_use(faults: list[str], step: str) -> None:
    world = World()
    state = start(world)
    if step == "creating":
        state = go(world, state, "new_key")
        world.befall(["fine", "fine", "dead_late"])  # the list, the disk, the creation, which is on its way now
        with pytest.raises(Crashed):
            run(advance(state, world, world, world.now, world.keep))
        state = world.kept()
        assert (state.step, world.made) == ("creating", 0)
    elif step:
        state = go(world, state, step)
    state = revoke(world, state)
    world.befall(faults)
    for _ in range(ROUNDS):
        try:
            state, wait = run(advance(state, world, world, world.now, world.keep))
        except Crashed:
            state, wait = world.kept(), 0
        if state.step in ENDS:
            break
        world.pass_time(max(wait, 1))
    assert (state.step, world.signs_with) == ("forgotten", state.new), (state.step, state.text)
    require_clean(world, state)


def test_a_stolen_key_is_never_gone_back_to_and_what_fails_is_tried_until_it_is_done() -> None:
    world = World()
    state = revoke(world, go(world, start(world), "created"))
    world.unfit = True
    for _ in range(10 * MAX_TRIES):
        state, wait = run(advance(state, world, world, world.now, world.keep))
        world.pass_time(max(wait, PATIENCE_NS // MAX_TRIES))
    assert (state.step, "OLD" in world.keys) == ("bound", False)
    assert state.text.startswith("KEY_TOO_BROAD")
    world.unfit = False
    state = go(world, state)
    assert state.step == "forgotten"
    require_clean(world, state)


@pytest.mark.parametrize("step", ["switching", "switched", "revoking", "revoked", "dead", "forgotten"])
def test_what_is_switched_goes_on_and_its_old_key_dies_anyway(step: str) -> None:
    world = World()
    assert revoke_first(go(world, start(world), step), world.now) is None


def test_a_state_that_is_not_one_is_refused() -> None:
    good = encode(begin("0123456789abcdef", "paper", "custody", OLD, 1))
    assert encode(decode(good)) == good
    for bad in (b"", b"{}", good[:-1], good.replace(b'"started"', b'"finished"'), good.replace(b'"old"', b'"odd"')):
        with pytest.raises(Malformed, match="ROTATION_STATE"):
            decode(bad)


def test_what_a_rotation_waits_for_is_said_and_is_nothing_of_its_state() -> None:
    world = World()
    state = go(world, start(world), "created")
    said: list[str] = []
    world.befall(["lost_before"])
    after, _ = run(advance(state, world, world, world.now, world.keep, said.append))
    assert (after, world.kept()) == (state, state)
    assert len(said) == 1
    assert said[0].partition(": ")[2]
