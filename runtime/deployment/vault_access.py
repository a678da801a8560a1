"""The operator's ways into a deployment's vault, whichever it is: logins, what it holds, what a vault of yours is to have.

Logins live for one request: by the operator's certificate, as role `supervisor` or `operator`.
"""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Iterator, Mapping

from tallystick.infra.vault import access
from tallystick.runtime.deployment import certificates
from tallystick.runtime.deployment import folder as layout
from tallystick.runtime.deployment.folder import Deployment
from tallystick.runtime.deployment.signed_vault import require_signed_vault
from tallystick.runtime.keys.identity import client_context
from tallystick.runtime.keys.keystore import Keystore, Secret
from tallystick.runtime.vault import setup
from tallystick.runtime.vault.client import VaultAway, VaultClient, VaultNothing, VaultRefused
from tallystick.schemas.errors import ConfigError


def components(deployment: Deployment) -> tuple[str, ...]:
    """Whose secrets lie in the vault; none in a replay zone, which then has no vault."""
    return tuple(name for name in layout.LEASED if name in deployment.bus().components)


def require_embedded(deployment: Deployment) -> None:
    """Raise `ConfigError` for a vault by address: how it is unsealed is its own people's."""
    if address := deployment.config.vault.address:
        raise ConfigError(
            "VAULT_YOURS",
            f"the vault at {address} is not ours to unseal, nor its key to change: do it there, with `bao`",
        )


def tls_client(deployment: Deployment, keystore: Keystore, address: str | None = None) -> VaultClient:
    """A client that shows the operator's certificate and has not logged in: for the caller to close.

    Raises `ConfigError` for a vault that the operator did not sign.
    """
    require_signed_vault(deployment, deployment.load_trust()[-1])
    certificates.ensure(deployment, keystore, (layout.OPERATOR,), time.time_ns())
    passphrase = keystore[layout.passphrase_name(layout.OPERATOR)]
    tls = client_context(deployment.vault_ca, deployment.identity(layout.OPERATOR), passphrase)
    return VaultClient(address or deployment.vault_address(), tls, deployment.config.vault.mount)


@contextlib.contextmanager
def staff(deployment: Deployment, keystore: Keystore, role: str, address: str | None = None) -> Iterator[VaultClient]:
    """A client that is logged in as `role` (`access.SUPERVISOR`, `access.OPERATOR`) by the operator's certificate.

    Its token is revoked afterwards.  Raises `VaultAway`, `VaultRefused`.
    """
    client = tls_client(deployment, keystore, address)
    try:
        client.login("cert", {"name": access.role_name(client.mount, role)})
        try:
            yield client
        finally:
            with contextlib.suppress(VaultAway, VaultRefused):
                client.revoke()
    finally:
        client.close()


def store(client: VaultClient, component: str, secrets: Mapping[str, Secret]) -> None:
    """Write secrets of a component, beside those that are there.  Raises `VaultAway`, `VaultRefused`."""
    there = held(client, component)
    if any(there.get(name) != value for name, value in secrets.items()):
        client.write(component, {**there, **secrets})


def held(client: VaultClient, component: str) -> dict[str, Secret]:
    """What the vault holds for a component, empty where it was given nothing yet.  Raises `VaultAway`, `VaultRefused`."""
    try:
        return client.read(component)
    except VaultNothing:
        return {}


def require_secrets(deployment: Deployment, keystore: Keystore) -> None:
    """Raise `ConfigError` unless the vault holds what each component needs; `VaultAway`, `VaultRefused`."""
    with staff(deployment, keystore, access.OPERATOR) as client:
        for component in components(deployment):
            there = held(client, component)
            missing = [name for name in deployment.leased_names(component) if name not in there]
            if missing:
                raise ConfigError(
                    "VAULT_SECRET_MISSING",
                    f"{client.address} holds no {', '.join(missing)} in {client.mount}/{component}, and the keystore "
                    "neither: write it there; what an embedded vault holds does not follow",
                )


def recipe(deployment: Deployment) -> list[str]:
    """What a vault by address needs: commands of `bao` with an administrator's token, from what the embedded one gets."""
    config = deployment.config.vault
    names = components(deployment)
    lines = [
        _once("secrets", config.mount, f"-path={config.mount} -version=2 kv"),
        _once("auth", "approle", "approle"),
        _once("auth", "cert", "cert"),
    ]
    for name, hcl in access.policies(config.mount, names, embedded=False).items():
        lines += [f"bao policy write {name} - <<'END'", hcl.rstrip(), "END"]
    for path, data in setup.role_requests(config.mount, deployment.name, names, f"@{deployment.ca}", config.lease_s):
        words = [f"{key}={','.join(value) if isinstance(value, list) else value}" for key, value in data.items()]
        lines.append(f"bao write {path} {shlex.join(words)}")
    # The KV store upgrades itself for a moment after it was mounted: this comes last.
    return [*lines, f"bao write {config.mount}/config max_versions=1"]


def _once(what: str, path: str, enabled: str) -> str:
    """Enabled where it is not: a method may be there for others, and the recipe is run again for a keymaster."""
    return f"bao {what} list | grep -q '^{path}/' || bao {what} enable {enabled}"
