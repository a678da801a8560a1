"""What a token says of its keys, and a statement of that under the key's own signature.

    statement = "tallystick key attestation v1" 0x00 ‖ canonical JSON of `Attestation`

It proves that whoever made it could use the key then, and says what the token says of it (PKCS#11: born inside, never
extractable, …).  It does not prove that the token is one: what vouches for a token is its maker's own attestation, where
it has one (YubiHSM 2 and the Nitrokey HSM do; SoftHSM has none).  Nothing else that is signed here begins like this.

When a key was made stands in its label, which nobody can change afterwards: tokens keep no time.
"""

from __future__ import annotations

import datetime
import re
from typing import Final, Literal

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from tallystick.schemas.bounds import SECOND
from tallystick.schemas.ed25519 import BadSignature, verify
from tallystick.schemas.errors import NOT_DECODED, Malformed, Unverified

# Kind -> the name of its curve.
_CURVES: Final = {"p256": "secp256r1", "secp256k1": "secp256k1"}
ATTESTATION: Final = b"tallystick key attestation v1\x00"
Kind = Literal["ed25519", "p256", "secp256k1", "rsa", "hmac", "other"]
_BORN: Final = re.compile(r"(.*) (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)")
_FORMAT: Final = "%Y-%m-%dT%H:%M:%SZ"


class KeyInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key as its token describes it.

    - `key_id`: CKA_ID in hex, `name`: the same as text where it is text; `label`: for people.
    - `born`: Unix ns of when it was made or imported, 0 where the label does not say it.
    - `local`: it was born inside (CKA_LOCAL); `never_extractable`: it never could leave; `protected`: it is sensitive and
      not extractable now; `fixed`: nobody can modify its attributes.
    - `public`: the public key: raw (Ed25519) or DER SubjectPublicKeyInfo, in hex; "" for a secret.
    """

    key_id: str
    name: str
    label: str
    kind: Kind
    born: int
    local: bool
    never_extractable: bool
    protected: bool
    fixed: bool
    public: str


class TokenInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The token, in its own words."""

    label: str
    serial: str
    manufacturer: str
    model: str


class Attestation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `tallystick keys attest` prints: `challenge` is the asker's own, `at` Unix ns, `signature` hex.

    `signature` is over the statement with `signature` "" (see the module docstring): Ed25519; ECDSA with SHA-256 in DER; PKCS #1
    v1.5 with SHA-256; or, for a secret, its HMAC with SHA-256, which only its owner can check.
    """

    kind: Literal["tallystick-key-attestation/1"] = "tallystick-key-attestation/1"
    token: TokenInfo
    key: KeyInfo
    challenge: str
    at: int
    signature: str = ""

    @property
    def statement(self) -> bytes:
        """What is signed."""
        unsigned = msgspec.structs.replace(self, signature="")
        return ATTESTATION + msgspec.json.encode(unsigned, order="sorted")


def public_pem(public: bytes | ec.EllipticCurvePublicKey | rsa.RSAPublicKey) -> str:
    """A public key (raw: Ed25519) as PEM (SubjectPublicKeyInfo)."""
    key = ed25519.Ed25519PublicKey.from_public_bytes(public) if isinstance(public, bytes) else public
    made = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return made.decode("ascii")


def dated(label: str, now: int) -> str:
    """The label of a key that is made at `now` (Unix ns)."""
    at = datetime.datetime.fromtimestamp(now // SECOND, datetime.UTC)
    return f"{label} {at.strftime(_FORMAT)}"


def born(label: str) -> int:
    """When the key of that label was made, Unix ns; 0 where it does not say."""
    match = _BORN.fullmatch(label)
    if match is None:
        return 0
    try:
        at = datetime.datetime.strptime(match[2], _FORMAT).replace(tzinfo=datetime.UTC)
    except ValueError:
        return 0
    return int(at.timestamp()) * SECOND


def verify_attestation(text: bytes, challenge: str, public: bytes | None = None) -> Attestation:
    """The attestation in `text`, made for `challenge` and, where `public` is given, by that key.

    Raises `Malformed` for what is none, and `Unverified` for a false one.  A secret's cannot be checked by anybody else:
    `Unverified`.
    """
    try:
        said = msgspec.json.decode(text, type=Attestation)
    except NOT_DECODED as exc:
        raise Malformed("ATTESTATION", f"not a key attestation: {exc}") from exc
    if said.challenge != challenge:
        raise Unverified("ATTESTATION", f"made for the challenge {said.challenge[:64]!r}, not for yours")
    if public is not None and said.key.public != public.hex():
        raise Unverified("ATTESTATION", f"of the key {said.key.public[:64]}, expected {public.hex()[:64]}")
    try:
        _verify(said)
    except (BadSignature, InvalidSignature, UnsupportedAlgorithm, ValueError) as exc:
        raise Unverified("ATTESTATION", f"the signature of key {said.key.name!r} is wrong") from exc
    return said


def _verify(said: Attestation) -> None:
    raw, signature = bytes.fromhex(said.key.public), bytes.fromhex(said.signature)
    if said.key.kind == "ed25519":
        verify(raw, signature, said.statement)
        return
    if said.key.kind not in ("p256", "secp256k1", "rsa"):
        raise Unverified("ATTESTATION", f"of a {said.key.kind} key: only who has the secret can check it")
    key = serialization.load_der_public_key(raw)
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == _CURVES.get(said.key.kind):
        key.verify(signature, said.statement, ec.ECDSA(hashes.SHA256()))
    elif isinstance(key, rsa.RSAPublicKey) and said.key.kind == "rsa":
        key.verify(signature, said.statement, padding.PKCS1v15(), hashes.SHA256())
    else:
        raise Unverified("ATTESTATION", f"says {said.key.kind}, and the public key is another's")
