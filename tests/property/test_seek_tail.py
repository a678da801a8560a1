"""Wherever the search begins, it finds the newest messages of a durable, and near its end it asks about little else."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from typing import Any
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from tallystick.runtime.bus import reader


class Stream:
    """The sequences that a durable's filter matches; `asked` is what a RESET was asked about."""

    def __init__(self, matching: list[int]) -> None:
        self.matching = matching
        self.asked: list[int] = []

    async def reset(self, _: Any, __: str, seq: int) -> int:
        assert seq >= 1
        self.asked.append(seq)
        return len(self.matching) - bisect_left(self.matching, seq)

    def seek(self, tail: int, hint: int) -> int:
        with patch.object(reader, "reset", self.reset):
            return asyncio.run(reader.seek_tail(None, "", tail, hint))  # type: ignore[arg-type]


@given(st.sets(st.integers(1, 3_000), max_size=300), st.integers(0, 400), st.integers(1, 6_000))
def test_the_lowest_position_with_so_many_behind_it_is_found_from_anywhere(
    matching: set[int], tail: int, hint: int
) -> None:
    ordered = sorted(matching)
    found = Stream(ordered).seek(tail, hint)
    assert len(ordered) - bisect_left(ordered, found) <= tail
    assert found == 1 or len(ordered) - bisect_left(ordered, found - 1) > tail


def test_a_long_stream_is_not_counted_from_its_middle() -> None:
    length, tail = 10_000_000, 64
    stream = Stream(range(1, length, 2))  # type: ignore[arg-type]
    found = stream.seek(tail, length - 5_000)
    assert found == length - 2 * tail
    assert min(stream.asked) > length - 10_000
    assert len(stream.asked) < 40
