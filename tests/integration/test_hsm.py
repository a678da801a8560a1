"""The HSM layer against a real SoftHSM."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pkcs11
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tallystick.runtime.keys import hsm, module
from tallystick.runtime.keys.keystore import Secret, hand_over
from tallystick.runtime.keys.token_process import TokenProcess
from tallystick.schemas.errors import ConfigError
from tallystick.venues.binance.request import RequestBuilder
from tests.support.custody import API_KEY, order, trust_root
from tests.support.world import NOW

PIN = Secret("unit-test-pin-29c1")
SO_PIN = Secret("unit-test-so-pin-77")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("hsm") / "unit"
    hsm.create_token(directory, "unit", SO_PIN, PIN)
    return directory


@pytest.fixture
def token(home: Path) -> Iterator[hsm.Token]:
    with hsm.Token.open(home, "unit", PIN, writable=True) as opened:
        yield opened


def test_an_ed25519_key_is_born_in_the_token_and_its_signatures_verify(token: hsm.Token) -> None:
    public = token.generate_ed25519(b"role/ed", "ed")
    signer = token.signer(b"role/ed")
    assert signer.public == public
    assert len(public) == 32
    Ed25519PublicKey.from_public_bytes(public).verify(signer.sign(b"statement"), b"statement")


def test_a_p256_key_is_born_in_the_token_and_its_signatures_verify(token: hsm.Token) -> None:
    public = token.generate_p256(b"ca", "ca")
    signature = token.p256_signer(b"ca").sign(b"to be signed")
    public.verify(signature, b"to be signed", ec.ECDSA(hashes.SHA256()))


def test_keys_survive_closing_and_reopening_in_another_token_order(
    token: hsm.Token, home: Path, tmp_path: Path
) -> None:
    public = token.generate_ed25519(b"stays", "stays")
    token.close()
    other = tmp_path / "other"
    hsm.create_token(other, "other", SO_PIN, PIN)
    with hsm.Token.open(other, "other", PIN, writable=True) as second:
        assert second.generate_ed25519(b"stays", "stays") != public
    with hsm.Token.open(home, "unit", PIN) as again:
        assert again.signer(b"stays").public == public


def test_tokens_survive_moving_their_folder(tmp_path: Path) -> None:
    hsm.create_token(tmp_path / "before", "moving", SO_PIN, PIN)
    with hsm.Token.open(tmp_path / "before", "moving", PIN, writable=True) as token:
        public = token.generate_ed25519(b"k", "k")
    (tmp_path / "before").rename(tmp_path / "after")
    with hsm.Token.open(tmp_path / "after", "moving", PIN) as token:
        assert token.signer(b"k").public == public


def test_a_key_id_is_used_once_also_across_key_types(token: hsm.Token) -> None:
    token.generate_ed25519(b"twice", "first")
    with pytest.raises(ConfigError, match="HSM_DUPLICATE"):
        token.generate_ed25519(b"twice", "second")
    with pytest.raises(ConfigError, match="HSM_DUPLICATE"):
        token.generate_p256(b"twice", "third")


def test_a_missing_key_is_named(token: hsm.Token) -> None:
    with pytest.raises(ConfigError, match=r"HSM_KEY: key 'role/none' of token 'unit': found 0 private and 0 public"):
        token.signer(b"role/none")


def test_a_missing_token_says_how_to_make_it(home: Path) -> None:
    with pytest.raises(ConfigError, match=r"HSM_TOKEN: .*'absent'.*tallystick init"):
        hsm.Token.open(home, "absent", PIN)


def test_a_missing_folder_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tallystick init"):
        hsm.Token.open(tmp_path / "nowhere", "unit", PIN)


def test_a_token_is_not_made_over_another(home: Path) -> None:
    with pytest.raises(ConfigError, match="HSM_TOKEN"):
        hsm.create_token(home, "unit", SO_PIN, PIN)


def test_a_second_token_in_the_same_process_is_refused_while_one_is_open(token: hsm.Token, home: Path) -> None:
    token.generate_ed25519(b"unharmed", "unharmed")
    with pytest.raises(ConfigError, match="HSM_BUSY"):
        hsm.Token.open(home, "unit", PIN)
    assert len(token.signer(b"unharmed").sign(b"x")) == 64


def test_a_signer_of_a_closed_token_refuses(token: hsm.Token, home: Path) -> None:
    token.generate_ed25519(b"closed", "closed")
    signer = token.signer(b"closed")
    token.close()
    token.close()
    with pytest.raises(ConfigError, match="HSM_CLOSED"):
        signer.sign(b"x")
    with hsm.Token.open(home, "unit", PIN), pytest.raises(ConfigError, match="HSM_CLOSED"):
        signer.sign(b"x")


def test_a_token_opened_for_signing_makes_no_keys(home: Path) -> None:
    with hsm.Token.open(home, "unit", PIN) as token, pytest.raises(ConfigError, match="HSM_FAILED"):
        token.generate_ed25519(b"readonly", "readonly")


def test_many_threads_may_sign_at_once(token: hsm.Token) -> None:
    public = Ed25519PublicKey.from_public_bytes(token.generate_ed25519(b"threads", "threads"))
    signer = token.signer(b"threads")
    signatures: list[tuple[bytes, bytes]] = []

    def work(number: int) -> None:
        for i in range(50):
            data = b"%d/%d" % (number, i)
            signatures.append((signer.sign(data), data))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(signatures) == 300
    for signature, data in signatures:
        public.verify(signature, data)


def test_a_child_process_opens_the_token_with_a_pin_from_a_descriptor(token: hsm.Token, home: Path) -> None:
    public = token.generate_ed25519(b"child", "child")
    fd = hand_over({"hsm.unit.pin": PIN})
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from tallystick.runtime.keys.hsm import Token\n"
        "from tallystick.runtime.keys.keystore import take_over\n"
        "secrets = take_over(int(sys.argv[2]))\n"
        "with Token.open(Path(sys.argv[1]), 'unit', secrets['hsm.unit.pin']) as token:\n"
        "    print(token.signer(b'child').sign(b'hello').hex())\n"
    )
    command = [sys.executable, "-P", "-c", code, str(home), str(fd)]
    done = subprocess.run(command, pass_fds=[fd], capture_output=True, text=True, check=True, timeout=30)
    os.close(fd)
    Ed25519PublicKey.from_public_bytes(public).verify(bytes.fromhex(done.stdout), b"hello")


def test_a_missing_module_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "SOFTHSM_PATHS", (str(tmp_path / "none.so"),))
    with pytest.raises(ConfigError, match="apt-get install softhsm2"):
        module.module_path(tmp_path)


def test_the_library_leaves_nothing_in_the_environment(token: hsm.Token) -> None:
    assert "SOFTHSM2_CONF" not in os.environ


def test_a_locked_token_says_who_can_unlock_it() -> None:
    # SoftHSM never locks a PIN: the error is raised here as another module would.
    def locked() -> None:
        raise pkcs11.PinLocked

    with pytest.raises(ConfigError, match=r"HSM_LOCKED: opening: .*security officer"):
        module.ask("opening", locked)


@pytest.mark.parametrize("label", ["", "x" * 33])
def test_labels_outside_pkcs11s_32_bytes_are_refused(label: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="HSM_LABEL"):
        hsm.create_token(tmp_path / "t", label, SO_PIN, PIN)
    assert not (tmp_path / "t").exists()


def test_a_second_token_is_used_at_the_same_time_through_a_process_of_its_own(token: hsm.Token, tmp_path: Path) -> None:
    token.generate_ed25519(b"first", "first")
    first = token.signer(b"first")
    token.close()
    hsm.create_token(tmp_path / "second", "second", SO_PIN, PIN)
    with hsm.Token.open(tmp_path / "second", "second", PIN, writable=True) as second:
        public = second.generate_ed25519(b"k", "k")
    with TokenProcess(tmp_path / "second", "second", PIN) as process:
        signer = process.signer(b"k")
        assert signer.public == public != first.public
        data = os.urandom(300_000)  # larger than any socket buffer
        Ed25519PublicKey.from_public_bytes(public).verify(signer.sign(data), data)
        with pytest.raises(ConfigError, match="HSM_KEY"):
            process.signer(b"none")
        Ed25519PublicKey.from_public_bytes(public).verify(signer.sign(b"goes on"), b"goes on")
        process._process.kill()
        with pytest.raises(ConfigError, match="HSM_PROCESS"):
            signer.sign(b"x")
    with pytest.raises(ConfigError, match="HSM_PROCESS"):
        signer.sign(b"x")


def test_a_token_process_says_why_its_token_does_not_open(home: Path) -> None:
    with pytest.raises(ConfigError, match="HSM_PIN"):
        TokenProcess(home, "unit", SO_PIN)
    with pytest.raises(ConfigError, match="HSM_TOKEN"):
        TokenProcess(home, "absent", PIN)


def test_a_token_process_ends_with_its_parent(home: Path) -> None:
    process = TokenProcess(home, "unit", PIN)
    assert PIN.reveal().encode() not in Path(f"/proc/{process._process.pid}/cmdline").read_bytes()
    assert PIN.reveal().encode() not in Path(f"/proc/{process._process.pid}/environ").read_bytes()
    process._connection.close()  # what the kernel does when a parent dies
    assert process._process.wait(10) == 0
    process.close()


def test_the_tokens_signature_under_a_request_to_the_venue_verifies(token: hsm.Token) -> None:
    public = token.generate_ed25519(b"venue", "venue")
    root = trust_root()
    builder = RequestBuilder(root.venues["paper"], root.instruments, API_KEY, token.signer(b"venue"), lambda: NOW)
    body = builder.order(root.instruments[0], order(quantity="7")).body
    payload, _, signature = body.rpartition("&signature=")
    Ed25519PublicKey.from_public_bytes(public).verify(b64decode(unquote(signature)), payload.encode())
    assert dict(p.split("=") for p in payload.split("&"))["quantity"] == "7"
