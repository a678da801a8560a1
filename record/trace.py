"""The whole causal chain of one order, from the ticks to the fills, every step verified by itself.

An order is found by its intent's id, by the id of any of its events, or by its client or venue order id.
The chain holds every event about the order, everything that those name as causes, up to the ticks, and
what names them as causes (positions, alerts).  Each step's sealed message is opened again under the pinned
trust root and its row computed again: a step that does not verify is shown as such.

What only the whole log can show (holes, forks, issuance) is `verify`'s.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import duckdb
import msgspec
import pyarrow as pa

from tallystick.record import rows
from tallystick.record.basis import read_sound
from tallystick.record.chains import open_message
from tallystick.record.manifest import Manifest
from tallystick.record.opened import Opened
from tallystick.record.place import Place, load_verifiers
from tallystick.record.sandbox import connect
from tallystick.schemas.errors import Malformed, TallystickError
from tallystick.schemas.ids import id_bytes, id_text
from tallystick.schemas.seal import Verified, Verifier

# A chain longer than this is cut: an order has tens of events.
MAX_STEPS: Final = 5_000
MAX_DEPTH: Final = 64
# The end of an id, as `tallystick watch` shows it.
_SHORT: Final = re.compile(r"[0-9a-fA-F]{8,12}")


class TraceError(TallystickError):
    """Nothing to trace under this name."""


class Step(msgspec.Struct):
    """One event of the chain; `parent` is the cause that it is shown under, `problem` why it does not verify."""

    event_id: bytes
    type: str
    stream: str
    stream_seq: int
    pos: int
    log_index: int
    subject: str
    component: str
    ts: int
    received: int
    status: str
    causes: list[bytes]
    order_id: bytes | None
    data: dict[str, Any]
    problem: str = ""
    parent: bytes | None = None

    @property
    def summary(self) -> str:
        """What people want to see of the event."""
        d = self.data
        match self.type:
            case "md.trade/1":
                return f"{d['qty']} @ {d['price']} (trade {d['trade_id']})"
            case "md.quote/1":
                return f"bid {d['bid']} ask {d['ask']}"
            case "signal/1":
                return f"{d['name']} = {d['value']} {d['text']}".strip()
            case "order.intent/1":
                return f"{d['side']} {d['qty']} {d['type']}{' @ ' + d['price'] if d['price'] else ''}"
            case "order.decision/1":
                return f"{d['verdict']} {'; '.join(x['code'] + ': ' + x['text'] for x in d['denials'])}".strip()
            case "order.event/1":
                return " ".join(x for x in (d["state"], d["status"], d["code"], d["text"]) if x)
            case "fill/1":
                return f"{d['side']} {d['qty']} @ {d['price']} (trade {d['trade_id']})"
            case "position/1":
                return f"position {d['qty']}, realized {d['realized']}, fees {d['fees']}"
            case "alert/1":
                return f"{d['code']}: {d['text']}"
        return ""


_TIMES: Final = ("ts", "received")
_FIELDS: Final = tuple(f for f in Step.__struct_fields__ if f not in ("problem", "parent"))
_COLUMNS: Final = ", ".join(f"epoch_ns({f})" if f in _TIMES else f for f in _FIELDS)

_MESSAGE: Final = f"""SELECT {", ".join(rows.SCHEMA.names)} FROM log
    WHERE stream = $1 AND stream_seq = $2 AND (payload IS NOT NULL OR pos = $3) ORDER BY pos"""  # noqa: S608 - the schema's own names


class _Log:
    def __init__(self, opened: Opened) -> None:
        self.connection = connect(opened)

    def ask(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        return self.connection.execute(sql, list(values)).fetchall()

    def steps(self, where: str, *values: object) -> list[Step]:
        sql = f"SELECT {_COLUMNS} FROM log WHERE event_id IS NOT NULL AND {where} LIMIT {MAX_STEPS}"  # noqa: S608 - our own words
        return [
            Step(**{**dict(zip(_FIELDS, row, strict=True)), "data": msgspec.json.decode(row[-1])})
            for row in self.ask(sql, *values)
        ]

    def message(self, step: Step) -> pa.Table:
        """The first row of a step's message, with its payload, and the step's own."""
        found: Any = self.connection.sql(_MESSAGE, params=[step.stream, step.stream_seq, step.pos])
        return found.to_arrow_table()


def trace(place: Place, name: str, manifest: Manifest | None = None) -> list[Step]:
    """The chain of the order that `name` names, in log order, from the segments of `manifest` (by default the newest).

    Raises `TraceError` if there is none or `name` fits several orders; `Tampered` and `FileRefused` if the archive is not
    what its manifest names; and what `load_verifiers` raises.
    """
    verifiers = load_verifiers(place)
    opened = Opened(place.archive, (manifest or read_sound(place.archive)).live.values())
    try:
        log = _Log(opened)
        order = _resolve(log, name)
        found = {step.event_id: step for step in log.steps("stream = 'ORDERS' AND order_id = $1", order)}
        if not found:
            found = {step.event_id: step for step in log.steps("event_id = $1", order)}
        own = list(found)
        start = min(step.log_index for step in found.values())
        for step in log.steps(
            "stream IN ('ORDERS', 'SECURITY') AND log_index >= $2 AND list_has_any(causes, $1)", own, start
        ):
            found.setdefault(step.event_id, step)
        wanted = {cause for step in found.values() for cause in step.causes} - found.keys()
        for _ in range(MAX_DEPTH):
            if not wanted or len(found) >= MAX_STEPS:
                break
            causes = log.steps("list_contains($1, event_id)" if len(wanted) > 1 else "event_id = $1", _one(wanted))
            for step in causes:
                found.setdefault(step.event_id, step)
            wanted = {cause for step in causes for cause in step.causes} - found.keys()
        steps = sorted(found.values(), key=lambda s: (s.log_index, s.pos))
        _verify(log, steps, verifiers)
    except duckdb.Error as exc:
        raise TraceError("ARCHIVE_UNREADABLE", f"{exc}; see: tallystick audit verify") from exc
    opened.check_unchanged()
    _link(steps)
    return steps


def _one(wanted: set[bytes]) -> object:
    return list(wanted) if len(wanted) > 1 else next(iter(wanted))


def _resolve(log: _Log, name: str) -> bytes:
    try:
        event_id = id_bytes(name)
    except Malformed:
        event_id = b""
    if event_id:
        row = log.ask("SELECT order_id FROM log WHERE event_id = $1 LIMIT 1", event_id)
        if row:
            return bytes(row[0][0] or event_id)
        if log.ask("SELECT 1 FROM log WHERE stream = 'ORDERS' AND order_id = $1 LIMIT 1", event_id):
            return event_id
    else:
        orders = [
            bytes(row[0])
            for row in log.ask(
                "SELECT DISTINCT order_id FROM log WHERE stream = 'ORDERS' AND order_id IS NOT NULL AND status = 'ok' AND ("
                "txt(data, '$.client_order_id') = $1 OR txt(data, '$.venue_order_id') = $1"
                " OR txt(data, '$.permit.order.client_order_id') = $1"
                " OR $2 AND ends_with(lower(hex(order_id)), lower($1)))",
                name,
                _SHORT.fullmatch(name) is not None,
            )
        ]
        if len(orders) == 1:
            return orders[0]
        if orders:
            names = ", ".join(map(id_text, sorted(orders)[:5]))
            raise TraceError("ORDER_AMBIGUOUS", f"{name[:64]!r} names {len(orders)} orders; trace one of {names}")
    raise TraceError(
        "ORDER_NOT_RECORDED",
        f"no order, event, client or venue order id {name[:64]!r} in this archive; "  # noqa: S608 - a hint for people
        'list them with: tallystick audit sql DIR "select order_id, client_order_id, venue_order_id from orders"',
    )


def _verify(log: _Log, steps: Sequence[Step], verifiers: Sequence[Verifier]) -> None:
    """Open each step's message again and compare its row."""
    for step in steps:
        table = log.message(step)
        payload = table["payload"][0].as_py() if table.num_rows else None
        if payload is None:
            step.problem = "its sealed message is not in the archive"
            continue
        subject = table["subject"][0].as_py()
        opened = open_message(verifiers, subject, step.stream, payload, step.received)
        if not isinstance(opened, Verified):
            step.problem = str(opened)
        elif step.pos >= len(opened.events):
            step.problem = "its message holds no such event"
        else:
            built = rows.Rows()
            built.add(
                table["log_index"][0].as_py(),
                step.stream_seq,
                subject,
                payload,
                step.received,
                table["status"][0].as_py(),
                table["code"][0].as_py(),
                opened,
            )
            want = built.table().slice(step.pos, 1)
            wrong = [n for n in rows.SCHEMA.names if n != "payload" and _cell(table, n) != _cell(want, n)]
            if wrong:
                step.problem = f"columns {', '.join(wrong)} are not what its sealed message says"


def _cell(table: pa.Table, name: str) -> Any:
    column = table[name]
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    return column[-1].as_py()


def _link(steps: Sequence[Step]) -> None:
    """Choose the cause that each step is shown under: the latest one that is in the chain."""
    known = {step.event_id: step for step in steps}
    last_of: dict[bytes, bytes] = {}
    for step in steps:
        causes = [known[c] for c in step.causes if c in known]
        if not causes:
            # A component that names no causes still says what it is about.
            for field in ("decision_id", "intent_id"):
                named = step.data.get(field, "")
                about = known.get(id_bytes(named)) if isinstance(named, str) and len(named) == 36 else None
                if about is not None and about is not step:
                    causes.append(about)
                    break
            if step.type == "fill/1" and step.order_id in last_of:
                causes = [known[last_of[step.order_id]]]
        if causes:
            step.parent = max(causes, key=lambda s: (s.log_index, s.pos)).event_id
        if step.type == "order.event/1" and step.order_id is not None:
            last_of[step.order_id] = step.event_id
