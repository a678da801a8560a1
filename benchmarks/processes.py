"""What processes take of the machine: memory and processor time, from Linux's /proc."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

import msgspec

from benchmarks.report import Row

PROC = Path("/proc")


class Memory(msgspec.Struct, frozen=True):
    """MB of several processes.

    `pss` counts a page that n processes share as one n-th for each (proc(5), `smaps_rollup`), so that a sum counts it
    once; None where this user may not ask.  `rss` counts it n times.
    """

    rss: float
    pss: float | None

    def row(self, what: str, target: str = "") -> Row:
        """As a row: `pss`, or what is known instead, and its name."""
        if self.pss is None:
            return Row(what, self.rss, "MB of RSS (only root may ask for PSS)", target)
        return Row(what, self.pss, "MB", target)

    def __add__(self, other: Memory) -> Memory:
        both = None if self.pss is None or other.pss is None else self.pss + other.pss
        return Memory(self.rss + other.rss, both)

    def __str__(self) -> str:
        return f"{self.pss or 0:.0f} of {self.rss:.0f}"


def tree(root: int) -> dict[int, str]:
    """`root` and every process below it, with its component's name, or its program's."""
    children: dict[int, list[int]] = {}
    for folder in PROC.iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
                children.setdefault(int(parent), []).append(int(folder.name))
    found, waiting = {}, [root]
    while waiting:
        pid = waiting.pop()
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found[pid] = _name((PROC / str(pid) / "cmdline").read_bytes().split(b"\0"))
        waiting += children.get(pid, [])
    return found


def _name(words: list[bytes]) -> str:
    given = [Path(word.decode(errors="replace")).name for word in words]
    if not given[0].startswith("python"):
        return given[0]
    module = next((number for number, word in enumerate(given) if word.startswith("tallystick.")), None)
    if module is None:
        return next((word for word in given[1:] if not word.startswith("-")), given[0])
    return given[module + 2] if given[module].endswith(".process") else given[module].rpartition(".")[2]


def memory(pids: Iterable[int]) -> Memory:
    """What they hold now."""
    rss, pss = 0.0, 0.0
    known = True
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            rss += _field(pid, "status", "VmRSS")
            try:
                pss += _field(pid, "smaps_rollup", "Pss")
            except PermissionError:  # they are closed to others of their user: root may ask
                known = False
    return Memory(rss, pss if known else None)


def _field(pid: int, file: str, name: str) -> float:
    lines = (PROC / str(pid) / file).read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def processor_s(pid: int) -> float:
    """Seconds that the process's threads ran so far, to the nanosecond (`schedstat`); 0 for one that has ended."""
    total = 0
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in (PROC / str(pid) / "task").iterdir():
            total += int((thread / "schedstat").read_text().split()[0])
    return total / 1e9
