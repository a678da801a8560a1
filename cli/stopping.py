"""How a command ends: SIGINT and SIGTERM, whatever is down.

- The first signal asks: what the command waits for is given up (`unless`), what it has open is closed in order.
- The second one ends it at once, and with it whatever it started.
- Commands without an event loop of their own end by `KeyboardInterrupt`, at either signal (`interrupt_on_sigterm`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from types import FrameType
from typing import Any, Final, TypeVar

from tallystick.runtime.bus.tasks import Tasks

INTERRUPTED: Final = 130
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)

T = TypeVar("T")


class Stopped(Exception):
    """A signal came before the work was done."""


class Stop:
    """Whether the command was asked to end; `at_once` ends what it started, without waiting for anything."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.at_once: Callable[[], None] = lambda: None

    def on_signal(self) -> None:
        """One of the two signals came."""
        if not self.asked.is_set():
            self.asked.set()
            return
        self.at_once()
        sys.stderr.write("tallystick: interrupted again: ended at once\n")
        sys.stderr.flush()
        # Threads that wait for something would hold up an orderly exit.
        os._exit(INTERRUPTED)


@contextlib.contextmanager
def signals() -> Iterator[Stop]:
    """Both signals go to the `Stop` until the block ends.  Called within the command's event loop."""
    stop, loop = Stop(), asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        loop.add_signal_handler(number, stop.on_signal)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)


async def unless(stop: Stop, work: Coroutine[Any, Any, T], *watched: Coroutine[Any, Any, None]) -> T:
    """What `work` returns.  Raises `Stopped` where a signal comes before, and what one of `watched` raises meanwhile."""
    tasks = Tasks()
    try:
        asked, working = tasks.start(stop.asked.wait()), tasks.start(work)
        others = [tasks.start(other) for other in watched]
        await asyncio.wait((asked, working, *others), return_when=asyncio.FIRST_COMPLETED)
        tasks.check()
        if not working.done():
            raise Stopped
        return working.result()
    finally:
        await tasks.end()


def interrupt_on_sigterm() -> None:
    """SIGTERM is as Ctrl-C: what is half made is taken back, and children are ended."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
