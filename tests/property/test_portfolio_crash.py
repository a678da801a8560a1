"""The book through crashes at any event, its last flush torn in any way: the venue's fills, each exactly once."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tallystick.components.portfolio.book import GRACE_NS, Book, Holding
from tallystick.schemas.ids import EventIds
from tallystick.schemas.orders import Decision, Fill, Permit, Position, VenueOrder
from tallystick.schemas.subjects import subject
from tallystick.venues import FillReport

NOW = 1_800_000_000_000_000_000
D = Decimal
STRATEGIES = ("alpha", "beta", "unknown")


def maker() -> Callable[..., Any]:
    ids = EventIds(bytes(8))
    ticks = itertools.count(NOW)

    def new(kind: type, causes: tuple[bytes, ...] = (), **fields: Any) -> Any:
        now = next(ticks)
        return kind(id=ids.next(now), ts=now, causes=causes, **fields)

    return new


class World:
    """The venue's trades, the stream ORDERS, and one book that dies and starts anew."""

    def __init__(self) -> None:
        self.new = maker()
        self.trades: list[FillReport] = []
        self.stored: list[tuple[Any, Any]] = []
        self.flush: list[tuple[Any, Any]] = []
        self.book = Book(self.new)

    def permit(self, client: str, strategy: str, side: str, qty: int) -> None:
        order = VenueOrder("XRPETH", side.upper(), "LIMIT", "GTC", str(qty), "", client)
        where = subject("order.decision", strategy=strategy, venue="paper", symbol="XRP/ETH")
        decision = self.new(
            Decision,
            verdict="permit",
            intent_id=client.encode().rjust(16),
            intent_hash=bytes(32),
            trust_root=bytes(32),
            permit=Permit("main", order, bytes(32), bytes(16), NOW),
        )
        self.stored.append((where, decision))
        self.flush += self.book.on_decision(where, decision, NOW)

    def fill(self, client: str, side: Any, price: int, qty: int, heard: bool) -> None:
        number = len(self.trades) + 1
        self.trades.append(
            FillReport("XRP/ETH", client, client, number, side, D(price), D(qty), D(0), "ETH", False, NOW)
        )
        if heard:
            self.flush += self.book.on_report("paper", self.trades[-1], NOW)

    def stored_now(self) -> None:
        self.stored += self.flush
        self.flush = []

    def crash(self, kept: set[str]) -> None:
        """Of the flush under way only the messages on the subjects `kept` are stored."""
        self.stored += [(where, event) for where, event in self.flush if where.text in kept]
        self.flush = []
        self.book = Book(self.new)
        for where, event in self.stored:
            if isinstance(event, Decision):
                self.book.on_decision(where, event, NOW)
            elif isinstance(event, Fill):
                self.book.booked(where, event)
            elif isinstance(event, Position):
                self.book.stated(where, event)
        self.flush = self.book.resume()

    def catch_up(self) -> None:
        first = self.book.ask_from("paper", "XRP/ETH")
        for trade in self.trades:
            if trade.trade_id >= first:
                self.flush += self.book.on_report("paper", trade, NOW)
        self.flush += self.book.on_time(NOW + GRACE_NS)
        self.stored_now()

    def check(self) -> None:
        fills = [(where, e) for where, e in self.stored if isinstance(e, Fill)]
        assert sorted(e.trade_id for _, e in fills) == [t.trade_id for t in self.trades]
        for strategy in STRATEGIES:
            holding = Holding()
            last = None
            for where, event in self.stored:
                if where.text == f"fill.{strategy}.paper.XRP-ETH":
                    holding = holding.after("XRP/ETH", event)
                if where.text == f"position.{strategy}.paper.XRP-ETH":
                    last = event
            assert self.book.position(strategy, "paper", "XRP/ETH") == holding
            if holding.fills:
                assert last is not None
                assert (last.qty, last.average_price, last.realized, last.fills) == (
                    holding.qty,
                    holding.average_price,
                    holding.realized,
                    holding.fills,
                )


steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("fill"),
            st.sampled_from(STRATEGIES),
            st.sampled_from(("buy", "sell")),
            st.integers(1, 50),
            st.integers(1, 9),
            st.booleans(),
        ),
        st.tuples(st.just("store")),
        st.tuples(
            st.just("crash"),
            st.sets(st.sampled_from([f"{k}.{s}.paper.XRP-ETH" for k in ("fill", "position") for s in STRATEGIES])),
        ),
        st.tuples(st.just("reconnect")),
    ),
    max_size=25,
)


@settings(max_examples=100, deadline=None)
@given(steps)
def test_every_fill_is_booked_once_whatever_crashes_and_gets_lost(script: list[Any]) -> None:
    world = World()
    for number, (what, *args) in enumerate(script):
        if what == "fill":
            strategy, side, price, qty, heard = args
            if strategy != "unknown":
                world.permit(f"c{number}", strategy, side, qty)
            world.fill(f"c{number}", side, price, qty, heard)
        elif what == "store":
            world.stored_now()
        elif what == "crash":
            world.crash(args[0])
        else:
            world.catch_up()
    world.catch_up()
    world.check()
