"""Whatever happens, a permit is issued only while every fact is known and fresh and every limit holds."""

from __future__ import annotations

import tempfile
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tallystick.components.gateway.policy import Policy
from tallystick.components.gateway.risk.controls import check
from tallystick.components.gateway.risk.throttle import Throttle
from tallystick.schemas.errors import ConfigError, Malformed, TallystickError
from tallystick.schemas.event import check_positive
from tallystick.schemas.limits import LimitBook, Limits, limit_rows
from tallystick.schemas.orders import Denial, OrderEvent
from tallystick.schemas.registry import encode_events
from tests.support.gateway import LIMITS, MS, NOW, POLICY, SECOND, XRP, World, facts, trust_root

SHIPPED = Policy.load(POLICY, trust_root())
WIDE: Limits = msgspec.structs.replace(LIMITS, burst=10_000, messages_per_second=10_000)

# Each takes one thing away that a permit rests on.
MISSING: list[dict[str, Any]] = [
    {"ready": False},
    {"error": Denial("SESSION_UNLISTED", "x")},
    {"list_age": None},
    {"list_age": 3 * SECOND + 1},
    {"intent_age": 3 * SECOND + 1},
    {"intent_age": -SECOND - 1},
    {"duplicate": True},
    {"qty": Decimal(0)},
    {"caps": (("ETH", Decimal(1), None), ("XRP", Decimal(1), Decimal(5)))},
    {"caps": (("ETH", Decimal(1), Decimal(5)), ("XRP", Decimal(1), None))},
    {"notional": None},
    {"lease": None, "armed": False},
    {"custody": None},
    {"heartbeat_age": None},
    {"heartbeat_age": SECOND + 1},
    {"tripped": ("all",)},
    {"feed": ""},
    {"feed": "ended"},
    {"data_age": None},
    {"data_age": LIMITS.stale_ms * MS + 1},
    {"deviation_bps": None},
    {"messages_left": 0},
    {"open_notional": None},
    {"position_notional": None},
    {"gross_notional": None},
]


def test_the_facts_that_are_taken_away_suffice_otherwise() -> None:
    assert check(facts()) == []


@given(st.lists(st.sampled_from(MISSING), min_size=1, max_size=6))
@settings(max_examples=100)
def test_controls_alone_deny_whatever_combination_is_missing(missing: list[dict[str, Any]]) -> None:
    changes: dict[str, Any] = {}
    for one in missing:
        changes.update(one)
    # One entry may put back what another took away: only what is missing in the end must deny.
    left = [one for one in missing if all(changes[k] == v for k, v in one.items())]
    if left:
        assert check(facts(**changes))


decimals = st.decimals(min_value=Decimal("1e-18"), max_value=Decimal("1e20") - 1, allow_nan=False, places=None).map(
    lambda d: d.quantize(Decimal("1e-18")) if d < 1 else Decimal(int(d))
)
near = st.decimals(min_value=Decimal("0.00097"), max_value=Decimal("0.00103"), places=8)
small = st.integers(1, 700).map(Decimal)


@given(st.one_of(small, decimals), st.one_of(st.none(), near, decimals), st.sampled_from(["buy", "sell"]))
@settings(max_examples=100)
def test_permit_holds_every_limit_by_independent_arithmetic(qty: Decimal, price: Decimal | None, side: str) -> None:
    if qty <= 0 or (price is not None and price <= 0):
        return
    w = World(policy=SHIPPED)
    decision = w.ask(w.intent(qty=str(qty), price=None if price is None else str(price), side=side))
    encode_events("order.decision", [decision])
    record, last = w.trust.instruments[0], Fraction(1, 1000)
    if decision.permit is None:
        assert decision.denials
        return
    q, p = Fraction(decision.permit.order.quantity), Fraction(decision.permit.order.price or "0.00101")
    assert q == Fraction(qty)
    assert price is None or p == Fraction(price)
    assert q % Fraction(record.step) == 0
    assert price is None or p % Fraction(record.tick) == 0
    assert abs(p - last) * 10_000 <= LIMITS.collar_bps * last
    assert Fraction(record.min_notional) <= p * q <= Fraction(LIMITS.max_notional)
    assert q <= Fraction(LIMITS.max_qty)


actions = st.lists(
    st.one_of(
        st.tuples(st.just("wait"), st.integers(1, 4 * SECOND)),
        st.tuples(st.just("list"), st.booleans()),
        st.tuples(st.just("beat"), st.sampled_from(["", "all", "strategy-beta", "venue-paper"])),
        st.tuples(st.just("trade"), st.integers(990, 1010)),
        st.tuples(st.just("feed"), st.sampled_from(["live", "stale", "gap", "reconnecting", "ended"])),
        st.tuples(st.just("arm"), st.integers(1, 10 * SECOND)),
        st.tuples(st.just("ask"), st.integers(1, 700)),
        st.tuples(st.just("final"), st.sampled_from(["rejected", "accepted", "void"])),
    ),
    max_size=40,
)


@given(actions)
def test_permits_in_any_history_rest_on_fresh_facts(steps: list[tuple[str, Any]]) -> None:
    w = World(policy=SHIPPED, limits=WIDE, ready=False)
    w.gateway.caught_up(w.now)
    listed = beaten = traded = -(10**18)
    custody = tripped = False
    live, armed_until = False, 0
    open_orders: dict[bytes, Fraction] = {}
    start: list[tuple[str, Any]] = [("list", True), ("beat", ""), ("trade", 1000), ("arm", 10 * SECOND)]
    for what, value in start + steps:
        if what == "wait":
            w.now += value
        elif what == "list":
            w.list_sessions(without="" if value else "custody")
            if w.now > listed:  # a list stated at the same time as the last one is not later
                listed, custody = w.now, value
        elif what == "beat":
            w.beat(*([value] if value else []))
            beaten, tripped = w.now, value in {"all", "venue-paper"}
        elif what == "trade":
            w.trade(Decimal(value).scaleb(-6))
            traded, live = w.now, True
        elif what == "feed":
            w.feed(value)
            traded = -(10**18) if value == "gap" else traded
            live = live if value == "gap" else value == "live"
        elif what == "arm":
            w.arm(start=w.now, until=w.now + value)
            armed_until = max(armed_until, w.now + value)
        elif what == "ask":
            intent = w.intent(qty=str(value))
            if w.ask(intent).verdict == "permit":
                assert w.now - listed <= 3 * SECOND
                assert custody
                assert w.now - beaten <= SECOND
                assert not tripped
                assert w.now - traded <= LIMITS.stale_ms * MS
                assert live
                assert w.now < armed_until
                open_orders[intent.id] = Fraction(value, 1000)
                assert value <= LIMITS.max_qty
                assert w.gateway.exposure.open_notional("alpha", "ETH") <= LIMITS.max_open_notional
        elif open_orders:
            intent_id = next(iter(open_orders))
            event = OrderEvent(**w.base(), intent_id=intent_id, decision_id=bytes(16), client_order_id="x", state=value)
            w.apply("execution", f"order.event.alpha.{XRP}", event)
            if value != "accepted":
                del open_orders[intent_id]
    exposure = w.gateway.exposure
    assert exposure.open_notional("alpha", "ETH") == sum(o.notional for o in exposure._orders.values())
    assert exposure.open_qty("alpha", "paper", "XRP/ETH", "buy") == sum(o.remaining for o in exposure._orders.values())
    # Without time passing, what is reserved is what is open.
    if not any(what == "wait" for what, _ in steps):
        reserved = w.gateway.exposure.open_notional("alpha", "ETH")
        assert Fraction(reserved) == sum(open_orders.values(), Fraction(0))


@given(st.integers(1, 50), st.integers(1, 50), st.lists(st.integers(-SECOND, SECOND), max_size=100), st.integers(1, 60))
@example(3, 2, [-333333334, 0, 333333334, 333333333], 1)
@example(3, 2, [-333333334, 0, 333333334, 333333333], 60)
@example(1, 1, [SECOND, -SECOND, SECOND, -SECOND, SECOND], 60)
@example(7, 1, [SECOND // 7, 1, -1, SECOND // 7, 1], 60)
def test_throttle_holds_for_any_clock(rate: int, burst: int, steps: list[int], wanted: int) -> None:
    bucket, now = Throttle(rate, burst, NOW), NOW
    latest, taken = [NOW], [0]  # after each call: the latest time so far, and what was taken in all
    for step in steps:
        now += step
        tries = min(wanted, bucket.left(now))
        for _ in range(tries):
            bucket.take()
        latest.append(max(latest[-1], now))
        taken.append(taken[-1] + tries)
    # From any call on: the burst, and what the clock has gained on the latest time that it ever showed.
    for first in range(1, len(latest)):
        for last in range(first, len(latest)):
            gained = rate * (latest[last] - latest[first]) // SECOND
            assert taken[last] - taken[first - 1] <= burst + gained
    assert taken[-1] <= burst + rate * (latest[-1] - NOW) // SECOND


@given(st.dictionaries(st.text(max_size=20), st.one_of(st.text(max_size=20), st.integers(), st.floats()), max_size=8))
@settings(max_examples=100)
def test_limits_table_is_understood_or_refused_as_configuration(table: dict[str, Any]) -> None:
    try:
        book = LimitBook(limit_rows(table, ["alpha"], ["ETH"]))
    except Malformed:
        return
    assert book.of("alpha", "ETH").max_notional > 0


@given(st.text(max_size=200))
def test_any_text_as_policy_is_refused_or_permits_nothing_alone(text: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "s.cedarschema").write_text((POLICY / "gateway.cedarschema").read_text())
        (folder / "p.cedar").write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            policy = Policy.read(folder, trust_root())
        except ConfigError:
            return
    assert not policy.place(facts().caller, facts().order).allow


@given(st.decimals(allow_nan=True, allow_infinity=True))
@settings(max_examples=100)
def test_no_intent_can_hold_what_the_core_cannot_compute(value: Decimal) -> None:
    w = World(policy=SHIPPED)
    try:
        check_positive(value, "qty")
        intent = w.intent(qty=str(value))
    except TallystickError:
        return
    assert w.ask(intent).verdict in {"permit", "deny"}
