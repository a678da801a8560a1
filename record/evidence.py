"""Absence that sealed statements speak against, whatever the archive's own numbers say.  Pure.

Somebody who controls the disk can take messages out and close up every number; what others sealed stays:

- `SILENT`: a component renewed its session (the authority sealed both issuances) and said nothing between, though a
  process that lives states its heads every few seconds; or it spoke for long elsewhere and never stated them; or it is
  listed as live for a minute and never spoke at all;
- `BEYOND`: a decision names a position that it had read of a stream, and the stream ends before it;
- `NO_CHECKPOINT`: audit, whose process wrote the archive, lived for a minute without a checkpoint that is there.

A component is believed about its own life, and named where it speaks of other streams: it may lie about those.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from tallystick.record.report import Problem
from tallystick.schemas.seal import Verified
from tallystick.schemas.security import BootEnded, CredentialIssued, SessionList, SessionRevoked
from tallystick.schemas.subjects import GUARD, SECURITY, STREAMS

# A process states its heads each second or, without news, every five, and audit seals a checkpoint each five: well beyond what load delays.
SILENCE_NS: Final = 60_000_000_000
# What was stored so shortly before the archive's end may name what comes after it.
MARGIN_NS: Final = 10_000_000_000


class _Boot(msgspec.Struct):
    """One boot's life: sealed by the authority (`issued`, `listed`, `over`) and by itself; Unix ns.

    `first` to `last` on any stream, `heard` its newest on GUARD.
    """

    component: str
    stream_seq: int
    issued: list[int]
    listed: int = 0
    over: bool = False
    first: int = 0
    last: int = 0
    heard: int = 0
    silent: bool = False

    def renewed(self, since: int, until: int) -> bool:
        """Whether sessions were issued a while apart after `since` and up to `until`."""
        found = [at for at in self.issued if since < at <= until]
        return len(found) > 1 and found[-1] - found[0] > SILENCE_NS


class _Claim(msgspec.Struct, frozen=True):
    position: int
    component: str
    stream: str
    stream_seq: int


class Evidence:
    """Fed with every message that counts, SECURITY first, each stream in its order; `end` is the archive's newest time."""

    def __init__(self, end: int) -> None:
        self._end = end
        self._boots: dict[bytes, _Boot] = {}
        self._newest: dict[str, bytes] = {}
        self._claims: dict[str, _Claim] = {}
        self._now = 0
        self._sealed: tuple[bytes, int] = (b"", 0)

    def add(self, opened: Verified, stream_seq: int, received: int) -> None:
        """Take in a message that counts."""
        statement, kind = opened.statement, opened.subject.kind
        if kind == "cred":
            self._authority(opened, stream_seq)
        elif kind == "audit.checkpoint":
            self._sealed = (statement.boot, statement.time)
        boot = self._boots.get(statement.boot)
        if boot is not None:
            boot.first = boot.first or statement.time
            boot.last = max(boot.last, statement.time)
            if statement.stream == GUARD:
                boot.silent = boot.silent or boot.renewed(boot.heard, statement.time)
                boot.heard = max(boot.heard, statement.time)
        if received <= self._end - MARGIN_NS:
            for event in opened.events:
                for at in event.at:
                    known = self._claims.get(at.stream)
                    if at.stream in STREAMS and (known is None or at.seq > known.position):
                        claim = _Claim(at.seq, statement.component, statement.stream, stream_seq)
                        self._claims[at.stream] = claim

    def _authority(self, opened: Verified, stream_seq: int) -> None:
        self._now = max(self._now, opened.statement.time)
        for event in opened.events:
            if isinstance(event, CredentialIssued):
                component = opened.subject.component
                boot = self._boots.setdefault(event.boot, _Boot(component, stream_seq, []))
                boot.issued.append(event.issued_at)
                replaced = self._boots[self._newest.get(component, event.boot)]
                replaced.over = replaced.over or replaced is not boot
                self._newest[component] = event.boot
            elif isinstance(event, SessionRevoked | BootEnded):
                if event.boot in self._boots:
                    self._boots[event.boot].over = True
            elif isinstance(event, SessionList):
                for session in event.live:
                    if session.boot in self._boots:
                        self._boots[session.boot].listed = self._now

    def problems(self, ends: dict[str, int]) -> Iterator[Problem]:
        """What is missing; `ends` are the last sequences of the streams."""
        for identity, boot in self._boots.items():
            who = f"{boot.component}/{identity.hex()[:8]}"
            for code, text in self._silence(identity, boot):
                yield Problem(code, f"{who} {text}", stream=SECURITY, stream_seq=boot.stream_seq)
        for stream, claim in self._claims.items():
            if claim.position > ends.get(stream, 0):
                text = (
                    f"{claim.component} had read {stream} up to {claim.position}, which ends at {ends.get(stream, 0)}: "
                    f"its end is missing, or {claim.component} lies"
                )
                yield Problem("BEYOND", text, stream=claim.stream, stream_seq=claim.stream_seq)

    def _silence(self, identity: bytes, boot: _Boot) -> Iterator[tuple[str, str]]:
        begun, (sealer, sealed) = boot.issued[0], self._sealed
        if boot.silent or boot.renewed(boot.heard, self._now):
            yield "SILENT", "renewed its session and stated no heads in between: its messages are missing"
        elif not boot.heard and boot.last - boot.first > SILENCE_NS:
            yield "SILENT", f"spoke for {_s(boot.last - boot.first)} and never stated its heads"
        elif not boot.last and not boot.over and boot.listed - begun > SILENCE_NS:
            yield "SILENT", f"was live for {_s(boot.listed - begun)} and never spoke"
        if boot.component != "audit":
            return
        if not sealed and not boot.over and self._now - begun > SILENCE_NS:
            yield (
                "NO_CHECKPOINT",
                f"was issued {_s(self._now - begun)} before the end, and sealed no checkpoint that is there",
            )
        elif identity == sealer and boot.issued[-1] - sealed > SILENCE_NS:
            text = f"renewed its session {_s(boot.issued[-1] - sealed)} after the newest checkpoint that is there"
            yield "NO_CHECKPOINT", text


def _s(ns: int) -> str:
    return f"{ns / 1e9:.0f} s"
