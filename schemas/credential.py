"""A component's credential: its NATS user JWT, checked against the trust root.

The same token logs in to the broker and stands in every sealed message, so that each message verifies
alone.  `open_credential` accepts it only if

- it is a canonical user JWT whose signature fits its issuer (`nats_jwt.decode_credential`);
- the issuer is the role key, and the account the account, that the trust root names for the component
  whose name it carries;
- it lives no longer than the trust root lets that component's tokens live.

Whether it is in time, listed or revoked is asked where there is a clock (`seal`, `sessions`).
"""

from __future__ import annotations

import hashlib

import msgspec

from tallystick.schemas.bounds import SECOND
from tallystick.schemas.errors import Unverified
from tallystick.schemas.nats_jwt import decode_credential, encode_key
from tallystick.schemas.trust import TrustRoot


class Credential(msgspec.Struct, frozen=True, kw_only=True):
    """A checked credential: `digest` is the SHA-256 of its `text`; times are Unix nanoseconds."""

    text: str
    digest: bytes
    deployment: str
    component: str
    boot: bytes
    session_key: bytes
    issued_at: int
    expires_at: int


def open_credential(text: str, trust: TrustRoot) -> Credential:
    """The credential in `text`.  Raises `Malformed` or `Unverified`; see the module docstring."""
    token = decode_credential(text)
    record = trust.component(token.component)
    if encode_key("A", token.role) != record.role_key:
        raise Unverified(
            "ROLE_KEY", f"{token.component} is signed by a key that trust root {trust.number} does not name"
        )
    if encode_key("A", token.account) != record.account:
        raise Unverified("ACCOUNT", f"{token.component} names an account that is not its own")
    if token.expires_s - token.issued_s > record.lifetime:
        raise Unverified(
            "CREDENTIAL_LIFETIME",
            f"{token.component}: {token.expires_s - token.issued_s} s, the trust root allows {record.lifetime} s",
        )
    return Credential(
        text=text,
        digest=hashlib.sha256(text.encode("ascii")).digest(),
        deployment=trust.deployment,
        component=token.component,
        boot=token.boot,
        session_key=token.session,
        issued_at=token.issued_s * SECOND,
        expires_at=token.expires_s * SECOND,
    )
