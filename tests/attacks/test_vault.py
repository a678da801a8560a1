"""Attacks on the vault's doors, on a real OpenBao: tokens, secret ids, paths, certificates, the files on the disk."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import ssl
import threading
import time
from pathlib import Path

import pytest

from tallystick.infra.vault import access
from tallystick.runtime.deployment import folder as layout
from tallystick.runtime.keys.keystore import Secret
from tallystick.runtime.vault import logins
from tallystick.runtime.vault.client import Grant, VaultAway, VaultClient, VaultRefused
from tallystick.schemas.errors import TallystickError
from tests.support.tls import make_server_tls
from tests.support.vault import VaultWorld
from tests.support.waiting import until

PIN = layout.pin_name("custody")


def code(caught: pytest.ExceptionInfo[TallystickError]) -> str:
    return caught.value.code


def enter(vault: VaultWorld, client: VaultClient, who: str = "custody") -> Grant:
    login = logins.AppRole(vault.role(who), logins.SecretIds(vault.vault.secret_id(who)))
    return login(client)


def test_a_component_reads_its_own_secret_and_the_same_login_serves_once(vault: VaultWorld) -> None:
    with vault.client("custody") as client, vault.client("custody") as thief:
        role = vault.role("custody")
        secret_id = client.unwrap_secret_id(vault.vault.secret_id("custody"), role)
        client.login("approle", {"role_id": role, "secret_id": secret_id})
        assert client.read("custody") == {
            name: vault.secrets[name] for name in vault.deployment.leased_names("custody")
        }
        with pytest.raises(VaultRefused) as caught:
            thief.login("approle", {"role_id": role, "secret_id": secret_id})
        assert code(caught) == "VAULT_DENIED"


def test_a_wrapping_token_that_somebody_else_unwrapped_is_found_out(vault: VaultWorld) -> None:
    with vault.client("custody") as client, vault.client("execution") as thief:
        wrapping = vault.vault.secret_id("custody")
        thief.unwrap_secret_id(wrapping, vault.role("custody"))
        with pytest.raises(VaultRefused) as caught:
            client.unwrap_secret_id(wrapping, vault.role("custody"))
    assert code(caught) == "VAULT_WRAPPING_USED"


def test_a_stolen_secret_id_is_destroyed_when_the_component_asks_again(vault: VaultWorld) -> None:
    with vault.client("custody") as client, vault.client("execution") as thief:
        role = vault.role("custody")
        stolen = thief.unwrap_secret_id(vault.vault.secret_id("custody"), role)
        enter(vault, client)
        with pytest.raises(VaultRefused):
            thief.login("approle", {"role_id": role, "secret_id": stolen})


def test_a_wrapping_of_something_else_is_refused_before_it_is_opened(vault: VaultWorld) -> None:
    """A secret id of the attacker's own would log the component in as somebody else."""
    with vault.client("custody") as client:
        with pytest.raises(VaultRefused) as caught:
            client.unwrap_secret_id(vault.vault.secret_id("portfolio"), vault.role("custody"))
        assert code(caught) == "VAULT_WRAPPING_FOREIGN"


def test_a_wrapping_token_that_was_made_up_opens_nothing(vault: VaultWorld) -> None:
    with vault.client("custody") as client, pytest.raises(VaultRefused) as caught:
        client.unwrap_secret_id(Secret("s.CBDUAqcSLrFyBDPmIzEFVqVy"), vault.role("custody"))
    assert code(caught) == "VAULT_WRAPPING_USED"


async def test_a_theft_of_the_wrapping_token_is_told_and_the_component_enters_with_the_next(vault: VaultWorld) -> None:
    stolen = vault.vault.secret_id("custody")
    with vault.client("execution") as thief:
        thief.unwrap_secret_id(stolen, vault.role("custody"))
    tokens = [stolen]

    class Given(logins.SecretIds):
        def __call__(self) -> Secret:
            return tokens.pop() if tokens else vault.vault.secret_id("custody")

    told: list[str] = []
    leased = vault.leased(login=logins.AppRole(vault.role("custody"), Given(None)), notice=lambda c, _: told.append(c))
    secrets = await leased.open()
    assert secrets[PIN] == vault.secrets[PIN]
    assert told == ["VAULT_WRAPPING_USED", "VAULT_BACK"]
    await leased.close()


@pytest.mark.parametrize("path", ["portfolio", "audit", "custody/more"])
def test_a_component_reads_no_other_path(vault: VaultWorld, path: str) -> None:
    with vault.client("custody") as client:
        enter(vault, client)
        assert client.read("custody")
        with pytest.raises(VaultRefused) as caught:
            client.read(path)
        assert code(caught) == "VAULT_DENIED"


@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("tallystick/data/custody", {"data": {PIN: "mine"}}),
        ("auth/approle/role/tallystick-custody/secret-id", {}),
        ("auth/token/create", {"policies": ["root"]}),
        ("sys/policies/acl/tallystick-custody", {"policy": 'path "*" { capabilities = ["sudo"] }'}),
        ("sys/rotate/root/init", {"secret_shares": 1, "secret_threshold": 1}),
        ("sys/audit/mine", {"type": "file", "options": {"file_path": "/dev/null"}}),
        ("sys/generate-root/attempt", {}),
        ("sys/seal", {}),
    ],
)
@pytest.mark.parametrize("who", ["custody", access.SUPERVISOR])
def test_neither_component_nor_supervisor_can_give_itself_more(
    vault: VaultWorld, who: str, path: str, data: dict[str, object]
) -> None:
    person = "operator" if who == access.SUPERVISOR else who
    with vault.client(person) as client:
        client.login("cert", {"name": vault.role(who)})
        with pytest.raises(TallystickError) as caught:
            client.put(path, data)
        # A method that is switched off for everybody answers otherwise than a path that is forbidden.
        assert code(caught) == "VAULT_DENIED" or "unsupported operation" in caught.value.text


def test_the_supervisor_reads_no_secret_and_gets_no_secret_id_without_a_wrapping(vault: VaultWorld) -> None:
    with vault.staff(access.SUPERVISOR) as client:
        assert client.wrap_secret_id(vault.role("custody"), access.WRAP_S).accessor
        for attempt in (
            lambda: client.read("custody"),
            lambda: client.put("auth/approle/role/tallystick-custody/secret-id", {}),
            lambda: client.wrap_secret_id(vault.role("custody"), 86_400),
        ):
            with pytest.raises(VaultRefused) as caught:
                attempt()
            assert code(caught) == "VAULT_DENIED"


def test_the_operator_changes_how_long_leases_are_and_nothing_else_of_a_role(vault: VaultWorld) -> None:
    role = f"auth/approle/role/{vault.role('custody')}"
    with vault.staff() as client:
        client.put(role, {"token_period": "3s"})
        for change in ({"token_policies": ["default", "tallystick-operator"]}, {"secret_id_num_uses": 0}):
            with pytest.raises(VaultRefused):
                client.put(role, change)


@pytest.mark.parametrize("who", ["custody", "execution", "gateway"])
def test_nobody_but_the_operator_enters_as_supervisor_or_operator(vault: VaultWorld, who: str) -> None:
    with vault.client(who) as client:
        for role in (access.SUPERVISOR, access.OPERATOR):
            with pytest.raises(VaultRefused):
                client.login("cert", {"name": vault.role(role)})


def test_nobody_enters_by_another_components_certificate_role(vault: VaultWorld) -> None:
    with vault.client("execution") as client, pytest.raises(VaultRefused):
        client.login("cert", {"name": vault.role("custody")})
    with vault.client("custody") as client:
        client.login("cert", {"name": vault.role("custody")})
        assert client.read("custody")


def test_a_revoked_token_reads_nothing(vault: VaultWorld) -> None:
    with vault.client("custody") as client:
        token = enter(vault, client).token
        assert client.read("custody")
        client.revoke()
        client.use(token)
        with pytest.raises(VaultRefused):
            client.read("custody")


async def test_a_token_that_was_not_renewed_reads_nothing(vault: VaultWorld) -> None:
    with vault.client("portfolio") as client:
        grant = enter(vault, client, "portfolio")
        assert grant.seconds == vault.deployment.config.vault.lease_s
        assert client.read("portfolio")

        def dead() -> bool:
            try:
                client.read("portfolio")
            except VaultRefused:
                return True
            return False

        await until(dead, timeout=4 * grant.seconds)


def test_a_root_token_of_the_set_up_is_nowhere_and_none_can_be_made(vault: VaultWorld) -> None:
    """The set-up asks whether it is dead (`VAULT_ROOT_ALIVE`); here what people could look for afterwards."""
    assert any("root token is revoked" in line for line in vault.said)
    with vault.staff() as client:
        # Who is there: nobody with the root policy lists anything; this is the most that anybody has.
        for path in (
            "auth/token/accessors?list=true",
            "sys/policies/acl?list=true",
            "sys/mounts",
            "sys/auth",
            "sys/audit",
        ):
            with pytest.raises(VaultRefused):
                client.get(path)
        for path in ("sys/generate-root/attempt", "sys/rekey/init"):
            with pytest.raises(TallystickError) as caught:
                client.put(path, {"secret_shares": 1, "secret_threshold": 1})
            assert "unsupported operation" in caught.value.text


def test_nothing_of_a_secret_lies_on_the_disk(vault: VaultWorld) -> None:
    """With a control: the same search finds what the vault does not encrypt."""
    secrets = {name: value.reveal().encode() for name, value in vault.secrets.items()}
    unseal = vault.keystore["vault.unseal"].reveal()
    secrets |= {"unseal": unseal.encode(), "unseal raw": bytes.fromhex(unseal)}
    folder = vault.deployment.directory
    paper = vault.deployment.paper_exchange
    found, controlled, searched = [], 0, 0
    for path in folder.rglob("*"):
        if path.is_file() and path != paper:
            data = path.read_bytes()
            searched += len(data)
            found += [(path, name) for name, value in secrets.items() if value in data]
            # Raft's log holds the names of entries in the clear.
            controlled += b"core/seal-config" in data
    assert found == []
    assert controlled, "the search sees what lies in the storage"
    assert searched > 1_000_000
    assert secrets["venue.custody.api_key"] in paper.read_bytes(), "the venue has to know it: the search can find it"


def test_the_audit_file_says_who_asked_for_what_and_holds_no_secret(vault: VaultWorld) -> None:
    path = vault.deployment.log("vault-audit")
    with vault.client("custody") as client:
        token = enter(vault, client).token
        client.read("custody")
    text = path.read_text()
    asked = [json.loads(line) for line in text.splitlines()]
    reads = [
        line for line in asked if line["request"]["path"] == "tallystick/data/custody" and line["type"] == "response"
    ]
    assert reads[-1]["auth"]["policies"] == ["default", "tallystick-custody"]
    assert reads[-1]["response"]["data"]["data"][PIN].startswith("hmac-sha256:")
    assert path.stat().st_mode & 0o077 == 0
    for hidden in (token, *vault.secrets.values(), vault.keystore["vault.unseal"]):
        assert hidden.reveal() not in text


def test_who_shows_no_certificate_of_the_deployment_is_not_even_heard(vault: VaultWorld, tmp_path: Path) -> None:
    for shown in (None, make_server_tls(tmp_path)):
        tls = ssl.create_default_context(cafile=vault.deployment.issuing_ca)
        tls.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        if shown is not None:
            tls.load_cert_chain(shown.certificate, shown.key)
        client = VaultClient(vault.deployment.vault_address(), tls, "tallystick")
        with pytest.raises(VaultAway):
            client.sealed()
        client.close()


def test_another_cas_server_gets_no_word_of_ours(vault: VaultWorld, tmp_path: Path) -> None:
    """The vault itself, to a client that trusts another CA: nothing is sent that the handshake did not allow."""
    asked = vault.deployment.log("vault-audit").stat().st_size
    with vault.client("custody", ca=make_server_tls(tmp_path).ca) as client, pytest.raises(VaultAway) as caught:
        client.login("approle", {"role_id": "tallystick-custody", "secret_id": Secret("never sent")})
    assert code(caught) == "VAULT_TLS"
    assert vault.deployment.log("vault-audit").stat().st_size == asked


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2])
def test_old_tls_is_refused_by_the_vault(vault: VaultWorld, version: ssl.TLSVersion) -> None:
    tls = vault.tls("custody")
    tls.minimum_version = tls.maximum_version = version
    client = VaultClient(vault.deployment.vault_address(), tls, "tallystick")
    with pytest.raises(VaultAway) as caught:
        client.sealed()
    assert code(caught) == "VAULT_TLS"
    client.close()


def test_a_vault_that_speaks_old_tls_alone_is_refused_by_us(vault: VaultWorld, tmp_path: Path) -> None:
    tls = make_server_tls(tmp_path)
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    old.load_cert_chain(tls.certificate, tls.key)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with listener.accept()[0] as plain, contextlib.suppress(OSError), old.wrap_socket(plain, server_side=True):
                pass

        thread = threading.Thread(target=serve)
        thread.start()
        client = VaultClient(
            f"https://127.0.0.1:{listener.getsockname()[1]}", vault.tls("custody", tls.ca), "tallystick"
        )
        with pytest.raises(VaultAway) as caught:
            client.sealed()
        thread.join()
        client.close()
    assert code(caught) == "VAULT_TLS"
    assert "version" in caught.value.text.lower() or "protocol" in caught.value.text.lower()


def test_nothing_of_the_environment_leads_the_client_astray(
    vault: VaultWorld, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in {
        "VAULT_ADDR": "https://127.0.0.1:1",
        "BAO_ADDR": "https://127.0.0.1:1",
        "VAULT_TOKEN": "s.attacker",
        "VAULT_CACERT": str(tmp_path / "none"),
        "REQUESTS_CA_BUNDLE": str(tmp_path / "none"),
        "HTTPS_PROXY": "http://127.0.0.1:1",
        "ALL_PROXY": "http://127.0.0.1:1",
        "HOME": str(tmp_path),
    }.items():
        monkeypatch.setenv(name, value)
    (tmp_path / ".vault-token").write_text("s.attacker")
    (tmp_path / ".netrc").write_text("default login a password b")
    with vault.client("custody") as client:
        assert client._hvac.token in ("", None)
        assert not client.sealed().sealed
        enter(vault, client)
        assert client.read("custody")


def test_a_process_of_the_same_user_reads_neither_memory_nor_variables_of_the_vault(vault: VaultWorld) -> None:
    status = Path(f"/proc/{vault.server.pid}")
    shown = (status / "cmdline").read_bytes()
    with contextlib.suppress(PermissionError):
        shown += (status / "environ").read_bytes()
    for secret in (*vault.secrets.values(), vault.keystore["vault.unseal"], vault.keystore["pki.vault.passphrase"]):
        assert secret.reveal().encode() not in shown
    limits = (status / "limits").read_text()
    # 1 where root runs it: a pipe of the kernel's would heed no 0 (`infra.child.harden`).
    assert re.search(r"Max core file size\s+[01]\s+[01]\s", limits)
    # What it read its key and its configuration from is empty once it has.
    for fd in range(100, 102):
        if os.geteuid() == 0:
            assert (status / "fd" / str(fd)).read_bytes() == b""


def test_a_flood_of_wrong_unseal_keys_does_not_unseal_or_disturb(vault: VaultWorld) -> None:
    started = time.monotonic()
    with vault.client("execution") as client:
        for number in range(20):
            client.unseal(Secret(f"{number:064x}"))
        assert not client.sealed().sealed
    assert time.monotonic() - started < 5
