"""The archive's rows: one event of one sealed message each, projected to Arrow.  Pure.

Columns (`SCHEMA`); times are nanoseconds UTC, null means "does not apply":

- `log_index`       position of the message in the audit's log over all streams, from 0 without holes;
- `stream_seq`      position of the message in its JetStream stream;
- `pos`             position of the event in its message; null in a row without event;
- `subject`, `kind`, `strategy`, `venue`, `symbol`, `asset`   what the signed subject says;
- `component`, `boot`, `chain_seq`, `chain_index`, `flags`, `statement_time`, `credential`   from the
  signed statement: who sealed it, where in its chain it stands, SHA-256 of the credential;
- `received`        when the broker stored the message;
- `leaf`            the message's RFC 6962 leaf hash;
- `event_id`, `type`, `ts`, `causes`   of the event;
- `order_id`        the intent that the event is about (its own id for an intent);
- `status`          `ok`, `late`, `unlisted` or `refused` (see `chains`), `code` says why;
- `data`            the event's own fields as a JSON object: decimals are strings as on the wire, event
                    ids UUID text, other bytes hex; `at` (input positions) where it is not empty;
- `payload`         the sealed message exactly as it was stored, on the first row of each message.

A message with no event (a closing statement) and a refused message are one row.  Every column but
`log_index`, `stream_seq`, `received`, `status` and `code` is a function of subject and payload, and
`status` and `code` of the log before it: so a verifier computes the rows again and compares.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec
import pyarrow as pa

from tallystick.schemas import registry
from tallystick.schemas.event import Event
from tallystick.schemas.ids import id_or_hex
from tallystick.schemas.orders import CancelIntent, Decision, Fill, Intent, OrderEvent
from tallystick.schemas.seal import Payload, Verified

OK: Final = "ok"
LATE: Final = "late"
UNLISTED: Final = "unlisted"
REFUSED: Final = "refused"

_NS = pa.timestamp("ns")
_ID = pa.binary(16)
_HASH = pa.binary(32)
SCHEMA: Final = pa.schema(
    [
        pa.field("log_index", pa.int64(), nullable=False),
        pa.field("stream_seq", pa.int64(), nullable=False),
        pa.field("pos", pa.int32()),
        pa.field("subject", pa.string(), nullable=False),
        pa.field("kind", pa.string()),
        pa.field("strategy", pa.string()),
        pa.field("venue", pa.string()),
        pa.field("symbol", pa.string()),
        pa.field("asset", pa.string()),
        pa.field("component", pa.string()),
        pa.field("boot", _ID),
        pa.field("chain_seq", pa.int64()),
        pa.field("chain_index", pa.int32()),
        pa.field("flags", pa.int32()),
        pa.field("statement_time", _NS),
        pa.field("credential", _HASH),
        pa.field("received", _NS, nullable=False),
        pa.field("leaf", _HASH),
        pa.field("event_id", _ID),
        pa.field("type", pa.string()),
        pa.field("ts", _NS),
        pa.field("causes", pa.list_(_ID)),
        pa.field("order_id", _ID),
        pa.field("status", pa.string(), nullable=False),
        pa.field("code", pa.string(), nullable=False),
        pa.field("data", pa.string()),
        pa.field("payload", pa.binary()),
    ]
)
# What fits a signed 64-bit column; beyond it a message is refused rather than misrepresented.

_payloads = msgspec.msgpack.Decoder(Payload)
_raw_events = msgspec.msgpack.Decoder(list[list[Any]])
_json = msgspec.json.Encoder()
# Shared: an empty list for each event would be one more object for the garbage collector to visit.
_NO_CAUSES: Final[tuple[bytes, ...]] = ()
_Convert = Callable[[Any], Any]


def _hex(value: bytes) -> str:
    return value.hex()


def _converter(kind: msgspec.inspect.Type, name: str = "") -> _Convert | None:
    """How a raw msgpack value of `kind` becomes a JSON value; None where it already is one."""
    if isinstance(kind, msgspec.inspect.BytesType):
        return id_or_hex if name.endswith("_id") else _hex
    if isinstance(kind, msgspec.inspect.UnionType):
        inner = next((c for c in (_converter(t, name) for t in kind.types) if c is not None), None)
        return None if inner is None else (lambda v: None if v is None else inner(v))
    if isinstance(kind, msgspec.inspect.VarTupleType):
        item = _converter(kind.item_type, name)
        return None if item is None else (lambda v: [item(x) for x in v])
    if isinstance(kind, msgspec.inspect.StructType):
        fields = [(f.encode_name, _converter(f.type, f.encode_name)) for f in kind.fields]
        return lambda v: {n: x if c is None else c(x) for (n, c), x in zip(fields, v, strict=True)}
    return None


class _Shape:
    """How events of one type become JSON objects.  `EVENT_FIELDS` leading raw values have columns of their own."""

    EVENT_FIELDS = 5  # tag, id, ts, causes, at

    def __init__(self, kind: type[Event]) -> None:
        info = msgspec.inspect.type_info(kind)
        if not isinstance(info, msgspec.inspect.StructType):
            raise TypeError(f"{kind} is no struct")
        own = info.fields[self.EVENT_FIELDS - 1 :]
        names = [f.encode_name for f in own]
        # Structs of the same fields: they are made and encoded in half the time of dicts.
        self.make = msgspec.defstruct("Data", [(name, Any) for name in names], gc=False)
        self.make_at = msgspec.defstruct("DataAt", [(name, Any) for name in (*names, "at")], gc=False)
        self.convert = tuple(
            (i, c) for i, c in ((i, _converter(f.type, f.encode_name)) for i, f in enumerate(own)) if c is not None
        )

    def data(self, raw: list[Any]) -> msgspec.Struct:
        """The struct whose JSON is the `data` of a raw event."""
        own = raw[self.EVENT_FIELDS :]
        for i, convert in self.convert:
            own[i] = convert(own[i])
        if raw[4]:
            return self.make_at(*own, dict(raw[4]))
        return self.make(*own)


_SHAPES: Final = {kind.__struct_config__.tag: _Shape(kind) for kinds in registry.EVENTS.values() for kind in kinds}


def _order_id(event: Event) -> bytes | None:
    if isinstance(event, Intent):
        return event.id
    if isinstance(event, CancelIntent | Decision | OrderEvent | Fill):
        return event.intent_id if len(event.intent_id) == 16 else None
    return None


class Rows:
    """Gathers messages of one stream and gives their rows as an Arrow table, in the order of `add`."""

    def __init__(self) -> None:
        self.messages = 0
        self.rows = 0
        self._of: list[int] = []  # row -> message
        self._message: list[tuple[Any, ...]] = []
        self._pos: list[int | None] = []
        self._ids: list[bytes | None] = []
        self._types: list[str | None] = []
        self._ts: list[int | None] = []
        self._causes: list[tuple[bytes, ...] | list[bytes] | None] = []
        self._orders: list[bytes | None] = []
        self._data: list[bytes | None] = []
        self._payloads: list[bytes | None] = []

    def add(
        self,
        log_index: int,
        stream_seq: int,
        subject: str,
        payload: bytes,
        received: int,
        status: str,
        code: str,
        verified: Verified | None,
    ) -> int:
        """Add one message (`verified` is None where it could not be opened); returns its number of rows."""
        if verified is None:
            self._message.append(
                (log_index, stream_seq, subject, *([None] * 12), received, None, status, code)  # see `_MESSAGE`
            )
            count = 0
        else:
            s, v = verified.subject, verified.statement
            self._message.append(
                (
                    log_index,
                    stream_seq,
                    subject,
                    s.kind,
                    s.strategy or None,
                    s.venue or None,
                    s.symbol or None,
                    s.asset or None,
                    v.component,
                    v.boot,
                    v.seq,
                    verified.index,
                    v.flags,
                    v.time,
                    v.credential,
                    received,
                    verified.leaf,
                    status,
                    code,
                )
            )
            count = len(verified.events)
        if verified is None or not count:
            self._blank()
            count = 1
        else:
            raws = _raw_events.decode(_payloads.decode(payload).events)
            self._pos.extend(range(count))
            self._ids.extend([raw[1] for raw in raws])
            self._types.extend([raw[0] for raw in raws])
            self._ts.extend([raw[2] for raw in raws])
            self._causes.extend([raw[3] or _NO_CAUSES for raw in raws])
            if verified.subject.stream == "ORDERS":
                self._orders.extend([_order_id(event) for event in verified.events])
            else:
                self._orders.extend([None] * count)
            lines = _json.encode_lines([_SHAPES[raw[0]].data(raw) for raw in raws])
            self._data.extend(lines[:-1].split(b"\n"))
        self._payloads.append(payload)
        if count > 1:
            self._payloads.extend([None] * (count - 1))
        self._of.extend([self.messages] * count)
        self.messages += 1
        self.rows += count
        return count

    def _blank(self) -> None:
        for column in (self._pos, self._ids, self._types, self._ts, self._causes, self._orders, self._data):
            column.append(None)

    def table(self) -> pa.Table:
        """All rows as a table of `SCHEMA`."""
        of = pa.array(self._of, pa.int64())
        columns: dict[str, pa.Array] = {
            name: pa.array(values, SCHEMA.field(name).type).take(of)
            for name, values in zip(_MESSAGE, zip(*self._message, strict=True), strict=True)
        }
        columns["pos"] = pa.array(self._pos, pa.int32())
        columns["event_id"] = pa.array(self._ids, _ID)
        columns["type"] = pa.array(self._types, pa.string())
        columns["ts"] = pa.array(self._ts, pa.int64()).cast(_NS)
        columns["causes"] = pa.array(self._causes, pa.list_(_ID))
        columns["order_id"] = pa.array(self._orders, _ID)
        columns["data"] = pa.array(self._data, pa.string())
        columns["payload"] = pa.array(self._payloads, pa.binary())
        return pa.Table.from_arrays([columns[name] for name in SCHEMA.names], schema=SCHEMA)


# The columns that all rows of a message share, in the order in which `Rows.add` gathers them.
_MESSAGE: Final = (
    "log_index",
    "stream_seq",
    "subject",
    "kind",
    "strategy",
    "venue",
    "symbol",
    "asset",
    "component",
    "boot",
    "chain_seq",
    "chain_index",
    "flags",
    "statement_time",
    "credential",
    "received",
    "leaf",
    "status",
    "code",
)
