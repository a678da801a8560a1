"""Attacks by date: a thief of a key states what he likes, when he likes; what is late must not count for more."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest

from tallystick.components.execution import effects, orders
from tallystick.components.execution.main import Execution
from tallystick.components.gateway import decide
from tallystick.components.gateway.main import GatewayProcess
from tallystick.components.portfolio.main import Portfolio
from tallystick.runtime.bus.link import Outgoing, SessionLost
from tallystick.runtime.bus.received import Received
from tallystick.runtime.deployment.service import ServiceContext
from tallystick.schemas.errors import BootOver
from tallystick.schemas.event import Event
from tallystick.schemas.market import Trade
from tallystick.schemas.orders import Decision, OrderEvent, Permit, Position, VenueOrder
from tallystick.schemas.registry import encode_events
from tallystick.schemas.seal import ChainWriter
from tallystick.schemas.security import Alert, ListedSession, SessionList, SessionRevoked
from tallystick.schemas.subjects import parse_subject
from tests.support import gateway as gateways
from tests.support import world
from tests.support.bus import TestBus, running_bus
from tests.support.runtime import Desk, from_listed
from tests.support.waiting import until

SECOND = 1_000_000_000
POSITION = "position.alpha.paper.XRP-ETH"
EVENT = "order.event.alpha.paper.XRP-ETH"
DECISION = "order.decision.alpha.paper.XRP-ETH"
ALERT = "alert.burst.critical"
TRADE = "md.trade.paper.XRP-ETH"


@pytest.fixture
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestBus]:
    with running_bus(tmp_path_factory.mktemp("bus")) as running:
        yield running


class Scene:
    """An authority that lists whom the test says, and thieves that publish through their victim's connection."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.listed: list[ServiceContext] = []
        self.number = 0

    async def start(self) -> None:
        self.authority = await self.desk.context("authority")

    async def component(self, name: str, **kw: Any) -> ServiceContext:
        """A context whose session is announced."""
        context = await self.desk.context(name, **kw)
        self.listed.append(context)
        await self.list_sessions()
        return context

    def sessions(self, *contexts: ServiceContext) -> tuple[ListedSession, ...]:
        found = []
        for context in contexts:
            c = context.link.session.credential
            found.append(ListedSession(c.component, c.boot, c.digest, c.expires_at, c.session_key))
        return tuple(found)

    async def list_sessions(self) -> None:
        self.number += 1
        event = self.authority.new(
            SessionList, number=self.number, live=self.sessions(self.authority, *self.listed), revoked=()
        )
        await self.authority.publish("cred.authority", event)

    async def revoke(self, context: ServiceContext) -> None:
        self.listed.remove(context)
        event = self.authority.new(SessionRevoked, boot=context.boot, reason="stolen")
        await self.authority.publish(f"cred.{context.component}", event)
        await self.list_sessions()

    async def minted(self, component: str) -> ServiceContext:
        """A session minted with a stolen role key: the broker lets it in, nobody announced it."""
        return await self.desk.context(component)

    @staticmethod
    async def publish(thief: ServiceContext, where: str, *events: Event, age_ns: int = 0, seq: int = 0) -> None:
        """Seal and publish `events`, stated `age_ns` ago, at position `seq` of the thief's chain."""
        session, subject = thief.link.session, parse_subject(where)
        writer = ChainWriter(session.credential, session.key, subject.stream)
        if seq:
            writer.seq, writer.prev = seq, bytes(31) + b"\x01"
        sealed = writer.seal([(where, encode_events(subject.kind, events))], time.time_ns() - age_ns)
        connection = await thief.link.connection()
        flight = await connection.publish(Outgoing(where, sealed[0][1], os.urandom(16).hex()))
        await asyncio.wait_for(flight.acknowledged(), 20)


@pytest.fixture
async def scene(desk: Desk) -> Scene:
    made = Scene(desk)
    await made.start()
    return made


def refused(context: ServiceContext) -> int:
    return context.metrics.snapshot().get("dead_letters", 0)


def position(context: ServiceContext) -> Position:
    return context.new(Position, qty=Decimal(0), average_price=Decimal(0), realized=Decimal(0), fills=10**9)


class _Gateway(GatewayProcess):
    """The gateway's process over a core that is built here: no policy folder is needed to learn from the bus."""

    async def start(self, ctx: ServiceContext) -> None:
        self._ctx = ctx
        made = gateways.World(ready=False)
        self.gateway = decide.Gateway(ctx.trust, made.policy, ctx.sessions, made._new_decision)
        ctx.subscribe(("md.trade.>", "ref.market.>"), self._on_market, 256)
        ctx.subscribe(("fill.>", "position.>"), self._on_orders, "all")


async def gateway_on(scene: Scene) -> tuple[ServiceContext, _Gateway]:
    context = await scene.component("gateway")
    process = _Gateway()
    await process.start(context)
    context.open()
    await context.caught_up()
    return context, process


def held(process: _Gateway) -> int:
    found = process.gateway.exposure._holdings.get("alpha", {}).get(("paper", "XRP/ETH"))
    return 0 if found is None else found[1].fills


async def test_a_revoked_session_gains_nothing_by_dating_its_message_back(scene: Scene) -> None:
    portfolio = await scene.component("portfolio")
    context, process = await gateway_on(scene)
    await scene.revoke(portfolio)
    await until(lambda: context.sessions.is_dead(portfolio.boot), "the revocation")
    await scene.publish(portfolio, POSITION, position(portfolio))
    # Beyond the kind's maximum age it is merely late, and used to be taken as such.
    late = dated_back(scene, portfolio, 61)
    await scene.publish(late, POSITION, position(portfolio), age_ns=61 * SECOND, seq=7)
    await until(lambda: refused(context) == 2, "the refusals")
    assert held(process) == 0


@pytest.mark.parametrize("age_s", [0, 61])
async def test_a_session_that_was_never_announced_moves_no_position_at_whatever_age(scene: Scene, age_s: int) -> None:
    context, process = await gateway_on(scene)
    thief = await backdated(scene, "portfolio", age_s)
    await scene.publish(thief, POSITION, position(thief), age_ns=age_s * SECOND)
    await until(lambda: refused(context) == 1, "the refusal")
    assert held(process) == 0
    # Nor does it after the reader has started anew and finds it in its history.
    scene.desk.contexts.remove(context)
    scene.listed.remove(context)
    await context.close()
    again, fresh = await gateway_on(scene)
    await until(lambda: refused(again) == 1, "the refusal from history")
    assert held(fresh) == 0


async def backdated(scene: Scene, component: str, age_s: int) -> Any:
    """A minted session whose lifetime covers a statement `age_s` ago."""
    thief = await scene.minted(component)
    return dated_back(scene, thief, age_s) if age_s else thief


def dated_back(scene: Scene, thief: ServiceContext, age_s: int) -> Any:
    """`thief` with another credential of its role key, boot and session key, issued before `age_s` ago."""
    credential, key = world.credential(
        thief.component,
        scene.desk.trust,
        boot=thief.boot,
        session=thief.link.session.key,
        issued_at=time.time_ns() - (age_s + 5) * SECOND,
        lifetime=min(120, scene.desk.trust.components[thief.component].lifetime),
    )
    link = SimpleNamespace(session=SimpleNamespace(credential=credential, key=key), connection=thief.link.connection)
    return SimpleNamespace(link=link, new=thief.new, boot=thief.boot)


async def test_a_revoked_authority_lists_nobody_any_more(scene: Scene) -> None:
    reader = await scene.component("gateway")
    reader.open()
    await reader.caught_up()
    first, scene.authority = scene.authority, await scene.desk.context("authority")
    revoked = scene.authority.new(SessionRevoked, boot=first.boot, reason="replaced by a new boot")
    await scene.authority.publish("cred.authority", revoked)
    last = reader.sessions.listed_at
    await scene.list_sessions()
    await until(lambda: reader.sessions.listed_at > last, "the new authority's list")
    before = reader.sessions.listed_at
    thief = await scene.minted("portfolio")
    await first.publish("cred.authority", first.new(SessionList, number=99, live=scene.sessions(thief), revoked=()))
    await until(lambda: refused(reader) == 1, "the refusal")
    assert reader.sessions.listed_at == before
    assert not reader.sessions.live("portfolio", time.time_ns())


async def test_a_list_ahead_of_the_clock_does_not_shut_out_the_lists_that_follow(scene: Scene) -> None:
    reader = await scene.component("gateway")
    reader.open()
    await reader.caught_up()
    event = scene.authority.new(SessionList, number=99, live=(), revoked=())
    await scene.publish(scene.authority, "cred.authority", event, age_ns=-30 * SECOND, seq=700)
    await until(lambda: refused(reader) == 1, "the refusal")
    assert reader.sessions.listed_at <= time.time_ns()


@pytest.mark.parametrize("listed", [True, False], ids=["gateway", "breaker"])
async def test_a_thief_of_a_role_key_does_not_use_up_the_positions_of_the_live_chain(
    scene: Scene, listed: bool
) -> None:
    """A minted session that claims the victim's boot and a sequence far ahead would make all that follows a replay."""

    victim = await scene.component("streams")
    reader = await scene.component("gateway" if listed else "breaker")
    got: list[Received] = []
    reader.subscribe("alert.>", from_listed(reader, got) if listed else got.append)
    reader.open()
    await reader.caught_up()
    thief = await scene.desk.context("streams", boot=victim.boot)
    await scene.publish(thief, ALERT, alert(thief), seq=2**40)
    await until(lambda: refused(reader) == 1 if listed else len(got) == 1, "the thief's word")
    await scene.list_sessions()
    await victim.publish(ALERT, alert(victim))
    await until(lambda: len(got) == (1 if listed else 2), "the victim's own word")
    assert got[-1].live


def alert(context: ServiceContext) -> Alert:
    return context.new(Alert, code="BURST", scope="all", text="40 in 1 s")


async def test_market_data_of_a_session_that_is_not_listed_moves_no_price(scene: Scene) -> None:
    """The last trade is what the price collar is measured against."""

    feed = await scene.component("market-data")
    context, process = await gateway_on(scene)
    thief = await scene.minted("market-data")

    def trade(of: ServiceContext, price: str) -> Trade:
        fields: dict[str, Any] = {"trade_id": 1, "qty": Decimal(1), "time": time.time_ns(), "buyer_is_maker": False}
        return of.new(Trade, price=Decimal(price), **fields)

    await scene.list_sessions()
    await feed.publish(TRADE, trade(feed, "0.001"))
    await until(lambda: process.gateway.markets.last, "the market's price")
    await thief.publish(TRADE, trade(thief, "0.9"))
    await until(lambda: refused(context) == 1, "the refusal")
    assert set(process.gateway.markets.last.values()) == {Decimal("0.001")}


class _Silent:
    async def run(self) -> None:
        await asyncio.Event().wait()


@pytest.mark.parametrize("age_s", [0, 6])
async def test_a_decision_of_a_session_that_is_not_listed_is_no_permit_to_the_portfolio(
    scene: Scene, age_s: int
) -> None:
    """Otherwise whoever trades with a stolen API key writes himself the permits that keep the breaker quiet."""

    context = await scene.component("portfolio")
    portfolio = Portfolio("paper", lambda *_: _Silent())
    await portfolio.start(context)
    context.open()
    await context.caught_up()
    await portfolio.ready()
    thief = await backdated(scene, "gateway", age_s)
    order = VenueOrder("XRPETH", "BUY", "LIMIT", "GTC", "100", "0.0014", "thief")
    permit = Permit("main", order, bytes(32), bytes(16), time.time_ns() + SECOND)
    decision = thief.new(
        Decision, verdict="permit", intent_id=os.urandom(16), intent_hash=bytes(32), trust_root=bytes(32), permit=permit
    )
    await scene.list_sessions()
    await scene.publish(thief, DECISION, decision, age_ns=age_s * SECOND)
    await until(lambda: refused(context) == 1, "the refusal")
    assert not portfolio.book._permits


@pytest.mark.parametrize("age_s", [0, 61])
async def test_an_order_is_not_closed_by_the_word_of_a_session_that_is_not_listed(scene: Scene, age_s: int) -> None:
    """Execution follows and cancels what it holds for open: an order said to be closed would be left at the venue."""

    context = await scene.component("execution")
    execution: Any = Execution()
    execution._ctx, execution._name = context, "paper"
    execution._orders = machine = orders.Orders([("paper", "XRP/ETH")], time.time_ns())
    where = parse_subject(EVENT)
    order = effects.Order(where, os.urandom(16), os.urandom(16), "ts-order-1", 0)
    order.state = "accepted"
    machine._add(order)
    context.subscribe(["order.decision.>", "order.event.>"], execution._on_order, start="all")
    context.open()
    await context.caught_up()
    thief = await backdated(scene, "execution", age_s)
    event = thief.new(
        OrderEvent,
        intent_id=order.intent_id,
        decision_id=order.decision_id,
        client_order_id=order.client_order_id,
        state="closed",
    )
    await scene.list_sessions()
    await scene.publish(thief, EVENT, event, age_ns=age_s * SECOND)
    await until(lambda: refused(context) == 1, "the refusal")
    assert order.state == "accepted"


async def test_a_boot_that_has_ended_stops_instead_of_asking_in_vain(scene: Scene) -> None:
    """Away for longer than a session lives, a process would else stay up, deaf and dumb, until somebody looks."""

    context = await scene.desk.context("portfolio", lifetime_s=2)

    async def refuse(*_: Any) -> str:
        raise BootOver("BOOT_ENDED", "start a new one")

    source: Any = context.link._source
    source.obtain = refuse
    context.open()
    with pytest.raises(SessionLost):
        await asyncio.wait_for(context.failed(), 20)
    scene.desk.contexts.remove(context)
    await context.tasks.end()
    for reader in context._readers.values():
        await reader.stop()
    await context.link.stop()
