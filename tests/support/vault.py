"""A real vault of a real deployment: OpenBao as `tallystick up` runs it, and clients that show what a process shows."""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

from tallystick.infra.vault import access
from tallystick.infra.vault.server import EmbeddedVault
from tallystick.runtime.deployment import certificates, vault, vault_access
from tallystick.runtime.deployment import folder as layout
from tallystick.runtime.deployment.folder import Deployment
from tallystick.runtime.deployment.template import DEFAULT_TEMPLATE
from tallystick.runtime.keys.identity import client_context
from tallystick.runtime.keys.keystore import Keystore, Secret
from tallystick.runtime.vault import logins
from tallystick.runtime.vault.client import VaultClient
from tallystick.runtime.vault.leased import Leased, Notify
from tests.support.deployment import make

# Short enough to wait for its end, long enough for a busy machine.
LEASE_S = 6


def new(folder: Path, lease_s: int = LEASE_S, more: str = "") -> tuple[Deployment, Keystore]:
    """A deployment whose vault was never started."""
    settings = f"[vault]\nlease_s = {lease_s}\n{more}"
    return make(folder, template=DEFAULT_TEMPLATE.replace("[vault]\n", settings))


class VaultWorld:
    """The vault of `deployment`; `secrets` are what the keystore held before the first start."""

    def __init__(self, deployment: Deployment, keystore: Keystore) -> None:
        self.deployment = deployment
        self.keystore = keystore
        self.said: list[str] = []
        names = [name for who in vault_access.components(deployment) for name in deployment.leased_names(who)]
        self.secrets = {name: keystore[name] for name in names}
        self.vault = vault.DeploymentVault(deployment, keystore, self.said.append)

    @property
    def server(self) -> EmbeddedVault:
        assert self.vault.server is not None
        return self.vault.server

    def tls(self, who: str, ca: Path | None = None) -> ssl.SSLContext:
        """What `who` shows; the vault is to be vouched for by `ca`."""
        certificates.ensure(self.deployment, self.keystore, (who,), time.time_ns())
        passphrase = self.keystore[layout.passphrase_name(who)]
        return client_context(ca or self.deployment.vault_ca, self.deployment.identity(who), passphrase)

    @contextlib.contextmanager
    def client(self, who: str, ca: Path | None = None) -> Iterator[VaultClient]:
        """A client that shows the certificate of `who`, and has not logged in."""
        made = VaultClient(self.deployment.vault_address(), self.tls(who, ca), self.deployment.config.vault.mount)
        try:
            yield made
        finally:
            made.close()

    def staff(self, role: str = access.OPERATOR) -> contextlib.AbstractContextManager[VaultClient]:
        return vault_access.staff(self.deployment, self.keystore, role)

    def role(self, who: str) -> str:
        return access.role_name(self.deployment.config.vault.mount, who)

    def leased(
        self,
        who: str = "custody",
        login: logins.Login | None = None,
        notice: Notify = lambda _, __: None,
        address: str | None = None,
    ) -> Leased:
        """As the process of `who` holds its secrets; by its certificate, unless `login` says otherwise."""
        mount = self.deployment.config.vault.mount
        client = VaultClient(address or self.deployment.vault_address(), self.tls(who), mount)
        return Leased(
            client,
            login or logins.Certificate(self.role(who)),
            who,
            self.deployment.leased_names(who),
            clock=time.time_ns,
            notice=notice,
        )


@contextlib.contextmanager
def running_vault(folder: Path, lease_s: int = LEASE_S) -> Iterator[VaultWorld]:
    """A deployment's vault, set up and unsealed."""
    made = VaultWorld(*new(folder, lease_s))
    try:
        vault.prepare(made.keystore)
        made.vault.start()
        yield made
    finally:
        made.vault.stop(15.0)


__all__ = ("LEASE_S", "Secret", "VaultWorld", "new", "running_vault")
