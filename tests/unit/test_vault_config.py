"""`[vault]` in deployment.toml, and what the vault lets whom do, as files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tallystick.infra.vault.access import policies
from tallystick.runtime.deployment.config import Config, VaultConfig, parse_config
from tallystick.runtime.deployment.folder import Deployment
from tallystick.runtime.deployment.template import DEFAULT_TEMPLATE
from tallystick.runtime.deployment.vault_access import recipe
from tallystick.schemas.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
YOURS = 'address = "https://vault.example.com:8200"\nca = "ca.pem"\n'


def config(vault: str | None) -> Config:
    text = DEFAULT_TEMPLATE.format(deployment='"desk"', broker=1, authority=2, vault=3, venue=4)
    return parse_config(
        text.replace("[vault]\nport = 3\n", "" if vault is None else f"[vault]\n{vault}"), "deployment.toml"
    )


def test_without_the_table_it_is_the_embedded_one() -> None:
    assert config(None).vault == VaultConfig(port=0, auth="approle", mount="tallystick", lease_s=300)


def test_yours_is_found_by_its_address() -> None:
    made = Deployment(Path("/desk"), config(YOURS))
    assert made.vault_address() == "https://vault.example.com:8200"
    assert made.vault_ca == Path("/desk/ca.pem")


@pytest.mark.parametrize(
    "wrong",
    [
        'address = "https://vault.example.com:8200"',
        'ca = "ca.pem"',
        YOURS.replace("https", "http"),
        YOURS.replace(":8200", ""),
        YOURS.replace(":8200", ":8200/v1"),
        YOURS.replace("//", "//user:pin@"),
        YOURS.replace(":8200", ":0"),
        f"{YOURS}port = 8200",
        'auth = "kubernetes"',
        'auth = "token"',
        'token = "s.xyz"',
        'mount = "../sys"',
        "lease_s = 0",
        "lease_s = 100000",
        "port = 70000",
    ],
)
def test_what_does_not_fit_together_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match="DEPLOYMENT_FILE"):
        config(wrong)


def test_the_policies_beside_the_code_are_the_ones_that_a_vault_of_yours_is_told() -> None:
    files = {path.stem: path.read_text() for path in (ROOT / "infra" / "vault" / "policies").glob("*.hcl")}
    assert files == policies("tallystick", ("custody", "portfolio", "keymaster"), embedded=False)


def test_a_vault_of_yours_is_told_the_same_policies_and_roles() -> None:
    text = "\n".join(recipe(Deployment(Path("/desk"), config(YOURS + 'mount = "desk-kv"\n'))))
    for hcl in policies("desk-kv", ("custody", "portfolio"), embedded=False).values():
        assert hcl.rstrip() in text
    for line in (
        (
            "bao write auth/cert/certs/desk-kv-custody certificate=@/desk/pki/ca.pem "
            "allowed_uri_sans=spiffe://desk/custody token_policies=desk-kv-custody token_period=300s"
        ),
        (
            "bao write auth/approle/role/desk-kv-portfolio role_id=desk-kv-portfolio secret_id_num_uses=1 "
            "secret_id_ttl=60s token_policies=desk-kv-portfolio token_period=300s"
        ),
    ):
        assert line in text.splitlines()
