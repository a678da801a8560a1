"""The console's process: verified events into the state that views show."""

from __future__ import annotations

from tallystick.components import Component, Context, Received
from tallystick.components.console.state import DeskState

# What a view shows at once when it starts.
ORDERS_TAIL = 200
READS = (
    "md.>", "ref.>", "signal.>", "order.>", "fill.>", "position.>",
    "control.>", "cred.>", "alert.>", "audit.>", "guard.>", "dead.>",
)  # fmt: skip


class Console(Component):
    """Holds `state` for whoever draws it; `ctx` is there from `start` on."""

    def __init__(self) -> None:
        self.state = DeskState()
        self.ctx: Context | None = None

    async def start(self, ctx: Context) -> None:
        """Subscribe to everything."""
        self.ctx = ctx
        for pattern in READS:
            ctx.subscribe(pattern, self._on_message, start=ORDERS_TAIL if pattern == "order.>" else "new")

    def _on_message(self, received: Received) -> None:
        self.state.apply(received.subject, received.events, received.received)


COMPONENT = Console
