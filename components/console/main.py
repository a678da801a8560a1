"""The console's process: verified events into the state that views show."""

from __future__ import annotations

from collections.abc import Callable

from tallystick.components.console.state import DeskState
from tallystick.runtime.bus.received import Received
from tallystick.runtime.deployment.service import Service, ServiceContext

# What a view shows at once when it starts.
ORDERS_TAIL = 500
READS = (
    "md.>", "ref.>", "signal.>", "order.>", "fill.>", "position.>", "balance.>",
    "control.breaker.>", "control.arm.>", "control.config.>", "cred.>", "alert.>", "audit.>", "guard.>", "dead.>",
)  # fmt: skip


class Console(Service):
    """Holds `state` for whoever draws it; `ctx` is there from `start` on, `seen` is called with each message."""

    def __init__(self, seen: Callable[[Received], None] = lambda _: None) -> None:
        self.state = DeskState()
        self._seen = seen
        self.ctx: ServiceContext | None = None

    async def start(self, ctx: ServiceContext) -> None:
        """Subscribe to everything but what keys sign about themselves."""
        self.ctx = ctx
        for pattern in READS:
            known = pattern in ("order.>", "position.>", "balance.>")
            ctx.subscribe(pattern, self._on_message, start=ORDERS_TAIL if known else "new")

    def _on_message(self, received: Received) -> None:
        self.state.apply(received.subject, received.events, received.received)
        self._seen(received)


SERVICE = Console
