"""Verifies what is replayed, once more and by itself.  Pure.

A message is played only if all of this holds:

1. the archive does not say that it had no effect (`late`, `unlisted`, `refused`): what an attacker sent then is
   set aside and counted, and has no more effect now than it had;
2. its seal opens under the trust root in force when it was stored (`audit.chains.open_message`);
3. its credential was issued by the authority before it, and its boot was neither revoked nor ended before it, by
   the authority's own events;
4. its place in its chain holds (`seal.ReaderChains`): nothing twice, out of order, forked or after the end.

What fails 2 to 4 is never played.  In an archive it is a `Failure` with its position: audit judged it good, so the
recording was changed.  In streams, which nobody judged (`judged` false), every reader refuses it as well: it had no
effect, whoever stored it, and is set aside and counted like what audit judged so.

Neither archive nor broker is trusted: whoever controls them can withhold messages, which `tallystick audit
verify` shows, and otherwise only make a replay fail.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from tallystick.record.chains import Sessions, StreamChains, open_message
from tallystick.record.rows import OK
from tallystick.schemas.errors import TallystickError
from tallystick.schemas.seal import ReaderChains, Statement, Verified, Verifier
from tallystick.schemas.subjects import SECURITY

# Kept to be shown at the end; the rest is counted.
MAX_FAILURES: Final = 100


class Recorded(NamedTuple):
    """One message as it was found: nothing of it is verified.

    `stored` is the broker's time (Unix ns), `position` what orders it against the authority's events: the log
    index in an archive, the broker's time in a stream.  `status` is the audit's judgement, `ok` where there is none.
    """

    stream: str
    seq: int
    subject: str
    payload: bytes
    stored: int
    position: int
    status: str = OK
    code: str = ""


class Played(NamedTuple):
    """One message that may be played: where it was found, and what it proved to be."""

    stream: str
    seq: int
    position: int
    verified: Verified

    @property
    def time(self) -> int:
        """When it was stated, Unix ns: what replays are ordered by."""
        return self.verified.statement.time


class Failure(msgspec.Struct, frozen=True):
    """Something that must not be played, and where it is; `seq` is 0 where no single message is meant."""

    stream: str
    seq: int
    subject: str
    code: str
    text: str
    stored: int = 0

    @property
    def time(self) -> int:
        """The broker's word on when it was stored: nothing of it is proven."""
        return self.stored

    def __str__(self) -> str:
        where = f"{self.stream} {self.seq}" if self.seq else self.stream
        return f"{self.code} at {where}{f' ({self.subject[:96]})' if self.subject else ''}: {self.text}"


Examined = Played | Failure


class Tally(msgspec.Struct):
    """What a replay read: counts, and the first failures."""

    messages: int = 0
    events: int = 0
    aside: Counter[str] = msgspec.field(default_factory=Counter)
    first_aside: dict[str, str] = msgspec.field(default_factory=dict)
    failed: int = 0
    failures: list[Failure] = msgspec.field(default_factory=list)

    def put_aside(self, code: str, stream: str, seq: int) -> None:
        """Count a message without effect; the first of each code is remembered with its place."""
        self.aside[code] += 1
        self.first_aside.setdefault(code, f"{stream} {seq}")

    def fail(self, failure: Failure) -> None:
        """Count a failure."""
        self.failed += 1
        if len(self.failures) < MAX_FAILURES:
            self.failures.append(failure)


class Judge:
    """Judges messages stream by stream, each in its order.  Owns a `ReaderChains` for each stream.

    `learn` every message of `cred.>` first: who was issued and revoked, and when.  `judged` says whether audit judged
    what it is given.
    """

    def __init__(self, verifiers: Sequence[Verifier], *, judged: bool = True) -> None:
        self.verifiers = verifiers
        self._judged = judged
        self.tally = Tally()
        self._sessions = Sessions()
        self._security = StreamChains(SECURITY, self._sessions)
        self._chains: dict[str, ReaderChains] = {}

    def learn(self, recorded: Recorded) -> None:
        """Take in the next message of `cred.>`, as the audit did; what does not verify teaches nothing."""
        opened = open_message(self.verifiers, recorded.subject, recorded.stream, recorded.payload, recorded.stored)
        self._security.judge(opened, recorded.position, recorded.seq)

    def examine(self, recorded: Recorded) -> Examined | None:
        """What the next message of its stream is: to be played, a failure, or None for one that is set aside."""
        if recorded.status != OK:
            self.tally.put_aside(recorded.code or recorded.status, recorded.stream, recorded.seq)
            return None
        examined = self._examine(recorded)
        if isinstance(examined, Failure) and not self._judged:
            self.tally.put_aside(examined.code, examined.stream, examined.seq)
            return None
        return examined

    def _examine(self, recorded: Recorded) -> Examined:
        stream, seq, subject, payload, stored, position, _, _ = recorded
        opened = open_message(self.verifiers, subject, stream, payload, stored)
        if isinstance(opened, TallystickError):
            return Failure(stream, seq, subject, opened.code, opened.text, stored)
        statement = opened.statement
        if not self._sessions.listed(statement.credential, position):
            text = f"{_whose(statement)} was not issued by the authority before this"
            return Failure(stream, seq, subject, "UNLISTED", text, stored)
        if self._sessions.died(statement.boot, position):
            text = f"{_whose(statement)} was revoked or had ended before this"
            return Failure(stream, seq, subject, "LATE", text, stored)
        chains = self._chains.get(stream)
        if chains is None:
            chains = self._chains[stream] = ReaderChains()
        try:
            chains.accept(opened)
        except TallystickError as exc:
            return Failure(stream, seq, subject, exc.code, exc.text, stored)
        return Played(stream, seq, position, opened)


def _whose(statement: Statement) -> str:
    return f"{statement.component}/{statement.boot.hex()[:8]}"
