"""A keymaster that comes into a deployment which has its vault already."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tallystick.cli.operate import public_key
from tallystick.runtime.deployment import folder, vault
from tallystick.runtime.deployment.admit import admit
from tallystick.runtime.deployment.certificates import ensure
from tallystick.runtime.deployment.folder import CONFIG_NAME, Deployment, passphrase_name
from tallystick.runtime.deployment.template import ROTATION_TEMPLATE
from tallystick.runtime.keys.identity import Identity
from tallystick.runtime.keys.keystore import Keystore
from tallystick.runtime.vault.client import VaultClient, VaultRefused
from tallystick.runtime.vault.logins import Certificate
from tallystick.schemas.errors import ConfigError
from tests.support.deployment import make


def with_rotation(deployment: Deployment) -> Deployment:
    path = deployment.directory / CONFIG_NAME
    path.write_text(path.read_text() + ROTATION_TEMPLATE)
    return Deployment.load(deployment.directory)


def vault_of(deployment: Deployment, keystore: Keystore, component: str) -> VaultClient:
    """Who shows the component's certificate to the vault."""
    identity = Identity(
        deployment.name, deployment.issuing_ca, deployment.identity(component), keystore[passphrase_name(component)]
    )
    return VaultClient(deployment.vault_address(), identity.client(deployment.vault_ca), "tallystick")


def test_a_keymaster_that_is_added_later_finds_its_place_in_the_vault(tmp_path: Path) -> None:
    made, keystore = make(tmp_path / "desk")
    vault.settle(made, keystore)
    deployment = with_rotation(made)
    assert admit(deployment, keystore, time.time_ns(), lambda _: None).added == ("keymaster",)
    assert "-----BEGIN PUBLIC KEY-----" in public_key(deployment, keystore, "keymaster")
    vault.settle(deployment, keystore)
    # Its PIN has moved there: a trust root is signed without it.
    assert "hsm.keymaster.pin" not in keystore.secrets
    assert admit(deployment, keystore, time.time_ns(), lambda _: None).added == ()
    ensure(deployment, keystore, ("custody", "keymaster"), time.time_ns())
    with vault.opened(deployment, keystore, lambda _: None):
        keymaster, custody = (vault_of(deployment, keystore, name) for name in ("keymaster", "custody"))
        try:
            Certificate("tallystick-keymaster")(keymaster)
            assert "hsm.keymaster.pin" in keymaster.read("keymaster")
            with pytest.raises(VaultRefused, match="VAULT_DENIED"):
                keymaster.read("custody")
            # The place is there for everybody's vault, and for nobody without its certificate.
            with pytest.raises(VaultRefused):
                Certificate("tallystick-keymaster")(custody)
        finally:
            keymaster.close()
            custody.close()


def test_a_vault_of_an_early_version_takes_no_keymaster_and_nothing_is_in_force_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, keystore = make(tmp_path / "desk")
    with monkeypatch.context() as early:
        early.setattr(folder, "LEASED", ("custody", "portfolio"))
        vault.settle(made, keystore)
    deployment = with_rotation(made)
    with pytest.raises(ConfigError, match="ROTATION_VAULT"):
        admit(deployment, keystore, time.time_ns(), lambda _: None)
    assert len(deployment.load_trust()) == 1
