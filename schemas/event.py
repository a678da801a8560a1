"""What every event has, and the checks on its exact numbers.

An event is a msgpack array `[tag, id, ts, causes, at, …own fields]`:

- `tag`   text, the type and its version, such as `md.trade/1`;
- `id`    16 bytes, a UUIDv7 (`ids`), unique for ever;
- `ts`    integer, Unix nanoseconds UTC, when its component stated it;
- `causes` array of event ids: what led to it;
- `at`    array of `[stream, sequence]`: the last applied position of each input when it was decided,
          so that a replay feeds exactly what was seen.

Prices, quantities and amounts are text in the to-scientific-string form of the General Decimal
Arithmetic specification (what Python's `str(Decimal)` gives), fit DECIMAL(38,18) exactly and are
never floats.  Integers fit 64 signed bits, as the archive and every other language hold them;
ids, hashes and keys have exactly their length.
"""

from __future__ import annotations

import decimal
from decimal import Decimal
from typing import Annotated, Final

import msgspec

from tallystick.schemas.amounts import EXACT, MAX_PRICE, MAX_QTY, MAX_VALUE
from tallystick.schemas.errors import Malformed
from tallystick.schemas.ids import ID_BYTES

# DECIMAL(38,18): the widest that Parquet, Arrow and DuckDB hold exactly.
MAX_DECIMAL: Final = Decimal(10) ** 20
_ZERO: Final = Decimal(0)
_STEP: Final = Decimal(1).scaleb(-18)
_quantize = EXACT.quantize
# A longer chain of causes is a bug or an attack on memory, not a decision.
MAX_CAUSES: Final = 64
# A zero may carry any exponent; written out in full, 0E-999999999 would take a gigabyte.
MAX_ZERO_EXPONENT: Final = 64

_MAX_INT: Final = 2**63 - 1
Int64 = Annotated[int, msgspec.Meta(le=_MAX_INT)]
Count = Annotated[int, msgspec.Meta(ge=0, le=_MAX_INT)]
Id = Annotated[bytes, msgspec.Meta(min_length=ID_BYTES, max_length=ID_BYTES)]
Boot = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
Hash = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
PublicKey = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


def check_decimal(value: Decimal, what: str) -> None:
    """Raise `Malformed` unless `value` is finite and fits DECIMAL(38,18) exactly."""
    try:
        if -MAX_DECIMAL < value < MAX_DECIMAL and (value or abs(value.adjusted()) <= MAX_ZERO_EXPONENT):
            _quantize(value, _STEP)
            return
    except decimal.DecimalException as exc:
        raise _unfit(value, what) from exc
    raise _unfit(value, what)


def _unfit(value: Decimal, what: str) -> Malformed:
    return Malformed("DECIMAL", f"{what} does not fit DECIMAL(38,18): {str(value)[:60]}")


def check_positive(value: Decimal, what: str) -> None:
    """Raise `Malformed` unless `value` is a decimal above zero (see `check_decimal`)."""
    try:
        if _ZERO < value < MAX_DECIMAL:
            _quantize(value, _STEP)
            return
    except decimal.DecimalException as exc:
        raise _unfit(value, what) from exc
    check_decimal(value, what)
    raise Malformed("DECIMAL_SIGN", f"{what} must be above zero, got {value}")


def check_market(price: Decimal, qty: Decimal) -> None:
    """Raise `Malformed` unless price (quote units), quantity (base units) and their product could be a market's."""
    if price > MAX_PRICE or qty > MAX_QTY or EXACT.multiply(price, qty) > MAX_VALUE:
        raise Malformed(
            "MARKET_RANGE",
            f"price {price}, quantity {qty}: no market's; limits {MAX_PRICE}, {MAX_QTY}, and {MAX_VALUE} together",
        )


def check_length(value: bytes, length: int, what: str) -> None:
    """Raise `Malformed` unless `value` is empty or has `length` bytes."""
    if value and len(value) != length:
        raise Malformed("LENGTH", f"{what} is empty or has {length} bytes, got {len(value)}")


class At(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The last applied position of one input: `[stream, sequence]`."""

    stream: str
    seq: Count


class Event(msgspec.Struct, frozen=True, array_like=True, kw_only=True, forbid_unknown_fields=True, tag_field="tag"):
    """Base of all events; see the module docstring for the wire form."""

    id: bytes
    ts: Int64
    causes: tuple[bytes, ...] = ()
    at: tuple[At, ...] = ()

    def __post_init__(self) -> None:
        if len(self.id) != ID_BYTES:
            raise Malformed("EVENT_ID", f"an event id has {ID_BYTES} bytes, got {len(self.id)}")
        if self.ts < 0:
            raise Malformed("EVENT_TS", f"ts is Unix nanoseconds, got {self.ts}")
        if self.causes:
            if len(self.causes) > MAX_CAUSES:
                raise Malformed("EVENT_CAUSES", f"{len(self.causes)} causes, limit {MAX_CAUSES}")
            for cause in self.causes:
                if len(cause) != ID_BYTES:
                    raise Malformed("EVENT_CAUSES", f"a cause has {ID_BYTES} bytes, got {len(cause)}")
