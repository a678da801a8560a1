"""How a component proves itself besides mutual TLS and its session key: what the trust root names for it (R12).  Pure.

In the trust root `method` is one of these, told apart by `kind`; a component without one has `certificate`:

    {"kind": "service-account", "issuer": …, "audience": …, "subject": …, "single": bool, "keys": [JWK…]}
                                              or, in place of `keys`,  "url": https://…, "ca": PEM
    {"kind": "hardware-token", "algorithm": "ed25519" | "p256", "key": hex}
    {"kind": "api-key", "first": hex}

- `certificate` is written by leaving `method` out, and in no other way: one meaning, one byte string.
- A method of another kind is refused: who does not know it does not fall back to less.
"""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

import msgspec

from tallystick.schemas.errors import Malformed

MAX_TEXT: Final = 512
# Two certificates and more; a whole bundle of a public CA store is no pinned CA.
MAX_CA: Final = 16_384
MAX_KEYS: Final = 16
_HEX: Final = {"ed25519": 64, "p256": 130}

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_TEXT)]
Part = Annotated[str, msgspec.Meta(max_length=2048)]


class Jwk(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A public key of an issuer of tokens (RFC 7517, 7518, 8037): what of it is used here."""

    kty: Literal["OKP", "EC", "RSA"]
    kid: Text
    alg: Part = ""
    crv: Part = ""
    x: Part = ""
    y: Part = ""
    n: Part = ""
    e: Part = ""


class Certificate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="certificate"):
    """Nothing else."""


class ServiceAccount(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
    tag_field="kind",
    tag="service-account",
):
    """A token (JWT) of `issuer` for `audience` that names `subject`; its keys stand here, or are fetched from `url`.

    `single`: each token is bound to the client's certificate (RFC 8705) and opens one session.  `ca` is PEM, and the
    only thing that vouches for `url`.
    """

    issuer: Text
    audience: Text
    subject: Text
    single: bool
    keys: tuple[Jwk, ...] = ()
    url: str = ""
    ca: str = ""

    def __post_init__(self) -> None:
        if bool(self.keys) == bool(self.url) or bool(self.url) != bool(self.ca):
            raise Malformed("METHOD_DOCUMENT", "a service account has keys, or a url and the ca that vouches for it")
        if self.url and not (self.url.startswith("https://") and len(self.url) <= MAX_TEXT):
            raise Malformed("METHOD_DOCUMENT", f"keys are fetched from https:// alone, not from {self.url[:80]!r}")
        if len(self.ca) > MAX_CA or len(self.keys) > MAX_KEYS:
            raise Malformed("METHOD_DOCUMENT", f"{len(self.keys)} keys and a ca of {len(self.ca)} characters")
        if len({key.kid for key in self.keys}) != len(self.keys):
            raise Malformed("METHOD_DOCUMENT", "two keys of a service account's issuer share a kid")


class HardwareToken(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="hardware-token"
):
    """A signature of a key that lies in the component's own PKCS#11 token, over the authority's challenge.

    `key` is lower-case hex: 32 bytes of an Ed25519 key (RFC 8032), or the 65 of a P-256 point (SEC 1, uncompressed).
    """

    algorithm: Literal["ed25519", "p256"]
    key: str

    def __post_init__(self) -> None:
        digits = _HEX[self.algorithm]
        if not re.fullmatch(f"[0-9a-f]{{{digits}}}", self.key):
            raise Malformed("METHOD_DOCUMENT", f"a key of {self.algorithm} is {digits} lower-case hex digits")
        if self.algorithm == "p256" and not self.key.startswith("04"):
            raise Malformed("METHOD_DOCUMENT", "a key of p256 is an uncompressed point: it begins with 04")


class ApiKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="api-key"):
    """A key that opens one session and is replaced by it; `first` is the SHA-256 (hex) of the one it begins with."""

    first: str

    def __post_init__(self) -> None:
        if not re.fullmatch("[0-9a-f]{64}", self.first):
            raise Malformed("METHOD_DOCUMENT", "the hash of an API key is 64 lower-case hex digits")


Method = Certificate | ServiceAccount | HardwareToken | ApiKey
CERTIFICATE: Final = Certificate()


def name_of(method: Method) -> str:
    """Its `kind`."""
    return str(method.__struct_config__.tag)
