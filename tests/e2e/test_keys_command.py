"""`tallystick keys`, as a person types it, on a deployment whose custody has a token of its own configuration."""

from __future__ import annotations

import json
import os
from base64 import b64encode
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from tallystick.runtime.deployment.config import TOKENS
from tallystick.runtime.deployment.folder import Deployment, pin_name
from tallystick.runtime.keys import hsm
from tallystick.runtime.keys.keystore import Keystore, Secret
from tallystick.runtime.keys.module import softhsm
from tests.support.command import Done, tallystick
from tests.support.deployment import PIN

TOKEN_PIN = Secret("the desk's own token")


@pytest.fixture(scope="module")
def conf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A token that is not in the deployment's folder: SoftHSM by its own configuration, as another module would be."""
    home = tmp_path_factory.mktemp("elsewhere")
    hsm.create_token(home / "token", "desk", Secret("officer's own pin"), TOKEN_PIN)
    path = home / "softhsm2.conf"
    path.write_text(
        f"directories.tokendir = {home / 'token' / 'tokens'}\nobjectstore.backend = file\nlog.level = ERROR\n"
    )
    return path


@pytest.fixture(scope="module")
def desk(conf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("keys") / "desk"
    uri = f"custody=pkcs11:token=desk?module-path={softhsm()}"
    pins = f"{PIN.reveal()}\n{TOKEN_PIN.reveal()}"
    done = tallystick("init", directory, "--token", uri, pin=pins, env={"SOFTHSM2_CONF": str(conf)})
    assert done.code == 0, done.err
    return directory


class Keys:
    """`tallystick keys COMMAND DESK …`."""

    def __init__(self, desk: Path, conf: Path) -> None:
        self.desk = desk
        self._env = {"SOFTHSM2_CONF": str(conf)}

    def __call__(self, command: str, *arguments: object, pin: str = PIN.reveal(), secret: str | None = None) -> Done:
        return tallystick("keys", command, self.desk, *arguments, pin=pin, secret=secret, env=self._env)


@pytest.fixture
def keys(desk: Path, conf: Path) -> Keys:
    return Keys(desk, conf)


def test_init_makes_its_keys_in_the_token_that_the_uri_names(desk: Path, keys: Keys) -> None:
    deployment = Deployment.load(desk)
    assert not (deployment.tokens / "custody").exists()
    assert Keystore.open(deployment.keystore, PIN)[pin_name("custody")] == TOKEN_PIN
    done = keys("list", "--format", "json")
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in done.out.splitlines()]
    venue = next(row for row in rows if (row["token"], row["id"]) == ("custody", "venue"))
    assert (venue["kind"], venue["days"], venue["born"], venue["leaves"]) == ("ed25519", 0, "inside", "never")
    assert {row["token"] for row in rows} == set(TOKENS)
    assert TOKEN_PIN.reveal() not in done.out + done.err + (desk / "deployment.toml").read_text()


def test_a_key_is_made_attested_checked_and_destroyed(keys: Keys, tmp_path: Path) -> None:
    for kind in ("ed25519", "p256", "secp256k1", "rsa"):
        made = keys("generate", "custody", f"new-{kind}", "--kind", kind)
        assert made.code == 0, made.err
        public = load_pem_public_key(made.out.encode())
        attested = keys("attest", "custody", f"new-{kind}", "--challenge", "c1")
        assert attested.code == 0, attested.err
        said = json.loads(attested.out)
        raw = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        assert raw.hex().endswith(said["key"]["public"])
        file = tmp_path / f"{kind}.json"
        file.write_text(attested.out)
        checked = tallystick("keys", "check", file, "--challenge", "c1")
        assert checked.code == 0
        assert "was born inside token 'desk'" in checked.out
        assert tallystick("keys", "check", file, "--challenge", "c2").code == 1
        refused = keys("destroy", "custody", f"new-{kind}")
        assert refused.code == 2
        assert "--yes" in refused.err
        assert keys("destroy", "custody", f"new-{kind}", "--yes").code == 0
    assert "new-" not in keys("list", "custody").out


def test_a_key_that_the_deployment_runs_with_is_not_destroyed(keys: Keys) -> None:
    for token, key_id in (
        ("custody", "venue"),
        ("operator", "operator-root"),
        ("roles", "role/gateway"),
        ("roles", "issuing-ca/1"),
        ("signing", "account/strategy-momentum"),
    ):
        done = keys("destroy", token, key_id, "--yes")
        assert done.code == 2
        assert "KEY_IN_USE" in done.err


def test_imports_are_read_from_a_descriptor_and_shown_as_what_came_from_outside(keys: Keys) -> None:
    private = rsa.generate_private_key(65537, 2048)
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    secret = b64encode(os.urandom(48)).decode()
    for key_id, kind, text in (("in-rsa", "pem", pem), ("in-mac", "hmac-sha512", secret)):
        done = keys("import", "custody", key_id, "--kind", kind, secret=text)
        assert done.code == 0, done.err
        assert "destroy every other copy" in done.out
        assert text not in done.out + done.err
    rows = [json.loads(line) for line in keys("list", "custody", "--format", "json").out.splitlines()]
    found = {row["id"]: (row["kind"], row["born"], row["leaves"]) for row in rows}
    assert found["in-rsa"] == ("rsa", "outside", "never")
    assert found["in-mac"] == ("hmac", "outside", "never")


def test_a_secret_comes_in_as_the_exchange_gives_it_out(keys: Keys) -> None:
    secret = b64encode(os.urandom(64)).decode()
    done = keys("import", "custody", "kraken", "--exchange", "kraken", secret=secret)
    assert done.code == 0, done.err
    assert "kraken/base64/sha512: unwrapped" in done.out
    rows = [json.loads(line) for line in keys("list", "custody", "--format", "json").out.splitlines()]
    assert [row["kind"] for row in rows if row["id"] == "kraken/base64/sha512"] == ["hmac"]
    for exchange, kind, text, code in (
        ("kraken", "", "hunter2 is no base64", "KEY_INPUT"),
        ("kraken", "rsa", secret, "EXCHANGE_UNSIGNABLE"),
        ("luno", "", "hunter2", "EXCHANGE_UNSIGNABLE"),
    ):
        refused = keys("import", "custody", "bad", "--exchange", exchange, "--kind", kind, secret=text)
        assert (refused.code, code in refused.err, "hunter2" in refused.err) == (2, True, False), refused.err


@pytest.mark.parametrize(
    ("kind", "text", "code"),
    [
        ("pem", "-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----", "KEY_INPUT"),
        ("pem", "", "KEY_INPUT"),
        ("pem", "x" * 20_000, "KEY_INPUT"),
        ("hmac-md5", "hunter2", "KEY_KIND"),
    ],
)
def test_what_is_no_key_is_refused_and_not_repeated(keys: Keys, kind: str, text: str, code: str) -> None:
    done = keys("import", "custody", "bad", "--kind", kind, secret=text)
    assert done.code == 2
    assert code in done.err
    assert "hunter2" not in done.out + done.err
    assert done.err.count("\n") == 1


def test_the_pin_of_a_token_is_kept_only_if_it_opens_it(keys: Keys) -> None:
    wrong = keys("pin", "custody", pin=f"{PIN.reveal()}\nhunter2-wrong")
    assert wrong.code == 2
    assert "HSM_PIN" in wrong.err
    assert "hunter2" not in wrong.err
    assert Keystore.open(Deployment.load(keys.desk).keystore, PIN)[pin_name("custody")] == TOKEN_PIN
    kept = keys("pin", "custody", pin=f"{PIN.reveal()}\n{TOKEN_PIN.reveal()}")
    assert kept.code == 0, kept.err


@pytest.mark.parametrize(
    ("token", "said"),
    [
        ("custody", "LABEL=URI"),
        ("vault=pkcs11:token=a?module-path=/m.so", "LABEL is one of"),
        ("custody=pkcs11:token=a?module-path=/m.so&pin-value=hunter2", "pin-value is not taken"),
    ],
)
def test_a_token_option_that_is_none_asks_for_no_pin(tmp_path: Path, token: str, said: str) -> None:
    done = tallystick("init", tmp_path / "desk", "--token", token)
    assert done.code == 2
    assert said in done.err
    assert "hunter2" not in done.err
    assert list(tmp_path.iterdir()) == []
