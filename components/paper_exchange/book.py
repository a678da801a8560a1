"""One instrument's book: resting orders, and the played market that incoming orders meet (`matching`).  Pure."""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal

from tallystick.components.paper_exchange.orders import ZERO, Depth, Instrument, NewOrder, Order, Side, worth


@dataclass(slots=True)
class MarketSide:
    """One side of the played market; `taken` is what orders took at a price since a trade set the side."""

    price: Decimal
    qty: Decimal
    taken: dict[Decimal, Decimal] = field(default_factory=dict)


@dataclass(slots=True)
class Plan:
    """What an incoming order would do: fills in order, its own account's orders in the way, and the totals."""

    fills: list[tuple[Decimal, Decimal, Order | None]] = field(default_factory=list)
    own: list[Order] = field(default_factory=list)
    qty: Decimal = ZERO
    value: Decimal = ZERO
    satisfied: bool = False


class Book:
    """Resting orders and the played market of one instrument."""

    __slots__ = ("ask", "bid", "buys", "instrument", "last", "sells", "stops", "trade_id")

    def __init__(self, instrument: Instrument, first_id: int) -> None:
        self.instrument = instrument
        # Sorted by priority: (-price, id) for buys, (price, id) for sells; ids rise with time.
        self.buys: list[tuple[Decimal, int, Order]] = []
        self.sells: list[tuple[Decimal, int, Order]] = []
        self.stops: list[Order] = []  # that wait for their stop price, oldest first
        self.bid: MarketSide | None = None
        self.ask: MarketSide | None = None
        self.last = ZERO
        self.trade_id = first_id - 1

    def next_trade(self) -> int:
        """The id of the next trade."""
        self.trade_id += 1
        return self.trade_id

    def rest(self, order: Order) -> None:
        """Put an order in its place."""
        side, price = (self.buys, -order.price) if order.side == "BUY" else (self.sells, order.price)
        bisect.insort(side, (price, order.id, order))

    def remove(self, order: Order) -> None:
        """Take an order out that rests or waits here."""
        if order.waits:
            self.stops.remove(order)
            return
        side, price = (self.buys, -order.price) if order.side == "BUY" else (self.sells, order.price)
        at = bisect.bisect_left(side, (price, order.id), key=lambda entry: entry[:2])
        if at == len(side) or side[at][2] is not order:
            raise AssertionError(f"order {order.id} does not rest in the book of {order.symbol}")
        del side[at]

    def market_levels(self, side: Side, depth: Depth) -> Iterable[tuple[Decimal, Decimal]]:
        """`(price, quantity)` of the played market that an incoming order of `side` could take, best first."""
        market, away = (self.ask, self.instrument.tick) if side == "BUY" else (self.bid, -self.instrument.tick)
        if market is None:
            return
        price, step = market.price, self.instrument.step
        shown = market.qty * depth.multiple // step * step
        for _ in range(depth.levels):
            if price <= 0 or price > self.instrument.max_price:
                return
            left = shown - market.taken.get(price, ZERO)
            if left > 0:
                yield price, left
            price += away

    def levels(self, depth: Depth) -> tuple[list[tuple[Decimal, Decimal]], list[tuple[Decimal, Decimal]]]:
        """Bids and asks, best first: `(price, quantity)` of the played market and of resting orders together."""
        sides = []
        both: tuple[tuple[Side, list[tuple[Decimal, int, Order]]], ...] = (("SELL", self.buys), ("BUY", self.sells))
        for taker, resting in both:
            found = dict(self.market_levels(taker, depth))
            for _, _, order in resting:
                found[order.price] = found.get(order.price, ZERO) + order.qty - order.executed
            sides.append(sorted(found.items(), reverse=taker == "SELL"))
        return sides[0], sides[1]

    def reached(self) -> list[Order]:
        """Orders whose stop price the last price has reached."""
        return [order for order in self.stops if is_reached(order.side, order.type, order.stop, self.last)]

    def take(self, side: Side, price: Decimal, qty: Decimal) -> None:
        """An incoming order of `side` took `qty` of the played market at `price`."""
        market = self.ask if side == "BUY" else self.bid
        if market is None:
            raise AssertionError("a fill against a market side that does not exist")
        market.taken[price] = market.taken.get(price, ZERO) + qty

    def plan(self, account: str, new: NewOrder, depth: Depth) -> Plan:
        """What an incoming order would trade; changes nothing."""
        plan = Plan()
        step, buying = self.instrument.step, new.side == "BUY"
        resting = iter(self.sells if buying else self.buys)
        market = iter(self.market_levels(new.side, depth))
        next_order, next_level = next(resting, None), next(market, None)
        while True:
            maker = next_order[2] if next_order is not None else None
            if maker is not None and next_level is not None:
                comes_first = maker.price <= next_level[0] if buying else maker.price >= next_level[0]
                maker = maker if comes_first else None
            if maker is not None:
                price, there = maker.price, maker.qty - maker.executed
            elif next_level is not None:
                price, there = next_level
            else:
                break
            if new.price is not None and (price > new.price if buying else price < new.price):
                break
            if new.qty is not None:
                wanted = new.qty - plan.qty
            else:
                wanted = ((new.quote_qty or ZERO) - plan.value) // (price * step) * step
            if wanted <= 0:
                plan.satisfied = True
                break
            if maker is not None:
                next_order = next(resting, None)
                if maker.account == account:
                    plan.own.append(maker)
                    continue
            else:
                next_level = next(market, None)
            qty = min(wanted, there)
            plan.fills.append((price, qty, maker))
            plan.qty += qty
            plan.value += worth(price, qty)
            if new.qty is not None and qty == wanted:
                plan.satisfied = True
                break
        return plan


def is_reached(side: Side, kind: str, stop: Decimal, last: Decimal) -> bool:
    """Whether `last` sets off an order with this stop price; nothing does before the first trade."""
    if not last:
        return False
    rises = (side == "BUY") == kind.startswith("STOP_LOSS")
    return last >= stop if rises else last <= stop
