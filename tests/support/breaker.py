"""What a breaker says, as the verifier hands it over."""

from __future__ import annotations

import functools

from tallystick.schemas.credential import Credential
from tallystick.schemas.event import Event
from tallystick.schemas.seal import Statement, Verified
from tallystick.schemas.security import BreakerHeartbeat, BreakerTripped, Trip
from tallystick.schemas.subjects import parse_subject
from tests.support import world


@functools.cache
def _credential() -> Credential:
    # Made once: property tests let the breaker speak a million times.
    return world.credential("breaker", world.trust_root())[0]


def said(subject: str, event: Event, stated: int) -> Verified:
    """A message of the breaker with one event, stated at `stated` (ns)."""
    credential = _credential()
    return Verified(
        subject=parse_subject(subject),
        events=[event],
        statement=Statement(
            deployment="test", component="breaker", boot=credential.boot, stream="SECURITY", seq=0, prev=bytes(32),
            size=1, root=bytes(32), time=stated, flags=0, credential=credential.digest,
        ),
        credential=credential,
        index=0,
        leaf=bytes(32),
        digest=bytes(32),
        payload=b"",
    )  # fmt: skip


def heartbeat(*tripped: str, stated: int) -> Verified:
    """A heartbeat that names the tripped scopes."""
    trips = tuple(Trip(scope, "test", stated, "test") for scope in tripped)
    return said("control.breaker.all", BreakerHeartbeat(id=bytes(16), ts=stated, number=1, tripped=trips), stated)


def trip(scope: str, stated: int) -> Verified:
    """A trip, published alone."""
    event = BreakerTripped(id=bytes(16), ts=stated, reason="test", by="test")
    return said(f"control.breaker.{scope}", event, stated)
