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


class _Failure:
    """What failed first, of everybody within the same tasks."""

    def __init__(self) -> None:
        self._future: asyncio.Future[None] | None = None

    @property
    def future(self) -> asyncio.Future[None]:
        # Made where it is first needed: an owner may be built before there is a loop.
        if self._future is None:
            self._future = asyncio.get_running_loop().create_future()
        return self._future


class Tasks:
    """The background tasks of one owner, who calls `end`.  One event loop."""

    def __init__(self, within: Tasks | None = None) -> None:
        self._running: set[asyncio.Task[Any]] = set()
        self.failure: _Failure = _Failure() if within is None else within.failure

    def start(self, work: Coroutine[Any, Any, T], name: str = "") -> asyncio.Task[T]:
        """Run `work` beside everything else, under its own name where none is given."""
        task = asyncio.create_task(work, name=name or getattr(work, "__qualname__", None))
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    async def failed(self) -> None:
        """Wait for the first failure and raise it."""
        await asyncio.shield(self.failure.future)

    def check(self) -> None:
        """Raise the first failure, if there was one."""
        if self.failure.future.done():
            self.failure.future.result()

    async def settled(self, timeout: float | None = None) -> None:
        """Wait until everything has ended by itself, for at most `timeout` seconds."""
        if self._running:
            await asyncio.wait(self._running, timeout=timeout)

    async def end(self) -> None:
        """Cancel what runs and wait until it has ended.  Idempotent."""
        while self._running:
            await end(*self._running)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        try:
            error = task.exception()
        except asyncio.CancelledError as exc:
            if task.cancelling():
                return
            error = TaskCancelled("TASK_CANCELLED", f"{task.get_name()}: what it waited for was cancelled")
            error.__cause__ = exc
        if error is not None and not self.failure.future.done():
            self.failure.future.set_exception(error)


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
