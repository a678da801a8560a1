"""How a key that was made elsewhere comes into a token: wrapped, so that it passes in no PKCS#11 call in plaintext.

- The token makes an RSA key pair that lives as long as the session and only unwraps.  Under its public key goes a random
  AES key (RSA-OAEP with SHA-1, which every token has; RFC 8017), under that the key itself (RFC 5649: AES key wrap with
  padding; private keys as PKCS#8, RFC 5208).  The token unwraps both.
- Where a token says that it does not unwrap that kind of key (SoftHSM 2.6: Ed25519), it is created from its value instead,
  and `Imported` says so: the value then passes through the module, which for a token across a network means its maker's connection.
  What fails otherwise fails: whoever disturbs a connection gets no value through it.
- All of a key comes in, or nothing of it.
- What comes in is sensitive, never extractable from then on, only signs, and cannot be modified.  It did exist outside:
  `CKA_LOCAL` is false, and whoever asks for a key that was born inside does not get it.
"""

from __future__ import annotations

import contextlib
import secrets as entropy
from typing import Any, Final, Literal

import pkcs11
from cryptography.hazmat.primitives import hashes, keywrap, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from pkcs11 import Attribute, KeyType, Mechanism, MechanismFlag, ObjectClass
from pkcs11._pkcs11 import DEFAULT  # type: ignore[attr-defined]  # its stubs leave it out
from pkcs11.util.ec import encode_named_curve_parameters

from tallystick.schemas.errors import ConfigError

PrivateKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
Imported = Literal["unwrapped", "created"]

# DER of OID 1.3.101.112: SoftHSM wants the OID of Ed25519, not the curve's name (RFC 8410, PKCS#11 v3.0 2.3.10).
ED25519_PARAMS: Final = bytes.fromhex("06032b6570")
CURVES: Final[dict[str, bytes]] = {name: encode_named_curve_parameters(name) for name in ("secp256r1", "secp256k1")}
_WRAP_BITS: Final = 2048
_KEK_BYTES: Final = 32
# What stays inside, and only signs.
PROTECTED: Final[dict[Attribute, object]] = {
    Attribute.PRIVATE: True,
    Attribute.SENSITIVE: True,
    Attribute.EXTRACTABLE: False,
    Attribute.MODIFIABLE: False,
    Attribute.DERIVE: False,
}


# A module's word that it cannot, as against one whose device or session fails.  SoftHSM's for Ed25519 is the first.
_CANNOT: Final = (
    pkcs11.exceptions.FunctionFailed,
    pkcs11.exceptions.MechanismInvalid,
    pkcs11.exceptions.MechanismParamInvalid,
    pkcs11.exceptions.FunctionNotSupported,
    pkcs11.exceptions.AttributeTypeInvalid,
    pkcs11.exceptions.AttributeValueInvalid,
    pkcs11.exceptions.TemplateIncomplete,
    pkcs11.exceptions.TemplateInconsistent,
)


def import_secret(session: pkcs11.Session, key_id: bytes, label: str, value: bytes) -> Imported:
    """A secret for HMAC.  For functions that `module.ask` runs."""
    template = {**PROTECTED, Attribute.VERIFY: False}
    try:
        _unwrap(session, ObjectClass.SECRET_KEY, KeyType.GENERIC_SECRET, key_id, label, value, template)
    except _CANNOT:
        session.create_object(
            {
                Attribute.CLASS: ObjectClass.SECRET_KEY,
                Attribute.KEY_TYPE: KeyType.GENERIC_SECRET,
                Attribute.TOKEN: True,
                Attribute.ID: key_id,
                Attribute.LABEL: label,
                Attribute.SIGN: True,
                Attribute.VALUE: value,
                **template,
            }
        )
        return "created"
    return "unwrapped"


def import_private(session: pkcs11.Session, key_id: bytes, label: str, key: PrivateKey) -> Imported:
    """A private key with its public one.  For functions that `module.ask` runs."""
    kind, public = _public(key)
    common = {Attribute.TOKEN: True, Attribute.ID: key_id, Attribute.LABEL: label, Attribute.KEY_TYPE: kind}
    value = key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    how: Imported = "unwrapped"
    # Private keys have none of these, and a template that names them is refused.
    without = dict.fromkeys((Attribute.ENCRYPT, Attribute.WRAP, Attribute.VERIFY), DEFAULT)
    try:
        _unwrap(session, ObjectClass.PRIVATE_KEY, kind, key_id, label, value, PROTECTED | without)
    except _CANNOT:
        session.create_object(
            {Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.SIGN: True, **common, **PROTECTED, **_value(key)}
        )
        how = "created"
    try:
        session.create_object(
            {
                Attribute.CLASS: ObjectClass.PUBLIC_KEY,
                Attribute.VERIFY: True,
                Attribute.MODIFIABLE: False,
                **common,
                **public,
            }
        )
    except pkcs11.PKCS11Error:
        # Crash here, and half a key stays: it is refused by name, and `keys destroy` takes it away.
        for half in session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.ID: key_id}):
            half.destroy()
        raise
    return how


def _unwrap(
    session: pkcs11.Session,
    object_class: ObjectClass,
    kind: KeyType,
    key_id: bytes,
    label: str,
    value: bytes,
    template: dict[Attribute, Any],
) -> None:
    public, private = session.generate_keypair(
        KeyType.RSA,
        _WRAP_BITS,
        store=False,
        capabilities=MechanismFlag.WRAP | MechanismFlag.UNWRAP | MechanismFlag.ENCRYPT | MechanismFlag.DECRYPT,
    )
    used = [public, private]
    try:
        outside = rsa.RSAPublicNumbers(
            int.from_bytes(public[Attribute.PUBLIC_EXPONENT], "big"), int.from_bytes(public[Attribute.MODULUS], "big")
        ).public_key()
        kek = entropy.token_bytes(_KEK_BYTES)
        oaep = padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None)  # noqa: S303 - no collision matters here
        wrapping = private.unwrap_key(
            ObjectClass.SECRET_KEY,
            KeyType.AES,
            outside.encrypt(kek, oaep),
            mechanism=Mechanism.RSA_PKCS_OAEP,
            mechanism_param=(Mechanism.SHA_1, pkcs11.MGF.SHA1, None),
            store=False,
            capabilities=MechanismFlag.UNWRAP,
            template={Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False},
        )
        used.append(wrapping)
        wrapping.unwrap_key(
            object_class,
            kind,
            keywrap.aes_key_wrap_with_padding(kek, value),
            id=key_id,
            label=label,
            mechanism=Mechanism.AES_KEY_WRAP_PAD,
            store=True,
            capabilities=MechanismFlag.SIGN,
            template=template,
        )
    finally:
        for key in reversed(used):
            # They end with the session at the latest.
            with contextlib.suppress(pkcs11.PKCS11Error):
                key.destroy()


def _public(key: PrivateKey) -> tuple[KeyType, dict[Attribute, object]]:
    if isinstance(key, ed25519.Ed25519PrivateKey):
        point = b"\x04\x20" + key.public_key().public_bytes_raw()
        return KeyType.EC_EDWARDS, {Attribute.EC_PARAMS: ED25519_PARAMS, Attribute.EC_POINT: point}
    if isinstance(key, rsa.RSAPrivateKey):
        numbers = key.public_key().public_numbers()
        return KeyType.RSA, {Attribute.MODULUS: _number(numbers.n), Attribute.PUBLIC_EXPONENT: _number(numbers.e)}
    params = CURVES.get(key.curve.name)
    if params is None:
        raise ConfigError("KEY_KIND", f"a key on {key.curve.name}: known are {', '.join(CURVES)}")
    raw = key.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    return KeyType.EC, {Attribute.EC_PARAMS: params, Attribute.EC_POINT: bytes((4, len(raw))) + raw}


def _value(key: PrivateKey) -> dict[Attribute, object]:
    """What `C_CreateObject` makes the private key of (PKCS#11 v3.0, 2.1.3 and 2.3)."""
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return {Attribute.EC_PARAMS: ED25519_PARAMS, Attribute.VALUE: key.private_bytes_raw()}
    if isinstance(key, ec.EllipticCurvePrivateKey):
        scalar = key.private_numbers().private_value.to_bytes((key.curve.key_size + 7) // 8, "big")
        return {Attribute.EC_PARAMS: CURVES[key.curve.name], Attribute.VALUE: scalar}
    numbers = key.private_numbers()
    return {
        Attribute.MODULUS: _number(numbers.public_numbers.n),
        Attribute.PUBLIC_EXPONENT: _number(numbers.public_numbers.e),
        Attribute.PRIVATE_EXPONENT: _number(numbers.d),
        Attribute.PRIME_1: _number(numbers.p),
        Attribute.PRIME_2: _number(numbers.q),
        Attribute.EXPONENT_1: _number(numbers.dmp1),
        Attribute.EXPONENT_2: _number(numbers.dmq1),
        Attribute.COEFFICIENT: _number(numbers.iqmp),
    }


def _number(value: int) -> bytes:
    return value.to_bytes((value.bit_length() + 7) // 8, "big")
