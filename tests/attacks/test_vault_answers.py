"""A vault in other hands, or a proxy before it, that answers what no vault answers: custody goes on, with its cancels."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec
import pytest

from tallystick.runtime.bus.tasks import Tasks
from tallystick.runtime.keys.keystore import Secret
from tallystick.runtime.vault import leased as leased_module
from tallystick.runtime.vault import logins
from tallystick.runtime.vault.client import VaultAway, VaultClient, VaultRefused
from tallystick.runtime.vault.leased import Leased
from tests.support.tls import ServerTls, make_server_tls
from tests.support.waiting import until

DEEP = b"[" * 100_000
BODIES = {
    "no object": b"[]",
    "nothing": b"null",
    "text": b'"x"',
    "errors that are a number": b'{"errors":5}',
    "errors that hold a number": b'{"errors":[5]}',
    "errors that no notice can hold": b'{"errors":["\\ud800"]}',
    "errors for a terminal": b'{"errors":["\\u001b[2J\\u202e"]}',
    "depth": DEEP,
    "no JSON": b"\xff\xfe{",
    "a token that no header can hold": b'{"auth":{"client_token":"\\u2603","lease_duration":60,"renewable":true}}',
    "an endless number": b'{"auth":{"client_token":"s.x","lease_duration":1e999,"renewable":true}}',
    "a lease as long as the sky": b'{"auth":{"client_token":"s.x","lease_duration":'
    + b"9" * 5_000
    + b',"renewable":true}}',
}
STATUS = (200, 400, 403, 404, 503)


class Hostile(ThreadingHTTPServer):
    """A server on loopback that answers `body` with `status` to everything."""

    daemon_threads = True

    def __init__(self, tls: ServerTls) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.body, self.status, self.asked = b"", 200, 0
        self.socket = tls.server().wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.address = f"https://127.0.0.1:{self.server_port}"


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    server: Hostile

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked += 1
        self.send_response(self.server.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    do_GET = do_POST = do_PUT = do_DELETE = _answer  # noqa: N815 - the library's names

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> ServerTls:
    return make_server_tls(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def hostile(tls: ServerTls) -> Iterator[Hostile]:
    with Hostile(tls) as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.05,))
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def client_of(hostile: Hostile, tls: ServerTls) -> VaultClient:
    context = ssl.create_default_context(cafile=str(tls.ca))
    return VaultClient(hostile.address, context, "tallystick")


CALLS: dict[str, Callable[[VaultClient], object]] = {
    "login": lambda c: c.login("cert", {"name": "custody"}),
    "renew": VaultClient.renew,
    "revoke": VaultClient.revoke,
    "wrap": lambda c: c.wrap_secret_id("custody", 60),
    "unwrap": lambda c: c.unwrap_secret_id(Secret("s.x"), "custody"),
    "destroy": lambda c: c.destroy_secret_id("custody", "a"),
    "read": lambda c: c.read("custody"),
    "write": lambda c: c.write("custody", {"a": Secret("b")}),
    "sealed": VaultClient.sealed,
    "unseal": lambda c: c.unseal(Secret("00")),
    "initialize": VaultClient.initialize,
    "serving": VaultClient.serving,
    "get": lambda c: c.get("sys/mounts"),
    "delete": lambda c: c.delete("sys/mounts"),
}


@pytest.mark.parametrize("call", CALLS)
def test_whatever_is_answered_is_a_vault_that_is_away_or_refuses(hostile: Hostile, tls: ServerTls, call: str) -> None:
    client = client_of(hostile, tls)
    try:
        for hostile.status in STATUS:
            for hostile.body in BODIES.values():
                try:
                    CALLS[call](client)
                except (VaultAway, VaultRefused) as exc:
                    said = exc.text
                else:
                    said = ""  # what asks for nothing in return may take anything for an answer
                # It goes into notices, logs and onto terminals.
                msgspec.json.encode(said)
                assert said.isascii()
                assert said.isprintable()
                assert len(said) < 600
    finally:
        client.close()


async def test_the_lease_is_asked_for_again_whatever_is_answered(
    hostile: Hostile, tls: ServerTls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leased_module, "RETRY_S", (0.01,))
    told: list[str] = []

    def notice(code: str, text: str) -> None:
        msgspec.json.encode(text)
        told.append(code)

    client = client_of(hostile, tls)
    leased = Leased(client, logins.Certificate("custody"), "custody", ("pin",), clock=time.time_ns, notice=notice)
    tasks = Tasks()
    tasks.start(leased.run())
    try:
        for hostile.status in (200, 403, 503):
            for hostile.body in BODIES.values():
                before = hostile.asked
                leased._client.use(Secret(""))
                await until(lambda before=before: hostile.asked > before, timeout=30)  # type: ignore[misc]
        tasks.check()
        assert not leased.live(time.time_ns())
        assert "VAULT_ANSWER" in told
    finally:
        await tasks.end()
        await leased.close()
