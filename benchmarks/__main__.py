"""`python -m benchmarks [--write] [NAME …]`: measure side by side with the peers and print one Markdown table.

NAME is one of `MODULES`; none means all.  `--write` also puts the whole table into docs/performance.md, between its
markers.  Progress goes to standard error.  Exit code 1: a measurement failed; 2: something that is needed is missing, or a name is wrong.
"""

from __future__ import annotations

import datetime as dt
import importlib
import logging
import os
import platform
import resource
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Final

import structlog

from benchmarks.report import Row, Void, say, table

MODULES: Final = ("bus", "replay", "audit", "streams", "custody", "live", "renewal", "idle")
DOCUMENT: Final = Path(__file__).parents[1] / "docs" / "performance.md"
BEGIN: Final = "<!-- measured: written by python -m benchmarks --write -->"
END: Final = "<!-- end of measured -->"
USAGE: Final = f"usage: python -m benchmarks [--write] [{' | '.join(MODULES)} …]"


class Missing(Exception):
    """Something that the measurement needs is not there."""


def module(name: str) -> ModuleType:
    """A benchmark.  Raises `Missing`."""
    try:
        return importlib.import_module(f"benchmarks.bench_{name}")
    except ModuleNotFoundError as exc:
        raise Missing(f"{exc.name} is not installed: run `make bench`, or install the extra `dev`") from exc


def require() -> None:
    """Raise `Missing` for a program that the servers need."""
    beside = str(Path(sys.executable).parent)
    if shutil.which("nats-server", path=beside) is None and shutil.which("nats-server") is None:
        raise Missing("no nats-server beside this Python or on PATH: run `make bench`, which installs it")
    if shutil.which("softhsm2-util") is None:
        raise Missing("no softhsm2-util on PATH: install the package softhsm2")


def machine() -> str:
    """Cores, processor and Python, as the table names them."""
    processor = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
    except OSError:
        pass  # no Linux: the platform module's word stands
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} cores, {processor}, Python {platform.python_version()}"


class Load:
    """How much of the machine's processors others used between start and `others`."""

    def __init__(self) -> None:
        self._began = self._read()

    @staticmethod
    def _read() -> tuple[float, float, float]:
        """Busy and all processor seconds since boot, and those of this process and its children that ended."""
        ticks = [int(n) for n in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        total, idle = sum(ticks) / 100, (ticks[3] + ticks[4]) / 100
        mine = sum(
            usage.ru_utime + usage.ru_stime
            for usage in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
        )
        return total - idle, total, mine

    def others(self) -> float:
        """Their share of all processor time, 0 to 1."""
        busy, total, mine = (now - then for now, then in zip(self._read(), self._began, strict=True))
        return max(0.0, (busy - mine) / total) if total else 0.0


def write(text: str, document: Path = DOCUMENT) -> None:
    """Put `text` between the document's markers.  Raises `Missing`."""
    try:
        before, _, rest = document.read_text("utf-8").partition(BEGIN)
        _, end, after = rest.partition(END)
    except OSError as exc:
        raise Missing(f"{document}: {exc.strerror}") from exc
    if not end:
        raise Missing(f"{document} has not both markers: {BEGIN} … {END}")
    document.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", "utf-8")


def measure(names: Sequence[str]) -> str:
    """Every row of `names` as text, with the machine and how busy it was otherwise."""
    rows: list[Row] = []
    modules = [module(name) for name in names]
    load, began = Load(), time.monotonic()
    for name, each in zip(names, modules, strict=True):
        own, started = Load(), time.monotonic()
        rows += each.rows()
        say(f"{name}: {time.monotonic() - started:.0f} s; others used {own.others():.0%} of the processors meanwhile")
    now = dt.datetime.now(dt.UTC)
    head = (
        f"{now:%Y-%m-%d}, {machine()}. Other work used {load.others():.0%} of the processors meanwhile;"
        f" {time.monotonic() - began:.0f} s in all."
    )
    return f"{head}\n\n{table(rows)}"


def main(arguments: Sequence[str]) -> int:
    """See the module docstring."""
    options = [a for a in arguments if a.startswith("-")]
    names = [a for a in arguments if not a.startswith("-")] or list(MODULES)
    if set(options) - {"--write"} or set(names) - set(MODULES):
        print(USAGE, file=sys.stderr)
        return 2
    if options and set(names) != set(MODULES):
        print("benchmarks: --write replaces the whole table: measure everything", file=sys.stderr)
        return 2
    # Servers that are stopped on purpose are no news here; errors are.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    try:
        require()
        text = measure(names)
        if options:
            write(text)
    except Missing as exc:
        print(f"benchmarks: {exc}", file=sys.stderr)
        return 2
    except Void as exc:
        print(f"benchmarks: no measurement: {exc}", file=sys.stderr)
        return 1
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
