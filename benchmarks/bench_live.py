"""The whole system as `tallystick up` runs it: an order's way, the kill switch, start and memory.

The strategy is a context of this process; everything else is a process of its own.  Orders, bare hops and bare ccxt take
turns in blocks, so that all three meet the same load of the machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from benchmarks.bare import MS, PAUSE_S, SYMBOL, Hops, bare_ccxt, venue_client
from benchmarks.processes import Memory, memory, processor_s, tree
from benchmarks.report import Row, Void, percentiles, say
from tallystick.cli import operate
from tallystick.components.paper_exchange.journal import read_journal
from tallystick.runtime.bus.received import Received
from tallystick.runtime.deployment.ceremony import init
from tallystick.runtime.deployment.config import StrategyConfig
from tallystick.runtime.deployment.folder import Deployment
from tallystick.runtime.deployment.scheduling import precede
from tallystick.runtime.deployment.service import ServiceContext
from tallystick.runtime.deployment.service_accounts import serving
from tallystick.runtime.deployment.supervisor import Supervisor
from tallystick.runtime.deployment.template import DEFAULT_TEMPLATE
from tallystick.runtime.keys.keystore import Keystore, Secret
from tallystick.schemas.event import Event
from tallystick.schemas.market import Trade
from tallystick.schemas.orders import Decision, Intent, OrderEvent
from tallystick.schemas.security import Alert, BreakerTripped
from tallystick.schemas.subjects import subject
from tests.support.bus import TestBus, running_bus
from tests.support.deployment import Running
from tests.support.paper import SPKI
from tests.support.waiting import until

BLOCKS = 4
BLOCK = 100
REST_S = 8.0
KILLED = 100
ALERTS = 8
EXAMPLE = "tallystick.components.strategy.examples.momentum"
WAY = subject("order.intent", strategy="alpha", venue="paper", symbol=SYMBOL)
FINAL = ("rejected", "void", "closed")

WHAT = {
    "start": "start of everything embedded",
    "p50": "intent to exchange acknowledgement, all controls, fsync: p50",
    "p99": "intent to exchange acknowledgement, all controls, fsync: p99",
    "told": "intent to `accepted` read by the strategy: p50",
    "hops": "bare: three hops of nats-py, publish to fsync to imported pull",
    "ccxt": "bare: ccxt `create_order`, asynchronous, key in software",
    "processor": "processor time of an order, all processes and the broker, beyond the market's",
    "alert": "alert to breaker tripped, durable: slowest",
    "last": "alert to last order placed: slowest",
    "kill": "kill switch to 100 open orders cancelled",
    "memory": "memory of all processes and the broker after the run, shared pages counted once (PSS)",
}
PEER = "three bare fsynced hops and bare ccxt `create_order`, added"


class Order(msgspec.Struct):
    """One order's times, Unix ns; 0 where it did not come."""

    began: int
    intent_stored: int = 0
    decided: int = 0
    decision_stored: int = 0
    submitting: int = 0
    submitting_stored: int = 0
    at_venue: int = 0
    accepted: int = 0
    told: int = 0
    ended: int = 0
    venue_name: str = ""
    denied: str = ""

    def answered(self) -> bool:
        return bool(self.denied or self.ended)


# The broker's time of storage is before its fsync, which therefore counts to the step after it.
STEPS: dict[str, Callable[[Order], int]] = {
    "the strategy seals and publishes; stored": lambda o: o.intent_stored - o.began,
    "fsync; the gateway reads, verifies, decides": lambda o: o.decided - o.intent_stored,
    "the gateway seals and publishes; stored": lambda o: o.decision_stored - o.decided,
    "fsync; execution reads, verifies": lambda o: o.submitting - o.decision_stored,
    "execution seals and publishes `submitting`; stored": lambda o: o.submitting_stored - o.submitting,
    "fsync, and meanwhile custody checks and signs; over TLS to the exchange": lambda o: (
        o.at_venue - o.submitting_stored
    ),
    "the exchange checks, matches and answers": lambda o: o.accepted - o.at_venue,
}
WHAT |= {name: f"of that: {name}" for name in STEPS}


class Trader:
    """The strategy of the measurement.  Owns the orders' times."""

    def __init__(self, context: ServiceContext) -> None:
        self.context = context
        self.orders: dict[bytes, Order] = {}
        self.last = Decimal(0)
        context.subscribe(f"md.trade.paper.{WAY.symbol.replace('/', '-')}", self._on_trades)
        context.subscribe(("order.decision.alpha.>", "order.event.alpha.>"), self._on_order)

    def _on_trades(self, received: Received) -> None:
        for event in received.events:
            if isinstance(event, Trade):
                self.last = event.price

    def _on_order(self, received: Received) -> None:
        for event in received.events:
            order = self.orders.get(event.intent_id) if isinstance(event, Decision | OrderEvent) else None
            if order is not None:
                self._note(order, event, received)

    @staticmethod
    def _note(order: Order, event: Event, received: Received) -> None:
        if isinstance(event, Decision):
            order.decided, order.decision_stored = event.ts, received.stored
            order.denied = event.denials[0].code if event.denials else ""
        elif isinstance(event, OrderEvent):
            order.venue_name = event.client_order_id
            if event.state == "submitting":
                order.submitting, order.submitting_stored = event.ts, received.stored
            elif event.state == "accepted":
                order.accepted, order.told = event.ts, received.received
            elif event.state in FINAL:
                order.ended = event.ts

    def buy(self, tif: str) -> Order:
        """Ask for a small order a percent below the market: it fills in no case soon."""
        price = self.last * Decimal("0.99")
        tick = self.context.trust.instrument("paper", SYMBOL).tick
        intent = self.context.new(
            Intent, side="buy", type="limit", qty=Decimal(10), price=price - price % tick, tif=tif
        )
        order = self.orders[intent.id] = Order(began=time.time_ns())
        self.context.publish(WAY, intent)
        return order


def prepare(folder: Path) -> tuple[Deployment, Keystore]:
    """A deployment with limits that do not bind, and an account for ccxt at the paper exchange."""
    template = (
        DEFAULT_TEMPLATE.replace("messages_per_second = 10", "messages_per_second = 1000")
        .replace("burst = 20", "burst = 1000")
        .replace('max_hourly = "500', 'max_hourly = "500000')
    )
    strategies = (
        StrategyConfig(name="alpha", module=EXAMPLE, instruments=(SYMBOL,)),
        StrategyConfig(name="momentum", module=EXAMPLE, instruments=("BTC/USDT",)),
    )
    pin = Secret.random()
    deployment = init(folder, "bench", pin, time.time_ns, strategies=strategies, template=template)
    venue = json.loads(deployment.paper_exchange.read_bytes())
    venue["accounts"]["bench"] = {"ETH": "100"}
    venue["keys"].append(
        {"api_key": "benchkey", "public_key": SPKI, "account": "bench", "permissions": ["read", "trade"], "ips": ["127.0.0.1"]}
    )  # fmt: skip
    venue["limits"] = {"orders_10s": 10_000, "weight_minute": 100_000}
    deployment.paper_exchange.write_text(json.dumps(venue))
    return deployment, Keystore.open(deployment.keystore, pin)


@contextlib.asynccontextmanager
async def system(deployment: Deployment, keystore: Keystore, *apart: str) -> AsyncIterator[tuple[Running, float]]:
    """Everything but `apart` runs, armed; and how long it took, s."""
    supervisor = Supervisor(deployment, keystore, apart=frozenset(("strategy-alpha", *apart)))
    running = Running(deployment, keystore, supervisor)
    began = time.perf_counter()
    stack = contextlib.ExitStack()
    try:
        await supervisor.start()
        took = time.perf_counter() - began
        stack.enter_context(serving(deployment, keystore, ("strategy-alpha",)))
        await operate.arm(deployment, keystore, Decimal(1))
        # It stands for another machine: neither we nor a peer wait for a core of ours there.
        with contextlib.suppress(PermissionError):
            precede(next(s.pid for s in supervisor.states if s.name == "paper-exchange"))
        yield running, took
    finally:
        await running.close()
        stack.close()
        await supervisor.stop()


async def trader(running: Running) -> Trader:
    """The strategy, connected and knowing a price."""
    made = Trader(await running.context("strategy-alpha"))
    made.context.open()
    await until(lambda: made.last > 0, "a market price", 20)
    # A session is listed once a second, a lease is heard as soon as it is stored.
    for _ in range(100):
        order = made.buy("IOC")
        await until(order.answered, "an answer to the first order")
        if not order.denied:
            break
        await asyncio.sleep(0.1)
    else:
        raise Void("orders are denied: the denial codes are in docs/denial-codes.md")
    return made


async def place(made: Trader, count: int) -> list[Order]:
    """Orders at about 15 a second, each known to the exchange before this returns."""
    orders = []
    for _ in range(count):
        orders.append(made.buy("IOC"))
        await asyncio.sleep(PAUSE_S)
    await until(lambda: all(o.ended or o.denied for o in orders), "every order's end")
    return orders


async def order_rows(running: Running, made: Trader, bus: TestBus) -> list[Row]:
    """An order's way beside its peers, in turns."""
    hops, exchange = Hops(bus), venue_client(running.deployment)
    orders: list[Order] = []
    bare: list[float] = []
    through: list[float] = []
    try:
        await hops.open()
        await exchange.load_markets()
        await hops.measure(10)
        await bare_ccxt(exchange, made.last, 10)
        for block in range(BLOCKS):
            orders += await place(made, BLOCK)
            through += await hops.measure(BLOCK)
            bare += await bare_ccxt(exchange, made.last, BLOCK)
            say(f"orders: block {block + 1} of {BLOCKS}")
    finally:
        await hops.close()
        await exchange.close()
    await complete(running, made)
    good = [o for o in orders if o.accepted]
    if len(good) < len(orders) * 0.99:
        raise Void(f"{len(good)} of {len(orders)} orders were accepted: {[o.denied for o in orders][:5]}")
    p50, p99 = percentiles([(o.accepted - o.began) / MS for o in good])
    told, _ = percentiles([(o.told - o.began) / MS for o in good])
    hop50, hop99 = percentiles(through)
    ccxt50, ccxt99 = percentiles(bare)
    return [
        Row(WHAT["p50"], p50, "ms", "≤ 5 ms, ratio ≤ 1.5", hop50 + ccxt50, PEER),
        Row(WHAT["p99"], p99, "ms", "≤ 15 ms", hop99 + ccxt99, PEER),
        *way(good),
        Row(WHAT["told"], told, "ms"),
        Row(WHAT["hops"], hop50, "ms", tail=hop99),
        Row(WHAT["ccxt"], ccxt50, "ms", tail=ccxt99),
    ]


async def processor_row(running: Running, made: Trader) -> Row:
    """What an order takes of all processors beyond what the market takes meanwhile; the strategy's is this process."""
    names = {s.pid: s.name for s in running.supervisor.states} | {running.supervisor.server.pid or 0: "broker"}
    names[os.getpid()] = "strategy"

    def taken() -> dict[str, float]:
        return {name: sum(processor_s(each) for each in _members(pid)) for pid, name in names.items()}

    async def spent(work: Awaitable[object]) -> tuple[dict[str, float], float]:
        before, began = taken(), time.perf_counter()
        await work
        return {name: now - before[name] for name, now in taken().items()}, time.perf_counter() - began

    rested, rest_s = await spent(asyncio.sleep(REST_S))
    ordered, order_s = await spent(place(made, BLOCK))
    each = {name: (ordered[name] - rested[name] * order_s / rest_s) * 1e3 / BLOCK for name in ordered}
    say("ms of processor time an order: " + ", ".join(f"{name} {value:.1f}" for name, value in each.items()))
    return Row(WHAT["processor"], sum(each.values()), "ms", "≤ 8 ms")


def _members(pid: int) -> Iterable[int]:
    return (pid,) if pid == os.getpid() else tree(pid)


async def complete(running: Running, made: Trader) -> None:
    """Add what the strategy may not read: when its intents were stored, when its orders reached the exchange."""

    def note(received: Received) -> None:
        for event in received.events:
            if isinstance(event, Intent) and event.id in made.orders:
                made.orders[event.id].intent_stored = received.stored

    console = await running.context("console")
    console.subscribe("order.intent.alpha.>", note, start="all")
    console.open()
    try:
        await asyncio.wait_for(console.caught_up(), 30)
    except TimeoutError as exc:
        raise Void(f"the console did not catch up: at {console.at}, {console.metrics.snapshot()}") from exc
    arrivals = {e.client_order_id: e.time for e in journal(running.deployment)}
    for order in made.orders.values():
        order.at_venue = arrivals.get(order.venue_name, 0)


def journal(deployment: Deployment) -> list[Any]:
    """What the exchange was asked for."""
    entries = read_journal(deployment.state("paper-exchange") / "requests.jsonl")
    return [e for e in entries if e.request == "POST /api/v3/order"]


def way(orders: list[Order]) -> list[Row]:
    """Each step of an order's way, median and p99."""
    return [Row(f"of that: {name}", *_median_and_tail(orders, step)) for name, step in STEPS.items()]


def _median_and_tail(orders: list[Order], step: Callable[[Order], int]) -> tuple[float, str, str, float, str, float]:
    p50, p99 = percentiles([step(o) / MS for o in orders])
    return p50, "ms", "", 0.0, "", p99


async def kill_row(running: Running, made: Trader) -> Row:
    """Open orders, then the kill switch, to the exchange's last word on a cancellation."""
    orders = [made.buy("GTC")]
    for _ in range(KILLED - 1):
        await asyncio.sleep(0.02)
        orders.append(made.buy("GTC"))
    await until(lambda: all(o.accepted for o in orders), "100 open orders", 20)
    began = time.time_ns()
    killing = asyncio.create_task(operate.kill(running.deployment, "all", "benchmark"))
    await until(lambda: all(o.ended for o in orders), "every cancellation", 20)
    await killing
    return Row(WHAT["kill"], (max(o.ended for o in orders) - began) / MS, "ms", "≤ 250 ms")


def memory_row(running: Running) -> Row:
    """What every process and the broker hold; the supervisor is this process."""
    supervisor = running.supervisor
    pids = {s.pid: s.name for s in supervisor.states} | {supervisor.server.pid or 0: "broker"}
    if supervisor.vault is not None and supervisor.vault.server is not None:
        pids[supervisor.vault.server.pid] = "vault"
    held = {name: memory(tree(pid)) for pid, name in pids.items()}
    say("MB (PSS of RSS): " + ", ".join(f"{name} {each}" for name, each in held.items()))
    return sum(held.values(), Memory(0, 0)).row(WHAT["memory"], "≤ 600 MB")


async def alert_rows(running: Running, made: Trader, keystore: Keystore) -> list[Row]:
    """Alerts while a strategy sends orders: how soon the breaker's word is durable, and the last order at the venue."""
    detector = await running.context("streams")
    tripped: list[int] = []

    def note(received: Received) -> None:
        tripped.extend(received.stored for event in received.events if isinstance(event, BreakerTripped))

    detector.subscribe("control.breaker.>", note)
    detector.open()
    await detector.caught_up()
    durable, last = [], []
    for number in range(ALERTS):
        tripped.clear()
        orders = [made.buy("IOC") for _ in range(2)]
        sending = asyncio.create_task(_send(made, orders))
        await asyncio.sleep(0.5)
        began = time.time_ns()
        alert = detector.new(Alert, code="BENCH", scope="strategy-alpha", text="benchmark")
        detector.publish(subject("alert", detector="burst", severity="high"), alert)
        await until(lambda: tripped, "the breaker's word")
        await asyncio.sleep(0.5)
        await sending
        durable.append((tripped[0] - began) / MS)
        placed = [e.time for e in journal(running.deployment) if e.time > began]
        last.append(max((t - began) / MS for t in [*placed, began]))
        await operate.rearm(running.deployment, keystore, "strategy-alpha")
        say(f"alert {number + 1} of {ALERTS}")
        await asyncio.sleep(1.0)
    return [Row(WHAT["alert"], max(durable), "ms"), Row(WHAT["last"], max(last), "ms", "≤ 50 ms")]


async def _send(made: Trader, orders: list[Order]) -> None:
    for _ in range(100):
        orders.append(made.buy("IOC"))
        await asyncio.sleep(0.01)


async def measure(folder: Path, bus: TestBus) -> list[Row]:
    """Both parts: everything together, then without the detectors, whose place the alerts' sender takes."""
    say("init")
    deployment, keystore = prepare(folder / "desk")
    found: list[Row] = []
    say("start of everything")
    async with system(deployment, keystore) as (running, took):
        found.append(Row(WHAT["start"], took, "s", "≤ 10 s"))
        made = await trader(running)
        found += await order_rows(running, made, bus)
        found.append(await processor_row(running, made))
        found.append(await kill_row(running, made))
        found.append(memory_row(running))
        await operate.rearm(deployment, keystore, "all")
    async with system(deployment, keystore, "streams", "strategy-momentum") as (running, _):
        made = await trader(running)
        found += await alert_rows(running, made, keystore)
    return found


def rows() -> list[Row]:
    """Order's way, kill switch, start, memory, alerts."""
    with (
        tempfile.TemporaryDirectory() as name,
        running_bus(Path(name) / "bare") as bus,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        return runner.run(measure(Path(name), bus))
