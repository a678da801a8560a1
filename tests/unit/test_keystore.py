"""The keystore, PIN input and the hand-over of secrets to a child."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallystick.runtime.keys import keystore
from tallystick.runtime.keys.keystore import Keystore, Secret
from tallystick.schemas.errors import ConfigError, Unverified

MASTER = Secret("a master pin, ünïcode")


def test_what_is_saved_is_what_opens(tmp_path: Path) -> None:
    path = tmp_path / "keystore"
    created = Keystore.create(path, MASTER, {"a": Secret("1"), "b": Secret("zwei €")})
    created.secrets["c"] = Secret.random()
    before = path.read_bytes()
    created.save()
    opened = Keystore.open(path, MASTER)
    assert opened.secrets == created.secrets
    assert opened["b"] == Secret("zwei €")
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(p.name for p in tmp_path.iterdir()) == ["keystore"]
    # A nonce is never used twice under one key.
    nonce = slice(keystore._HEADER - 12, keystore._HEADER)
    assert before[nonce] != path.read_bytes()[nonce]


def test_an_existing_keystore_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "keystore"
    path.write_bytes(b"something")
    with pytest.raises(ConfigError, match="KEYSTORE_EXISTS"):
        Keystore.create(path, MASTER, {})
    assert path.read_bytes() == b"something"


def test_a_short_master_pin_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 8"):
        Keystore.create(tmp_path / "keystore", Secret("1234567"), {})


def test_a_missing_keystore_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tallystick init"):
        Keystore.open(tmp_path / "keystore", MASTER)


def test_a_missing_secret_is_named(tmp_path: Path) -> None:
    store = Keystore(tmp_path / "keystore", {}, b"", b"")
    with pytest.raises(ConfigError, match=r"holds no secret named 'hsm\.roles\.pin'"):
        _ = store["hsm.roles.pin"]


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=400), prefixed=st.booleans())
def test_no_bytes_open_as_a_keystore(tmp_path_factory: pytest.TempPathFactory, data: bytes, prefixed: bool) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed"
    path.write_bytes((keystore.MAGIC if prefixed else b"") + data)
    path.chmod(0o600)
    with pytest.raises(Unverified):
        Keystore.open(path, MASTER)


def _pipe(data: bytes) -> int:
    read, write = os.pipe()
    os.write(write, data)
    os.close(write)
    return read


@pytest.mark.parametrize("data", [b"pin 1234", b"pin 1234\n", b"pin 1234\r\n", b"pin 1234\nnext line"])
def test_a_pin_is_the_first_line_of_its_descriptor(data: bytes) -> None:
    assert keystore.read_pin("PIN: ", _pipe(data)) == Secret("pin 1234")


@pytest.mark.parametrize("data", [b"", b"\n", b"\xff\xfe\n", b"x" * 1025])
def test_a_descriptor_without_a_usable_pin_is_refused(data: bytes) -> None:
    with pytest.raises(ConfigError, match="PIN_INPUT"):
        keystore.read_pin("PIN: ", _pipe(data))


def test_a_closed_descriptor_is_refused() -> None:
    fd = _pipe(b"x")
    os.close(fd)
    with pytest.raises(ConfigError, match="PIN_INPUT"):
        keystore.read_pin("PIN: ", fd)
    with pytest.raises(ConfigError, match="SECRETS_FD"):
        keystore.take_over(fd)


def test_what_is_handed_over_is_what_is_taken() -> None:
    secrets = {"a": Secret("1"), "ü": Secret('"\n')}
    assert keystore.take_over(keystore.hand_over(secrets)) == secrets


def test_a_descriptor_with_something_else_is_refused_without_quoting_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b'{"a": hunter2}')
    with pytest.raises(ConfigError, match="SECRETS_FD") as caught:
        keystore.take_over(os.open(path, os.O_RDWR))
    assert "hunter2" not in str(caught.value)
