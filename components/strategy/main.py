"""The strategy process: loads one strategy and connects it to the bus.

- Its own decisions, order events and positions are read from the beginning, or from a snapshot on, so it starts with what
  it holds and what is still open; market data only from now on, and only fresh.
- User code that raises halts the strategy, not the process (`host`): it stays, keeps cancelling what turns up, and
  does not trade until a person restarts it.  A restart by a supervisor would repeat whatever went wrong.

The strategy's process is not trusted: an attacker who controls it can at most ask for orders in its own name.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tallystick.components.strategy.host import Host, Output
from tallystick.components.strategy.load import load_strategy, typed_params
from tallystick.runtime.bus.received import Received
from tallystick.runtime.deployment.config import StrategyConfig
from tallystick.runtime.deployment.service import Service, ServiceContext
from tallystick.schemas.errors import ConfigError
from tallystick.schemas.subjects import ORDERS, subject

PREFIX: Final = "strategy-"


class StrategyProcess(Service):
    """See the module docstring."""

    def __init__(self, config: StrategyConfig | None = None, venue: str = "", folder: Path | None = None) -> None:
        """`config`, `venue` and `folder` replace the deployment's."""
        self._given = config
        self._venue = venue
        self._folder = folder

    async def start(self, ctx: ServiceContext) -> None:
        """Load the strategy.  Raises `ConfigError`."""
        self.ctx = ctx
        config, venue, folder = self._given, self._venue, self._folder
        if config is None or folder is None:
            deployment = ctx.deployment
            venue, folder = deployment.config.venue.name, deployment.directory
            config = next((s for s in deployment.config.strategies if s.component == ctx.component), None)
            if config is None:
                raise ConfigError("STRATEGY", f"deployment.toml has no strategy {ctx.component.removeprefix(PREFIX)}")
        strategy = load_strategy(config.module, folder)
        self.host = Host(
            strategy,
            name=config.name,
            venue=venue,
            symbols=config.instruments,
            params=typed_params(strategy, config.params),
            new=ctx.new,
            instrument=lambda symbol: ctx.trust.instrument(venue, symbol),
            log=ctx.log,
        )
        ctx.log.info("strategy loaded", module=config.module, sha256=_digest(strategy), params=dict(config.params))
        own = f"{config.name}.{venue}.>"
        ctx.subscribe(
            (f"order.decision.{own}", f"order.event.{own}", f"fill.{own}", f"position.{own}"),
            self._on_orders,
            start="all",
        )
        ctx.keep(ORDERS, self.host)
        for symbol in config.instruments:
            ctx.subscribe(
                tuple(subject(kind, venue=venue, symbol=symbol).text for kind in ("md.trade", "md.quote")),
                self._on_market,
            )

    async def ready(self) -> None:
        """What it holds is known: begin."""
        self._publish(self.host.start(self.ctx.clock()))

    def status(self) -> dict[str, str]:
        """Whether it was halted, and by what."""
        return {"halted": self.host.halted} if self.host.halted else {}

    def _on_orders(self, received: Received) -> None:
        for event in received.events:
            self._publish(self.host.on_event(received.subject, event))

    def _on_market(self, received: Received) -> None:
        if received.live:
            for event in received.events:
                self._publish(self.host.on_event(received.subject, event))

    def _publish(self, outputs: Iterable[Output]) -> None:
        for where, event in outputs:
            self.ctx.publish(where, event)


def _digest(strategy: object) -> str:
    """SHA-256 of the file that the strategy's class is from: what ran stands in the log."""
    return hashlib.sha256(Path(inspect.getfile(type(strategy))).read_bytes()).hexdigest()


SERVICE = StrategyProcess
