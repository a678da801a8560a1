"""PINs change: of tokens, wherever their PIN lies, and of the keystore; whatever ends it in between, one PIN is known."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tallystick.runtime.deployment import pins
from tallystick.runtime.deployment.admit import admit
from tallystick.runtime.deployment.folder import Deployment, pin_name
from tallystick.runtime.keys.hsm import Token
from tallystick.runtime.keys.keystore import Keystore, Secret
from tallystick.schemas.errors import ConfigError
from tests.support.command import tallystick
from tests.support.deployment import PIN, make


class Ended(BaseException):
    """The process, here."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Deployment, Keystore]:
    return make(tmp_path_factory.mktemp("p") / "desk")


def opens(deployment: Deployment, label: str, pin: Secret) -> None:
    Token.open(deployment.token(label), label, pin).close()


def test_a_new_pin_is_kept_and_the_old_one_opens_nothing(made: tuple[Deployment, Keystore]) -> None:
    deployment, keystore = made
    old = keystore[pin_name("operator")]
    done = tallystick("keys", "pin", deployment.directory, "operator", "--new", pin=PIN.reveal())
    assert done.code == 0, done.err
    keystore.secrets = Keystore.open(deployment.keystore, PIN).secrets
    assert keystore[pin_name("operator")] != old
    assert pins.next_name("operator") not in keystore.secrets
    assert keystore[pin_name("operator")].reveal() not in done.out + done.err
    with pytest.raises(ConfigError, match="HSM_PIN"):
        opens(deployment, "operator", old)
    # What signs the next trust root is opened with the new one.
    assert admit(deployment, keystore, time.time_ns(), lambda _: None).number == 2


@pytest.mark.parametrize("when", ["before", "after"])
def test_whatever_ends_it_in_between_the_next_call_goes_on(
    made: tuple[Deployment, Keystore], monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    deployment, keystore = made
    old, real = keystore[pin_name("signing")], Token.change_pin

    def ends(token: Token, *given: Any) -> None:
        if when == "after":
            real(token, *given)
        raise Ended

    with monkeypatch.context() as ending:
        ending.setattr(Token, "change_pin", ends)
        with pytest.raises(Ended):
            pins.renew(deployment, keystore, "signing", lambda _: None)
    again = Keystore.open(deployment.keystore, PIN)
    assert again[pin_name("signing")] == old
    pins.renew(deployment, again, "signing", lambda _: None)
    keystore.secrets = Keystore.open(deployment.keystore, PIN).secrets
    opens(deployment, "signing", keystore[pin_name("signing")])
    with pytest.raises(ConfigError, match="HSM_PIN"):
        opens(deployment, "signing", old)


def test_a_token_that_takes_no_such_pin_keeps_the_old_one(
    made: tuple[Deployment, Keystore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that wants digits: asked again, it is not tried with what it has refused."""
    deployment, keystore = made
    old = keystore[pin_name("roles")]
    with monkeypatch.context() as short:
        short.setattr(Secret, "random", classmethod(lambda _: Secret("x")))
        with pytest.raises(ConfigError, match="HSM_PIN"):
            pins.renew(deployment, keystore, "roles", lambda _: None)
    assert (keystore[pin_name("roles")], pins.next_name("roles") in keystore.secrets) == (old, False)
    opens(deployment, "roles", old)


def test_the_master_pin_changes_and_the_old_one_opens_nothing(tmp_path: Path) -> None:
    deployment, keystore = make(tmp_path / "desk")
    new = "another-master-pin-5512"
    refused = tallystick("keys", "master-pin", deployment.directory, pin=f"{PIN.reveal()}\nshort")
    assert (refused.code, "PIN_INPUT" in refused.err) == (2, True)
    done = tallystick("keys", "master-pin", deployment.directory, pin=f"{PIN.reveal()}\n{new}")
    assert done.code == 0, done.err
    with pytest.raises(ConfigError, match="KEYSTORE_PIN"):
        Keystore.open(deployment.keystore, PIN)
    assert Keystore.open(deployment.keystore, Secret(new)).secrets == keystore.secrets
