"""People hear of a flood of alarms once a second, and how many there were."""

from __future__ import annotations

from tallystick.runtime.bus.alarms import PACE_NS, Alarms


def test_a_flood_of_alarms_is_told_at_a_pace_with_its_count() -> None:
    told: list[tuple[str, str]] = []
    now = 10**18
    alarms = Alarms(lambda code, text: told.append((code, text)), lambda: now)
    for n in range(80_000):
        alarms.say("ORDER_WITHOUT_PERMIT", f"order {n}")
    alarms.say("ORDER_NOT_OURS", "another kind")
    assert told == [("ORDER_WITHOUT_PERMIT", "order 0"), ("ORDER_NOT_OURS", "another kind")]
    now += PACE_NS
    alarms.say("ORDER_WITHOUT_PERMIT", "the next")
    assert told[2:] == [("ORDER_WITHOUT_PERMIT", "the next (and 79999 more since the last of these)")]
    now -= 10 * PACE_NS  # a clock that steps back silences nothing
    alarms.say("ORDER_WITHOUT_PERMIT", "after the step")
    assert told[3:] == [("ORDER_WITHOUT_PERMIT", "after the step")]
