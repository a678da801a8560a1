"""Execution, custody (its key in SoftHSM) and the paper exchange on a real broker; the gateway's decisions are the test's."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

from tallystick import venues
from tallystick.components.custody.main import Custody
from tallystick.components.execution.main import Execution
from tallystick.components.paper_exchange.access import Config, Key, Limits
from tallystick.components.paper_exchange.journal import Entry, read_journal
from tallystick.components.paper_exchange.orders import Instrument as PaperInstrument
from tallystick.components.paper_exchange.server import Exchange, Fault
from tallystick.runtime.bus.received import Received
from tallystick.runtime.bus.tasks import Tasks
from tallystick.runtime.deployment.config import parse_config
from tallystick.runtime.deployment.folder import KEY_VENUE, Deployment, api_key_name, pin_name
from tallystick.runtime.deployment.service import Service, ServiceContext
from tallystick.runtime.keys.hsm import Token, create_token
from tallystick.runtime.keys.keystore import Secret
from tallystick.schemas.orders import Decision, Intent, OrderEvent, Permit
from tallystick.schemas.registry import encode_events
from tallystick.schemas.seal import message_leaf
from tallystick.schemas.security import Arm, BreakerHeartbeat, DeadLetter, ListedSession, Notice, SessionList, Trip
from tallystick.schemas.trust import sign_document
from tests.support import world
from tests.support.bus import TestBus
from tests.support.runtime import Desk, sign_terms
from tests.support.tls import make_server_tls
from tests.support.waiting import until

API_KEY = "tradingkey"
XRP = "XRP/ETH"
LAST = "0.0013"
SECOND = 1_000_000_000

CONFIG = """
deployment = "test"
[broker]
port = 0
[authority]
port = 0
[venue]
name = "paper"
kind = "paper"
host = "127.0.0.1:{port}"
account = "main"
[[instruments]]
venue = "paper"
symbol = "XRP/ETH"
venue_symbol = "XRPETH"
base = "XRP"
quote = "ETH"
tick = "0.0000001"
step = "1"
min_notional = "0.001"
market_price = "0.0015"
[limits]
[[caps]]
account = "main"
asset = "ETH"
max_order = "5"
max_hourly = "500"
[[caps]]
account = "main"
asset = "XRP"
max_order = "5000"
max_hourly = "500000"
[market_data]
source = "synthetic"
"""


class Floor:
    """Everybody around execution.  `events` holds all order events as audit reads them, `notices` the guard's."""

    def __init__(self, bus: TestBus, folder: Path) -> None:
        self.bus = bus
        self.folder = folder
        self.desk = Desk(bus)
        self.faults: dict[str, Fault] = {}
        self.people: dict[str, ServiceContext] = {}
        self.events: list[OrderEvent] = []
        self.notices: list[Notice | DeadLetter] = []
        self.tripped: tuple[str, ...] = ()
        self.beating = self.listing = True
        self.number = 0
        self.running: dict[bytes, Service] = {}
        # decision id -> what its strategy asked for
        self.asked: dict[bytes, Intent] = {}
        self._beat: asyncio.Task[None] | None = None
        self._stack = contextlib.AsyncExitStack()

    async def open(self) -> None:
        folder = self.folder
        (folder / "pki").mkdir(parents=True)
        (folder / "run" / "custody").mkdir(parents=True)
        (folder / "hsm").mkdir()
        pin = Secret("trading-test-pin-31")
        create_token(folder / "hsm" / "custody", "custody", Secret("trading-test-so-pin-77"), pin)
        with Token.open(folder / "hsm" / "custody", "custody", pin, writable=True) as token:
            public = token.generate_ed25519(KEY_VENUE, "venue")
        self.secrets = {pin_name("custody"): pin, api_key_name("custody"): Secret(API_KEY)}
        paper = PaperInstrument(
            symbol="XRPETH",
            name=XRP,
            base="XRP",
            quote="ETH",
            tick=Decimal("0.0000001"),
            step=Decimal(1),
            min_notional=Decimal("0.001"),
        )
        config = Config(
            instruments=(paper,),
            accounts={"main": {"ETH": Decimal(100_000), "XRP": Decimal(10_000_000)}},
            keys=(
                Key(
                    api_key=API_KEY,
                    public_key=base64.b64encode(public).decode(),
                    account="main",
                    permissions=frozenset({"read", "trade"}),
                    ips=("127.0.0.1",),
                    listen_keys=False,
                ),
            ),
            limits=Limits(weight_minute=1_000_000, orders_10s=100_000),
        )
        self.exchange = Exchange(
            config,
            clock=time.time_ns,
            tls=make_server_tls(folder / "pki").server(),
            within=Tasks(),
            journal=folder / "paper.jsonl",
            faults=self.faults,
        )
        port = await self.exchange.start()
        self._stack.push_async_callback(self.exchange.stop)
        for maker in (True, False):
            price = Decimal(LAST) + (0 if maker else Decimal("0.0000002"))
            self.exchange.on_market_trade("XRPETH", price, Decimal(1_000_000), maker, time.time_ns())
        self.deployment = Deployment(folder, parse_config(CONFIG.format(port=port), "deployment.toml"))
        self.desk.trust = sign_terms(self.deployment, self.desk.trust)
        for name in ("authority", "breaker", "gateway", "strategy-alpha", "strategy-beta"):
            self.people[name] = await self.desk.context(name)
        audit = self.people["audit"] = await self.desk.context("audit")
        audit.subscribe("order.event.>", self._note, start="all")
        audit.subscribe(("guard.>", "dead.>"), self._note, start="all")
        audit.open()
        self._beat = asyncio.create_task(self._beats())

    async def close(self) -> None:
        if self._beat is not None:
            self._beat.cancel()
            await asyncio.gather(self._beat, return_exceptions=True)
        await self.desk.close()
        await self._stack.aclose()

    def _note(self, received: Received) -> None:
        for event in received.events:
            if isinstance(event, OrderEvent):
                self.events.append(event)
            elif isinstance(event, Notice | DeadLetter):
                self.notices.append(event)

    async def _beats(self) -> None:
        while True:
            self.say()
            await asyncio.sleep(0.1)

    def say(self) -> None:
        """What authority and breaker say several times a second."""
        self.number += 1
        authority, breaker = self.people["authority"], self.people["breaker"]
        if self.listing:
            live = tuple(
                ListedSession(c.component, c.boot, s.credential.digest, s.credential.expires_at)
                for c in self.desk.contexts
                if (s := c.link.session) is not None
            )
            authority.publish("cred.authority", authority.new(SessionList, number=self.number, live=live, revoked=()))
        if self.beating:
            trips = tuple(Trip(scope, "test", 1, "test") for scope in self.tripped)
            breaker.publish("control.breaker.all", breaker.new(BreakerHeartbeat, number=self.number, tripped=trips))

    def trip(self, *scopes: str) -> None:
        """Trip these scopes, told at once."""
        self.tripped = scopes
        self.say()

    async def custody(self) -> ServiceContext:
        """A custody that is ready and armed."""
        context = await self.desk.context("custody", deployment=self.deployment, secrets=dict(self.secrets))
        component = Custody()
        await component.start(context)
        context.open()
        await context.caught_up()
        await component.ready()
        self.running[context.boot] = component
        self.people["custody"] = context
        now = time.time_ns()
        lease = world.lease(self.desk.trust, now - SECOND, now + 3600 * SECOND)
        note = sign_document(lease, ("operator", world.key("operator")))
        breaker = self.people["breaker"]
        await breaker.publish("control.arm.execution", breaker.new(Arm, note=note))
        return context

    async def execution(self, checkpoint: Callable[[str], None] = lambda _: None) -> tuple[Execution, ServiceContext]:
        """An execution that is ready and has heard the breaker."""
        context = await self.desk.context("execution", deployment=self.deployment)
        component = Execution(checkpoint)
        await component.start(context)
        await context.resume()
        context.open()
        await context.caught_up()
        await component.ready()
        self.running[context.boot] = component
        self.people["execution"] = context
        await asyncio.sleep(0.3)  # three of the heartbeats that are said all the time
        return component, context

    async def gone(self, context: ServiceContext) -> None:
        """Stop a component, as it stops itself."""
        self.running.pop(context.boot)
        await context.close()
        self.desk.contexts.remove(context)

    def decision(self, strategy: str = "alpha", lifetime: float = 3.0, **order: str) -> Decision:
        """A permit of the gateway for an order that rests, unless `order` says otherwise; its strategy asks for just that."""
        gateway = self.people["gateway"]
        wanted = {"quantity": "10", "price": "0.0010001", "time_in_force": "GTC", **order}
        intent = self.people[f"strategy-{strategy}"].new(
            Intent,
            side="buy",
            type="limit",
            qty=Decimal(wanted["quantity"]),
            price=Decimal(wanted["price"]),
            tif=wanted["time_in_force"],
        )
        record = self.desk.trust.instrument("paper", XRP)
        permit = Permit(
            account="main",
            order=venues.adapter("binance-spot").venue_order(record, intent),
            instrument_hash=self.desk.trust.instrument("paper", XRP).digest,
            audience=self.people["custody"].boot,
            expires_at=time.time_ns() + int(lifetime * SECOND),
        )
        leaf = message_leaf(f"order.intent.{strategy}.paper.XRP-ETH", encode_events("order.intent", [intent]))
        decision = gateway.new(
            Decision,
            verdict="permit",
            intent_id=intent.id,
            intent_hash=leaf,
            trust_root=self.desk.trust.digest,
            permit=permit,
        )
        self.asked[decision.id] = intent
        return decision

    async def publish(self, decision: Decision, strategy: str = "alpha") -> None:
        """The strategy's intent, and what the gateway says to it."""
        intent = self.asked.get(decision.id)
        if intent is not None:
            await self.people[f"strategy-{strategy}"].publish(f"order.intent.{strategy}.paper.XRP-ETH", intent)
        await self.people["gateway"].publish(f"order.decision.{strategy}.paper.XRP-ETH", decision)

    async def place(self, strategy: str = "alpha", **kw: Any) -> Decision:
        """Publish a fresh decision."""
        decision = self.decision(strategy, **kw)
        await self.publish(decision, strategy)
        return decision

    def states(self, decision: Decision) -> list[str]:
        """The states that were published for a decision's order, in order."""
        return [e.state for e in self.events if e.intent_id == decision.intent_id]

    def last(self, decision: Decision) -> OrderEvent:
        return [e for e in self.events if e.intent_id == decision.intent_id][-1]

    async def until(self, what: Callable[[], object], timeout: float = 8.0) -> None:
        """Wait until `what()` is true."""
        await until(what, lambda: f"{[(e.state, e.code, e.text) for e in self.events][-8:]}", timeout)

    async def ends(self, decision: Decision, *states: str, timeout: float = 8.0) -> OrderEvent:
        """Wait until exactly these states were published."""
        await self.until(lambda: self.states(decision) == list(states), timeout)
        return self.last(decision)

    async def all_closed(self, decisions: list[Decision]) -> None:
        """Wait until every order is closed."""
        await self.until(lambda: all(self.states(d)[-1:] == ["closed"] for d in decisions), timeout=20)

    def open_orders(self) -> list[Any]:
        return self.exchange.engine.open_orders("main", "XRPETH")

    def posted(self) -> list[Entry]:
        """Every new-order request that reached the exchange."""
        return [e for e in read_journal(self.folder / "paper.jsonl") if e.request == "POST /api/v3/order"]


@contextlib.asynccontextmanager
async def trading(bus: TestBus, folder: Path) -> AsyncIterator[Floor]:
    """A floor with custody running; execution is the test's to start."""
    floor = Floor(bus, folder)
    try:
        await floor.open()
        await floor.custody()
        yield floor
    finally:
        await floor.close()
