"""A new unseal key for the vault: for the keystore, or in shares for people.

- Until `Reshare.confirm` the old key counts, and a crash leaves it so; what an abandoned change left is not used.
- A key that the keystore is to hold lies there before it counts; the old one is deleted there afterwards.
- Whoever has the deployment up knows the key of its own start.
"""

from __future__ import annotations

from collections.abc import Sequence

from tallystick.infra.vault import access
from tallystick.runtime.deployment.folder import Deployment
from tallystick.runtime.deployment.vault import UNSEAL, UNSEAL_NEXT
from tallystick.runtime.deployment.vault_access import staff
from tallystick.runtime.keys.keystore import Keystore, Secret
from tallystick.runtime.vault import setup


class Reshare:
    """A change of the unseal key: made and shown, then confirmed.  `new`: its shares."""

    def __init__(
        self, deployment: Deployment, keystore: Keystore, shares: int, threshold: int, given: Sequence[Secret]
    ) -> None:
        """`given`: enough of the old shares, none where the keystore has the key.  Raises `VaultAway`, `VaultRefused`."""
        self._deployment = deployment
        self._keystore = keystore
        old = tuple(given) or (keystore[UNSEAL],)
        with staff(deployment, keystore, access.OPERATOR) as client:
            self.new = setup.reshare(client, old, shares, threshold)
        if len(self.new) == 1:
            keystore.secrets[UNSEAL_NEXT] = self.new[0]
            keystore.save()

    def confirm(self) -> None:
        """Let the new key count.  Raises `VaultAway`, `VaultRefused`."""
        with staff(self._deployment, self._keystore, access.OPERATOR) as client:
            setup.confirm(client, self.new)
        for name in (UNSEAL, UNSEAL_NEXT):
            self._keystore.secrets.pop(name, None)
        if len(self.new) == 1:
            self._keystore.secrets[UNSEAL] = self.new[0]
        self._keystore.save()
