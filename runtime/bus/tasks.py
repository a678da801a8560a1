"""Ending background tasks for certain."""

from __future__ import annotations

import asyncio
from typing import Any, Final

RETRY_S: Final = 0.5


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel `tasks` and wait until each has ended, whatever it ended with.

    One cancellation is not enough: `asyncio.wait_for` of Python 3.11 (in nats-py's `request`) swallows one
    that arrives together with the result it waits for, and the task would go on for ever.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        done, pending = await asyncio.wait(pending, timeout=RETRY_S)
        for task in done:
            if not task.cancelled():
                task.exception()
