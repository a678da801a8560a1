from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from tallystick.components.portfolio.book import Holding
from tallystick.schemas.event import check_decimal
from tallystick.schemas.orders import Side
from tallystick.venues import FillReport

amounts = st.builds(lambda n, places: Decimal(n).scaleb(-places), st.integers(1, 10**9), st.integers(0, 8))
shares = st.builds(lambda n: Decimal(n).scaleb(-4), st.integers(0, 100))
fills = st.lists(
    st.tuples(st.sampled_from(("buy", "sell")), amounts, amounts, shares, st.sampled_from(("XRP", "ETH", "BNB"))),
    max_size=30,
)


@settings(max_examples=100, deadline=None)
@given(fills)
def test_money_is_conserved_whatever_the_order_of_fills(
    trades: list[tuple[Side, Decimal, Decimal, Decimal, str]],
) -> None:
    holding, cash, coins, moved, other = Holding(), Fraction(0), Fraction(0), Fraction(0), Fraction(0)
    for number, (side, price, qty, part, asset) in enumerate(trades):
        commission = (qty * part).quantize(Decimal(1).scaleb(-8))
        sign = 1 if side == "buy" else -1
        cash -= sign * Fraction(price) * Fraction(qty) + (Fraction(commission) if asset == "ETH" else 0)
        coins += sign * Fraction(qty) - (Fraction(commission) if asset == "XRP" else 0)
        other += Fraction(commission) if asset == "BNB" else 0
        moved += Fraction(qty) + Fraction(commission)
        report = FillReport("XRP/ETH", "", "1", number, side, price, qty, commission, asset, False, 0)
        holding = holding.after("XRP/ETH", report)
        for value in (holding.qty, holding.average_price, holding.realized, holding.fees):
            check_decimal(value, "value")
    # What can be sold is what the venue has; what came in is what is realized after fees, and what the open position
    # cost, but for the rounding of averages.
    assert Fraction(holding.qty) == coins
    assert sum(Fraction(fee.amount) for fee in holding.other_fees) == other
    worth = (
        Fraction(holding.realized) - Fraction(holding.fees) - Fraction(holding.qty) * Fraction(holding.average_price)
    )
    assert abs(worth - cash) <= (moved + 1) * (len(trades) + 1) * Fraction(1, 10**18)
    assert holding.fills == len(trades)
    assert (holding.qty == 0) <= (holding.average_price == 0)
