"""Certificates that live seconds, under load and in a thief's hands, against the real authority, broker and tokens."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import ssl
import time
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import msgspec
import nats.errors
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from nats.aio.client import Client

from tallystick.cli import operate
from tallystick.components.authority.certifier import AT_ONCE
from tallystick.runtime.bus.enrolment import AuthorityClient
from tallystick.runtime.bus.link import SessionLost
from tallystick.runtime.bus.received import Received
from tallystick.runtime.deployment import certificates, process
from tallystick.runtime.deployment.folder import BROKER, Deployment, passphrase_name, pin_name
from tallystick.runtime.deployment.service import ServiceContext, Setup
from tallystick.runtime.keys import pki
from tallystick.runtime.keys.identity import Identity, Renewal, client_context, decrypted_key
from tallystick.runtime.keys.keystore import Keystore, Secret
from tallystick.runtime.keys.token_process import TokenProcess
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.credential import open_credential
from tallystick.schemas.enrolment import CertificateRequest, certificate_proof_bytes
from tallystick.schemas.errors import BootOver, ConfigError, Unverified
from tallystick.schemas.nats_jwt import SessionKey, sign_nonce
from tallystick.schemas.orders import Intent
from tallystick.schemas.security import CertificateIssued, CredentialIssued, Notice
from tallystick.schemas.subjects import subject
from tests.support.deployment import Running, make, running
from tests.support.waiting import until

INTENTS = subject("order.intent", strategy="alpha", venue="paper", symbol="XRP/ETH")
ALPHA = "strategy-alpha"
# A session lives a quarter of it: whoever gets no processor for less than that loses none.
LIFE_S = 24
DAY = 86_400 * SECOND


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> tuple[Deployment, Keystore]:
    return make(tmp_path_factory.mktemp("l") / "desk", session_lifetime_s=60)


def passphrase(desk: Running, name: str) -> Secret:
    return desk.keystore[passphrase_name(name)]


def intent(context: ServiceContext) -> Intent:
    return context.new(Intent, side="buy", type="market", qty=Decimal(1))


def shown(deployment: Deployment, keystore: Keystore, name: str, folder: Path | None = None) -> Identity:
    """What lies in the deployment's folder, or was copied to `folder`."""
    path = deployment.identity(name) if folder is None else folder / f"{name}.pem"
    return Identity("test", deployment.issuing_ca, path, keystore[passphrase_name(name)])


async def served(desk: Running, port: int) -> bytes:
    """SHA-256 of the certificate that a server shows."""
    tls = client_context(
        desk.deployment.issuing_ca, desk.deployment.identity(ALPHA), desk.keystore[passphrase_name(ALPHA)]
    )
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    return pki.fingerprint(der)


async def log_in(desk: Running, context: ServiceContext, tls: ssl.SSLContext) -> Client:
    """A connection to the broker with the session that `context` has, under whatever certificate."""
    session, client = context.link.session, Client()
    await client.connect(
        servers=[desk.supervisor.server.url],
        user_jwt_cb=session.credential.text.encode,
        signature_cb=lambda nonce: sign_nonce(session.key, nonce),
        tls=tls,
        tls_handshake_first=True,
        allow_reconnect=False,
        max_reconnect_attempts=1,
        reconnect_time_wait=0,
        connect_timeout=3,
        inbox_prefix=b"_INBOX_strategy-alpha",
    )
    return client


async def ask(desk: Running, path: str, body: object, tls: ssl.SSLContext) -> tuple[int, str]:
    """Status, and the code of a refusal."""
    config = desk.deployment.config
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"https://127.0.0.1:{config.authority.port}{path}", json=body, ssl=tls) as answer,
    ):
        said = json.loads(await answer.read())
        return answer.status, said.get("code", "")


def fingerprints(deployment: Deployment, keystore: Keystore) -> dict[str, bytes]:
    return {name: shown(deployment, keystore, name).fingerprint for name in certificates.names(deployment)}


async def test_certificates_change_under_load_nothing_is_lost_and_the_old_ones_end(tmp_path: Path) -> None:
    """They lived 90 days, and none changed by itself."""
    deployment, keystore = make(tmp_path / "desk", certificate_lifetime_s=LIFE_S)
    first = fingerprints(deployment, keystore)
    async with running(deployment, keystore) as desk:
        gateway = await desk.context("gateway")
        got: list[Received] = []
        said: list[Received] = []
        gateway.subscribe("order.intent.>", got.append)
        gateway.subscribe("cred.>", said.append)
        gateway.open()
        await gateway.caught_up()
        audit = await desk.context("audit")
        notices: list[Notice] = []
        audit.subscribe("guard.>", lambda r: notices.extend(e for e in r.events if isinstance(e, Notice)))
        audit.open()
        alpha = await desk.context(ALPHA)
        alpha.open()
        begun = fingerprints(deployment, keystore)
        shutil.copytree(deployment.pki, tmp_path / "stolen")
        stolen = shown(deployment, keystore, ALPHA, tmp_path / "stolen")
        sent, ends = [], stolen.ends + 2 * SECOND
        while time.time_ns() < ends:
            event = intent(alpha)
            sent.append(event.id)
            await alpha.publish(INTENTS, event)
            await asyncio.sleep(0.01)
        # Everybody who runs shows another certificate, and nobody noticed.
        await until(lambda: len(got) >= len(sent), "every intent", 15)
        assert [e.id for r in got for e in r.events] == sent
        now = fingerprints(deployment, keystore)
        for name in (ALPHA, "gateway", "authority", "audit", BROKER):
            assert now[name] != first[name], name
        assert now[ALPHA] != begun[ALPHA]
        assert await served(desk, desk.supervisor.server.port) == now[BROKER]
        assert await served(desk, deployment.config.authority.port) == now["authority"]
        assert not [n for n in notices if n.code.startswith(("CONNECTION", "SESSION_REFUSED", "ACCOUNT"))]
        # Each renewal stands on record before anything is done under it.
        renewed = [e for r in said for e in r.events if isinstance(e, CertificateIssued)]
        assert begun[ALPHA] in {e.replaces for e in renewed}
        assert all(e.expires_at - e.issued_at == LIFE_S * SECOND for e in renewed)
        used = {e.certificate for r in said for e in r.events if isinstance(e, CredentialIssued)}
        assert used <= {e.certificate for e in renewed} | {*begun.values(), *first.values()}
        # What was copied in the beginning is worthless: at the broker, at the authority, and to its owner.
        with pytest.raises((nats.errors.Error, OSError)):
            await log_in(desk, alpha, stolen.tls)
        with pytest.raises((aiohttp.ClientError, OSError)):
            await ask(desk, "/v1/session", {}, stolen.tls)
        await (await log_in(desk, alpha, shown(deployment, keystore, ALPHA).tls)).close()
        with pytest.raises(BootOver, match="CERTIFICATE_ENDED"):
            await AuthorityClient(
                "https://127.0.0.1:1", stolen, deployment="test", component=ALPHA, clock=time.time_ns, log=alpha.log
            ).obtain(SessionKey(os.urandom(32)), os.urandom(16))


async def renewal(
    desk: Running, setup: Setup, *, boot: bytes, key: SessionKey, name: str = "", asked: Renewal | None = None
) -> tuple[int, str]:
    """A request of `setup`'s identity for a certificate of `name`, with the word of `key`."""
    identity = setup.identity
    request = (asked or identity.renewal()).request.decode()
    if name:
        request = pki.signing_request("test", name, ec.generate_private_key(ec.SECP256R1())).decode()
    said = certificate_proof_bytes("test", identity.component, boot, request, identity.fingerprint)
    body = CertificateRequest(
        boot=boot.hex(), component=identity.component, proof=key.sign(said).hex(), request=request
    )
    return await ask(desk, "/v1/certificate", msgspec.to_builtins(body), identity.tls)


async def test_a_certificate_is_renewed_for_its_own_name_a_new_key_and_a_boot_that_lives(
    lasting: tuple[Deployment, Keystore],
) -> None:
    async with running(*lasting) as desk:
        alpha = await desk.context(ALPHA)
        alpha.open()
        setup, boot, key = desk.setup(ALPHA), alpha.boot, alpha.link.session.key
        assert await renewal(desk, setup, boot=boot, key=key) == (200, "")
        for name in ("strategy-beta", "gateway", "operator", BROKER):
            assert await renewal(desk, setup, boot=boot, key=key, name=name) == (403, "CERTIFICATE_NAME")
        # Who copied the certificate has no key of a session; with a boot of his own he ends the true one first.
        thief = SessionKey(os.urandom(32))
        assert await renewal(desk, setup, boot=boot, key=thief) == (403, "RENEWAL")
        assert await renewal(desk, setup, boot=os.urandom(16), key=thief) == (403, "BOOT_UNKNOWN")
        # Nor does he keep the certificate by keeping its key.
        plain = serialization.load_pem_private_key(decrypted_key(setup.identity.path, passphrase(desk, ALPHA)), None)
        assert isinstance(plain, ec.EllipticCurvePrivateKey)
        same = Renewal(plain, pki.signing_request("test", ALPHA, plain))
        assert await renewal(desk, setup, boot=boot, key=key, asked=same) == (403, "CERTIFICATE_KEY")
        large = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        other = SimpleNamespace(request=pki.signing_request("test", ALPHA, cast("Any", large)))
        assert await renewal(desk, setup, boot=boot, key=key, asked=cast("Any", other)) == (403, "CERTIFICATE_REQUEST")
        # Somebody who asks on and on is refused, and asks on as anybody else in vain.
        codes = [(await renewal(desk, setup, boot=boot, key=key))[1] for _ in range(AT_ONCE)]
        assert codes[-1] == "CERTIFICATE_RATE"
        # What goes wrong with a renewal leaves the present certificate in use, and costs no session.
        client, boot = setup.authority(), os.urandom(16)
        desk.contexts.remove(alpha)
        await alpha.link.stop()
        for _ in range(2):
            text = await client.obtain(SessionKey(os.urandom(32)), boot)
            assert open_credential(text, setup.trust).boot == boot
            setup.identity._due = 0
        assert shown(desk.deployment, desk.keystore, ALPHA).fingerprint == setup.identity.fingerprint


async def test_who_is_revoked_gets_no_certificate_and_neither_does_his_old_one_once_he_is_reinstated(
    lasting: tuple[Deployment, Keystore], tmp_path: Path
) -> None:
    deployment, keystore = lasting
    async with running(*lasting) as desk:
        alpha = await desk.context(ALPHA)
        alpha.open()
        setup, boot, key = desk.setup(ALPHA), alpha.boot, alpha.link.session.key
        shutil.copytree(deployment.pki, tmp_path / "stolen")
        stolen = msgspec.structs.replace(setup, identity=shown(deployment, keystore, ALPHA, tmp_path / "stolen"))
        await operate.revoke(deployment, keystore, ALPHA, "its host was entered")
        assert await renewal(desk, stolen, boot=boot, key=key) == (403, "COMPONENT_REVOKED")
        desk.contexts.remove(alpha)
        await alpha.link.stop()
        # What `up` makes at its start counts for nothing either, until the operator says so.
        certificates.certify(deployment, keystore, (ALPHA,), time.time_ns())
        with pytest.raises(SessionLost, match="COMPONENT_REVOKED"):
            await desk.context(ALPHA)
        await operate.reinstate(deployment, keystore, ALPHA, "its host was made anew")
        again = await desk.context(ALPHA)
        again.open()
        session = again.link.session
        assert await renewal(desk, stolen, boot=again.boot, key=session.key) == (403, "COMPONENT_REVOKED")
        assert await renewal(desk, desk.setup(ALPHA), boot=again.boot, key=session.key) == (200, "")


async def test_a_deployment_that_was_off_for_days_comes_up_and_nothing_of_before_counts(tmp_path: Path) -> None:
    """All of its certificates have ended."""
    deployment, keystore = make(tmp_path / "desk", clock=lambda: time.time_ns() - 3 * DAY)
    shutil.copytree(deployment.pki, tmp_path / "stolen")
    secrets = {name: keystore[name] for name in deployment.secret_names(ALPHA)}
    with pytest.raises(ConfigError, match="CERTIFICATE_ENDED"):
        process.load_setup(deployment.directory, ALPHA, secrets)
    async with running(deployment, keystore, "breaker") as desk:
        alpha = await desk.context(ALPHA)
        alpha.open()
        await alpha.publish(INTENTS, intent(alpha))
        assert (await operate.status(deployment))["tripped"] == []
        stolen = shown(deployment, keystore, ALPHA, tmp_path / "stolen")
        with pytest.raises((nats.errors.Error, OSError)):
            await log_in(desk, alpha, stolen.tls)
        with pytest.raises((aiohttp.ClientError, OSError)):
            await ask(desk, "/v1/session", {}, stolen.tls)


def lasts(desk: Running, name: str, seconds: int, folder: Path) -> Identity:
    """A certificate of `name` that lives so long, as a thief of the issuing key would make it."""
    deployment, keystore = desk.deployment, desk.keystore
    with TokenProcess(deployment.token("roles"), "roles", keystore[pin_name("roles")]) as token:
        authority = certificates.issuing_authority(deployment, token)
        made = authority.issue(name, passphrase(desk, name), time.time_ns(), timedelta(seconds=seconds))
    path = folder / f"{name}-{seconds}.pem"
    path.write_bytes(made)
    return Identity("test", deployment.issuing_ca, path, passphrase(desk, name))


async def test_no_session_outlives_the_certificate_that_asked_for_it(
    lasting: tuple[Deployment, Keystore], tmp_path: Path
) -> None:
    """Custody and breaker see sessions, and no certificates."""
    async with running(*lasting) as desk:
        setup = desk.setup("gateway")
        short = msgspec.structs.replace(setup, identity=lasts(desk, "gateway", 30, tmp_path))
        with pytest.raises(Unverified, match="CERTIFICATE_ENDS"):
            await short.authority().obtain(SessionKey(os.urandom(32)), os.urandom(16))
        enough = lasts(desk, "gateway", 90, tmp_path)
        text = (
            await msgspec.structs.replace(setup, identity=enough)
            .authority()
            .obtain(SessionKey(os.urandom(32)), os.urandom(16))
        )
        assert open_credential(text, setup.trust).expires_at <= enough.ends


async def test_a_connection_that_was_made_in_time_is_good_for_nothing_once_its_certificate_has_ended(
    lasting: tuple[Deployment, Keystore], tmp_path: Path
) -> None:
    """TLS looks at a certificate when the connection is made, and who asks again and again keeps it open."""
    async with running(*lasting) as desk:
        short = lasts(desk, "strategy-beta", 3, tmp_path)
        url = f"https://127.0.0.1:{desk.deployment.config.authority.port}/v1/session"
        codes: list[str] = []
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as http:
            while not codes or (codes[-1] != "CERTIFICATE_ENDED" and time.time_ns() < short.ends + 3 * SECOND):
                async with http.post(url, data=b"{}", ssl=short.tls) as answer:
                    codes.append(json.loads(await answer.read())["code"])
                await asyncio.sleep(0.3)
        assert codes[0] == "REQUEST"
        assert codes[-1] == "CERTIFICATE_ENDED"
