"""A user's own component, from fifteen lines and one entry to its first notice on the bus."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import ssl
import time
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_public_key

from tallystick.cli import operate
from tallystick.infra.lockfile import Lockfile
from tallystick.runtime.deployment.admit import admit
from tallystick.runtime.deployment.folder import KEY_CA, Deployment, api_key_name, passphrase_name, pin_name
from tallystick.runtime.keys import pki
from tallystick.runtime.keys.hsm import Token
from tallystick.runtime.keys.identity import Identity, client_context, load_certificate
from tallystick.runtime.keys.keystore import Keystore, Secret
from tallystick.schemas.errors import ConfigError, Unverified
from tallystick.schemas.market import Trade
from tallystick.schemas.security import Notice
from tallystick.schemas.subjects import subject
from tallystick.venues import client_tls
from tests.support.deployment import PIN, make, running
from tests.support.waiting import until

GUIDE = (Path(__file__).parents[2] / "docs" / "write-a-component.md").read_text("utf-8")


def block(language: str) -> str:
    """The first code block of the guide in `language`: what a user pastes is what runs here."""
    return GUIDE.split(f"```{language}\n", 1)[1].split("```", 1)[0]


CODE = block("python")
ENTRY = "\n" + block("toml")


def extend(deployment: Deployment) -> Deployment:
    folder = deployment.directory / "observers"
    folder.mkdir()
    (folder / "large.py").write_text(CODE)
    config = deployment.directory / "deployment.toml"
    config.write_text(config.read_text() + ENTRY)
    return Deployment.load(deployment.directory)


async def test_an_observer_of_fifteen_lines_is_admitted_runs_and_is_heard(tmp_path: Path) -> None:
    deployment, keystore = make(tmp_path / "desk")
    changed = extend(deployment)
    made = admit(changed, keystore, time.time_ns(), lambda _: None)
    assert (made.number, made.added, made.removed) == (2, ("observer-large-trades",), ())
    # What was admitted survives a second opening, and admitting again changes nothing but the number.
    reopened = Keystore.open(changed.keystore, PIN)
    assert admit(changed, reopened, time.time_ns(), lambda _: None).added == ()

    async with running(changed, reopened, "observer-large-trades") as desk:
        source, watcher = await desk.context("market-data"), await desk.context("console")
        notices: list[Notice] = []
        watcher.subscribe("guard.>", lambda r: notices.extend(e for e in r.events if isinstance(e, Notice)))
        watcher.open()
        await watcher.caught_up()
        trade = source.new(Trade, trade_id=1, price=Decimal("0.001"), qty=Decimal(20_000), time=1, buyer_is_maker=True)
        await source.publish(subject("md.trade", venue="paper", symbol="XRP/ETH"), trade)
        await until(lambda: any(n.code == "LARGE_TRADE" for n in notices), "the observer's notice")
        # It may publish nothing else, whatever its code tries.
        observer = desk.setup("observer-large-trades")
        with pytest.raises(Unverified, match="SCOPE"):
            observer.trust.require_scope("observer-large-trades", "order.intent.alpha.paper.XRP-ETH")


async def test_what_is_not_admitted_does_not_start(tmp_path: Path) -> None:
    deployment, keystore = make(tmp_path / "desk")
    changed = extend(deployment)

    with pytest.raises((ConfigError, Unverified), match=r"observer-large-trades|BUS_KEYS"):
        async with running(changed, keystore, "observer-large-trades"):
            pass


async def test_a_new_issuing_ca_makes_what_the_old_one_certified_worthless(tmp_path: Path) -> None:
    """A thief who was in the authority's process keeps what he certified; the operator takes its worth."""
    deployment, keystore = make(tmp_path / "desk")
    shutil.copytree(deployment.pki, tmp_path / "stolen")
    passphrase = keystore[passphrase_name("gateway")]
    before = load_certificate(deployment.issuing_ca)
    admit(deployment, keystore, time.time_ns(), lambda _: None)
    again = load_certificate(deployment.issuing_ca)
    assert (again.public_key(), again != before) == (before.public_key(), True)
    admit(deployment, keystore, time.time_ns(), lambda _: None, new_ca=True)
    assert load_certificate(deployment.issuing_ca).public_key() != before.public_key()
    async with running(deployment, keystore) as desk:
        await desk.context("gateway")
        stolen = Identity("test", deployment.issuing_ca, tmp_path / "stolen" / "gateway.pem", passphrase)
        for port in (desk.supervisor.server.port, deployment.config.authority.port):
            with pytest.raises((ssl.SSLError, ConnectionError)):
                reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=stolen.tls)
                writer.write(b"GET / HTTP/1.1\r\n\r\n")
                if not await reader.read(1):
                    raise ConnectionResetError
        # Who goes on with the old anchor takes none of the servers for the deployment's.
        old = client_context(tmp_path / "stolen" / "issuing.pem", tmp_path / "stolen" / "gateway.pem", passphrase)
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.open_connection("127.0.0.1", deployment.config.authority.port, ssl=old)


async def test_a_deployment_whose_ca_signed_certificates_itself_is_admitted_once(tmp_path: Path) -> None:
    """As `init` made them before: one CA of path length 0, whose key lies in the operator's token."""
    deployment, keystore = make(tmp_path / "desk")
    with Token.open(deployment.token("operator"), "operator", keystore[pin_name("operator")]) as token:
        key = pki._TokenKey(token.p256_signer(KEY_CA))
        name = pki._ca_name("test")
        old = (
            pki._builder(name, name, key.public_key(), time.time_ns(), timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(key, hashes.SHA256())
        )
    deployment.ca.write_bytes(old.public_bytes(Encoding.PEM))
    deployment.issuing_ca.unlink()
    with pytest.raises(ConfigError, match=r"CERTIFICATE.*tallystick admit"):
        async with running(deployment, keystore):
            pass
    admit(deployment, keystore, time.time_ns(), lambda _: None)
    async with running(deployment, keystore, "paper-exchange") as desk:
        await desk.context("gateway")
        # A client that is none of ours trusts the operator's CA.
        _, writer = await asyncio.open_connection(
            "127.0.0.1", deployment.config.venue.port(), ssl=client_tls(deployment.ca)
        )
        writer.close()


def test_a_running_deployment_is_not_admitted_to(tmp_path: Path) -> None:
    deployment, keystore = make(tmp_path / "desk")
    with Lockfile.take(deployment.run / "supervisor.pid"), pytest.raises(ConfigError, match="RUNNING"):
        admit(deployment, keystore, time.time_ns(), lambda _: None)
    assert len(deployment.load_trust()) == 1


def test_the_key_to_register_is_the_tokens_own_and_the_venues_id_for_it_is_kept_under_the_pin(tmp_path: Path) -> None:
    deployment, keystore = make(tmp_path / "desk")
    venue = json.loads(deployment.paper_exchange.read_text())
    for component in ("custody", "portfolio"):
        shown = load_pem_public_key(operate.public_key(deployment, keystore, component).encode())
        assert isinstance(shown, Ed25519PublicKey)
        registered = next(k for k in venue["keys"] if k["api_key"] == keystore[api_key_name(component)].reveal())
        assert base64.b64encode(shown.public_bytes_raw()).decode() == registered["public_key"]
    operate.set_api_key(keystore, "custody", Secret("vmPUZE6mv9SD5VNHk4HlWFsOr6aKE2zvsw0MuIgwCIPy6utIco14y7Ju91duEh8A"))
    again = Keystore.open(deployment.keystore, PIN)
    assert again[api_key_name("custody")].reveal().startswith("vmPUZE6m")
    with pytest.raises(ConfigError, match="API_KEY"):
        operate.set_api_key(keystore, "custody", Secret("two words"))
