"""Faust's windowed table on state that this package commits itself.

- A change marks its key; the commit takes value and position in one synchronous step.  There is no changelog topic.
- Windows expire by stream time, inside the agent, a bounded number a message: a replay of old events finds the
  windows that the first run found, and a deletion is committed as any other change.
- A key is on the expiry heap once, however often it changes; restored keys are put there too.
- Keys are `(key, (start, end))` with whole seconds; values are immutable msgspec structs.

What is overridden or relied upon is private to faust-streaming 0.15.3; tests/unit/test_streams_faust.py pins it.
"""

from __future__ import annotations

from heapq import heappop, heappush
from types import SimpleNamespace
from typing import Any, Final

import msgspec
from faust.tables.table import Table

from tallystick.schemas.errors import NOT_DECODED, Unverified

Key = tuple[str, tuple[float, float]]
# `Table.on_key_set` asks the sent message for its partition; there is one.
_SENT: Final = SimpleNamespace(message=SimpleNamespace(partition=0))
_keys: Final = msgspec.msgpack.Decoder(tuple[str, tuple[float, float]])


class StateTable(Table):  # type: ignore[misc, type-arg, unused-ignore]
    """A windowed table whose changes are collected in `dirty` (owned by the agent) until `take`."""

    def __init__(self, *args: Any, value: type[msgspec.Struct] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if value is None:
            raise TypeError("a StateTable needs the type of its values")
        self._decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(value)
        self.dirty: dict[Key, None] = {}

    # -- what Faust calls -----------------------------------------------------------------------

    def _verify_source_topic_partitions(self, source_topic: str) -> None:
        """There is no topic whose partitions could differ."""

    def send_changelog(
        self, partition: int | None, key: Any, value: Any, key_serializer: Any = None, value_serializer: Any = None
    ) -> Any:
        """Mark a change instead of sending it."""
        self.dirty[key] = None
        return _SENT

    def _maybe_set_key_ttl(self, key: Any, partition: int) -> None:
        end = key[1][1]
        keys = self._partition_timestamp_keys[partition, end]
        if not keys:
            heappush(self._partition_timestamps[partition], end)
        keys.add(key)

    async def _del_old_keys(self) -> None:
        """Wall clock deletes nothing here; see `expire`."""

    # -- what the worker calls ------------------------------------------------------------------

    def window_key(self, name: str, now: float) -> Key:
        """The key of `name` in the window of stream time `now` (s)."""
        if self.window is None:
            raise TypeError(f"table {self.name} has no window")
        start, end = self.window.current(now)
        return (name, (start, end))

    def expire(self, now: float, most: int) -> int:
        """Delete at most `most` keys of windows that are stale at stream time `now` (s); how many were."""
        window, deleted = self.window, 0
        if window is None:
            return 0
        for partition, ends in self._partition_timestamps.items():
            while ends and deleted < most and window.stale(ends[0], now):
                keys = self._partition_timestamp_keys[partition, ends[0]]
                while keys and deleted < most:
                    # The smallest first: which keys go does not depend on the order of a set.
                    key = min(keys)
                    keys.discard(key)
                    if self.data.pop(key, None) is not None:
                        self.dirty[key] = None
                        deleted += 1
                if not keys:
                    del self._partition_timestamp_keys[partition, ends[0]]
                    heappop(ends)
        return deleted

    def take(self) -> dict[tuple[str, bytes], bytes | None]:
        """The changes since the last call, encoded, None for a deleted key; `dirty` is empty afterwards."""
        taken, self.dirty = self.dirty, {}
        changes: dict[tuple[str, bytes], bytes | None] = {}
        for key in taken:
            value = self.data.get(key)
            encoded = None if value is None else msgspec.msgpack.encode(value)
            changes[self.name, msgspec.msgpack.encode(key)] = encoded
        return changes

    def restore(self, key: bytes, value: bytes) -> None:
        """Take up one key from the store.  Raises `Unverified` for what this table cannot have written."""
        try:
            restored = self._to_key(list(_keys.decode(key)))
            self.data[restored] = self._decoder.decode(value)
        except NOT_DECODED as exc:
            raise Unverified("STATE", f"table {self.name}: {exc}") from exc
        self._maybe_set_key_ttl(restored, 0)
