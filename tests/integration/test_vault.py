"""The vault of a deployment on a real OpenBao: set-up, moving in, shares, a vault of one's own, Kubernetes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from typer.testing import CliRunner

from tallystick.cli import operate
from tallystick.cli.main import commands
from tallystick.infra.lockfile import Held, Lockfile
from tallystick.infra.vault.server import VaultStopped
from tallystick.runtime.deployment import vault as module
from tallystick.runtime.deployment.owners import require_down, supervisor_file
from tallystick.runtime.deployment.reshare import Reshare
from tallystick.runtime.deployment.vault import UNSEAL, UNSEAL_NEXT, DeploymentVault
from tallystick.runtime.keys.keystore import Keystore, Secret
from tallystick.runtime.vault import logins, setup
from tallystick.runtime.vault.client import VaultAway, VaultClient, VaultRefused
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.errors import ConfigError, TallystickError
from tests.support.deployment import PIN, running
from tests.support.vault import VaultWorld, new, running_vault
from tests.support.waiting import until

NAMES = ("hsm.custody.pin", "venue.custody.api_key")
API_KEY = Secret("vmPUZE6mv9SD5VNHk4HlWFsOr6aKE2zvsw0MuIgwCIPy6utIco14y7Ju91duEh8A")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VaultWorld]:
    """One that these tests start again, and whose unseal key they change."""
    with running_vault(tmp_path_factory.mktemp("vault") / "desk") as made:
        yield made


def again(world: VaultWorld) -> None:
    """As the next `up` does."""
    world.vault.stop(15.0)
    world.keystore = Keystore.open(world.deployment.keystore, PIN)
    world.vault = DeploymentVault(world.deployment, world.keystore, world.said.append)
    world.vault.start()


def test_a_vault_that_is_stopped_while_it_starts_does_not_run(own: VaultWorld) -> None:
    """A second Ctrl-C comes while a thread is on its way to start it."""
    own.vault.stop(15.0)
    with pytest.raises(VaultStopped):
        own.vault._start()
    with pytest.raises(VaultStopped):
        own.server.check()
    own.vault.start()
    own.server.check()


def test_what_a_vault_said_last_is_told_however_much_it_said_before(own: VaultWorld) -> None:
    with own.deployment.log("vault").with_suffix(".log").open("ab") as log:
        log.write(b'{"@level":"error","@message":"of long ago"}\n' + b'{"@level":"info","@message":"a day"}\n' * 4_000)
        log.write(b'{"@level":"error","@message":"the last words"}\n')
    os.kill(own.server.pid, signal.SIGKILL)
    with pytest.raises(VaultStopped, match=r"the vault is not running \(exit code -9\): .*the last words") as caught:
        while True:
            own.server.check()
    assert not re.search("of long ago|a day", str(caught.value))
    own.vault.stop(15.0)
    own.vault.start()


async def test_a_vault_that_one_thread_stops_while_another_starts_it_is_let_go_of_once(
    own: VaultWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Ctrl-C does while `up` starts: what both would clear away, one of them does."""
    release = Lockfile.release

    def slowly(lock: Lockfile) -> None:
        time.sleep(0.2)
        release(lock)

    monkeypatch.setattr(Lockfile, "release", slowly)
    own.vault.stop(15.0)
    before, own.vault._over = own.server.pid, threading.Event()
    starting = asyncio.create_task(asyncio.to_thread(own.vault._start))
    await until(lambda: own.server.pid != before, "it is started", 20)
    await asyncio.to_thread(own.vault.stop, 15.0)
    with pytest.raises(VaultStopped):
        await starting
    with pytest.raises(VaultStopped):
        own.server.check()
    own.vault.start()


def test_nobody_starts_the_vault_while_somebody_else_does(own: VaultWorld) -> None:
    own.vault.stop(15.0)
    with (
        Lockfile.take(supervisor_file(own.deployment)),
        pytest.raises(Held),
        module.opened(own.deployment, own.keystore, own.said.append),
    ):
        pass
    with module.opened(own.deployment, own.keystore, own.said.append) as opened, pytest.raises(ConfigError):
        assert opened.secrets("custody")
        require_down(own.deployment)
    own.vault.start()


def test_the_first_start_moves_the_secrets_out_of_the_keystore_and_an_api_key_that_is_set_later_follows(
    own: VaultWorld,
) -> None:
    on_disk = Keystore.open(own.deployment.keystore, PIN)
    assert UNSEAL in on_disk.secrets
    assert not set(own.secrets) & set(on_disk.secrets)
    assert own.vault.secrets("custody") == {name: own.secrets[name] for name in NAMES}
    operate.set_api_key(on_disk, "custody", API_KEY)
    again(own)
    assert own.vault.secrets("custody") == {NAMES[0]: own.secrets[NAMES[0]], NAMES[1]: API_KEY}
    assert NAMES[1] not in Keystore.open(own.deployment.keystore, PIN).secrets


def test_the_key_to_register_is_shown_whether_the_vault_runs_or_not(own: VaultWorld) -> None:
    shown = operate.public_key(own.deployment, own.keystore, "custody")
    own.vault.stop(15.0)
    assert operate.public_key(own.deployment, own.keystore, "custody") == shown
    own.vault.start()
    assert "PUBLIC KEY" in shown


def test_the_root_token_of_the_set_up_is_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens: list[Secret] = []
    made = VaultClient.initialize

    def keep(client: VaultClient) -> tuple[Secret, Secret]:
        key, root = made(client)
        tokens.append(root)
        return key, root

    monkeypatch.setattr(VaultClient, "initialize", keep)
    with running_vault(tmp_path / "desk") as vault, vault.client("operator") as client:
        (root,) = tokens
        client.use(root)
        for path in ("auth/token/lookup-self", "sys/policies/acl/root", "tallystick/data/custody"):
            with pytest.raises(VaultRefused):
                client.get(path)


def test_a_set_up_whose_root_token_lives_on_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VaultClient, "revoke", lambda _: None)
    deployment, keystore = new(tmp_path / "desk")
    module.prepare(keystore)
    with pytest.raises(TallystickError) as caught:
        DeploymentVault(deployment, keystore).start()
    assert caught.value.code == "VAULT_ROOT_ALIVE"
    assert not deployment.vault.exists()


def test_shares_for_people_replace_the_key_in_the_keystore_and_the_old_one_opens_nothing(own: VaultWorld) -> None:
    old = own.keystore[UNSEAL]
    Reshare(own.deployment, own.keystore, 3, 2, ())
    # Crash before `confirm`: the old key counts.
    again(own)
    Reshare(own.deployment, own.keystore, 1, 1, ())
    again(own)
    # What that left in the keystore is nobody's key.
    assert UNSEAL_NEXT in own.keystore.secrets
    change = Reshare(own.deployment, own.keystore, 3, 2, ())
    change.confirm()
    assert not {UNSEAL, UNSEAL_NEXT} & set(Keystore.open(own.deployment.keystore, PIN).secrets)

    own.server.kill()
    started, over = threading.Event(), threading.Event()

    def start() -> None:
        """The server ends with the thread that starts it."""
        own.vault._start()
        started.set()
        over.wait()

    starting = threading.Thread(target=start, daemon=True)
    own.server.start()
    with own.client("operator") as client:
        _patiently(client.sealed)
        assert (client.sealed().t, client.sealed().n) == (2, 3)
        # The old key is not even of the form of a share: alone it is none, and with a true one it opens nothing.
        with contextlib.suppress(VaultRefused, VaultAway):
            client.unseal(old)
        with contextlib.suppress(VaultRefused, VaultAway):
            client.unseal(change.new[0])
        assert client.sealed().sealed
    own.server.stop()

    said = len(own.said)
    starting.start()
    deadline = time.monotonic() + 30
    while not any("waiting for 2 of 3 shares" in line for line in own.said[said:]):
        assert time.monotonic() < deadline, own.said
        time.sleep(0.05)
    with own.client("operator") as client:
        for share in change.new[1:]:
            client.unseal(share)
    assert started.wait(30)
    assert own.vault.secrets("custody")[NAMES[0]] == own.secrets[NAMES[0]]
    Reshare(own.deployment, own.keystore, 1, 1, change.new[:2]).confirm()
    over.set()
    starting.join()
    again(own)
    assert own.vault.secrets("custody")[NAMES[0]] == own.secrets[NAMES[0]]


def test_too_few_shares_change_nothing(own: VaultWorld) -> None:
    with pytest.raises(TallystickError):
        Reshare(own.deployment, own.keystore, 3, 2, (Secret("00" * 32),))
    again(own)


def test_the_commands_say_what_they_did(own: VaultWorld, tmp_path: Path) -> None:
    pin = tmp_path / "pin"

    def run(*arguments: str) -> str:
        pin.write_text(f"{PIN.reveal()}\n")
        with pin.open() as file:
            words = [f"/proc/self/fd/{file.fileno()}" if word == "PIN" else word for word in arguments]
            fd = [] if "policies" in words else ["--pin-fd", str(os.dup(file.fileno()))]
            result = CliRunner().invoke(commands(), ["vault", words[0], str(own.deployment.directory), *words[1:], *fd])
        assert result.exception is None or isinstance(result.exception, TallystickError), result.exception
        return result.output + str(result.exception or "")

    assert "unsealed" in run("unseal")
    assert "bao policy write tallystick-custody" in run("policies")
    assert "VAULT_SHARES" in run("reshare", "--shares", "3", "--threshold", "1")
    assert "lies in the keystore" in run("reshare")
    own.keystore = Keystore.open(own.deployment.keystore, PIN)
    again(own)


def test_its_certificate_is_renewed_while_it_runs_and_nobody_logs_in_again(own: VaultWorld) -> None:
    with own.staff() as standing, own.client("custody") as client:
        before = client.shown()
        own.vault._renew(own.server)
        assert client.shown() != before
        assert standing.read("custody")[NAMES[0]] == own.secrets[NAMES[0]]
        assert not client.sealed().sealed


async def test_up_starts_a_killed_vault_again_unseals_it_and_nobody_else_notices(tmp_path: Path) -> None:
    deployment, keystore = new(tmp_path / "desk", lease_s=10)
    async with running(deployment, keystore, "custody", "breaker", "portfolio", "paper-exchange") as made:
        supervisor = made.supervisor
        assert supervisor.vault is not None
        server = supervisor.vault.server
        assert server is not None
        before = {state.name: state.pid for state in supervisor.states if state.pid}
        audit = deployment.log("vault-audit")
        begun, pid = audit.stat().st_size, server.pid
        server._process.kill()  # type: ignore[union-attr]
        await until(lambda: server.pid != pid, timeout=30)

        def renewed() -> bool:
            lines = audit.read_bytes()[begun:].decode().splitlines()
            names = {
                role
                for line in lines
                if '"auth/token/renew-self"' in line or '"auth/approle/login"' in line
                for role in ("tallystick-custody", "tallystick-portfolio")
                if role in line
            }
            return len(names) == 2

        await until(renewed, timeout=60)
        assert {state.name: state.pid for state in supervisor.states if state.pid} == before
        assert supervisor.unclean == []


# -- Kubernetes: the token review is a stub, the vault is real -------------------------------------------


def service_account(name: str) -> str:
    """A projected token as the API server signs it; the vault leaves its signature to the review."""
    now = time.time_ns() // SECOND - 60
    claims = {
        "aud": ["https://kubernetes.default.svc"],
        "iss": "https://kubernetes.default.svc",
        "iat": now,
        "nbf": now,
        "exp": now + 3600,
        "sub": f"system:serviceaccount:trading:{name}",
        "kubernetes.io": {"namespace": "trading", "serviceaccount": {"name": name, "uid": "4b7e"}},
    }
    return jwt.encode(claims, rsa.generate_private_key(65_537, 2048), "RS256")


class Review(BaseHTTPRequestHandler):
    """Answers TokenReview (authentication.k8s.io/v1) as the API server would for one service account's token."""

    good = service_account("custody")

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        known = asked["spec"]["token"] == self.good
        user = {
            "username": "system:serviceaccount:trading:custody",
            "uid": "4b7e",
            "groups": ["system:serviceaccounts", "system:serviceaccounts:trading"],
        }
        status: dict[str, Any] = {"authenticated": known, **({"user": user} if known else {"error": "not known"})}
        status["audiences"] = asked["spec"].get("audiences", [])
        body = json.dumps({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "status": status}).encode()
        self.send_response(201)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def cluster() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Review) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


async def test_a_pods_service_account_enters_by_kubernetes_and_no_other_does(
    tmp_path: Path, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A vault of one's own, set up here by its root token; the cluster's API server is a stub."""
    write = setup._write

    def with_kubernetes(client: VaultClient, deployment: str, ca_pem: str, *rest: Any) -> None:
        write(client, deployment, ca_pem, *rest)
        client.put("sys/auth/kubernetes", {"type": "kubernetes"})
        client.put(
            "auth/kubernetes/config",
            {
                "kubernetes_host": cluster,
                "token_reviewer_jwt": Review.good,
                "disable_local_ca_jwt": True,
                "kubernetes_ca_cert": ca_pem,
            },
        )
        for name, account in (("custody", "custody"), ("portfolio", "portfolio")):
            client.put(
                f"auth/kubernetes/role/tallystick-{name}",
                {
                    "bound_service_account_names": [account],
                    "bound_service_account_namespaces": ["trading"],
                    "token_policies": [f"tallystick-{name}"],
                    "token_period": "30s",
                },
            )

    monkeypatch.setattr(setup, "_write", with_kubernetes)
    token = tmp_path / "token"
    with running_vault(tmp_path / "desk") as vault:
        token.write_text(Review.good)
        told: list[str] = []
        login = logins.Kubernetes(vault.role("custody"), token)
        leased = vault.leased(login=login, notice=lambda code, text: told.append(f"{code}: {text}"))
        async with asyncio.timeout(20):
            assert (await leased.open())[NAMES[0]] == vault.secrets[NAMES[0]]
        assert told == []
        leased.require_live(time.time_ns())
        await leased.close()
        for role, text in (
            ("portfolio", Review.good),
            ("custody", service_account("portfolio")),
            ("custody", service_account("custody")),
        ):
            token.write_text(text)
            with vault.client("custody") as client, pytest.raises(VaultRefused):
                logins.Kubernetes(vault.role(role), token)(client)
        token.unlink()
        with vault.client("custody") as client, pytest.raises(VaultRefused) as caught:
            logins.Kubernetes(vault.role("custody"), token)(client)
        assert caught.value.code == "VAULT_JWT"


def _patiently(call: Any) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            call()
        except VaultAway:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return
