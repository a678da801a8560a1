"""Waiting for what must come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

# A turn of the loop that took longer was no turn of ours.
HELD_UP_S: Final = 0.5


async def until(condition: Callable[[], object], what: str | Callable[[], str] = "", timeout: float = 10.0) -> float:
    """Wait until `condition()` is true and say how long that took (s); fails with `what` was missing.

    What a machine took from this process counts for little: when everything stood still for seconds, what is waited
    for had not that time either, and gets it.  What is returned is all of it: a promise in seconds is held against that.
    """
    begun = last = time.monotonic()
    waited = 0.0
    while not condition():
        if waited > timeout:
            raise AssertionError(f"not within {timeout} s: {what if isinstance(what, str) else what()}")
        await asyncio.sleep(0.005)
        now = time.monotonic()
        waited += min(now - last, HELD_UP_S)
        last = now
    return time.monotonic() - begun
