"""What a replay, or whoever owns one, can do to a live deployment: nothing.  Real brokers, tokens and authority."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import nats.errors
import pytest
import pytest_asyncio

from tallystick.cli.replay_run import _in_zone, make_zone, open_zone
from tallystick.cli.stopping import Stop
from tallystick.replay import player
from tallystick.replay.bus import BusReader
from tallystick.replay.player import play
from tallystick.replay.reader import ArchiveReader
from tallystick.replay.selection import Selection
from tallystick.replay.verify import Examined, Judge, Played
from tallystick.runtime.bus.link import Link, Outgoing
from tallystick.runtime.bus.metrics import Metrics
from tallystick.runtime.bus.reader import Delivery
from tallystick.runtime.bus.received import Received
from tallystick.runtime.bus.tasks import Tasks
from tallystick.runtime.deployment import process
from tallystick.runtime.deployment.folder import Deployment
from tallystick.runtime.deployment.service import ServiceContext, Setup
from tallystick.runtime.deployment.supervisor import Supervisor
from tallystick.runtime.deployment.template import DEFAULT_TEMPLATE
from tallystick.runtime.keys.keystore import Keystore, Secret
from tallystick.schemas import signing
from tallystick.schemas.credential import open_credential
from tallystick.schemas.errors import ConfigError, TallystickError, Unverified
from tallystick.schemas.orders import Decision, Intent
from tallystick.schemas.seal import ChainWriter, Verifier, require_live
from tallystick.schemas.subjects import ORDERS, SECURITY
from tests.support.archive import Story, Vault
from tests.support.bus import TestBus
from tests.support.custody import Desk as CustodyDesk
from tests.support.forge import encoded, samples, writer
from tests.support.runtime import Desk, live_trust
from tests.support.waiting import until

# The zone, and with it the loop, lives on between tests.
on_its_loop = pytest.mark.asyncio(loop_scope="module")

SECOND = 1_000_000_000
PIN = "the zone's own pin"
DECISION = "order.decision.alpha.paper.XRP-ETH"


class Zone:
    """A replay zone that is up, with a story played into it."""

    def __init__(self, folder: Path) -> None:
        self.story = Story()
        self.vault = Vault(folder / "desk")
        self.vault.project(self.story.streams.stored)
        self.deployment, self.keystore = make_zone(folder / "z", Secret(PIN), time.time_ns)
        names = Supervisor(self.deployment, self.keystore).bus.components
        self.supervisor = Supervisor(self.deployment, self.keystore, apart=frozenset(names) - {"authority"})
        self.skipped = 0

    def setup(self, component: str) -> Setup:
        secrets = {name: self.keystore[name] for name in self.deployment.secret_names(component)}
        return process.load_setup(self.deployment.directory, component, secrets)

    @contextlib.asynccontextmanager
    async def link(self, component: str) -> AsyncIterator[tuple[Setup, Link]]:
        setup = self.setup(component)
        link = setup.link(setup.authority(), Metrics())
        await link.start()
        try:
            yield setup, link
        finally:
            await link.stop()

    async def play(self) -> None:
        reader = ArchiveReader(self.vault.place, Selection())

        async def archived() -> AsyncIterator[Examined]:
            for item in reader:
                yield item

        async with _in_zone(self.deployment, self.keystore, [], Stop(), Tasks()) as replayer:
            await play(
                archived(),
                replayer,
                reader.judge.tally,
                schedule=player.Schedule(Decimal(0)),
                clock=time.time_ns,
                sleep=asyncio.sleep,
            )
            await replayer.settled()
            self.skipped = replayer.skipped

    async def held(self, **selection: Any) -> list[Played]:
        """What the zone's streams hold but closing statements, as its console reads and verifies it."""
        async with self.link("console") as (setup, link):
            judge = Judge([Verifier(setup.trust)])
            reader = BusReader(setup.spec, link, judge, Selection(**selection), setup.log)
            found = [item async for item in reader]
        assert all(isinstance(item, Played) for item in found), found
        return [item for item in found if isinstance(item, Played) and item.verified.events]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def zone(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Zone]:
    made = Zone(tmp_path_factory.mktemp("r"))
    try:
        await made.supervisor.start()
        await made.play()
        yield made
    finally:
        await made.supervisor.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sealed_in_zone(zone: Zone) -> Played:
    """A permit as it stands in the zone: the recorded decision, sealed by the zone's replay."""
    found = await zone.held(patterns=("order.decision.>",))
    assert isinstance(found[0].verified.events[0], Decision)
    assert found[0].verified.events[0].permit is not None
    return found[0]


def refusals(context: ServiceContext) -> list[str]:
    """The codes under which `context` dead-letters messages from now on."""
    codes: list[str] = []
    real = context.dead_letter

    def remember(delivery: Delivery, stream: str, error: TallystickError) -> asyncio.Future[int]:
        codes.append(error.code)
        return real(delivery, stream, error)

    context.dead_letter = remember  # type: ignore[method-assign]
    return codes


# -- what must work, or the rest proves nothing ---------------------------------------------------


@on_its_loop
async def test_the_zone_holds_the_recorded_events_with_ids_causes_and_positions_in_their_order(zone: Zone) -> None:
    wanted = Selection(patterns=("md.>", "signal.>", "order.>", "fill.>"))
    recorded = [item for item in ArchiveReader(zone.vault.place, wanted) if isinstance(item, Played)]
    held = await zone.held(patterns=wanted.patterns)
    assert [p.verified.subject.text for p in held] == [p.verified.subject.text for p in recorded]
    assert [p.verified.events for p in held] == [p.verified.events for p in recorded]
    assert {p.verified.statement.component for p in held} == {"replay"}
    assert {p.verified.statement.deployment for p in held} == {zone.deployment.name}
    assert len(held) == 16


@on_its_loop
async def test_the_zone_never_hears_the_recorded_sessions_and_heartbeats(zone: Zone) -> None:
    assert zone.skipped == 12  # seven issuances, five heartbeats
    security = await zone.held(streams=(SECURITY,))
    assert {p.verified.statement.component for p in security} == {"authority"}


# -- nothing of a zone is accepted by anything live -----------------------------------------------


def test_a_zone_has_no_custody_no_execution_no_venue_and_no_key_to_any(zone: Zone) -> None:
    trust = zone.deployment.load_trust()[-1]
    absent = {"custody", "execution", "portfolio", "market-data", "paper-exchange"}
    assert not absent & set(trust.components)
    assert (trust.venues, trust.caps) == ({}, ())
    assert sorted(p.name for p in (zone.deployment.directory / "hsm").iterdir()) == [
        "audit",
        "operator",
        "roles",
        "signing",
    ]
    assert not any(name in secret for name in absent for secret in zone.keystore.secrets)
    assert not zone.deployment.paper_exchange.exists()
    with pytest.raises(TallystickError, match="COMPONENT"):
        process.load_setup(zone.deployment.directory, "custody", {})


@on_its_loop
async def test_a_zones_message_on_the_live_bus_is_refused_by_its_readers(
    zone: Zone, bus: TestBus, sealed_in_zone: Played
) -> None:
    seen: list[Received] = []
    async with Desk(bus) as desk:
        execution = await desk.context("execution")
        execution.subscribe("order.decision.>", seen.append)
        codes = refusals(execution)
        execution.open()
        await execution.caught_up()
        async with bus.connected("root") as [root]:  # an insider of the broker: nothing but the seal stops it
            answer = await root.request(DECISION, sealed_in_zone.verified.payload)
            assert b'"seq"' in answer.data
        await until(lambda: codes, "the refusal")
    assert (seen, codes) == ([], ["COMPONENT_UNKNOWN"])


def test_the_deployment_id_alone_refuses_a_zone_whose_keys_the_live_trust_root_named(
    zone: Zone, bus: TestBus, sealed_in_zone: Played
) -> None:
    trust = live_trust(bus)
    theirs = zone.deployment.load_trust()[-1].components["replay"]
    careless = msgspec.structs.replace(trust, components={**trust.components, "replay": theirs})
    with pytest.raises(Unverified) as caught:
        Verifier(careless).open(DECISION, ORDERS, sealed_in_zone.verified.payload)
    assert caught.value.code == "DEPLOYMENT"


@on_its_loop
async def test_a_zones_gateway_is_not_the_live_gateway(zone: Zone, bus: TestBus) -> None:
    async with zone.link("gateway") as (_, link):
        text = link.session.credential.text
    with pytest.raises(Unverified) as caught:
        open_credential(text, live_trust(bus))
    assert caught.value.code == "ROLE_KEY"


@pytest.mark.parametrize("component", ["replay", "gateway", "console"])
@on_its_loop
async def test_a_zones_credential_does_not_log_in_to_the_live_broker(zone: Zone, bus: TestBus, component: str) -> None:
    async with zone.link(component) as (_, link):  # it does log in at home
        session = link.session
        with pytest.raises(nats.errors.Error, match=r"(?i)authorization"):
            # Even with a client certificate of the live deployment.
            await bus.connect(
                session.credential.text,
                session.key,
                inbox=f"_INBOX_{component}",
                certificate="gateway",
                reconnect_time_wait=0.01,
            )


@on_its_loop
async def test_a_zones_certificate_does_not_even_reach_the_live_brokers_login(zone: Zone, bus: TestBus) -> None:
    async with zone.link("replay") as (setup, link):
        with pytest.raises((nats.errors.Error, OSError)):
            await bus.connect(
                link.session.credential.text,
                link.session.key,
                inbox="_INBOX_replay",
                certificate="gateway",
                tls=setup.identity.tls,
                reconnect_time_wait=0.01,
            )


def test_a_zones_permit_is_refused_by_live_custody(zone: Zone, sealed_in_zone: Played, tmp_path: Path) -> None:
    custody = CustodyDesk(tmp_path)
    custody.now = time.time_ns()
    custody.renew()
    custody.lend()
    decision = sealed_in_zone.verified.events[0]
    payload = sealed_in_zone.verified.payload
    credential, session = custody.credential("execution")
    request = signing.ask_for(1, decision.id, DECISION, payload, payload, credential.text, session)
    reply = custody.ask(request)
    assert isinstance(reply, signing.Refused)
    assert reply.code == "COMPONENT_UNKNOWN"
    assert isinstance(custody.sign(), signing.Signed)  # and it would sign its own gateway's


# -- recorded messages, published again into the deployment that they were recorded from ------------


async def test_recorded_messages_published_again_are_history_and_cause_nothing(bus: TestBus) -> None:
    hour_ago = time.time_ns() - 3600 * SECOND
    chains: dict[str, ChainWriter] = {}
    recorded: list[tuple[str, bytes]] = []
    for component, subject, event in samples():
        if subject.startswith(("order.", "fill.")):
            chain = chains.setdefault(component, writer(component, ORDERS, issued_at=hour_ago, lifetime=100))
            recorded += chain.seal([encoded(subject, event)], hour_ago + SECOND)

    seen: list[Received] = []
    again: list[Received] = []
    async with Desk(bus) as desk:
        gateway = await desk.context("gateway")
        gateway.subscribe(("order.>", "fill.>"), seen.append)
        gateway.open()
        await gateway.caught_up()
        async with bus.connected("root") as [root]:
            for subject, payload in recorded:
                await root.request(subject, payload)
        await until(lambda: len(seen) == len(recorded), "the recorded messages")
        await desk.close()  # a component has one boot at a time: its durable is one
        restarted = await desk.context("gateway", boot=os.urandom(16))
        restarted.subscribe(("order.>", "fill.>"), again.append, start="all")
        restarted.open()
        await restarted.caught_up()
    assert len(seen) == len(again) == len(recorded) == 6
    assert {(r.live, r.refusal.code if r.refusal else "") for r in seen} == {(False, "STALE")}
    assert not any(r.live for r in again)
    with pytest.raises(Unverified, match="STALE"):
        require_live(seen[0].verified, time.time_ns())


async def test_a_live_message_recorded_and_published_again_at_once_is_a_replay(bus: TestBus) -> None:
    seen: list[Received] = []
    async with Desk(bus) as desk:
        strategy, gateway = await desk.context("strategy-alpha"), await desk.context("gateway")
        gateway.subscribe("order.intent.alpha.>", seen.append)
        codes = refusals(gateway)
        for context in (strategy, gateway):
            context.open()
            await context.caught_up()
        intent = strategy.new(Intent, side="buy", type="market", qty=Decimal(1))
        await strategy.publish("order.intent.alpha.paper.XRP-ETH", intent)
        await until(lambda: seen, "the intent")
        async with bus.connected("root") as [root]:
            await root.request(seen[0].subject.text, seen[0].verified.payload)
        await until(lambda: codes, "the refusal")
    assert [r.live for r in seen] == [True]
    assert codes == ["REPLAY"]


def test_a_recorded_permit_is_refused_by_the_custody_it_was_made_for(tmp_path: Path) -> None:
    custody = CustodyDesk(tmp_path)
    recorded = custody.request()
    custody.advance(60)
    custody.renew()
    credential, session = custody.credential("execution")
    reply = custody.ask(
        signing.ask_for(
            1, recorded.decision_id, recorded.subject, recorded.payload, recorded.intent, credential.text, session
        )
    )
    assert isinstance(reply, signing.Refused)
    assert reply.code == "STALE"


# -- and the other way round --------------------------------------------------------------------------


def test_a_live_deployment_is_refused_as_a_zone_before_any_pin_is_asked(tmp_path: Path) -> None:
    folder = tmp_path / "live"
    folder.mkdir(mode=0o700)
    text = DEFAULT_TEMPLATE.format(deployment='"desk"', broker=1, authority=2, vault=4, venue=3)
    (folder / "deployment.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        open_zone(folder, None)
    assert caught.value.code == "NOT_A_ZONE"
    assert Deployment.load(folder).name == "desk"


@on_its_loop
async def test_the_zones_replay_cannot_speak_as_its_authority(zone: Zone) -> None:
    async with zone.link("replay") as (_, link):
        connection = await link.connection()
        await connection.publish(Outgoing("cred.authority", b"forged", os.urandom(16).hex()))
        await until(lambda: link.refusals, "the refusal")
        assert link.refusals == 1


def test_a_zone_opens_with_its_own_pin_alone(zone: Zone) -> None:
    with pytest.raises(ConfigError) as caught:
        Keystore.open(zone.deployment.keystore, Secret("the live deployment's"))
    assert caught.value.code == "KEYSTORE_PIN"
