"""One row of the table: what was measured, what the peer did in the same run, and the ratio."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec


class Void(Exception):
    """What was measured is not what it claims to be: there is no number."""


class Row(msgspec.Struct, frozen=True):
    """`value`, `tail` and `peer` are in `unit`; `target` is text; a rate is better high, a time better low.

    `value` may be a median; `tail` is its 99th percentile then.
    """

    what: str
    value: float
    unit: str
    target: str = ""
    peer: float = 0.0
    peer_name: str = ""
    tail: float = 0.0

    @property
    def ratio(self) -> str:
        """Ours over the peer's, or nothing."""
        return f"{self.value / self.peer:.2f}" if self.peer else ""


def table(rows: Iterable[Row]) -> str:
    """The rows as Markdown."""
    lines = ["| | reached | target | peer in the same run | ratio |", "|---|---|---|---|---|"]
    for row in rows:
        peer = f"{row.peer_name}: {number(row.peer)} {row.unit}" if row.peer else ""
        tail = f", p99 {number(row.tail)} {row.unit}" if row.tail else ""
        lines.append(f"| {row.what} | {number(row.value)} {row.unit}{tail} | {row.target} | {peer} | {row.ratio} |")
    return "\n".join(lines)


def number(value: float) -> str:
    """Three digits that mean something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def percentiles(samples: list[float]) -> tuple[float, float]:
    """p50 and p99."""
    ordered = sorted(samples)
    return ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]


def say(text: str) -> None:
    """Progress, beside the table on standard output."""
    print(f"{time.strftime('%H:%M:%S', time.gmtime())}  {text}", file=sys.stderr, flush=True)


def rate(work: Callable[[], int]) -> float:
    """What `work` counts, a second."""
    began = time.perf_counter()
    count = work()
    return count / (time.perf_counter() - began)


def resident_mb() -> float:
    """What this process holds in memory now, MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
