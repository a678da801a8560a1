"""What every event promises of its common fields, and each type of its own."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import msgspec
import pytest

from tallystick.schemas import market, orders, security
from tallystick.schemas.errors import Malformed
from tallystick.schemas.event import Event, check_length
from tallystick.schemas.registry import EVENTS, decode_events, encode_events
from tallystick.schemas.subjects import parse_subject
from tests.support.forge import base, samples

NOTICE = security.Notice(**base("notice"), code="X", text="y")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"id": bytes(15)}, "EVENT_ID"),
        ({"id": b""}, "EVENT_ID"),
        ({"ts": -1}, "EVENT_TS"),
        ({"causes": (bytes(15),)}, "EVENT_CAUSES"),
        ({"causes": (bytes(16),) * 65}, "EVENT_CAUSES"),
    ],
)
def test_an_event_with_impossible_common_fields_is_never_made(changes: dict[str, Any], code: str) -> None:
    with pytest.raises(Malformed, match=code):
        security.Notice(**{**base("x"), **changes}, code="X", text="y")


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (
            lambda: market.Trade(
                **base("t"), trade_id=1, price=Decimal(0), qty=Decimal(1), time=1, buyer_is_maker=True
            ),
            "DECIMAL_SIGN",
        ),
        (lambda: orders.Intent(**base("i"), side="buy", type="limit", qty=Decimal(1)), "INTENT_PRICE"),
        (
            lambda: orders.Intent(**base("i"), side="buy", type="market", qty=Decimal(1), price=Decimal(1)),
            "INTENT_PRICE",
        ),
        (lambda: orders.Intent(**base("i"), side="buy", type="market", qty=Decimal(-1)), "DECIMAL_SIGN"),
        (
            lambda: orders.Decision(
                **base("d"), verdict="permit", intent_id=bytes(16), intent_hash=bytes(32), trust_root=bytes(32)
            ),
            "DECISION",
        ),
        (
            lambda: orders.Decision(
                **base("d"), verdict="deny", intent_id=bytes(16), intent_hash=bytes(32), trust_root=bytes(32)
            ),
            "DECISION",
        ),
        (
            lambda: orders.Decision(
                **base("d"),
                verdict="cancel",
                intent_id=bytes(16),
                intent_hash=bytes(32),
                trust_root=bytes(32),
                policy_hash=b"x",
            ),
            "LENGTH",
        ),
        (
            lambda: security.DeadLetter(
                **base("d"),
                subject="s",
                stream="t",
                stream_seq=1,
                code="c",
                text="x",
                digest=bytes(32),
                payload=bytes(65_537),
            ),
            "DEAD_PAYLOAD",
        ),
    ],
)
def test_an_event_that_contradicts_itself_is_never_made(make: Any, code: str) -> None:
    with pytest.raises(Malformed, match=code):
        make()


@pytest.mark.parametrize("length", [1, 15, 17])
def test_bytes_are_empty_or_exact(length: int) -> None:
    check_length(b"", 16, "x")
    check_length(bytes(16), 16, "x")
    with pytest.raises(Malformed, match="LENGTH"):
        check_length(bytes(length), 16, "x")


def test_ids_hashes_and_keys_of_another_length_never_arrive() -> None:
    """A handler that prints an id, or an archive with fixed columns, must not meet a shorter one."""
    seen = 0
    for _, subject, event in samples():
        kind = parse_subject(subject).kind
        for field in msgspec.structs.fields(event):
            value = getattr(event, field.name)
            exact = isinstance(value, bytes) and len(value) in {16, 32} and field.name not in {"payload", "evidence"}
            if exact and field.name != "id":
                changed = msgspec.structs.replace(event)
                msgspec.structs.force_setattr(changed, field.name, value[:-1])
                with pytest.raises(Malformed, match="EVENTS"):
                    decode_events(kind, encode_events(kind, [changed]))
                seen += 1
    assert seen >= 15


def test_integers_beyond_the_archives_columns_never_arrive() -> None:
    seen = 0
    for _, subject, event in samples():
        kind = parse_subject(subject).kind
        for field in msgspec.structs.fields(event):
            if type(getattr(event, field.name)) is int:
                changed = msgspec.structs.replace(event)
                msgspec.structs.force_setattr(changed, field.name, 2**63)
                with pytest.raises(Malformed, match="EVENTS"):
                    decode_events(kind, encode_events(kind, [changed]))
                seen += 1
    assert seen >= len(samples())


def test_no_event_holds_a_float() -> None:
    def inside(of: Any) -> bool:
        if isinstance(of, msgspec.inspect.FloatType):
            return True
        parts = [
            getattr(of, "item_type", None),
            *getattr(of, "types", ()),
            *(f.type for f in getattr(of, "fields", ())),
        ]
        return any(inside(part) for part in parts if part is not None)

    types = [t for kind in EVENTS.values() for t in kind]
    assert len(types) == len(set(types)) == len({t.__struct_config__.tag for t in types})
    assert not any(inside(msgspec.inspect.type_info(t)) for t in types)


def test_events_do_not_change() -> None:
    for _, _, event in samples():
        with pytest.raises(AttributeError):
            event.ts = 0  # type: ignore[misc]


def test_an_event_has_its_place() -> None:
    assert isinstance(NOTICE, Event)
    with pytest.raises(Malformed, match="EVENT_TYPE"):
        encode_events("md.trade", [NOTICE])


@pytest.mark.parametrize(
    ("price", "qty", "fits"),
    [
        ("1E+12", "1E+6", True),
        ("0.000000000000000001", "1E+16", True),
        ("1000000000000.000000000000000001", "1", False),
        ("1", "10000000000000000.1", False),
        ("1E+12", "1000000.000000000000000001", False),
        ("99999999999999999999", "1", False),
    ],
)
def test_a_price_that_no_market_has_never_reaches_user_code(price: str, qty: str, fits: bool) -> None:
    """A price of 1e20 once halted every strategy that multiplied it."""
    common: dict[str, Any] = {"id": bytes(16), "ts": 0, "time": 0}
    one, other = Decimal(price), Decimal(qty)
    makers = (
        lambda: market.Trade(**common, trade_id=1, price=one, qty=other, buyer_is_maker=False),
        lambda: market.Quote(**common, bid=one, bid_qty=other, ask=Decimal(1), ask_qty=Decimal(1)),
        lambda: market.Quote(**common, bid=Decimal(1), bid_qty=Decimal(1), ask=one, ask_qty=other),
    )
    for make in makers:
        if fits:
            made = make()
            kind = "md.trade" if isinstance(made, market.Trade) else "md.quote"
            assert decode_events(kind, encode_events(kind, [made])) == [made]
        else:
            with pytest.raises(Malformed, match="MARKET_RANGE"):
                make()
