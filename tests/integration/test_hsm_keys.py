"""Keys of every kind in a real SoftHSM: made, imported, used, listed, attested, destroyed."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pkcs11
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pkcs11 import Attribute

from tallystick.runtime.keys import hsm, inventory
from tallystick.runtime.keys.key_info import born, dated, public_pem, verify_attestation
from tallystick.runtime.keys.keystore import Secret
from tallystick.runtime.keys.signers import Digest, EcdsaSigner
from tallystick.schemas.errors import ConfigError, Malformed, Unverified
from tallystick.venues import key_holder
from tests.support.world import NOW

PIN = Secret("kinds-test-pin-29c1")
SO_PIN = Secret("kinds-test-so-pin-77")
CURVES: dict[str, ec.EllipticCurve] = {"p256": ec.SECP256R1(), "secp256k1": ec.SECP256K1()}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("hsm") / "kinds"
    hsm.create_token(directory, "kinds", SO_PIN, PIN)
    return directory


@pytest.fixture
def token(home: Path) -> Iterator[hsm.Token]:
    with hsm.Token.open(home, "kinds", PIN, writable=True) as opened:
        yield opened


def _id() -> bytes:
    return b"key/" + secrets.token_hex(4).encode()


def _ecdsa(token: hsm.Token, curve: str, key_id: bytes, *, imported: bool = False) -> EcdsaSigner:
    find = token.p256_signer if curve == "p256" else token.secp256k1_signer
    return find(key_id, imported=imported)


@pytest.mark.parametrize("curve", list(CURVES))
def test_an_elliptic_key_is_born_inside_and_signs_digests(token: hsm.Token, curve: str) -> None:
    key_id = _id()
    make = token.generate_p256 if curve == "p256" else token.generate_secp256k1
    public = make(key_id, curve)
    digest = hashlib.sha256(b"data").digest()
    r, s = _ecdsa(token, curve, key_id).sign_digest(digest)
    public.verify(encode_dss_signature(r, s), b"data", ec.ECDSA(hashes.SHA256()))


@pytest.mark.parametrize("digest", ["sha256", "sha384", "sha512"])
def test_an_rsa_key_is_born_inside_and_signs_with_each_digest(token: hsm.Token, digest: Digest) -> None:
    key_id = _id()
    public = token.generate_rsa(key_id, "rsa")
    algorithm = {"sha256": hashes.SHA256(), "sha384": hashes.SHA384(), "sha512": hashes.SHA512()}[digest]
    public.verify(token.rsa_signer(key_id).sign(b"data", digest), b"data", padding.PKCS1v15(), algorithm)
    with pytest.raises(ConfigError, match="KEY_KIND"):
        token.generate_rsa(_id(), "rsa", 1024)


@pytest.mark.parametrize("digest", ["sha256", "sha384", "sha512"])
@pytest.mark.parametrize("length", [64, 128])
def test_an_imported_secret_gives_the_macs_of_rfc_2104(token: hsm.Token, digest: Digest, length: int) -> None:
    key_id, value = _id(), secrets.token_bytes(length)
    assert token.import_mac(key_id, "mac", value) == "unwrapped"
    data = secrets.token_bytes(300)
    assert token.mac_key(key_id, digest).mac(data) == hmac.new(value, data, digest).digest()


def test_imported_private_keys_sign_as_they_did_outside(token: hsm.Token) -> None:
    edwards = ed25519.Ed25519PrivateKey.generate()
    # SoftHSM 2.6 unwraps every kind but this one.
    ed, of_rsa = _id(), _id()
    assert token.import_private(ed, "ed", edwards) == "created"
    assert token.signer(ed, imported=True).sign(b"data") == edwards.sign(b"data")

    modulus = rsa.generate_private_key(65537, 2048)
    assert token.import_private(of_rsa, "rsa", modulus) == "unwrapped"
    expected = modulus.sign(b"data", padding.PKCS1v15(), hashes.SHA512())
    assert token.rsa_signer(of_rsa, imported=True).sign(b"data", "sha512") == expected

    for name, curve in CURVES.items():
        private = ec.generate_private_key(curve)
        key_id = _id()
        assert token.import_private(key_id, name, private) == "unwrapped"
        signature = _ecdsa(token, name, key_id, imported=True).sign(b"data")
        private.public_key().verify(signature, b"data", ec.ECDSA(hashes.SHA256()))


def test_a_curve_that_nobody_uses_is_refused(token: hsm.Token) -> None:
    with pytest.raises(ConfigError, match="KEY_KIND"):
        token.import_private(_id(), "p384", ec.generate_private_key(ec.SECP384R1()))


def test_a_key_that_was_made_elsewhere_is_used_only_by_who_allows_it(token: hsm.Token) -> None:
    token.import_private(key_id := _id(), "planted", ed25519.Ed25519PrivateKey.generate())
    with pytest.raises(ConfigError, match=r"HSM_EXTRACTABLE: .*made outside"):
        token.signer(key_id)


def test_an_import_leaves_nothing_in_the_token_but_the_key(token: hsm.Token) -> None:
    before = len(token.ask("counting", lambda: token.objects({})))
    token.import_mac(_id(), "mac", secrets.token_bytes(64))
    assert len(token.ask("counting", lambda: token.objects({}))) == before + 1


def test_an_id_is_used_once_also_by_imports(token: hsm.Token) -> None:
    token.generate_ed25519(key_id := _id(), "first")
    with pytest.raises(ConfigError, match="HSM_DUPLICATE"):
        token.import_mac(key_id, "second", secrets.token_bytes(64))
    with pytest.raises(ConfigError, match="HSM_DUPLICATE"):
        token.import_private(key_id, "third", ec.generate_private_key(ec.SECP256R1()))


def test_the_list_says_of_each_key_what_it_is_and_where_it_was_born(token: hsm.Token) -> None:
    made, taken = _id(), _id()
    public = token.generate_ed25519(made, dated("venue", NOW))
    token.import_mac(taken, dated("venue", NOW), secrets.token_bytes(64))
    found = {key.name: key for key in inventory.keys(token)}
    ours = found[made.decode()]
    assert (ours.kind, ours.public, ours.born) == ("ed25519", public.hex(), NOW // 10**9 * 10**9)
    assert all((ours.local, ours.never_extractable, ours.protected, ours.fixed))
    theirs = found[taken.decode()]
    assert (theirs.kind, theirs.public) == ("hmac", "")
    assert all((theirs.protected, theirs.fixed))
    assert not any((theirs.local, theirs.never_extractable))


def test_a_label_without_a_time_says_none() -> None:
    assert born("venue") == 0
    assert born("venue 2026-13-45T00:00:00Z") == 0
    assert born(dated("a b", NOW)) == NOW // 10**9 * 10**9


def test_a_destroyed_key_is_gone_with_its_public_part(token: hsm.Token) -> None:
    token.generate_p256(key_id := _id(), "gone")
    signer = token.p256_signer(key_id)
    token.destroy(key_id)
    with pytest.raises(ConfigError, match=r"HSM_KEY: .*found 0 private and 0 public"):
        token.p256_signer(key_id)
    with pytest.raises(ConfigError, match="HSM_FAILED"):
        signer.sign(b"after")
    with pytest.raises(ConfigError, match="HSM_KEY"):
        token.destroy(key_id)


def _kinds(token: hsm.Token) -> list[bytes]:
    ids = [_id() for _ in range(4)]
    token.generate_ed25519(ids[0], "a")
    token.generate_p256(ids[1], "b")
    token.generate_secp256k1(ids[2], "c")
    token.generate_rsa(ids[3], "d")
    return ids


def test_an_attestation_verifies_for_its_challenge_and_its_key_alone(token: hsm.Token) -> None:
    for key_id in _kinds(token):
        said = inventory.attest(token, key_id, "my challenge", NOW)
        text = msgspec.json.encode(said)
        assert verify_attestation(text, "my challenge", bytes.fromhex(said.key.public)) == said
        assert said.token.label == "kinds"
        with pytest.raises(Unverified, match="ATTESTATION"):
            verify_attestation(text, "another challenge")
        with pytest.raises(Unverified, match="ATTESTATION"):
            verify_attestation(text, "my challenge", b"another key")


def test_no_word_of_an_attestation_can_change(token: hsm.Token) -> None:
    (key_id, *_) = _kinds(token)
    said = inventory.attest(token, key_id, "c", NOW)
    for changed in (
        msgspec.structs.replace(said, at=NOW + 1),
        msgspec.structs.replace(said, key=msgspec.structs.replace(said.key, local=False)),
        msgspec.structs.replace(said, key=msgspec.structs.replace(said.key, kind="hmac")),
        msgspec.structs.replace(said, token=msgspec.structs.replace(said.token, serial="other")),
        msgspec.structs.replace(said, signature="00" * 64),
        msgspec.structs.replace(said, signature="no hex"),
    ):
        with pytest.raises(Unverified, match="ATTESTATION"):
            verify_attestation(msgspec.json.encode(changed), "c")
    with pytest.raises(Malformed, match="ATTESTATION"):
        verify_attestation(b"{}", "c")


def test_an_attestation_of_a_key_that_is_not_what_it_says_is_refused(token: hsm.Token) -> None:
    said = inventory.attest(token, _kinds(token)[1], "c", NOW)
    for curve, kind in ((ec.SECP384R1(), "rsa"), (ec.SECP384R1(), "p256"), (ec.SECP256R1(), "secp256k1")):
        private = ec.generate_private_key(curve)
        public = private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        forged = msgspec.structs.replace(said, key=msgspec.structs.replace(said.key, kind=kind, public=public.hex()))
        signature = private.sign(forged.statement, ec.ECDSA(hashes.SHA256()))
        forged = msgspec.structs.replace(forged, signature=signature.hex())
        with pytest.raises(Unverified, match="ATTESTATION"):
            verify_attestation(msgspec.json.encode(forged), "c")
    # A curve that nobody knows (OID 1.2.3).
    unknown = bytes.fromhex("3019300b06072a8648ce3d020106022a03030a00") + bytes(7)
    forged = msgspec.structs.replace(said, key=msgspec.structs.replace(said.key, kind="p256", public=unknown.hex()))
    with pytest.raises(Unverified, match="ATTESTATION"):
        verify_attestation(msgspec.json.encode(forged), "c")


class Failing:
    """A session of a token whose `method` fails at its `nth` call."""

    def __init__(self, session: Any, method: str, nth: int, error: Exception) -> None:
        self._session, self._method, self._left, self._error = session, method, nth, error

    def __getattr__(self, name: str) -> Any:
        if name == self._method:
            self._left -= 1
            if self._left == 0:
                raise self._error
        return getattr(self._session, name)


@pytest.mark.parametrize("error", [pkcs11.exceptions.DeviceError(), pkcs11.exceptions.GeneralError()])
def test_a_connection_that_is_disturbed_gets_no_secret_in_plaintext(
    token: hsm.Token, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    key_id = _id()
    broken = Failing(token._session, "generate_keypair", 1, error)
    monkeypatch.setattr(token, "_session", broken)
    with pytest.raises(ConfigError, match="HSM_FAILED"):
        token.import_mac(key_id, "mac", secrets.token_bytes(64))
    monkeypatch.undo()
    assert token.ask("looking", lambda: token.objects({Attribute.ID: key_id})) == []


def test_a_key_that_came_in_half_is_taken_away_and_comes_in_whole_the_next_time(
    token: hsm.Token, monkeypatch: pytest.MonkeyPatch
) -> None:
    key_id, private = _id(), ec.generate_private_key(ec.SECP256R1())
    monkeypatch.setattr(
        token, "_session", Failing(token._session, "create_object", 1, pkcs11.exceptions.DeviceMemory())
    )
    with pytest.raises(ConfigError, match="HSM_"):
        token.import_private(key_id, "half", private)
    monkeypatch.undo()
    assert token.ask("looking", lambda: token.objects({Attribute.ID: key_id})) == []
    assert token.import_private(key_id, "whole", private) == "unwrapped"


def test_half_a_key_that_a_crash_left_is_made_anew(token: hsm.Token, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_holder, "MAX_KEYS", 1_000)
    name = "api-" + "0" * 16
    holder: Any = object.__new__(key_holder.KeyHolder)
    holder._token, holder._key_id, holder._ctx = token, "venue", SimpleNamespace(clock=lambda: NOW)
    token.generate_ed25519(name.encode(), "half")
    private = {Attribute.ID: name.encode(), Attribute.CLASS: pkcs11.ObjectClass.PRIVATE_KEY}
    token.ask("breaking", lambda: [half.destroy() for half in token.objects(private)])
    made = holder._born(name)
    assert made == public_pem(token.signer(name.encode()).public) == holder._born(name)


def test_a_secret_attests_with_a_mac_that_only_its_owner_can_check(token: hsm.Token) -> None:
    value = secrets.token_bytes(64)
    token.import_mac(key_id := _id(), "mac", value)
    said = inventory.attest(token, key_id, "c", NOW)
    assert bytes.fromhex(said.signature) == hmac.new(value, said.statement, "sha256").digest()
    with pytest.raises(Unverified, match="only who has the secret"):
        verify_attestation(msgspec.json.encode(said), "c")


def test_a_child_of_a_fork_cannot_use_what_its_parent_opened_unseen(token: hsm.Token) -> None:
    token.generate_ed25519(key_id := _id(), "parent's")
    signer = token.signer(key_id)
    child = os.fork()
    if not child:
        try:
            signer.sign(b"in the child")
        except ConfigError:
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(signer.sign(b"in the parent")) == 64
