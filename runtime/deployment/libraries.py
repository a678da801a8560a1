"""The libraries of every process, without the optional parts that nobody here uses.

nats-py reads aiohttp for connections over WebSocket, structlog reads rich for coloured tracebacks: together some 250
modules, 13 MB and a quarter of a second.  To be imported before anything that imports the two.
"""

from __future__ import annotations

from tallystick.runtime import lean

with lean.without("aiohttp", "rich", "better_exceptions", "colorama"):
    import nats.aio.client
    import structlog

__all__ = ("nats", "structlog")
