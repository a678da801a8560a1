"""Every event with arbitrary legal fields survives the wire; numbers are exact or refused."""

from __future__ import annotations

import decimal
import uuid
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from msgspec import inspect

from tallystick.schemas.errors import Malformed
from tallystick.schemas.event import MAX_DECIMAL, MAX_ZERO_EXPONENT, Event, check_decimal, check_positive
from tallystick.schemas.ids import EventIds, id_bytes, id_text, id_time_ns
from tallystick.schemas.registry import EVENTS, array_header, decode_events, encode_event, encode_events, join_events
from tests.support.world import NOW, seed

TYPES = [(kind, event) for kind, types in EVENTS.items() for event in types]

decimals = st.builds(
    lambda sign, digits, places: Decimal((sign, tuple(digits), -places)),
    st.integers(0, 1),
    st.lists(st.integers(0, 9), min_size=1, max_size=20),
    st.integers(0, 18),
)
positive = decimals.map(abs).map(lambda d: d or Decimal(1))


def values(of: inspect.Type, name: str) -> st.SearchStrategy[Any]:
    """Arbitrary legal values of a field, from its type."""
    if isinstance(of, inspect.IntType):
        return st.integers(-(2**63) if of.ge is None else of.ge, 2**63 - 1 if of.le is None else of.le)
    if isinstance(of, inspect.BytesType):
        if of.min_length is not None:
            return st.binary(min_size=of.min_length, max_size=of.max_length)
        return st.binary(max_size=40)
    if isinstance(of, inspect.StrType):
        return st.text(max_size=20)
    if isinstance(of, inspect.BoolType):
        return st.booleans()
    if isinstance(of, inspect.NoneType):
        return st.none()
    if isinstance(of, inspect.DecimalType):
        return positive if name in {"price", "qty", "bid", "ask"} else decimals
    if isinstance(of, inspect.LiteralType):
        return st.sampled_from(of.values)
    if isinstance(of, inspect.UnionType):
        return st.one_of([values(t, name) for t in of.types])
    if isinstance(of, inspect.VarTupleType):
        size = {"min_size": 16, "max_size": 16} if name == "causes" else {}
        item = st.binary(**size) if name == "causes" else values(of.item_type, name)
        return st.lists(item, max_size=3).map(tuple)
    assert isinstance(of, inspect.StructType), of
    return structs(of.cls, of)


def structs(cls: type, info: inspect.StructType | None = None) -> st.SearchStrategy[Any]:
    shape = info or inspect.type_info(cls)
    assert isinstance(shape, inspect.StructType)
    fields = {f.name: values(f.type, f.name) for f in shape.fields}
    if issubclass(cls, Event):
        fields |= {"id": st.binary(min_size=16, max_size=16), "ts": st.integers(0, 2**63 - 1)}
    # An empty value or exactly a length is a rule that no annotation can say.
    exact = {"policy_hash": 32, "decision_id": 16, "session_key": 32}
    for name, length in exact.items():
        if name in fields:
            fields[name] = st.binary(min_size=length, max_size=length)
    if cls.__name__ == "Fill":
        fields["intent_id"] = st.just(b"") | st.binary(min_size=16, max_size=16)
    return st.fixed_dictionaries(fields).map(lambda f: _build(cls, f))


def _build(cls: type, fields: dict[str, Any]) -> Any:
    name = cls.__name__
    if name == "Intent":
        fields["price"] = (fields["price"] or Decimal(1)) if fields["type"] == "limit" else None
    if name == "Decision":
        fields["permit"] = fields["permit"] if fields["verdict"] == "permit" else None
        fields["denials"] = fields["denials"] if fields["verdict"] == "deny" else ()
    try:
        return cls(**fields)
    except Malformed:
        reject()


@pytest.mark.parametrize(("kind", "event_type"), TYPES, ids=lambda v: v if isinstance(v, str) else v.__name__)
def test_what_is_encoded_is_decoded_to_the_same(kind: str, event_type: type[Event]) -> None:
    @settings(max_examples=15)
    @given(st.lists(structs(event_type), max_size=3))
    def holds(events: list[Event]) -> None:
        data = encode_events(kind, events)
        decoded = decode_events(kind, data)
        assert decoded == events
        assert encode_events(kind, decoded) == data
        assert data == array_header(len(events)) + b"".join(encode_event(e) for e in events)
        # Every element is an array that begins with the type.
        assert [e[0] for e in msgspec.msgpack.decode(data)] == [event_type.__struct_config__.tag] * len(events)

    holds()


@given(st.lists(st.integers(0, 40), min_size=1, max_size=4))
def test_joined_arrays_are_what_one_encoding_gives(counts: list[int]) -> None:
    parts = [(n, msgspec.msgpack.encode(list(range(n)))) for n in counts]
    assert join_events(parts) == msgspec.msgpack.encode([i for n in counts for i in range(n)])


@pytest.mark.parametrize("count", [0, 1, 15, 16, 65_535, 65_536])
def test_array_headers_are_the_shortest(count: int) -> None:
    assert msgspec.msgpack.encode([None] * count) == array_header(count) + b"\xc0" * count


# -- numbers --------------------------------------------------------------------------------------


def accepted(value: Decimal) -> bool:
    try:
        check_decimal(value, "x")
    except Malformed:
        return False
    return True


@given(st.decimals(allow_nan=True, allow_infinity=True) | st.decimals(min_value=-MAX_DECIMAL, max_value=MAX_DECIMAL))
def test_a_decimal_is_accepted_exactly_if_38_18_holds_it(value: Decimal) -> None:
    fits = value.is_finite() and abs(value) < MAX_DECIMAL
    if fits:
        with decimal.localcontext() as context:
            context.prec = 2000
            fits = value.scaleb(18) % 1 == 0 if abs(value.adjusted()) < 900 else not value
            fits = fits and (bool(value) or abs(value.adjusted()) <= MAX_ZERO_EXPONENT)
    assert accepted(value) == fits


@pytest.mark.parametrize(
    "text",
    [
        "NaN",
        "sNaN",
        "-NaN",
        "Infinity",
        "-Infinity",
        "1E+20",
        "-1E+20",
        "1E-19",
        "1E+999999",
        "1E-999999",
        "0E-999999999",
        "0E+999999999",
        "100000000000000000000",
        "0.1234567890123456789",
    ],
)
def test_a_number_that_the_archive_cannot_hold_is_refused(text: str) -> None:
    assert not accepted(Decimal(text))


@pytest.mark.parametrize(
    "text", ["0", "-0", "0E-18", "1E-18", "99999999999999999999.999999999999999999", "-1.0", "1E+19"]
)
def test_a_number_at_the_limit_is_accepted_and_keeps_its_digits(text: str) -> None:
    assert accepted(Decimal(text))
    assert str(Decimal(text)) == text


@given(decimals)
def test_positive_means_above_zero(value: Decimal) -> None:
    if not accepted(value):
        reject()
    if value > 0:
        check_positive(value, "x")
    else:
        with pytest.raises(Malformed, match="DECIMAL_SIGN"):
            check_positive(value, "x")


# -- ids ------------------------------------------------------------------------------------------


@given(st.lists(st.integers(-(10**9), 10**9), min_size=1, max_size=50))
def test_ids_rise_even_if_the_clock_falls(steps: list[int]) -> None:
    ids, now, last = EventIds(seed("entropy")), NOW, b""
    for step in steps:
        now += step
        made = ids.next(now)
        assert made > last
        last = made


@given(st.integers(0, 2**47 * 1_000_000))
def test_an_id_is_a_uuid_of_version_7_that_tells_its_time(now: int) -> None:
    made = EventIds(bytes(8)).next(now)
    parsed = uuid.UUID(bytes=made)
    assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
    assert 0 <= now - id_time_ns(made) <= 245
    assert id_bytes(id_text(made)) == made
