"""What a vault is given once: its unseal key, mounts, methods, roles, policies and first secrets.

- The root token of the set-up lives for its duration: it is revoked, and asked whether it is dead.
- Nothing is made twice: a vault whose set-up failed is thrown away by whoever made it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from tallystick.infra.vault import access
from tallystick.runtime.keys.keystore import Secret
from tallystick.runtime.vault.client import VaultAway, VaultClient, VaultRefused
from tallystick.schemas.errors import ConfigError

ACTIVE_S: Final = 20.0
_POLL_S: Final = 0.02


def set_up(
    client: VaultClient, deployment: str, ca_pem: str, secrets: Mapping[str, Mapping[str, Secret]], lease_s: int
) -> Secret:
    """Set up a new vault, and leave it unsealed with no root token; its unseal key (one share).

    `secrets`: what each component finds there; `ca_pem`: the operator's CA, which vouches for certificates of the
    deployment.  Raises `VaultAway`, `VaultRefused`, `ConfigError`.
    """
    key, root = client.initialize()
    client.unseal(key)
    client.use(root)
    await_active(client)
    try:
        if not client.get("sys/audit"):
            raise ConfigError("VAULT_AUDIT", "the vault has no audit device: it is not set up")
        _write(client, deployment, ca_pem, tuple(secrets), lease_s)
        # The KV store upgrades itself for a moment after it was mounted.  What was replaced is not to be read any more.
        _patiently(lambda: client.put(f"{client.mount}/config", {"max_versions": 1}))
        for component, values in secrets.items():
            client.write(component, values)
    finally:
        client.revoke()
    client.use(root)
    try:
        client.get("auth/token/lookup-self")
    except VaultRefused:
        client.use(Secret(""))
        return key
    raise ConfigError("VAULT_ROOT_ALIVE", f"{client.address}: the root token was revoked and is still taken")


def _write(client: VaultClient, deployment: str, ca_pem: str, components: tuple[str, ...], lease_s: int) -> None:
    mount = client.mount
    client.put(f"sys/mounts/{mount}", {"type": "kv", "options": {"version": "2"}})
    for method in ("approle", "cert"):
        client.put(f"sys/auth/{method}", {"type": method})
    for name, hcl in access.policies(mount, components, embedded=True).items():
        client.put(f"sys/policies/acl/{name}", {"policy": hcl})
    for path, data in role_requests(mount, deployment, components, ca_pem, lease_s):
        client.put(path, data)


def role_requests(
    mount: str, deployment: str, components: tuple[str, ...], ca: str, lease_s: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Path and data of each role."""
    staff = {"token_ttl": f"{access.STAFF_S}s", "token_max_ttl": f"{access.STAFF_S}s"}
    for role in access.roles(mount, deployment, components):
        lifetime = {"token_period": f"{lease_s}s"} if role.renewable else staff
        yield (
            f"auth/cert/certs/{role.name}",
            {"certificate": ca, "allowed_uri_sans": [role.uri], "token_policies": [role.policy], **lifetime},
        )
        if role.renewable:
            yield (
                f"auth/approle/role/{role.name}",
                {
                    "role_id": role.name,
                    "secret_id_num_uses": 1,
                    "secret_id_ttl": f"{access.SECRET_ID_S}s",
                    "token_policies": [role.policy],
                    **lifetime,
                },
            )


def set_lease(client: VaultClient, components: tuple[str, ...], lease_s: int) -> None:
    """Give tokens of components so many seconds from now on, as an operator.  Raises `VaultAway` or `VaultRefused`."""
    for name in components:
        role = access.role_name(client.mount, name)
        for path in (f"auth/approle/role/{role}", f"auth/cert/certs/{role}"):
            client.put(path, {"token_period": f"{lease_s}s"})


def reshare(client: VaultClient, given: tuple[Secret, ...], shares: int, threshold: int) -> tuple[Secret, ...]:
    """New shares of a new unseal key, as an operator who has enough of the old ones: `given`.

    They count once `confirm` was called with them, so that none is lost between the two.  Raises `VaultAway`,
    `VaultRefused`.
    """
    path = "sys/rotate/root"
    client.delete(f"{path}/init")
    wanted = {"secret_shares": shares, "secret_threshold": threshold, "require_verification": True}
    begun = client.put(f"{path}/init", wanted)
    answer: Mapping[str, Any] = {}
    for share in given:
        answer = client.put(f"{path}/update", {"key": share.reveal(), "nonce": begun["nonce"]})
    if not answer.get("complete"):
        client.delete(f"{path}/init")
        raise VaultRefused("VAULT_SHARES", f"{len(given)} shares were given, {begun['required']} are needed")
    return tuple(Secret(key) for key in answer["keys"])


def confirm(client: VaultClient, new: tuple[Secret, ...]) -> None:
    """Let the new shares count, and the old ones no more.  Raises `VaultAway`, `VaultRefused`."""
    path = "sys/rotate/root/verify"
    nonce = client.get(path)["nonce"]
    for share in new:
        if client.put(path, {"key": share.reveal(), "nonce": nonce}).get("complete"):
            return
    raise VaultRefused("VAULT_SHARES", "the vault takes none of its new shares")


def await_active(client: VaultClient) -> None:
    """Wait until an unsealed vault serves, and writes down that it does.

    Raises `VaultAway`: `VAULT_AUDIT` where it cannot, as without its audit file.
    """
    deadline = time.monotonic() + ACTIVE_S
    while True:
        try:
            if client.serving():
                # Its state is told by one that can write nothing, too; an answer is not, not even a refusal.
                with contextlib.suppress(VaultRefused):
                    client.get("auth/token/lookup-self")
                return
            text = "not serving"
        except VaultAway as exc:
            text = exc.text
        if time.monotonic() > deadline:
            raise VaultAway(
                "VAULT_AUDIT",
                f"{client.address} was unsealed and does not serve ({text}): can it write its audit file? see its log",
            )
        time.sleep(_POLL_S)


def _patiently(write: Callable[[], object]) -> None:
    deadline = time.monotonic() + ACTIVE_S
    while True:
        try:
            write()
        except (VaultAway, VaultRefused):
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL_S)
        else:
            return
