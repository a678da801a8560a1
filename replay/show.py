"""Shows replayed messages: a line for people, or a JSON object for programs.  Pure.

One line an event; a closing statement without events has none.  The text form is

    <statement time>  <subject>  <component>  <type>  <field>=<value> …

and may gain fields; the JSON form is stable, one object a line:

    {"time": "2026-11-22T16:00:00.000000001Z", "time_ns": …, "stream": "ORDERS", "seq": 7, "subject": …,
     "component": …, "boot": hex, "chain_seq": …, "chain_index": …, "pos": …, "leaf": hex, "statement": hex,
     "position": …, "type": "order.intent/1", "id": uuid, "ts": ns, "causes": [uuid], "at": {"MARKET": 41},
     "data": {own fields}}

`time` is the statement's, `ts` the event's.  `leaf` is the message's RFC 6962 leaf hash, `statement` the SHA-256
of the signed statement, `position` the audit's log index (the broker's time in ns when read from the streams):
with them the message is found again and proven.  Decimals are text exactly as on the wire, ids UUIDs, other bytes
hex; both forms are ASCII, all else is escaped, so nothing that a component wrote can act on a terminal.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import msgspec

from tallystick.replay.selection import time_text
from tallystick.replay.verify import Played
from tallystick.schemas.event import Event
from tallystick.schemas.ids import id_or_hex, id_text

_json = msgspec.json.Encoder(decimal_format="string")


def lines(played: Played) -> Iterator[str]:
    """A line for each event of a message."""
    verified = played.verified
    head = f"{time_text(played.time)}  {verified.subject.text}  {verified.statement.component}"
    for event in verified.events:
        fields = " ".join(f"{name}={_text(value)}" for name, value in own_fields(event).items())
        yield f"{head}  {event.__struct_config__.tag}  {fields}"


def json_lines(played: Played) -> Iterator[str]:
    """A JSON object for each event of a message; see the module docstring."""
    verified, statement = played.verified, played.verified.statement
    head = {
        "time": time_text(played.time),
        "time_ns": played.time,
        "stream": played.stream,
        "seq": played.seq,
        "subject": verified.subject.text,
        "component": statement.component,
        "boot": statement.boot.hex(),
        "chain_seq": statement.seq,
        "chain_index": verified.index,
        "pos": 0,
        "leaf": verified.leaf.hex(),
        "statement": verified.digest.hex(),
        "position": played.position,
    }
    for pos, event in enumerate(verified.events):
        head["pos"] = pos
        line = _json.encode(
            {
                **head,
                "type": event.__struct_config__.tag,
                "id": id_text(event.id),
                "ts": event.ts,
                "causes": [id_text(cause) for cause in event.causes],
                "at": {at.stream: at.seq for at in event.at},
                "data": own_fields(event),
            }
        ).decode()
        yield line if line.isascii() else json.dumps(json.loads(line), separators=(",", ":"))


@functools.cache
def _names(kind: type[Event]) -> tuple[str, ...]:
    base = frozenset(Event.__struct_fields__)
    return tuple(name for name in kind.__struct_fields__ if name not in base)


def own_fields(event: Event) -> dict[str, Any]:
    """An event's own fields as JSON values; decimals as text."""
    return {name: _plain(getattr(event, name), name) for name in _names(type(event))}


def _plain(value: Any, name: str) -> Any:
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, bytes):
        return id_or_hex(value) if name.endswith("_id") else value.hex()
    if isinstance(value, tuple | list):
        return [_plain(item, name) for item in value]
    if isinstance(value, msgspec.Struct):
        return {field: _plain(getattr(value, field), field) for field in value.__struct_fields__}
    return value


def _text(value: Any) -> str:
    """A value in a text line: numbers and plain words bare, all else as JSON."""
    if isinstance(value, str) and value and value.isascii() and value.isprintable() and " " not in value:
        return value
    return json.dumps(value, separators=(",", ":"))
