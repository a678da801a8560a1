"""NATS nkeys and JWTs: the credentials that log in to the broker and travel in every sealed message.

Text of a public key: `base32(prefix byte ‖ 32 raw Ed25519 bytes ‖ CRC-16/XMODEM, little endian)`, 56
characters (github.com/nats-io/nkeys).  Text of a token (github.com/nats-io/jwt, version 2):

    base64url('{"typ":"JWT","alg":"ed25519-nkey"}') . base64url(claims) . base64url(Ed25519 over what is before)

Decoding is strict; a token counts only if all of this holds, in this order:

- it is ASCII and within `MAX_JWT` (a credential: `MAX_CREDENTIAL`), of three parts;
- the first part is the one above to the byte: no other algorithm, `none` included, is ever looked at;
- each part is canonical base64url without padding;
- the signature is that of the issuer named in the claims, an operator's or an account's key;
- the claims are canonical: known fields only, in order, once, and they re-encode to the same bytes.

Whether the issuer is the right one (the trust root's role key), and whether it is in time, the caller
decides: nothing here knows a clock or a trust root.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final, Literal, Protocol

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tallystick.schemas.ed25519 import KEY_BYTES, SIGNATURE_BYTES, BadSignature, verify
from tallystick.schemas.errors import NOT_DECODED, Malformed, Unverified
from tallystick.schemas.subjects import check_name

Prefix = Literal["O", "A", "U", "N"]
_PREFIX_BYTE: Final[dict[str, int]] = {"O": 14 << 3, "A": 0, "U": 20 << 3, "N": 13 << 3}
_KEY_TEXT = re.compile(r"[OAUN][A-Z2-7]{55}")
BOOT_BYTES: Final = 16

# An account JWT holds one activation token an import; a user JWT must fit NATS's control line (4096).
MAX_JWT: Final = 262_144
MAX_CREDENTIAL: Final = 1024
MAX_JTI: Final = 64
_B64URL = re.compile(r"[A-Za-z0-9_-]+")
_HEADER: Final = base64.urlsafe_b64encode(b'{"typ":"JWT","alg":"ed25519-nkey"}').rstrip(b"=").decode()
# What nats-server sends is 15 of these characters; no statement or token that we sign elsewhere can match.
_NONCE = re.compile(r"[A-Za-z0-9_-]{11,64}")
_BOOT_TAG = re.compile(r"boot:([0-9a-f]{32})")
_JTI = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_JTI}}}")


class Signer(Protocol):
    """An Ed25519 key that signs: in memory, or in a hardware token."""

    @property
    def public(self) -> bytes:
        """The raw public key, 32 bytes."""
        ...

    def sign(self, data: bytes) -> bytes:
        """The raw signature over `data`, 64 bytes (RFC 8032, pure Ed25519)."""
        ...


class SessionKey:
    """An Ed25519 key in memory, from 32 bytes of entropy that the caller drew.  Never written anywhere."""

    __slots__ = ("_key", "public")

    def __init__(self, seed: bytes) -> None:
        """Raises `Malformed` unless `seed` has 32 bytes."""
        if len(seed) != KEY_BYTES:
            raise Malformed("KEY_SEED", f"an Ed25519 seed has {KEY_BYTES} bytes, got {len(seed)}")
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public = self._key.public_key().public_bytes_raw()

    def sign(self, data: bytes) -> bytes:
        """The raw signature over `data`."""
        return self._key.sign(data)

    def __repr__(self) -> str:
        return f"SessionKey({encode_key('U', self.public)})"

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("a session key does not leave its process")


def encode_key(prefix: Prefix, public: bytes) -> str:
    """The nkey text of a raw public key; `prefix` O operator, A account, U user, N server.  Raises `Malformed`."""
    if len(public) != KEY_BYTES:
        raise Malformed("KEY", f"an Ed25519 public key has {KEY_BYTES} bytes, got {len(public)}")
    body = bytes((_PREFIX_BYTE[prefix],)) + public
    return base64.b32encode(body + binascii.crc_hqx(body, 0).to_bytes(2, "little")).decode("ascii")


def decode_key(prefix: Prefix, text: str) -> bytes:
    """The raw public key of an nkey text of exactly this kind.  Raises `Malformed`."""
    if not _KEY_TEXT.fullmatch(text):
        raise Malformed("KEY_TEXT", f"not an nkey public key (56 characters, O, A, U or N first): {text[:64]!r}")
    raw = base64.b32decode(text)
    public = raw[1:-2]
    if raw[0] != _PREFIX_BYTE[prefix]:
        raise Malformed("KEY_PREFIX", f"expected a key of kind {prefix}, got {text}")
    if encode_key(prefix, public) != text:
        raise Malformed("KEY_CHECKSUM", f"the checksum does not fit the key: {text}")
    return public


class Claims(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The claims of a token, in the order in which they are encoded.

    `{"iat":…,"iss":"…","sub":"…","name":"…","exp":…,"jti":"…","nats":{…,"type":"…","version":2}}`;
    `iat` and `exp` are Unix seconds (`exp` is absent where a token does not expire), `iss` and `sub` nkeys.
    """

    iat: int
    iss: str
    sub: str
    name: str
    exp: int = 0
    jti: str
    nats: dict[str, object]


class CredentialToken(msgspec.Struct, frozen=True, kw_only=True):
    """A component's session, as its user JWT states it.

    Claims: `sub` the session key, `name` the component, `iss` the role key, `iat`, `exp`, `jti`,
    `nats = {"issuer_account": account, "tags": ["boot:<32 hex>"], "type": "user", "version": 2}`.
    Here the keys are raw (32 bytes), `boot` has 16 bytes, times are Unix seconds.
    """

    component: str
    boot: bytes
    session: bytes
    role: bytes
    account: bytes
    issued_s: int
    expires_s: int
    jti: str


_claims_decoder = msgspec.json.Decoder(Claims)


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _unb64(text: str, what: str) -> bytes:
    if not _B64URL.fullmatch(text) or len(text) % 4 == 1:
        raise Malformed("JWT_BASE64", f"{what} is not base64url without padding")
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if _b64(data) != text:
        raise Malformed("JWT_BASE64", f"{what} is not canonical base64url: bits are set past the end")
    return data


def encode_jwt(signer: Signer, prefix: Literal["O", "A"], claims: Claims) -> str:
    """Sign `claims`; their `iss` must be the signer's key as `prefix` (O or A) writes it.  Raises `Malformed`."""
    issuer = encode_key(prefix, signer.public)
    if claims.iss != issuer:
        raise Malformed("JWT_ISSUER", f"the claims name {claims.iss} as issuer, the key that signs is {issuer}")
    signed = f"{_HEADER}.{_b64(msgspec.json.encode(claims))}"
    return f"{signed}.{_b64(signer.sign(signed.encode('ascii')))}"


def decode_jwt(text: str, *, limit: int = MAX_JWT) -> Claims:
    """The claims of a token signed by the issuer that they name (`claims.iss`); see the module docstring.

    Raises `Malformed` for what is not a canonical token, `Unverified` for another algorithm or a
    signature that does not fit.
    """
    if len(text) > limit or not text.isascii():
        raise Malformed("JWT_SIZE", f"a token of {len(text)} characters, limit {limit} (ASCII)")
    parts = text.split(".")
    if len(parts) != 3:
        raise Malformed("JWT_PARTS", f"a token has 3 parts, got {len(parts)}")
    if parts[0] != _HEADER:
        raise Unverified("JWT_HEADER", 'the header must be exactly {"typ":"JWT","alg":"ed25519-nkey"}')
    raw = _unb64(parts[1], "the claims")
    signature = _unb64(parts[2], "the signature")
    if len(signature) != SIGNATURE_BYTES:
        raise Malformed("JWT_SIGNATURE", f"an Ed25519 signature has {SIGNATURE_BYTES} bytes, got {len(signature)}")
    try:
        claims = _claims_decoder.decode(raw)
    except NOT_DECODED as exc:
        raise Malformed("JWT_CLAIMS", f"not the claims of a token: {exc}") from exc
    issuer = decode_key("O" if claims.iss[:1] == "O" else "A", claims.iss)
    try:
        verify(issuer, signature, text[: -len(parts[2]) - 1].encode("ascii"))
    except BadSignature as exc:
        raise Unverified("JWT_SIGNATURE", f"the signature is not that of the issuer {claims.iss}") from exc
    if msgspec.json.encode(claims) != raw:
        raise Malformed("JWT_CANONICAL", "the claims do not re-encode to the same bytes")
    return claims


def user_claims(
    component: str,
    boot: bytes,
    session_public: bytes,
    role_public: bytes,
    account_public: bytes,
    issued_s: int,
    expires_s: int,
    jti: str,
) -> Claims:
    """The claims of a component's session, to be signed with its (scoped) role key.

    They hold no permissions: those stand in the account's template for the role key, and the broker
    refuses a user of a scoped key that brings its own.  Raises `Malformed`.
    """
    check_name(component, "component")
    if len(boot) != BOOT_BYTES:
        raise Malformed("BOOT", f"a boot id has {BOOT_BYTES} bytes, got {len(boot)}")
    if not 0 < issued_s < expires_s:
        raise Malformed("JWT_TIMES", f"issued at {issued_s}, expires at {expires_s}: must be above 0 and rise")
    if not _JTI.fullmatch(jti):
        raise Malformed("JWT_ID", f"a token id is 1 to {MAX_JTI} of A-Z, a-z, 0-9, '_' and '-', got {jti[:80]!r}")
    return Claims(
        iat=issued_s,
        iss=encode_key("A", role_public),
        sub=encode_key("U", session_public),
        name=component,
        exp=expires_s,
        jti=jti,
        nats={
            "issuer_account": encode_key("A", account_public),
            "tags": [f"boot:{boot.hex()}"],
            "type": "user",
            "version": 2,
        },
    )


def decode_credential(text: str) -> CredentialToken:
    """A component's session out of its user JWT, its signature verified against its own issuer (`role`).

    Raises `Malformed` for what `user_claims` cannot have made, `Unverified` as `decode_jwt` does.
    """
    claims = decode_jwt(text, limit=MAX_CREDENTIAL)
    tags, account = claims.nats.get("tags"), claims.nats.get("issuer_account")
    if not isinstance(tags, list) or len(tags) != 1 or not isinstance(tags[0], str) or not isinstance(account, str):
        raise Malformed("CREDENTIAL", "not a component's session: it names no account or not exactly one boot")
    boot = _BOOT_TAG.fullmatch(tags[0])
    if boot is None:
        raise Malformed("CREDENTIAL", f"not a boot: {tags[0][:64]!r}")
    credential = CredentialToken(
        component=claims.name,
        boot=bytes.fromhex(boot.group(1)),
        session=decode_key("U", claims.sub),
        role=decode_key("A", claims.iss),
        account=decode_key("A", account),
        issued_s=claims.iat,
        expires_s=claims.exp,
        jti=claims.jti,
    )
    c = credential
    same = user_claims(c.component, c.boot, c.session, c.role, c.account, c.issued_s, c.expires_s, c.jti)
    if msgspec.json.encode(same) != msgspec.json.encode(claims):
        raise Malformed("CREDENTIAL", "not a component's session: it holds more than its name, keys, boot and times")
    return credential


def sign_nonce(signer: Signer, nonce: str) -> bytes:
    """The answer to a broker's login challenge, as nats-py's `signature_cb` returns it (base64).

    Signs nothing but `[A-Za-z0-9_-]{11,64}`: a hostile broker chooses the nonce, and the same key signs
    statements, which hold spaces and zero bytes and so can never be asked for here.  Raises `Unverified`.
    """
    if not _NONCE.fullmatch(nonce):
        raise Unverified(
            "LOGIN_NONCE", f"the broker asks for a signature over what is no nonce ({len(nonce)} characters)"
        )
    return base64.b64encode(signer.sign(nonce.encode("ascii")))
