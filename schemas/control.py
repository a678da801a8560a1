"""The breaker's control protocol: people kill, re-arm and arm on the machine itself, over a Unix socket.

One request a line, one answer a line, JSON::

    {"op":"kill","scope":"all","reason":"drill"}      {"ok":true,"tripped":[…]}
    {"op":"rearm","note":"…"}                         {"ok":false,"code":"REARM_OTHER_TRIP","text":"…"}
    {"op":"arm","note":"…"}
    {"op":"correct","note":"…","strategy":"…","venue":"…","symbol":"…"}
    {"op":"incident","note":"…"}
    {"op":"rotate","note":"…"}
    {"op":"status"}

Re-arming, arming, correcting, incidents and orders to rotate carry the operator's signature: whoever reaches the socket
without it can only halt.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from tallystick.schemas.errors import NOT_DECODED, Malformed

SOCKET: Final = "breaker.sock"
# The longest is a note.
MAX_REQUEST: Final = 65_536
# Every scope may be tripped, each with its reason.
MAX_ANSWER: Final = 1 << 22


class Kill(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op", tag="kill"):
    """Trip `scope` (`all`, `strategy-<name>`, `venue-<name>`)."""

    scope: str
    reason: str


class RearmRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op", tag="rearm"):
    """Close what the operator-signed `note` (a `trust.Rearm`) names."""

    note: str


class ArmRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op", tag="arm"):
    """Publish the operator-signed `note` (an `arming.ArmLease`)."""

    note: str


class CorrectRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op", tag="correct"):
    """Publish the operator-signed `note` (a `trust.Correction`) on the subject that it names."""

    note: str
    strategy: str
    venue: str
    symbol: str


class IncidentRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op", tag="incident"):
    """Publish the operator-signed `note` (an `incidents.Incident`)."""

    note: str


class RotateRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op", tag="rotate"):
    """Publish the operator-signed `note` (a `rotation_orders.RotationOrder`)."""

    note: str


class Status(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op", tag="status"):
    """What is tripped, and how long execution is armed."""


Request = Kill | RearmRequest | ArmRequest | CorrectRequest | IncidentRequest | RotateRequest | Status

_decoder = msgspec.json.Decoder(Request, strict=True)


def parse_request(line: bytes) -> Request:
    """A request line.  Raises `Malformed`."""
    try:
        request: Request = _decoder.decode(line)
    except NOT_DECODED as exc:
        raise Malformed("BREAKER_REQUEST", f"not a request: {exc}") from exc
    return request


def encode_line(message: Request | dict[str, Any]) -> bytes:
    """A request or an answer, with its newline."""
    return msgspec.json.encode(message) + b"\n"
