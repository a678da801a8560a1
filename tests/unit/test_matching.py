"""What the matching engine promises, example by example."""

from __future__ import annotations

from decimal import Decimal

import pytest

from tallystick.components.paper_exchange.matching import Engine
from tallystick.components.paper_exchange.orders import (
    Depth,
    Instrument,
    NewOrder,
    Order,
    OrderType,
    Refused,
    Report,
    Side,
    TimeInForce,
)
from tallystick.schemas.errors import ConfigError, Malformed

D = Decimal
INSTRUMENT = Instrument(
    symbol="XRPETH",
    name="XRP/ETH",
    base="XRP",
    quote="ETH",
    tick=D("0.01"),
    step=D("0.1"),
    min_notional=D(1),
    max_price=D(1000),
    max_qty=D(1000),
    max_market_qty=D(500),
    max_notional=D(50_000),
    max_orders=5,
)
NOW = 1_700_000_000_000


def engine(commission: str = "0", levels: int = 3, history: int = 1000) -> Engine:
    accounts = {"a": {"XRP": D(1000), "ETH": D(10_000)}, "b": {"XRP": D(1000), "ETH": D(10_000)}}
    return Engine([INSTRUMENT], accounts, D(commission), Depth(levels), history)


def played(commission: str = "0", levels: int = 3) -> Engine:
    """A market of 10 at 9.99 against 10 at 10.01."""
    e = engine(commission, levels)
    e.market_trade("XRPETH", D("9.99"), D(10), True, NOW)
    e.market_trade("XRPETH", D("10.01"), D(10), False, NOW)
    return e


def new(
    side: Side,
    qty: str | None,
    price: str | None = None,
    kind: OrderType = "LIMIT",
    tif: TimeInForce | None = "GTC",
    client_id: str | None = None,
    quote: str | None = None,
) -> NewOrder:
    return NewOrder(
        symbol="XRPETH",
        side=side,
        type=kind,
        tif=tif if kind == "LIMIT" else None,
        qty=None if qty is None else D(qty),
        price=None if price is None else D(price),
        quote_qty=None if quote is None else D(quote),
        client_id=client_id,
    )


def market(side: Side, qty: str | None, quote: str | None = None) -> NewOrder:
    return new(side, qty, kind="MARKET", quote=quote)


def trades(order: Order) -> list[tuple[str, str]]:
    return [(str(t.price), str(t.qty)) for t in order.trades]


def refusal(e: Engine, order: NewOrder, account: str = "a") -> tuple[int, str]:
    with pytest.raises(Refused) as caught:
        e.place(account, order, NOW)
    return caught.value.number, caught.value.text


def test_market_order_walks_the_played_market_tick_by_tick() -> None:
    order = played().place("a", market("BUY", "25"), NOW)
    assert trades(order) == [("10.01", "10.0"), ("10.02", "10.0"), ("10.03", "5.0")]
    assert order.status == "FILLED"
    assert order.value == D("10.01") * 10 + D("10.02") * 10 + D("10.03") * 5


def test_market_order_beyond_the_depth_expires_with_what_it_got() -> None:
    order = played().place("a", market("SELL", "40"), NOW)
    assert trades(order) == [("9.99", "10.0"), ("9.98", "10.0"), ("9.97", "10.0")]
    assert (order.status, order.executed) == ("EXPIRED", D(30))


def test_what_was_taken_is_gone_until_the_market_trades_there_again() -> None:
    e = played(levels=1)
    assert e.place("a", market("BUY", "10"), NOW).status == "FILLED"
    assert e.place("a", market("BUY", "10"), NOW).executed == 0
    e.market_trade("XRPETH", D("9.99"), D(5), True, NOW)  # the other side
    assert e.place("a", market("BUY", "10"), NOW).executed == 0
    e.market_trade("XRPETH", D("10.01"), D(4), False, NOW)
    assert e.place("a", market("BUY", "10"), NOW).executed == 4


def test_market_order_before_the_first_trade_expires_empty() -> None:
    order = engine().place("a", market("BUY", "10"), NOW)
    assert (order.status, order.executed, order.locked) == ("EXPIRED", D(0), D(0))


def test_order_by_value_buys_whole_steps_and_no_more_than_its_value() -> None:
    order = played().place("a", market("BUY", None, "102.5"), NOW)
    # 10 at 10.01 cost 100.10; 2.40 are left, two steps at 10.02.
    assert trades(order) == [("10.01", "10.0"), ("10.02", "0.2")]
    assert (order.status, order.qty, order.executed) == ("FILLED", D("10.2"), D("10.2"))
    sold = played().place("a", market("SELL", None, "50"), NOW)
    assert (sold.status, sold.executed) == ("FILLED", D("5.0"))


def test_order_by_value_that_exhausts_the_market_expires() -> None:
    order = played(levels=1).place("a", market("BUY", None, "500"), NOW)
    assert (order.status, order.executed) == ("EXPIRED", D(10))


def test_order_by_value_without_a_market_is_refused() -> None:
    assert refusal(engine(), market("BUY", None, "100"))[0] == -2010


def test_limit_order_takes_up_to_its_price_and_rests_with_the_remainder() -> None:
    e = played()
    order = e.place("a", new("BUY", "30", "10.02"), NOW)
    assert trades(order) == [("10.01", "10.0"), ("10.02", "10.0")]
    assert order.status == "PARTIALLY_FILLED"
    held = e.accounts["a"]["ETH"]
    assert held.locked == D("10.02") * 10
    # What the limit reserved above the price paid is free again.
    assert held.free + held.locked == D(10_000) - order.value


def test_ioc_expires_its_remainder_and_fok_is_whole_or_nothing() -> None:
    e = played()
    ioc = e.place("a", new("BUY", "15", "10.01", tif="IOC"), NOW)
    assert (ioc.status, ioc.executed) == ("EXPIRED", D(10))
    e = played()
    fok = e.place("a", new("BUY", "15", "10.01", tif="FOK"), NOW)
    assert (fok.status, fok.executed) == ("EXPIRED", D(0))
    assert e.place("a", new("BUY", "15", "10.02", tif="FOK"), NOW).status == "FILLED"
    assert e.accounts["a"]["ETH"].locked == 0


def test_limit_maker_never_takes() -> None:
    e = played()
    assert refusal(e, new("BUY", "1", "10.01", "LIMIT_MAKER")) == (-2010, "Order would immediately match and take.")
    assert e.place("a", new("BUY", "1", "10", "LIMIT_MAKER"), NOW).status == "NEW"
    assert refusal(e, new("SELL", "1", "10", "LIMIT_MAKER"), "b")[0] == -2010
    assert refusal(e, new("SELL", "1", "10", "LIMIT_MAKER"), "a")[0] == -2010


def test_a_better_resting_order_comes_before_the_market_and_one_at_its_price_too() -> None:
    e = played()
    better = e.place("b", new("SELL", "3", "10"), NOW)
    same = e.place("b", new("SELL", "4", "10.01"), NOW)
    order = e.place("a", market("BUY", "10"), NOW)
    assert trades(order) == [("10", "3"), ("10.01", "4"), ("10.01", "3")]
    assert (better.status, same.status) == ("FILLED", "FILLED")
    assert [t.id for t in order.trades[:2]] == [better.trades[0].id, same.trades[0].id]
    assert better.trades[0].is_maker
    assert not order.trades[0].is_maker


def test_resting_orders_fill_by_price_then_time() -> None:
    e = engine()
    first = e.place("a", new("BUY", "5", "9"), NOW)
    second = e.place("b", new("BUY", "5", "9"), NOW)
    best = e.place("b", new("BUY", "5", "9.5"), NOW)
    e.market_trade("XRPETH", D(9), D(7), True, NOW)
    assert (best.executed, first.executed, second.executed) == (D(5), D(2), D(0))
    assert trades(best) == [("9.5", "5")]  # its own price, not the market's


def test_a_market_trade_fills_no_more_than_its_quantity() -> None:
    e = engine()
    orders = [e.place(who, new("SELL", "5", "11"), NOW) for who in "ab"]
    e.market_trade("XRPETH", D(12), D("6.05"), False, NOW)
    assert sum(o.executed for o in orders) == D("6.0")  # whole steps


def test_a_market_trade_at_an_orders_price_fills_it_only_from_the_other_side() -> None:
    e = engine()
    order = e.place("a", new("BUY", "5", "9"), NOW)
    e.market_trade("XRPETH", D(9), D(5), False, NOW)  # somebody bought at 9: the seller was resting, as we are not
    assert order.executed == 0
    e.market_trade("XRPETH", D("8.99"), D(5), False, NOW)  # a seller rested below our bid: we would have met
    assert order.status == "FILLED"


def test_the_market_never_shows_a_crossed_touch() -> None:
    e = played()
    e.market_trade("XRPETH", D("10.05"), D(2), True, NOW)
    assert e.touch("XRPETH") == (D("10.05"), D(2), D("10.06"), D(2))
    e.market_trade("XRPETH", D("10.04"), D(3), False, NOW)
    assert e.touch("XRPETH") == (D("10.03"), D(3), D("10.04"), D(3))


def test_an_account_does_not_trade_with_itself() -> None:
    e = engine()
    mine = e.place("a", new("SELL", "5", "10"), NOW)
    theirs = e.place("b", new("SELL", "5", "10.1"), NOW)
    order = e.place("a", new("BUY", "5", "10.1"), NOW)
    assert (mine.status, theirs.status, order.status) == ("EXPIRED_IN_MATCH", "FILLED", "FILLED")
    assert e.accounts["a"]["XRP"].locked == 0


def test_a_client_order_id_is_unique_among_open_orders_only() -> None:
    e = played()
    first = e.place("a", new("BUY", "1", "9", client_id="x"), NOW)
    assert refusal(e, new("BUY", "1", "9", client_id="x")) == (-2010, "Duplicate order sent.")
    e.place("b", new("BUY", "1", "9", client_id="x"), NOW)  # another account's
    e.cancel("a", "XRPETH", first.id, None, NOW)
    again = e.place("a", new("BUY", "1", "9", client_id="x"), NOW)
    assert e.order("a", "XRPETH", None, "x") is again
    assert e.order("a", "XRPETH", first.id, None) is first
    taken = [e.place("a", NewOrder("XRPETH", "BUY", "MARKET", qty=D(1), client_id="y"), NOW) for _ in range(2)]
    assert [o.status for o in taken] == ["FILLED", "FILLED"]


def test_an_account_sees_and_cancels_only_its_own_orders() -> None:
    e = engine()
    order = e.place("a", new("BUY", "1", "9", client_id="x"), NOW)
    for order_id, client_id in ((order.id, None), (None, "x")):
        with pytest.raises(Refused) as unseen:
            e.order("b", "XRPETH", order_id, client_id)
        assert unseen.value.number == -2013
        with pytest.raises(Refused) as uncancelled:
            e.cancel("b", "XRPETH", order_id, client_id, NOW)
        assert uncancelled.value.number == -2011
    with pytest.raises(Refused):
        e.cancel_all("b", "XRPETH", NOW)
    assert e.cancel_all("a", "XRPETH", NOW) == [order]
    with pytest.raises(Refused) as gone:
        e.cancel("a", "XRPETH", order.id, None, NOW)
    assert gone.value.number == -2011


def test_a_cancel_by_both_ids_wants_both_right() -> None:
    e = engine()
    order = e.place("a", new("BUY", "1", "9", client_id="x"), NOW)
    with pytest.raises(Refused):
        e.cancel("a", "XRPETH", order.id, "z", NOW)
    assert e.cancel("a", "XRPETH", order.id, "x", NOW) is order


def test_funds_are_checked_and_locked() -> None:
    e = engine()
    e.place("a", new("SELL", "999.9", "20"), NOW)
    assert e.accounts["a"]["XRP"].locked == D("999.9")
    assert refusal(e, new("SELL", "0.2", "20")) == (-2010, "Account has insufficient balance for requested action.")
    e.cancel_all("a", "XRPETH", NOW)
    assert (e.accounts["a"]["XRP"].free, e.accounts["a"]["XRP"].locked) == (D(1000), D(0))
    assert refusal(e, new("BUY", "1000", "10.01"))[0] == -2010


def test_commission_is_taken_from_what_is_received_rounded_down() -> None:
    e = played(commission="0.00123456789")
    order = e.place("a", market("BUY", "1"), NOW)
    assert (order.trades[0].commission, order.trades[0].commission_asset) == (D("0.00123456"), "XRP")
    assert e.accounts["a"]["XRP"].free == D(1001) - D("0.00123456")
    sold = e.place("a", market("SELL", "1"), NOW)
    assert (sold.trades[0].commission, sold.trades[0].commission_asset) == (D("0.01233333"), "ETH")
    assert e.fees == {"XRP": D("0.00123456"), "ETH": D("0.01233333")}


@pytest.mark.parametrize(
    ("order", "text"),
    [
        (new("BUY", "1", "10.001"), "PRICE_FILTER"),
        (new("BUY", "1", "1000.01"), "PRICE_FILTER"),
        (new("BUY", "0.05", "100"), "LOT_SIZE"),
        (new("BUY", "1000.1", "1"), "LOT_SIZE"),
        (market("BUY", "500.1"), "MARKET_LOT_SIZE"),
        (new("BUY", "0.1", "9.9"), "NOTIONAL"),
        (new("BUY", "1000", "50.01"), "NOTIONAL"),
        (market("BUY", None, "0.99"), "NOTIONAL"),
        (market("BUY", None, "50001"), "NOTIONAL"),
    ],
)
def test_filters_refuse_with_their_names(order: NewOrder, text: str) -> None:
    assert refusal(played(), order) == (-1013, f"Filter failure: {text}")


@pytest.mark.parametrize(
    ("order", "number"),
    [
        (NewOrder("XRPETH", "BUY", "LIMIT", "GTC", D(1)), -1102),
        (NewOrder("XRPETH", "BUY", "LIMIT", "GTC", None, None, D(1)), -1102),
        (NewOrder("XRPETH", "BUY", "LIMIT", None, D(1), None, D(1)), -1102),
        (NewOrder("XRPETH", "BUY", "LIMIT", "GTC", D(1), D(1), D(1)), -1106),
        (NewOrder("XRPETH", "BUY", "LIMIT_MAKER", "GTC", D(1), None, D(1)), -1106),
        (NewOrder("XRPETH", "BUY", "MARKET"), -1102),
        (NewOrder("XRPETH", "BUY", "MARKET", None, D(1), D(1)), -1106),
        (NewOrder("XRPETH", "BUY", "MARKET", None, D(1), None, D(1)), -1106),
        (NewOrder("XRPETH", "BUY", "MARKET", "GTC", D(1)), -1106),
        (NewOrder("XRPETH", "BUY", "LIMIT", "GTC", D(0), None, D(1)), -1013),
        (NewOrder("ETHBTC", "BUY", "LIMIT", "GTC", D(1), None, D(1)), -1121),
    ],
)
def test_incomplete_orders_are_refused(order: NewOrder, number: int) -> None:
    assert refusal(played(), order)[0] == number


def test_open_orders_are_limited() -> None:
    e = engine()
    for _ in range(5):
        e.place("a", new("BUY", "1", "9"), NOW)
    assert refusal(e, new("BUY", "1", "9")) == (-1013, "Filter failure: MAX_NUM_ORDERS")


def test_history_is_bounded_and_open_orders_are_never_forgotten() -> None:
    e = engine(history=3)
    kept = e.place("a", new("BUY", "1", "9", client_id="kept"), NOW)
    first = e.place("a", new("BUY", "1", "9", client_id="x"), NOW)
    e.cancel("a", "XRPETH", first.id, None, NOW)
    for _ in range(3):
        e.cancel("a", "XRPETH", e.place("a", new("BUY", "1", "9"), NOW).id, None, NOW)
    with pytest.raises(Refused):
        e.order("a", "XRPETH", None, "x")
    assert e.order("a", "XRPETH", None, "kept") is kept


def test_withdrawals_leave_the_books_balanced() -> None:
    e = engine()
    total = e.totals()
    e.withdraw("a", "ETH", D(1))
    for asset, amount in (("ETH", D(10_000)), ("ETH", D(0)), ("DOGE", D(1))):
        with pytest.raises(Refused) as caught:
            e.withdraw("a", asset, amount)
        assert caught.value.number == -4026
    assert e.totals() == total
    assert e.accounts["a"]["ETH"].free == 9999


@pytest.mark.parametrize(
    ("symbol", "price", "qty"),
    [
        ("ETHBTC", "1", "1"),
        ("XRPETH", "1.001", "1"),
        ("XRPETH", "0", "1"),
        ("XRPETH", "NaN", "1"),
        ("XRPETH", "1", "-1"),
    ],
)
def test_a_market_trade_that_cannot_be_is_refused(symbol: str, price: str, qty: str) -> None:
    with pytest.raises(Malformed):
        engine().market_trade(symbol, D(price), D(qty), True, NOW)


def test_a_venue_that_cannot_keep_exact_balances_is_refused() -> None:
    for tick, step in (("0.000000001", "1"), ("1", "0.000000001")):
        with pytest.raises(ConfigError):
            Instrument(symbol="XY", name="X/Y", base="X", quote="Y", tick=D(tick), step=D(step), min_notional=D(1))
    for balance in ("-1", "0.123456789", "1e19"):
        with pytest.raises(ConfigError):
            Engine([INSTRUMENT], {"a": {"ETH": D(balance)}})
    with pytest.raises(ConfigError):
        Engine([INSTRUMENT], {}, D(1))
    with pytest.raises(ConfigError):
        Engine([INSTRUMENT], {}, depth=Depth(0))


def traded(tick: str, step: str, price: str, qty: str, symbol: str = "XRPETH") -> Engine:
    """Account `a` has bought `qty` at `price` of an instrument of such magnitudes."""
    market = Instrument(
        symbol=symbol, name="X/Y", base="X", quote="Y", tick=D(tick), step=D(step), min_notional=D("0.0001")
    )
    e = Engine([market], {"a": {"Y": D(10) ** 15}})
    e.market_trade(symbol, D(price), D(qty), False, NOW)
    e.place("a", NewOrder(symbol, "BUY", "LIMIT", "GTC", D(qty), price=D(price)), NOW)
    return e


def test_a_trade_finer_than_eight_places_is_booked_rounded_down() -> None:
    e = traded("0.000001", "0.0001", "0.061233", "0.0481")  # 0.0029453073
    (trade,) = e.trades["a"]
    assert trade.value == D("0.00294530")
    assert e.accounts["a"]["Y"].free == D(10) ** 15 - D("0.00294530")
    assert e.accounts["a"]["Y"].locked == 0
    assert e.market == {"X": -D("0.0481"), "Y": D("0.00294530")}


@pytest.mark.parametrize(
    ("tick", "step", "price", "qty"),
    [
        ("1", "0.00001", "14100249", "0.5"),  # a coin in yen
        ("1", "0.00001", "1500000000", "0.5"),  # in rupiah
        ("0.00000001", "1", "0.00000711", "277500000"),  # a coin that trades by the million
    ],
)
def test_high_prices_and_large_lots_trade(tick: str, step: str, price: str, qty: str) -> None:
    (trade,) = traded(tick, step, price, qty).trades["a"]
    assert (trade.price, trade.qty) == (D(price), D(qty))


def test_a_symbol_may_be_of_any_script() -> None:
    assert traded("0.01", "1", "1", "10", "币安人生USDT").trades["a"]
    for symbol in ("", "btcusdt", "A B", "A/B", "A" * 51):
        with pytest.raises(ConfigError):
            traded("0.01", "1", "1", "10", symbol)


def test_every_change_is_reported_in_order() -> None:
    e = played()
    e.place("a", new("BUY", "15", "10.01", tif="IOC"), NOW)
    resting = e.place("a", new("BUY", "1", "9"), NOW)
    e.cancel("a", "XRPETH", resting.id, None, NOW, "c1")
    seen = [(r.execution, r.status, r.executed, r.cancel_id) for r in e.drain() if isinstance(r, Report)]
    assert seen == [
        ("NEW", "NEW", D(0), ""),
        ("TRADE", "PARTIALLY_FILLED", D(10), ""),
        ("EXPIRED", "EXPIRED", D(10), ""),
        ("NEW", "NEW", D(0), ""),
        ("CANCELED", "CANCELED", D(0), "c1"),
    ]
    assert e.drain() == []
