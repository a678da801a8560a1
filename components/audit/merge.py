"""The order of the log: which message of which stream comes next, however late the broker brings any of them.  Pure.

- Messages stand in the order in which the broker stored them, by its clock; each stream's own order is never changed.
- A stream of which nothing is here may still have something older on its way: its reader, this process or the broker may
  have been held up.  So how far each stream goes is asked again and again, and a message is next only when every such
  stream was found to hold nothing more *after the message was here*: what is stored later cannot come before it.
- What a message refers to comes before it, even if the broker's clock went back in between: the issuance of its session on
  SECURITY, and for a heartbeat what it says is stored.  Whoever says something does so after that was stored; so what
  is neither in the log nor here, once all of that stream is here, does not exist.  Where so much is here that its reader
  waits, the broker's clock decides alone.
- Nothing waits in a circle: what is on SECURITY refers to nothing else, GUARD's heartbeats to all others, those to SECURITY.

Times are the event loop's, of this process alone: "asked after it was here" is all that they tell.  So the log is the
same whatever was slow, paused or cut off.  A broker that says that it holds something and does not bring it stops the
log: nothing is judged without it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from tallystick.components.audit.projector import Stored
from tallystick.record.chains import Reference
from tallystick.schemas.errors import TallystickError
from tallystick.schemas.seal import Verified
from tallystick.schemas.security import CredentialIssued

# What one stream may have waiting here before its reader waits: memory stays flat whatever is sent and however slow the
# disk is.
MAX_QUEUED: Final = 4_096
MAX_QUEUED_BYTES: Final = 16 << 20
# Ends of one stream that were asked and are not reached yet; more would say nothing new.
MAX_ASKED: Final = 64


class Queued(NamedTuple):
    """A message that is here, what opening it gave, and when (loop time) it came."""

    message: Stored
    opened: Verified | TallystickError
    arrived: float


class Source:
    """What is here of one stream and not in the log yet.

    `read` is the last sequence that is here or in the log, `count` how many messages ever came.  `as_of` is the time of
    asking of the newest end that was reached: everything that the broker had stored by then is here or in the log.
    """

    def __init__(self, read: int = 0) -> None:
        self.queue: deque[Queued] = deque()
        self.read = read
        self.count = 0
        self.size = 0
        self.as_of = float("-inf")
        self._asked: deque[tuple[float, int]] = deque()
        # Of what is here: sessions that are issued, and for each chain its newest seq and how many messages.
        self._issued: set[bytes] = set()
        self._chains: dict[tuple[str, bytes], tuple[int, int]] = {}

    @property
    def full(self) -> bool:
        """Whether its reader must wait."""
        return len(self.queue) >= MAX_QUEUED or self.size >= MAX_QUEUED_BYTES

    @property
    def roomy(self) -> bool:
        """Whether a reader that waits may go on."""
        return len(self.queue) <= MAX_QUEUED // 2 and self.size <= MAX_QUEUED_BYTES // 2

    def holds(self, reference: Reference) -> bool:
        """Whether what is meant is here."""
        if isinstance(reference, bytes):
            return reference in self._issued
        component, boot, seq = reference
        return self._chains.get((component, boot), (-1, 0))[0] >= seq

    def put(self, item: Queued) -> None:
        """The next message of the stream is here."""
        self.queue.append(item)
        self.read = item.message.stream_seq
        self.count += 1
        self.size += len(item.message.payload)
        if isinstance(item.opened, Verified):
            said = item.opened.statement
            newest, count = self._chains.get((said.component, said.boot), (-1, 0))
            self._chains[said.component, said.boot] = (max(newest, said.seq), count + 1)
            self._issued.update(_issues(item.opened))
        self._reach()

    def take(self) -> Queued:
        """Its first message goes into the log."""
        item = self.queue.popleft()
        self.size -= len(item.message.payload)
        if isinstance(item.opened, Verified):
            said = item.opened.statement
            newest, count = self._chains.pop((said.component, said.boot))
            if count > 1:
                self._chains[said.component, said.boot] = (newest, count - 1)
            self._issued.difference_update(_issues(item.opened))
        return item

    def asked(self, when: float, end: int) -> None:
        """The stream was asked at `when` and held no more than what makes `count` this `end`."""
        if len(self._asked) < MAX_ASKED:
            self._asked.append((when, end))
        self._reach()

    def _reach(self) -> None:
        while self._asked and self._asked[0][1] <= self.count:
            self.as_of = self._asked.popleft()[0]


class Merge:
    """Chooses the next message of the log; see the module docstring.

    `awaits` gives what a message refers to and the log does not have, with the stream that should hold it.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        awaits: Callable[[Verified | TallystickError], list[tuple[str, Reference]]],
    ) -> None:
        self._sources = sources
        self._awaits = awaits
        self._unknown: set[str] = set()

    def next(self) -> Source | None:
        """The source whose first message comes next; None while that cannot be known."""
        self._unknown.clear()
        source = min(
            (s for s in self._sources.values() if s.queue), key=lambda s: s.queue[0].message.stored, default=None
        )
        return None if source is None else self._first(source)

    def _first(self, source: Source) -> Source | None:
        """`source`, or what its first message refers to before it."""
        if not self._oldest(source):
            return None
        head = source.queue[0]
        for stream, reference in self._awaits(head.opened):
            other = self._sources[stream]
            if other.holds(reference):
                return self._first(other)
            if other.as_of <= head.arrived and not other.full:
                self._unknown.add(stream)
                return None
        return source

    def unknown(self) -> tuple[str, ...]:
        """The streams that may hold what comes before anything that is here, and have to be asked."""
        return tuple(self._unknown) if self.next() is None else ()

    def _oldest(self, source: Source) -> bool:
        arrived = source.queue[0].arrived
        self._unknown.update(n for n, s in self._sources.items() if not s.queue and s.as_of <= arrived)
        return not self._unknown


def _issues(opened: Verified) -> list[bytes]:
    if opened.subject.kind != "cred":
        return []
    return [event.credential_hash for event in opened.events if isinstance(event, CredentialIssued)]
