"""The base of every component: what a user writes is a subclass with `start`.

class Printer(Component):
async def start(self, ctx: Context) -> None:
ctx.subscribe("md.trade.>", self.on_trade)

def on_trade(self, received: Received) -> None:
for trade in received.events:
print(received.subject.symbol, trade.price)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tallystick.runtime.bus.context import Context


class Component:
    """One process of the system.

    `listed`: live messages that move money or lift a guard must come from sessions on the authority's
    list (at most 3 s old).  Custody sets it.  Gateway, execution and portfolio ask for themselves, since what
    they refuse has to be accounted for; the breaker halts at anybody's word that is not revoked.
    """

    listed = False

    async def start(self, ctx: Context) -> None:
        """Subscribe here.  Reading begins when this returns; background work goes into `ctx.spawn`."""
        raise NotImplementedError

    async def ready(self) -> None:
        """Called once everything stored before the start was handled; the process then counts as ready."""

    async def stop(self) -> None:
        """Called before the readers stop and the chains are closed; publishing still works."""
