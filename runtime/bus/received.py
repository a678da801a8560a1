"""What a handler gets, and how it says what it wants to read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

import msgspec

from tallystick.runtime.bus.reader import Delivery
from tallystick.schemas.credential import Credential
from tallystick.schemas.errors import ConfigError, TallystickError
from tallystick.schemas.event import Event
from tallystick.schemas.seal import Statement, Verified
from tallystick.schemas.subjects import KINDS, Subject, matches, overlaps


class Received(msgspec.Struct, frozen=True):
    """One verified message as a handler sees it.

    `live` says that it arrived after the component caught up, and is fresh; otherwise it is history or late, and
    `refusal` holds the reason for the latter.  What its session may do now, `admit` says.
    """

    verified: Verified
    stream_seq: int
    stored: int
    received: int
    live: bool
    refusal: TallystickError | None = None

    @property
    def subject(self) -> Subject:
        """The subject, parsed."""
        return self.verified.subject

    @property
    def events(self) -> list[Event]:
        """The events, in order."""
        return self.verified.events

    @property
    def statement(self) -> Statement:
        """The signed statement of the message's flush."""
        return self.verified.statement

    @property
    def credential(self) -> Credential:
        """The credential that sealed it."""
        return self.verified.credential


Handler = Callable[[Received], Awaitable[None] | None]
RawHandler = Callable[[Delivery], Awaitable[None] | None]
Start = Literal["all", "new"] | int


class Subscription(msgspec.Struct):
    """One pattern with its handler; `after` is the stream sequence beyond which it begins.

    `newest_ns`: of history, only what was stored within so many nanoseconds; None: all.
    """

    pattern: str
    handler: Handler
    start: Start
    after: int
    newest_ns: int | None = None

    def wants(self, delivery: Delivery, history: bool, now: int) -> bool:
        """Whether the handler is called for a message that matches, read as `history` at `now` (Unix ns)."""
        if delivery.stream_seq <= self.after:
            return False
        if not history:
            return True
        return self.start != "new" and (self.newest_ns is None or delivery.stored >= now - self.newest_ns)


def stream_of(pattern: str) -> str:
    """The stream whose kinds a pattern covers.  Raises `ConfigError` for none or several."""
    streams = {kind.stream for kind in KINDS.values() if overlaps(pattern, kind.pattern)}
    if len(streams) != 1:
        raise ConfigError("SUBSCRIPTION", f"{pattern!r} must cover subjects of one stream, covers {sorted(streams)}")
    return streams.pop()


def known(subscriptions: Sequence[Subscription], text: str) -> bool:
    """Whether anybody subscribed to this subject at all: what nobody did is looked at, and refused by its rules."""
    return any(matches(entry.pattern, text) for entry in subscriptions)
