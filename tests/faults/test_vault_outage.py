"""The vault is killed, sealed, slow, cut off or revokes: work goes on until the lease ends, then fails closed, and recovers."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from tallystick.infra.embedded import end_orphan
from tallystick.infra.lockfile import Held
from tallystick.infra.vault.server import VaultStopped
from tallystick.runtime.bus.tasks import Tasks
from tallystick.runtime.deployment import folder as layout
from tallystick.runtime.deployment.vault import prepare
from tallystick.runtime.keys.keystore import Secret
from tallystick.runtime.vault import client as client_module
from tallystick.runtime.vault.client import VaultAway, Worker
from tallystick.runtime.vault.lease import VaultLeaseEnded
from tallystick.runtime.vault.leased import Leased
from tallystick.schemas import signing
from tallystick.schemas.errors import ConfigError
from tests.support import custody
from tests.support.vault import VaultWorld, new, running_vault
from tests.support.waiting import until

PATIENCE = 60.0


@pytest.fixture(scope="module")
def vault(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VaultWorld]:
    """One whose server these tests kill and seal."""
    with running_vault(tmp_path_factory.mktemp("vault") / "desk") as made:
        yield made


class Work:
    """A component that holds its secrets from the vault, and what it told."""

    def __init__(self, vault: VaultWorld, address: str | None = None) -> None:
        self.told: list[str] = []
        self.leased: Leased = vault.leased(notice=lambda code, _: self.told.append(code), address=address)
        self._tasks = Tasks()

    def live(self) -> bool:
        return self.leased.live(time.time_ns())

    async def __aenter__(self) -> Self:
        await self.leased.open()
        self._tasks.start(self.leased.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._tasks.end()
        await self.leased.close()
        self._tasks.check()


def signed(folder: Path, work: Work) -> dict[str, str]:
    """What custody answers now, with the lease of `work`: to an order, and to a cancel."""
    folder.mkdir()
    desk = custody.Desk(folder, now=time.time_ns())
    desk.server._lease = work.leased
    order = desk.sign()
    cancel = desk.ask(signing.SignCancel(id=2, venue="paper", symbol="XRP/ETH", client_order_id="ts" + "0" * 32))
    return {
        name: reply.code if isinstance(reply, signing.Refused) else type(reply).__name__
        for name, reply in (("order", order), ("cancel", cancel))
    }


ALL = {"order": "Signed", "cancel": "Signed"}
CANCELS = {"order": "VAULT_LEASE_ENDED", "cancel": "Signed"}


@contextlib.asynccontextmanager
async def down(vault: VaultWorld, *, sealed: bool) -> AsyncIterator[None]:
    """The vault is killed meanwhile; `sealed`: started again, and nobody unseals it.

    From this thread: it ends with the one that starts it.
    """
    vault.server.kill()
    if sealed:
        vault.server.start()
    try:
        yield
    finally:
        if sealed:
            vault.server.stop()
        vault.vault._start()


@pytest.mark.parametrize(("sealed", "says"), [(False, "VAULT_UNREACHABLE"), (True, "VAULT_SEALED")])
async def test_orders_are_signed_until_the_lease_ends_then_cancels_alone_and_orders_again_once_the_vault_is_back(
    vault: VaultWorld, tmp_path: Path, sealed: bool, says: str
) -> None:
    async with Work(vault) as work:
        assert signed(tmp_path / "before", work) == ALL
        async with down(vault, sealed=sealed):
            if work.live():  # the server took less to go and come than the lease lasts
                assert signed(tmp_path / "meanwhile", work) == ALL
            await until(lambda: not work.live(), timeout=PATIENCE)
            await until(lambda: says in work.told and "VAULT_LEASE_ENDED" in work.told, lambda: str(work.told))
            assert signed(tmp_path / "ended", work) == CANCELS
            with pytest.raises(VaultLeaseEnded):
                work.leased.require_live(time.time_ns())
        await until(work.live, timeout=PATIENCE)
        assert signed(tmp_path / "after", work) == ALL
        assert work.told[-1] == "VAULT_BACK"
        assert [code for code in work.told if work.told.count(code) > 1] == [], "each turn is told once"


async def test_a_lease_outlives_itself_as_long_as_the_vault_renews_it(vault: VaultWorld) -> None:
    async with Work(vault) as work:
        first = work.leased.lease.ends
        await until(
            lambda: work.leased.lease.ends > first + vault.deployment.config.vault.lease_s * 10**9, timeout=PATIENCE
        )
        assert work.live()
        assert work.told == []


async def test_a_revoked_token_ends_the_lease_at_the_next_renewal_and_a_new_login_begins_another(
    vault: VaultWorld,
) -> None:
    async with Work(vault) as work:
        await asyncio.to_thread(work.leased._client._call, work.leased._client._hvac.auth.token.revoke_self)
        await until(lambda: "VAULT_DENIED" in work.told, timeout=PATIENCE)
        await until(lambda: work.told[-1] == "VAULT_BACK", timeout=PATIENCE)
        assert work.live()


async def test_secrets_that_somebody_deleted_end_the_orders_and_not_the_cancels_until_they_are_written_again(
    vault: VaultWorld, tmp_path: Path
) -> None:
    with vault.staff() as operator:
        kept = operator.read("custody")
        async with Work(vault) as work:
            operator.write("custody", {"note": Secret("nothing of it")})
            await asyncio.to_thread(work.leased._client._call, work.leased._client._hvac.auth.token.revoke_self)
            await until(lambda: "VAULT_SECRET_MISSING" in work.told, lambda: str(work.told), timeout=PATIENCE)
            await until(lambda: not work.live(), timeout=PATIENCE)
            assert signed(tmp_path / "deleted", work) == CANCELS
            operator.write("custody", kept)
            await until(work.live, timeout=PATIENCE)
            assert signed(tmp_path / "written", work) == ALL
            assert work.told[-1] == "VAULT_BACK"
        # What was replaced is not to be read any more: neither by whoever may read what is there now.
        kv = operator._hvac.secrets.kv.v2
        for version in (1, 2):
            read = functools.partial(
                kv.read_secret_version,
                path="custody",
                version=version,
                mount_point=operator.mount,
                raise_on_deleted_version=True,
            )
            with pytest.raises(client_module.VaultRefused):
                operator._call(read)


async def test_stopping_revokes_the_token_at_the_vault(vault: VaultWorld) -> None:
    work = Work(vault)
    async with work:
        token = Secret(work.leased._client._hvac.token)
    assert not work.live()
    with vault.client("custody") as client:
        client.use(token)
        with pytest.raises(client_module.VaultRefused):
            client.read("custody")


class Wire:
    """A TCP relay to the vault that can be held: nothing passes, nothing is closed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._go = threading.Event()
        self._go.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"https://127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def hold(self) -> None:
        self._go.clear()

    def release(self) -> None:
        self._go.set()

    def close(self) -> None:
        self.release()
        for one in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._port))
                self._open += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._relay, args=(source, sink), daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                self._go.wait()
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


async def test_a_vault_that_answers_nothing_blocks_nothing_and_is_given_up_in_bounded_time(
    vault: VaultWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "TIMEOUT_S", 1.0)
    wire = Wire(vault.server.port)
    late: list[float] = []

    async def beat() -> None:
        while True:
            begun = time.monotonic()
            await asyncio.sleep(0.02)
            late.append(time.monotonic() - begun)

    tasks = Tasks()
    try:
        async with Work(vault, wire.address) as work:
            tasks.start(beat())
            wire.hold()
            await until(lambda: "VAULT_LEASE_ENDED" in work.told, timeout=PATIENCE)
            assert "VAULT_UNREACHABLE" in work.told
            wire.release()
            await until(work.live, timeout=PATIENCE)
    finally:
        await tasks.end()
        wire.close()
    # A call that blocked the loop would have taken the whole time-out.
    assert max(late) < 1.0, f"{max(late):.2f} s"


async def test_an_answer_that_drips_in_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes in time, the whole never: what the library's own time-out does not see."""
    patience = 0.3
    worker = Worker(patience)
    stop = threading.Event()
    begun = time.monotonic()
    with pytest.raises(VaultAway, match="given up"):
        await worker(stop.wait)
    assert time.monotonic() - begun < 10 * patience
    with pytest.raises(VaultAway, match="has not ended yet"):
        await worker(lambda: None)
    stop.set()

    async def answered() -> Any:
        with contextlib.suppress(VaultAway):
            return await worker(lambda: "answer")

    async with asyncio.timeout(PATIENCE):
        # Its thread has ended a moment after what it waited for.
        while True:
            if await answered() == "answer":
                return
            await asyncio.sleep(0.01)


async def test_a_component_that_starts_while_the_vault_is_away_waits_for_it(vault: VaultWorld) -> None:
    async with down(vault, sealed=False):
        work = Work(vault)
        opening = asyncio.create_task(work.leased.open())
        await until(lambda: work.told == ["VAULT_UNREACHABLE"], timeout=PATIENCE)
        assert not opening.done()
    assert await opening
    await work.leased.close()


# -- the server ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_vault_that_cannot_write_its_audit_file_serves_nobody(tmp_path: Path) -> None:
    """On a full disk (`/dev/full`) it stays as good as sealed, whoever unseals it."""
    with running_vault(tmp_path / "desk") as vault:
        vault.vault.stop(15.0)
        audit = vault.deployment.log("vault-audit")
        audit.unlink()
        audit.symlink_to("/dev/full")
        monkey = pytest.MonkeyPatch()
        monkey.setattr("tallystick.runtime.vault.setup.ACTIVE_S", 2.0)
        try:
            with pytest.raises(VaultAway) as caught:
                vault.vault.start()
            assert caught.value.code == "VAULT_AUDIT"
            with vault.client("custody") as client, pytest.raises(VaultAway):
                client.login("cert", {"name": vault.role("custody")})
        finally:
            monkey.undo()
        vault.vault.stop(15.0)
        audit.unlink()
        audit.mkdir()
        with pytest.raises(ConfigError) as refused:
            vault.vault.start()
        assert refused.value.code == "VAULT_AUDIT"
        audit.rmdir()
        vault.vault.start()
        with vault.staff() as client:
            assert client.read("custody")


@pytest.mark.slow
def test_a_crash_anywhere_in_the_set_up_leaves_nothing_half_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment, keystore = new(tmp_path / "desk")
    prepare(keystore)
    world = VaultWorld(deployment, keystore)
    for at in ("tallystick.runtime.vault.setup._write", "tallystick.runtime.deployment.vault.sync_tree"):
        with monkeypatch.context() as patch:
            patch.setattr(at, _crash)
            with pytest.raises(KeyboardInterrupt):
                world.vault.start()
        assert not deployment.vault.exists()
        assert layout.pin_name("custody") in keystore.secrets, "nothing was moved"
    with monkeypatch.context() as patch:
        patch.setattr(type(keystore), "save", _crash)
        with pytest.raises(KeyboardInterrupt):
            world.vault.start()
    assert not deployment.vault.exists()
    with monkeypatch.context() as patch:
        patch.setattr("tallystick.runtime.deployment.vault.store", _crash)
        with pytest.raises(KeyboardInterrupt):
            world.vault.start()
    assert deployment.vault.exists()
    assert layout.pin_name("custody") in keystore.secrets
    world.vault.stop(15.0)
    world.vault.start()
    try:
        assert world.vault.secrets("custody") == {n: world.secrets[n] for n in deployment.leased_names("custody")}
        assert layout.pin_name("custody") not in keystore.secrets
    finally:
        world.vault.stop(15.0)


def _crash(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_server_whose_starter_was_killed_is_ended_by_the_next_one_and_a_watched_one_is_not(vault: VaultWorld) -> None:
    with pytest.raises(Held):
        end_orphan(vault.deployment.vault)
    pid = vault.server.pid
    os.kill(pid, 0)
    vault.server.check()
    vault.server.kill()
    with pytest.raises(VaultStopped):
        vault.server.check()
    assert end_orphan(vault.deployment.vault) == 0
    vault.vault._start()
    assert vault.server.pid != pid
