"""The libraries of every process, without the optional parts that nobody here uses.

nats-py reads aiohttp for connections over WebSocket, structlog reads rich for coloured tracebacks: together some 250
modules, 13 MB and a quarter of a second, for each of a dozen processes.  Import this before anything that imports the two.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any, cast


@contextlib.contextmanager
def without(*packages: str) -> Iterator[None]:
    """What is imported within finds `packages` not installed, unless they were imported before.

    Source: Python's reference, 5.3.1: a name that is None in `sys.modules` raises `ModuleNotFoundError`.
    """
    modules = cast("dict[str, Any]", sys.modules)
    hidden = [name for name in packages if name not in modules]
    modules.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        for name in hidden:
            del modules[name]


with without("aiohttp", "rich", "better_exceptions", "colorama"):
    import nats.aio.client
    import structlog

__all__ = ("nats", "structlog", "without")
