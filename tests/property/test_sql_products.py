"""Products of decimals in SQL against Python's own: exact or refused, whatever the sizes."""

from __future__ import annotations

import decimal
from decimal import Decimal
from functools import cache

import duckdb
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tallystick.record.arithmetic import exact
from tallystick.record.sandbox import check_query, connect

WIDE = decimal.Context(prec=100, traps=[decimal.Inexact])
STEP = Decimal(1).scaleb(-18)
LARGEST = Decimal("99999999999999999999.999999999999999999")
# Every number that the wire carries, those with few digits often.
numbers = st.one_of(
    st.integers(-(10**38) + 1, 10**38 - 1).map(lambda n: WIDE.scaleb(Decimal(n), -18)),
    st.decimals(-1_000_000, 1_000_000, places=8),
    st.decimals(-100, 100, places=2),
    st.sampled_from((LARGEST, LARGEST.copy_negate(), STEP, -STEP, Decimal(0), Decimal(1), Decimal("1e19"))),
)


@cache
def connection() -> duckdb.DuckDBPyConnection:
    return connect()


def product(sql: str, a: Decimal, b: Decimal) -> Decimal | None:
    """What `sql` makes of columns `a` and `b`; None where it is refused."""
    text = f"SELECT {sql} FROM (SELECT '{a:f}'::DECIMAL(38,18) AS a, '{b:f}'::DECIMAL(38,18) AS b)"
    check_query(connection(), text)
    try:
        [(value,)] = connection().execute(exact(connection(), text)).fetchall()
    except (duckdb.OutOfRangeException, duckdb.InvalidInputException, duckdb.ConversionException):
        return None
    assert value is None or isinstance(value, Decimal)
    return value


@settings(max_examples=150, deadline=None)
@given(numbers, numbers)
@example(LARGEST, STEP)
@example(Decimal("1e19"), Decimal("9.99"))
@example(Decimal("0.5"), STEP)
def test_a_product_is_exact_or_refused(a: Decimal, b: Decimal) -> None:
    want = WIDE.multiply(a, b)
    fits = want.copy_abs() <= LARGEST and want == want.quantize(STEP, context=decimal.Context(prec=100))
    assert product("a * b", a, b) == (want if fits else None)
    assert product("sum(a * b)", a, b) == (want if fits else None)


@settings(max_examples=100, deadline=None)
@given(numbers, numbers)
def test_the_rounded_product_is_within_half_a_step(a: Decimal, b: Decimal) -> None:
    want = WIDE.multiply(a, b)
    got = product("TRY(product(a, b))", a, b)
    if want.copy_abs() <= WIDE.subtract(LARGEST, STEP):
        assert got is not None
        assert abs(WIDE.subtract(got, want)) <= STEP / 2
    elif got is None:
        assert want.copy_abs() > WIDE.subtract(LARGEST, STEP)


QUERIES = {
    "factors of aggregates": ("sum(a) * sum(b)", Decimal(99_000_000)),
    "an aggregate of products of products": ("sum(a * b * 0.00075)", Decimal(74_250)),
    "a window": ("sum(a * b) OVER ()", Decimal(99_000_000)),
    "a case": ("CASE WHEN a > 0 THEN -a * b ELSE a * b END", Decimal(-99_000_000)),
    "a whole number": ("a * 3", Decimal(29_700)),
}


@pytest.mark.parametrize("name", QUERIES)
def test_products_are_exact_wherever_they_stand(name: str) -> None:
    sql, want = QUERIES[name]
    assert product(sql, Decimal(9_900), Decimal(10_000)) == want


def test_what_is_no_decimal_stays_what_it_is() -> None:
    text = (
        "SELECT 2 * 3 AS n, 2 * 1e-3 AS d, 2 * INTERVAL 1 HOUR AS h, count(*) * 2, list_transform([2], lambda x: x * 2)"
    )
    assert exact(connection(), text) == text


@pytest.mark.parametrize(
    "text",
    [
        "SELECT price * qty, count(*) FROM trades GROUP BY price * qty HAVING sum(price) * sum(qty) > 1 ORDER BY price * qty",
        "WITH t AS (SELECT price * qty AS v, * FROM trades) SELECT sum(v * qty::INTEGER) FROM t",
        "SELECT t.price * u.qty FROM trades t JOIN trades u ON t.price * t.qty = u.price * u.qty WHERE t.qty * 2 > 1",
        "(SELECT price * qty FROM trades) UNION ALL (SELECT price * 2 FROM trades)",
        "SELECT COLUMNS('price|qty') * 2, price * qty FROM trades",
        "DESCRIBE SELECT price * qty FROM trades",
        "SELECT (SELECT sum(t.price * o.qty) FROM trades t) FROM trades o",
        "SELECT v FROM trades o, LATERAL (SELECT o.price * o.qty AS v)",
        "SELECT price AS p, p * qty FROM trades QUALIFY row_number() OVER (ORDER BY p * qty) = 1",
    ],
)
def test_a_query_with_products_binds_and_keeps_its_columns_names(text: str) -> None:
    check_query(connection(), text)
    assert connection().sql(exact(connection(), text)).columns == connection().sql(text).columns
