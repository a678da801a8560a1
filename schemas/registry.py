"""Which events may stand on which subject, how many and how old they may be on receipt, and their strict codec.

`decode_events` accepts only the canonical encoding: what does not re-encode to the same bytes is
refused, so one event has one byte string and one hash.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Final

import msgspec

from tallystick.schemas import market, orders, security
from tallystick.schemas.bounds import MAX_INTENT_AGE_NS, SECOND
from tallystick.schemas.errors import NOT_DECODED, Malformed
from tallystick.schemas.event import Event
from tallystick.schemas.subjects import KINDS

# kind of subject -> event types that may stand on it
EVENTS: Final[dict[str, tuple[type[Event], ...]]] = {
    "md.trade": (market.Trade,),
    "md.quote": (market.Quote,),
    "ref.market": (market.FeedStatus,),
    "signal": (orders.Signal,),
    "order.intent": (orders.Intent, orders.CancelIntent),
    "order.decision": (orders.Decision,),
    "order.event": (orders.OrderEvent,),
    "order.correction": (orders.Corrected,),
    "fill": (orders.Fill,),
    "position": (orders.Position,),
    "balance": (orders.Balance,),
    "cred": (
        security.CredentialIssued,
        security.SessionRevoked,
        security.BootEnded,
        security.ComponentRevocation,
        security.CertificateIssued,
        security.SessionList,
    ),
    "control.breaker": (security.BreakerHeartbeat, security.BreakerTripped, security.BreakerRearmed),
    "control.arm": (security.Arm,),
    "control.config": (
        security.ConfigChanged,
        security.RootInForce,
        security.IncidentStep,
        security.KeyRotation,
        security.RotationOrdered,
    ),
    "control.key": (security.KeyAsked, security.KeyAnswered),
    "alert": (security.Alert,),
    "audit.checkpoint": (security.Checkpoint, security.StreamTotal),
    "audit.cosignature": (security.Cosignature,),
    "guard": (security.Heartbeat, security.Notice),
    "dead": (security.DeadLetter,),
}

# The longest time between a statement and its receipt at which it still counts as live.  Short where
# a stale event would move money or lift a guard, longer where it only informs.
MAX_AGE_NS: Final[dict[str, int]] = {
    "md.trade": 10 * SECOND,
    "md.quote": 10 * SECOND,
    "ref.market": 30 * SECOND,
    "signal": 10 * SECOND,
    "order.intent": MAX_INTENT_AGE_NS,
    "order.decision": 5 * SECOND,
    "order.event": 60 * SECOND,
    "order.correction": 60 * SECOND,
    "fill": 60 * SECOND,
    "position": 60 * SECOND,
    "balance": 60 * SECOND,
    "cred": 5 * SECOND,
    "control.breaker": 5 * SECOND,
    "control.arm": 60 * SECOND,
    "control.config": 60 * SECOND,
    "control.key": 60 * SECOND,
    "alert": 60 * SECOND,
    "audit.checkpoint": 60 * SECOND,
    "audit.cosignature": 60 * SECOND,
    "guard": 60 * SECOND,
    "dead": 60 * SECOND,
}

# The most events and bytes of events in one message.  Market data comes in bursts, and the session list is stated
# whole; everything else is small, and where a stranger's code publishes, smallest: a reader decodes it before it
# knows what it is, and whoever decides on intents answers each.  An intent's message and its decision's go to custody
# together, in one frame of `signing.MAX_FRAME`.
MAX_SIZE: Final[dict[str, tuple[int, int]]] = {
    "md.trade": (4_096, 524_288),
    "md.quote": (4_096, 524_288),
    "ref.market": (64, 32_768),
    "signal": (512, 32_768),
    "order.intent": (64, 24_576),
    "order.decision": (256, 24_576),
    "order.event": (256, 65_536),
    "order.correction": (16, 65_536),
    "fill": (256, 65_536),
    "position": (256, 65_536),
    "balance": (256, 65_536),
    "cred": (4_096, 524_288),
    "control.breaker": (64, 262_144),
    "control.arm": (64, 131_072),
    "control.config": (64, 131_072),
    "control.key": (64, 32_768),
    "alert": (256, 65_536),
    "audit.checkpoint": (64, 65_536),
    "audit.cosignature": (64, 65_536),
    "guard": (64, 32_768),
    "dead": (64, 32_768),
}
if not KINDS.keys() == EVENTS.keys() == MAX_AGE_NS.keys() == MAX_SIZE.keys():  # else a kind cannot be read safely
    raise RuntimeError("KINDS, EVENTS, MAX_AGE_NS and MAX_SIZE must name the same kinds of subject")
# The widest of them; with seal and headers well below NATS's max_payload (1 MiB).
MAX_EVENTS: Final = max(count for count, _ in MAX_SIZE.values())
MAX_EVENTS_BYTES: Final = max(size for _, size in MAX_SIZE.values())

_encoder = msgspec.msgpack.Encoder(decimal_format="string")


@functools.cache
def _decoder(kind: str) -> msgspec.msgpack.Decoder[list[Event]]:
    union = functools.reduce(operator.or_, EVENTS[kind])
    return msgspec.msgpack.Decoder(list[union], strict=True)  # type: ignore[valid-type]


def encode_events(kind: str, events: Sequence[Event]) -> bytes:
    """The canonical bytes of a message's events.  Raises `Malformed` for a type that has no place on `kind`."""
    allowed = EVENTS[kind]
    for event in events:
        if type(event) not in allowed:
            raise Malformed("EVENT_TYPE", f"{type(event).__name__} may not stand on {kind}")
    data = _encoder.encode(events)
    count, size = MAX_SIZE[kind]
    if len(events) > count or len(data) > size:
        raise Malformed("EVENTS_SIZE", f"{kind}: {len(events)} events of {len(data)} bytes; limits {count} and {size}")
    return data


def array_header(count: int) -> bytes:
    """The msgpack header of an array of `count` elements, shortest form."""
    if count < 16:
        return bytes((0x90 | count,))
    if count < 1 << 16:
        return b"\xdc" + count.to_bytes(2, "big")
    return b"\xdd" + count.to_bytes(4, "big")


def join_events(arrays: Sequence[tuple[int, bytes]]) -> bytes:
    """One canonical array out of several (count, encoded array), without encoding the events again."""
    if len(arrays) == 1:
        return arrays[0][1]
    total = sum(count for count, _ in arrays)
    return array_header(total) + b"".join(data[len(array_header(count)) :] for count, data in arrays)


def encode_event(event: Event) -> bytes:
    """The canonical bytes of one event, as they stand in a message."""
    return _encoder.encode(event)


def decode_events(kind: str, data: bytes) -> list[Event]:
    """The events of a message of `kind`.  Raises `Malformed` for anything not canonical or out of place."""
    count, size = MAX_SIZE[kind]
    if len(data) > size:
        raise Malformed("EVENTS_SIZE", f"{kind}: {len(data)} bytes, limit {size}")
    try:
        events = _decoder(kind).decode(data)
    except (Malformed, *NOT_DECODED) as exc:
        raise Malformed("EVENTS", f"{kind}: {exc}") from exc
    except RecursionError as exc:
        raise Malformed("EVENTS", f"{kind}: nested too deeply") from exc
    if len(events) > count:
        raise Malformed("EVENTS_SIZE", f"{kind}: {len(events)} events, limit {count}")
    if _encoder.encode(events) != data:
        raise Malformed("EVENTS_CANONICAL", f"{kind}: does not re-encode to the same bytes")
    return events
