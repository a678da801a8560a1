"""The parts of `docs/wire-format.md` that follow from the code: tables and the worked example.

    python -m tests.vectors.tables

writes them between their markers; `tests/unit/test_wire_format.py` compares.
"""

from __future__ import annotations

import base64
import hashlib
import re
import textwrap
from pathlib import Path
from typing import Final

import msgspec
from msgspec import inspect

from tallystick.schemas.event import Event
from tallystick.schemas.registry import EVENTS, MAX_AGE_NS, MAX_SIZE
from tallystick.schemas.seal import PREFIX, message_leaf, statement_digest
from tallystick.schemas.subjects import KINDS, parse_subject
from tests.support.forge import encoded, field, samples, sealed, session_key

PATH: Final = Path(__file__).resolve().parent.parent.parent / "docs" / "wire-format.md"
_BASE = len(Event.__struct_fields__)


def _type(of: inspect.Type) -> str:
    if isinstance(of, inspect.IntType):
        return "count" if of.ge == 0 else "int"
    if isinstance(of, inspect.BytesType):
        return f"bin({of.min_length})" if of.min_length else "bin"
    if isinstance(of, inspect.StrType):
        return "text"
    if isinstance(of, inspect.BoolType):
        return "bool"
    if isinstance(of, inspect.DecimalType):
        return "decimal"
    if isinstance(of, inspect.LiteralType):
        return " / ".join(f'"{v}"' for v in of.values)
    if isinstance(of, inspect.UnionType):
        inner = next(t for t in of.types if not isinstance(t, inspect.NoneType))
        return f"{_type(inner)} or nil"
    if isinstance(of, inspect.VarTupleType):
        return f"array of {_type(of.item_type)}"
    if isinstance(of, inspect.StructType):
        return of.cls.__name__
    raise TypeError(f"{of}: no notation for it")


def _fields(fields: tuple[inspect.Field, ...]) -> str:
    return ", ".join(f"`{f.name}` {_type(f.type)}" for f in fields)


def _shape(cls: type) -> inspect.StructType:
    shape = inspect.type_info(cls)
    if not isinstance(shape, inspect.StructType):
        raise TypeError(f"{cls} is no struct")
    return shape


def _nested(of: inspect.Type) -> list[inspect.StructType]:
    if isinstance(of, inspect.VarTupleType):
        return _nested(of.item_type)
    if isinstance(of, inspect.UnionType):
        return [s for t in of.types for s in _nested(t)]
    return [of, *(s for f in of.fields for s in _nested(f.type))] if isinstance(of, inspect.StructType) else []


def events() -> str:
    """Each event type: its tag, its kind of subject, its own fields in order."""
    rows = ["| tag | stands on | own fields, in order |", "|---|---|---|"]
    rows += [
        f"| `{_shape(t).tag}` | `{kind}` | {_fields(_shape(t).fields[_BASE:])} |"
        for kind, ts in EVENTS.items()
        for t in ts
    ]
    return "\n".join(rows)


def structs() -> str:
    """The arrays that stand inside events."""
    found = {
        s.cls.__name__: s for types in EVENTS.values() for t in types for f in _shape(t).fields for s in _nested(f.type)
    }
    rows = ["| name | elements, in order |", "|---|---|"]
    rows += [f"| {name} | {_fields(found[name].fields)} |" for name in sorted(found)]
    return "\n".join(rows)


def subjects() -> str:
    """Each kind of subject: its tokens, its stream, how long it is live, what one message may hold."""
    rows = ["| subject | stream | live for | events | bytes of events |", "|---|---|---|---|---|"]
    for kind in KINDS.values():
        text = ".".join((kind.name, *(f"<{f}>" for f in kind.fields)))
        count, size = MAX_SIZE[kind.name]
        rows.append(f"| `{text}` | {kind.stream} | {MAX_AGE_NS[kind.name] // 1_000_000_000} s | {count:,} | {size:,} |")
    return "\n".join(rows)


def _hex(data: bytes) -> str:
    return "\n".join(textwrap.wrap(data.hex(), 96))


def example() -> str:
    """The first good vector, part by part."""
    _, subject, event = samples()[0]
    payload = sealed("market-data", encoded(subject, event))[0][1]
    statement, credential = field(payload, "statement"), field(payload, "credential")
    events_ = field(payload, "events")
    claims = credential.split(".")[1]
    values = msgspec.msgpack.decode(statement[len(PREFIX) :])
    shown = [v.hex() if isinstance(v, bytes) else v for v in values]
    names = ("deployment", "component", "boot", "stream", "seq", "prev", "size", "root", "time", "flags", "credential")
    parts = [
        ("subject", subject),
        ("stream", parse_subject(subject).stream),
        ("session key (public, 32 bytes)", session_key("market-data").public.hex()),
        ("credential", "\n".join(textwrap.wrap(credential, 96))),
        (
            "its claims",
            "\n".join(textwrap.wrap(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)).decode(), 96)),
        ),
        ("SHA-256(credential)", hashlib.sha256(credential.encode()).hexdigest()),
        ("events", _hex(events_)),
        (
            "leaf = SHA-256(00 ‖ " + len(subject).to_bytes(2, "big").hex() + " ‖ subject ‖ events)",
            message_leaf(subject, events_).hex(),
        ),
        ("statement", _hex(statement)),
        ("its fields", "\n".join(f"{n:<11}{v}" for n, v in zip(names, shown, strict=True))),
        ("SHA-256(statement), the next statement's prev", statement_digest(statement).hex()),
        ("signature", _hex(field(payload, "signature"))),
        (f"payload ({len(payload)} bytes)", _hex(payload)),
    ]
    return "```\n" + "\n\n".join(f"{name}:\n{value}" for name, value in parts) + "\n```"


def render(text: str) -> str:
    """`text` with every marked part replaced by what the code says now."""
    for name, part in (("subjects", subjects), ("events", events), ("structs", structs), ("example", example)):
        block = f"<!-- {name} -->\n{part()}\n<!-- /{name} -->"
        text, count = re.subn(rf"<!-- {name} -->\n.*?<!-- /{name} -->", lambda _, b=block: b, text, flags=re.DOTALL)  # type: ignore[misc]
        if count != 1:
            raise ValueError(f"{PATH.name}: {count} parts marked {name!r}, expected one")
    return text


if __name__ == "__main__":
    PATH.write_text(render(PATH.read_text(encoding="utf-8")), encoding="utf-8")
