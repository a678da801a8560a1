"""What execution keeps from one start to the next: its orders as the stream says, and what was asked for lately.

Intents are kept as the sealed messages that they are, and opened again: the second key of an order is taken from no file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tallystick.components.execution.intents import Intents
from tallystick.components.execution.orders import Orders, Row
from tallystick.schemas.seal import Verifier
from tallystick.schemas.subjects import ORDERS


class ExecutionState:
    """The state that is built from ORDERS (`runtime.bus.snapshots.Kept`)."""

    version = 1
    tables: Mapping[str, Any] = {"orders": Row, "intents": tuple[str, bytes]}

    def __init__(self, orders: Orders, intents: Intents, verifier: Verifier, clock: Callable[[], int]) -> None:
        self._orders = orders
        self._intents = intents
        self._verifier = verifier
        self._clock = clock

    def settled(self, _now: int) -> bool:
        """Always: what is under way is left out."""
        return True

    def snapshot(self) -> Mapping[str, Iterable[Any]]:
        """The rows of both tables."""
        return {"orders": self._orders.snapshot(), "intents": self._intents.snapshot()}

    def restore(self, tables: Mapping[str, list[Any]]) -> None:
        """Take the state from such rows.  Raises `Malformed` and `Unverified` for an intent that is none."""
        heard = [self._verifier.open(subject, ORDERS, payload) for subject, payload in tables["intents"]]
        self._orders.restore(tables["orders"])
        for intent in heard:
            self._intents.heard(intent, self._clock())
