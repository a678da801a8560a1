"""What a user writes: a subclass of `Component`, and what it may do.

    class Printer(Component):
        async def start(self, ctx: Context) -> None:
            ctx.subscribe("md.trade.>", self.on_trade)

        def on_trade(self, received: Received) -> None:
            for trade in received.events:
                print(received.subject.symbol, trade.price)

`Context` hands on a part of the process's `BusContext`: no secrets, no link, no verifier.  That keeps honest code
from depending on them; what keeps the dishonest away is the account, which may read and publish its own alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from tallystick.runtime.bus.context import BusContext
from tallystick.runtime.bus.log import Log
from tallystick.runtime.bus.metrics import Metrics
from tallystick.runtime.bus.received import Handler, Start
from tallystick.schemas.event import Event
from tallystick.schemas.subjects import Subject
from tallystick.schemas.trust import TrustRoot

E = TypeVar("E", bound=Event)


class Context:
    """The bus as user code has it; see `BusContext`'s methods of the same names."""

    def __init__(self, bus: BusContext) -> None:
        self._bus = bus

    @property
    def component(self) -> str:
        """The component's identity name."""
        return self._bus.component

    @property
    def trust(self) -> TrustRoot:
        """The trust root that the operator signed: instruments, venues, who publishes what."""
        return self._bus.trust

    @property
    def log(self) -> Log:
        """A structured logger, to `log/<component>.jsonl`."""
        return self._bus.log

    @property
    def metrics(self) -> Metrics:
        """Counters, written to the log every few seconds."""
        return self._bus.metrics

    def clock(self) -> int:
        """Now, in Unix nanoseconds; never ask the machine yourself."""
        return self._bus.clock()

    def new(self, kind: type[E], *, causes: Sequence[bytes] = (), **fields: Any) -> E:
        """A new event of type `kind`, its id, time and input positions filled in."""
        return self._bus.new(kind, causes=causes, **fields)

    def publish(self, to: Subject | str, *events: Event) -> asyncio.Future[int]:
        """Queue events on a subject; the future is the stream sequence once they are durable.

        Raises `Malformed` for a wrong subject or event, `Unverified` for a subject that is not this
        component's, `Backpressure` when the queue is full (`await room(stream)` first).
        """
        return self._bus.publish(to, *events)

    async def room(self, stream: str) -> None:
        """Wait until the stream's queue has drained: for those who publish much."""
        await self._bus.room(stream)

    def notice(self, code: str, text: str, evidence: bytes = b"") -> asyncio.Future[int]:
        """Tell security people what this component saw, on `guard.<component>`."""
        return self._bus.notice(code, text, evidence)

    def subscribe(self, patterns: str | Sequence[str], handler: Handler, start: Start = "new") -> None:
        """Call `handler` with every verified message that matches; takes effect when `start` returns.

        `start`: "new" from now on; "all" from the beginning of the stream; a number: the newest so many messages of
        what this component reads of the stream first.  Raises `ConfigError` for a pattern that it may not read.
        """
        self._bus.subscribe(patterns, handler, start)

    async def caught_up(self, *streams: str) -> None:
        """Wait until everything stored before now of the given streams (default: all read) was handled."""
        await self._bus.caught_up(*streams)

    def position(self, stream: str) -> int:
        """The last applied sequence of a stream (0: none)."""
        return self._bus.position(stream)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run background work whose failure stops the component."""
        return self._bus.spawn(work)


class Component:
    """The base of user components."""

    async def start(self, ctx: Context) -> None:
        """Subscribe here.  Reading begins when this returns; background work goes into `ctx.spawn`."""
        raise NotImplementedError

    async def ready(self) -> None:
        """Called once everything stored before the start was handled; the process then counts as ready."""

    async def stop(self) -> None:
        """Called before the readers stop and the chains are closed; publishing still works.

        Only if `start` returned.
        """
