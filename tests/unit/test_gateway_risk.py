"""Limits, the throttle, exact arithmetic, and the list of denial codes."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tallystick.components.gateway import decide, risk
from tallystick.components.gateway.risk import CODES, EXACT, LimitBook, Throttle, deviation_bps, notional, worst_price
from tallystick.schemas.errors import ConfigError

DOC = Path(__file__).parents[2] / "docs" / "denial-codes.md"
SECOND = 1_000_000_000
TABLE: dict[str, Any] = {
    "max_notional": "0.5",
    "max_qty": 600,
    "max_open_notional": "1",
    "max_position_notional": "2",
    "max_gross_notional": "3",
}


def test_every_denial_code_is_documented_and_no_other() -> None:
    rows = dict(re.findall(r"^\| `([A-Z_]+)` \| (.*?) \|$", DOC.read_text(), re.MULTILINE))
    assert rows == CODES


def test_every_code_that_the_gateway_gives_is_on_the_list() -> None:
    used = set[str]()
    for module in (risk, decide):
        assert module.__file__ is not None
        text = Path(module.__file__).read_text()
        used |= set(re.findall(r'(?:_denial\(|Denial\(code=|^ {8}\()\s*"([A-Z_]+)"', text, re.MULTILINE))
    from_session_view = {"SESSION_UNLISTED", "SESSION_EXPIRED", "SESSION_REVOKED", "TRUST_ROOT_EXPIRED"}
    assert used | from_session_view == set(CODES)


def test_strategy_table_overrides_the_common_limits() -> None:
    book = LimitBook.parse({**TABLE, "collar_bps": 50, "strategy": {"alpha": {"max_notional": "0.1"}}})
    assert (book.of("alpha").max_notional, book.of("alpha").collar_bps) == (Decimal("0.1"), 50)
    assert (book.of("beta").max_notional, book.of("beta").max_qty) == (Decimal("0.5"), Decimal(600))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"max_notional": 0.5}, "limits.max_notional"),
        ({"max_notional": "NaN"}, "max_notional"),
        ({"max_notional": "Infinity"}, "max_notional"),
        ({"max_notional": "-1"}, "max_notional"),
        ({"max_notional": "0"}, "max_notional"),
        ({"max_notional": "0.000000001"}, "max_notional"),
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
    ],
)
def test_wrong_limit_stops_the_start(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        LimitBook.parse({**TABLE, **change})


@pytest.mark.parametrize("missing", sorted(TABLE))
def test_money_limits_have_no_default(missing: str) -> None:
    with pytest.raises(ConfigError, match=missing):
        LimitBook.parse({k: v for k, v in TABLE.items() if k != missing})


def test_throttle_never_gives_more_than_burst_plus_rate() -> None:
    bucket = Throttle(rate=3, burst=4)
    given, now = 0, 0
    for _ in range(10_000):
        now += SECOND // 100
        if bucket.left(now):
            bucket.take()
            given += 1
    assert given == 4 + 3 * 100 - 1, "the first hundredth of a second earns nothing, the bucket starts full"


def test_clock_that_steps_back_earns_nothing() -> None:
    bucket = Throttle(rate=1, burst=1)
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
