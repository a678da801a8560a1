"""Who is connected with what: nothing in the broker binds a client certificate to a user JWT.

A stolen session key together with any component's certificate logs in.  The broker's connection list
(`$SYS.REQ.ACCOUNT.<account>.CONNZ`, `{"auth":true}`) names both, so whoever asks compares them with what the
authority issued, alarms, and kicks.

The broker is not trusted here: a lying one can hide a connection, and gains nothing by it that verifiers accept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from tallystick.schemas.errors import NOT_DECODED, CouldNotVerify, Malformed, Unverified
from tallystick.schemas.nats_jwt import decode_credential

CONNZ_REQUEST: Final = b'{"auth":true,"limit":1024}'


class _Certificate(msgspec.Struct, frozen=True):
    cert_sha256: str


class _Connection(msgspec.Struct, frozen=True):
    cid: int
    account: str = ""
    jwt: str = ""
    tls_peer_certs: tuple[_Certificate, ...] = ()


class _Data(msgspec.Struct, frozen=True):
    total: int
    connections: tuple[_Connection, ...]


class _Server(msgspec.Struct, frozen=True):
    id: str


class _Answer(msgspec.Struct, frozen=True):
    server: _Server
    data: _Data


class Mismatch(msgspec.Struct, frozen=True, kw_only=True):
    """One connection that should not be: kick it with `{"cid": cid}` to `$SYS.REQ.SERVER.<server>.KICK`."""

    code: Literal["CONNECTION_CERTIFICATE", "CONNECTION_UNLISTED", "CONNECTION_CREDENTIAL"]
    server: str
    cid: int
    component: str
    text: str


def connz_mismatches(answer: bytes, certificates: Mapping[bytes, bytes]) -> list[Mismatch]:
    """The connections whose credential was not issued, or not to the certificate that they show.

    `answer` is what the broker says about one account.  `certificates` has, for every live credential, the SHA-256
    of its text and the SHA-256 of the client certificate (DER) that proved the identity when it was issued
    (`CredentialIssued.credential_hash`, `.certificate`).  Raises `CouldNotVerify` for an answer that is not whole.
    """
    try:
        said = msgspec.json.decode(answer, type=_Answer)
    except NOT_DECODED as exc:
        raise CouldNotVerify("CONNZ", f"the broker's connection list cannot be read: {exc}") from exc
    if said.data.total != len(said.data.connections):
        raise CouldNotVerify("CONNZ", f"the broker lists {len(said.data.connections)} of {said.data.total} connections")
    found: list[Mismatch] = []
    for connection in said.data.connections:
        shown = connection.tls_peer_certs[0].cert_sha256 if connection.tls_peer_certs else ""
        component, code, text = "", "", ""
        try:
            component = decode_credential(connection.jwt).component
        except (Malformed, Unverified) as exc:
            code, text = "CONNECTION_CREDENTIAL", f"not a session's token: {exc.text}"
        else:
            issued = certificates.get(hashlib.sha256(connection.jwt.encode("ascii")).digest())
            if issued is None:
                code, text = "CONNECTION_UNLISTED", f"{component} is connected with a credential that was never listed"
            elif issued.hex() != shown:
                code = "CONNECTION_CERTIFICATE"
                text = f"{component}'s credential was issued to certificate {issued.hex()[:16]}, shown is {shown[:16] or 'none'}"
        if code:
            found.append(
                msgspec.convert(
                    {
                        "code": code,
                        "server": said.server.id,
                        "cid": connection.cid,
                        "component": component,
                        "text": text,
                    },
                    Mismatch,
                )
            )
    return found
