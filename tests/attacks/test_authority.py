"""Credentials under attack, against the real authority, broker and tokens."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from decimal import Decimal
from pathlib import Path

import aiohttp
import msgspec
import nats.errors
import pytest
from nats.aio.client import Client

from tallystick.cli import operate
from tallystick.cli.intruder import _StolenRoleKey
from tallystick.runtime.bus.link import Outgoing
from tallystick.runtime.bus.received import Received
from tallystick.runtime.deployment.folder import Deployment, passphrase_name, pin_name, role_key_id
from tallystick.runtime.deployment.service import ServiceContext, Setup
from tallystick.runtime.keys.identity import Identity
from tallystick.runtime.keys.keystore import Keystore
from tallystick.runtime.keys.token_process import TokenProcess
from tallystick.schemas.enrolment import RevocationRequest
from tallystick.schemas.errors import ConfigError, Unverified
from tallystick.schemas.nats_jwt import SessionKey, sign_nonce
from tallystick.schemas.orders import Intent
from tallystick.schemas.registry import encode_events
from tallystick.schemas.seal import ChainWriter
from tallystick.schemas.security import CredentialIssued, Notice, SessionRevoked
from tallystick.schemas.subjects import ORDERS, subject
from tallystick.schemas.trust import OPERATOR_KEY_NAME, Revocation, sign_document
from tests.support.deployment import Running, make, running
from tests.support.runtime import from_listed
from tests.support.waiting import until

INTENTS = subject("order.intent", strategy="alpha", venue="paper", symbol="XRP/ETH")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Deployment, Keystore]:
    return make(tmp_path_factory.mktemp("d") / "desk", session_lifetime_s=5)


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> tuple[Deployment, Keystore]:
    """Sessions that outlive what the test waits for."""
    return make(tmp_path_factory.mktemp("l") / "desk", session_lifetime_s=60)


def intent(context: ServiceContext, *, ts: int | None = None) -> Intent:
    made_now = context.new(Intent, side="buy", type="market", qty=Decimal(1))
    return made_now if ts is None else Intent(id=made_now.id, ts=ts, side="buy", type="market", qty=Decimal(1))


async def reader(desk: Running) -> tuple[ServiceContext, list[Received]]:
    """A gateway that takes live intents from listed sessions only."""
    gateway = await desk.context("gateway")
    got: list[Received] = []
    gateway.subscribe("order.intent.>", from_listed(gateway, got))
    gateway.open()
    await gateway.caught_up()
    return gateway, got


async def publish_raw(context: ServiceContext, sealed: bytes) -> None:
    connection = await context.link.connection()
    flight = await connection.publish(Outgoing(INTENTS.text, sealed, os.urandom(16).hex()))
    await asyncio.wait_for(flight.acknowledged(), 20)


def refusals(context: ServiceContext) -> int:
    return context.metrics.snapshot().get("dead_letters", 0)


async def test_a_request_for_another_components_session_is_refused(made: tuple[Deployment, Keystore]) -> None:
    async with running(*made) as desk:
        setup = desk.setup("gateway", certificate_of="strategy-alpha")
        client = setup.authority()
        with pytest.raises(Unverified, match="IDENTITY"):
            await client.obtain(SessionKey(os.urandom(32)), os.urandom(16))

        thief, owner = SessionKey(os.urandom(32)), SessionKey(os.urandom(32))

        class Thief(SessionKey):
            """Asks for the owner's key without holding it."""

            public = owner.public
            sign = thief.sign

        claimed = Thief.__new__(Thief)
        with pytest.raises(Unverified, match="PROOF"):
            await desk.setup("strategy-alpha").authority().obtain(claimed, os.urandom(16))


async def superseded(
    desk: Running, gateway: ServiceContext, got: list[Received]
) -> tuple[ServiceContext, ServiceContext, float]:
    """Two boots of strategy alpha, and how long it was before broker and verifiers knew (s)."""
    first = await desk.context("strategy-alpha")
    await first.publish(INTENTS, intent(first))
    await until(lambda: len(got) == 1, "the first boot's intent")
    connection = await first.link.connection()
    began = time.monotonic()
    second = await desk.context("strategy-alpha")
    await asyncio.wait_for(connection.lost.wait(), 30)
    await until(lambda: gateway.sessions.is_dead(first.boot), "the revocation", 30)
    return first, second, time.monotonic() - began


@pytest.mark.slow
async def test_a_second_boot_revokes_the_first_in_under_a_second(made: tuple[Deployment, Keystore]) -> None:
    # Alone on its machine: `make slow` runs one test after the other.
    async with running(*made) as desk:
        first, _, took = await superseded(desk, *await reader(desk))
        desk.contexts.remove(first)
        await first.link.stop()
    assert took < 1.0


async def test_a_second_boot_revokes_the_first_at_broker_and_verifiers(made: tuple[Deployment, Keystore]) -> None:
    async with running(*made) as desk:
        gateway, got = await reader(desk)
        first, second, _ = await superseded(desk, gateway, got)
        # The first boot cannot come back: its renewal is refused, whatever it does.
        with pytest.raises(Unverified, match="BOOT_ENDED"):
            await desk.setup("strategy-alpha").authority().obtain(SessionKey(os.urandom(32)), first.boot)
        # An event of the revoked boot, published by the insider through the second's connection and dated
        # back to before the revocation, has no effect at any reader.
        session = first.link.session
        late = intent(first, ts=time.time_ns() - 2_000_000_000)
        sealed = ChainWriter(session.credential, session.key, ORDERS)
        sealed.seq, sealed.prev = 7, bytes(31) + b"\x01"
        body = sealed.seal([(INTENTS.text, encode_events("order.intent", (late,)))], time.time_ns() - 1_000_000_000)
        await publish_raw(second, body[0][1])
        await until(lambda: refusals(gateway) == 1, "the refusal")
        await second.publish(INTENTS, intent(second))
        await until(lambda: len(got) == 2, "the second boot's intent")
        assert got[1].statement.boot == second.boot
        first.link._source = second.link._source
        desk.contexts.remove(first)
        await first.link.stop()


async def test_a_session_minted_with_a_stolen_role_key_is_let_in_by_the_broker_and_refused_by_readers(
    made: tuple[Deployment, Keystore],
) -> None:
    async with running(*made) as desk:
        gateway, got = await reader(desk)
        token = TokenProcess(desk.deployment.token("roles"), "roles", desk.keystore[pin_name("roles")])
        role = token.signer(role_key_id("strategy-alpha"))
        trust = desk.setup("strategy-alpha").trust
        thief = await desk.context("strategy-alpha", source=_StolenRoleKey("strategy-alpha", role, trust))
        token.close()
        connection = await thief.link.connection()
        assert connection.alive
        session = thief.link.session
        sealed = ChainWriter(session.credential, session.key, ORDERS)
        body = sealed.seal([(INTENTS.text, encode_events("order.intent", (intent(thief),)))], time.time_ns())
        await publish_raw(thief, body[0][1])
        await until(lambda: refusals(gateway) == 1, "the refusal")
        assert got == []
        desk.contexts.remove(thief)
        await thief.link.stop()


async def test_a_session_that_was_never_issued_and_one_with_anothers_certificate_are_kicked(
    lasting: tuple[Deployment, Keystore],
) -> None:
    async with running(*lasting) as desk:
        watcher = await desk.context("console")
        notices: list[Notice] = []
        watcher.subscribe("guard.>", lambda r: notices.extend(e for e in r.events if isinstance(e, Notice)))
        watcher.open()
        await watcher.caught_up()
        alpha = await desk.context("strategy-alpha")
        token = TokenProcess(desk.deployment.token("roles"), "roles", desk.keystore[pin_name("roles")])
        role = token.signer(role_key_id("strategy-beta"))
        thief = await desk.context("strategy-beta", source=_StolenRoleKey("strategy-beta", role, watcher.trust))
        token.close()
        unlisted = await thief.link.connection()
        stolen = alpha.link.session
        borrowed = Client()
        await borrowed.connect(
            servers=[desk.supervisor.server.url],
            user_jwt_cb=stolen.credential.text.encode,
            signature_cb=lambda nonce: sign_nonce(stolen.key, nonce),
            tls=desk.setup("gateway").identity.tls,
            tls_handshake_first=True,
            allow_reconnect=False,
        )
        await until(lambda: not unlisted.alive and borrowed.is_closed, "both are kicked", 15)
        codes = {"CONNECTION_UNLISTED", "CONNECTION_CERTIFICATE"}
        await until(lambda: codes <= {n.code for n in notices}, "both notices", 20)
        assert (await alpha.link.connection()).alive
        desk.contexts.remove(thief)
        await thief.link.stop()


async def test_a_new_boot_gets_its_session_when_the_one_before_is_off_the_broker(
    lasting: tuple[Deployment, Keystore],
) -> None:
    """Two at one durable would share its messages between them, and each reset of the one moves the other."""
    async with running(*lasting) as desk:
        alpha = await desk.context("strategy-alpha")
        before = await alpha.link.connection()
        desk.contexts.remove(alpha)
        await desk.setup("strategy-alpha").authority().obtain(SessionKey(os.urandom(32)), os.urandom(16))
        # What the broker has sent by then may still lie in the socket.
        await until(lambda: not before.alive, "the end of the connection", 0.25)
        await alpha.link.stop()


async def test_an_expired_session_reaches_nobody(made: tuple[Deployment, Keystore]) -> None:
    async with running(*made) as desk:
        gateway, got = await reader(desk)
        alpha = await desk.context("strategy-alpha")
        old = alpha.link.session
        await asyncio.sleep((old.credential.expires_at - time.time_ns()) / 1e9 + 0.3)
        assert alpha.link.session is not old
        for stated in (time.time_ns(), old.credential.expires_at - 500_000_000):
            chain = ChainWriter(old.credential, old.key, ORDERS)
            body = chain.seal([(INTENTS.text, encode_events("order.intent", (intent(alpha),)))], stated)
            await publish_raw(alpha, body[0][1])
        await until(lambda: refusals(gateway) == 2, "both refusals")
        assert got == []

        class Old:
            """Logs in with what it had."""

            async def obtain(self, key: SessionKey, boot: bytes) -> str:
                del key, boot
                return old.credential.text

        with pytest.raises(Unverified):
            await desk.context("strategy-alpha", source=Old(), boot=alpha.boot)
        # The broker counts whole seconds: a token lives until the end of its last one.
        await asyncio.sleep(1.2)  # see above
        client = Client()
        with pytest.raises((nats.errors.Error, OSError)):
            await client.connect(
                servers=[desk.supervisor.server.url],
                user_jwt_cb=old.credential.text.encode,
                signature_cb=lambda nonce: sign_nonce(old.key, nonce),
                tls=desk.setup("strategy-alpha").identity.tls,
                tls_handshake_first=True,
                allow_reconnect=False,
                connect_timeout=3,
            )


async def test_the_chain_goes_on_across_renewal_and_every_session_is_published_before_its_use(
    made: tuple[Deployment, Keystore],
) -> None:
    async with running(*made) as desk:
        gateway, got = await reader(desk)
        issued: list[CredentialIssued] = []
        watcher = await desk.context("breaker")
        watcher.subscribe("cred.>", lambda r: issued.extend(e for e in r.events if isinstance(e, CredentialIssued)))
        watcher.open()
        await watcher.caught_up()
        alpha = await desk.context("strategy-alpha")
        for _ in range(35):
            await alpha.publish(INTENTS, intent(alpha))
            await asyncio.sleep(0.2)
        await until(lambda: len(got) == 35, "every intent")
        assert [r.statement.seq for r in got] == list(range(35))
        used = {r.credential.digest for r in got}
        assert len(used) >= 2
        assert used <= {e.credential_hash for e in issued}
        assert refusals(gateway) == 0


async def test_sessions_outlive_a_kill_of_the_authority_and_its_next_boot_lists_them(
    lasting: tuple[Deployment, Keystore],
) -> None:
    async with running(*lasting) as desk:
        gateway, got = await reader(desk)
        alpha = await desk.context("strategy-alpha")
        revoked: list[SessionRevoked] = []
        watcher = await desk.context("breaker")
        watcher.subscribe("cred.>", lambda r: revoked.extend(e for e in r.events if isinstance(e, SessionRevoked)))
        watcher.open()
        await watcher.caught_up()
        await alpha.publish(INTENTS, intent(alpha))
        await until(lambda: len(got) == 1, "an intent before")
        killed = time.time_ns()
        desk.supervisor.kill("authority")
        await until(lambda: gateway.sessions.listed_at > killed, "the list of its next boot", 60)
        await alpha.publish(INTENTS, intent(alpha))
        await until(lambda: len(got) == 2, "an intent after", 10)
        # Nobody but the authority's own earlier boot was revoked.
        assert len(revoked) <= 1


async def test_who_copied_a_certificate_gets_nothing_with_it_after_the_revocation(
    lasting: tuple[Deployment, Keystore], tmp_path: Path
) -> None:
    """0.24 s after `revoke` a thief had enrolled a new boot with the same certificate, and traded."""
    component = "strategy-alpha"
    deployment, keystore = lasting
    shutil.copytree(deployment.pki, tmp_path / "stolen")

    def stolen(desk: Running) -> Setup:
        path, passphrase = tmp_path / "stolen" / f"{component}.pem", keystore[passphrase_name(component)]
        return msgspec.structs.replace(
            desk.setup(component), identity=Identity("test", deployment.issuing_ca, path, passphrase)
        )

    async def steal(desk: Running) -> str:
        thief = stolen(desk).authority()
        thief._proof = None  # what he must show besides is not even asked for
        with pytest.raises(Unverified) as caught:
            await thief.obtain(SessionKey(os.urandom(32)), os.urandom(16))
        return caught.value.code

    async with running(*lasting) as desk:
        gateway, got = await reader(desk)
        alpha = await desk.context(component)
        await alpha.publish(INTENTS, intent(alpha))
        await until(lambda: len(got) == 1, "an intent before")
        assert await operate.revoke(deployment, keystore, component, "its host was entered") == 1
        assert await steal(desk) == "COMPONENT_REVOKED"
        await until(lambda: component in gateway.sessions._revocations, "the operator's word at a verifier", 2)
        desk.contexts.remove(alpha)
        await alpha.link.stop()
        # It outlives the authority.
        desk.supervisor.kill("authority")
        await until(lambda: not (deployment.run / "authority.ready").exists(), "its end")
        await until((deployment.run / "authority.ready").exists, "the next boot", 15)
        assert await steal(desk) == "COMPONENT_REVOKED"
        # An admission of an earlier number, or of nobody, admits nobody.
        for number, signer in ((1, None), (2, SessionKey(os.urandom(32)))):
            document = Revocation(
                deployment="test", component=component, number=number, revoked=False, since=0, reason=""
            )
            note = (
                operate._sign(deployment, keystore, document)
                if signer is None
                else sign_document(document, (OPERATOR_KEY_NAME, signer))
            )
            with pytest.raises(ConfigError, match=r"REVOCATION_NUMBER|NOTE"):
                await operate._authority(deployment, keystore, "/v1/revoke", RevocationRequest(note))
        # The way back: a new key, signed by the operator.  The old one stays worthless.
        await operate.reinstate(deployment, keystore, component, "its host was made anew")
        again = await desk.context(component)
        await again.publish(INTENTS, intent(again))
        await until(lambda: len(got) == 2, "an intent after", 20)
        assert await steal(desk) == "COMPONENT_REVOKED"


async def test_a_revoked_component_keeps_nobody_from_starting_and_starts_with_its_new_key(
    lasting: tuple[Deployment, Keystore],
) -> None:
    deployment, keystore = lasting
    component = "strategy-beta"

    def state(desk: Running) -> str:
        return next(s.state for s in desk.supervisor.states if s.name == component)

    async with running(*lasting, component) as desk:
        await operate.revoke(deployment, keystore, component, "its host was entered")
        await until(lambda: state(desk) == "revoked", "its process's end", 20)
    async with running(*lasting, component) as desk:
        await until(lambda: state(desk) == "revoked", "its process's end", 20)
        kept = deployment.state(component) / "ORDERS.snapshot"
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(b"what a thief left")
        await operate.reinstate(deployment, keystore, component, "its host was made anew")
        assert not kept.exists(), "what it believed in other hands is read anew"
        await until(lambda: state(desk) == "ready", "its start", 30)


async def revoked(desk: Running) -> tuple[ServiceContext, float]:
    """Strategy alpha, whom the operator revoked; and how long it was before broker and verifiers knew (s)."""
    gateway, got = await reader(desk)
    alpha = await desk.context("strategy-alpha")
    await alpha.publish(INTENTS, intent(alpha))
    await until(lambda: len(got) == 1, "an intent before")
    connection = await alpha.link.connection()
    began = time.monotonic()
    assert await operate.revoke(desk.deployment, desk.keystore, "strategy-alpha", "its host was entered") == 1
    await asyncio.wait_for(connection.lost.wait(), 30)
    await until(lambda: gateway.sessions.is_dead(alpha.boot), "the revocation", 30)
    return alpha, time.monotonic() - began


@pytest.mark.slow
async def test_what_the_operator_revokes_is_out_within_a_second(lasting: tuple[Deployment, Keystore]) -> None:
    # Alone on its machine: `make slow` runs one test after the other.
    async with running(*lasting) as desk:
        alpha, took = await revoked(desk)
        desk.contexts.remove(alpha)
        await alpha.link.stop()
        await operate.reinstate(desk.deployment, desk.keystore, "strategy-alpha", "its host was made anew")
    assert took < 1.0


async def test_the_operator_revokes_and_nobody_else_does(lasting: tuple[Deployment, Keystore]) -> None:
    async with running(*lasting) as desk:
        alpha, _ = await revoked(desk)
        with pytest.raises(Unverified, match="COMPONENT_REVOKED"):
            await desk.setup("strategy-alpha").authority().obtain(SessionKey(os.urandom(32)), alpha.boot)
        with pytest.raises(ConfigError, match="COMPONENT_UNKNOWN"):
            await operate.revoke(desk.deployment, desk.keystore, "nobody", "")
        setup = desk.setup("gateway")
        config = desk.deployment.config
        url = f"https://{config.host}:{config.authority.port}/v1/revoke"
        async with (
            aiohttp.ClientSession() as http,
            http.post(url, data=b'{"note":"x"}', ssl=setup.identity.tls) as response,
        ):
            assert response.status == 403
            assert b"IDENTITY" in await response.read()
        desk.contexts.remove(alpha)
        await alpha.link.stop()
