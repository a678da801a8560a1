"""How long a start takes does not depend on how many orders there ever were: a history that is really stored and sealed.

Its orders are made in bulk, as many of them in a message as may be, and have all ended.  `ORDERS` of them at first, then
`TIMES` as many; a start from a snapshot takes as long after the second as after the first, a start without one does not.
What components remember for a time is remembered for a second here: made in bulk, all of the history is of the last minute.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from tallystick.components.execution import orders as execution_orders
from tallystick.components.execution.main import Execution
from tallystick.components.gateway.main import GatewayProcess
from tallystick.components.portfolio.main import Portfolio
from tallystick.components.strategy.main import StrategyProcess
from tallystick.runtime.deployment.config import StrategyConfig, parse_config
from tallystick.runtime.deployment.folder import Deployment
from tallystick.runtime.deployment.service import Service, ServiceContext
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.orders import Decision, Fill, Intent, OrderEvent, Permit, Position, VenueOrder
from tallystick.venues import AccountStream
from tests.support.bus import TestBus, running_bus
from tests.support.gateway import CONFIG, POLICY
from tests.support.runtime import Desk, sign_terms

ORDERS = 10_000
TIMES = 10
# Orders in one round of messages, as many as may stand in one of intents.
ROUND = 64
AFTER = 1_000
WHERE = "alpha.paper.XRP-ETH"
NAMES = ("gateway", "execution", "portfolio", "strategy-alpha")
MODULE = """
from tallystick.runtime.bus.strategy import Strategy

class Quiet(Strategy):
    pass
"""


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[TestBus]:
    with running_bus(tmp_path / "bus") as running:
        yield running


class Past:
    """Makes history, and starts components on it."""

    def __init__(self, desk: Desk, folder: Path) -> None:
        self.desk = desk
        self.folder = folder
        self.orders = 0
        self.deployment = Deployment(folder, parse_config(CONFIG, "deployment.toml"))
        self.by: dict[str, ServiceContext] = {}

    async def open(self) -> None:
        shutil.copytree(POLICY, self.folder / "policy")
        self.desk.trust = sign_terms(self.deployment, self.desk.trust)
        self.deployment.pki.mkdir()
        shutil.copy(self.desk.bus.ca.ca_file, self.deployment.ca)
        (self.folder / "quiet.py").write_text(MODULE)

    def state(self, name: str) -> Path:
        """Where a component keeps its snapshot."""
        return self.desk.bus.folder / "state" / name

    async def make(self, count: int) -> None:
        """So many more orders, each asked for, permitted, filled and closed."""
        boots = {name: await self.desk.context(name) for name in NAMES}
        # The next round's intents may be stored before this one's fills; nothing else overtakes anything.
        for first in range(self.orders, self.orders + count, ROUND):
            await self.round(boots, range(first, min(first + ROUND, self.orders + count)))
        self.orders += count
        for context in boots.values():
            await context.close()
            self.desk.contexts.remove(context)

    async def round(self, by: dict[str, ServiceContext], numbers: range) -> None:
        strategy, gateway, execution, portfolio = (
            by[n] for n in ("strategy-alpha", "gateway", "execution", "portfolio")
        )
        price, one, root, now = Decimal("0.001"), Decimal(10), self.desk.trust.digest, time.time_ns()
        intents = [strategy.new(Intent, side="buy", type="limit", qty=one, price=price) for _ in numbers]
        await strategy.publish(f"order.intent.{WHERE}", *intents)
        decisions = [
            gateway.new(
                Decision,
                causes=(intent.id,),
                verdict="permit",
                intent_id=intent.id,
                intent_hash=bytes(32),
                trust_root=root,
                permit=Permit("main", order(intent.id), bytes(32), bytes(16), now),
            )
            for intent in intents
        ]
        await gateway.publish(f"order.decision.{WHERE}", *decisions)
        told = [
            execution.new(
                OrderEvent,
                causes=(d.id,),
                intent_id=d.intent_id,
                decision_id=d.id,
                client_order_id="ts" + d.intent_id.hex(),
                state=state,
                venue_order_id=str(number),
                executed=one if state == "closed" else None,
            )
            for number, d in zip(numbers, decisions, strict=True)
            for state in ("submitting", "accepted", "closed")
        ]
        await execution.publish(f"order.event.{WHERE}", *told)
        fills = [
            portfolio.new(
                Fill,
                causes=(d.id,),
                intent_id=d.intent_id,
                client_order_id="ts" + d.intent_id.hex(),
                venue_order_id=str(number),
                trade_id=number,
                side="buy",
                price=price,
                qty=one,
                commission=Decimal(0),
                commission_asset="ETH",
                maker=False,
                time=now,
            )
            for number, d in zip(numbers, decisions, strict=True)
        ]
        portfolio.publish(f"fill.{WHERE}", *fills)
        held = one * (numbers[-1] + 1)
        stated = portfolio.new(
            Position, qty=held, average_price=price, realized=Decimal(0), fills=numbers[-1] + 1, fees=Decimal(0)
        )
        await portfolio.publish(f"position.{WHERE}", stated)

    def service(self, name: str) -> Service:
        if name == "gateway":
            return GatewayProcess()
        if name == "execution":
            return Execution()
        if name == "portfolio":
            return Portfolio("paper", lambda *_: Nowhere())
        return StrategyProcess(
            StrategyConfig(name="alpha", module="quiet.py", instruments=("XRP/ETH",)), "paper", self.folder
        )

    async def start(self, name: str) -> tuple[float, int]:
        """Start a component and stop it again: the seconds until it has read what there is, and messages read."""
        context = await self.desk.context(name, deployment=self.deployment)
        service = self.service(name)
        began = time.perf_counter()
        await service.start(context)
        await context.resume()
        context.open()
        await context.caught_up()
        took = time.perf_counter() - began
        counts = context.metrics.snapshot()
        self.check(name, service)
        self.desk.contexts.remove(context)
        await context.close()
        return took, counts.get("messages_received", 0)

    def check(self, name: str, service: Service) -> None:
        """It knows what every order came to."""
        held = Decimal(10 * self.orders)
        if isinstance(service, GatewayProcess):
            assert service.gateway.exposure.position("alpha", "paper", "XRP/ETH") == held
            assert service.gateway.exposure.open_notional("alpha", "ETH") == 0
        elif isinstance(service, Portfolio):
            assert service.book.position("alpha", "paper", "XRP/ETH").qty == held
        elif isinstance(service, StrategyProcess):
            assert service.host.position("XRP/ETH") == held
            assert service.host.open_orders() == ()
        elif isinstance(service, Execution):
            assert service._orders.open == 0


class Nowhere(AccountStream):
    """A venue that says nothing."""

    async def run(self) -> None:
        await asyncio.Event().wait()


def order(intent_id: bytes) -> VenueOrder:
    return VenueOrder("XRPETH", "BUY", "LIMIT", "GTC", "10", "0.001", "ts" + intent_id.hex())


@pytest.fixture
async def past(desk: Desk, tmp_path: Path) -> Past:
    folder = tmp_path / "deployment"
    folder.mkdir()
    made = Past(desk, folder)
    await made.open()
    return made


@pytest.mark.slow
@pytest.mark.timeout(3600)
async def test_a_start_takes_as_long_after_ten_times_as_many_orders(
    past: Past, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution_orders, "KEEP_NS", SECOND)
    resumed: dict[str, list[float]] = {name: [] for name in NAMES}
    whole: dict[str, list[float]] = {name: [] for name in NAMES}
    for total in (ORDERS, ORDERS * TIMES):
        began = time.perf_counter()
        await past.make(total - AFTER - past.orders)
        made = time.perf_counter() - began
        for name in NAMES:
            shutil.rmtree(past.state(name), ignore_errors=True)
            took, count = await past.start(name)
            whole[name].append(took)
            say(f"{total:,} orders, made in {made:.0f} s: {name} reads {count:,} messages in {took:.2f} s")
        await past.make(AFTER)
        for name in NAMES:
            took, count = await past.start(name)
            resumed[name].append(took)
            size = (past.state(name) / "ORDERS.snapshot").stat().st_size
            say(
                f"{total:,} orders: {name} starts from its snapshot in {took:.2f} s, {count:,} messages, {size:,} bytes"
            )
    for name in NAMES:
        first, second = resumed[name]
        assert second < 2 * first + 1.0, (name, resumed[name], whole[name])


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
