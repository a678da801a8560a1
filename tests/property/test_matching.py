"""Whatever orders, cancels and market trades come: money is conserved and every limit is honoured."""

from __future__ import annotations

import dataclasses
import decimal
from collections import Counter
from decimal import ROUND_DOWN, ROUND_UP, Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystick.components.paper_exchange import access, parameters
from tallystick.components.paper_exchange.matching import Engine
from tallystick.components.paper_exchange.orders import Depth, Instrument, NewOrder, Refused, Report

D = Decimal
A = Instrument(
    symbol="AAQQ",
    name="AA/QQ",
    base="AA",
    quote="QQ",
    tick=D("0.01"),
    step=D("0.1"),
    min_notional=D("0.1"),
    max_price=D(100),
    max_qty=D(100),
    max_market_qty=D(50),
    max_notional=D(2000),
    max_orders=6,
)
# Its prices and quantities multiply to ten places, as those of ETHBTC do.
FINE = msgspec.structs.replace(A, tick=D("0.000001"), step=D("0.0001"))
B = Instrument(symbol="QQAA", name="QQ/AA", base="QQ", quote="AA", tick=D("0.001"), step=D(1), min_notional=D("0.1"))
ACCOUNTS = ("one", "two", "three")

prices = st.integers(997, 1003).map(lambda n: D(n).scaleb(-2))
quantities = st.sampled_from([1, 7, 10, 10, 20, 33, 50, 120]).map(lambda n: D(n).scaleb(-1))
who = st.sampled_from(ACCOUNTS)
sides = st.sampled_from(["BUY", "SELL"])
client_ids = st.sampled_from([None, "x", "y"])
symbols = st.sampled_from(["AAQQ"] * 7 + ["QQAA"])


def order(**fields: Any) -> st.SearchStrategy[NewOrder]:
    return st.builds(NewOrder, symbol=symbols, side=sides, client_id=client_ids, **fields)


orders = st.one_of(
    order(type=st.just("LIMIT"), tif=st.sampled_from(["GTC", "GTC", "IOC", "FOK"]), qty=quantities, price=prices),
    order(type=st.just("LIMIT_MAKER"), qty=quantities, price=prices),
    order(type=st.just("MARKET"), qty=quantities),
    order(type=st.just("MARKET"), quote_qty=st.integers(1, 200_000).map(lambda n: D(n).scaleb(-3))),
    order(type=st.sampled_from(["STOP_LOSS", "TAKE_PROFIT"]), qty=quantities, stop=prices),
    order(
        type=st.sampled_from(["STOP_LOSS_LIMIT", "TAKE_PROFIT_LIMIT"]),
        tif=st.sampled_from(["GTC", "IOC", "FOK"]),
        qty=quantities,
        stop=prices,
        price=prices,
    ),
)
pairs = st.builds(
    lambda side, qty, at, stop, limit: (
        NewOrder(symbol="AAQQ", side=side, type="LIMIT_MAKER", qty=qty, price=at),
        NewOrder(
            symbol="AAQQ",
            side=side,
            type="STOP_LOSS_LIMIT" if limit else "STOP_LOSS",
            tif="GTC" if limit else None,
            qty=qty,
            stop=stop,
            price=limit,
        ),
    ),
    sides,
    quantities,
    prices,
    prices,
    st.none() | prices,
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("place"), who, orders),
        st.tuples(st.just("place"), who, orders),
        st.tuples(st.just("pair"), who, pairs),
        st.tuples(st.just("market"), symbols, prices, quantities, st.booleans()),
        st.tuples(st.just("cancel"), who, symbols, st.integers(1, 40)),
        st.tuples(st.just("cancel_all"), who, symbols),
    ),
    # Short scripts rarely trade at all.
    min_size=25,
    max_size=60,
)


def finer(step: Any) -> Any:
    """The same step in AAQQ a little off: at prices of six places and quantities of four."""
    if step[0] == "pair":
        return *step[:2], tuple(finer(("place", "", leg))[2] for leg in step[2])
    if step[:2] == ("market", "AAQQ"):
        return *step[:2], step[2] + D("0.000003"), step[3] + D("0.0007"), step[4]
    if step[0] != "place" or step[2].symbol != "AAQQ":
        return step
    new = step[2]
    price = None if new.price is None else new.price + D("0.000003")
    qty = None if new.qty is None else new.qty + D("0.0007")
    stop = None if new.stop is None else new.stop + D("0.000003")
    return *step[:2], dataclasses.replace(new, price=price, qty=qty, stop=stop)


def booked(value: D, rounding: str) -> D:
    """An amount as the venue books it: with 8 places."""
    return value.quantize(D("1e-8"), rounding, context=decimal.Context(prec=40))


def state(e: Engine) -> Any:
    held = {(n, a): (b.free, b.locked) for n, assets in e.accounts.items() for a, b in assets.items()}
    rest = {o.id: (o.executed, o.status) for n in ACCOUNTS for o in e.open_orders(n)}
    return held, rest, dict(e.market), dict(e.fees)


def check_invariants(e: Engine, initial: dict[str, D]) -> None:
    assert e.totals() == initial
    locked: Counter[tuple[str, str]] = Counter()
    resting: list[int] = []
    waiting: list[int] = []
    for account in ACCOUNTS:
        for o in e.open_orders(account):
            assert o.open
            assert 0 <= o.executed < o.qty
            left = o.qty - o.executed
            instrument = e.instrument(o.symbol)
            held = booked(left * o.price, ROUND_UP) if o.side == "BUY" else left
            # Of two orders in a list both together hold what one needs.
            assert o.locked <= held if o.list_id >= 0 else o.locked == held
            locked[account, instrument.quote if o.side == "BUY" else instrument.base] += o.locked  # type: ignore[assignment]
            (waiting if o.waits else resting).append(o.id)
        for of in e.open_lists(account):
            assert all(o.open for o in of.orders)
        for asset, balance in e.accounts[account].items():
            assert balance.free >= 0
            assert balance.locked == locked[account, asset]
    in_books = []
    for book in e.books.values():
        for side in (book.buys, book.sells):
            assert side == sorted(side, key=lambda entry: entry[:2])
            in_books += [entry[1] for entry in side]
        if book.buys and book.sells:
            assert book.buys[0][2].price < book.sells[0][2].price
        touch = e.touch(book.instrument.symbol)
        assert touch is None or touch[0] < touch[2]
    assert sorted(in_books) == sorted(resting)
    assert sorted(o.id for book in e.books.values() for o in book.stops) == sorted(waiting)
    assert not any(book.reached() for book in e.books.values())


def check_trades(e: Engine) -> None:
    by_id: dict[tuple[str, int], list[Any]] = {}
    for account in ACCOUNTS:
        for trade in e.trades[account]:
            o = e.order(account, trade.symbol, trade.order_id, None)
            if not o.at_market:
                assert trade.price <= o.price if o.side == "BUY" else trade.price >= o.price
            by_id.setdefault((trade.symbol, trade.id), []).append((account, trade))
    for pair in by_id.values():
        assert len(pair) <= 2
        if len(pair) == 2:
            (first, mine), (second, theirs) = pair
            assert first != second
            assert (mine.price, mine.qty) == (theirs.price, theirs.qty)
            assert mine.is_buyer != theirs.is_buyer
            assert mine.is_maker != theirs.is_maker


@given(steps, st.sampled_from(["0", "0.001", "0.0123456789"]), st.integers(1, 4), st.booleans())
def test_balances_are_conserved_and_limits_honoured(
    script: list[Any], commission: str, levels: int, fine: bool
) -> None:
    script = list(map(finer, script)) if fine else script
    with decimal.localcontext() as context:
        # Nothing may be rounded but values and commissions, which are rounded on purpose in contexts of their own.
        context.traps[decimal.Inexact] = True
        accounts = {name: {"AA": D(40), "QQ": D(400)} for name in ACCOUNTS}
        e = Engine([FINE if fine else A, B], accounts, D(commission), Depth(levels, D("1.5")))
        initial = e.totals()
        e.market_trade("AAQQ", D("9.99"), D(3), True, 0)
        e.market_trade("AAQQ", D("10.01"), D(3), False, 0)
        for now, step in enumerate(script):
            before = state(e)
            e.drain()
            try:
                if step[0] == "place":
                    o = e.place(step[1], step[2], now)
                    assert o.executed <= o.qty
                    assert o.executed == sum((t.qty for t in o.trades), D(0))
                    assert o.value == sum((booked(t.price * t.qty, ROUND_DOWN) for t in o.trades), D(0))
                    assert not (o.tif == "FOK" and o.status == "EXPIRED" and o.executed)
                    assert not (o.quote_qty and o.value > o.quote_qty)
                    assert o.type != "LIMIT_MAKER" or not o.executed
                    assert o.open == (o.waits or (o.type != "MARKET" and o.tif == "GTC" and o.executed < o.qty))
                elif step[0] == "pair":
                    limit_leg, stop_leg = step[2]
                    above, below = (limit_leg, stop_leg) if limit_leg.side == "SELL" else (stop_leg, limit_leg)
                    assert not e.place_list(step[1], above, below, None, now).done
                elif step[0] == "market":
                    e.market_trade(step[1], step[2], step[3], step[4], now)
                    reports = [r for r in e.drain() if isinstance(r, Report)]
                    filled = sum((r.trade.qty for r in reports if r.trade), D(0))
                    # An order that is set off takes more, from the market's depth and from resting orders.
                    assert filled <= step[3] or any(r.execution == "NEW" for r in reports)
                elif step[0] == "cancel":
                    assert e.cancel(step[1], step[2], step[3], None, now).status == "CANCELED"
                else:
                    e.cancel_all(step[1], step[2], now)
                    assert not e.open_orders(step[1], step[2])
            except Refused:
                assert state(e) == before
                assert not e.drain()
            check_invariants(e, initial)
        check_trades(e)


texts = st.one_of(
    st.text(max_size=12),
    st.decimals(allow_nan=True, allow_infinity=True).map(str),
    st.from_regex(r"\A[0-9]{1,22}(\.[0-9]{1,22})?\Z"),
)


@given(
    st.dictionaries(st.sampled_from(["quantity", "price", "quoteOrderQty", "newClientOrderId", "timeInForce"]), texts)
)
def test_order_parameters_parse_exactly_or_are_refused(values: dict[str, str]) -> None:
    base = {"symbol": "AAQQ", "side": "BUY", "type": "LIMIT"}
    new: NewOrder | None = None
    number = 0
    try:
        new, _ = parameters.new_order(base | values)
    except Refused as exc:
        number = exc.number
    if new is None:
        assert number in (-1100, -1111, -1115)
        return
    for value, name in ((new.qty, "quantity"), (new.price, "price"), (new.quote_qty, "quoteOrderQty")):
        if name in values:
            assert value is not None
            assert value.is_finite()
            assert value >= 0
            assert D(values[name]) == value
            assert value == value.quantize(D("1e-8"), context=decimal.Context(prec=40))
    e = Engine([A], {"one": {"QQ": D(100)}})
    try:
        e.place("one", new, 0)
    except Refused:
        assert e.accounts["one"]["QQ"].free == 100


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_any_bytes_as_a_request_are_parsed_or_refused(query: bytes, body: bytes) -> None:
    for part in (query, body):
        try:
            found = access.parse_parameters(part, allowed=frozenset(("a", "b")))
        except Refused:
            continue
        assert set(found) <= {"a", "b"}
        assert all(value.isprintable() for value in found.values())
    signed = body or query
    if b"&signature=" in signed:
        left, right, _ = access.split_signature(query, body)
        assert (query + body).startswith(left + right + b"&signature=")
    else:
        with pytest.raises(Refused):
            access.split_signature(query, body)
