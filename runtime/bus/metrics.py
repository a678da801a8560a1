"""Counters of one process, and the hook through which telemetry reads them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

Hook = Callable[[str, int], None]


class Metrics:
    """Named counters that only rise, and hooks that see every addition."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._hooks: list[Hook] = []

    def add(self, name: str, amount: int = 1) -> None:
        """Count."""
        self._counts[name] += amount
        for hook in self._hooks:
            hook(name, amount)

    def on_add(self, hook: Hook) -> None:
        """Call `hook(name, amount)` at every addition; it must be quick and must not raise."""
        self._hooks.append(hook)

    def snapshot(self) -> dict[str, int]:
        """All counts, by name."""
        return dict(sorted(self._counts.items()))
