"""The seal: one signature for a whole flush, each message still verifiable alone, at once and in years.

Wire form (all msgpack; sizes in bytes)::

    leaf      = SHA-256(0x00 ‖ u16 big-endian len(subject) ‖ subject ‖ events)      tree: RFC 6962
    statement = "tallystick seal v1" 0x00 ‖ msgpack [deployment, component, boot(16), stream, seq,
                prev(32), size, root(32), time, flags, SHA-256(credential)(32)]
    payload   = msgpack [1, credential, statement, signature(64), index, path, events]

`credential` is the component's NATS user JWT; `signature` is Ed25519 by the session key that it
names; `events` is the canonical array of `registry`; `path` an array of 32-byte hashes.

What `Verifier.open` checks, in this order, for live and historical messages alike:

1. the subject parses and its kind belongs to the stream that it was read from;
2. the payload is of this version and canonical: it re-encodes to the same bytes;
3. the credential is signed by the role key that the trust root names for its component, its boot and
   lifetime are well-formed;
4. the statement is canonical and names this deployment and the credential's component, boot and hash;
5. the session key signed the statement;
6. the statement's time lies in the credential's lifetime (`iat` - 1 s to `exp`);
7. the statement names this stream;
8. subject and events are leaf `index` of the signed tree;
9. the trust root lets the component publish this subject;
10. the events are canonical and of a type that may stand on the subject; only a closing statement has
   none.

`require_live` adds, with the clock of the receiver: not older than the subject's maximum age, not
from the future.  `ReaderChains` adds what a sequence of messages must satisfy: seq never falls,
(seq, index) is new, one seq has one statement and the next one names it as `prev` (otherwise a stolen
key or a double run is proven), nothing follows a closing statement.

- The broker is not trusted: whoever controls it can withhold, delay or reorder messages between
  chains, and nothing else; subject, stream and deployment are signed, positions are used once.
- Headers prove nothing and are not read.
"""

from __future__ import annotations

import functools
import hashlib
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec

from tallystick.schemas import registry
from tallystick.schemas.bounds import MAX_SKEW_NS
from tallystick.schemas.credential import Credential, open_credential
from tallystick.schemas.ed25519 import SIGNATURE_BYTES, BadSignature, verify
from tallystick.schemas.errors import NOT_DECODED, Ahead, Malformed, Stale, Unverified
from tallystick.schemas.event import Event
from tallystick.schemas.merkle import HASH_BYTES, Tree, inclusion_path, leaf_hash, tree_levels
from tallystick.schemas.nats_jwt import Signer
from tallystick.schemas.subjects import STREAMS, Subject, parse_subject
from tallystick.schemas.trust import TrustRoot

VERSION: Final = 1
PREFIX: Final = b"tallystick seal v1\x00"
GENESIS: Final = bytes(HASH_BYTES)
FLAG_CLOSE: Final = 1
# 2^12 messages keep every path below 13 hashes and one signature check below its share of a flush.
MAX_FLUSH: Final = 4096
# What a payload holds besides its events: a credential and a statement at their limits, a signature, a path.
SEAL_BYTES: Final = 4_096
MAX_STATEMENT: Final = 1024
# seq and time fit 64 signed bits, as the archive holds them.
MAX_INT: Final = 2**63 - 1
# Verified statements remembered so that a flush costs one signature check.
STATEMENT_CACHE: Final = 1024

_U16 = struct.Struct(">H")
_encoder = msgspec.msgpack.Encoder()


class Statement(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What the session key signs for one flush; `time` is Unix nanoseconds, `flags` bit 0 closes the chain."""

    deployment: str
    component: str
    boot: bytes
    stream: str
    seq: int
    prev: bytes
    size: int
    root: bytes
    time: int
    flags: int
    credential: bytes

    @property
    def closes(self) -> bool:
        """Whether this is the last statement of its chain."""
        return bool(self.flags & FLAG_CLOSE)


class Payload(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One sealed message as it travels: `[1, credential, statement, signature, index, path, events]`."""

    version: int
    credential: str
    statement: bytes
    signature: bytes
    index: int
    path: tuple[bytes, ...]
    events: bytes


class Verified(msgspec.Struct, frozen=True):
    """A message that passed `Verifier.open`; `leaf` is its leaf hash, `digest` its statement's SHA-256."""

    subject: Subject
    events: list[Event]
    statement: Statement
    credential: Credential
    index: int
    leaf: bytes
    digest: bytes
    payload: bytes


_statement_decoder = msgspec.msgpack.Decoder(Statement)
_payload_decoder = msgspec.msgpack.Decoder(Payload)


def max_payload(kind: str) -> int:
    """The most bytes of a sealed message on a subject of `kind`: its events and its seal."""
    return registry.MAX_SIZE[kind][1] + SEAL_BYTES


def message_leaf(subject: str, events: bytes) -> bytes:
    """The leaf hash that binds a message's events to its subject."""
    return leaf_hash(_leaf_head(subject) + events)


@functools.lru_cache(maxsize=1024)
def _leaf_head(subject: str) -> bytes:
    name = subject.encode("ascii")
    return _U16.pack(len(name)) + name


def encode_statement(statement: Statement) -> bytes:
    """The bytes that are signed and hashed."""
    return PREFIX + _encoder.encode(statement)


def decode_statement(raw: bytes) -> Statement:
    """The statement of `raw`.  Raises `Malformed` for anything that is not its canonical encoding."""
    if len(raw) > MAX_STATEMENT or not raw.startswith(PREFIX):
        raise Malformed("STATEMENT", "not a seal statement (prefix or length)")
    try:
        statement = _statement_decoder.decode(raw[len(PREFIX) :])
    except NOT_DECODED as exc:
        raise Malformed("STATEMENT", str(exc)) from exc
    if encode_statement(statement) != raw:
        raise Malformed("STATEMENT_CANONICAL", "statement does not re-encode to the same bytes")
    lengths = (len(statement.boot), len(statement.prev), len(statement.root), len(statement.credential))
    if lengths != (16, HASH_BYTES, HASH_BYTES, HASH_BYTES):
        raise Malformed("STATEMENT", f"boot, prev, root, credential have lengths {lengths}, not (16, 32, 32, 32)")
    if not 0 <= statement.seq <= MAX_INT or not 0 <= statement.time <= MAX_INT or not 1 <= statement.size <= MAX_FLUSH:
        raise Malformed("STATEMENT", f"seq {statement.seq}, time {statement.time}, size {statement.size}")
    if statement.flags & ~FLAG_CLOSE:
        raise Malformed("STATEMENT_FLAGS", f"unknown flags {statement.flags:#x}")
    if statement.stream not in STREAMS:
        raise Malformed("STATEMENT_STREAM", f"unknown stream {statement.stream[:32]!r}")
    if (statement.prev == GENESIS) != (statement.seq == 0):
        raise Malformed("STATEMENT_PREV", f"seq {statement.seq} with prev {statement.prev.hex()[:16]}…")
    return statement


def statement_digest(raw: bytes) -> bytes:
    """SHA-256 of a statement's bytes: what the next statement names as `prev`."""
    return hashlib.sha256(raw).digest()


class ChainWriter:
    """Seals the flushes of one (component, boot, stream).

    Owns seq and prev.  A renewal replaces `credential` and `signer` together (`renew`) between two
    flushes; the chain goes on under the new key.
    """

    def __init__(self, credential: Credential, signer: Signer, stream: str) -> None:
        self.stream = stream
        self.seq = 0
        self.prev = GENESIS
        self.closed = False
        self.renew(credential, signer)

    def renew(self, credential: Credential, signer: Signer) -> None:
        """Go on under a renewed credential of the same component and boot."""
        if signer.public != credential.session_key:
            raise Malformed("SESSION_KEY", "the signer is not the session key that the credential names")
        self._credential = credential
        self._signer = signer

    def seal(self, messages: Sequence[tuple[str, bytes]], time: int, *, close: bool = False) -> list[tuple[str, bytes]]:
        """Seal one flush of (subject, encoded events) at `time` (Unix ns): (subject, payload) in the same order.

        The chain advances at once: the caller publishes exactly these bytes until each is
        acknowledged, and never seals the same messages again.  Raises `Malformed`.
        """
        if self.closed:
            raise Malformed("CHAIN_CLOSED", f"the chain of {self.stream} is closed")
        if not 1 <= len(messages) <= MAX_FLUSH:
            raise Malformed("FLUSH_SIZE", f"{len(messages)} messages in a flush, limit {MAX_FLUSH}")
        for subject, _ in messages:
            if parse_subject(subject).stream != self.stream:
                raise Malformed("FLUSH_STREAM", f"{subject} does not belong to {self.stream}")
        credential = self._credential
        levels = tree_levels([message_leaf(subject, events) for subject, events in messages])
        statement = encode_statement(
            Statement(
                deployment=credential.deployment,
                component=credential.component,
                boot=credential.boot,
                stream=self.stream,
                seq=self.seq,
                prev=self.prev,
                size=len(messages),
                root=levels[-1][0],
                time=time,
                flags=FLAG_CLOSE if close else 0,
                credential=credential.digest,
            )
        )
        signature = self._signer.sign(statement)
        sealed = [
            (
                subject,
                _encoder.encode(
                    Payload(
                        version=VERSION,
                        credential=credential.text,
                        statement=statement,
                        signature=signature,
                        index=index,
                        path=tuple(inclusion_path(levels, index)),
                        events=events,
                    )
                ),
            )
            for index, (subject, events) in enumerate(messages)
        ]
        for subject, payload in sealed:
            limit = max_payload(parse_subject(subject).kind)
            if len(payload) > limit:
                raise Malformed("PAYLOAD_SIZE", f"{len(payload)} bytes on {subject}, limit {limit}")
        self.seq += 1
        self.prev = statement_digest(statement)
        self.closed = close
        return sealed


class Verifier:
    """Opens sealed messages of one deployment under one trust root; see the module docstring for the rules.

    Owns two bounded caches (credentials, statements) keyed by exact bytes: a hit means that these very
    bytes were verified before under this trust root, so it skips no rule that depends on time.
    """

    def __init__(self, trust: TrustRoot) -> None:
        self.trust = trust
        self._credentials: dict[str, Credential] = {}
        self._statements: dict[tuple[bytes, bytes, str], tuple[Statement, Credential, bytes, Tree]] = {}

    def know(self, sealed: bytes, credential: Credential) -> None:
        """Remember the statement of a message that this process sealed itself under `credential`: it will read it."""
        payload = _payload_decoder.decode(sealed)
        self._remember(payload, decode_statement(payload.statement), credential)

    def credential(self, text: str) -> Credential:
        """The credential in `text`, of a component of the trust root.  Raises `Malformed` or `Unverified`."""
        known = self._credentials.get(text)
        if known is None:
            known = open_credential(text, self.trust)
            if len(self._credentials) >= STATEMENT_CACHE:
                del self._credentials[next(iter(self._credentials))]
            self._credentials[text] = known
        return known

    def _statement(self, payload: Payload) -> tuple[Statement, Credential, bytes, Tree]:
        known = self._statements.get((payload.statement, payload.signature, payload.credential))
        if known is not None:
            return known
        credential = self.credential(payload.credential)
        statement = decode_statement(payload.statement)
        if statement.deployment != self.trust.deployment:
            raise Unverified("DEPLOYMENT", f"sealed for {statement.deployment}, this is {self.trust.deployment}")
        if (statement.component, statement.boot, statement.credential) != (
            credential.component,
            credential.boot,
            credential.digest,
        ):
            raise Unverified("STATEMENT_CREDENTIAL", "statement and credential name different sessions")
        if len(payload.signature) != SIGNATURE_BYTES:
            raise Malformed("SIGNATURE", f"{len(payload.signature)} bytes, not {SIGNATURE_BYTES}")
        try:
            verify(credential.session_key, payload.signature, payload.statement)
        except BadSignature as exc:
            raise Unverified("SIGNATURE", f"not signed by the session key of {credential.component}") from exc
        if not credential.issued_at - MAX_SKEW_NS <= statement.time <= credential.expires_at:
            raise Unverified(
                "CREDENTIAL_EXPIRED",
                f"stated at {statement.time}, credential holds {credential.issued_at} to {credential.expires_at}",
            )
        return self._remember(payload, statement, credential)

    def _remember(
        self, payload: Payload, statement: Statement, credential: Credential
    ) -> tuple[Statement, Credential, bytes, Tree]:
        known = (statement, credential, statement_digest(payload.statement), Tree(statement.root, statement.size))
        if len(self._statements) >= STATEMENT_CACHE:
            del self._statements[next(iter(self._statements))]
        self._statements[payload.statement, payload.signature, payload.credential] = known
        return known

    def open(self, subject_text: str, stream: str, raw: bytes) -> Verified:
        """Verify one message as read from `stream` under `subject_text`.  Raises `Malformed` or `Unverified`."""
        subject = parse_subject(subject_text)
        if subject.stream != stream:
            raise Unverified("STREAM", f"{subject_text} does not belong to {stream}")
        limit = max_payload(subject.kind)
        if len(raw) > limit:
            raise Malformed("PAYLOAD_SIZE", f"{len(raw)} bytes on {subject.kind}, limit {limit}")
        try:
            payload = _payload_decoder.decode(raw)
        except NOT_DECODED as exc:
            raise Malformed("PAYLOAD", f"not a sealed message: {exc}") from exc
        if payload.version != VERSION:
            raise Malformed("PAYLOAD_VERSION", f"version {payload.version}, this verifier reads {VERSION}")
        if _encoder.encode(payload) != raw:
            raise Malformed("PAYLOAD_CANONICAL", "payload does not re-encode to the same bytes")
        statement, credential, digest, tree = self._statement(payload)
        if statement.stream != stream:
            raise Unverified("STATEMENT_STREAM", f"sealed for {statement.stream}, read from {stream}")
        leaf = message_leaf(subject_text, payload.events)
        tree.require(leaf, payload.index, payload.path)
        self.trust.require_scope(credential.component, subject_text)
        events = registry.decode_events(subject.kind, payload.events)
        if not events and not statement.closes:
            raise Malformed("EVENTS_EMPTY", "only a closing statement has no events")
        return Verified(
            subject=subject,
            events=events,
            statement=statement,
            credential=credential,
            index=payload.index,
            leaf=leaf,
            digest=digest,
            payload=raw,
        )


def require_live(verified: Verified, received: int) -> None:
    """Raise `Stale` or `Ahead` unless the message is fresh at `received` (Unix ns, the receiver's clock)."""
    age = received - verified.statement.time
    limit = registry.MAX_AGE_NS[verified.subject.kind]
    if age > limit:
        raise Stale("STALE", f"{verified.subject.text} is {age / 1e9:.3f} s old, limit {limit / 1e9:.0f} s")
    if age < -MAX_SKEW_NS:
        raise Ahead("FUTURE", f"{verified.subject.text} is stated {-age / 1e9:.3f} s ahead of this clock")


class ChainRecord(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a reader knows of one chain: its newest statement, the places in it that were used, whether it closed."""

    component: str
    boot: bytes
    seq: int
    digest: bytes
    indexes: tuple[int, ...]
    closed: bool


def _place(statement: Statement) -> str:
    return f"{statement.component}/{statement.boot.hex()[:8]} {statement.stream} seq {statement.seq}"


class _Chain:
    __slots__ = ("closed", "digest", "indexes", "seq")

    def __init__(self) -> None:
        self.seq = -1
        self.digest = b""
        self.indexes: set[int] = set()
        self.closed = False


class ReaderChains:
    """What a reader of part of a stream demands of each chain; see the module docstring.

    One instance a stream.  It holds one record a live chain: `forget` drops a boot that ended.
    """

    def __init__(self) -> None:
        self._chains: dict[tuple[str, bytes], _Chain] = {}

    def accept(self, verified: Verified) -> None:
        """Record the message's position.  Raises `Unverified` for a fallen seq, a repeat, a fork or a closed chain."""
        statement = verified.statement
        key = (statement.component, statement.boot)
        chain = self._chains.get(key)
        if chain is None:
            chain = self._chains[key] = _Chain()
        if statement.seq < chain.seq:
            raise Unverified("REPLAY", f"{_place(statement)} after seq {chain.seq}")
        if statement.seq > chain.seq:
            if chain.closed:
                raise Unverified("CLOSED", f"{_place(statement)} after the closing statement {chain.seq}")
            # Readers of a part of the stream see gaps; where there is none, the link must hold.
            if chain.seq >= 0 and statement.seq == chain.seq + 1 and statement.prev != chain.digest:
                text = f"{_place(statement)} does not follow the statement before: a stolen key or a double run"
                raise Unverified("FORK", text)
            chain.closed = statement.closes
            chain.seq = statement.seq
            chain.digest = verified.digest
            chain.indexes = {verified.index}
            return
        if verified.digest != chain.digest:
            raise Unverified("FORK", f"{_place(statement)} has two statements: a stolen key or a double run")
        if verified.index in chain.indexes:
            raise Unverified("REPLAY", f"{_place(statement)} index {verified.index} was read before")
        chain.indexes.add(verified.index)

    def records(self) -> list[ChainRecord]:
        """What is known of each chain, from which `of` makes the same again."""
        return [
            ChainRecord(component, boot, c.seq, c.digest, tuple(sorted(c.indexes)), c.closed)
            for (component, boot), c in self._chains.items()
        ]

    @classmethod
    def of(cls, records: Iterable[ChainRecord]) -> ReaderChains:
        """The chains of such records."""
        made = cls()
        for record in records:
            chain = made._chains[record.component, record.boot] = _Chain()
            chain.seq, chain.digest, chain.closed = record.seq, record.digest, record.closed
            chain.indexes = set(record.indexes)
        return made

    def __len__(self) -> int:
        """How many chains are held."""
        return len(self._chains)

    def forget(self, keep: Callable[[str, bytes], bool]) -> None:
        """Drop the chains whose (component, boot) `keep` denies."""
        self._chains = {k: v for k, v in self._chains.items() if keep(*k)}
