"""The replay zone: a deployment of its own in which recorded events are published again.

- A zone is a deployment whose id begins with `replay-`: own operator root, own keys, own broker.  Its trust root
  knows no custody, no execution, no portfolio and no venue, and there is no key to any: nothing in it can trade.
- One component, `replay`, publishes what was recorded, byte for byte the same events with their ids, causes and
  `at`, sealed anew under its own session: who published it first stands in the archive, found by the event's id.
- Subjects in which a deployment speaks of itself (`cred`, `audit`, `guard`, `dead`) are not played.
- The order is kept: one message in for one message out, a flush holds neighbours of one stream, and the next
  stream's turn comes when the last one's messages are stored.

Nothing live accepts anything of a zone: other keys, another deployment id in every statement.  A zone is not
trusted: whoever owns it can make its own subscribers believe anything, and nobody else.
"""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from tallystick.infra.nats.topology import REPLAY, REPLAY_PREFIX
from tallystick.replay.verify import Played
from tallystick.runtime.bus.publisher import MAX_FLUSH_MESSAGES, MAX_QUEUED, ChainPublisher, _Message
from tallystick.runtime.deployment.folder import Deployment
from tallystick.runtime.deployment.service import Service, ServiceContext
from tallystick.schemas.errors import ConfigError, Unverified
from tallystick.schemas.seal import Payload

# Bytes of one flush: what the broker takes at once without anybody waiting long.
MAX_FLUSH_BYTES: Final = 4 << 20

_payloads = msgspec.msgpack.Decoder(Payload)


def require_zone(deployment: Deployment) -> None:
    """Raise `ConfigError` unless `deployment` is a replay zone: recorded events are played nowhere else."""
    if not deployment.name.startswith(REPLAY_PREFIX):
        raise ConfigError(
            "NOT_A_ZONE",
            f"{deployment.directory} is deployment {deployment.name!r}, which may be live; "
            "--into makes a new folder, or takes one that it made before",
        )


class _Recorder(ChainPublisher):
    """A chain that keeps the boundaries and the order of the messages that it is given."""

    def add(self, subject: str, count: int, events: bytes) -> asyncio.Future[int]:
        """Queue one message as it is; the future is its stream sequence."""
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._queue.append((subject, count, events, future))
        self._queued += max(count, 1)
        if self._queued > MAX_QUEUED // 4:
            self._room.clear()
        self._wake.set()
        return future

    def _gather(self) -> list[_Message]:
        messages: list[_Message] = []
        size = 0
        while self._queue and len(messages) < MAX_FLUSH_MESSAGES and size < MAX_FLUSH_BYTES:
            subject, count, events, future = self._queue.popleft()
            message = _Message(subject)
            message.encoded.append((count, events))
            message.count = count
            message.futures.append(future)
            messages.append(message)
            size += len(events)
            self._queued -= max(count, 1)
        if self._queued <= MAX_QUEUED // 8:
            self._room.set()
        return messages


class Replayer(Service):
    """The `replay` component of a zone: a sink for `player.play`.  Owns one chain for each stream."""

    def __init__(self) -> None:
        self._ctx: ServiceContext | None = None
        self._chains: dict[str, _Recorder] = {}
        self._last: asyncio.Future[int] | None = None
        self._stream = ""
        self.started = asyncio.Event()
        self.published = 0
        self.skipped = 0

    async def start(self, ctx: ServiceContext) -> None:
        """Nothing is read: what is to be published comes from `play`."""
        require_zone(ctx.deployment)
        self._ctx = ctx
        ctx.at_stop(self._finish)

    async def ready(self) -> None:
        """The session is there; playing may begin."""
        self.started.set()

    async def play(self, played: Played) -> None:
        """Publish one message; returns when there is room for the next."""
        ctx = self._ctx
        if ctx is None:
            raise ConfigError("NO_SESSION", "the replay has no session yet")
        verified = played.verified
        subject = verified.subject
        if not verified.events:
            return  # a chain's end says nothing; ours has its own
        try:
            ctx.trust.require_scope(REPLAY, subject.text)
        except Unverified:
            self.skipped += 1
            return
        if subject.stream != self._stream:
            await self.settled()
            self._stream = subject.stream
        chain = self._chains.get(subject.stream)
        if chain is None:
            chain = self._chains[subject.stream] = _Recorder(
                subject.stream, ctx.link, clock=ctx.clock, entropy=ctx.entropy, metrics=ctx.metrics, log=ctx.log
            )
        self._last = chain.add(subject.text, len(verified.events), _payloads.decode(verified.payload).events)
        self.published += 1
        await chain.room()

    async def settled(self) -> None:
        """Wait until everything published so far is stored."""
        if self._last is not None:
            await self._last

    async def _finish(self) -> None:
        """Send what is queued and close the chains."""
        for chain in self._chains.values():
            await chain.close()
