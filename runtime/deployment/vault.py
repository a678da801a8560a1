"""The vault of a deployment: the embedded one from its first start on, and what the supervisor asks of any.

- The embedded one is set up by the first `up`, in a folder beside its own that is renamed when it is whole; its unseal key
  lies in the keystore, under the master PIN, so that `up` unseals it.  Where people hold shares instead, it waits for
  them (`tallystick vault unseal`).
- What the keystore holds of the components' secrets moves into the vault at each `up`: it is deleted there once it is
  here.  So does an API key id that the operator set meanwhile.
- A server that ends is started again and unsealed; its certificate is renewed while it runs.
- Secret ids are made one by one, when a component asks on its own channel; the one before is destroyed.
- A vault by address is not started or set up here: it is asked, before anything starts, whether it lets us in and holds what
  the components need.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from tallystick.infra.embedded import OWNER
from tallystick.infra.lockfile import Lockfile, owner
from tallystick.infra.vault import access
from tallystick.infra.vault.server import EmbeddedVault, VaultServerConfig, VaultStopped
from tallystick.runtime.bus.tasks import Tasks
from tallystick.runtime.deployment import certificates
from tallystick.runtime.deployment import folder as layout
from tallystick.runtime.deployment.folder import Deployment
from tallystick.runtime.deployment.owners import supervisor_file
from tallystick.runtime.deployment.vault_access import components, require_secrets, staff, store, tls_client
from tallystick.runtime.durable import sync, sync_tree, write_durably
from tallystick.runtime.keys.identity import Identity, decrypted_key, load_certificate
from tallystick.runtime.keys.keystore import Keystore, Secret
from tallystick.runtime.vault import logins, setup
from tallystick.runtime.vault.client import VaultAway, VaultClient, VaultRefused
from tallystick.schemas.errors import ConfigError, TallystickError

UNSEAL: Final = "vault.unseal"
# The key that is about to replace it: the vault takes one of the two.
UNSEAL_NEXT: Final = "vault.unseal.next"
MAX_SHARES: Final = 20
# One of several shares would be as good as all.
MIN_THRESHOLD: Final = 2
POLL_S: Final = 0.5
RETRY_S: Final = 2.0
START_TIMEOUT_S: Final = 20.0
# By then everybody has logged in, and most of what it read of its program is not needed again soon.
TRIM_S: Final = 15.0
# A component that asks for secret ids again and again keeps nobody else waiting.
SPACING_S: Final = 0.2
MAX_SPEECH: Final = 16

Report = Callable[[str], None]


def prepare(keystore: Keystore) -> None:
    """Have a passphrase for the vault's key: a deployment that was made before there was a vault has none."""
    name = layout.passphrase_name(layout.VAULT)
    if name not in keystore.secrets:
        keystore.secrets[name] = Secret.random()
        keystore.save()


def handed(deployment: Deployment, keystore: Keystore, component: str) -> dict[str, Secret]:
    """What a component that runs alone is handed for its login, by whoever has the keystore."""
    if component not in layout.LEASED or deployment.config.vault.auth != "approle":
        return {}
    return {layout.SECRET_ID: DeploymentVault(deployment, keystore).secret_id(component)}


def settle(deployment: Deployment, keystore: Keystore, report: Report = lambda _: None) -> None:
    """What wants the whole keystore, once: to set the vault up, and to move into it what the keystore holds for it.

    One by address holds then what the components need.  Raises `TallystickError`.
    """
    prepare(keystore)
    names = components(deployment)
    moving = any(name in keystore.secrets for component in names for name in deployment.leased_names(component))
    yours = bool(deployment.config.vault.address)
    if not names or not (moving or yours or not deployment.vault.exists()):
        return
    with _alone(deployment):
        made = DeploymentVault(deployment, keystore, report)
        try:
            made.start()
            if yours:
                require_secrets(deployment, keystore)
        finally:
            made.stop(START_TIMEOUT_S)


def _alone(deployment: Deployment) -> Lockfile:
    """Nobody else starts the deployment, or its vault, meanwhile.  Raises `Held`."""
    deployment.run.mkdir(mode=0o700, exist_ok=True)
    return Lockfile.take(supervisor_file(deployment))


class DeploymentVault:
    """The vault as the supervisor has it.  `tasks` are whose failure ends `up`."""

    def __init__(self, deployment: Deployment, keystore: Keystore, report: Report = lambda _: None) -> None:
        self._deployment = deployment
        self._keystore = keystore
        self._report = report
        self._server: EmbeddedVault | None = None
        # By component: the secret id that was given out last.
        self._accessors: dict[str, str] = {}
        self._waiting = False
        # It is stopped: a thread that starts it now, or waits for shares, gives up.
        self._over = threading.Event()

    @property
    def server(self) -> EmbeddedVault | None:
        """The embedded server; None before `start`, and for a vault by address."""
        return self._server

    # -- start and stop -------------------------------------------------------------------------

    def start(self) -> None:
        """Start, set up and unseal it, and move secrets into it; of a vault by address, enter it and do the last alone.

        Blocks; waits for people where they hold the shares.  Raises `TallystickError`.
        """
        deployment = self._deployment
        self._over.clear()
        if deployment.config.vault.address:
            self._enter()
            return
        certificates.ensure(deployment, self._keystore, (layout.VAULT, layout.OPERATOR), time.time_ns())
        self._begin()
        self._start()
        self._move_in()

    def _enter(self) -> None:
        """What is wrong with a vault by address is said now: components would wait for it."""
        try:
            with staff(self._deployment, self._keystore, access.SUPERVISOR):
                pass
            self._move_in()
        except VaultRefused as exc:
            folder = self._deployment.directory
            hint = f"has it got everything that `tallystick vault policies {folder}` prints?"
            raise VaultRefused(exc.code, f"{exc.text}; {hint}") from exc

    def _begin(self) -> None:
        """Have a whole vault in its folder, set up where there is none, or a crash left half of one."""
        folder = self._deployment.vault
        new = folder.with_name(".vault.new")
        if folder.exists():
            return
        shutil.rmtree(new, ignore_errors=True)
        server = self._make(new)
        server.start()
        try:
            client = self._client(server.url)
            try:
                _answers(client, server)
                # Its root token dies now: who may come later has his place already, and nothing in it.
                secrets = {name: self._of(name) for name in layout.LEASED}
                lease = self._deployment.config.vault.lease_s
                ca = self._deployment.ca.read_text("ascii")
                key = setup.set_up(client, self._deployment.name, ca, secrets, lease)
            finally:
                client.close()
        finally:
            server.stop()
        sync_tree(new)
        # Crash before this: the vault is made again.  Between the two: likewise, and gets another key.
        self._keystore.secrets[UNSEAL] = key
        self._keystore.save()
        new.rename(folder)
        sync(folder.parent)
        self._report("vault: set up; its root token is revoked, its unseal key lies in the keystore")

    def _make(self, folder: Path) -> EmbeddedVault:
        deployment = self._deployment
        return EmbeddedVault(
            VaultServerConfig(
                name=deployment.name,
                ca_file=deployment.issuing_ca,
                cert_file=deployment.identity(layout.VAULT),
                key_pem=self._key(),
                folder=folder,
                run_dir=deployment.run,
                log_file=deployment.log("vault").with_suffix(".log"),
                audit_file=deployment.log("vault-audit"),
                host=deployment.config.host,
                port=deployment.config.vault.port,
            )
        )

    def _key(self) -> bytes:
        passphrase = self._keystore[layout.passphrase_name(layout.VAULT)]
        return decrypted_key(self._deployment.identity(layout.VAULT), passphrase)

    def _start(self) -> None:
        if self._server is None:
            self._server = self._make(self._deployment.vault)
        self._go_on()
        self._server.start()
        self._go_on()
        write_durably(self._deployment.vault_port, f"{self._server.port}\n".encode(), 0o600)
        client = self._client(self._server.url)
        try:
            _answers(client, self._server)
            while not self._unseal(client):
                self._over.wait(POLL_S)
                self._go_on()
            setup.await_active(client)
        finally:
            client.close()
        self._report(f"vault on {self._server.url}, unsealed")

    def _unseal(self, client: VaultClient) -> bool:
        """Whether it is unsealed now."""
        status = client.sealed()
        for name in (UNSEAL, UNSEAL_NEXT):
            if status.sealed and status.t == 1 and name in self._keystore.secrets:
                with contextlib.suppress(VaultRefused):
                    status = client.unseal(self._keystore[name])
        if status.sealed and not self._waiting:
            where = self._deployment.directory
            if status.t == 1 and UNSEAL in self._keystore.secrets:
                self._report(
                    "vault: sealed, and the keystore's key that we know does not open it: after `vault reshare`, "
                    f"start this again; else tallystick vault unseal {where}"
                )
            else:
                shares = f"{status.t} of {status.n} shares"
                self._report(f"vault: sealed, waiting for {shares}: tallystick vault unseal {where}")
        self._waiting = status.sealed
        return not status.sealed

    def _go_on(self) -> None:
        """Raise `VaultStopped` where it was stopped meanwhile, and nothing may run any more."""
        if self._over.is_set():
            if self._server is not None:
                self._server.kill()
            raise VaultStopped("VAULT_DIED", "the vault was stopped while it started")

    def stop(self, timeout: float) -> None:
        """Stop the embedded server, also one that a thread is about to start."""
        self._over.set()
        if self._server is not None:
            self._server.stop(timeout)

    def kill(self) -> None:
        """End the embedded server at once."""
        self._over.set()
        if self._server is not None:
            self._server.kill()

    # -- while it runs --------------------------------------------------------------------------

    async def watch(self) -> None:
        """Start the embedded server again where it ended, unseal it where it is sealed, renew its certificate."""
        server = self._server
        if server is None:
            return
        identity = self._identity()
        trimmed, trim = 0, time.monotonic() + TRIM_S
        while True:
            await asyncio.sleep(POLL_S)
            try:
                server.check()
                if trimmed != server.pid and time.monotonic() > trim:
                    trimmed = server.pid
                    await asyncio.to_thread(server.trim)
                if identity.due(time.time_ns()):
                    await asyncio.to_thread(self._renew, server)
                    identity = self._identity()
            except VaultStopped as exc:
                self._report(f"vault: {exc.text}; starting it again")
                await self._again(server)
                trim = time.monotonic() + TRIM_S
            except TallystickError as exc:
                self._report(f"vault: its certificate was not renewed, trying again: {exc}")
                await asyncio.sleep(RETRY_S)

    async def _again(self, server: EmbeddedVault) -> None:
        await asyncio.to_thread(server.stop)
        try:
            certificates.ensure(self._deployment, self._keystore, (layout.VAULT,), time.time_ns())
            await asyncio.to_thread(self._start)
        except TallystickError as exc:
            self._report(f"vault: {exc.text}")
            await asyncio.to_thread(server.stop)
            await asyncio.sleep(RETRY_S)

    def _identity(self) -> Identity:
        passphrase = self._keystore[layout.passphrase_name(layout.VAULT)]
        return Identity(
            self._deployment.name, self._deployment.issuing_ca, self._deployment.identity(layout.VAULT), passphrase
        )

    def _renew(self, server: EmbeddedVault) -> None:
        certificates.certify(self._deployment, self._keystore, (layout.VAULT,), time.time_ns())
        wanted = load_certificate(self._deployment.identity(layout.VAULT))

        def shown() -> bool:
            client = self._client(server.url)
            try:
                return client.shown() == wanted
            finally:
                client.close()

        server.renew(self._key(), shown)

    # -- secret ids -----------------------------------------------------------------------------

    def channel(self, component: str, tasks: Tasks) -> socket.socket | None:
        """The other end of a channel on which `component` asks for secret ids; None where its login needs none."""
        if component not in layout.LEASED or self._deployment.config.vault.auth != "approle":
            return None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        tasks.start(self._serve(component, ours), f"secret ids of {component}")
        return theirs

    async def _serve(self, component: str, channel: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with channel, contextlib.suppress(ConnectionError, BrokenPipeError):
            while await loop.sock_recv(channel, MAX_SPEECH):
                try:
                    token = await asyncio.to_thread(self.secret_id, component)
                    answer = logins.GIVEN + token.reveal().encode()
                except TallystickError as exc:
                    answer = f"-{exc.code}: {exc.text}".encode()[: logins.MAX_TOKEN]
                await loop.sock_sendall(channel, answer)
                await asyncio.sleep(SPACING_S)

    def secret_id(self, component: str) -> Secret:
        """The wrapping token of a new secret id; the one that was given out before is destroyed.

        Raises `VaultAway`, `VaultRefused`.
        """
        with staff(self._deployment, self._keystore, access.SUPERVISOR) as client:
            role = access.role_name(client.mount, component)
            before = self._accessors.pop(component, None)
            if before is not None:
                # Used, mostly: the vault knows it no more then, and answers 500.
                with contextlib.suppress(VaultRefused, VaultAway):
                    client.destroy_secret_id(role, before)
            made = client.wrap_secret_id(role, access.WRAP_S)
            self._accessors[component] = made.accessor
            return made.token

    # -- secrets --------------------------------------------------------------------------------

    def _of(self, component: str) -> dict[str, Secret]:
        """What the keystore holds of a component's secrets."""
        names = self._deployment.leased_names(component)
        return {name: self._keystore.secrets[name] for name in names if name in self._keystore.secrets}

    def _move_in(self) -> None:
        """Have in the vault what the keystore holds of the components' secrets, and then there alone."""
        moving = {name: found for name in components(self._deployment) if (found := self._of(name))}
        lease = self._deployment.config.vault.lease_s
        embedded = self._server is not None
        if not moving and not embedded:
            return
        with staff(self._deployment, self._keystore, access.OPERATOR) as client:
            for component, secrets in moving.items():
                store(client, component, secrets)
            if embedded:
                setup.set_lease(client, components(self._deployment), lease)
        # Crash before this: they are written once more.
        for secrets in moving.values():
            for name in secrets:
                del self._keystore.secrets[name]
        if moving:
            self._keystore.save()
            self._report(f"vault: secrets of {', '.join(moving)} moved from the keystore to {client.address}")

    def secrets(self, component: str) -> Mapping[str, Secret]:
        """What the vault holds for a component, as its operator.  Raises `VaultAway`, `VaultRefused`."""
        with staff(self._deployment, self._keystore, access.OPERATOR) as client:
            return client.read(component)

    def _client(self, address: str) -> VaultClient:
        return tls_client(self._deployment, self._keystore, address)


def _answers(client: VaultClient, server: EmbeddedVault) -> None:
    """Wait until `server`, which was started, answers.  Raises `VaultAway`, and `VaultStopped` where it ended."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            client.sealed()
        except VaultAway as exc:
            server.check()
            # It is ours: what it shows is not what will change.
            if exc.code == "VAULT_TLS" or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


@contextlib.contextmanager
def opened(deployment: Deployment, keystore: Keystore, report: Report) -> Iterator[DeploymentVault]:
    """The deployment's vault, also while it is down: the embedded one is started for the time being."""
    made = DeploymentVault(deployment, keystore, report)
    if deployment.config.vault.address or _up(deployment):
        yield made
        return
    with _alone(deployment):
        try:
            made.start()
            yield made
        finally:
            made.stop(START_TIMEOUT_S)


def _up(deployment: Deployment) -> bool:
    return owner(deployment.vault / OWNER) is not None


def secret(deployment: Deployment, keystore: Keystore, component: str, name: str, report: Report) -> Secret:
    """A secret of a component, from wherever it lies: the keystore until the first `up`, the vault then.

    `report` is told what it waits for.  Raises `ConfigError`, `VaultAway`, `VaultRefused`.
    """
    if name in keystore.secrets:
        return keystore[name]
    with opened(deployment, keystore, report) as vault:
        found = vault.secrets(component)
    if name not in found:
        raise ConfigError("VAULT_SECRET_MISSING", f"the vault holds no {name} for {component}")
    return found[name]
