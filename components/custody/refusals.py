"""What custody was asked for and refused: who asked, for what, and why; each attempt counts, and none can be hidden.

- Each attempt has a number and stands in a chain: its record holds the SHA-256 of the record before.  What is published
  is the newest of these hashes, so that it speaks for every attempt, in its order, also where the record was not kept.
- Records are kept in files of their own (`files`, kind `refused`): as many as `_KEPT` allows, so that no flood fills the
  disk.  Where some were not kept, the next number says how many.
- People are told on `guard.custody`: of orders at most once a second (`ORDER_REFUSED`), of everything else at most every
  five seconds (`SIGNING_REFUSED`); how many of each code, the first and the last in full.  What anybody may do at the
  door (rubbish, connections) crowds out no attempt at an order, neither in the files nor in what is told, and all of it
  stays far below what GUARD holds of one subject before it forgets.
- A restart goes on from the last record.

The files are not trusted: an attacker who controls them can at most drop or change records, which the published hashes
show.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal, NamedTuple

import msgspec

from tallystick.components.custody.files import DayFiles
from tallystick.components.custody.journal import GENESIS
from tallystick.runtime.unix_socket import Peer
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.errors import NOT_DECODED, ConfigError

Class = Literal["order", "other"]

# What a record keeps of a text that somebody else chose, in printable ASCII.
MAX_TEXT: Final = 300
# The longest record, if all its texts are backslashes.
MAX_RECORD: Final = 4_096
# How many of the first and of the last attempts a notice tells in full.
TOLD: Final = 3
# At least one record fits in the end of a file that a start reads.
_TAIL: Final = 65_536


class _Pace(NamedTuple):
    """Records that are kept: `burst` at once, `per_second` in the long run; and how often people are told."""

    burst: int
    per_second: float
    told_ns: int


# A hundred megabytes of ordinary records a day; below a gigabyte if each is as long as may be.
_KEPT: Final[dict[Class, _Pace]] = {
    "order": _Pace(4_096, 1.5, SECOND),
    "other": _Pace(1_024, 0.5, 5 * SECOND),
}


class Refusal(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One refused attempt: `number` rises by one, `time` is Unix ns, `prev` the SHA-256 of the record before (hex).

    `pid` and `uid` are the kernel's word; `asker` is `<component>/<boot>` of the session that signed the request, ""
    where none did.  `op`: what was asked for (`order`, `cancel` …; `frame` for what was no request, `connection`);
    `about`: the decision's subject, or venue and symbol.
    """

    number: int = 0
    time: int = 0
    code: str
    text: str
    pid: int
    uid: int
    asker: str = ""
    op: str
    about: str = ""
    decision_id: str = ""
    client_order_id: str = ""
    prev: str = GENESIS

    def __str__(self) -> str:
        """In a sentence, for people."""
        named = ((self.about, "about"), (self.decision_id, "decision"), (self.client_order_id, "order"))
        what = " ".join([self.op, *(f"{word} {value}" for value, word in named if value)])
        return f"{self.code}: {self.text} ({what}; by {self.asker or 'no session'}, pid {self.pid}, uid {self.uid})"


class Told(NamedTuple):
    """A notice to people; `evidence` is the newest hash."""

    code: str
    text: str
    evidence: bytes


class _Untold:
    """What people have not been told yet."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: list[Refusal] = []
        self.last: deque[Refusal] = deque(maxlen=TOLD)
        self.kept = 0

    def add(self, refusal: Refusal, kept: bool) -> None:
        self.counts[refusal.code] += 1
        self.kept += kept
        if len(self.first) < TOLD:
            self.first.append(refusal)
        else:
            self.last.append(refusal)


class _Room:
    """How many records may still be kept."""

    def __init__(self, pace: _Pace) -> None:
        self._pace = pace
        self._left = float(pace.burst)
        self._at = 0

    def take(self, now: int) -> bool:
        # A clock that is put back gives no room.
        self._left = min(self._pace.burst, self._left + max(0, now - self._at) / SECOND * self._pace.per_second)
        self._at = max(self._at, now)
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Refusals:
    """See the module docstring.  Owns the files in `directory`; one process at a time, within its event loop.

    Raises `ConfigError` for a folder that cannot be read.
    """

    def __init__(self, directory: Path, clock: Callable[[], int]) -> None:
        self._files = DayFiles(directory, "refused")
        self._clock = clock
        self.number = 0
        self.head = GENESIS
        self.counts: Counter[str] = Counter()
        self._room = {kind: _Room(pace) for kind, pace in _KEPT.items()}
        self._untold: dict[Class, _Untold] = {kind: _Untold() for kind in _KEPT}
        self._told: dict[Class, int] = {}
        self._failed = ""
        try:
            for path in reversed(self._files.newest(2)):
                if self._resume(path):
                    break
        except OSError as exc:
            raise ConfigError(
                "JOURNAL", f"{directory}: {exc.strerror}; custody needs a folder that it may write"
            ) from exc

    def _resume(self, path: Path) -> bool:
        """Whether the file holds a record to go on from."""
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL))
            for text in reversed(file.read().split(b"\n")):
                try:
                    self.number = msgspec.json.decode(text, type=Refusal).number
                except NOT_DECODED:
                    continue  # torn, or the cut at our beginning
                self.head = hashlib.sha256(text).hexdigest()
                return True
        return False

    def note(self, code: str, text: str, peer: Peer, op: str, **known: str) -> Refusal | None:
        """An attempt was refused; `known`: further fields of `Refusal`.  The record, where it was kept."""
        now = self._clock()
        kind: Class = "order" if op == "order" else "other"
        cut = {name: _plain(value) for name, value in {"text": text, "op": op, **known}.items()}
        refusal = Refusal(
            number=self.number + 1, time=now, code=code, pid=peer.pid, uid=peer.uid, prev=self.head, **cut
        )
        line = msgspec.json.encode(refusal)
        self.number, self.head = refusal.number, hashlib.sha256(line).hexdigest()
        kept = self._room[kind].take(now) and self._keep(line, now)
        self.counts[code] += 1
        self._untold[kind].add(refusal, kept)
        return refusal if kept else None

    def _keep(self, line: bytes, now: int) -> bool:
        try:
            self._files.write(line, now)
        except OSError as exc:
            # It still counts, and is told.
            self._failed = f"; no record can be written: {exc.strerror}"
            return False
        self._failed = ""
        return True

    def report(self, *, last: bool = False) -> list[Told]:
        """What people are to be told now; `last`: all that is left, since there is no later."""
        now = self._clock()
        notices = []
        for kind, untold in self._untold.items():
            early = abs(now - self._told.get(kind, now - SECOND * 60)) < _KEPT[kind].told_ns
            if not untold.counts or (early and not last):
                continue
            self._told[kind], self._untold[kind] = now, _Untold()
            counts = ", ".join(f"{code}={n}" for code, n in sorted(untold.counts.items()))
            text = (
                f"{counts}; {untold.kept} of {untold.counts.total()} on record, the newest is number {self.number}, "
                f"evidence is its SHA-256{self._failed}; first: {' | '.join(map(str, untold.first))}"
            )
            if untold.last:
                text += f"; last: {' | '.join(map(str, untold.last))}"
            head = bytes.fromhex(self.head)
            notices.append(Told("ORDER_REFUSED" if kind == "order" else "SIGNING_REFUSED", text, head))
        return notices

    def close(self) -> None:
        """Close the file."""
        self._files.close()


def _plain(text: str) -> str:
    return ascii(text[:MAX_TEXT])[1:-1][:MAX_TEXT]
