"""A deployment whose secrets lie in somebody else's vault, set up as docs/vault.md says, on a real OpenBao."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from tallystick.cli import operate
from tallystick.cli.rotate import rotate
from tallystick.infra.vault import access
from tallystick.runtime.deployment import certificates, process, vault
from tallystick.runtime.deployment.admit import admit
from tallystick.runtime.deployment.config import MASTER
from tallystick.runtime.deployment.folder import CONFIG_NAME, Deployment, api_key_name, passphrase_name
from tallystick.runtime.deployment.template import ROTATION_TEMPLATE
from tallystick.runtime.deployment.vault_access import staff
from tallystick.runtime.keys.identity import client_context
from tallystick.runtime.keys.keystore import Keystore, Secret
from tallystick.runtime.vault import logins
from tallystick.runtime.vault.client import VaultClient, VaultRefused
from tallystick.schemas.errors import ConfigError
from tests.support.command import Done, tallystick
from tests.support.company_vault import CompanyVault, Impostor
from tests.support.rotating_desk import PIN, Desk, make, rotating_desk
from tests.support.scanner import Scanner
from tests.support.tls import HERE, make_server_tls
from tests.support.waiting import until

on_its_loop = pytest.mark.asyncio(loop_scope="module")
# Short enough to wait for its end, long enough for a busy machine.
LEASE_S = 6
WHO = ("custody", "portfolio")
MASTER_KEY = Secret("M" * 64)
OTHER_NAME = (x509.DNSName("vault.example.com"),)


class Made(NamedTuple):
    """`secrets`: what the keystore held before they moved."""

    deployment: Deployment
    keystore: Keystore
    secrets: dict[str, Secret]


def recipe(deployment: Deployment) -> str:
    done = tallystick("vault", "policies", deployment.directory)
    assert done.code == 0, done
    return done.out


@pytest.fixture(scope="module")
def company(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CompanyVault]:
    made = CompanyVault(tmp_path_factory.mktemp("company"))
    try:
        yield made
    finally:
        made.kill()


@pytest.fixture(scope="module")
def made(company: CompanyVault, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return point(company, tmp_path_factory.mktemp("v") / "a desk")


def signed(deployment: Deployment, keystore: Keystore) -> None:
    """The operator signs what the files say now."""
    admit(deployment, keystore, time.time_ns(), lambda _: None)


def point(company: CompanyVault, folder: Path, mount: str = "tallystick", auth: str = "approle") -> Made:
    """A deployment that has the company's vault, which got what the documents say; its secrets have moved there."""
    made, keystore = make(folder, rotation=False)
    table = f'[vault]\nlease_s = {LEASE_S}\naddress = "{company.address}"\nca = "vault-ca.pem"\n'
    table += f'mount = "{mount}"\nauth = "{auth}"\n'
    change(folder, f"[vault]\nport = {made.config.vault.port}\n", table)
    shutil.copy(company.tls.ca, folder / "vault-ca.pem")
    deployment = Deployment.load(folder)
    signed(deployment, keystore)
    company.run(recipe(deployment))
    secrets = {name: keystore[name] for who in WHO for name in deployment.leased_names(who)}
    vault.settle(deployment, keystore)
    return Made(deployment, keystore, secrets)


@pytest.fixture
def copy(made: Made, tmp_path: Path) -> Path:
    """Another folder of that deployment, to be spoilt."""
    return Path(shutil.copytree(made.deployment.directory, tmp_path / "desk"))


def up(desk: Path) -> Done:
    """`tallystick up`, which is to fail before the broker has stored anything."""
    done = tallystick("up", desk, pin=PIN.reveal())
    assert done.code == 2, done
    assert not any((desk / "nats" / "jetstream").iterdir()), "the broker was started"
    return done


def refused(done: Done, *wanted: str) -> None:
    assert done.out == ""
    (line,) = done.err.splitlines()
    assert [text for text in wanted if text not in line] == [], line


def change(desk: Path, old: str, new: str) -> None:
    path = desk / CONFIG_NAME
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def sign(desk: Path) -> None:
    signed(Deployment.load(desk), Keystore.open(desk / "keystore", PIN))


# -- what is wrong is said before anything starts ----------------------------------------------------


def test_a_vault_that_the_operator_did_not_sign_gets_nothing_and_lends_nothing(
    company: CompanyVault, made: Made, copy: Path, tmp_path: Path
) -> None:
    """Whoever may write `deployment.toml` names a vault of his own, whose CA he brings: it would be given the PINs."""
    tls = make_server_tls(tmp_path, HERE)
    with Impostor(0, tls) as impostor:
        change(copy, company.address, impostor.address)
        shutil.copy(tls.ca, copy / "vault-ca.pem")
        refused(up(copy), "TERMS_UNSIGNED", CONFIG_NAME, "vault", f"tallystick admit {copy}")
        deployment, keystore = Deployment.load(copy), Keystore.open(copy / "keystore", PIN)
        with pytest.raises(ConfigError, match="TERMS_UNSIGNED"):
            vault.DeploymentVault(deployment, keystore).secrets("custody")
        # Nor does a component that somebody starts alone ask it.
        secrets = {passphrase_name("custody"): keystore[passphrase_name("custody")]}
        with pytest.raises(ConfigError, match="TERMS_UNSIGNED"):
            process.load_setup(copy, "custody", secrets)
        assert (impostor.tried, impostor.heard) == (0, b"")


def test_another_ca_than_the_signed_one_vouches_for_no_vault(copy: Path, tmp_path: Path) -> None:
    shutil.copy(make_server_tls(tmp_path).ca, copy / "vault-ca.pem")
    refused(up(copy), "TERMS_UNSIGNED", "vault")


def test_an_address_without_https_is_refused(company: CompanyVault, copy: Path) -> None:
    change(copy, company.address, company.address.replace("https", "http"))
    refused(up(copy), "DEPLOYMENT_FILE", CONFIG_NAME, "vault.address must be https://HOST:PORT")


def test_a_host_that_nobody_knows_is_named(company: CompanyVault, copy: Path) -> None:
    change(copy, company.address, "https://vault.invalid:8200")
    sign(copy)
    refused(up(copy), "VAULT_UNREACHABLE", "https://vault.invalid:8200", "resolve", "is that its address?")


def test_a_ca_that_is_not_there_or_none_is_named(copy: Path) -> None:
    path = copy / "vault-ca.pem"
    path.write_text("nothing of it\n")
    sign(copy)
    refused(up(copy), "TLS_FILES", str(path), "it is to hold the CA")
    path.unlink()
    refused(up(copy), "TLS_FILES", str(path), "No such file", "it is to hold the CA")


def test_a_sealed_vault_is_said_to_be_sealed_and_not_ours_to_open(company: CompanyVault, copy: Path) -> None:
    with company.administrator() as administrator:
        administrator.put("sys/seal", {})
    try:
        refused(up(copy), "VAULT_SEALED", company.address, "whoever has its unseal key opens it")
        for command in ("unseal", "reshare"):
            done = tallystick("vault", command, copy, pin=PIN.reveal())
            assert done.code == 2
            refused(done, "VAULT_YOURS", company.address)
    finally:
        company.unseal()


def test_a_vault_that_nobody_prepared_is_told_what_to_run(company: CompanyVault, copy: Path) -> None:
    change(copy, 'mount = "tallystick"', 'mount = "elsewhere"')
    refused(up(copy), "VAULT_DENIED", company.address, f"`tallystick vault policies {copy}`")


def test_a_secret_that_is_not_there_is_named(company: CompanyVault, made: Made, copy: Path) -> None:
    with company.administrator() as administrator:
        kept = administrator.read("portfolio")
        administrator.write("portfolio", {name: kept[name] for name in kept if "api_key" in name})
        try:
            refused(up(copy), "VAULT_SECRET_MISSING", company.address, "hsm.portfolio.pin", "tallystick/portfolio")
        finally:
            administrator.write("portfolio", kept)


# -- somebody else at its address --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["of another CA", "of another name"])
def test_another_server_at_its_address_gets_no_login_and_no_secret(
    kind: str, company: CompanyVault, copy: Path, tmp_path: Path
) -> None:
    """The second is vouched for by the right CA, under another name."""
    tls = make_server_tls(tmp_path, OTHER_NAME if kind == "of another name" else HERE)
    if kind == "of another name":
        shutil.copy(tls.ca, copy / "vault-ca.pem")
    with Impostor(0, tls) as impostor:
        change(copy, company.address, impostor.address)
        sign(copy)
        refused(up(copy), "VAULT_TLS", impostor.address, "mismatch" if kind == "of another name" else "issuer")
        assert (impostor.tried, impostor.heard) == (1, b"")


def test_with_a_wrong_ca_the_true_vault_hears_nothing(company: CompanyVault, copy: Path, tmp_path: Path) -> None:
    shutil.copy(make_server_tls(tmp_path).ca, copy / "vault-ca.pem")
    sign(copy)
    before = company.audit.stat().st_size
    refused(up(copy), "VAULT_TLS", company.address, "certificate verify failed")
    assert company.audit.stat().st_size == before


# -- who may read what -------------------------------------------------------------------------------


class Entered:
    """What a component, or the operator, may do there with the token that it gets."""

    def __init__(self, company: CompanyVault, made: Made) -> None:
        self._made = made
        self._mount = made.deployment.config.vault.mount
        self._address = company.address

    def client(self, who: str) -> VaultClient:
        """Not logged in, with that certificate."""
        deployment, keystore, _ = self._made
        certificates.ensure(deployment, keystore, (who,), time.time_ns())
        tls = client_context(deployment.vault_ca, deployment.identity(who), keystore[passphrase_name(who)])
        return VaultClient(self._address, tls, self._mount)

    def role(self, who: str) -> str:
        return access.role_name(self._mount, who)


@pytest.fixture
def doors(company: CompanyVault, made: Made) -> Entered:
    return Entered(company, made)


@pytest.mark.parametrize("way", ["approle", "certificate"])
@pytest.mark.parametrize(("who", "other"), [("custody", "portfolio"), ("portfolio", "custody")])
def test_a_components_role_there_reads_its_own_secret_and_no_others(
    who: str, other: str, way: str, made: Made, doors: Entered
) -> None:
    client = doors.client(who)
    secret_ids = logins.SecretIds(vault.DeploymentVault(made.deployment, made.keystore).secret_id(who))
    login = logins.AppRole(doors.role(who), secret_ids) if way == "approle" else logins.Certificate(doors.role(who))
    login(client)
    assert client.read(who) == {name: made.secrets[name] for name in made.deployment.leased_names(who)}
    for attempt in (
        lambda: client.read(other),
        lambda: client.write(other, {"x": Secret("y")}),
        lambda: client.write(who, {"x": Secret("y")}),
        lambda: client.wrap_secret_id(doors.role(other), 10),
        lambda: client.get("sys/mounts"),
        lambda: doors.client(who).login("cert", {"name": doors.role(other)}),
    ):
        with pytest.raises(VaultRefused):
            attempt()
    client.close()


def test_our_operator_and_supervisor_have_no_power_over_the_companys_vault(company: CompanyVault, made: Made) -> None:
    """In the embedded vault the operator changes the unseal key and the leases: here both are the company's."""
    role = "auth/approle/role/tallystick-custody"
    for name in (access.OPERATOR, access.SUPERVISOR):
        with staff(made.deployment, made.keystore, name) as client:
            for path, data in (
                ("sys/rotate/root/init", {"secret_shares": 1, "secret_threshold": 1}),
                (role, {"token_period": "3600s"}),
                ("auth/cert/certs/tallystick-custody", {"token_period": "3600s"}),
                ("sys/policies/acl/tallystick-operator", {"policy": 'path "*" { capabilities = ["read"] }'}),
                ("sys/seal", {}),
            ):
                with pytest.raises(VaultRefused):
                    client.put(path, data)
            if name == access.SUPERVISOR:
                with pytest.raises(VaultRefused):
                    client.read("custody")
    with company.administrator() as administrator:
        assert administrator.get(role)["token_period"] == LEASE_S


# -- it runs -----------------------------------------------------------------------------------------


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def desk(made: Made) -> AsyncIterator[Desk]:
    async with rotating_desk(made.deployment, made.keystore) as running:
        yield running


@on_its_loop
async def test_orders_are_signed_and_filled_with_secrets_that_lie_in_that_vault_alone(
    company: CompanyVault, made: Made, desk: Desk
) -> None:
    deployment, _, secrets = made
    await until(lambda: desk.fills, "a fill", 30)
    for component in WHO:
        asked = company.requests(f"tallystick/data/{component}")
        policies = [line["auth"]["policies"] for line in asked if line["request"]["operation"] == "read"]
        assert any(f"tallystick-{component}" in held for held in policies), component
    assert not deployment.vault.exists()
    assert not deployment.vault_port.exists()
    assert set(secrets) & set(Keystore.open(deployment.keystore, PIN).secrets) == set()
    scanner = Scanner({name: value.reveal().encode() for name, value in secrets.items()})
    found = scanner.files(deployment.directory) | scanner.files(company.folder)
    # The venue has to know the names of the keys: the search finds what is there.
    assert found == {(deployment.paper_exchange.name, api_key_name(who)) for who in WHO}


@on_its_loop
async def test_work_goes_on_until_the_lease_ends_whoever_takes_the_vaults_place_hears_nothing_and_all_comes_back(
    company: CompanyVault, desk: Desk, tmp_path: Path
) -> None:
    begun = company.audit.stat().st_size

    def renewed() -> bool:
        new = company.audit.read_bytes()[begun:].splitlines()
        wanted = (b'"type":"response"', b'"auth/token/renew-self"', b'"tallystick-custody"')
        return any(all(text in line for text in wanted) for line in new)

    def told(code: str, component: str = "custody") -> bool:
        return (component, code) in desk.codes

    def denied() -> int:
        return sum(event.code == "VAULT_LEASE_ENDED" for event in desk.orders)

    await until(renewed, "a renewal", 60)
    # It is written down before it is answered.  A whole lease from here.
    await desk.trades(1)
    company.kill()
    await desk.trades(1)
    assert not told("VAULT_LEASE_ENDED")
    resting = {e.client_order_id for e in desk.orders if e.state == "accepted" and e.status == "NEW"}
    assert resting
    with Impostor(company.port, make_server_tls(tmp_path)) as impostor:
        await until(lambda: told("VAULT_LEASE_ENDED"), lambda: str(desk.told[-3:]), 60)
        assert told("VAULT_TLS"), desk.codes
        await until(lambda: denied() > 0, lambda: str(desk.orders[-3:]), 30)
        # What was signed before has come to its end when the next ones are refused.
        mark, before = len(desk.orders), denied()
        await until(lambda: denied() > before + 2, lambda: str(desk.orders[-3:]), 30)
        # Cancels are signed all the same.
        await operate.kill(desk.deployment, "all", "the vault is away")
        await until(lambda: any(e.status == "CANCELED" for e in desk.orders[mark:]), lambda: str(desk.orders[-3:]), 30)
        assert not [e for e in desk.orders[mark:] if e.state == "accepted"]
        await until(lambda: impostor.tried > 3)
        assert impostor.heard == b""
    company.start()
    await asyncio.to_thread(company.unseal)
    await until(lambda: told("VAULT_BACK") and told("VAULT_BACK", "portfolio"), lambda: str(desk.told[-3:]), 60)
    await operate.rearm(desk.deployment, desk.keystore, "all")
    await desk.trades(3)


# -- a keymaster that comes later ----------------------------------------------------------------------


@pytest.mark.slow
async def test_a_keymaster_that_comes_later_is_refused_until_the_vault_has_its_role_and_then_changes_keys_there(
    company: CompanyVault, tmp_path: Path
) -> None:
    """`[rotation]` is added as docs/rotation.md says, with the keymaster's key at the paper exchange.

    Here components enter by their certificates, and beside another deployment's secrets: under a mount of their own.
    """
    by_secret_id = company.requests("auth/approle/login")
    before = point(company, tmp_path / "desk", "later", "certificate")
    folder = before.deployment.directory
    path = folder / CONFIG_NAME
    path.write_text(path.read_text() + ROTATION_TEMPLATE)
    done = tallystick("admit", folder, pin=PIN.reveal())
    assert "new: keymaster" in done.out, done
    shown = tallystick("api-key", folder, "keymaster", pin=PIN.reveal())
    deployment = Deployment.load(folder)
    keystore = Keystore.open(deployment.keystore, PIN)
    operate.set_api_key(keystore, "keymaster", MASTER_KEY)
    at_paper_exchange(deployment, shown.out)
    refused(up(folder), "VAULT_DENIED", company.address, f"`tallystick vault policies {folder}`")
    company.run(recipe(deployment))
    vault.settle(deployment, keystore)
    async with rotating_desk(deployment, keystore) as desk:
        old = await desk.in_use("custody")
        steps: list[str] = []
        assert await rotate(deployment, keystore, "custody", steps.append), steps
        assert await desk.in_use("custody") != old
        await desk.trades()
    asked = company.requests("later/data/custody")
    assert [line for line in asked if line["request"]["operation"] == "patch" and not line.get("error")]
    assert company.requests("auth/approle/login") == by_secret_id


def at_paper_exchange(deployment: Deployment, pem: str) -> None:
    """The master account, and the keymaster's key there, as `init --rotation` writes them."""
    public = load_pem_public_key(pem.encode()).public_bytes(Encoding.Raw, PublicFormat.Raw)
    assert deployment.config.rotation is not None
    exchange = json.loads(deployment.paper_exchange.read_bytes())
    exchange["accounts"][MASTER] = {}
    exchange["sub_accounts"] = {deployment.config.rotation.sub_account: {"master": MASTER, "account": "main"}}
    exchange["keys"].append(
        {
            "api_key": MASTER_KEY.reveal(),
            "public_key": base64.b64encode(public).decode(),
            "account": MASTER,
            "permissions": ["read", "manage"],
            "ips": ["127.0.0.1"],
            "listen_keys": False,
        }
    )
    deployment.paper_exchange.write_text(json.dumps(exchange))
