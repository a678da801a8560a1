"""What snapshots are made from, without a bus."""

from __future__ import annotations

from tallystick.runtime.bus.snapshots import SLACK, keep_newest, snapshot_key


def test_each_component_of_each_deployment_has_a_key_of_its_own() -> None:
    keys = {snapshot_key(*of) for of in ((b"s", "d", "c"), (b"t", "d", "c"), (b"s", "e", "c"), (b"s", "d", "e"))}
    assert len(keys) == 4
    assert all(len(key) == 32 for key in keys)
    assert snapshot_key(b"s", "d", "c") in keys, "the same at each start"
    assert snapshot_key(b"s", "ab", "c") != snapshot_key(b"s", "a", "bc")


def test_a_large_table_keeps_its_newest_entries() -> None:
    known: dict[int, None] = {}
    for number in range(10_000):
        known[number] = None
        keep_newest(known, 100)
        assert len(known) <= 100 + SLACK
        assert next(reversed(known)) == number
    assert list(known) == sorted(known)[-len(known) :]
    assert len(known) >= 100
