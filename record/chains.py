"""Whole-stream verification: what the log as a whole must satisfy beyond each message's own seal.  Pure.

One `StreamChains` a stream and one `Sessions` for all of them, fed in log order.  Rules, in the order in
which they are applied to a message that `Verifier.open` accepted:

1. its credential was issued by an event of the authority that is logged before it (or in it), else it
   is `unlisted`: a stolen role key; it has no effect;
2. its boot was neither revoked nor ended by an event logged before it, else it is `late`, whatever time
   it claims; it has no effect;
3. its seq is not below its chain's, else it is refused `REPLAY` (or `FORK` if that seq is remembered with
   another statement);
4. its seq has one statement: a second one is refused `FORK`: a stolen key or a double run;
5. its (seq, index) is new, else it is refused `REPLAY`;
6. a new seq starts at 0, follows without hole, names the statement before it, and comes after every
   index of that one was there and not after a closing statement: otherwise it counts, and the hole is a
   defect of the log (`HOLE`, `LINK`, `AFTER_CLOSE`), at this position.

At the end of a chain: the last flush of a boot that ended, was revoked or was replaced may be incomplete
(`torn`: nobody acted on it, publishers act after the acknowledgement); of a live boot it is in flight.
Heads in heartbeats name what was acknowledged: one beyond what is stored is a dropped tail.

- A defect is what can only be explained by loss or tampering after sealing, or by a stolen session key.
- An incident is an attack that the log faithfully shows and that had no effect.
- A thief of a role key can add chains of unlisted sessions, which count as nothing, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from tallystick.record import rows
from tallystick.record.heads import Owners, impossible, stated
from tallystick.schemas.errors import NOT_DECODED, Malformed, TallystickError
from tallystick.schemas.seal import GENESIS, MAX_FLUSH, Statement, Verified, Verifier
from tallystick.schemas.security import BootEnded, CredentialIssued, Head, SessionRevoked
from tallystick.schemas.subjects import GUARD, SECURITY, STREAMS

# Statements of a chain that are remembered, to tell a fork from a replay and to compare heads.
REMEMBERED: Final = 256
# How long sessions under a replaced trust root may go on: a renewal and its hand-over.
HANDOVER_NS: Final = 60_000_000_000

ChainKey = tuple[str, bytes]  # component, boot
# What a message refers to: the issuance of a credential (its hash), or a statement (component, boot, seq).
Reference = bytes | tuple[str, bytes, int]


class Finding(msgspec.Struct, frozen=True):
    """Something wrong in the log: `defect` is loss, tampering or a stolen key; otherwise an incident without effect."""

    code: str
    text: str
    stream: str
    stream_seq: int
    component: str
    defect: bool


class Judgement(msgspec.Struct, frozen=True):
    """What one message counts for, and what it reveals."""

    status: str
    code: str = ""
    findings: tuple[Finding, ...] = ()


class Torn(msgspec.Struct, frozen=True):
    """The incomplete last flush of a chain whose boot is gone."""

    component: str
    boot: bytes
    stream: str
    seq: int
    missing: tuple[int, ...]


class Chain(msgspec.Struct):
    """The newest statement of one chain and which of its indexes (bits of `seen`) are stored.

    `late` are statements that came when its boot was over: no part of it, but stored.
    """

    seq: int = -1
    size: int = 0
    seen: int = 0
    closed: bool = False
    forked: bool = False
    last_stream_seq: int = 0
    digests: dict[int, bytes] = msgspec.field(default_factory=dict)
    late: dict[int, bytes] = msgspec.field(default_factory=dict)

    @property
    def missing(self) -> tuple[int, ...]:
        """Indexes of the newest flush that are not there."""
        if self.seen == (1 << self.size) - 1:
            return ()
        return tuple(i for i in range(self.size) if not self.seen >> i & 1)


class Sessions:
    """What the authority's events in the log say: when (log index) credentials were issued and boots died."""

    def __init__(self) -> None:
        self.issued: dict[bytes, int] = {}
        self.dead: dict[bytes, int] = {}
        self.newest: dict[str, bytes] = {}

    def apply(self, verified: Verified, log_index: int) -> None:
        """Take in one opened message of `cred.>`; the trust root lets the authority alone publish there."""
        for event in verified.events:
            if isinstance(event, CredentialIssued):
                self.issued.setdefault(event.credential_hash, log_index)
                self.newest[verified.subject.component] = event.boot
            elif isinstance(event, SessionRevoked | BootEnded):
                self.dead.setdefault(event.boot, log_index)

    def listed(self, credential: bytes, log_index: int) -> bool:
        """Whether a credential (hash) was issued before or at `log_index`."""
        at = self.issued.get(credential)
        return at is not None and at <= log_index

    def died(self, boot: bytes, log_index: int) -> bool:
        """Whether a boot was revoked or had ended before `log_index`."""
        at = self.dead.get(boot)
        return at is not None and at < log_index

    def gone(self, component: str, boot: bytes) -> bool:
        """Whether a boot is over: ended, revoked, or replaced by a newer one."""
        return boot in self.dead or self.newest.get(component, boot) != boot


class StreamChains:
    """All chains of one stream; see the module docstring.  Owns one `Chain` for each (component, boot)."""

    def __init__(self, stream: str, sessions: Sessions) -> None:
        self.stream = stream
        self.sessions = sessions
        self.chains: dict[ChainKey, Chain] = {}

    def judge(self, opened: Verified | TallystickError, log_index: int, stream_seq: int, owner: str = "") -> Judgement:
        """What the next message counts for.  `opened` is what `Verifier.open` returned or raised.

        `owner` is the component whose subject it stands under: the one who can write there, for what proves nothing.
        """
        if isinstance(opened, TallystickError):
            by = f"written by {owner}" if owner else "nobody's subject, so by the broker"
            if opened.code == "STREAM":
                by = "an answer of the broker that somebody had stored here, or the broker's own doing"
            finding = self._incident(opened.code, f"{opened.text} ({by})", stream_seq, owner)
            return Judgement(rows.REFUSED, opened.code, (finding,))
        statement = opened.statement
        component, boot = statement.component, statement.boot
        if not (self.sessions.listed(statement.credential, log_index) or _issues_itself(opened)):
            text = f"{whose(statement)} was never issued by the authority: a stolen role key"
            return Judgement(rows.UNLISTED, "UNLISTED", (self._incident("UNLISTED", text, stream_seq, component),))
        if self.sessions.died(boot, log_index):
            if (chain := self.chains.get((component, boot))) is not None:
                chain.late[statement.seq] = opened.digest
                chain.late.pop(statement.seq - REMEMBERED, None)
            text = f"{whose(statement)} spoke after its revocation or end"
            return Judgement(rows.LATE, "LATE", (self._incident("LATE", text, stream_seq, component),))
        judgement = self._link(opened, stream_seq)
        if judgement.status == rows.OK and opened.subject.kind == "cred":
            self.sessions.apply(opened, log_index)
        return judgement

    def _link(self, opened: Verified, stream_seq: int) -> Judgement:
        statement = opened.statement
        key = (statement.component, statement.boot)
        chain = self.chains.get(key)
        if chain is None:
            chain = self.chains[key] = Chain()
        where = f"{whose(statement)} seq {statement.seq}"

        def refused(code: str, text: str, *, defect: bool) -> Judgement:
            finding = Finding(code, text, self.stream, stream_seq, statement.component, defect)
            return Judgement(rows.REFUSED, code, (finding,))

        if statement.seq <= chain.seq:
            known = chain.digests.get(statement.seq)
            if known is not None and known != opened.digest:
                chain.forked = True
                return refused("FORK", f"{where} has two statements: a stolen key or a double run", defect=True)
            if statement.seq < chain.seq:
                return refused("REPLAY", f"{where} after seq {chain.seq}", defect=False)
            if chain.seen >> opened.index & 1:
                return refused("REPLAY", f"{where} index {opened.index} was logged before", defect=False)
            chain.seen |= 1 << opened.index
            chain.last_stream_seq = stream_seq
            return Judgement(rows.OK)

        findings = tuple(
            Finding(code, text, self.stream, stream_seq, statement.component, defect=True)
            for code, text in self._defects(chain, opened, where)
        )
        chain.seq = statement.seq
        chain.size = statement.size
        chain.seen = 1 << opened.index
        chain.closed = statement.closes
        chain.last_stream_seq = stream_seq
        chain.digests[statement.seq] = opened.digest
        chain.digests.pop(statement.seq - REMEMBERED, None)
        return Judgement(rows.OK, "", findings)

    def _defects(self, chain: Chain, opened: Verified, where: str) -> Iterator[tuple[str, str]]:
        statement = opened.statement
        if chain.closed:
            yield "AFTER_CLOSE", f"{where} after the closing seq {chain.seq}"
        if chain.seq >= 0 and (missing := chain.missing):
            yield (
                "HOLE",
                (
                    f"{where} follows seq {chain.seq}, which lacks {_some(missing, chain.size)} "
                    f"(after {self.stream} {chain.last_stream_seq})"
                ),
            )
        if statement.seq != chain.seq + 1:
            yield (
                "HOLE",
                (
                    f"{where} follows {f'seq {chain.seq}' if chain.seq >= 0 else 'nothing'}: "
                    f"seq {_span(chain.seq + 1, statement.seq - 1)} missing (after {self.stream} {chain.last_stream_seq})"
                ),
            )
        elif not chain.forked and statement.prev != chain.digests.get(chain.seq, GENESIS):
            yield "LINK", f"{where} names another statement as seq {chain.seq}: a fork by a stolen key"

    def _incident(self, code: str, text: str, stream_seq: int, component: str) -> Finding:
        return Finding(code, text, self.stream, stream_seq, component, defect=False)

    def torn(self) -> list[Torn]:
        """Incomplete last flushes of boots that are over."""
        return [
            Torn(component, boot, self.stream, chain.seq, chain.missing)
            for (component, boot), chain in self.chains.items()
            if chain.missing and self.sessions.gone(component, boot)
        ]

    def head_defect(self, component: str, boot: bytes, head: Head) -> str | None:
        """Why an acknowledged `head` of this stream is not borne out by what is stored; None if it is."""
        chain = self.chains.get((component, boot))
        where = f"{component}/{boot.hex()[:8]} stated that seq {head.seq} of {self.stream} is stored"
        if chain is None:
            return f"{where}, none of its messages is: it lies, or they were dropped"
        if chain.seq < head.seq:
            if chain.late.get(head.seq) == head.hash:
                return None
            last = f"{self.stream} {chain.last_stream_seq}"
            return f"{where}, seq {chain.seq} is the last (at {last}): it lies, or the rest was dropped"
        if chain.seq == head.seq and (missing := chain.missing):
            return f"{where}, which lacks {_some(missing, chain.size)}"
        known = chain.digests.get(head.seq)
        if known is not None and known != head.hash:
            return f"{where} with hash {head.hash.hex()[:16]}…, stored is {known.hex()[:16]}…"
        return None


def whose(statement: Statement) -> str:
    """Who sealed a message: component, boot, and the session (the beginning of its credential's hash)."""
    return f"{statement.component}/{statement.boot.hex()[:8]} (session {statement.credential.hex()[:8]})"


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first} to {last}"


def _some(missing: tuple[int, ...], size: int) -> str:
    shown = ", ".join(map(str, missing[:8]))
    return f"index {shown}{'…' if len(missing) > 8 else ''} ({len(missing)} of {size} messages)"


def _issues_itself(opened: Verified) -> bool:
    """Whether a `cred` message issues the very session that sealed it: how the authority begins."""
    return opened.subject.kind == "cred" and any(
        isinstance(event, CredentialIssued) and event.credential_hash == opened.statement.credential
        for event in opened.events
    )


class _ChainState(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    stream: str
    component: str
    boot: bytes
    seq: int
    size: int
    seen: bytes
    closed: bool
    forked: bool
    last_stream_seq: int
    digests: list[tuple[int, bytes]]


class _LogState(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    next_index: int
    issued: list[tuple[bytes, int]]
    dead: list[tuple[bytes, int]]
    newest: dict[str, bytes]
    heads: list[tuple[str, bytes, Head, int]]
    chains: list[_ChainState]


_state_decoder = msgspec.msgpack.Decoder(_LogState)
_SEEN_BYTES: Final = MAX_FLUSH // 8


class Log:
    """The whole log: sessions, the chains of every stream, heads that are not borne out yet, and the next log index.

    `verifiers` are those of all versions of the trust root: who may publish what.
    """

    def __init__(self, verifiers: Sequence[Verifier] = ()) -> None:
        self.next_index = 0
        self.sessions = Sessions()
        self.owners = Owners(verifiers)
        self.streams = {stream: StreamChains(stream, self.sessions) for stream in STREAMS}
        # (component, boot, stream) -> the newest head stated, and where on GUARD.
        self.heads: dict[tuple[str, bytes, str], tuple[Head, int]] = {}

    def judge(
        self, stream: str, opened: Verified | TallystickError, log_index: int, stream_seq: int, subject: str = ""
    ) -> Judgement:
        """What the message at `log_index` counts for; each stream must be fed in its order.

        `subject` is what it stands under: for one that cannot be opened, whoever owns that is named.
        """
        judgement = self.streams[stream].judge(opened, log_index, stream_seq, self.owners.of(subject))
        if judgement.status == rows.OK and isinstance(opened, Verified) and opened.subject.kind == "guard":
            return self._hear(opened, stream_seq, judgement)
        return judgement

    def _hear(self, opened: Verified, stream_seq: int, judgement: Judgement) -> Judgement:
        """Take in the heads that a counting message of `guard.<component>` states."""
        said = opened.statement
        if why := impossible(opened, self.owners):
            finding = Finding(
                "HEADS", f"{whose(said)} states {why}", said.stream, stream_seq, said.component, defect=False
            )
            return msgspec.structs.replace(judgement, findings=(*judgement.findings, finding))
        for head in stated(opened):
            key = (said.component, said.boot, head.stream)
            known = self.heads.get(key)
            if known is not None and head.seq <= known[0].seq:
                continue
            if self._head_defect(said.component, said.boot, head) is None:
                self.heads.pop(key, None)
            else:
                self.heads[key] = (head, stream_seq)
        return judgement

    def awaits(self, opened: Verified | TallystickError) -> list[tuple[str, Reference]]:
        """What a message refers to and the log does not have, with the other stream that should hold it.

        That is its session's issuance, or the heads that a heartbeat states.
        """
        if isinstance(opened, TallystickError):
            return []
        statement = opened.statement
        if not self.sessions.listed(statement.credential, self.next_index):
            return [] if statement.stream == SECURITY else [(SECURITY, statement.credential)]
        return [
            (head.stream, (statement.component, statement.boot, head.seq)) for head, _ in self._dropped_heads(opened)
        ]

    def dropped_heads(self, opened: Verified) -> list[str]:
        """The heads in a heartbeat that are not borne out by what is logged so far."""
        return [defect for _, defect in self._dropped_heads(opened)]

    def _dropped_heads(self, opened: Verified) -> list[tuple[Head, str]]:
        statement = opened.statement
        if opened.subject.kind != "guard" or impossible(opened, self.owners):
            return []
        return [
            (head, defect)
            for head in stated(opened)
            if (defect := self._head_defect(statement.component, statement.boot, head)) is not None
        ]

    def dropped(self) -> list[Finding]:
        """At the end of the log: acknowledged statements that it does not hold."""
        return [
            Finding("DROPPED", defect, GUARD, seq, component, defect=True)
            for (component, boot, _), (head, seq) in self.heads.items()
            if (defect := self._head_defect(component, boot, head)) is not None
        ]

    def _head_defect(self, component: str, boot: bytes, head: Head) -> str | None:
        return self.streams[head.stream].head_defect(component, boot, head)

    def torn(self) -> list[Torn]:
        """Incomplete last flushes of boots that are over, of all streams."""
        return [torn for chains in self.streams.values() for torn in chains.torn()]

    def forget(self) -> None:
        """Drop the chains of boots that are over and left nothing open: whatever else comes of them is `late`.

        For who judges a log in its order; so what is kept does not grow with boots.
        """
        for chains in self.streams.values():
            over = [k for k, chain in chains.chains.items() if k[1] in self.sessions.dead and not chain.missing]
            for key in over:
                del chains.chains[key]

    def dump(self) -> bytes:
        """The state as bytes, for `load`."""
        return msgspec.msgpack.encode(
            _LogState(
                next_index=self.next_index,
                issued=list(self.sessions.issued.items()),
                dead=list(self.sessions.dead.items()),
                newest=self.sessions.newest,
                heads=[(c, b, head, seq) for (c, b, _), (head, seq) in self.heads.items()],
                chains=[
                    _ChainState(
                        stream=stream,
                        component=component,
                        boot=boot,
                        seq=chain.seq,
                        size=chain.size,
                        seen=chain.seen.to_bytes(_SEEN_BYTES, "big"),
                        closed=chain.closed,
                        forked=chain.forked,
                        last_stream_seq=chain.last_stream_seq,
                        digests=list(chain.digests.items()),
                    )
                    for stream, chains in self.streams.items()
                    for (component, boot), chain in chains.chains.items()
                ],
            )
        )

    @classmethod
    def load(cls, data: bytes, verifiers: Sequence[Verifier] = ()) -> Log:
        """The log whose `dump` is `data`.  Raises `Malformed`."""
        try:
            state = _state_decoder.decode(data)
        except NOT_DECODED as exc:
            raise Malformed("LOG_STATE", f"not a dump of the log's state: {exc}") from exc
        log = cls(verifiers)
        log.next_index = state.next_index
        log.sessions.issued = dict(state.issued)
        log.sessions.dead = dict(state.dead)
        log.sessions.newest = state.newest
        log.heads = {(c, b, head.stream): (head, seq) for c, b, head, seq in state.heads}
        for stream in (*(head.stream for _, _, head, _ in state.heads), *(item.stream for item in state.chains)):
            if stream not in log.streams:
                raise Malformed("LOG_STATE", f"unknown stream {stream[:32]!r}")
        for item in state.chains:
            log.streams[item.stream].chains[(item.component, item.boot)] = Chain(
                seq=item.seq,
                size=item.size,
                seen=int.from_bytes(item.seen, "big"),
                closed=item.closed,
                forked=item.forked,
                last_stream_seq=item.last_stream_seq,
                digests=dict(item.digests),
            )
        return log


def open_message(
    verifiers: Sequence[Verifier], subject: str, stream: str, payload: bytes, received: int
) -> Verified | TallystickError:
    """Open a message under the trust root in force, `verifiers` being those of all versions, oldest first.

    The newest version decides.  A message that it refuses counts under an older one if the broker
    stored it before the version after that one was issued (plus `HANDOVER_NS` for renewals).
    """
    refusal: TallystickError
    try:
        return verifiers[-1].open(subject, stream, payload)
    except TallystickError as exc:
        refusal = exc
    for older, newer in zip(reversed(verifiers[:-1]), reversed(verifiers[1:]), strict=True):
        if received < newer.trust.issued + HANDOVER_NS:
            try:
                return older.open(subject, stream, payload)
            except TallystickError:
                continue  # the newest version's refusal is the one to report
    return refusal
