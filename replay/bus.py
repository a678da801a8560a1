"""Reads the streams of a running deployment, as the console may: nothing can be published with it.

- What is stored when the reading begins is read, from the first sequence wanted to the end; nothing waits for more.
- The authority's events are read first, whole: who was issued and revoked, and when the broker stored that.
- Each stream is read by its own durable with a queue of `QUEUE` messages; the next message is the one with the
  earliest statement time, as in `reader`.
- The console has one session at a time: a replay from the streams ends a running `tallystick watch`.

No audit has judged these messages: one that an attacker managed to store fails here (`--keep-going` passes over it).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Final

from tallystick.infra.nats.topology import Component
from tallystick.replay.selection import ORDER, Selection
from tallystick.replay.verify import Examined, Judge, Recorded
from tallystick.runtime.bus.link import Link
from tallystick.runtime.bus.log import Log
from tallystick.runtime.bus.metrics import Metrics
from tallystick.runtime.bus.reader import Delivery, StreamReader
from tallystick.schemas.errors import ConfigError
from tallystick.schemas.subjects import SECURITY

QUEUE: Final = 1024


class _Stream:
    """One stream's messages up to what was stored at the start.  `None` in the queue ends it."""

    def __init__(self, stream: str, spec: Component, link: Link, log: Log, first: int, last: int) -> None:
        self.stream = stream
        self._last = last
        self._ended = False
        self._tasks = link.tasks
        self._queue: asyncio.Queue[Recorded | None] = asyncio.Queue(QUEUE)
        self._reader = StreamReader(
            stream,
            spec.name,
            link,
            self._on_delivery,
            metrics=Metrics(),
            log=log,
            on_caught_up=self._end,
            start=first,
            api=spec.api,
        )

    async def _on_delivery(self, delivery: Delivery) -> None:
        if self._ended:
            return
        if delivery.stream_seq > self._last:
            self._end()
            return
        await self._queue.put(
            Recorded(
                self.stream,
                delivery.stream_seq,
                delivery.subject,
                delivery.payload,
                delivery.stored,
                delivery.stored,
            )
        )

    def _end(self) -> None:
        self._ended = True

    async def next(self) -> Recorded | None:
        """The next message, None at the end."""
        while True:
            if self._ended and self._queue.empty():
                return None
            self._tasks.check()
            try:
                return await asyncio.wait_for(self._queue.get(), 0.05)
            except TimeoutError:
                continue  # look again whether it ended

    async def stop(self) -> None:
        """Stop reading, whatever is queued."""
        self._ended = True
        while not self._queue.empty():
            self._queue.get_nowait()
        await self._reader.stop()


class BusReader:
    """One replay of a running deployment's streams; `judge` holds the counts."""

    def __init__(self, spec: Component, link: Link, judge: Judge, selection: Selection, log: Log) -> None:
        """`link` is a started link of the component `spec`.  Raises `ConfigError` for streams that it cannot read."""
        self.judge = judge
        self._spec = spec
        self._link = link
        self._selection = selection
        self._log = log
        self._wanted = [s for s in selection.wanted if s in spec.reads]
        if not self._wanted:
            raise ConfigError("REPLAY_STREAM", f"{spec.name} reads nothing of {', '.join(selection.wanted)}")

    def _open(self, stream: str, first: int = 1, last: int = 2**63 - 1) -> _Stream:
        return _Stream(stream, self._spec, self._link, self._log, first, last)

    async def __aiter__(self) -> AsyncGenerator[Examined, None]:
        """Everything selected, examined, in order."""
        credentials = self._open(SECURITY)
        try:
            while (recorded := await credentials.next()) is not None:
                if recorded.subject.startswith("cred."):
                    self.judge.learn(recorded)
        finally:
            await credentials.stop()
        selection = self._selection
        streams = {s: self._open(s, selection.first, selection.last) for s in self._wanted}
        heads: dict[str, Examined] = {}
        try:
            while streams or heads:
                for stream in list(streams):
                    if stream in heads:
                        continue
                    found = await self._next(streams[stream])
                    if found is None:
                        await streams.pop(stream).stop()
                    else:
                        heads[stream] = found
                if heads:
                    yield heads.pop(min(heads, key=lambda s: (heads[s].time, ORDER.index(s))))
        finally:
            for left in streams.values():
                await left.stop()

    async def _next(self, stream: _Stream) -> Examined | None:
        selection = self._selection
        while (recorded := await stream.next()) is not None:
            if not selection.subject(recorded.subject):
                continue
            examined = self.judge.examine(recorded)
            if examined is not None and selection.time(examined.time):
                return examined
        return None
