"""Limits, the throttle, exact arithmetic, and the codes of denials."""

from __future__ import annotations

import itertools
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tallystick.components import gateway
from tallystick.components.gateway.risk import controls
from tallystick.components.gateway.risk.amounts import deviation_bps, notional, worst_price
from tallystick.components.gateway.risk.controls import check
from tallystick.components.gateway.risk.throttle import Throttle
from tallystick.schemas.amounts import EXACT
from tallystick.schemas.codes import CODES
from tallystick.schemas.codes.code import DENIAL
from tallystick.schemas.errors import Malformed, Unverified
from tallystick.schemas.limits import LimitBook, limit_rows
from tallystick.schemas.orders import Denial
from tests.support.gateway import LIMITS, facts

SECOND = 1_000_000_000
TABLE: dict[str, Any] = {
    "max_notional": "0.5",
    "max_qty": 600,
    "max_open_notional": "1",
    "max_position_notional": "2",
    "max_gross_notional": "3",
}


def book(table: dict[str, Any]) -> LimitBook:
    """What `[limits]` says for two strategies and two quotes."""
    return LimitBook(limit_rows(table, ["alpha", "beta"], ["ETH", "USDT"]))


def test_every_code_that_the_gateway_gives_is_registered_as_a_denial_and_no_other() -> None:
    used = set[str]()
    for file in Path(gateway.__file__ or "").parent.rglob("*.py"):
        used |= set(re.findall(r'(?:_denial\(|_at_most\(|Denial\(code=|refuse\([^"]*)\s*"([A-Z_]+)"', file.read_text()))
    of_the_caller = {
        "SESSIONS_FUTURE",
        "SESSION_EXPIRED",
        "SESSION_REVOKED",
        "SESSION_UNLISTED",
        "TRUST_ROOT_EXPIRED",
    }
    assert used | of_the_caller == {code.name for code in CODES.values() if DENIAL in code.said}


def counted(eth: str, xrp: str) -> tuple[tuple[str, Decimal, Decimal], ...]:
    """What an order counts in both its assets, each with a cap of 5."""
    return ("ETH", Decimal(eth), Decimal(5)), ("XRP", Decimal(xrp), Decimal(5))


# Each control that measures something: what it still allows, and the least that it denies.
MEASURED: list[tuple[str, list[dict[str, Any]], list[dict[str, Any]]]] = [
    ("SESSIONS_STALE", [{"list_age": 0}, {"list_age": 3 * SECOND}], [{"list_age": 3 * SECOND + 1}, {"list_age": None}]),
    (
        "STALE_INTENT",
        [{"intent_age": -SECOND}, {"intent_age": 0}, {"intent_age": 3 * SECOND}],
        [{"intent_age": -SECOND - 1}, {"intent_age": 3 * SECOND + 1}, {"ready": False}],
    ),
    ("X", [{"error": None}], [{"error": Denial("X", "the session list objects")}]),
    ("DUPLICATE_INTENT", [{"duplicate": False}], [{"duplicate": True}]),
    ("NOT_ARMED", [{"armed": True, "lease": None}], [{"armed": False, "lease": None}]),
    ("LEASE_EXPIRED", [{"armed": True, "lease": (0, 1)}], [{"armed": False, "lease": (0, 1)}]),
    ("CUSTODY_UNKNOWN", [{"custody": bytes(16)}], [{"custody": None}]),
    (
        "BREAKER_HEARTBEAT_MISSING",
        [{"heartbeat_age": 0}, {"heartbeat_age": SECOND}],
        [{"heartbeat_age": SECOND + 1}, {"heartbeat_age": None}],
    ),
    ("BREAKER_TRIPPED", [{"tripped": ()}], [{"tripped": ("all",)}, {"tripped": ("venue-paper", "strategy-alpha")}]),
    ("FEED_NOT_LIVE", [{"feed": "live"}], [{"feed": "stale"}, {"feed": "ended"}, {"feed": ""}]),
    (
        "MARKET_DATA_STALE",
        [{"data_age": 0}, {"data_age": 2_000_000_000}],
        [{"data_age": 2_000_000_001}, {"data_age": None}],
    ),
    (
        "PRICE_OUTSIDE_COLLAR",
        [{"deviation_bps": 0}, {"deviation_bps": 100}],
        [{"deviation_bps": 101}, {"deviation_bps": None}],
    ),
    ("QUANTITY_EXCEEDS_LIMIT", [{"qty": Decimal(599)}, {"qty": Decimal(600)}], [{"qty": Decimal(601)}]),
    (
        "NOTIONAL_EXCEEDS_LIMIT",
        [{"notional": Decimal("0.499999999")}, {"notional": Decimal("0.5")}],
        [{"notional": Decimal("0.500000000000000001")}],
    ),
    (
        "ORDER_EXCEEDS_CAP",
        [{"caps": counted("4.9", "5")}, {"caps": counted("5", "4.9")}, {"caps": counted("5", "5")}],
        [
            {"caps": counted("5.000000000000000001", "1")},
            {"caps": counted("1", "5.000000000000000001")},
            {"caps": (("ETH", Decimal(1), None), ("XRP", Decimal(1), Decimal(5)))},
            {"caps": (("ETH", Decimal(1), Decimal(5)), ("XRP", Decimal(1), None))},
        ],
    ),
    ("MESSAGE_RATE_EXCEEDED", [{"messages_left": 2}, {"messages_left": 1}], [{"messages_left": 0}]),
    (
        "OPEN_NOTIONAL_EXCEEDS_LIMIT",
        [{"open_notional": Decimal("0.999999999")}, {"open_notional": Decimal(1)}],
        [{"open_notional": Decimal("1.000000000000000001")}, {"open_notional": None}],
    ),
    (
        "POSITION_EXCEEDS_LIMIT",
        [{"position_notional": Decimal("0.799999999")}, {"position_notional": Decimal("0.8")}],
        [{"position_notional": Decimal("0.800000000000000001")}, {"position_notional": None}],
    ),
    (
        "GROSS_EXPOSURE_EXCEEDS_LIMIT",
        [
            {"gross_notional": Decimal("1.499999999")},
            {"gross_notional": Decimal("1.5")},
            {"gross_notional": None, "reducing": True},
        ],
        [{"gross_notional": Decimal("1.500000000000000001")}, {"gross_notional": None}],
    ),
]


@pytest.mark.parametrize(("code", "allowed", "denied"), MEASURED, ids=[code for code, _, _ in MEASURED])
def test_control_allows_to_its_limit_and_denies_the_least_beyond(
    code: str, allowed: list[dict[str, Any]], denied: list[dict[str, Any]]
) -> None:
    for changes in allowed:
        assert check(facts(**changes)) == []
    for changes in denied:
        assert [d.code for d in check(facts(**changes))] == [code]


def test_every_control_is_asked() -> None:
    written = {
        function
        for name, function in vars(controls).items()
        if not name.startswith("_") and getattr(function, "__annotations__", {}).get("return") == "Denial | None"
    }
    assert written == {*controls.CALLER, *controls.ORDER}


def test_unknown_notional_denies_whatever_is_measured_with_it() -> None:
    codes = [d.code for d in check(facts(notional=None))]
    assert codes == ["NOTIONAL_BELOW_MINIMUM", "NOTIONAL_EXCEEDS_LIMIT"]


def test_limits_are_the_strategys_own() -> None:
    small = msgspec.structs.replace(LIMITS, max_qty=Decimal(1))
    assert [d.code for d in check(facts(limits=small))] == ["QUANTITY_EXCEEDS_LIMIT"]


def test_strategy_table_overrides_the_common_limits() -> None:
    mine = {"max_notional": "0.1", "burst": 3, "quote": {"USDT": {"max_notional": "7"}}}
    made = book({**TABLE, "collar_bps": 50, "quote": {"USDT": {"max_qty": "9"}}, "strategy": {"alpha": mine}})
    found = {}
    for strategy, quote in itertools.product(("alpha", "beta"), ("ETH", "USDT")):
        limits = made.of(strategy, quote)
        found[strategy, quote] = (limits.max_notional, limits.max_qty, limits.collar_bps)
    assert found == {
        ("alpha", "ETH"): (Decimal("0.1"), Decimal(600), 50),
        ("alpha", "USDT"): (Decimal(7), Decimal(9), 50),
        ("beta", "ETH"): (Decimal("0.5"), Decimal(600), 50),
        ("beta", "USDT"): (Decimal("0.5"), Decimal(9), 50),
    }
    assert (made.rate("alpha"), made.rate("beta")) == ((10, 3), (10, 20))


def test_who_has_no_row_has_no_limits() -> None:
    for strategy, quote in (("nobody", "ETH"), ("alpha", "EUR")):
        with pytest.raises(Unverified, match="LIMITS_MISSING"):
            book(TABLE).of(strategy, quote)


def test_two_rows_of_one_place_and_two_rates_of_one_strategy_are_refused() -> None:
    rows = limit_rows(TABLE, ["alpha"], ["ETH", "USDT"])
    faster = msgspec.structs.replace(rows[1], limits=msgspec.structs.replace(rows[1].limits, burst=99))
    for wrong in ((*rows, rows[0]), (rows[0], faster)):
        with pytest.raises(Malformed, match="LIMITS"):
            LimitBook(wrong)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"max_notional": 0.5}, "limits.max_notional"),
        ({"max_notional": "NaN"}, "max_notional"),
        ({"max_notional": "Infinity"}, "max_notional"),
        ({"max_notional": "-1"}, "max_notional"),
        ({"max_notional": "0"}, "max_notional"),
        ({"max_notional": "0.0000000000000000001"}, "max_notional"),
        ({"max_notional": "1e30"}, "max_notional"),
        ({"max_notional": True}, "limits.max_notional"),
        ({"max_notionl": "1"}, "max_notionl"),
        ({"collar_bps": 0}, "collar_bps"),
        ({"collar_bps": "200"}, "collar_bps"),
        ({"burst": 0}, "burst"),
        ({"stale_ms": -1}, "stale_ms"),
        ({"strategy": {"alpha": {"max_qty": "x"}}}, "limits.strategy.alpha"),
        ({"strategy": {"Alpha": {}}}, "Alpha"),
        ({"strategy": ["alpha"]}, "limits.strategy"),
        ({"strategy": {"alpha": 3}}, "limits.strategy.alpha"),
        ({"strategy": {"gamma": {}}}, "there is no such strategy; known: alpha, beta"),
        ({"quote": {"EUR": {}}}, "there is no such quote; known: ETH, USDT"),
        ({"quote": {"ETH": {"burst": 3}}}, "limits.quote.ETH.burst"),
        ({"quote": {"ETH": {"max_qty": "x"}}}, "max_qty"),
        ({"strategy": {"alpha": {"quote": {"ETH": {"burst": 3}}}}}, "limits.strategy.alpha.quote.ETH.burst"),
        ({"strategy": {"alpha": {"quote": {"ETH": {"max_qty": "x"}}}}}, "limits.strategy.alpha.quote.ETH"),
    ],
)
def test_wrong_limit_stops_the_start(change: dict[str, Any], says: str) -> None:
    with pytest.raises(Malformed, match=re.escape(says)):
        book({**TABLE, **change})


@pytest.mark.parametrize("missing", sorted(TABLE))
def test_money_limits_have_no_default(missing: str) -> None:
    with pytest.raises(Malformed, match=missing):
        book({k: v for k, v in TABLE.items() if k != missing})


def test_throttle_never_gives_more_than_burst_plus_rate() -> None:
    bucket = Throttle(rate=3, burst=4, now=0)
    given, now = 0, 0
    for _ in range(10_000):
        now += SECOND // 100
        if bucket.left(now):
            bucket.take()
            given += 1
    assert given == 4 + 3 * 100 - 1, "the first hundredth of a second earns nothing, the bucket starts full"


def test_clock_that_steps_back_earns_nothing() -> None:
    bucket = Throttle(rate=1, burst=1, now=10 * SECOND)
    assert bucket.left(10 * SECOND) == 1
    bucket.take()
    assert bucket.left(0) == 0
    assert bucket.left(10 * SECOND) == 0
    assert bucket.left(11 * SECOND) == 1


def test_arithmetic_is_exact_at_the_ends_of_the_wire_range() -> None:
    big, small = Decimal("99999999999999999999.999999999999999999"), Decimal("1e-18")
    digits = int(str(big).replace(".", ""))
    assert int(notional(big, big).scaleb(36, EXACT)) == digits * digits
    assert notional(small, small) == Decimal("1e-36")
    assert worst_price(Decimal("0.001"), 1) == Decimal("0.0010001")
    assert deviation_bps(big, small) > 10**40


@pytest.mark.parametrize(("price", "bps"), [("1", 0), ("1.01", 100), ("1.010000000000000001", 101), ("0.99", 100)])
def test_deviation_is_rounded_up(price: str, bps: int) -> None:
    assert deviation_bps(Decimal(price), Decimal(1)) == bps
