"""What components state in heartbeats about their own chains: `[stream, seq, hash]` of what was acknowledged.  Pure.

- A chain is linked by hashes, so its newest head vouches for all before it.
- A component speaks for its own chains alone, and only on streams that the trust root lets it write to; each stream once in
  a heartbeat.  Of the stream that the heartbeat stands in its head says nothing that its own place in the chain does not.
- Heads that break this are nonsense of that component: an incident that names it, and nothing is taken in of the message.
- So a component that publishes nothing but its heartbeats can make nothing look dropped, and what is remembered is bounded
  by the boots that the authority issued.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tallystick.schemas.seal import Verified, Verifier
from tallystick.schemas.security import Head, Heartbeat
from tallystick.schemas.subjects import KINDS, STREAMS, matches, overlaps


class Owners:
    """Who may publish what, by all versions of the trust root; without one nobody is denied anything."""

    def __init__(self, verifiers: Sequence[Verifier] = ()) -> None:
        self._publishes: dict[str, tuple[str, ...]] = {}
        for verifier in verifiers:
            for name, trust in verifier.trust.components.items():
                self._publishes[name] = tuple({*self._publishes.get(name, ()), *trust.publishes})
        self._streams = {
            name: {k.stream for k in KINDS.values() if any(overlaps(p, k.pattern) for p in patterns)}
            for name, patterns in self._publishes.items()
        }

    def writes(self, component: str, stream: str) -> bool:
        """Whether `component` publishes anything that `stream` stores."""
        return stream in self._streams.get(component, () if self._publishes else STREAMS)

    def of(self, subject: str) -> str:
        """The component that publishes `subject`; "" for nobody."""
        return next((n for n, patterns in self._publishes.items() if any(matches(p, subject) for p in patterns)), "")


def impossible(opened: Verified, owners: Owners) -> str:
    """Why the heads in a message cannot be; "" if they can."""
    said = opened.statement
    for event in opened.events:
        if not isinstance(event, Heartbeat):
            continue
        streams = [head.stream for head in event.heads]
        if len(set(streams)) != len(streams):
            return f"{len(streams)} heads for {len(set(streams))} streams"
        for head in event.heads:
            if not owners.writes(said.component, head.stream):
                return f"a head of {head.stream[:32]!r}, where it publishes nothing"
            if head.stream == said.stream and head.seq >= said.seq:
                return f"seq {head.seq} of {head.stream} was acknowledged, said by seq {said.seq}"
    return ""


def stated(opened: Verified) -> Iterator[Head]:
    """The heads in a message that tell of other streams than its own."""
    for event in opened.events:
        if isinstance(event, Heartbeat):
            yield from (head for head in event.heads if head.stream != opened.statement.stream)
