"""nats-py, which administers the broker.  Whoever only trades has `runtime.bus.wire`, and does not read it.

It reads aiohttp for connections over WebSocket, which nobody here makes.
"""

from __future__ import annotations

from tallystick.runtime import lean

with lean.without("aiohttp"):
    from nats.aio.client import Client
    from nats.errors import Error as NatsError

__all__ = ("Client", "NatsError")
