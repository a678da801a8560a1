"""Tokens by URI: SoftHSM by its own configuration, and through p11-kit, which is another module across a process boundary."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding

from tallystick.runtime.keys import hsm, inventory
from tallystick.runtime.keys.keystore import Secret
from tallystick.runtime.keys.module import module_path, softhsm
from tallystick.runtime.keys.token_process import TokenProcess
from tallystick.runtime.keys.uri import TokenUri, parse_token_uri
from tallystick.schemas.errors import ConfigError
from tests.support.waiting import until

PIN = Secret("module-test-pin-29c1")
SO_PIN = Secret("module-test-so-pin-77")
P11_KIT_CLIENT = (
    "/usr/lib/x86_64-linux-gnu/pkcs11/p11-kit-client.so",
    "/usr/lib/aarch64-linux-gnu/pkcs11/p11-kit-client.so",
    "/usr/lib64/pkcs11/p11-kit-client.so",
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("hsm") / "desk"
    hsm.create_token(directory, "desk", SO_PIN, PIN)
    return directory


@pytest.fixture(scope="module")
def conf(home: Path) -> Iterator[Path]:
    path = home.with_name("softhsm2.conf")
    path.write_text(f"directories.tokendir = {home / 'tokens'}\nobjectstore.backend = file\nlog.level = ERROR\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOFTHSM2_CONF", str(path))
        yield path


@pytest.fixture(scope="module")
def by_p11_kit(conf: Path) -> Iterator[Callable[[str], TokenUri]]:
    """Tokens that a p11-kit server of its own process offers on a socket."""
    client = next((path for path in P11_KIT_CLIENT if Path(path).is_file()), None)
    if client is None or shutil.which("p11-kit") is None:
        pytest.skip("p11-kit is not installed (Debian: p11-kit, p11-kit-modules)")
    address = conf.with_name("p11")
    server = subprocess.Popen(
        ["p11-kit", "server", "--foreground", "--provider", softhsm(), "--name", str(address), "pkcs11:token=desk"],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "SOFTHSM2_CONF": str(conf)},
    )
    try:
        asyncio.run(until(address.exists, "p11-kit's socket"))
        with pytest.MonkeyPatch.context() as patch:
            # Its module reads this when it is loaded.
            patch.setenv("P11_KIT_SERVER_ADDRESS", f"unix:path={address}")
            yield lambda attributes: parse_token_uri(f"pkcs11:{attributes}?module-path={client}")
    finally:
        server.terminate()
        server.wait(10)


def test_another_module_in_another_process_makes_imports_and_uses_keys(by_p11_kit: Callable[[str], TokenUri]) -> None:
    with hsm.Token.open(by_p11_kit("token=desk"), "custody", PIN, writable=True) as token:
        public = token.generate_p256(b"other/p256", "p256")
        public.verify(token.p256_signer(b"other/p256").sign(b"data"), b"data", ec.ECDSA(hashes.SHA256()))
        modulus = token.generate_rsa(b"other/rsa", "rsa")
        modulus.verify(token.rsa_signer(b"other/rsa").sign(b"data"), b"data", padding.PKCS1v15(), hashes.SHA256())
        token.import_mac(b"other/mac", "mac", b"k" * 64)
        assert len(token.mac_key(b"other/mac", "sha512").mac(b"data")) == 64
        # p11-kit 0.24 passes no Edwards curves on: a module that lacks something says what.
        with pytest.raises(ConfigError, match="HSM_MECHANISM"):
            token.generate_ed25519(b"other/ed", "ed")
        kinds = {key.name: key.kind for key in inventory.keys(token)}
        assert kinds == {"other/p256": "p256", "other/rsa": "rsa", "other/mac": "hmac"}


def test_a_token_is_found_by_what_its_uri_says_and_by_nothing_less(by_p11_kit: Callable[[str], TokenUri]) -> None:
    with hsm.Token.open(by_p11_kit("token=desk"), "custody", PIN) as token:
        serial = inventory.describe(token).serial
    with hsm.Token.open(by_p11_kit(f"serial={serial};model=SoftHSM%20v2"), "custody", PIN) as token:
        assert inventory.describe(token).label == "desk"
    for attributes in ("token=another", f"token=desk;serial={serial[::-1]}", "token=desk;model=YubiHSM"):
        with pytest.raises(ConfigError, match=r"HSM_TOKEN: .*0 tokens fit"):
            hsm.Token.open(by_p11_kit(attributes), "custody", PIN)


def test_the_process_of_a_token_is_given_what_its_module_needs_and_no_more(
    conf: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = parse_token_uri(f"pkcs11:token=desk?module-path={softhsm()}")
    with hsm.Token.open(uri, "custody", PIN, writable=True) as token:
        public = token.generate_ed25519(b"by-uri", "by uri")
    monkeypatch.setenv("SECRET_OF_THE_SHELL", "hunter2")
    with TokenProcess(msgspec.structs.replace(uri, env=("SOFTHSM2_CONF",)), "custody", PIN) as process:
        assert process.signer(b"by-uri").public == public
        environ = Path(f"/proc/{process._process.pid}/environ").read_bytes()
    assert str(conf).encode() in environ
    assert b"hunter2" not in environ


@pytest.mark.parametrize("mode", [0o777, 0o664])
def test_a_module_that_others_can_change_is_not_loaded(tmp_path: Path, mode: int) -> None:
    planted = tmp_path / "libplanted.so"
    planted.write_bytes(Path(softhsm()).read_bytes())
    planted.chmod(mode | 0o022)
    with pytest.raises(ConfigError, match=r"HSM_MODULE: .*changed by others"):
        hsm.Token.open(parse_token_uri(f"pkcs11:token=desk?module-path={planted}"), "custody", PIN)


def test_a_module_in_a_folder_that_others_can_change_is_not_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "lib"
    folder.mkdir()
    shutil.copy(softhsm(), folder / "libpkcs11.so")
    folder.chmod(0o777)
    with pytest.raises(ConfigError, match=r"HSM_MODULE: .*changed by others"):
        hsm.Token.open(parse_token_uri(f"pkcs11:token=desk?module-path={folder / 'libpkcs11.so'}"), "custody", PIN)


def test_a_sticky_module_that_all_may_write_is_not_loaded(tmp_path: Path) -> None:
    planted = tmp_path / "libplanted.so"
    shutil.copy(softhsm(), planted)
    planted.chmod(0o1777)
    with pytest.raises(ConfigError, match=r"HSM_MODULE: .*changed by others"):
        module_path(parse_token_uri(f"pkcs11:token=desk?module-path={planted}"))


def test_a_link_that_others_can_turn_leads_to_what_was_looked_at(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    link = folder / "libpkcs11.so"
    link.symlink_to(softhsm())
    uri = parse_token_uri(f"pkcs11:token=desk?module-path={link}")
    loaded = module_path(uri)
    # Turned between the look and the load: what is loaded is named without it.
    link.unlink()
    link.symlink_to(tmp_path / "libplanted.so")
    assert loaded == softhsm()
    link.unlink()
    link.symlink_to(link)
    with pytest.raises(ConfigError, match="HSM_MODULE"):
        module_path(uri)


@pytest.mark.parametrize(("name", "said"), [("none.so", "No such file"), (".", "is no file")])
def test_a_module_that_is_none_is_named(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(ConfigError, match="HSM_MODULE") as caught:
        hsm.Token.open(parse_token_uri(f"pkcs11:token=desk?module-path={tmp_path / name}"), "custody", PIN)
    assert said in caught.value.text
    text = tmp_path / "text.so"
    text.write_text("no library")
    text.chmod(0o644)
    with pytest.raises(ConfigError, match="is no PKCS#11 module"):
        hsm.Token.open(parse_token_uri(f"pkcs11:token=desk?module-path={text}"), "custody", PIN)
