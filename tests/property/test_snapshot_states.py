"""Whatever happened and wherever it is cut: the state from a snapshot and what came since is that of the whole stream.

A snapshot is taken of a component at work, with decisions, fills and orders under way that nobody has stored.
Execution's is tested in `test_execution_orders`, where it also has to go on from it.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from tallystick.components.gateway.decide import REMEMBER_NS, Gateway
from tallystick.components.gateway.intake import Intake
from tallystick.components.gateway.policy import Policy
from tallystick.components.portfolio.book import GRACE_NS, Book
from tallystick.components.strategy.host import Host
from tallystick.runtime.bus.snapshots import Kept
from tallystick.runtime.bus.strategy import Strategy, StrategyContext
from tallystick.schemas.event import Event
from tallystick.schemas.ids import EventIds
from tallystick.schemas.market import Trade
from tallystick.schemas.orders import (
    CancelIntent,
    Decision,
    Fill,
    Intent,
    OrderEvent,
    Permit,
    Position,
    Side,
    VenueOrder,
)
from tallystick.schemas.seal import Verified
from tallystick.schemas.subjects import Subject, subject
from tallystick.venues import FillReport
from tests.support import world
from tests.support.gateway import LIMITS, NOW, POLICY, SECOND, World, trust_root

MS = 1_000_000
SHIPPED = Policy.load(POLICY, trust_root())
WIDE = msgspec.structs.replace(
    LIMITS, burst=20, messages_per_second=20, max_open_notional=Decimal(50), max_gross_notional=Decimal(50)
)
Tables = dict[str, list[Any]]


def bought(order: VenueOrder) -> Side:
    return "buy" if order.side == "BUY" else "sell"


def written(kept: Kept) -> Tables:
    """The rows of a snapshot as they are read from a file."""
    found = kept.snapshot()
    return {
        name: msgspec.msgpack.decode(msgspec.msgpack.encode(list(found[name])), type=list[row])  # type: ignore[valid-type]
        for name, row in kept.tables.items()
    }


def plain(tables: Tables) -> dict[str, Any]:
    """Rows without the order in which they are kept; numbers by their value."""
    return {
        name: sorted((msgspec.to_builtins(r, builtin_types=(Decimal,)) for r in rows), key=repr)
        for name, rows in _valued(tables).items()
    }


def _valued(tables: Tables) -> Tables:
    def value(x: Any) -> Any:
        if isinstance(x, Decimal):
            return x.normalize()
        if isinstance(x, msgspec.Struct):
            return tuple(value(getattr(x, name)) for name in x.__struct_fields__)
        return type(x)(value(y) for y in x) if isinstance(x, list | tuple) else x

    return {name: [value(row) for row in rows] for name, rows in tables.items()}


# -- the gateway ------------------------------------------------------------------------------------


class Floor:
    """A gateway at work and the stream ORDERS, which it hears of later than it decides."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.w = World(policy=SHIPPED, limits=WIDE)
        self.w.arm(until=NOW + 10**12)
        self.intake = Intake(self.w.gateway)
        self.stream: list[Verified] = []
        self.read = 0
        self.published: list[Verified] = []
        self.permits: list[tuple[Subject, Decision]] = []
        self.trades = itertools.count(1)

    def say(self, component: str, where: str, *events: Event) -> None:
        self.stream.append(self.w.verified(component, where, *events))

    def ask(self) -> None:
        name, rng = self.rng.choice(("alpha", "beta")), self.rng
        where = f"order.intent.{name}.{rng.choice(('paper.XRP-ETH', 'paper.XRP-ETH', 'paper.BTC-USDT'))}"
        events: list[Intent | CancelIntent] = []
        for _ in range(rng.choice((1, 1, 1, 3, 30))):
            price = rng.choice(("0.001", "0.00099", None))
            events.append(self.w.intent(qty=str(rng.randint(1, 40)), price=price, side=rng.choice(("buy", "sell"))))
        if rng.random() < 0.1 and self.stream:
            asked = [e for v in self.stream for e in v.events if isinstance(e, Intent)]
            events = [rng.choice(asked)] if asked else events  # said twice
        if rng.random() < 0.2 and self.permits:
            events = [CancelIntent(**self.w.base(), intent_id=rng.choice(self.permits)[1].intent_id)]
        self.say(f"strategy-{name}", where, *events)

    def read_one(self) -> None:
        if self.read == len(self.stream):
            return
        verified = self.stream[self.read]
        self.read += 1
        if verified.subject.kind != "order.intent":
            self.w.gateway.apply(verified, self.w.now)
            return
        self.w.refresh()
        for decision in self.intake.decide(verified, self.w.now):
            where = f"order.decision.{verified.subject.text.removeprefix('order.intent.')}"
            self.published.append(self.w.verified("gateway", where, decision))

    def store_one(self) -> None:
        if self.published:
            message = self.published.pop(0)
            self.stream.append(message)
            self.permits += [(message.subject, e) for e in message.events if isinstance(e, Decision) and e.permit]

    def happen(self) -> None:
        """Execution or portfolio say something of an order whose permit is stored."""
        if not self.permits:
            return
        where, decision = self.rng.choice(self.permits)
        assert decision.permit is not None
        place = where.text.removeprefix("order.decision.")
        qty = Decimal(decision.permit.order.quantity)
        if self.rng.random() < 0.5:
            state: Any = self.rng.choice(("submitting", "accepted", "rejected", "void", "closed"))
            executed = Decimal(self.rng.randint(0, int(qty))) if state == "closed" else None
            event = OrderEvent(
                **self.w.base(),
                intent_id=decision.intent_id,
                decision_id=decision.id,
                client_order_id="x",
                state=state,
                executed=executed,
            )
            self.say("execution", f"order.event.{place}", event)
            return
        fill = Fill(
            **self.w.base(),
            intent_id=decision.intent_id,
            client_order_id="x",
            venue_order_id="1",
            trade_id=next(self.trades),
            side=bought(decision.permit.order),
            price=Decimal("0.001"),
            qty=Decimal(self.rng.randint(1, int(qty))),
            commission=Decimal(0),
            commission_asset="BNB",
            maker=False,
            time=self.w.now,
        )
        self.say("portfolio", f"fill.{place}", fill)


def folded(messages: Iterable[Verified], tables: Tables | None = None) -> Gateway:
    """A gateway that has read these messages as history."""
    w = World(policy=SHIPPED, limits=WIDE, ready=False)
    if tables is not None:
        w.gateway.restore(tables)
    intake = Intake(w.gateway)
    for verified in messages:
        if verified.subject.kind == "order.intent":
            assert list(intake.decide(verified, w.now)) == []
        else:
            w.gateway.apply(verified, w.now)
    return w.gateway


def of_gateway(gateway: Gateway, now: int) -> dict[str, Any]:
    found = written(gateway)
    found["seen"] = [(key, at) for key, at in found["seen"] if at >= now - REMEMBER_NS // 2]
    return plain(found)


@given(st.integers(0, 2**32))
@settings(max_examples=25)
def test_a_gateway_goes_on_from_a_snapshot_as_from_the_whole_stream(seed: int) -> None:
    floor = Floor(random.Random(seed))
    cut, tables = 0, None
    for _ in range(floor.rng.randint(5, 60)):
        floor.w.now += floor.rng.choice((MS, 10 * MS, 100 * MS))
        step = floor.rng.choice((floor.ask, floor.happen, floor.read_one, floor.read_one, floor.store_one))
        for _ in range(floor.rng.randint(1, 6)):
            step()
        if floor.rng.random() < 0.2:
            cut, tables = floor.read, written(floor.w.gateway)
            assert plain(tables)["orders"] == plain(written(folded(floor.stream[:cut])))["orders"]
            assert of_gateway(floor.w.gateway, floor.w.now) == of_gateway(folded(floor.stream[:cut]), floor.w.now)
    if tables is None:
        return
    whole, resumed = folded(floor.stream), folded(floor.stream[cut:], tables)
    assert of_gateway(resumed, floor.w.now) == of_gateway(whole, floor.w.now)
    left = [[(where.text, d.causes) for where, d in g.caught_up(floor.w.now)] for g in (whole, resumed)]
    assert sorted(left[0]) == sorted(left[1])
    assert of_gateway(resumed, floor.w.now) == of_gateway(whole, floor.w.now), "a denial that is not stored yet"


# -- the portfolio -----------------------------------------------------------------------------------

XRP = {"venue": "paper", "symbol": "XRP/ETH"}


class Account:
    """A book at work, the venue's trades, and the stream ORDERS."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.now = NOW
        self.new = maker(lambda: self.now)
        self.book = Book(self.new)
        self.book.resume()
        self.stream: list[tuple[Subject, Event]] = []
        self.read = 0
        self.published: list[tuple[Subject, Event]] = []
        self.permits: list[tuple[Subject, Decision]] = []
        self.trades = itertools.count(1)

    def permit(self) -> None:
        where = subject("order.decision", strategy=self.rng.choice(("alpha", "beta")), **XRP)
        side, number = self.rng.choice(("BUY", "SELL")), len(self.permits) + 1
        order = VenueOrder("XRPETH", side, "LIMIT", "GTC", str(self.rng.randint(1, 20)), "", f"c{number}")
        decision = self.new(
            Decision,
            verdict="permit",
            intent_id=number.to_bytes(16, "big"),
            intent_hash=bytes(32),
            trust_root=bytes(32),
            permit=Permit("main", order, bytes(32), bytes(16), self.now),
        )
        self.permits.append((where, decision))
        self.stream.append((where, decision))

    def order(self) -> tuple[Subject, Decision, VenueOrder]:
        where, decision = self.rng.choice(self.permits)
        assert decision.permit is not None
        return where, decision, decision.permit.order

    def report(self) -> None:
        """The venue tells of a fill, permitted or not, of a permit that was read or was not."""
        client, rng = "nobody", self.rng
        side: Side = "buy"
        if self.permits and rng.random() < 0.9:
            _, _, order = self.order()
            client, side = order.client_order_id, bought(order)
        fill = FillReport(
            symbol="XRP/ETH",
            client_order_id=client,
            venue_order_id=f"v{client}",
            trade_id=next(self.trades),
            side=side,
            price=Decimal(rng.randint(1, 9)),
            qty=Decimal(rng.randint(1, 9)),
            commission=Decimal(rng.randint(0, 1)),
            commission_asset=rng.choice(("XRP", "ETH", "BNB")),
            maker=False,
            time=self.now,
        )
        self.publish(self.book.on_report("paper", fill, self.now))

    def publish(self, outputs: Iterable[tuple[Subject, Event]]) -> None:
        for where, event in outputs:
            self.book.published(event)
            if where.stream == "ORDERS":
                self.published.append((where, event))

    def told(self) -> None:
        """Execution names an order or says how it ended, or the operator corrects a position."""
        if self.permits:
            where, decision, order = self.order()
            state = self.rng.choice(("accepted", "closed", "void"))
            event = self.new(
                OrderEvent,
                intent_id=decision.intent_id,
                decision_id=decision.id,
                client_order_id=order.client_order_id,
                state=state,
                venue_order_id=f"v{order.client_order_id}",
                executed=Decimal(self.rng.randint(0, 9)) if state == "closed" else None,
            )
            self.stream.append((subject("order.event", strategy=where.strategy, **XRP), event))

    def store_one(self) -> None:
        if self.published:
            self.stream.append(self.published.pop(0))

    def read_one(self) -> None:
        if self.read < len(self.stream):
            where, event = self.stream[self.read]
            self.read += 1
            if isinstance(event, Fill | Position):
                self.book.stored(where, event)
            elif isinstance(event, Decision):
                self.publish(self.book.on_decision(where, event, self.now))
            elif isinstance(event, OrderEvent):
                self.book.on_order_event(where, event)


def maker(clock: Callable[[], int]) -> Callable[..., Any]:
    ids = EventIds(bytes(8))
    return lambda kind, causes=(), **fields: kind(id=ids.next(clock()), ts=clock(), causes=causes, **fields)


def booked(messages: Iterable[tuple[Subject, Event]], tables: Tables | None = None) -> Book:
    """A book that has read these messages as history."""
    book = Book(maker(lambda: NOW))
    if tables is not None:
        book.restore(tables)
    for where, event in messages:
        if isinstance(event, Decision):
            book.on_decision(where, event, NOW)
        elif isinstance(event, OrderEvent):
            book.on_order_event(where, event)
        elif isinstance(event, Fill):
            book.booked(where, event)
        elif isinstance(event, Position):
            book.stated(where, event)
    return book


def same_books(whole: Tables, other: Tables) -> None:
    """But for names that the venue told before they were stored."""
    one, two = plain(whole), plain(other)
    assert set(one.pop("names")) <= set(two.pop("names"))
    assert one == two


@given(st.integers(0, 2**32))
@settings(max_examples=60)
def test_a_portfolio_goes_on_from_a_snapshot_as_from_the_whole_stream(seed: int) -> None:
    account = Account(random.Random(seed))
    rng, cut, tables = account.rng, 0, None
    for _ in range(rng.randint(5, 80)):
        account.now += rng.choice((MS, 100 * MS, GRACE_NS))
        step = rng.choice((account.permit, account.report, account.told, account.read_one, account.store_one))
        for _ in range(rng.randint(1, 8)):
            step()
        account.publish(account.book.on_time(account.now))
        if rng.random() < 0.2 and account.book.settled(account.now):
            cut, tables = account.read, written(account.book)
            same_books(written(booked(account.stream[:cut])), tables)
    same_books(written(booked(account.stream)), written(booked(account.stream[cut:], tables)))


def test_fills_wait_a_moment_for_a_snapshot_and_no_longer_than_that() -> None:
    account = Account(random.Random(1))
    book = account.book
    account.permit()
    account.read_one()
    account.report()
    assert len(account.published) == 2, "a fill and its position"
    assert not book.settled(account.now)
    account.report()
    assert len(account.published) == 2, "held, so that what was counted is stored soon"
    for step in (account.store_one, account.store_one, account.read_one, account.read_one):
        step()
    assert book.settled(account.now)
    book.snapshot()
    account.publish(book.on_time(account.now))
    assert len(account.published) == 2, "now"
    assert not book.settled(account.now)
    account.now += 3 * SECOND
    account.report()
    assert len(account.published) == 4, "the broker is away: fills are not held for long"
    assert not book.settled(account.now)
    account.report()
    assert len(account.published) == 6, "nor again at once"


# -- a strategy --------------------------------------------------------------------------------------


class Buyer(Strategy):
    """Buys at each trade and cancels what is open at some."""

    def on_trade(self, ctx: StrategyContext, symbol: str, trade: Trade) -> None:
        ctx.buy(symbol, 1)
        if trade.trade_id % 3 == 0:
            for order in ctx.open_orders():
                ctx.cancel(order.intent_id)


def host() -> Host:
    return Host(
        Buyer(),
        name="alpha",
        venue="paper",
        symbols=("XRP/ETH",),
        params={},
        new=maker(lambda: NOW),
        instrument=lambda _: world.instrument(),
        log=None,  # type: ignore[arg-type]
    )


@given(st.integers(0, 2**32))
@settings(max_examples=60)
def test_a_strategy_goes_on_from_a_snapshot_as_from_the_whole_stream(seed: int) -> None:
    rng = random.Random(seed)
    live, new = host(), maker(lambda: NOW)
    live.start(NOW)
    asked: list[bytes] = []
    stream: list[tuple[Subject, Event]] = []
    cut, tables, read = 0, None, 0
    for number in range(rng.randint(5, 60)):
        step = rng.random()
        if step < 0.3:
            price = {"price": Decimal(1), "qty": Decimal(1), "time": NOW, "buyer_is_maker": False}
            out = live.on_event(subject("md.trade", **XRP), new(Trade, trade_id=number, **price))
            asked += [event.id for _, event in out if isinstance(event, Intent)]
        elif step < 0.5 and asked:
            verdict = rng.choice(("permit", "deny"))
            order = VenueOrder("XRPETH", "BUY", "LIMIT", "GTC", "1", "1", "x")
            decision = new(
                Decision,
                verdict=verdict,
                intent_id=rng.choice(asked),
                intent_hash=bytes(32),
                trust_root=bytes(32),
                denials=() if verdict == "permit" else (msgspec.convert(("X", "x"), Any),),
                permit=Permit("main", order, bytes(32), bytes(16), NOW) if verdict == "permit" else None,
            )
            stream.append((subject("order.decision", strategy="alpha", **XRP), decision))
        elif step < 0.6 and asked:
            state = rng.choice(("accepted", "closed", "void"))
            event = new(
                OrderEvent, intent_id=rng.choice(asked), decision_id=bytes(16), client_order_id="x", state=state
            )
            stream.append((subject("order.event", strategy="alpha", **XRP), event))
        elif step < 0.7:
            numbers = {"qty": Decimal(rng.randint(-9, 9)), "average_price": Decimal(1), "realized": Decimal(0)}
            stream.append((subject("position", strategy="alpha", **XRP), new(Position, **numbers, fills=number)))
        elif step < 0.9:
            for where, event in stream[read:]:
                live.on_event(where, event)
            read = len(stream)
        else:
            cut, tables = read, written(live)
    resumed, whole = host(), host()
    if tables is not None:
        resumed.restore(tables)
    for where, event in stream:
        whole.on_event(where, event)
    for where, event in stream[cut:] if tables is not None else stream:
        resumed.on_event(where, event)
    assert written(resumed) == written(whole)
    assert resumed.open_orders() == whole.open_orders()
    assert resumed.position("XRP/ETH") == whole.position("XRP/ETH")
