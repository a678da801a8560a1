"""A stolen execution sends a signed request twice, through a running desk: the venue takes it, the breaker trips.

Gateway, custody, portfolio, breaker, market data and the venue are the deployment's own processes.
"""

from __future__ import annotations

import re
import time
from decimal import Decimal
from pathlib import Path

import aiohttp
import pytest
from yarl import URL

from tallystick import venues
from tallystick.cli import operate
from tallystick.components.execution.custody import CustodyClient
from tallystick.runtime.bus.received import Received
from tallystick.runtime.bus.tasks import Tasks
from tallystick.schemas import signing
from tallystick.schemas.orders import Decision, Intent
from tallystick.schemas.security import BreakerHeartbeat, Notice, Trip
from tallystick.schemas.signing import SOCKET
from tests.support.deployment import Running, make, running
from tests.support.waiting import until

INTENT = "order.intent.alpha.paper.XRP-ETH"
# Less than the venue's book ever lacks: a market order expires with what there is.
QTY = Decimal(10)
PARTS = ("breaker", "gateway", "custody", "portfolio", "paper-exchange", "market-data")


class Thief:
    """Execution's session, strategy alpha's, and what the bus brings them."""

    def __init__(self, desk: Running) -> None:
        self.desk = desk
        self.intents: dict[bytes, Received] = {}
        self.decisions: dict[bytes, tuple[Decision, Received]] = {}
        self.trips: tuple[Trip, ...] = ()
        self.tripped_at = 0
        self.notices: list[Notice] = []

    async def enter(self) -> None:
        self.strategy = await self.desk.context("strategy-alpha")
        self.strategy.open()
        self.context = await self.desk.context("execution")
        self.context.subscribe(("order.intent.>", "order.decision.>"), self._on_order)
        self.context.subscribe("control.breaker.>", self._on_breaker)
        self.context.open()
        await self.context.caught_up()
        self.watcher = await self.desk.context("console")
        self.watcher.subscribe("guard.>", self._on_guard)
        self.watcher.open()
        await self.watcher.caught_up()
        self.custody = CustodyClient(self.desk.deployment.seat("custody") / SOCKET, Tasks())

    def _on_order(self, received: Received) -> None:
        for event in received.events:
            if isinstance(event, Decision):
                self.decisions[event.intent_id] = (event, received)
            elif isinstance(event, Intent):
                self.intents[event.id] = received

    def _on_breaker(self, received: Received) -> None:
        for event in received.events:
            if isinstance(event, BreakerHeartbeat):
                if event.tripped and not self.trips:
                    self.tripped_at = time.time_ns()
                self.trips = event.tripped

    def _on_guard(self, received: Received) -> None:
        self.notices += [event for event in received.events if isinstance(event, Notice)]

    async def asked(self) -> tuple[Decision, Received]:
        """What the gateway says to a market order of strategy alpha."""
        intent = self.strategy.new(Intent, side="buy", type="market", qty=QTY)
        await self.strategy.publish(INTENT, intent)
        await until(lambda: intent.id in self.decisions and intent.id in self.intents, "a decision", 10)
        return self.decisions[intent.id]

    async def permitted(self) -> signing.Signed:
        """A market order that strategy alpha asks for and the gateway permits, signed by custody."""
        decision, received = await self.asked()
        for _ in range(20):  # until the first prices are there
            if decision.permit is not None:
                break
            decision, received = await self.asked()
        assert decision.permit is not None, decision.denials
        session = self.context.session
        sealed = (decision.id, received.subject.text, received.verified.payload)
        asked = self.intents[decision.intent_id].verified.payload
        return await self.custody.sign(
            lambda n: signing.ask_for(n, *sealed, asked, session.credential.text, session.key)
        )

    async def send(self, request: signing.Signed) -> Decimal:
        """How much of it the venue filled."""
        tls = venues.client_tls(self.desk.deployment.venue_ca)
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls)) as http,
            http.request(
                request.method, URL(request.url, encoded=True), headers=dict(request.headers), data=request.body
            ) as answer,
        ):
            said = await answer.json()
            assert answer.status == 200, said
            return Decimal(said["executedQty"])


@pytest.mark.timeout(120)
async def test_an_order_that_is_filled_beyond_its_permit_trips_the_breaker_at_once(whole: None, tmp_path: Path) -> None:
    async with running(*make(tmp_path / "desk"), *PARTS) as desk:
        thief = Thief(desk)
        await thief.enter()
        await operate.arm(desk.deployment, desk.keystore, Decimal(1))
        try:
            signed = await thief.permitted()
            assert await thief.send(signed) == QTY
            sent = time.time_ns()
            assert await thief.send(signed) == QTY
            await until(lambda: thief.trips, lambda: f"the trip; {thief.notices[-3:]}", 15)
            (trip,) = thief.trips
            assert trip.scope == "all"
            assert trip.reason.startswith("FILL_WITHOUT_PERMIT: trade ")
            # It is known as a second fill, and waited for nothing.
            assert thief.tripped_at - sent < 2_000_000_000

            def told() -> bool:
                said = [n.text for n in thief.notices if n.code == "FILL_WITHOUT_PERMIT"]
                # The venue may have filled either in parts.
                return any(re.search(r"the permit for 10 is used up$|permit has [0-9.]+ left$", text) for text in said)

            # Notices go another way than the alert.
            await until(told, lambda: f"the notice; {thief.notices[-3:]}")
            # Nothing is permitted any more.
            decision, _ = await thief.asked()
            assert "BREAKER_TRIPPED" in [denial.code for denial in decision.denials]
        finally:
            await thief.custody.close()
