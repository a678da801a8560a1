"""Alerts whose every bit follows from what caused them, so that a repeat is one and the same event.

The id is a UUIDv7 (RFC 9562 section 5.7) of stream time; its 62 free bits are from a SHA-256 over rule, scope and
source position.  Ids are unique, not secret; the stored time in it is not known to whoever sent the cause.
"""

from __future__ import annotations

import hashlib
from decimal import Decimal
from typing import Final

import msgspec

from tallystick.schemas.bounds import NS_PER_MS
from tallystick.schemas.event import At
from tallystick.schemas.security import Alert

_DOMAIN: Final = b"tallystick alert id v1\n"
_MASK: Final = (1 << 62) - 1


def alert_id(rule: str, scope: str, at: int, stream: str, seq: int) -> bytes:
    """The id of the alert that `rule` raises for `scope` at stream time `at` (ns), message `seq` of `stream`."""
    digest = hashlib.sha256(_DOMAIN + msgspec.msgpack.encode((rule, scope, at, stream, seq))).digest()
    ms, rest = divmod(at, NS_PER_MS)
    fraction = rest * 4096 // NS_PER_MS
    free = int.from_bytes(digest[:8], "big") & _MASK
    return ((ms << 80) | (7 << 76) | (fraction << 64) | (2 << 62) | free).to_bytes(16, "big")


def alert_event(
    *,
    rule: str,
    code: str,
    scope: str,
    text: str,
    value: Decimal,
    limit: Decimal,
    at: int,
    stream: str,
    seq: int,
    cause: bytes,
) -> Alert:
    """The alert; `ts` is stream time and `at` the message that caused it, whenever it is published."""
    return Alert(
        id=alert_id(rule, scope, at, stream, seq),
        ts=at,
        causes=(cause,),
        at=(At(stream=stream, seq=seq),),
        code=code,
        scope=scope,
        text=text,
        value=value,
        limit=limit,
    )
