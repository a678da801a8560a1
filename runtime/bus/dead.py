"""Dead letters: what a component could not process, told on `dead.<component>`, and never more of it than is read.

- A letter names the message's place, its digest and the reason; the bytes themselves only where they are few: the
  stream still holds them, and so does the archive.
- Whoever sends rubbish must not be multiplied by those who read it: `RATE` letters a second, in bursts of `BURST`, for
  each source (the kind and first field of the subject), at most `MAX_DEAD` under way in all.
- What is beyond is counted; `report` says how many and the last of them, at most once a second.

The sender is not trusted: whoever sends rubbish without end costs a counter, not memory, log or stream.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

from tallystick.runtime.bus.log import Log
from tallystick.runtime.bus.metrics import Metrics
from tallystick.runtime.bus.reader import Delivery
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.errors import TallystickError
from tallystick.schemas.security import DeadLetter
from tallystick.schemas.subjects import KINDS

RATE: Final = 4
BURST: Final = 32
# Sources told apart; subjects beyond them share the oldest's place.
MAX_SOURCES: Final = 256
MAX_DEAD: Final = 64
# Longer messages are named by their digest alone.
KEPT_BYTES: Final = 8_192


class DeadLetters:
    """One component's; `publish` puts a letter on its subject, `new` makes it."""

    def __init__(
        self,
        publish: Callable[[DeadLetter], asyncio.Future[int]],
        new: Callable[..., Any],
        clock: Callable[[], int],
        metrics: Metrics,
        log: Log,
    ) -> None:
        self._publish = publish
        self._new = new
        self._clock = clock
        self._metrics = metrics
        self._log = log
        self._under_way = 0
        # source -> [letters left, as of when (ns)]
        self._left: OrderedDict[str, tuple[float, int]] = OrderedDict()
        self._dropped = 0
        self._last = ""

    def send(self, delivery: Delivery, stream: str, error: TallystickError) -> asyncio.Future[int]:
        """Put a message that cannot be processed on `dead.<component>`; the future is 0 where it is counted only."""
        self._metrics.add("dead_letters")
        if self._under_way >= MAX_DEAD or not self._may_tell(delivery.subject):
            self._metrics.add("dead_letters_dropped")
            self._dropped += 1
            self._last = f"{delivery.subject[:128]} at {stream}/{delivery.stream_seq}: {error.code}"
            dropped: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            dropped.set_result(0)
            return dropped
        self._log.warning(
            "dead letter", subject=delivery.subject[:255], stream=stream, code=error.code, text=error.text
        )
        letter = self._new(
            DeadLetter,
            subject=delivery.subject[:255],
            stream=stream,
            stream_seq=delivery.stream_seq,
            code=error.code,
            text=error.text[:1000],
            digest=hashlib.sha256(delivery.payload).digest(),
            payload=delivery.payload if len(delivery.payload) <= KEPT_BYTES else b"",
        )
        stored = self._publish(letter)
        self._under_way += 1
        stored.add_done_callback(self._buried)
        return stored

    def report(self) -> str:
        """What was counted since the last report; "" for nothing."""
        dropped, self._dropped = self._dropped, 0
        return f"{dropped} more messages could not be processed, the last {self._last}" if dropped else ""

    def _may_tell(self, subject: str) -> bool:
        """Take one of the letters of the subject's source, if there is one left."""
        tokens = subject[:255].split(".")
        source = ".".join(tokens[: 3 if ".".join(tokens[:2]) in KINDS else 2])
        now = self._clock()
        left, since = self._left.pop(source, (float(BURST), now))
        left = min(float(BURST), left + RATE * max(0, now - since) / SECOND)
        told = left >= 1
        self._left[source] = (left - told, max(now, since))
        if len(self._left) > MAX_SOURCES:
            self._left.popitem(last=False)
        return told

    def _buried(self, _: object) -> None:
        self._under_way -= 1
