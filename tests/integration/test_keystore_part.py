"""A part of a keystore, opened by a child: who works on with it never had the rest in its memory."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from tallystick.runtime.keys.keystore import Keystore, Secret, open_part
from tallystick.schemas.errors import ConfigError, Unverified

MASTER = Secret("a master pin, ünïcode")


def test_a_part_is_opened_by_a_child_and_holds_nothing_else(tmp_path: Path) -> None:
    path, seen = tmp_path / "keystore", tmp_path / "seen"
    Keystore.create(path, MASTER, {"mine": Secret("one"), "theirs": Secret("two")})

    def work(whole: Keystore) -> None:
        seen.write_text(f"{os.getpid()} {whole['theirs'].reveal()}")

    part = open_part(path, lambda: MASTER, ["mine"], work)
    assert part["mine"].reveal() == "one"
    assert list(part.secrets) == ["mine"]
    child, secret = seen.read_text().split()
    assert (int(child) != os.getpid(), secret) == (True, "two")
    with pytest.raises(ProcessLookupError):
        os.kill(int(child), 0)
    with pytest.raises(ConfigError, match="KEYSTORE_NAME"):
        part["theirs"]
    with pytest.raises(TypeError, match="not saved"):
        part.save()


def test_what_is_wrong_with_a_keystore_is_told_from_the_child_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "keystore"
    with pytest.raises(ConfigError, match="KEYSTORE_MISSING"):
        open_part(path, lambda: MASTER, ["mine"])
    Keystore.create(path, MASTER, {"mine": Secret("one")})
    with pytest.raises(ConfigError, match="KEYSTORE_PIN"):
        open_part(path, lambda: Secret("another PIN"), ["mine"])
    with pytest.raises(ConfigError, match="KEYSTORE_NAME"):
        open_part(path, lambda: MASTER, ["theirs"])
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(Unverified, match="KEYSTORE_DAMAGED"):
        open_part(path, lambda: MASTER, ["mine"])


def test_a_child_that_dies_opens_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ended without a word"):
        open_part(tmp_path / "keystore", lambda: os._exit(9), ["mine"])


def test_who_is_interrupted_while_a_pin_is_asked_for_leaves_no_child_at_the_terminal(tmp_path: Path) -> None:
    reader, writer = os.pipe()

    def asked() -> Secret:
        os.write(writer, str(os.getpid()).encode())
        signal.raise_signal(signal.SIGSTOP)  # a person who thinks
        return MASTER

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        timer = threading.Timer(0.6, lambda: os.kill(int(os.read(reader, 20)), signal.SIGCONT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            open_part(tmp_path / "keystore", asked, ["mine"])
        timer.join()
    finally:
        signal.signal(signal.SIGALRM, before)
        os.close(reader)
        os.close(writer)
