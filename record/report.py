"""What a verification found: defects by stream and kind, incidents, counts.  Pure."""

from __future__ import annotations

from collections import Counter

import msgspec

from tallystick.record.chains import Torn

# Defects of one kind in one stream that are kept with their places; the rest is counted, so that none hides another.
MAX_SHOWN = 100


class Problem(msgspec.Struct, frozen=True):
    """One defect and where it is.  `row` counts from 0 in its file; -1 and "" mean "not of one row, file, stream"."""

    code: str
    text: str
    file: str = ""
    row: int = -1
    stream: str = ""
    stream_seq: int = -1
    event: int = -1

    def __str__(self) -> str:
        where = []
        if self.stream:
            where.append(self.stream if self.stream_seq < 0 else f"{self.stream} {self.stream_seq}")
        if self.event >= 0:
            where.append(f"event {self.event}")
        if self.file:
            where.append(self.file if self.row < 0 else f"{self.file} row {self.row}")
        return f"{self.code} at {', '.join(where) or 'the archive'}: {self.text}"


class Incident(msgspec.Struct):
    """An attack that had no effect, as often as it occurred, and where first."""

    count: int
    stream: str
    stream_seq: int
    component: str


class Covered(msgspec.Struct, frozen=True):
    """The newest checkpoint that holds: `entries` lines with hash `head`, `messages` messages, sealed at `time` (Unix ns)."""

    entries: int
    head: str
    messages: int
    time: int
    stream_seq: int


class Report(msgspec.Struct):
    """What verification found.  `clean` decides the exit code."""

    deployment: str = ""
    roots: int = 0
    messages: int = 0
    events: int = 0
    rows: int = 0
    segments: int = 0
    entries: int = 0
    checkpoints: int = 0
    chains: int = 0
    covered: Covered | None = None
    # What no checkpoint covers: manifest lines, messages, and how long before the newest message the oldest was stored.
    open_lines: int = 0
    open_messages: int = 0
    status: Counter[str] = msgspec.field(default_factory=Counter)
    incidents: Counter[str] = msgspec.field(default_factory=Counter)
    places: dict[tuple[str, str, str], Incident] = msgspec.field(default_factory=dict)
    torn: list[Torn] = msgspec.field(default_factory=list)
    notes: list[str] = msgspec.field(default_factory=list)
    problems: list[Problem] = msgspec.field(default_factory=list)
    kinds: Counter[tuple[str, str]] = msgspec.field(default_factory=Counter)

    @property
    def clean(self) -> bool:
        """Whether no defect was found."""
        return not self.kinds

    def add(self, problem: Problem) -> None:
        """Record a defect."""
        kind = (problem.stream, problem.code)
        self.kinds[kind] += 1
        if self.kinds[kind] <= MAX_SHOWN:
            self.problems.append(problem)

    def incident(self, code: str, stream: str, stream_seq: int, component: str) -> None:
        """Record an attack without effect."""
        self.incidents[code] += 1
        place = self.places.setdefault((code, stream, component), Incident(0, stream, stream_seq, component))
        place.count += 1
