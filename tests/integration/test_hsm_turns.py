"""Several processes at one SoftHSM token: none leaves half a key, and none that stays keeps the others waiting for ever."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tallystick.runtime.keys import hsm, inventory, turns
from tallystick.runtime.keys.keystore import Secret
from tallystick.schemas.errors import ConfigError

PIN = Secret("turns-test-pin-29c1")
MAKES = """
import sys
from pathlib import Path
from tallystick.runtime.keys.hsm import Token
from tallystick.runtime.keys.keystore import Secret
with Token.open(Path(sys.argv[1]), "turns", Secret(sys.stdin.readline().strip()), writable=True) as token:
    for number in range(150):
        token.generate_ed25519(b"made-%d" % number, "made")
        if number:
            token.destroy(b"made-%d" % (number - 1))
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    hsm.create_token(tmp_path / "turns", "turns", Secret("turns-test-so-pin-77"), PIN)
    return tmp_path / "turns"


def _names(home: Path) -> set[str]:
    with hsm.Token.open(home, "turns", PIN) as token:
        return {key.name for key in inventory.keys(token)}


def test_looking_for_keys_while_another_process_makes_them_leaves_no_half_key(home: Path) -> None:
    """It did in every second run of this: SoftHSM's files are locked one by one."""
    maker = subprocess.Popen([sys.executable, "-c", MAKES, home], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert maker.stdin is not None
    maker.stdin.write(PIN.reveal().encode() + b"\n")
    maker.stdin.close()
    looks = 0
    while maker.poll() is None:
        assert all(name.startswith("made-") for name in _names(home))
        looks += 1
    assert maker.stderr is not None
    with maker.stderr as said:
        assert maker.returncode == 0, said.read()
    assert looks > 10
    assert _names(home) == {"made-149"}
    assert len(list(home.rglob("*.object"))) == 3  # the token, the private and the public key


def test_whoever_holds_the_folder_stops_no_signature_and_is_waited_for_in_vain_for_a_while(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hsm.Token.open(home, "turns", PIN, writable=True) as token:
        token.generate_ed25519(b"venue", "venue")
        signer = token.signer(b"venue")
        held = os.open(home, os.O_RDONLY)
        try:
            fcntl.flock(held, fcntl.LOCK_EX)
            assert len(signer.sign(b"an order")) == 64
            monkeypatch.setattr(turns.turn, "__kwdefaults__", {"wait_s": 0.05}, raising=False)
            # Nor while somebody of our own waits for his turn.
            waited = threading.Event()

            def make() -> None:
                with pytest.raises(ConfigError, match="HSM_TURN"):
                    token.generate_ed25519(b"other", "other")
                waited.set()

            waiting = threading.Thread(target=make)
            waiting.start()
            time.sleep(0.1)
            for _ in range(10):
                signer.sign(b"an order")
            assert not waited.is_set()
            waiting.join()
            assert waited.is_set()
            for ask in (lambda: token.generate_ed25519(b"other", "other"), lambda: inventory.keys(token)):
                with pytest.raises(ConfigError, match=r"HSM_TURN: .*fuser"):
                    ask()
            assert len(signer.sign(b"an order")) == 64
        finally:
            os.close(held)
        assert {key.name for key in inventory.keys(token)} == {"venue"}
