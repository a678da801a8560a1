"""`tallystick compromise` on a running deployment: everything of R33 within five seconds, each step an event."""

from __future__ import annotations

import asyncio
import os
import secrets as entropy
import signal
import time
from collections.abc import AsyncIterator

import msgspec
import pytest
import pytest_asyncio

from tallystick import venues
from tallystick.cli import breaker
from tallystick.cli.compromise import Answer, Step, read_evidence
from tallystick.cli.compromise_key import KeyAnswer
from tallystick.cli.operate import Operator
from tallystick.cli.status import processes
from tallystick.runtime.bus.received import Received
from tallystick.runtime.deployment import pins
from tallystick.runtime.deployment.folder import KEY_VENUE, Deployment, api_key_name, pin_name
from tallystick.runtime.keys.hsm import Token
from tallystick.runtime.keys.keystore import Keystore, Secret
from tallystick.schemas.control import IncidentRequest
from tallystick.schemas.errors import ConfigError
from tallystick.schemas.incidents import Incident, open_incident
from tallystick.schemas.nats_jwt import SessionKey
from tallystick.schemas.orders import VenueOrder
from tallystick.schemas.security import IncidentStep
from tallystick.schemas.signing import Signed
from tallystick.schemas.trust import OPERATOR_KEY_NAME, Rearm, sign_document
from tallystick.venues.client import VenueClient
from tests.support.deployment import Running, make, running
from tests.support.waiting import until

on_its_loop = pytest.mark.asyncio(loop_scope="module")
STEPS = ["halted", "cancelled", "revoked", "rotated", "proven", "closed"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Deployment, Keystore]:
    return make(tmp_path_factory.mktemp("c") / "desk")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def desk(made: tuple[Deployment, Keystore]) -> AsyncIterator[Running]:
    parts = ("breaker", "gateway", "custody", "execution", "paper-exchange", "strategy-alpha")
    async with running(*made, *parts) as up:
        yield up


async def answered(desk: Running, target: str) -> tuple[Answer, list[Step], float]:
    steps: list[Step] = []
    answer = Answer(desk.deployment, desk.keystore, target, "a drill", time.time_ns, steps.append)
    begun = time.monotonic()
    assert await answer.run(), steps
    return answer, steps, time.monotonic() - begun


@on_its_loop
@pytest.mark.parametrize(("target", "tripped"), [("strategy-alpha", "strategy-alpha"), ("execution", "all")])
async def test_one_command_halts_cancels_revokes_rotates_proves_and_keeps_the_evidence(
    desk: Running, target: str, tripped: str
) -> None:
    heard: list[Incident] = []
    reader = await desk.context("console")
    trust = desk.deployment.load_trust()[-1]

    def hear(received: Received) -> None:
        heard.extend(open_incident(e.note, trust) for e in received.events if isinstance(e, IncidentStep))

    reader.subscribe("control.config.>", hear)
    reader.open()
    await reader.caught_up()
    pid = dict(_ready(desk.deployment))[target]
    answer, steps, _ = await answered(desk, target)
    assert [step.step for step in steps] == STEPS
    assert all(step.done for step in steps)
    assert tripped in [trip["scope"] for trip in (await breaker.status(desk.deployment.run))["tripped"]]
    await until(lambda: len(heard) == len(STEPS), "the steps on the bus")
    assert [said.step for said in heard] == STEPS
    assert {said.target for said in heard} == {target}
    await reader.close()
    desk.contexts.remove(reader)
    # Its process starts again, with what it has now.
    await until(lambda: dict(_ready(desk.deployment)).get(target) not in (None, pid), timeout=30)
    # What each note holds is the hash of the evidence as it was then.
    evidence = read_evidence(answer.path)
    assert all(step.published and step.note for step in evidence.steps)
    assert answer.path.stat().st_mode & 0o077 == 0
    assert [said.evidence for said in heard] == [evidence.digest(n) for n in range(1, len(STEPS) + 1)]
    changed = msgspec.structs.replace(evidence, reason="another")
    assert heard[-1].evidence != changed.digest(len(STEPS))


async def _at_venue(desk: Running, place: int) -> int:
    """Place orders with custody's key behind execution's back; how many are open then."""
    deployment, trust = desk.deployment, desk.deployment.load_trust()[-1]
    record, instrument = trust.venues["paper"], trust.instrument("paper", "XRP/ETH")
    adapter = venues.adapter(record.kind)
    client = VenueClient(adapter, record.host, venues.client_tls(deployment.venue_ca), time.time_ns)
    assert desk.supervisor.vault is not None
    secrets = await asyncio.to_thread(desk.supervisor.vault.secrets, "custody")
    with Token.open(deployment.token("custody"), "custody", secrets[pin_name("custody")]) as token:
        key = secrets[api_key_name("custody")].reveal()
        build = adapter.request_builder(record, trust.instruments, key, token.signer(KEY_VENUE), time.time_ns)
        for _ in range(place):
            name = f"{entropy.token_hex(16)}"
            order = VenueOrder("XRPETH", "BUY", "LIMIT", "GTC", "100", "0.0001", name)
            status, body = await client.send(_signed(build.order(instrument, order)))
            assert status == 200, body
        found = adapter.orders_answer(*await client.send(_signed(build.open_orders(instrument))), "XRPETH")
    await client.close()
    assert isinstance(found, tuple)
    return len(found)


def _signed(request: venues.SignedRequest) -> Signed:
    return Signed(id=0, **msgspec.structs.asdict(request))


@on_its_loop
async def test_what_is_open_is_cancelled_without_execution(desk: Running) -> None:
    assert await _at_venue(desk, 2) == 2
    (execution,) = [pid for name, pid in _ready(desk.deployment) if name == "execution"]
    os.kill(execution, signal.SIGSTOP)  # it does nothing for anybody any more
    try:
        await answered(desk, "execution")
    finally:
        os.kill(execution, signal.SIGCONT)
    assert await _at_venue(desk, 0) == 0


@on_its_loop
async def test_a_step_that_fails_keeps_nobody_from_the_next_one(desk: Running) -> None:
    (custody,) = [pid for name, pid in _ready(desk.deployment) if name == "custody"]
    os.kill(custody, signal.SIGSTOP)
    steps: list[Step] = []
    try:
        answer = Answer(desk.deployment, desk.keystore, "gateway", "a drill", time.time_ns, steps.append)
        assert not await answer.run()
    finally:
        os.kill(custody, signal.SIGCONT)
    assert [step.step for step in steps] == STEPS
    assert [step.step for step in steps if not step.done] == ["cancelled"]
    assert "failed: cancelled" in steps[-1].text


@on_its_loop
@pytest.mark.slow
@pytest.mark.parametrize("target", ["strategy-alpha", "execution"])
async def test_the_whole_answer_takes_less_than_five_seconds(desk: Running, target: str) -> None:
    # Alone on its machine: `make slow` runs one test after the other.
    _, _, took = await answered(desk, target)
    assert took < 5.0


@on_its_loop
async def test_without_the_operators_token_it_halts_and_cancels_and_says_what_is_missing(desk: Running) -> None:
    assert await _at_venue(desk, 1) == 1
    keystore = Keystore(desk.keystore.path, dict(desk.keystore.secrets), b"", b"")
    keystore.secrets[pin_name("operator")] = Secret("that token lies in a safe")
    steps: list[Step] = []
    answer = Answer(desk.deployment, keystore, "gateway", "a drill", time.time_ns, steps.append)
    assert not await answer.run()
    assert [(step.step, step.done) for step in steps] == [
        ("halted", True),
        ("cancelled", True),
        ("revoked", False),
        ("rotated", False),
        ("proven", False),
        ("closed", True),
    ]
    assert "the operator's token is not here" in steps[2].text
    assert await _at_venue(desk, 0) == 0
    # Nobody signed anything; the evidence says so.
    assert {(step.note, step.published) for step in read_evidence(answer.path).steps} == {("", False)}


@on_its_loop
async def test_neither_a_full_disk_nor_a_lost_certificate_keeps_it_from_halting(desk: Running) -> None:
    deployment = desk.deployment
    kept, identity = deployment.identity("gateway").read_bytes(), deployment.identity("gateway")
    incidents = deployment.directory / "incidents"
    aside = incidents.with_name("aside")
    incidents.rename(aside)
    incidents.write_text("no folder can be made here")
    identity.write_bytes(b"nothing of it")
    steps: list[Step] = []
    try:
        answer = Answer(deployment, desk.keystore, "gateway", "a drill", time.time_ns, steps.append)
        assert not await answer.run()
    finally:
        incidents.unlink()
        aside.rename(incidents)
    assert [step.step for step in steps] == STEPS
    assert [step.step for step in steps if not step.done] == ["proven"], steps
    assert "incidents" in answer.unkept
    assert identity.read_bytes() != kept, "it has another certificate"


@on_its_loop
async def test_nobody_but_the_operator_says_what_was_done(desk: Running) -> None:
    said = Incident(
        deployment="test",
        incident="20261126T120000Z-00000000",
        target="execution",
        number=1,
        step="halted",
        at=1,
        done=True,
        text="nothing of it",
        evidence="00" * 32,
    )
    forged = sign_document(said, (OPERATOR_KEY_NAME, SessionKey(os.urandom(32))))
    with pytest.raises(ConfigError, match="NOTE_"):
        await breaker.demand(desk.deployment.run, IncidentRequest(note=forged))
    with Operator(desk.deployment, desk.keystore) as operator:
        foreign = operator.sign(msgspec.structs.replace(said, deployment="another"))
        with pytest.raises(ConfigError, match="INCIDENT_SCOPE"):
            await breaker.demand(desk.deployment.run, IncidentRequest(note=foreign))
        lease = operator.sign(Rearm(deployment="test", scope="all", since=1))
        with pytest.raises(ConfigError, match="DOCUMENT"):
            await breaker.demand(desk.deployment.run, IncidentRequest(note=lease))


@on_its_loop
async def test_custodys_pin_changes_under_it_and_it_starts_again_with_the_new_one(desk: Running) -> None:
    deployment, keystore = desk.deployment, desk.keystore
    assert desk.supervisor.vault is not None
    old = (await asyncio.to_thread(desk.supervisor.vault.secrets, "custody"))[pin_name("custody")]
    assert pin_name("custody") not in keystore.secrets
    # What `up` hands out itself is changed while it is down.
    with pytest.raises(ConfigError, match="RUNNING"):
        await asyncio.to_thread(pins.renew, deployment, keystore, "signing", lambda _: None)
    await asyncio.to_thread(pins.renew, deployment, keystore, "custody", lambda _: None)
    with pytest.raises(ConfigError, match="HSM_PIN"):
        await asyncio.to_thread(Token.open, deployment.token("custody"), "custody", old)
    pid = dict(_ready(deployment))["custody"]
    os.kill(pid, signal.SIGKILL)
    await until(lambda: dict(_ready(deployment)).get("custody") not in (None, pid), "custody", 40)


def test_what_it_has_no_answer_to_is_said_before_anything_is_done(made: tuple[Deployment, Keystore]) -> None:
    for kind, target, code in ((KeyAnswer, "operator/root", "COMPROMISE_KEY"), (Answer, "nobody", "COMPONENT")):
        with pytest.raises(ConfigError, match=code):
            kind(*made, target, "a drill", time.time_ns, lambda _: None)


def _ready(deployment: Deployment) -> list[tuple[str, int]]:
    return processes(deployment)
