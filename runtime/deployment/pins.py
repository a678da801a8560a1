"""A new PIN for a token that is in use: set in the token (C_SetPIN, PKCS#11), kept where the deployment looks for it.

- The next PIN is in the keystore before the token has it: whatever ends us in between, one of the two opens the token, and the
  next call goes on.  A PIN is tried that may be wrong only then: an HSM counts wrong ones.
- custody's, portfolio's and the keymaster's lie in the vault, whence they borrow them while they run: theirs may be changed
  under them.  The others are handed out by `up`, which knows them from its start: it has to be down.
"""

from __future__ import annotations

from collections.abc import Callable

from tallystick.infra.vault import access
from tallystick.runtime.deployment import folder as layout
from tallystick.runtime.deployment import vault, vault_access
from tallystick.runtime.deployment.folder import Deployment
from tallystick.runtime.deployment.owners import require_down
from tallystick.runtime.keys.hsm import Token
from tallystick.runtime.keys.keystore import Keystore, Secret
from tallystick.schemas.errors import ConfigError


def next_name(label: str) -> str:
    """Under what name the keystore holds a PIN that the token `label` may have already."""
    return f"{layout.pin_name(label)}.next"


def renew(deployment: Deployment, keystore: Keystore, label: str, report: Callable[[str], None]) -> None:
    """Have a new, random PIN for the token `label`.  Raises `ConfigError`, `VaultAway`, `VaultRefused`."""
    name, candidate = layout.pin_name(label), next_name(label)
    if label not in layout.LEASED:
        require_down(deployment)
    place = deployment.token(label)
    old = vault.secret(deployment, keystore, label, name, report)
    left = keystore.secrets.get(candidate)
    new = left or Secret.random()
    if left is None:
        keystore.secrets[candidate] = new
        keystore.save()
    if left is None or not _opens(deployment, label, new):
        try:
            with Token.open(place, label, old, writable=True) as token:
                token.change_pin(old, new)
        except ConfigError as exc:
            # Refused for good: such a PIN is not to be tried another time.
            if exc.code == "HSM_PIN":
                del keystore.secrets[candidate]
                keystore.save()
            raise
    if name in keystore.secrets:
        keystore.secrets[name] = new
    else:
        with (
            vault.opened(deployment, keystore, report),
            vault_access.staff(deployment, keystore, access.OPERATOR) as client,
        ):
            vault_access.store(client, label, {name: new})
    del keystore.secrets[candidate]
    keystore.save()


def _opens(deployment: Deployment, label: str, pin: Secret) -> bool:
    """Whether an earlier call came so far that the token has this PIN."""
    try:
        Token.open(deployment.token(label), label, pin).close()
    except ConfigError as exc:
        if exc.code != "HSM_PIN":
            raise
        return False
    return True
