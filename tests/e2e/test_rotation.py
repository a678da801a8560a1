"""API keys are changed on a running deployment that trades at the paper exchange, whatever fails and whoever dies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from tallystick.cli import breaker, compromise, guided, operate
from tallystick.cli.compromise_key import KeyAnswer
from tallystick.cli.operate import Operator
from tallystick.cli.rotate import order, rotate
from tallystick.cli.status import processes, report
from tallystick.components.keymaster.main import AGAIN_NS, MAGIC, MAX_FILE, Kept, next_due
from tallystick.components.keymaster.rotation import KeyRef, begin
from tallystick.components.paper_exchange import sub_keys
from tallystick.runtime.bus.received import Received
from tallystick.runtime.deployment import board
from tallystick.runtime.deployment.folder import Deployment, passphrase_name
from tallystick.runtime.deployment.service import ServiceContext
from tallystick.runtime.keys.identity import Identity
from tallystick.runtime.keys.keystore import Keystore, Secret
from tallystick.runtime.keys.sealed_file import SealedFile
from tallystick.runtime.vault.client import VaultClient, VaultRefused
from tallystick.runtime.vault.logins import Certificate
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.control import RotateRequest
from tallystick.schemas.errors import ConfigError, LeaseOver, Malformed, Unverified
from tallystick.schemas.event import Event
from tallystick.schemas.rotation_orders import ORDER_NS, RotationOrder, open_rotation_order
from tallystick.schemas.security import KeyAnswered, KeyAsked, KeyRotation
from tallystick.schemas.trust import OPERATOR_KEY_NAME, sign_document
from tallystick.venues import Rejected
from tallystick.venues.keys import KeyRights, fingerprint
from tests.support.rotating_desk import THIEF, Desk, Thief, make, rotating_desk
from tests.support.waiting import until
from tests.support.world import key

on_its_loop = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Deployment, Keystore]:
    return make(tmp_path_factory.mktemp("r") / "desk")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def desk(made: tuple[Deployment, Keystore]) -> AsyncIterator[Desk]:
    async with rotating_desk(*made) as up:
        yield up


@contextlib.asynccontextmanager
async def in_other_hands(desk: Desk, component: str) -> AsyncIterator[ServiceContext]:
    """An attacker speaks for the component in its place; it is back afterwards."""
    await desk.up.supervisor._stop(component)
    attacker = await desk.up.context(component, boot=os.urandom(16))
    yield attacker
    desk.up.contexts.remove(attacker)
    await attacker.close()
    desk.up.supervisor._launch(component)


async def require_one_key(desk: Desk, component: str) -> None:
    """The key that the vault names is the only one of the component, in its token and at the venue."""
    key_id, api_key = await desk.in_use(component)
    assert await desk.in_token(component) == {key_id}
    wanted = {"custody": {"read", "trade"}, "portfolio": {"read"}}[component]
    assert [held.api_key for held in desk.at_venue() if held.permissions == wanted] == [api_key]


def require_no_order_lost(desk: Desk) -> None:
    """Nothing was refused or voided, by the venue or by us, but for want of money, and nobody saw a credential fail."""
    lost = [event for event in desk.orders if event.state in {"void", "rejected", "unknown"}]
    assert not [event for event in lost if event.code != "-2010"]
    assert not [told for told in desk.told if told.code in {"VENUE_CREDENTIAL", "USER_STREAM_DOWN", "ORDER_REFUSED"}]


@on_its_loop
async def test_a_key_is_changed_under_orders_none_is_missed_and_the_old_one_is_dead_and_destroyed(desk: Desk) -> None:
    (old_id, old), thief = await desk.in_use("custody"), Thief(desk, "custody")
    stealing = asyncio.create_task(thief.run())
    told: list[str] = []
    assert await rotate(desk.deployment, desk.keystore, "custody", told.append)
    await stealing
    await desk.trades()
    key_id, api_key = await desk.in_use("custody")
    assert (key_id, api_key) != (old_id, old)
    await require_one_key(desk, "custody")
    require_no_order_lost(desk)
    # The old one lived until it was deleted, and then the venue did not know it any more.
    assert isinstance(thief.answers[0], KeyRights)
    assert isinstance(thief.answers[-1], Rejected)
    assert thief.answers[-1].code == "-2015"
    # The new one was bound from its birth, and each step is on the record, without a key's id.
    made = next(held for held in desk.at_venue() if held.api_key == api_key)
    assert made.ips == ("127.0.0.1",)
    steps = [step for step in desk.steps if step.holder == "custody"]
    assert [step.step for step in steps] == [
        "started", "new_key", "creating", "created", "bound", "verified", "switching", "switched", "revoking",
        "revoked", "dead", "forgotten",
    ]  # fmt: skip
    assert steps[-1].old == fingerprint(old)
    assert steps[-1].new == fingerprint(api_key)
    assert told[-1] == "custody: forgotten"
    lines = await asyncio.to_thread(lambda: list(report(desk.deployment, time.time_ns())))
    assert "rotation custody: forgotten" in lines


@on_its_loop
@pytest.mark.slow
async def test_the_key_that_reads_is_changed_and_no_fill_is_missed(desk: Desk) -> None:
    _, old = await desk.in_use("portfolio")
    assert await rotate(desk.deployment, desk.keystore, "portfolio", lambda _: None)
    assert (await desk.in_use("portfolio"))[1] != old
    await require_one_key(desk, "portfolio")
    seen = len(desk.fills)
    await until(lambda: len(desk.fills) > seen + 3, "fills", 30)

    def filled(name: str) -> Decimal:
        return sum((fill.qty for fill in desk.fills if fill.client_order_id == name), Decimal(0))

    ended = [e for e in desk.orders if e.state == "closed" and e.executed]
    assert len(ended) > 5
    for event in ended:
        await until(lambda e=event: filled(e.client_order_id) == e.executed, f"the fills of {event}")  # type: ignore[misc]
    require_no_order_lost(desk)


@on_its_loop
@pytest.mark.slow
async def test_a_key_whose_day_is_over_is_changed_by_itself_and_then_not_for_another_day(desk: Desk) -> None:
    """What the keymaster kept says that it is due: as a day later."""
    before, after = await desk.in_use("portfolio"), len(desk.steps)
    await desk.up.supervisor._stop("keymaster")
    path = desk.deployment.state("keymaster") / "portfolio.rotation"
    secret = desk.keystore[passphrase_name("keymaster")]
    file = SealedFile(path, MAGIC, desk.deployment.name, "keymaster", secret, most=MAX_FILE)
    kept = msgspec.json.decode(file.read(), type=Kept)
    assert before[1].encode() not in path.read_bytes()
    assert kept.due > time.time_ns() + 23 * 3_600 * SECOND
    file.write(msgspec.json.encode(msgspec.structs.replace(kept, due=time.time_ns())))
    desk.up.supervisor._launch("keymaster")
    await desk.step("forgotten", after)
    assert (await desk.in_use("portfolio")) != before
    await require_one_key(desk, "portfolio")
    assert msgspec.json.decode(file.read(), type=Kept).due > time.time_ns() + 23 * 3_600 * SECOND
    assert {step.holder for step in desk.steps[after:]} == {"portfolio"}


@on_its_loop
async def test_a_venue_that_gives_a_new_key_too_many_rights_keeps_us_at_the_old_one(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sub_keys._permissions

    def generous(*given: Any) -> frozenset[Any]:
        return real(*given) | {"withdraw"}

    before, there = await desk.in_use("custody"), {held.api_key for held in desk.at_venue()}
    monkeypatch.setattr(sub_keys, "_permissions", generous)
    told: list[str] = []
    assert not await rotate(desk.deployment, desk.keystore, "custody", told.append)
    assert "KEY_CAN_WITHDRAW" in told[-1]
    assert await desk.in_use("custody") == before
    assert await desk.in_token("custody") == {before[0]}
    assert {held.api_key for held in desk.at_venue()} == there
    await until(lambda: any(n.code == "KEY_ROTATION" for n in desk.told), "people hear of it")
    await desk.trades()
    require_no_order_lost(desk)


@on_its_loop
@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "at"),
    [
        *(
            ("keymaster", step)
            for step in (
                "started", "new_key", "creating", "created", "bound", "verified", "switching", "switched", "revoking",
                "revoked", "dead",
            )
        ),
        # The steps in which custody does something.
        *(("custody", step) for step in ("started", "switching", "dead")),
    ],
)  # fmt: skip
async def test_a_rotation_goes_on_when_somebody_is_killed_at_any_step(desk: Desk, victim: str, at: str) -> None:
    before, after = await desk.in_use("custody"), len(desk.steps)
    await order(desk.deployment, desk.keystore, "custody", "rotate")
    await desk.step(at, after)
    await desk.kill(victim)
    ended = await desk.step("forgotten", after)
    assert len({step.rotation for step in desk.steps[after:]}) == 1
    key_id, api_key = await desk.in_use("custody")
    assert key_id != before[0]
    assert ended.new == fingerprint(api_key)
    await require_one_key(desk, "custody")
    await desk.trades()
    assert not [told for told in desk.told if told.code == "VENUE_CREDENTIAL"]


@on_its_loop
async def test_whoever_is_not_the_keymaster_has_no_key_made_changed_or_destroyed(desk: Desk) -> None:
    """Portfolio, in other hands, speaks the keymaster's words where it may speak."""
    before = await desk.in_use("custody")
    async with in_other_hands(desk, "portfolio") as attacker:
        attacker.open()
        asked = attacker.new(KeyAsked, rotation="0" * 16, holder="custody", op="forget", key_id=before[0])
        born = attacker.new(KeyAsked, rotation="0" * 16, holder="custody", op="born", key_id="api-" + "0" * 16)
        with pytest.raises(Unverified, match="SCOPE"):
            attacker.publish("control.key.keymaster", asked)
        with pytest.raises(Malformed, match="EVENT_TYPE"):
            attacker.publish("control.config.portfolio", asked)
        await attacker.publish("control.key.portfolio", asked, born)
    # Custody has read it once it has answered what came later.
    assert await rotate(desk.deployment, desk.keystore, "custody", lambda _: None)
    assert await desk.in_token("custody") == {(await desk.in_use("custody"))[0]}


@on_its_loop
async def test_whoever_sends_with_a_key_never_sees_what_it_signed_about_itself(desk: Desk) -> None:
    """For a second the venue would take it for any question, from whoever knows the key's id: execution does."""
    heard: list[Event] = []

    async def hear(received: Received) -> None:
        heard.extend(received.events)

    async with in_other_hands(desk, "execution") as attacker:
        attacker.subscribe("control.>", hear)
        attacker.open()
        assert await rotate(desk.deployment, desk.keystore, "custody", lambda _: None)
        await attacker.caught_up()
    assert [event for event in heard if isinstance(event, KeyRotation) and event.holder == "custody"]
    assert not [event for event in heard if isinstance(event, KeyAsked | KeyAnswered)]
    await desk.trades()


async def answered(desk: Desk, target: str) -> dict[str, compromise.Step]:
    """The answer to a key in other hands, step by step."""
    steps: list[compromise.Step] = []
    answer = KeyAnswer(desk.deployment, desk.keystore, target, "a drill", time.time_ns, steps.append)
    assert await answer.run() == all(step.done for step in steps)
    evidence = compromise.read_evidence(answer.path)
    assert [step.note != "" for step in evidence.steps] == [True] * len(steps)
    return {f"{step.number} {step.step}": step for step in steps}


@on_its_loop
async def test_a_stolen_key_is_dead_before_there_is_another_one_and_what_the_thief_placed_is_cancelled(
    desk: Desk,
) -> None:
    key_id, old = await desk.in_use("custody")
    after = len(desk.steps)
    thief = asyncio.create_task(Thief(desk, "custody").trade())
    try:
        await until(lambda: desk.open_of(THIEF) > 0, "the thief's order")
        steps = await answered(desk, f"custody/{key_id}")
    finally:
        refused = await thief
    assert [step.done for step in steps.values()] == [True] * 7, steps
    assert list(steps) == [
        "1 halted", "2 cancelled", "3 revoked", "4 proven", "5 rotated", "6 cancelled", "7 closed",
    ]  # fmt: skip
    assert (refused.code, refused.about) == ("-2015", "credential")
    assert [step.step for step in desk.steps[after:] if step.holder == "custody"] == [
        "revoking", "revoked", "dead", "started", "new_key", "creating", "created", "bound", "verified", "switching",
        "switched", "dead", "forgotten",
    ]  # fmt: skip
    assert desk.open_of(THIEF) == 0
    assert old not in {held.api_key for held in desk.at_venue()}
    await require_one_key(desk, "custody")
    await operate.rearm(desk.deployment, desk.keystore, "all")
    await desk.trades()


@on_its_loop
@pytest.mark.slow
async def test_a_stolen_key_is_answered_within_five_seconds(desk: Desk) -> None:
    steps = list((await answered(desk, f"custody/{(await desk.in_use('custody'))[0]}")).values())
    assert all(step.done for step in steps), steps
    assert steps[-1].ended - steps[0].begun < 5 * SECOND
    await operate.rearm(desk.deployment, desk.keystore, "all")
    await desk.trades()


@on_its_loop
async def test_a_key_that_the_keymaster_made_is_deleted_also_while_its_holder_is_silent(desk: Desk) -> None:
    """Whoever has custody does not keep its key alive by saying nothing, or that it signs with another one."""
    assert await rotate(desk.deployment, desk.keystore, "portfolio", lambda _: None)
    key_id, old = await desk.in_use("portfolio")
    pid = dict(processes(desk.deployment))["portfolio"]
    os.kill(pid, signal.SIGSTOP)
    try:
        answering = asyncio.create_task(answered(desk, f"portfolio/{key_id}"))
        await until(lambda: old not in {held.api_key for held in desk.at_venue()}, "its deletion")
    finally:
        os.kill(pid, signal.SIGCONT)
    steps = await answering
    assert all(step.done for step in steps.values()), steps
    assert [step.step for step in steps.values()] == ["halted", "cancelled", "revoked", "proven", "rotated", "closed"]
    assert "cannot trade" in steps["1 halted"].text
    await require_one_key(desk, "portfolio")


@on_its_loop
async def test_an_order_to_revoke_another_key_than_the_one_in_use_changes_nothing(desk: Desk) -> None:
    before = await desk.in_use("custody")
    held = {key.api_key for key in desk.at_venue()}
    with Operator(desk.deployment, desk.keystore) as operator:
        now = time.time_ns()
        document = RotationOrder(deployment="test", component="custody", act="revoke", at=now, key="api-" + "0" * 16)
        note = operator.sign(document)
    await breaker.demand(desk.deployment.run, RotateRequest(note=note))
    await until(lambda: any("not revoked" in told.text for told in desk.told), "the keymaster's word")
    assert (await desk.in_use("custody"), {key.api_key for key in desk.at_venue()}) == (before, held)
    with pytest.raises(ConfigError, match="COMPROMISE_KEY"):
        KeyAnswer(desk.deployment, desk.keystore, "operator/root", "a drill", time.time_ns, lambda _: None)


@on_its_loop
async def test_an_order_to_rotate_counts_by_the_operators_signature_once_and_soon(desk: Desk) -> None:
    trust, after = desk.deployment.load_trust()[-1], len(desk.steps)
    now = time.time_ns()
    document = RotationOrder(deployment=desk.deployment.name, component="custody", act="rotate", at=now)
    forged = sign_document(document, (OPERATOR_KEY_NAME, key("somebody")))
    with pytest.raises(ConfigError, match="NOTE_"):
        await breaker.demand(desk.deployment.run, RotateRequest(note=forged))
    with pytest.raises(Unverified, match="NOTE_"):
        open_rotation_order(forged, trust, now)
    assert len(desk.steps) == after


def test_an_order_of_another_deployment_or_of_yesterday_is_none(made: tuple[Deployment, Keystore]) -> None:
    deployment, keystore = made
    trust, now = deployment.load_trust()[-1], time.time_ns()
    with Operator(deployment, keystore) as operator:
        good = operator.sign(RotationOrder(deployment="test", component="custody", act="rotate", at=now))
        foreign = operator.sign(RotationOrder(deployment="other", component="custody", act="rotate", at=now))
    assert open_rotation_order(good, trust, now + ORDER_NS).component == "custody"
    for late in (now + ORDER_NS + 1, now - ORDER_NS - 1):
        with pytest.raises(LeaseOver, match="ROTATION_ORDER_OVER"):
            open_rotation_order(good, trust, late)
    with pytest.raises(Unverified, match="ROTATION_ORDER_SCOPE"):
        open_rotation_order(foreign, trust, now)


@on_its_loop
@pytest.mark.slow
@pytest.mark.parametrize("stolen", [False, True])
async def test_a_person_changes_a_key_by_hand_and_is_told_each_step(desk: Desk, stolen: bool) -> None:
    before, (_, old) = {held.api_key for held in desk.at_venue()}, await desk.in_use("custody")
    seen: list[str] = []
    name = "byhand2" if stolen else "byhand"
    old_key = next(held for held in desk.at_venue() if held.api_key == old)

    def person(text: str) -> str:
        """Does on the venue's site what he is told to; the first time he forgets the addresses."""
        seen.append(text)
        if "give it this public key" in text:
            pem = text.partition("-----BEGIN PUBLIC KEY-----")[2].partition("-----END")[0]
            new = msgspec.structs.replace(old_key, api_key=name, public_key=pem.replace("\n", ""), ips=())
            desk.exchange.keys.add(new)
        elif "not fit" in text:
            assert "'Restrict access to trusted IPs only'" in text
            made = next(held for held in desk.at_venue() if held.api_key == name)
            desk.exchange.keys.put(msgspec.structs.replace(made, ips=("127.0.0.1",)))
        elif "'Delete'" in text:
            assert old[:8] in text
            desk.exchange.revoke(old)
        return name if text.startswith("The id") else ""

    assert await guided.rotate(desk.deployment, desk.keystore, "custody", person, lambda _: None, stolen=stolen)
    assert ("'Delete'" in seen[0]) == stolen
    assert {held.api_key for held in desk.at_venue()} == before - {old} | {name}
    assert (await desk.in_use("custody"))[1] == name
    await require_one_key(desk, "custody")
    assert any("'Enable Spot & Margin Trading'" in text for text in seen)
    assert not (desk.deployment.state("by-hand") / "custody.rotation").exists()


@on_its_loop
async def test_the_keymaster_replaces_which_key_is_used_and_reads_no_secret_of_others(desk: Desk) -> None:
    """The keymaster, in other hands, at the vault."""
    deployment, before = desk.deployment, await desk.secrets("custody")
    passphrase = desk.keystore[passphrase_name("keymaster")]
    identity = Identity(deployment.name, deployment.issuing_ca, deployment.identity("keymaster"), passphrase)

    @contextlib.contextmanager
    def entered() -> Iterator[VaultClient]:
        client = VaultClient(deployment.vault_address(), identity.client(deployment.vault_ca), "tallystick")
        try:
            Certificate("tallystick-keymaster")(client)
            yield client
        finally:
            client.close()

    def attack() -> None:
        with entered() as client:
            assert set(client.read("keymaster")) == {"hsm.keymaster.pin", "venue.keymaster.api_key"}
            for component in ("custody", "portfolio"):
                with pytest.raises(VaultRefused, match="VAULT_DENIED"):
                    client.read(component)
                with pytest.raises(VaultRefused, match="VAULT_DENIED"):
                    client.write(component, {"venue.custody.api_key": Secret("mine")})
            with pytest.raises(VaultRefused, match="VAULT_DENIED"):
                client.patch("keymaster", {"venue.keymaster.api_key": Secret("mine")})
            # What it may: and then custody asks the venue, and does not go over to it.
            client.patch("custody", {"venue.custody.api_key": Secret("mine")})

    def delete() -> None:
        """RFC 7396: null takes a value away."""
        kind, said = {"Content-Type": "application/merge-patch+json"}, {"data": {"hsm.custody.pin": None}}
        with entered() as client:
            request = client._hvac.adapter.request
            client._call(lambda: request("patch", "/v1/tallystick/data/custody", headers=kind, json=said))

    await asyncio.to_thread(attack)
    after = await desk.secrets("custody")
    assert {name for name in before if before[name] != after[name]} == {"venue.custody.api_key"}
    told = board.read(deployment, "custody")["key"]
    await order(deployment, desk.keystore, "custody", "reread")
    await until(lambda: "key not changed" in deployment.log("custody").read_text(), "custody refuses")
    assert board.read(deployment, "custody")["key"] == told
    # What is deleted there keeps it from nothing that it does.
    pid = dict(processes(deployment))["custody"]
    await asyncio.to_thread(delete)
    await order(deployment, desk.keystore, "custody", "reread")
    await until(lambda: "VAULT_SECRET_MISSING" in deployment.log("custody").read_text(), "custody says so")
    assert dict(processes(deployment))["custody"] == pid


def test_a_rotation_that_went_back_is_tried_again_within_the_hour() -> None:
    day, state = 24 * 3_600 * SECOND, begin("0123456789abcdef", "paper", "custody", KeyRef(key_id="venue"), 1)
    for step, every, wait in (
        ("forgotten", day, day),
        ("rolled_back", day, AGAIN_NS),
        ("rolled_back", 60 * SECOND, 60 * SECOND),
    ):
        ended = msgspec.structs.replace(state, step=step)
        assert next_due(ended, 7, every) == 7 + wait
