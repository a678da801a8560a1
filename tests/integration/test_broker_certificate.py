"""The broker's own certificate changes while it runs: against a real nats-server, with readers that wait and streams that fill."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
import time
import uuid
from decimal import Decimal
from pathlib import Path

import nats.errors
import pytest

from tallystick.infra.nats.claims import Validity
from tallystick.infra.nats.server import EmbeddedServer, ServerStopped
from tallystick.runtime.bus.received import Received
from tallystick.schemas.errors import ConfigError
from tallystick.schemas.orders import Intent
from tallystick.schemas.subjects import subject
from tests.support.bus import Connection, TestBus, now_s
from tests.support.runtime import Desk
from tests.support.waiting import until
from tests.support.world import key

INTENTS = "order.intent.alpha.paper.XRP-ETH"


def shown(client: Connection) -> str:
    """SHA-256 (hex) of the certificate that the broker showed to `client`."""
    transport = client._transport
    assert transport is not None
    tls = transport._io_writer.get_extra_info("ssl_object")  # type: ignore[attr-defined]
    assert isinstance(tls, ssl.SSLObject | ssl.SSLSocket)
    return hashlib.sha256(tls.getpeercert(binary_form=True) or b"").hexdigest()


def memory_files(server: EmbeddedServer) -> list[int]:
    """The sizes of the files in memory that the process of `server` holds."""
    folder = Path(f"/proc/{server.pid}/fd")
    found = [path for path in folder.iterdir() if "memfd:nats-server" in str(path.readlink())]
    return [path.stat().st_size for path in found]


async def test_a_reader_that_waits_is_answered_as_ever_after_the_broker_changed_its_certificate(
    bus: TestBus, desk: Desk
) -> None:
    """A pull that is dropped is noticed by its silence alone, seconds later."""
    gateway, got = await desk.context("gateway"), list[Received]()
    gateway.subscribe("order.intent.>", got.append)
    gateway.open()
    await gateway.caught_up()
    alpha = await desk.context("strategy-alpha")
    alpha.open()
    where = subject("order.intent", strategy="alpha", venue="paper", symbol="XRP/ETH")
    await alpha.publish(where, alpha.new(Intent, side="buy", type="market", qty=Decimal(1)))
    await until(lambda: len(got) == 1, "an intent before", 5)
    _, pem, _ = bus.ca.issue("broker", server=True)
    await asyncio.to_thread(bus.server.renew, pem)
    began = time.monotonic()
    await alpha.publish(where, alpha.new(Intent, side="buy", type="market", qty=Decimal(1)))
    await until(lambda: len(got) == 2, "an intent after", 5)
    assert time.monotonic() - began < 1.0
    assert gateway.metrics.snapshot().get("reconnects", 0) == 0


async def test_the_broker_shows_its_next_certificate_while_connections_stand_and_revives_nobody(bus: TestBus) -> None:
    """A restart would be a gap; a reload that took the tokens of its start for the newest would undo revocations."""
    began = now_s()
    alpha = await bus.connect_as("strategy-alpha", issued_s=began)
    beta = await bus.connect_as("strategy-beta")
    root, system = await bus.connect_root(), await bus.connect_system()
    gateway = await bus.connect_as("gateway")
    worst = 0.0
    running = True

    async def load() -> int:
        nonlocal worst
        sent = 0
        while running:
            at = time.monotonic()
            headers = {"Nats-Msg-Id": uuid.uuid4().hex}
            await beta.request(INTENTS.replace("alpha", "beta"), b"x" * 300, timeout=3, headers=headers)
            worst, sent = max(worst, time.monotonic() - at), sent + 1
        return sent

    # Alpha's session is revoked, by a token that is later than the one that the broker was started with.
    validity = Validity(issued_s=now_s() + 1, expires_s=now_s() + 600)
    revoked = {key("session strategy-alpha").public: now_s() + 1}
    token = bus.accounts.component("strategy-alpha", validity, revoked)
    await system.request("$SYS.REQ.CLAIMS.UPDATE", token.encode(), timeout=3)
    before = (await bus.stored(root))["ORDERS"]
    loading = asyncio.create_task(load())
    try:
        for _ in range(3):
            _, pem, digest = bus.ca.issue("broker", server=True)
            await asyncio.to_thread(bus.server.renew, pem)
            assert set(memory_files(bus.server)) == {0}
            late = await bus.connect_as("strategy-beta", key("another session"))
            assert shown(late) == digest
            await late.close()
    finally:
        running = False
        sent = await loading
    assert sent > 0
    assert worst < 2.0
    after = (await bus.stored(root))["ORDERS"]
    assert after[0] - before[0] == sent
    assert all(client.is_connected for client in (beta, root, system, gateway))
    assert not alpha.is_connected
    with pytest.raises(nats.errors.Error):
        await bus.connect_as("strategy-alpha", issued_s=began)
    for client in (beta, root, system, gateway):
        await client.close()


def test_a_certificate_that_the_broker_cannot_use_is_refused_and_the_next_one_taken(bus: TestBus) -> None:
    _, _, before = bus.ca.issue("broker", server=True)
    _, foreign, _ = bus.ca.issue("somebody")
    with pytest.raises(ConfigError, match="NATS_RELOAD"):
        bus.server.renew(foreign)
    bus.server.check()
    _, pem, digest = bus.ca.issue("broker", server=True)
    bus.server.renew(pem)
    assert digest != before
    assert set(memory_files(bus.server)) == {0}


def test_a_broker_that_is_down_shows_the_certificate_at_its_next_start(bus: TestBus) -> None:
    bus.server.kill()
    _, pem, digest = bus.ca.issue("broker", server=True)
    with pytest.raises(ServerStopped, match="NATS_DIED"):
        bus.server.renew(pem)
    bus.server.start()

    async def look() -> str:
        client = await bus.connect_as("strategy-beta")
        try:
            return shown(client)
        finally:
            await client.close()

    assert asyncio.run(look()) == digest
