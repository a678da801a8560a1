"""Attacks on keys, PINs and the keystore."""

from __future__ import annotations

import hashlib
import os
import pickle
import traceback
from collections.abc import Iterator
from pathlib import Path

import pkcs11
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass
from pkcs11.types import WrapMixin

from tallystick.runtime.keys import hsm, keystore
from tallystick.runtime.keys.keystore import Keystore, Secret
from tallystick.schemas.errors import ConfigError, TallystickError, Unverified

PIN = Secret("attacked-pin-51f0")
SO_PIN = Secret("attacked-so-pin-08")
MASTER = Secret("attacked-master-pin")
WRONG = Secret("guessed-pin-zzzz")
ED25519_PARAMS = bytes.fromhex("06032b6570")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("hsm") / "victim"
    hsm.create_token(directory, "victim", SO_PIN, PIN)
    with hsm.Token.open(directory, "victim", PIN, writable=True) as token:
        token.generate_ed25519(b"role", "role")
        token.generate_ed25519(b"other", "other")
        token.generate_p256(b"ca", "ca")
        token.generate_secp256k1(b"chain", "chain")
        token.generate_rsa(b"rsa", "rsa")
        token.import_mac(b"mac", "mac", b"m" * 64)
        token.import_private(b"rsa-in", "rsa-in", rsa.generate_private_key(65537, 2048))
        token.import_private(b"ed-in", "ed-in", ed25519.Ed25519PrivateKey.generate())
    return directory


@pytest.fixture
def token(home: Path) -> Iterator[hsm.Token]:
    with hsm.Token.open(home, "victim", PIN, writable=True) as opened:
        yield opened


def _private(token: hsm.Token, key_id: bytes) -> pkcs11.PrivateKey:
    wanted = ObjectClass.SECRET_KEY if key_id == b"mac" else ObjectClass.PRIVATE_KEY
    (key,) = token._session.get_objects({Attribute.ID: key_id, Attribute.CLASS: wanted})
    assert isinstance(key, pkcs11.PrivateKey | pkcs11.SecretKey)
    return key


# Made inside and imported, of every kind.
KEYS = pytest.mark.parametrize("key_id", [b"role", b"ca", b"chain", b"rsa", b"mac", b"rsa-in", b"ed-in"])
SECRETS = (
    Attribute.VALUE,
    Attribute.PRIVATE_EXPONENT,
    Attribute.PRIME_1,
    Attribute.PRIME_2,
    Attribute.EXPONENT_1,
    Attribute.EXPONENT_2,
    Attribute.COEFFICIENT,
)


@KEYS
def test_reading_the_private_value_fails(token: hsm.Token, key_id: bytes) -> None:
    refused = []
    for attribute in SECRETS:
        with pytest.raises((pkcs11.AttributeSensitive, pkcs11.AttributeTypeInvalid)) as caught:
            _ = _private(token, key_id)[attribute]
        refused.append(caught.type)
    # It has secrets, and keeps each of them.
    assert refused.count(pkcs11.AttributeSensitive) == (6 if key_id.startswith(b"rsa") else 1)


@KEYS
@pytest.mark.parametrize(
    ("attribute", "value"), [(Attribute.EXTRACTABLE, True), (Attribute.SENSITIVE, False), (Attribute.DERIVE, True)]
)
def test_making_a_key_extractable_afterwards_fails(
    token: hsm.Token, key_id: bytes, attribute: Attribute, value: bool
) -> None:
    with pytest.raises(pkcs11.PKCS11Error):
        _private(token, key_id)[attribute] = value


@KEYS
def test_copying_a_key_into_an_extractable_one_fails(token: hsm.Token, key_id: bytes) -> None:
    with pytest.raises(pkcs11.PKCS11Error):
        _private(token, key_id).copy({Attribute.EXTRACTABLE: True, Attribute.SENSITIVE: False, Attribute.ID: b"copy"})


@KEYS
def test_wrapping_a_key_out_of_the_token_fails(token: hsm.Token, key_id: bytes) -> None:
    wrapper = token._session.generate_key(KeyType.AES, 256, store=False)
    assert isinstance(wrapper, WrapMixin)
    with pytest.raises(pkcs11.KeyUnextractable):
        wrapper.wrap_key(_private(token, key_id), mechanism=Mechanism.AES_KEY_WRAP_PAD)


def test_a_planted_extractable_key_is_refused(token: hsm.Token) -> None:
    domain = token._session.create_domain_parameters(
        KeyType.EC_EDWARDS, {Attribute.EC_PARAMS: ED25519_PARAMS}, local=True
    )
    domain.generate_keypair(
        id=b"planted",
        store=True,
        mechanism=Mechanism.EC_EDWARDS_KEY_PAIR_GEN,
        private_template={Attribute.EXTRACTABLE: True, Attribute.SENSITIVE: False},
    )
    with pytest.raises(ConfigError, match="HSM_EXTRACTABLE"):
        token.signer(b"planted")


def test_a_key_that_was_extractable_once_is_refused(token: hsm.Token) -> None:
    domain = token._session.create_domain_parameters(
        KeyType.EC_EDWARDS, {Attribute.EC_PARAMS: ED25519_PARAMS}, local=True
    )
    _, private = domain.generate_keypair(
        id=b"once",
        store=True,
        mechanism=Mechanism.EC_EDWARDS_KEY_PAIR_GEN,
        private_template={Attribute.EXTRACTABLE: True, Attribute.SENSITIVE: True},
    )
    private[Attribute.EXTRACTABLE] = False
    with pytest.raises(ConfigError, match="HSM_EXTRACTABLE"):
        token.signer(b"once")


def _plant_public(token: hsm.Token, key_id: bytes, point: bytes) -> pkcs11.Object:
    return token._session.create_object(
        {
            Attribute.CLASS: ObjectClass.PUBLIC_KEY,
            Attribute.KEY_TYPE: KeyType.EC_EDWARDS,
            Attribute.EC_PARAMS: ED25519_PARAMS,
            Attribute.EC_POINT: point,
            Attribute.ID: key_id,
            Attribute.TOKEN: True,
        }
    )


def test_a_swapped_public_key_is_refused(token: hsm.Token) -> None:
    (role,) = token._session.get_objects({Attribute.ID: b"role", Attribute.CLASS: ObjectClass.PUBLIC_KEY})
    (other,) = token._session.get_objects({Attribute.ID: b"other", Attribute.CLASS: ObjectClass.PUBLIC_KEY})
    own, attackers = role[Attribute.EC_POINT], other[Attribute.EC_POINT]
    role.destroy()
    planted = _plant_public(token, b"role", attackers)
    with pytest.raises(Unverified, match="HSM_KEY"):
        token.signer(b"role")
    planted.destroy()
    _plant_public(token, b"role", own)
    assert len(token.signer(b"role").public) == 32


def test_a_second_public_key_with_the_same_id_is_refused(token: hsm.Token) -> None:
    (public,) = token._session.get_objects({Attribute.ID: b"other", Attribute.CLASS: ObjectClass.PUBLIC_KEY})
    twin = _plant_public(token, b"other", public[Attribute.EC_POINT])
    with pytest.raises(ConfigError, match="found 1 private and 2 public keys"):
        token.signer(b"other")
    twin.destroy()


def test_a_wrong_pin_is_refused_without_naming_any_pin_and_the_right_one_still_works(home: Path) -> None:
    for _ in range(5):
        with pytest.raises(ConfigError, match="HSM_PIN") as caught:
            hsm.Token.open(home, "victim", WRONG)
        shown = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
        assert WRONG.reveal() not in shown
        assert PIN.reveal() not in shown
    with hsm.Token.open(home, "victim", PIN) as token:
        token.signer(b"role")


def test_pins_appear_in_no_file_of_a_token(home: Path) -> None:
    for path in home.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert PIN.reveal().encode() not in data
            assert SO_PIN.reveal().encode() not in data


def test_token_folders_belong_to_their_owner_alone(home: Path) -> None:
    assert home.stat().st_mode & 0o077 == 0
    assert (home / "tokens").stat().st_mode & 0o077 == 0


def test_a_secret_shows_itself_nowhere() -> None:
    secret = Secret("hunter2-and-more")
    exc = TallystickError("X", f"{secret} {secret!r} %s" % secret)
    for text in (str(secret), repr(secret), f"{secret:>40}", repr({"a": secret}), str([secret]), str(exc)):
        assert "hunter2" not in text
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    with pytest.raises(TypeError):
        hash(secret)
    assert "hunter2" not in repr(vars(type(secret)))


@pytest.fixture(scope="module")
def vault(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keystore") / "keystore"
    Keystore.create(path, MASTER, {"hsm.roles.pin": PIN, "nats.store_key": SO_PIN})
    return path


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    path.chmod(0o600)
    return path


def test_any_flipped_bit_of_the_keystore_is_found_and_the_file_named(vault: Path, tmp_path: Path) -> None:
    good = vault.read_bytes()
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1 << (position % 8)
        path = _write(tmp_path / "keystore", bytes(bad))
        with pytest.raises(Unverified, match=str(path)):
            Keystore.open(path, MASTER)


def test_a_truncated_or_lengthened_keystore_is_found(vault: Path, tmp_path: Path) -> None:
    good = vault.read_bytes()
    for bad in (b"", good[:40], good[:-1], good + b"\0", good * 2):
        with pytest.raises(Unverified, match="KEYSTORE_DAMAGED"):
            Keystore.open(_write(tmp_path / "keystore", bad), MASTER)


@pytest.mark.parametrize(("part", "position"), [("nonce", -100), ("ciphertext", -60), ("tag", -1)])
def test_a_change_with_a_corrected_checksum_is_found(vault: Path, tmp_path: Path, part: str, position: int) -> None:
    body = bytearray(vault.read_bytes()[:-32])
    body[position if part != "nonce" else keystore._HEADER - 1] ^= 1
    path = _write(tmp_path / "keystore", bytes(body) + hashlib.sha256(body).digest())
    with pytest.raises(Unverified, match="KEYSTORE_TAMPERED"):
        Keystore.open(path, MASTER)


def test_another_salt_with_a_corrected_checksum_opens_nothing(vault: Path, tmp_path: Path) -> None:
    body = bytearray(vault.read_bytes()[:-32])
    body[len(keystore.MAGIC)] ^= 1
    with pytest.raises(ConfigError, match="wrong master PIN"):
        Keystore.open(_write(tmp_path / "keystore", bytes(body) + hashlib.sha256(body).digest()), MASTER)


def test_a_wrong_master_pin_opens_nothing_and_is_not_repeated(vault: Path) -> None:
    with pytest.raises(ConfigError, match="wrong master PIN") as caught:
        Keystore.open(vault, WRONG)
    shown = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    assert WRONG.reveal() not in shown


def test_the_keystore_holds_no_secret_in_plain_text(vault: Path) -> None:
    data = vault.read_bytes()
    for text in (PIN.reveal(), SO_PIN.reveal(), MASTER.reveal(), "hsm.roles.pin"):
        assert text.encode() not in data


def test_a_keystore_that_others_may_read_is_refused(vault: Path, tmp_path: Path) -> None:
    path = _write(tmp_path / "keystore", vault.read_bytes())
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        Keystore.open(path, MASTER)


def test_handed_over_secrets_can_be_taken_once() -> None:
    fd = keystore.hand_over({"a": PIN})
    again = os.dup(fd)
    assert keystore.take_over(fd) == {"a": PIN}
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    with pytest.raises(ConfigError, match="taken before"):
        keystore.take_over(again)
