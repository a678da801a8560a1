"""Credentials, breakers, arming, alerts, heartbeats, dead letters and audit checkpoints."""

from __future__ import annotations

from decimal import Decimal
from typing import Final, Literal

import msgspec

from tallystick.schemas.ed25519 import KEY_BYTES
from tallystick.schemas.errors import Malformed
from tallystick.schemas.event import Boot, Count, Event, Hash, Id, Int64, PublicKey, check_decimal, check_length

# A dead letter keeps the offending bytes up to this; beyond it only their hash.
MAX_DEAD_PAYLOAD: Final = 65_536

# How the reason of a revocation begins whose component sent more than its quota: a strategy's breaker trips on it.
QUOTA_EXCEEDED: Final = "QUOTA_EXCEEDED"


class CredentialIssued(Event, frozen=True, array_like=True, kw_only=True, tag="cred.issued/1"):
    """The authority handed out a session: published before the hand-out.

    `[…, boot, session_key, credential_hash, issued_at, expires_at, method, certificate]`;
    `session_key` is the raw Ed25519 public key, times are Unix nanoseconds, `certificate` the
    SHA-256 of the client certificate that proved the identity.  `method` is `spiffe-mtls`, and where the trust root
    demands more, `+` and its kind (`methods`); for a token that opens one session a blank and the SHA-256 (hex) of its id.
    """

    boot: Boot
    session_key: PublicKey
    credential_hash: Hash
    issued_at: Int64
    expires_at: Int64
    method: str
    certificate: Hash


class CertificateIssued(Event, frozen=True, array_like=True, kw_only=True, tag="cred.certificate/1"):
    """The authority renewed a component's certificate: published before it is handed out.

    `[…, certificate, replaces, issued_at, expires_at]`: SHA-256 (DER) of the new one and of the one that it was asked
    for under, its life in Unix nanoseconds.
    """

    certificate: Hash
    replaces: Hash
    issued_at: Int64
    expires_at: Int64


class SessionRevoked(Event, frozen=True, array_like=True, kw_only=True, tag="cred.revoked/1"):
    """Every session of a boot is dead from here on: `[…, boot, reason]`."""

    boot: Boot
    reason: str


class BootEnded(Event, frozen=True, array_like=True, kw_only=True, tag="cred.ended/1"):
    """A boot ended (its process is gone or was replaced): `[…, boot, reason]`."""

    boot: Boot
    reason: str


class ComponentRevocation(Event, frozen=True, array_like=True, kw_only=True, tag="cred.revocation/1"):
    """The operator revoked a component, or admitted it again: `[…, note]` (see `trust.Revocation`).

    Said when it happens, and again from time to time while it is the newest.
    """

    note: str


class ListedSession(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One live session: `[component, boot, credential_hash, expires_at, session_key]`."""

    component: str
    boot: Boot
    credential_hash: Hash
    expires_at: Int64
    session_key: bytes = b""

    def __post_init__(self) -> None:
        check_length(self.session_key, KEY_BYTES, "session_key")


class SessionList(Event, frozen=True, array_like=True, kw_only=True, tag="cred.list/1"):
    """The authority's heartbeat on `cred.authority`: every live and revoked session, whole.

    `[…, number, live, revoked]`; `number` rises by one each time, `revoked` holds the credential
    hashes of revoked sessions that have not expired yet.
    """

    number: Count
    live: tuple[ListedSession, ...]
    revoked: tuple[Hash, ...]


class Trip(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One tripped breaker: `[scope, reason, since, by]`; see `BreakerHeartbeat` for scopes."""

    scope: str
    reason: str
    since: Int64
    by: str


class BreakerHeartbeat(Event, frozen=True, array_like=True, kw_only=True, tag="breaker.heartbeat/1"):
    """All tripped breakers, whole, several times a second on `control.breaker.all`: `[…, number, tripped]`.

    Scopes: `all`, `strategy-<name>`, `venue-<name>`.  No heartbeat means: everything is tripped.
    """

    number: Count
    tripped: tuple[Trip, ...]


class BreakerTripped(Event, frozen=True, array_like=True, kw_only=True, tag="breaker.tripped/1"):
    """A breaker opened, on `control.breaker.<scope>`: `[…, reason, by]`."""

    reason: str
    by: str


class BreakerRearmed(Event, frozen=True, array_like=True, kw_only=True, tag="breaker.rearmed/1"):
    """A person closed a breaker: `[…, note]`, the operator-signed note that says so."""

    note: str


class Arm(Event, frozen=True, array_like=True, kw_only=True, tag="control.arm/1"):
    """An operator-signed lease that lets execution trade: `[…, note]` (see `arming.ArmLease`)."""

    note: str


class ConfigChanged(Event, frozen=True, array_like=True, kw_only=True, tag="control.config/1"):
    """A component states the configuration that it runs with: `[…, name, digest, text]`."""

    name: str
    digest: Hash
    text: str = ""


class IncidentStep(Event, frozen=True, array_like=True, kw_only=True, tag="control.incident/1"):
    """A step of the answer to a compromise: `[…, note]`, an operator-signed `incidents.Incident`."""

    note: str


class KeyRotation(Event, frozen=True, array_like=True, kw_only=True, tag="control.rotation/1"):
    """A step of the rotation of `holder`'s API key at `venue`: `[…, rotation, venue, holder, step, old, new, public_key, text]`.

    `old` and `new` are the SHA-256 of the keys' ids (`new` is empty until the venue made one), `public_key` the new one's in
    PEM, empty until it is born; `step` is `rotation.Step`, `text` says why.
    """

    rotation: str
    venue: str
    holder: str
    step: str
    old: Hash
    new: bytes
    public_key: str
    text: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.new:
            check_length(self.new, 32, "new")


class KeyAsked(Event, frozen=True, array_like=True, kw_only=True, tag="control.key-asked/1"):
    """The keymaster asks `holder` for something about a key of its token: `[…, rotation, holder, op, key_id]`.

    `op`: `current` (which key is in use), `born` (make it, or say its public key), `probe` (sign a question about its own
    rights with it), `switch` (read from the vault which key to sign with), `forget` (destroy it).
    """

    rotation: str
    holder: str
    op: Literal["current", "born", "probe", "switch", "forget"]
    key_id: str


class KeyAnswered(Event, frozen=True, array_like=True, kw_only=True, tag="control.key-answered/1"):
    """What a holder answers to `KeyAsked` of id `asked`: `[…, asked, code, text, result]`.

    `code` is "" where it was done, else `text` says why not.  `result` of `born` is the public key (PEM); of `probe` the signed
    query, which is valid for a second; of `current` and `switch` a blank between the key's id in the token and the SHA-256
    (hex) of its id at the venue.
    """

    asked: Id
    code: str
    text: str
    result: str


class RotationOrdered(Event, frozen=True, array_like=True, kw_only=True, tag="control.rotation-ordered/1"):
    """An operator wants a key changed now: `[…, note]`, the signed `rotation_orders.RotationOrder`."""

    note: str


class RootInForce(Event, frozen=True, array_like=True, kw_only=True, tag="control.root/1"):
    """A component states the trust root that it decides by: `[…, note]`, the signed note itself."""

    note: str


class Alert(Event, frozen=True, array_like=True, kw_only=True, tag="alert/1"):
    """A detector's finding: `[…, code, scope, text, value, limit]`; `scope` as in `BreakerHeartbeat`."""

    code: str
    scope: str
    text: str
    value: Decimal | None = None
    limit: Decimal | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for number, what in ((self.value, "value"), (self.limit, "limit")):
            if number is not None:
                check_decimal(number, what)


class Checkpoint(Event, frozen=True, array_like=True, kw_only=True, tag="audit.checkpoint/1"):
    """The archive's state: `[…, entries, head, rows]`: manifest entries, SHA-256 of the last, rows in all."""

    entries: Count
    head: Hash
    rows: Count


class StreamTotal(Event, frozen=True, array_like=True, kw_only=True, tag="audit.stream/1"):
    """What one stream of the archive comes to, beside a `Checkpoint`: `[…, stream, messages, last_seq, digest]`.

    `digest` runs over all its messages, with their times of storage (see `record.totals`).
    """

    stream: str
    messages: Count
    last_seq: Count
    digest: Hash


class Cosignature(Event, frozen=True, array_like=True, kw_only=True, tag="audit.cosignature/1"):
    """A witness's word on a checkpoint: `[…, entries, head, note]`."""

    entries: Count
    head: Hash
    note: str


class Head(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The newest acknowledged statement of a chain: `[stream, seq, hash]`."""

    stream: str
    seq: Count
    hash: Hash


class Heartbeat(Event, frozen=True, array_like=True, kw_only=True, tag="guard.heartbeat/1"):
    """A component lives, each second with news on `guard.<component>`: `[…, heads]`, so that a dropped tail shows."""

    heads: tuple[Head, ...]


class Notice(Event, frozen=True, array_like=True, kw_only=True, tag="guard.notice/1"):
    """A component saw something that security people must know: `[…, code, text, evidence]`."""

    code: str
    text: str
    evidence: bytes = b""


class DeadLetter(Event, frozen=True, array_like=True, kw_only=True, tag="dead/1"):
    """A message that could not be processed: `[…, subject, stream, stream_seq, code, text, digest, payload]`."""

    subject: str
    stream: str
    stream_seq: Count
    code: str
    text: str
    digest: Hash
    payload: bytes = b""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.payload) > MAX_DEAD_PAYLOAD:
            raise Malformed("DEAD_PAYLOAD", f"{len(self.payload)} bytes, limit {MAX_DEAD_PAYLOAD}")
