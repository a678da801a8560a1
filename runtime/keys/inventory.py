"""Which keys a token holds, and what it says of them.  Raises `ConfigError`, as `hsm` does."""

from __future__ import annotations

from typing import Any

import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from pkcs11 import Attribute, KeyType, ObjectClass

from tallystick.runtime.keys.hsm import PRIVATE_CLASSES, Token, flag, raw_point, rsa_public
from tallystick.runtime.keys.imports import CURVES
from tallystick.runtime.keys.key_info import Attestation, KeyInfo, Kind, TokenInfo, born
from tallystick.schemas.errors import ConfigError


def keys(token: Token) -> tuple[KeyInfo, ...]:
    """Every key in the token, by id."""

    def look() -> tuple[KeyInfo, ...]:
        found = [key for wanted in PRIVATE_CLASSES for key in token.objects({Attribute.CLASS: wanted})]
        return tuple(sorted((_info(token, key) for key in found), key=lambda info: info.key_id))

    return token.ask(f"listing the keys of token {token.label!r}", look)


def describe(token: Token) -> TokenInfo:
    """The token, in its own words."""

    def look() -> TokenInfo:
        itself = token.itself
        return TokenInfo(
            label=itself.label,
            serial=itself.serial.decode("utf-8", "replace").strip(),
            manufacturer=itself.manufacturer_id,
            model=itself.model,
        )

    return token.ask(f"looking at token {token.label!r}", look)


def attest(token: Token, key_id: bytes, challenge: str, at: int) -> Attestation:
    """What the token says of a key at `at` (Unix ns), under that key's signature; see `key_info`."""
    info = next((key for key in keys(token) if key.key_id == key_id.hex()), None)
    name = key_id.decode("ascii", "backslashreplace")
    if info is None:
        raise ConfigError("HSM_KEY", f"key {name!r} of token {token.label!r}: there is none")
    said = Attestation(token=describe(token), key=info, challenge=challenge, at=at)
    match info.kind:
        case "ed25519":
            sign = token.signer(key_id, imported=True).sign
        case "p256":
            sign = token.p256_signer(key_id, imported=True).sign
        case "secp256k1":
            sign = token.secp256k1_signer(key_id, imported=True).sign
        case "rsa":
            sign = token.rsa_signer(key_id, imported=True).sign
        case "hmac":
            sign = token.mac_key(key_id, "sha256").mac
        case _:
            raise ConfigError("KEY_KIND", f"key {name!r} of token {token.label!r} is of no kind that is used here")
    return msgspec.structs.replace(said, signature=sign(said.statement).hex())


def _info(token: Token, key: Any) -> KeyInfo:
    key_id, label = bytes(key[Attribute.ID]), str(key[Attribute.LABEL])
    kind, public = _described(token, key, key_id)
    return KeyInfo(
        key_id=key_id.hex(),
        name=key_id.decode("ascii", "backslashreplace"),
        label=label,
        kind=kind,
        born=born(label),
        local=flag(key, Attribute.LOCAL),
        never_extractable=flag(key, Attribute.NEVER_EXTRACTABLE),
        protected=flag(key, Attribute.SENSITIVE) and not flag(key, Attribute.EXTRACTABLE),
        fixed=not flag(key, Attribute.MODIFIABLE),
        public=public.hex(),
    )


def _described(token: Token, key: Any, key_id: bytes) -> tuple[Kind, bytes]:
    if key.object_class is ObjectClass.SECRET_KEY:
        return "hmac" if key.key_type is KeyType.GENERIC_SECRET else "other", b""
    publics = token.objects({Attribute.ID: key_id, Attribute.CLASS: ObjectClass.PUBLIC_KEY})
    if len(publics) != 1:
        return "other", b""
    kind: Kind
    public: ec.EllipticCurvePublicKey | rsa.RSAPublicKey
    try:
        if key.key_type is KeyType.EC_EDWARDS:
            return "ed25519", raw_point(bytes(publics[0][Attribute.EC_POINT]), 32)
        if key.key_type is KeyType.RSA:
            kind = "rsa"
            public = rsa_public({a: bytes(publics[0][a]) for a in (Attribute.MODULUS, Attribute.PUBLIC_EXPONENT)})
        elif key.key_type is KeyType.EC:
            on_p256 = bytes(publics[0][Attribute.EC_PARAMS]) == CURVES["secp256r1"]
            kind, curve = ("p256", ec.SECP256R1()) if on_p256 else ("secp256k1", ec.SECP256K1())
            point = raw_point(bytes(publics[0][Attribute.EC_POINT]), 65)
            public = ec.EllipticCurvePublicKey.from_encoded_point(curve, point)
        else:
            return "other", b""
    except ValueError:  # a public key that is none
        return "other", b""
    return kind, public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
