"""`tallystick admit`: what deployment.toml says becomes what the operator signed.

New strategies and observers get keys, an account and a certificate; removed ones lose their place; changed
instruments, caps, limits, listings, house rules and venues take effect: all of it is one new version of the trust root.  Processes read
the trust root when they start: run it while the deployment is down.

- Order of writing: keystore, the broker's keys, the issuing CA, certificates, the trust root last.  Crash before the
  last step: nothing is in force, and the next run takes up what is there; after it: all of it is.
- How components prove themselves (`methods`) is signed anew, and their keys stay; a deployment from before that gets them.
- Keys are made once: a component that was admitted before keeps its keys.  The issuing CA's certificate is signed anew
  each time, and is of a new key where the operator asks for it: nobody then takes what the old one certified.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from tallystick.infra.nats import topology
from tallystick.infra.nats.claims import BusKeys, ComponentKeys
from tallystick.infra.vault import access
from tallystick.runtime.deployment import certificates, vault, vault_access
from tallystick.runtime.deployment import folder as layout
from tallystick.runtime.deployment.folder import Deployment
from tallystick.runtime.deployment.methods import Made
from tallystick.runtime.deployment.owners import require_down
from tallystick.runtime.deployment.proof import api_key_file
from tallystick.runtime.deployment.trust_root import write_trust_root
from tallystick.runtime.durable import write_durably
from tallystick.runtime.keys import pki
from tallystick.runtime.keys.hsm import Token, create_token
from tallystick.runtime.keys.identity import load_certificate
from tallystick.runtime.keys.keystore import Keystore, Secret
from tallystick.runtime.vault.client import VaultRefused
from tallystick.schemas.errors import ConfigError
from tallystick.schemas.methods import ApiKey
from tallystick.schemas.trust import TrustRoot

_SIGNING: Final = "signing"
_ROLES: Final = "roles"
_OPERATOR: Final = "operator"


class Admitted(msgspec.Struct, frozen=True):
    """What the new trust root changed: its number, and components that are new and gone."""

    number: int
    added: tuple[str, ...]
    removed: tuple[str, ...]


def admit(
    deployment: Deployment, keystore: Keystore, now: int, progress: Callable[[str], None], *, new_ca: bool = False
) -> Admitted:
    """Sign the next trust root at `now` (Unix ns), `new_ca`: with an issuing CA of a new key.

    Raises `TallystickError`; then nothing new is in force.
    """
    require_down(deployment)
    root = deployment.load_trust()[-1]
    keys = deployment.load_bus_keys()
    bus = deployment.bus()
    added = tuple(name for name in bus.components if name not in root.components)
    removed = tuple(name for name in root.components if name not in bus.components)
    made = dict(keys.components)
    if topology.KEYMASTER in added:
        _require_place(deployment, keystore, topology.KEYMASTER, progress)
    if added:
        progress(f"keys of {', '.join(added)}")
        accounts = _keys(deployment, keystore, _SIGNING, {n: layout.account_key_id(n) for n in added if n not in made})
        roles = _keys(deployment, keystore, _ROLES, {n: layout.role_key_id(n) for n in added if n not in made})
        made |= {name: ComponentKeys(account=accounts[name], role=roles[name]) for name in accounts}
        for name in added:
            keystore.secrets.setdefault(layout.passphrase_name(name), Secret.random())
        keystore.save()
    if topology.KEYMASTER in added:
        # Its public key is registered at the venue by a person: `tallystick api-key`.  Later its PIN lies in the vault.
        _token_key(deployment, keystore, topology.KEYMASTER, layout.KEY_VENUE)
    proofs = _proofs(deployment, keystore, root, bus)
    number, public = _issuing_key(deployment, keystore, new=new_ca)
    with _open(deployment, keystore, _OPERATOR) as token:
        all_keys = msgspec.structs.replace(keys, components=made)
        _write_keys(deployment, all_keys)
        progress(f"issuing CA {number}, certificates")
        certificates.sign_issuing_ca(deployment, token, number, public, now)
        certificates.certify(deployment, keystore, certificates.names(deployment), now)
        progress(f"trust root {root.number + 1}")
        write_trust_root(
            deployment,
            bus,
            all_keys,
            token.signer(layout.KEY_OPERATOR_ROOT),
            bytes.fromhex(root.operator),
            now,
            proofs,
            number=root.number + 1,
        )
    _check(deployment, root)
    return Admitted(number=root.number + 1, added=added, removed=removed)


def _require_place(deployment: Deployment, keystore: Keystore, component: str, report: Callable[[str], None]) -> None:
    """Raise `ConfigError` where the embedded vault was set up when it gave `component` no place."""
    if deployment.config.vault.address or not deployment.vault.exists():
        return
    try:
        with (
            vault.opened(deployment, keystore, report),
            vault_access.staff(deployment, keystore, access.OPERATOR) as client,
        ):
            vault_access.held(client, component)
    except VaultRefused as exc:
        if exc.code != "VAULT_DENIED":
            raise
        raise ConfigError(
            "ROTATION_VAULT",
            f"{deployment.vault} was set up without a place for {component}, and its root token is dead: leave "
            "[rotation] out and change keys by hand (`tallystick rotate`), or use a vault by address",
        ) from exc


def _open(deployment: Deployment, keystore: Keystore, label: str, *, writable: bool = False) -> Token:
    return Token.open(deployment.token(label), label, keystore[layout.pin_name(label)], writable=writable)


def _keys(deployment: Deployment, keystore: Keystore, label: str, wanted: dict[str, bytes]) -> dict[str, bytes]:
    """The raw public keys of `wanted` (component -> key id), made where an earlier run has not."""
    found: dict[str, bytes] = {}
    if not wanted:
        return found
    with _open(deployment, keystore, label, writable=True) as token:
        for name, key_id in wanted.items():
            try:
                found[name] = token.signer(key_id).public
            except ConfigError:
                found[name] = token.generate_ed25519(key_id, key_id.decode())
    return found


def _proofs(deployment: Deployment, keystore: Keystore, root: TrustRoot, bus: topology.Bus) -> Made:
    """What components prove themselves by besides their certificates: as before, made where there is none yet."""
    wanted = {name: component.method for name, component in bus.components.items()}
    first: dict[str, str] = {}
    for name in (name for name, method in wanted.items() if method == "api-key"):
        known = root.components.get(name)
        if known is not None and isinstance(known.method, ApiKey):
            first[name] = known.method.first
        else:
            first[name] = api_key_file(deployment, name, keystore[layout.passphrase_name(name)]).begin()
    issues, signs = "service-account" in wanted.values(), "hardware-token" in wanted.values()
    return Made(
        issuer=_token_key(deployment, keystore, layout.ISSUER, layout.KEY_ISSUER) if issues else b"",
        execution=_token_key(deployment, keystore, layout.HARDWARE, layout.KEY_IDENTITY) if signs else b"",
        api_keys=first,
    )


def _token_key(deployment: Deployment, keystore: Keystore, label: str, key_id: bytes) -> bytes:
    """The raw public key of a token's one key; a deployment from before the token was there gets it."""
    place = deployment.token(label)
    if isinstance(place, Path) and not place.exists():
        names = (layout.pin_name(label), f"{layout.pin_name(label)}.so")
        pin, officer = (keystore.secrets.setdefault(name, Secret.random()) for name in names)
        keystore.save()
        create_token(place, label, officer, pin)
    return _keys(deployment, keystore, label, {label: key_id})[label]


def _issuing_key(deployment: Deployment, keystore: Keystore, *, new: bool) -> tuple[int, ec.EllipticCurvePublicKey]:
    """Number and public key of the issuing CA that is to be in force; a deployment that has none gets its first."""
    try:
        number = pki.issuing_number(load_certificate(deployment.issuing_ca), deployment.name)
    except ConfigError:
        number, new = 0, True
    with _open(deployment, keystore, _ROLES, writable=True) as token:
        if not new:
            return number, token.p256_signer(certificates.issuing_key_id(number)).public
        number += 1
        try:
            # An earlier run made it and went no further.
            return number, token.p256_signer(certificates.issuing_key_id(number)).public
        except ConfigError:
            return number, token.generate_p256(certificates.issuing_key_id(number), f"issuing CA {number}")


def _write_keys(deployment: Deployment, keys: BusKeys) -> None:
    write_durably(deployment.bus_keys, msgspec.json.format(msgspec.json.encode(keys), indent=2), 0o600)


def _check(deployment: Deployment, before: TrustRoot) -> None:
    """What was written verifies from the pinned key, and is the next version."""
    after = deployment.load_trust()[-1]
    if after.number != before.number + 1:
        raise ConfigError("ADMIT", f"trust root {after.number} is in force, expected {before.number + 1}")
    deployment.load_bus_keys()
