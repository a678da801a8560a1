"""What the vault lets whom do: rendered here for the embedded one, and for yours (`infra/vault/policies/*.hcl`).

- A component reads its own secret, and nothing else; it writes nothing.  The keymaster, where there is one, may replace
  values in the secrets of the others, and read none of them.  The embedded vault has its place from the first day.
- `supervisor` asks for secret ids of components, wrapped and short-lived, and destroys them.  It reads no secret, and
  cannot ask for one that is not wrapped.
- `operator` writes secrets and reads them back; in the embedded vault it also shortens or lengthens leases, and deals with
  the unseal key: in yours both are yours.
- Nobody makes policies, roles, mounts or tokens: that takes the root token of the set-up, which is dead since.

Names begin with the mount's, so that deployments can share a vault.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

SUPERVISOR: Final = "supervisor"
OPERATOR: Final = "operator"
KEYMASTER: Final = "keymaster"
# Who the two are: the person whose certificate the supervisor has as well.
PERSON: Final = "operator"
# Between the supervisor's asking and the component's unwrapping lie milliseconds.
WRAP_S: Final = 30
SECRET_ID_S: Final = 60
# The supervisor's and the operator's tokens: they are revoked after use.
STAFF_S: Final = 60


class Role(msgspec.Struct, frozen=True, kw_only=True):
    """A role of the methods `approle`, `cert` and `kubernetes`: its name (and role id), policy and certificate's URI.

    `renewable`: its tokens live as long as they are renewed, each time for the lease.
    """

    name: str
    policy: str
    uri: str
    renewable: bool


def role_name(mount: str, who: str) -> str:
    """The name of the role and of the policy of `who`."""
    return f"{mount}-{who}"


def roles(mount: str, deployment: str, components: Iterable[str]) -> tuple[Role, ...]:
    """Every role: of each component, and the two of the person."""
    people = {SUPERVISOR: PERSON, OPERATOR: PERSON}
    return tuple(
        Role(
            name=role_name(mount, who),
            policy=role_name(mount, who),
            uri=f"spiffe://{deployment}/{people.get(who, who)}",
            renewable=who not in people,
        )
        for who in (*components, SUPERVISOR, OPERATOR)
    )


def policies(mount: str, components: Iterable[str], *, embedded: bool) -> dict[str, str]:
    """HCL by the policy's name; `embedded`: for the vault that is the deployment's own."""
    names = tuple(components)
    made = {role_name(mount, name): _path(f"{mount}/data/{name}", "read") for name in names}
    # The keymaster changes which key is in use without reading what else lies there.
    if KEYMASTER in names:
        for name in names:
            made[role_name(mount, KEYMASTER)] += "" if name == KEYMASTER else _path(f"{mount}/data/{name}", "patch")
    supervisor, operator = "", ""
    for name in names:
        role = f"auth/approle/role/{role_name(mount, name)}"
        supervisor += _path(
            f"{role}/secret-id", "update", f'min_wrapping_ttl = "1s"\n  max_wrapping_ttl = "{WRAP_S}s"'
        ) + _path(f"{role}/secret-id-accessor/destroy", "update")
        operator += _path(f"{mount}/data/{name}", '"create", "read", "update"', quoted=True)
        if embedded:
            for changed in (role, f"auth/cert/certs/{role_name(mount, name)}"):
                operator += _path(changed, "update", 'allowed_parameters = { "token_period" = [] }')
    if embedded:
        operator += _path("sys/rotate/root/*", '"create", "read", "update", "delete", "sudo"', quoted=True)
    made[role_name(mount, SUPERVISOR)] = supervisor
    made[role_name(mount, OPERATOR)] = operator
    return made


def _path(path: str, capabilities: str, more: str = "", *, quoted: bool = False) -> str:
    listed = capabilities if quoted else f'"{capabilities}"'
    return f'path "{path}" {{\n  capabilities = [{listed}]\n{f"  {more}{chr(10)}" if more else ""}}}\n'
