"""How a component asks the authority for a session: the request, its proof and the answer (JSON over mTLS).

    POST /v1/session  {"boot": hex, "component": name, "proof": hex, "session_key": hex}
                  ->  {"credential": jwt}                  or 4xx {"code": …, "text": …}
    (a renewal has one more field, "renewal": hex; whoever the trust root names a method for has one, "evidence")
    POST /v1/challenge {"boot": hex, "component": name}  ->  {"challenge": hex}    for one answer, within seconds
    POST /v1/certificate  {"boot": hex, "component": name, "proof": hex, "request": PEM}  ->  {"certificate": PEM}
    POST /v1/end      the same request for the newest session  ->  {}      the boot ends; nothing of it counts any more
    POST /v1/revoke   {"note": text}  ->  {"revoked": n}    an operator-signed `trust.Revocation`, which revokes or admits
    POST /v1/standing {"component": name}  ->  {"number": n, "revoked": bool}    what was said of it last
    POST /v1/grant    {"note": text}  ->  {}    an operator-signed `grants.KeyGrant`: an API key begins anew
    (these three under the operator's certificate alone)

The client certificate says who asks; `proof` is the session key's signature over

    "tallystick session request v1" 0x00 ‖ msgpack [deployment, component, boot, session_key, SHA-256(certificate)]

so that nobody gets a credential for a key that he does not hold, and a proof seen elsewhere is useless
under another certificate.  A boot stands in every message that it seals, so that knowing it proves nothing:
while it has a live session, `renewal` is the same bytes signed by the key of one of those.  No seal statement and no login nonce begins like this.

Besides that a component shows what the trust root names for it (`methods`), and nothing else, in "evidence":

    {"kind": "service-account", "token": JWT}
    {"kind": "hardware-token", "challenge": hex, "signature": hex}
    {"kind": "api-key", "key": hex, "next": hex}

A hardware token signs

    "tallystick hardware challenge v1" 0x00 ‖ msgpack [deployment, component, boot, session_key, SHA-256(certificate), challenge]

(Ed25519: 64 bytes; P-256: ECDSA with SHA-256, DER).  An API key is 32 random bytes that open one session; `next` is the
SHA-256 of the one that replaces it, which its component has drawn and kept before it asks.  The same key with the
same `next` is the same holder, whose answer was lost; with another `next` it is a second holder.

A certificate is renewed under the one that ends: `request` (PKCS#10) names the same component and is signed by a new
key, which never leaves the component; `proof` is the signature of the key of a live session of `boot` over

    "tallystick certificate request v1" 0x00 ‖ msgpack [deployment, component, boot, SHA-256(request), SHA-256(certificate)]

so that who copied the certificate gets no other one unseen: he needs a boot of his own first, which ends the true one.
"""

from __future__ import annotations

import hashlib
from typing import Final, TypeVar

import msgspec

from tallystick.schemas.errors import NOT_DECODED, Malformed

PREFIX: Final = b"tallystick session request v1\x00"
CERTIFICATE_PREFIX: Final = b"tallystick certificate request v1\x00"
CHALLENGE_PREFIX: Final = b"tallystick hardware challenge v1\x00"
MAX_REQUEST: Final = 8192
# A token of a Kubernetes cluster has some 1,200 bytes.
MAX_TOKEN: Final = 4096
CHALLENGE_BYTES: Final = 32
API_KEY_BYTES: Final = 32
# A signature in hex: ECDSA's in DER has 72 bytes at most.
MAX_SIGNATURE: Final = 144


class TokenEvidence(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="service-account"):
    """A service account's token."""

    token: str


class HardwareEvidence(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="hardware-token"):
    """The signature of a hardware token's key under a challenge."""

    challenge: str
    signature: str


class ApiKeyEvidence(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="api-key"):
    """An API key, and the hash of the next one."""

    key: str
    next: str


Evidence = TokenEvidence | HardwareEvidence | ApiKeyEvidence


class Asked(msgspec.Struct, frozen=True):
    """What a session is asked for: by whom, for which key, under the certificate (SHA-256 of its DER) that is shown."""

    deployment: str
    component: str
    boot: bytes
    session_key: bytes
    certificate: bytes


class SessionRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request for a session; see the module docstring."""

    boot: str
    component: str
    proof: str
    session_key: str
    renewal: str = ""
    evidence: Evidence | None = None


class ChallengeRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request for a challenge; see the module docstring."""

    boot: str
    component: str


class ChallengeAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The challenge, hex."""

    challenge: str


class SessionAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The credential, as the broker and every verifier take it."""

    credential: str


class CertificateRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request for the next certificate; see the module docstring."""

    boot: str
    component: str
    proof: str
    request: str


class CertificateAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The certificate, PEM."""

    certificate: str


class SessionRefusal(msgspec.Struct, frozen=True):
    """Why there is none."""

    code: str
    text: str


def proof_bytes(deployment: str, component: str, boot: bytes, session_key: bytes, certificate: bytes) -> bytes:
    """What the session key signs; `certificate` is the SHA-256 of the client certificate's DER."""
    return PREFIX + msgspec.msgpack.encode([deployment, component, boot, session_key, certificate])


def challenge_bytes(asked: Asked, challenge: bytes) -> bytes:
    """What a hardware token signs under `challenge`."""
    said = [asked.deployment, asked.component, asked.boot, asked.session_key, asked.certificate, challenge]
    return CHALLENGE_PREFIX + msgspec.msgpack.encode(said)


def certificate_proof_bytes(deployment: str, component: str, boot: bytes, request: str, certificate: bytes) -> bytes:
    """What the key of a live session signs; `request` is PEM, `certificate` the SHA-256 of the present one's DER."""
    digest = hashlib.sha256(request.encode()).digest()
    return CERTIFICATE_PREFIX + msgspec.msgpack.encode([deployment, component, boot, digest, certificate])


def hex_bytes(text: str, length: int, what: str) -> bytes:
    """`length` bytes of lower-case hex.  Raises `Malformed`."""
    try:
        raw = bytes.fromhex(text)
    except ValueError as exc:
        raise Malformed("HEX", f"{what} is not hex") from exc
    if len(raw) != length or raw.hex() != text:
        raise Malformed("HEX", f"{what} must be {2 * length} lower-case hex digits")
    return raw


class RevocationRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /v1/revoke`."""

    note: str


class GrantRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /v1/grant`."""

    note: str


class StandingRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /v1/standing`."""

    component: str


class StandingAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The newest word on a component: its number (0: there was none), and whether it is revoked."""

    number: int
    revoked: bool


R = TypeVar("R", bound=msgspec.Struct)


def _decode(body: bytes, kind: type[R]) -> R:
    if len(body) > MAX_REQUEST:
        raise Malformed("REQUEST_SIZE", f"{len(body)} bytes, limit {MAX_REQUEST}")
    try:
        return msgspec.json.decode(body, type=kind)
    except NOT_DECODED as exc:
        raise Malformed("REQUEST", str(exc)) from exc


def decode_request(body: bytes) -> SessionRequest:
    """The request in `body`.  Raises `Malformed`."""
    return _decode(body, SessionRequest)


def decode_certificate_request(body: bytes) -> CertificateRequest:
    """The request for a certificate in `body`.  Raises `Malformed`."""
    return _decode(body, CertificateRequest)


def decode_revocation(body: bytes) -> RevocationRequest:
    """The revocation in `body`.  Raises `Malformed`."""
    return _decode(body, RevocationRequest)


def decode_challenge(body: bytes) -> ChallengeRequest:
    """The request for a challenge in `body`.  Raises `Malformed`."""
    return _decode(body, ChallengeRequest)


def decode_grant(body: bytes) -> GrantRequest:
    """The grant in `body`.  Raises `Malformed`."""
    return _decode(body, GrantRequest)


def decode_standing(body: bytes) -> StandingRequest:
    """The question in `body`.  Raises `Malformed`."""
    return _decode(body, StandingRequest)
