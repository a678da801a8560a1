"""Event ids: UUID version 7 (RFC 9562 section 5.7), 16 bytes, ordered by time.

48 bits of Unix milliseconds, 12 bits of sub-millisecond fraction (method 3 of section 6.2) and 62
bits that start random and count up (method 1), so ids of one generator strictly increase even where
the clock stands still or steps back.  Ids are unique, not secret: integrity comes from the seal.
"""

from __future__ import annotations

import uuid

from tallystick.schemas.bounds import NS_PER_MS
from tallystick.schemas.errors import Malformed

ID_BYTES = 16


class EventIds:
    """Generates event ids from an injected clock reading and injected entropy."""

    __slots__ = ("_counter", "_last")

    def __init__(self, entropy: bytes) -> None:
        """`entropy`: at least 8 random bytes; makes ids of different generators differ."""
        if len(entropy) < 8:
            raise Malformed("ID_ENTROPY", f"need 8 bytes of entropy, got {len(entropy)}")
        # Two top bits stay clear so that counting up does not overflow 62 bits in practice.
        self._counter = int.from_bytes(entropy[:8], "big") >> 4
        self._last = 0

    def next(self, now_ns: int) -> bytes:
        """A new id for `now_ns` (Unix nanoseconds); never smaller than the one before."""
        ms, rest = divmod(now_ns, NS_PER_MS)
        stamp = (ms << 12) | (rest * 4096 // NS_PER_MS)
        self._last = stamp = max(stamp, self._last)
        self._counter = counter = (self._counter + 1) & 0x3FFFFFFFFFFFFFFF
        value = ((stamp >> 12) << 80) | (7 << 76) | ((stamp & 0xFFF) << 64) | (2 << 62) | counter
        return value.to_bytes(16, "big")


def id_text(event_id: bytes) -> str:
    """The id as a lower-case UUID string, as people and SQL see it.  Raises `Malformed`."""
    if len(event_id) != ID_BYTES:
        raise Malformed("EVENT_ID", f"an event id has {ID_BYTES} bytes, got {len(event_id)}")
    return str(uuid.UUID(bytes=event_id))


def id_or_hex(value: bytes) -> str:
    """A field named `…_id`, as people and SQL see it: a UUID where it is one of ours, else hex."""
    return id_text(value) if len(value) == ID_BYTES else value.hex()


def id_bytes(text: str) -> bytes:
    """The 16 bytes of a UUID string as `id_text` writes it, in either case.  Raises `Malformed`."""
    try:
        raw = uuid.UUID(text).bytes
    except ValueError as exc:
        raise Malformed("ID_TEXT", f"not an event id (expected a UUID): {text[:64]!r}") from exc
    if id_text(raw) != text.lower():
        raise Malformed("ID_TEXT", f"not an event id (expected 8-4-4-4-12 hex digits): {text[:64]!r}")
    return raw


def id_time_ns(event_id: bytes) -> int:
    """The Unix time in nanoseconds (to a quarter of a microsecond) that an id was made at."""
    value = int.from_bytes(event_id, "big")
    ms = value >> 80
    return ms * NS_PER_MS + ((value >> 64) & 0xFFF) * NS_PER_MS // 4096
