"""The paper exchange's process: plays the deployment's market data and serves the venue's API.

- Only live messages are played: history would fill orders at prices that are over.
- A trade of an instrument that is not traded here is passed over; one that cannot have happened here (off the tick)
  becomes a dead letter.
- The folder `state/paper-exchange` holds the state (`state.jsonl`) and the request journal (`requests.jsonl`).
"""

from __future__ import annotations

from typing import Final

from tallystick.components.paper_exchange.access import parse_config
from tallystick.components.paper_exchange.server import Exchange
from tallystick.runtime.bus.received import Received
from tallystick.runtime.deployment.service import Service, ServiceContext
from tallystick.schemas.errors import ConfigError, Unverified
from tallystick.schemas.market import Trade

NAME: Final = "paper-exchange"


class PaperExchange(Service):
    """See the module docstring; `exchange` is there after `start`."""

    async def start(self, ctx: ServiceContext) -> None:
        """Listen, and play what comes.  Raises `ConfigError` for a configuration that is missing or not right."""
        deployment = ctx.deployment
        venue = deployment.config.venue
        if venue.kind != "paper":
            raise ConfigError("PAPER", f"venue {venue.name} is of kind {venue.kind}: there is nothing to serve")
        try:
            config = parse_config(deployment.paper_exchange.read_bytes())
            folder = deployment.state(NAME)
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as exc:
            raise ConfigError("PAPER", f"{exc.filename}: {exc.strerror}; `tallystick init` makes it") from exc
        tls = ctx.identity.server(mutual=False)
        self.exchange = Exchange(
            config,
            clock=ctx.clock,
            tls=tls,
            within=ctx.tasks,
            journal=folder / "requests.jsonl",
            state=folder / "state.jsonl",
            host=deployment.config.host,
            port=venue.port(),
        )
        self._ctx = ctx
        self._venue = venue.name
        self._symbols = {i.name: i.symbol for i in config.instruments}
        ctx.subscribe("md.trade.>", self._on_trades)
        ctx.at_stop(self.exchange.stop)
        try:
            await self.exchange.start()
        except OSError as exc:
            where = f"port {venue.port()} on {deployment.config.host}"
            # No ConfigError: whoever holds the port may let it go, and the supervisor tries again.
            raise Unverified("PORT_TAKEN", f"{where}: {exc.strerror}; stop the other program or change it") from exc
        ctx.log.info("listening", host=deployment.config.host, port=self.exchange.port)

    def _on_trades(self, received: Received) -> None:
        symbol = self._symbols.get(received.subject.symbol)
        if symbol is None or received.subject.venue != self._venue or not received.live:
            return
        for event in received.events:
            if isinstance(event, Trade):
                self.exchange.on_market_trade(symbol, event.price, event.qty, event.buyer_is_maker, event.time)
        self._ctx.metrics.add("trades_played", len(received.events))


SERVICE = PaperExchange
