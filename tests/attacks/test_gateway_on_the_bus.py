"""The gateway's process on a real broker: what it permits, and every way to get past it that is refused."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tallystick.components.gateway.main import GatewayProcess
from tallystick.runtime.bus.received import Received
from tallystick.runtime.deployment.config import parse_config
from tallystick.runtime.deployment.folder import Deployment
from tallystick.runtime.deployment.service import ServiceContext
from tallystick.schemas.errors import ConfigError
from tallystick.schemas.market import Trade
from tallystick.schemas.orders import CancelIntent, Decision, Intent
from tallystick.schemas.security import (
    Arm,
    BreakerHeartbeat,
    DeadLetter,
    ListedSession,
    Notice,
    RootInForce,
    SessionList,
    Trip,
)
from tallystick.schemas.trust import open_successor, sign_document
from tests.support import world
from tests.support.bus import TestBus, running_bus
from tests.support.gateway import CONFIG, POLICY
from tests.support.runtime import Desk, sign_terms
from tests.support.waiting import until

XRP = "paper.XRP-ETH"


class Floor:
    """Everybody that the gateway needs, on one broker: authority, breaker and market data repeat themselves."""

    def __init__(self, desk: Desk, deployment: Deployment) -> None:
        self.desk = desk
        desk.trust = sign_terms(deployment, desk.trust)
        self.deployment = deployment
        self.listed: dict[str, ServiceContext] = {}
        self.revoked: tuple[bytes, ...] = ()
        self.tripped: tuple[str, ...] = ()
        self.beating = self.listing = True
        self.decisions: list[Decision] = []
        self.guard: list[Notice | DeadLetter] = []
        self._beat: asyncio.Task[None] | None = None
        self._number = 0

    async def open(self) -> None:
        for name in ("authority", "breaker", "market-data", "custody", "strategy-alpha", "strategy-beta"):
            self.listed[name] = await self.desk.context(name)
        audit = self.listed["audit"] = await self.desk.context("audit")
        audit.subscribe("order.decision.>", self._note)
        audit.subscribe(("guard.gateway", "dead.gateway"), self._note)
        audit.open()
        await audit.caught_up()
        lease = world.lease(self.desk.trust, time.time_ns() - 10**9, time.time_ns() + 10**12)
        breaker = self.listed["breaker"]
        note = sign_document(lease, ("operator", world.key("operator")))
        await breaker.publish("control.arm.execution", breaker.new(Arm, note=note))
        self._beat = asyncio.create_task(self._beats())

    def _note(self, received: Received) -> None:
        for event in received.events:
            if isinstance(event, Decision):
                self.decisions.append(event)
            elif isinstance(event, Notice | DeadLetter):
                self.guard.append(event)

    async def _beats(self) -> None:
        while True:
            self.state()
            await asyncio.sleep(0.1)

    def state(self) -> list[asyncio.Future[int]]:
        """What is said several times a second, on SECURITY in the futures that come back."""
        said: list[asyncio.Future[int]] = []
        self._number += 1
        authority, breaker, market = (self.listed[n] for n in ("authority", "breaker", "market-data"))
        if self.listing:
            live = tuple(
                ListedSession(component=n, boot=c.boot, credential_hash=s.digest, expires_at=s.expires_at)
                for n, c in self.listed.items()
                if (s := credential(c)).digest not in self.revoked
            )
            event = authority.new(SessionList, number=self._number, live=live, revoked=self.revoked)
            said.append(authority.publish("cred.authority", event))
        if self.beating:
            trips = tuple(Trip(scope=s, reason="test", since=1, by="test") for s in self.tripped)
            beat = breaker.new(BreakerHeartbeat, number=self._number, tripped=trips)
            said.append(breaker.publish("control.breaker.all", beat))
        trade = market.new(
            Trade,
            trade_id=self._number,
            price=Decimal("0.001"),
            qty=Decimal(1),
            time=time.time_ns(),
            buyer_is_maker=False,
        )
        market.publish(f"md.trade.{XRP}", trade)
        return said

    async def heard(self) -> None:
        """Say now what is so now, and wait until the gateway has taken it in."""
        positions = await asyncio.gather(*self.state())
        await until(lambda: self.listed["gateway"].position("SECURITY") >= max(positions), "the gateway's ear")

    async def gateway(self) -> tuple[GatewayProcess, ServiceContext]:
        """A gateway that is ready; an older one counts as gone."""
        context = await self.desk.context("gateway", deployment=self.deployment)
        self.listed["gateway"] = context
        process = GatewayProcess()
        await process.start(context)
        await context.resume()
        context.open()
        await context.caught_up()
        await process.ready()
        await self.until_permitted()
        return process, context

    async def until_permitted(self) -> None:
        """Until an intent is permitted: everything was said and heard."""
        for _ in range(50):
            if (await self.ask(self.intent("alpha"))).verdict == "permit":
                return
            await asyncio.sleep(0.1)
        raise AssertionError(f"nothing is permitted: {self.decisions[-1].denials}")

    def intent(self, strategy: str, **changes: Any) -> Intent:
        """An intent within every limit."""
        fields: dict[str, Any] = {"side": "buy", "type": "limit", "qty": Decimal(10), "price": Decimal("0.001")}
        return self.listed[f"strategy-{strategy}"].new(Intent, **{**fields, **changes})

    async def ask(
        self,
        intent: Intent | CancelIntent,
        strategy: str = "alpha",
        by: ServiceContext | None = None,
        timeout: float = 5.0,
    ) -> Decision:
        """The recorded decision on an intent."""
        sender = by or self.listed[f"strategy-{strategy}"]
        sender.publish(f"order.intent.{strategy}.{XRP}", intent)
        found: list[Decision] = []

        def decided() -> list[Decision]:
            found[:] = [d for d in self.decisions if intent.id in d.causes]
            return found

        await until(decided, "the decision", timeout)
        return found[-1]

    async def close(self) -> None:
        if self._beat is not None:
            self._beat.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._beat


def credential(context: ServiceContext) -> Any:
    session = context.link.session
    assert session is not None
    return session.credential


def codes(decision: Decision) -> list[str]:
    return [d.code for d in decision.denials]


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[TestBus]:
    with running_bus(tmp_path / "bus") as running:
        yield running


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    folder = tmp_path / "deployment"
    shutil.copytree(POLICY, folder / "policy")
    return Deployment(folder, parse_config(CONFIG, "deployment.toml"))


@pytest.fixture
async def floor(desk: Desk, deployment: Deployment) -> AsyncIterator[Floor]:
    made = Floor(desk, deployment)
    try:
        await made.open()
        yield made
    finally:
        await made.close()


async def test_orders_are_permitted_or_denied_on_record_and_sessions_breakers_and_lists_decide(floor: Floor) -> None:
    await floor.gateway()

    intent = floor.intent("alpha")
    permitted = await floor.ask(intent)
    assert permitted.permit is not None
    assert permitted.permit.audience == floor.listed["custody"].boot
    assert permitted.permit.order.client_order_id == "ts" + intent.id.hex()
    assert permitted.policy_hash
    assert {at.stream for at in permitted.at} == {"MARKET", "ORDERS", "SECURITY"}

    # an id that was decided, sealed anew
    floor.decisions.clear()
    assert codes(await floor.ask(intent))[0] == "DUPLICATE_INTENT"
    # somebody else's order
    alien = floor.listed["strategy-beta"].new(CancelIntent, intent_id=intent.id)
    assert codes(await floor.ask(alien, "beta"))[0] == "UNKNOWN_ORDER"
    own = floor.listed["strategy-alpha"].new(CancelIntent, intent_id=intent.id)
    assert (await floor.ask(own)).verdict == "cancel"
    # beyond a limit
    assert codes(await floor.ask(floor.intent("alpha", qty=Decimal(1001))))[0] == "QUANTITY_EXCEEDS_LIMIT"

    # a stolen role key: a session that the authority never listed
    thief = await floor.desk.context("strategy-alpha")
    stolen = await floor.ask(floor.intent("alpha"), by=thief)
    assert codes(stolen)[0] == "SESSION_UNLISTED"
    again = await floor.ask(floor.intent("alpha"), by=thief)
    assert codes(again)[0] == "SESSION_UNLISTED"
    await until(lambda: [n.code for n in floor.guard].count("SESSION_UNLISTED") == 1, "one notice")

    # a tripped scope, and its closing
    floor.tripped = ("strategy-beta",)
    await floor.heard()
    assert codes(await floor.ask(floor.intent("beta"), "beta"))[0] == "BREAKER_TRIPPED"
    assert (await floor.ask(floor.intent("alpha"))).verdict == "permit"
    floor.tripped = ()
    await floor.heard()
    assert (await floor.ask(floor.intent("beta"), "beta")).verdict == "permit"

    # silence of the breaker
    floor.beating = False
    await asyncio.sleep(1.2)  # a heartbeat counts for one second
    assert codes(await floor.ask(floor.intent("alpha")))[0] == "BREAKER_HEARTBEAT_MISSING"
    # a heartbeat of an unlisted breaker does not end it
    forged = await floor.desk.context("breaker")
    await forged.publish("control.breaker.all", forged.new(BreakerHeartbeat, number=10**6, tripped=()))
    assert codes(await floor.ask(floor.intent("alpha")))[0] == "BREAKER_HEARTBEAT_MISSING"
    await until(lambda: any(n.code == "SESSION_UNLISTED" and isinstance(n, DeadLetter) for n in floor.guard), "it")
    floor.beating = True
    await floor.heard()

    # a revoked session: no effect at all, and its message is kept as evidence
    floor.revoked = (credential(floor.listed["strategy-beta"]).digest,)
    await floor.heard()
    floor.listed["strategy-beta"].publish(f"order.intent.beta.{XRP}", floor.intent("beta"))
    await until(lambda: any(n.code == "SESSION_REVOKED" for n in floor.guard), "the dead letter")

    # silence of the authority
    floor.listing = False
    await asyncio.sleep(3.2)  # a list counts for three seconds
    assert codes(await floor.ask(floor.intent("alpha")))[0] == "SESSIONS_STALE"
    floor.listing = True
    await floor.until_permitted()


@pytest.mark.parametrize("kept", [True, False])
async def test_restarted_gateway_decides_nothing_again_and_denies_what_was_left(floor: Floor, kept: bool) -> None:
    _, first = await floor.gateway()
    done = floor.intent("alpha")
    assert (await floor.ask(done)).verdict == "permit"
    await first.close()
    floor.desk.contexts.remove(first)
    [snapshot] = (floor.desk.bus.folder / "state" / "gateway").glob("*.snapshot")
    if not kept:
        snapshot.unlink()
    left = floor.intent("alpha")
    await floor.listed["strategy-alpha"].publish(f"order.intent.alpha.{XRP}", left)

    count = len(floor.decisions)
    process, second = await floor.gateway()
    assert (second._kept["ORDERS"].position > 0) == kept
    answers = [d for d in floor.decisions[count:] if left.id in d.causes]
    assert [codes(d)[0] for d in answers] == ["STALE_INTENT"]
    assert not [d for d in floor.decisions[count:] if done.id in d.causes]
    assert process.gateway.exposure.order("alpha", done.id) is not None, "its permit is reserved again"
    floor.decisions.clear()
    for intent in (done, left):
        assert codes(await floor.ask(intent))[0] == "DUPLICATE_INTENT"


async def test_sealed_intent_replayed_by_the_broker_is_refused(floor: Floor, bus: TestBus) -> None:
    await floor.gateway()
    async with bus.connected("root") as (root,):
        intent = floor.intent("alpha")
        assert (await floor.ask(intent)).verdict == "permit"
        subject = f"order.intent.alpha.{XRP}"
        answer = await root.request("$JS.API.STREAM.MSG.GET.ORDERS", msgspec.json.encode({"last_by_subj": subject}))
        stored = msgspec.json.decode(answer.data)["message"]["data"]
        floor.decisions.clear()
        await root.publish(subject, msgspec.json.decode(msgspec.json.encode(stored), type=bytes))
        await until(lambda: any(n.code == "REPLAY" for n in floor.guard), "the dead letter")
        assert not [d for d in floor.decisions if intent.id in d.causes]


@pytest.mark.parametrize("broken", ["type", "policy", "limits"])
async def test_gateway_does_not_start_with_a_policy_or_limits_that_are_not_right_or_not_signed(
    floor: Floor, deployment: Deployment, broken: str
) -> None:
    if broken == "type":
        (deployment.policy / "own.cedar").write_text('@id("x") permit (principal, action, resource) when { 1 };')
    elif broken == "policy":
        (deployment.policy / "own.cedar").write_text('@id("x") permit (principal, action, resource);')
    else:
        edited = CONFIG.replace('max_qty = "1000"', 'max_qty = "100000"')
        deployment = Deployment(deployment.directory, parse_config(edited, "x"))

    context = await floor.desk.context("gateway", deployment=deployment)
    with pytest.raises(ConfigError) as caught:
        await GatewayProcess().start(context)
    expected = {"type": "POLICY_TYPE_CHECK", "policy": "POLICY_UNSIGNED", "limits": "TERMS_UNSIGNED"}
    assert caught.value.code == expected[broken]


async def test_a_gateway_says_what_it_decides_by_and_ends_where_that_was_taken_out_of_force(floor: Floor) -> None:
    """Whoever puts an older trust root back, files and all, is found out by what another component states."""
    _, context = await floor.gateway()
    stated: list[RootInForce] = []
    audit = await floor.desk.context("console")
    audit.subscribe(
        "control.config.gateway",
        lambda received: stated.extend(e for e in received.events if isinstance(e, RootInForce)),
        start="all",
    )
    audit.open()
    await until(lambda: stated, "the gateway's word")
    ours = floor.desk.trust
    assert open_successor(stated[0].note, ours) == ours
    decision = await floor.ask(floor.intent("alpha"))
    assert decision.trust_root == ours.digest

    custody = floor.listed["custody"]
    newer = msgspec.structs.replace(ours, number=ours.number + 1)
    forged = sign_document(newer, ("operator-root", world.key("thief")))
    await custody.publish("control.config.custody", custody.new(RootInForce, note=forged))
    await until(lambda: any(n.code == "NOTE_UNSIGNED" for n in floor.guard), "the refusal of a forged document")
    assert (await floor.ask(floor.intent("alpha"))).permit is not None

    signed = sign_document(newer, ("operator-root", world.key("operator-root")))
    await custody.publish("control.config.custody", custody.new(RootInForce, note=signed))
    with pytest.raises(ConfigError, match="TRUST_ROOT_NEWER: trust root 2 was in force already"):
        await asyncio.wait_for(context.failed(), 20)
    await until(lambda: any(n.code == "TRUST_ROOT_NEWER" for n in floor.guard), "the notice")
