"""A request on its way to an endpoint, whichever door it came by."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from tallystick.components.paper_exchange.access import Key, Permission
from tallystick.components.paper_exchange.orders import Order


@dataclass(slots=True)
class Call:
    """A request on its way through an endpoint, and what the journal and the headers will say of it."""

    key: Key
    parameters: dict[str, str]
    now_ms: int
    order: Order | None = None
    headers: MutableMapping[str, str] = field(default_factory=dict)


@dataclass(slots=True, frozen=True)
class Public:
    """An endpoint for everyone: `run(parameters, now in ms)` answers."""

    run: Callable[[dict[str, str], int], Any]
    weight: int
    parameters: frozenset[str] = frozenset()


@dataclass(slots=True, frozen=True)
class Keyed:
    """An endpoint for whoever names a key that may read: nothing is signed."""

    run: Callable[[Call], Any]
    weight: int
    parameters: frozenset[str] = frozenset()


@dataclass(slots=True, frozen=True)
class Signed:
    """An endpoint for keys with a permission; `body` are parameters that may not stand in the query."""

    run: Callable[[Call], Any]
    weight: int
    permission: Permission
    parameters: frozenset[str]
    journalled: bool = False
    body: frozenset[str] = frozenset()


Endpoint = Public | Keyed | Signed
