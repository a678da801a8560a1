"""Waiting for what must come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


async def until(condition: Callable[[], object], what: str | Callable[[], str] = "", timeout: float = 10.0) -> float:
    """Wait until `condition()` is true and say how long that took (s); fails with `what` was missing."""
    begun = time.monotonic()
    while not condition():
        if time.monotonic() - begun > timeout:
            raise AssertionError(f"not within {timeout} s: {what if isinstance(what, str) else what()}")
        await asyncio.sleep(0.005)
    return time.monotonic() - begun
