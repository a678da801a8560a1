"""Which vault a deployment's secrets are given to, and borrowed from: the one that the operator signed.

Whoever may write `deployment.toml` could name a vault of his own there, and be given the PINs of the tokens.
"""

from __future__ import annotations

import hashlib

import msgspec

from tallystick.runtime.deployment.folder import CONFIG_NAME, Deployment
from tallystick.schemas.errors import ConfigError
from tallystick.schemas.trust import TrustRoot, VaultTrust


def vault_terms(deployment: Deployment) -> VaultTrust | msgspec.UnsetType:
    """What the files say now of a vault by address.  Raises `ConfigError` where its CA cannot be read."""
    address, path = deployment.config.vault.address, deployment.vault_ca
    # A replay zone borrows nothing.
    if not address or "custody" not in deployment.bus().components:
        return msgspec.UNSET
    try:
        return VaultTrust(address=address, ca=hashlib.sha256(path.read_bytes()).hexdigest())
    except OSError as exc:
        raise ConfigError(
            "TLS_FILES", f"{path}: {exc.strerror}; it is to hold the CA that vouches for the vault, PEM"
        ) from exc


def require_signed_vault(deployment: Deployment, root: TrustRoot) -> None:
    """Raise `ConfigError` unless the files name the vault that the operator signed in `root`."""
    if vault_terms(deployment) != root.vault:
        raise unsigned(deployment, "vault", root)


def unsigned(deployment: Deployment, differs: str, root: TrustRoot) -> ConfigError:
    """What is said where files differ from what was signed."""
    where = deployment.policy if differs == "policy" else deployment.directory / CONFIG_NAME
    return ConfigError(
        "TERMS_UNSIGNED",
        f"{where}: {differs} differ from what the operator signed in trust root {root.number}: "
        f"take the change back, or have it signed with `tallystick admit {deployment.directory}`",
    )
