from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from tallystick.components.portfolio.book import Holding
from tallystick.schemas.event import check_decimal
from tallystick.schemas.orders import Side

amounts = st.builds(lambda n, places: Decimal(n).scaleb(-places), st.integers(1, 10**9), st.integers(0, 8))
fills = st.lists(st.tuples(st.sampled_from(("buy", "sell")), amounts, amounts), max_size=30)


@settings(max_examples=100, deadline=None)
@given(fills)
def test_money_is_conserved_whatever_the_order_of_fills(trades: list[tuple[Side, Decimal, Decimal]]) -> None:
    holding, cash, closed_qty = Holding(), Fraction(0), Fraction(0)
    for side, price, qty in trades:
        sign = 1 if side == "buy" else -1
        cash -= sign * Fraction(price) * Fraction(qty)
        closed_qty += Fraction(qty)
        holding = holding.after(side, price, qty)
        for value in (holding.qty, holding.average_price, holding.realized):
            check_decimal(value, "value")
    # What came in equals what is realized plus what the open position cost, but for the rounding of averages.
    worth = Fraction(holding.realized) - Fraction(holding.qty) * Fraction(holding.average_price)
    assert abs(worth - cash) <= (closed_qty + 1) * len(trades) * Fraction(1, 10**18)
    assert holding.fills == len(trades)
    assert (holding.qty == 0) <= (holding.average_price == 0)
