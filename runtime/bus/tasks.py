"""Background tasks: none dies unseen, and all of them end.

- What lives longer than the function that waits for it is started by `Tasks.start` (tests/packaging hold that).
- The first failure is kept and raised to whoever waits in `failed`, which ends a process.  `Tasks` made `within`
  others report to those: one wait sees every failure of a component.
- A task that ends cancelled though nobody cancelled it has failed as well: what it waited for was cancelled, and
  its work is not done.
- `end` cancels what still runs and returns when nothing does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from tallystick.schemas.errors import TallystickError

RETRY_S: Final = 0.5

T = TypeVar("T")


class TaskCancelled(TallystickError):
    """A task was ended by a cancellation that was not meant for it."""


class Tasks:
    """The background tasks of one owner, who calls `end`.  One event loop."""

    def __init__(self, within: Tasks | None = None) -> None:
        self._running: set[asyncio.Task[Any]] = set()
        self._root: Tasks = within._root if within is not None else self
        self._failure: asyncio.Future[None] | None = None

    def start(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Run `work` beside everything else.  Its result, if it has one, is the task's."""
        task = asyncio.create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    async def failed(self) -> None:
        """Wait for the first failure and raise it."""
        await asyncio.shield(self._root._first_failure())

    async def settled(self, timeout: float) -> None:
        """Wait until everything has ended by itself, for at most `timeout` seconds."""
        if self._running:
            await asyncio.wait(self._running, timeout=timeout)

    async def end(self) -> None:
        """Cancel what runs and wait until it has ended.  Idempotent."""
        while self._running:
            await end(*self._running)

    def _first_failure(self) -> asyncio.Future[None]:
        # Made where it is first needed: an owner may be built before there is a loop.
        if self._failure is None:
            self._failure = asyncio.get_running_loop().create_future()
        return self._failure

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        try:
            error = task.exception()
        except asyncio.CancelledError as exc:
            if task.cancelling():
                return
            error = TaskCancelled("TASK_CANCELLED", f"{task.get_name()}: what it waited for was cancelled")
            error.__cause__ = exc
        failure = self._root._first_failure()
        if error is not None and not failure.done():
            failure.set_exception(error)


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
