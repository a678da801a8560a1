"""A running deployment whose API keys are changed, with its venue in the test's process, and what is told of both."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets as entropy
import signal
import time
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec

import tests
from tallystick import venues
from tallystick.cli import operate
from tallystick.cli.status import processes
from tallystick.components.paper_exchange.access import Key, parse_config
from tallystick.components.paper_exchange.server import Exchange
from tallystick.infra.nats.topology import KEYMASTER
from tallystick.runtime.bus.received import Received
from tallystick.runtime.bus.tasks import Tasks
from tallystick.runtime.deployment.ceremony import init
from tallystick.runtime.deployment.config import StrategyConfig
from tallystick.runtime.deployment.folder import Deployment, api_key_name, key_id_name, passphrase_name, pin_name
from tallystick.runtime.deployment.template import DEFAULT_TEMPLATE
from tallystick.runtime.keys import inventory
from tallystick.runtime.keys.hsm import Token
from tallystick.runtime.keys.identity import Identity
from tallystick.runtime.keys.keystore import Keystore, Secret
from tallystick.schemas.errors import ConfigError
from tallystick.schemas.market import Trade
from tallystick.schemas.orders import Fill, OrderEvent, VenueOrder
from tallystick.schemas.security import DeadLetter, KeyRotation, Notice
from tallystick.schemas.signing import Signed
from tallystick.venues import Rejected
from tallystick.venues.client import VenueClient
from tallystick.venues.keys import KeyRights
from tests.support.deployment import Running, running
from tests.support.waiting import until

PARTS = ("breaker", "gateway", "custody", "execution", "portfolio", "market-data", "strategy-alpha", KEYMASTER)
# How the names of a thief's orders begin.
THIEF = "7e1ef7e1"
STRATEGY = str(Path(tests.__path__[0]) / "support" / "crash_strategy.py")


PIN = Secret("rotation-test-master-pin-81")


def make(folder: Path, template: str = DEFAULT_TEMPLATE, *, rotation: bool = True) -> tuple[Deployment, Keystore]:
    """A deployment with a strategy that orders all the time, with `rotation` also a keymaster."""
    for old, new in (
        ("messages_per_second = 10", "messages_per_second = 1000"),
        ("burst = 20", "burst = 1000"),
        ('max_hourly = "500', 'max_hourly = "500000'),
        ('max_position_notional = "20000"', 'max_position_notional = "20000000"'),
        ('max_open_notional = "20000"', 'max_open_notional = "20000000"'),
        ('max_gross_notional = "50000"', 'max_gross_notional = "50000000"'),
    ):
        template = template.replace(old, new)
    strategy = StrategyConfig(name="alpha", module=STRATEGY, instruments=("XRP/ETH",))
    deployment = init(folder, "test", PIN, time.time_ns, strategies=(strategy,), template=template, rotation=rotation)
    return deployment, Keystore.open(deployment.keystore, PIN)


class Desk:
    """`exchange` is the venue itself; `steps`, `orders`, `fills`, `told` are what stands on the record, as it came."""

    def __init__(self, up: Running, exchange: Exchange) -> None:
        self.up = up
        self.deployment = up.deployment
        self.keystore = up.keystore
        self.exchange = exchange
        self.steps: list[KeyRotation] = []
        self.orders: list[OrderEvent] = []
        self.fills: list[Fill] = []
        self.told: list[Notice | DeadLetter] = []
        # Who told it, and the code.
        self.codes: list[tuple[str, str]] = []

    def play(self, received: Received) -> None:
        """The market, at the venue."""
        for event in received.events:
            if isinstance(event, Trade) and received.live and received.subject.symbol == "XRP/ETH":
                self.exchange.on_market_trade("XRPETH", event.price, event.qty, event.buyer_is_maker, event.time)

    def hear(self, received: Received) -> None:
        for event in received.events:
            if isinstance(event, KeyRotation):
                self.steps.append(event)
            elif isinstance(event, OrderEvent):
                self.orders.append(event)
            elif isinstance(event, Fill):
                self.fills.append(event)
            elif isinstance(event, Notice | DeadLetter):
                self.told.append(event)
                self.codes.append((received.statement.component, event.code))

    def accepted(self) -> int:
        """How many orders the venue took."""
        return sum(event.state == "accepted" for event in self.orders)

    async def trades(self, more: int = 5) -> None:
        """Wait until so many more orders were taken."""
        wanted = self.accepted() + more
        await until(lambda: self.accepted() >= wanted, lambda: f"no order: {self.orders[-3:]} {self.told[-3:]}", 30)

    async def secrets(self, component: str) -> dict[str, Secret]:
        """What the vault holds for a component."""
        assert self.up.supervisor.vault is not None
        return dict(await asyncio.to_thread(self.up.supervisor.vault.secrets, component))

    async def in_use(self, component: str) -> tuple[str, str]:
        """The key that the vault names: its id in the token, and at the venue."""
        found = await self.secrets(component)
        name = key_id_name(component)
        return (found[name].reveal() if name in found else "venue"), found[api_key_name(component)].reveal()

    async def in_token(self, component: str) -> set[str]:
        """The keys in a component's token, as a thief sees them who has its PIN."""
        pin = (await self.secrets(component))[pin_name(component)]
        with Token.open(self.deployment.token(component), component, pin) as token:
            return {key.name for key in inventory.keys(token)}

    def at_venue(self) -> list[Key]:
        """The keys of the account that trades, by the venue's own word."""
        return self.exchange.keys.of("main")

    def open_of(self, prefix: str) -> int:
        """How many orders of such names are open at the venue."""
        return sum(order.client_id.startswith(prefix) for order in self.exchange.engine.open_orders("main"))

    async def kill(self, component: str) -> None:
        """SIGKILL; wait until it is back."""
        pid = dict(processes(self.deployment))[component]
        os.kill(pid, signal.SIGKILL)
        await until(lambda: dict(processes(self.deployment)).get(component) not in (None, pid), component, 40)

    async def step(self, name: str, after: int) -> KeyRotation:
        """Wait for a step among those that are told after the first `after`."""
        found: list[KeyRotation] = []

        def there() -> bool:
            found[:] = [step for step in self.steps[after:] if step.step == name]
            return bool(found)

        await until(there, lambda: f"{name}: {[s.step for s in self.steps[after:]]} {self.told[-3:]}", 60)
        return found[0]


class Thief:
    """Has the token's files and PIN of a component, and asks the venue with its key for as long as that goes."""

    def __init__(self, desk: Desk, component: str) -> None:
        self._desk = desk
        self._component = component
        self.answers: list[KeyRights | Rejected] = []

    @contextlib.asynccontextmanager
    async def _in(self) -> AsyncIterator[tuple[VenueClient, Token, str, str]]:
        """His way to the venue, the token, and the key: its id there, and at the venue."""
        desk, venue = self._desk, self._desk.deployment.config.venue
        adapter = venues.adapter(venue.api)
        key_id, api_key = await desk.in_use(self._component)
        pin = (await desk.secrets(self._component))[pin_name(self._component)]
        client = VenueClient(adapter, venue.host, venues.client_tls(desk.deployment.venue_ca), time.time_ns)
        try:
            with Token.open(desk.deployment.token(self._component), self._component, pin) as token:
                yield client, token, key_id, api_key
        finally:
            await client.close()

    async def run(self) -> None:
        """Until the key is not in the token any more."""
        venue = self._desk.deployment.config.venue
        adapter = venues.adapter(venue.api)
        async with self._in() as (client, token, key_id, api_key):
            signer = token.signer(key_id.encode())
            request = adapter.rights_request(venue.host, api_key, signer, time.time_ns)
            while any(key.name == key_id for key in inventory.keys(token)):
                with contextlib.suppress(ConfigError):  # between the look and the use
                    request = adapter.rights_request(venue.host, api_key, signer, time.time_ns)
                await self._ask(client, adapter, request)
                await asyncio.sleep(0.1)
            # What he signed last is all that he has.
            await self._ask(client, adapter, request)

    async def trade(self) -> Rejected:
        """Place orders far below the market until the venue refuses him; how."""
        venue, trust = self._desk.deployment.config.venue, self._desk.deployment.load_trust()[-1]
        adapter, instrument = venues.adapter(venue.api), trust.instrument(venue.name, "XRP/ETH")
        async with self._in() as (client, token, key_id, api_key):
            signer = token.signer(key_id.encode())
            record = trust.venues[venue.name]
            build = adapter.request_builder(record, trust.instruments, api_key, signer, time.time_ns)
            while True:
                name = f"{THIEF}{entropy.token_hex(12)}"
                order = VenueOrder("XRPETH", "BUY", "LIMIT", "GTC", "100", "0.0001", name)
                sent = await client.send(_signed(build.order(instrument, order)))
                answer = adapter.order_answer(*sent, instrument.venue_symbol)
                if isinstance(answer, Rejected):
                    return answer
                await asyncio.sleep(0.1)

    async def _ask(self, client: VenueClient, adapter: venues.Adapter, request: venues.SignedRequest) -> None:
        answer = adapter.rights_answer(*await client.send(_signed(request)))
        assert isinstance(answer, KeyRights | Rejected)
        self.answers.append(answer)


def _signed(request: venues.SignedRequest) -> Signed:
    return Signed(id=0, **msgspec.structs.asdict(request))


@contextlib.asynccontextmanager
async def venue_of(deployment: Deployment, keystore: Keystore) -> AsyncIterator[Exchange]:
    """The deployment's paper exchange in this process, before anybody else runs."""
    passphrase = keystore[passphrase_name("paper-exchange")]
    identity = Identity(deployment.name, deployment.issuing_ca, deployment.identity("paper-exchange"), passphrase)
    folder = deployment.state("paper-exchange")
    folder.mkdir(parents=True, exist_ok=True)
    exchange = Exchange(
        parse_config(deployment.paper_exchange.read_bytes()),
        clock=time.time_ns,
        tls=identity.server(mutual=False),
        within=Tasks(),
        journal=folder / "requests.jsonl",
        state=folder / "state.jsonl",
        port=deployment.config.venue.port(),
    )
    await exchange.start()
    try:
        yield exchange
    finally:
        await exchange.stop()


@contextlib.asynccontextmanager
async def rotating_desk(
    deployment: Deployment, keystore: Keystore, report: Callable[[str], Any] = lambda _: None
) -> AsyncIterator[Desk]:
    """Everything runs and trades."""
    async with (
        venue_of(deployment, keystore) as exchange,
        running(deployment, keystore, *PARTS, report=report) as up,
    ):
        desk = Desk(up, exchange)
        market = await up.context("paper-exchange")
        market.subscribe("md.trade.>", desk.play)
        market.open()
        reader = await up.context("console")
        for patterns in (("order.event.>", "fill.>"), ("control.config.>",), ("guard.>", "dead.>")):
            reader.subscribe(patterns, desk.hear)
        reader.open()
        await reader.caught_up()
        await operate.arm(deployment, keystore, Decimal(1))
        await desk.trades()
        yield desk
