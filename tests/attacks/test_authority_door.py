"""Floods at the authority's port: sessions are handed out, lists come in time, people revoke and halt."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator

import pytest

from tallystick.cli import operate
from tallystick.components.authority.door import Pace
from tallystick.runtime.deployment.folder import Deployment, passphrase_name
from tallystick.runtime.deployment.service import ServiceContext
from tallystick.runtime.keys.keystore import Keystore
from tallystick.schemas.bounds import MAX_LIST_AGE_NS
from tallystick.schemas.errors import Unreachable, Unverified
from tallystick.schemas.nats_jwt import SessionKey
from tests.support.deployment import Running, make, running
from tests.support.waiting import until

# Opens connections that say nothing; opens anew what is closed.
_MUTE = """
import selectors, socket, sys, time
host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
chooser = selectors.DefaultSelector()
def enter():
    peer = socket.create_connection((host, port))
    peer.setblocking(False)
    chooser.register(peer, selectors.EVENT_READ)
for _ in range(count):
    enter()
print("in", flush=True)
while True:
    for key, _ in chooser.select():
        chooser.unregister(key.fileobj)
        key.fileobj.close()
        time.sleep(0.002)
        enter()
"""
# Threads that post nonsense under a genuine certificate, each request on a connection of its own.
_POSTS = """
import http.client, ssl, sys, threading
host, port, ca, identity = sys.argv[1], int(sys.argv[2]), *sys.argv[3:5]
phrase = sys.stdin.readline().strip()
tls = ssl.create_default_context(cafile=ca)
tls.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
tls.load_cert_chain(identity, password=phrase)
def post():
    while True:
        try:
            asked = http.client.HTTPSConnection(host, port, context=tls, timeout=5)
            asked.request("POST", "/v1/session", b"{}" * 1000)
            asked.getresponse().read()
            asked.close()
        except OSError:
            pass
for _ in range(40):
    threading.Thread(target=post, daemon=True).start()
print("in", flush=True)
threading.Event().wait()
"""


@contextlib.asynccontextmanager
async def flood(code: str, *arguments: object, said: str = "") -> AsyncIterator[None]:
    peer = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-c", code, *map(str, arguments), stdin=PIPE, stdout=PIPE
    )
    try:
        assert peer.stdin is not None
        assert peer.stdout is not None
        peer.stdin.write(said.encode() + b"\n")
        assert await peer.stdout.readline() == b"in\n"
        yield
    finally:
        peer.kill()
        await peer.wait()


@pytest.fixture(scope="module")
def made(whole: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Deployment, Keystore]:
    del whole
    return make(tmp_path_factory.mktemp("d") / "desk", session_lifetime_s=60)


async def entered(desk: Running, component: str) -> ServiceContext:
    """A session in a flood: some are cut off, and components try again after a fraction of a second."""
    for _ in range(20):
        with contextlib.suppress(Unreachable):
            return await desk.context(component)
        await asyncio.sleep(0.2)
    return await desk.context(component)


async def everything_works(desk: Running, seconds: float) -> None:
    """Sessions are handed out for so long, no list is late, and the kill switch works."""
    gateway = await entered(desk, "gateway")
    gateway.open()
    await gateway.caught_up()
    oldest, ends, given, failed = 0, time.monotonic() + seconds, 0, 0
    while time.monotonic() < ends:
        try:
            await desk.setup("strategy-alpha").authority().obtain(SessionKey(os.urandom(32)), os.urandom(16))
            given += 1
        except Unreachable:  # components try again after a fraction of a second
            failed += 1
        began = time.monotonic()
        answer = await operate.kill(desk.deployment, "strategy-alpha", "drill")
        assert [t["scope"] for t in answer["tripped"]] == ["strategy-alpha"]
        assert time.monotonic() - began < 3.0
        for _ in range(10):
            oldest = max(oldest, time.time_ns() - gateway.sessions.listed_at)
            await asyncio.sleep(0.05)
    assert given >= 2
    assert failed <= given
    assert oldest < MAX_LIST_AGE_NS, f"a list {oldest / 1e9:.1f} s old"


async def test_connections_without_a_certificate_keep_nobody_from_a_session(made: tuple[Deployment, Keystore]) -> None:
    """Six hundred of them refused every renewal for as long as they stood."""
    async with running(*made, "breaker") as desk:
        config = made[0].config
        async with flood(_MUTE, config.host, config.authority.port, 600):
            await everything_works(desk, 2.0)


async def test_posts_without_end_delay_no_list_and_no_revocation(made: tuple[Deployment, Keystore]) -> None:
    """Threads of posts made a gap of 3.1 s between two lists, at a limit of 3."""
    deployment, keystore = made
    async with running(*made, "breaker") as desk:
        config, beta = deployment.config, "strategy-beta"
        files = (deployment.issuing_ca, deployment.identity(beta))
        phrase = keystore[passphrase_name(beta)].reveal()
        async with flood(_POSTS, config.host, config.authority.port, *files, said=phrase):
            await everything_works(desk, 2.0)
            thief = await entered(desk, "strategy-alpha")
            assert await operate.revoke(deployment, keystore, "strategy-alpha", "flood") == 1
            with pytest.raises(Unverified, match="COMPONENT_REVOKED"):
                await desk.setup("strategy-alpha").authority().obtain(SessionKey(os.urandom(32)), os.urandom(16))
            await until(lambda: not thief.link.connected, "its connection's end", 5)
            desk.contexts.remove(thief)
            await thief.link.stop()


async def test_who_asks_too_often_waits_and_then_is_refused() -> None:
    pace = Pace(2.0, 50.0)
    began = time.monotonic()
    for _ in range(4):
        await pace.wait("alpha")
    assert time.monotonic() - began >= 0.03
    waiting = [asyncio.ensure_future(pace.wait("alpha")) for _ in range(10)]
    done = await asyncio.gather(*waiting, return_exceptions=True)
    assert any(isinstance(r, Unverified) and r.code == "REQUEST_RATE" for r in done)
    await pace.wait("beta")
