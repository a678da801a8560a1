"""A credential of an exchange in a token: its secret comes in once (`take_in`), and signs from then on (`TokenKeys`).

Key ids in the token: `base` for a key pair; `base/TRANSFORMS/DIGEST` for each HMAC key that the scheme makes of the secret, such as
`venue/utf8/sha256`.  What is kept there is made already: no step is done to it later.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import importlib
from collections.abc import Callable
from typing import Final, Protocol

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from tallystick.runtime.keys.hsm import Token
from tallystick.runtime.keys.imports import PrivateKey
from tallystick.runtime.keys.keystore import Secret
from tallystick.runtime.keys.material import from_pem, mac_block
from tallystick.runtime.keys.signers import Digest
from tallystick.schemas.errors import ConfigError
from tallystick.venues import Denied
from tallystick.venues.signing.schemes import Form, Kind, Mac, Scheme

_SEED: Final = 32
_SECP256K1_ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


def key_ids(base: bytes, scheme: Scheme) -> tuple[bytes, ...]:
    """The ids under which a credential lies in its token."""
    return tuple(_mac_id(base, mac) for mac in scheme.macs) if scheme.kind == "hmac" else (base,)


def _mac_id(base: bytes, mac: Mac) -> bytes:
    return b"/".join((base, "+".join(mac[0]).encode("ascii"), mac[1].encode("ascii")))


def take_in(token: Token, base: bytes, label: str, secret: Secret, scheme: Scheme) -> tuple[str, ...]:
    """Import a secret as the exchange gave it out; how each key came in.  Raises `ConfigError`, which repeats nothing of it."""
    if scheme.kind != "hmac":
        return (token.import_private(base, label, private_key(secret, scheme.form, scheme.kind)),)
    made = [(_mac_id(base, mac), mac_block(_transformed(secret.reveal(), mac[0]), mac[1])) for mac in scheme.macs]
    came: list[str] = []
    try:
        for key_id, value in made:
            came.append(token.import_mac(key_id, label, value))
    except ConfigError:
        # Half a credential signs nothing, and would stand in the way of the whole.
        for key_id, _ in made[: len(came)]:
            token.destroy(key_id)
        raise
    return tuple(came)


def _transformed(text: str, transforms: tuple[str, ...]) -> bytes:
    value: str | bytes | None = None
    with contextlib.suppress(binascii.Error, UnicodeError):
        value = _made_of(text, transforms)
    # Raised here, where no library's error hangs on to it: its words may hold a part of the secret.
    if value is None:
        raise ConfigError("KEY_INPUT", f"the secret is not what this exchange gives out ({'+'.join(transforms)})")
    if not value:
        raise ConfigError("KEY_INPUT", "the secret is empty")
    return value.encode("utf-8") if isinstance(value, str) else value


def _made_of(text: str, transforms: tuple[str, ...]) -> str | bytes:
    value: str | bytes = text
    for step in transforms:
        raw = value.encode("utf-8") if isinstance(value, str) else value
        match step:
            case "utf8":
                value = raw
            case "base64":
                value = base64.b64decode(raw, validate=True)
            case "tobase64":
                value = base64.b64encode(raw).decode("ascii")
            case "upper":
                value = raw.decode("utf-8").upper()
            case _:
                value = hashlib.new(step, raw).hexdigest()
    return value


def private_key(secret: Secret, form: Form, kind: Kind) -> PrivateKey:
    """The private key in a secret of that form.  Raises `ConfigError`."""
    key: PrivateKey | None = None
    with contextlib.suppress(ValueError, KeyError):
        key = _read(secret, form)
    # Raised here, where no parser's error hangs on to it: they quote what they parse.
    if key is None:
        raise ConfigError("KEY_INPUT", f"the secret is no {kind} key as this exchange gives it out ({form})")
    if _kind(key) != kind:
        raise ConfigError("KEY_KIND", f"the secret is a {_kind(key)} key, expected {kind}")
    return key


def _read(secret: Secret, form: Form) -> PrivateKey:
    text = secret.reveal().strip()
    if form in ("pem", "ec-pem", "rsa-pem"):
        return from_pem(secret)
    if form == "hex":
        number = int(text.removeprefix("0x"), 16)
        if not 0 < number < _SECP256K1_ORDER:
            raise ValueError
        return ec.derive_private_key(number, ec.SECP256K1())
    if form == "base64":
        raw = base64.b64decode(text, validate=True)
    else:
        base58 = importlib.import_module("ccxt.base.exchange").Exchange.base58_to_binary
        raw = base58(text.removeprefix("ed25519:"))
    # A seed, or a seed with its public key behind it.
    if len(raw) not in (_SEED, 2 * _SEED):
        raise ValueError
    key = ed25519.Ed25519PrivateKey.from_private_bytes(raw[:_SEED])
    public = key.public_key().public_bytes_raw()
    if raw[_SEED:] not in (b"", public):
        raise ValueError
    return key


def _kind(key: PrivateKey) -> str:
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return {"secp256r1": "p256"}.get(key.curve.name, key.curve.name)
    return "rsa"


class _Digests(Protocol):
    def sign_digest(self, digest: bytes) -> tuple[int, int]: ...


class TokenKeys:
    """`SigningKeys` of one credential in an open token.

    `imported`: whether a key pair that was made elsewhere is used, too.  Raises `ConfigError` for a credential that is not
    there.
    """

    def __init__(self, token: Token, base: bytes, scheme: Scheme, *, imported: bool = True) -> None:
        self._macs: dict[tuple[tuple[str, ...], str], Callable[[bytes], bytes]] = {}
        self._ed25519: Callable[[bytes], bytes] | None = None
        self._rsa: Callable[[bytes, Digest], bytes] | None = None
        self._digests: _Digests | None = None
        self._point = b""
        match scheme.kind:
            case "hmac":
                for mac in scheme.macs:
                    self._macs[mac] = token.mac_key(_mac_id(base, mac), mac[1]).mac
            case "ed25519":
                self._ed25519 = token.signer(base, imported=imported).sign
            case "rsa":
                self._rsa = token.rsa_signer(base, imported=imported).sign
            case "p256" | "secp256k1":
                find = token.p256_signer if scheme.kind == "p256" else token.secp256k1_signer
                found = find(base, imported=imported)
                self._digests = found
                form = serialization.PublicFormat.UncompressedPoint
                self._point = found.public.public_bytes(serialization.Encoding.X962, form)[1:]

    def mac(self, transforms: tuple[str, ...], algorithm: str, data: bytes) -> bytes:
        """See `SigningKeys`."""
        found = self._macs.get((transforms, algorithm))
        if found is None:
            raise _absent(f"HMAC with {algorithm} after {'+'.join(transforms) or 'nothing'}")
        return found(data)

    def ed25519(self, data: bytes) -> bytes:
        """See `SigningKeys`."""
        if self._ed25519 is None:
            raise _absent("Ed25519")
        return self._ed25519(data)

    def rsa(self, data: bytes, algorithm: str) -> bytes:
        """See `SigningKeys`."""
        if self._rsa is None or algorithm not in ("sha256", "sha384", "sha512"):
            raise _absent(f"RSA with {algorithm}")
        return self._rsa(data, algorithm)  # type: ignore[arg-type] # one of the three

    def ecdsa(self, digest: bytes, of: bytes = b"") -> tuple[int, int]:
        """See `SigningKeys`."""
        if self._digests is None:
            raise _absent("ECDSA")
        return self._digests.sign_digest(digest)

    @property
    def point(self) -> bytes:
        """See `SigningKeys`."""
        return self._point


def _absent(what: str) -> Denied:
    return Denied("SIGNATURE_KIND", f"the credential has no key for {what}")
