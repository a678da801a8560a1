"""Random interleavings of answers, losses, delays and crashes: no order is sent twice, lost, or misreported.

The world around the state machine is simulated here so that every step is under the test's control; the
real servers are in tests/faults/test_order_crash.py.
"""

from __future__ import annotations

import random
from decimal import Decimal

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from tallystick.components.execution import effects as fx
from tallystick.components.execution import orders as o
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.orders import Decision, OrderEvent, Permit, VenueOrder
from tallystick.schemas.signing import Signed
from tallystick.schemas.standing import LISTED
from tallystick.schemas.subjects import Subject, subject
from tallystick.venues import VALID_NS, NoAnswer, NotFound, NotSent, OrderReport, Outcome, Rejected
from tests.support.breaker import heartbeat

START = 1_732_289_000_000_000_000
PERMIT_NS = 3 * SECOND
MS = 1_000_000
LATE = ("PERMIT_EXPIRED", "read too late")


def decision(number: int, now: int) -> tuple[Subject, Decision]:
    intent = number.to_bytes(16, "big")
    order = VenueOrder("XRPETH", "BUY", "LIMIT", "GTC", "1", "0.001", intent.hex())
    permit = Permit("main", order, b"\0" * 32, b"\1" * 16, now + PERMIT_NS)
    event = Decision(
        id=(number + 1000).to_bytes(16, "big"),
        ts=now,
        verdict="permit",
        intent_id=intent,
        intent_hash=bytes(32),
        trust_root=bytes(32),
        permit=permit,
    )
    name = "alpha" if number % 2 else "beta"
    return subject("order.decision", strategy=name, venue="paper", symbol="XRP/ETH"), event


class World:
    """Bus, custody and venue, as far as execution sees them."""

    def __init__(self, skew: int) -> None:
        self.now = START
        self.skew = skew  # the venue's clock minus ours
        self.stored: list[tuple[Subject, Decision | OrderEvent]] = []
        self.venue: dict[str, str] = {}  # client order id -> status
        self.placed: list[str] = []
        self.sends: dict[str, int] = {}
        self.used: set[bytes] = set()
        self.network: list[tuple[Signed, fx.Order, int]] = []
        self.tripped: tuple[str, ...] = ()
        self.boot = 0
        # How many of `stored` the boot before has read, its own events included, and the snapshot that it left.
        self.read = 0
        self.snapshot: tuple[int, bytes] = (0, msgspec.msgpack.encode(()))
        self.fresh()

    def fresh(self) -> None:
        """A new execution, which knows nothing but what is stored."""
        self.boot += 1
        self.machine = o.Orders([("paper", "XRP/ETH")], self.now)
        self.effects: list[fx.Effect] = []
        self.publishing: list[tuple[fx.Publish, OrderEvent, Subject]] = []
        self.acks: list[tuple[str, fx.Order, object]] = []

    def restart(self) -> None:
        self.fresh()
        self.history(0)
        whole = self.machine
        position, rows = self.snapshot
        self.fresh()
        self.machine.restore(msgspec.msgpack.decode(rows, type=list[o.Row]))
        self.history(position)
        assert still_open(self.machine) == still_open(whole)
        self.read = len(self.stored)
        self.do(self.machine.recover(self.now))

    def history(self, position: int) -> None:
        """What is stored from a position on is read at a start."""
        for where, event in list(self.stored[position:]):
            if isinstance(event, Decision):
                self.do(self.machine.decided(where, event, self.now, LATE))
            elif event.intent_id in self.machine.orders():  # what ended long before the snapshot is forgotten there
                self.do(self.machine.remembered(where, event, self.now))

    def read_on(self) -> None:
        """What is stored and not read yet is read, our own events too."""
        while self.read < len(self.stored):
            where, event = self.stored[self.read]
            self.read += 1
            if isinstance(event, Decision):
                self.do(self.machine.decided(where, event, self.now))
            else:
                self.machine.stored(event)

    def keep(self) -> None:
        """A snapshot of what was read so far, whatever is under way."""
        self.snapshot = (self.read, msgspec.msgpack.encode(self.machine.snapshot()))

    def do(self, effects: list[fx.Effect]) -> None:
        for effect in effects:
            if isinstance(effect, fx.Publish):
                where = subject(
                    "order.event", strategy=effect.order.strategy, venue="paper", symbol=effect.order.symbol
                )
                event = OrderEvent(
                    id=bytes(16),
                    ts=self.now,
                    intent_id=effect.order.intent_id,
                    decision_id=effect.order.decision_id,
                    client_order_id=effect.order.client_order_id,
                    state=effect.state,
                    code=effect.code,
                    status=effect.order.status,
                    executed=effect.order.executed,
                )
                self.publishing.append((effect, event, where))
            else:
                self.effects.append(effect)

    def store_one(self) -> None:
        """The oldest unpublished event is stored; its acknowledgement is on its way."""
        effect, event, where = self.publishing.pop(0)
        self.stored.append((where, event))
        if effect.state == "submitting":
            self.acks.append(("durable", effect.order, None))

    def acknowledge(self, index: int) -> None:
        kind, order, what = self.acks.pop(index)
        if kind == "durable":
            self.do(self.machine.durable(order, self.now))
        elif isinstance(what, Signed):
            self.do(self.machine.signed(order, what, self.now))
        else:
            self.do(self.machine.refused(order, "REFUSED", "", self.now))

    def report(self, name: str) -> OrderReport:
        return OrderReport(name, "1", self.venue[name], Decimal(0), final=self.venue[name] != "NEW")

    def ask(self, name: str) -> Outcome:
        return self.report(name) if name in self.venue else NotFound()

    def arrive(self, index: int, *, answer: bool) -> None:
        """A request on the wire reaches the venue, which takes it only within its window."""
        request, order, boot = self.network.pop(index)
        outcome: Outcome
        if self.now + self.skew >= request.signed_at + VALID_NS:
            outcome = Rejected("-1021", "")
        else:
            self.placed.append(order.client_order_id)
            self.venue[order.client_order_id] = "NEW"
            outcome = self.report(order.client_order_id)
        if boot == self.boot:
            lost = NoAnswer("TIMEOUT", "")
            self.do(self.machine.answered(order, outcome if answer else lost, self.now))

    def carry_out(self, index: int, choice: int) -> None:
        """One effect happens, well or badly."""
        effect = self.effects.pop(index)
        match effect:
            case fx.Sign(order):
                decided = next(e for _, e in self.stored if isinstance(e, Decision) and e.intent_id == order.intent_id)
                assert decided.permit is not None
                if self.now < decided.permit.expires_at and order.intent_id not in self.used and choice != 0:
                    self.used.add(order.intent_id)
                    signed_at = self.now // MS * MS
                    reply = Signed(id=1, method="POST", url="", headers=(), body="", signed_at=signed_at)
                    self.acks.append(("signed", order, reply))
                else:
                    self.acks.append(("refused", order, None))
            case fx.Send(order, request):
                self.sends[order.client_order_id] = self.sends.get(order.client_order_id, 0) + 1
                if choice == 0:
                    self.do(self.machine.answered(order, NotSent("REFUSED", ""), self.now))
                else:
                    self.network.append((request, order, self.boot))
                    if choice == 1:  # we give up waiting while it is still on its way
                        self.do(self.machine.answered(order, NoAnswer("TIMEOUT", ""), self.now))
            case fx.Query(order):
                outcome = NoAnswer("TIMEOUT", "") if choice == 0 else self.ask(order.client_order_id)
                self.do(self.machine.queried(order, outcome, self.now, self.now))
            case fx.Cancel(order):
                name = order.client_order_id
                if choice == 0:
                    self.do(self.machine.cancelled(order, NotSent("REFUSED", ""), self.now))
                elif self.venue.get(name) == "NEW":
                    self.venue[name] = "CANCELED"
                    if choice != 1:
                        self.do(self.machine.cancelled(order, self.report(name), self.now))
                else:
                    self.do(self.machine.cancelled(order, Rejected("-2011", ""), self.now))
            case fx.CancelAll(venue, symbol):
                if choice == 0:
                    self.do(self.machine.all_cancelled(venue, symbol, NoAnswer("TIMEOUT", ""), self.now))
                    return
                names = [name for name, status in self.venue.items() if status == "NEW"]
                for name in names:
                    self.venue[name] = "CANCELED"
                if choice != 1:
                    reports = tuple(self.report(name) for name in names)
                    self.do(self.machine.all_cancelled(venue, symbol, reports, self.now))
            case fx.ListOpen(venue, symbol):
                reports = tuple(self.report(name) for name, status in self.venue.items() if status == "NEW")
                if choice != 0:
                    self.do(self.machine.listed(venue, symbol, reports, self.now, self.now))
            case fx.Alarm(code, text):
                assert code in {"BREAKER_HEARTBEAT_MISSING", "PERMIT_REPEATED"}, (code, text)

    def heartbeat(self) -> None:
        self.do(self.machine.on_breaker(heartbeat(*self.tripped, stated=self.now), LISTED, self.now))

    def finals(self) -> dict[str, list[str]]:
        """Client order id -> the final states that were published for it."""
        found: dict[str, list[str]] = {}
        for _, event in self.stored:
            if isinstance(event, OrderEvent) and event.state in fx.FINAL_STATES:
                found.setdefault(event.client_order_id, []).append(event.state)
        return found


def still_open(machine: o.Orders) -> dict[bytes, o.Row]:
    """The orders that have not ended, as a snapshot holds them."""
    return {row.intent_id: row for row in machine.snapshot() if not row.told.final}


def check(world: World) -> None:
    """What must hold after every step."""
    assert all(count == 1 for count in world.sends.values()), world.sends
    assert len(world.placed) == len(set(world.placed))
    for name, states in world.finals().items():
        if states[0] in {"void", "rejected"}:
            assert name not in world.venue, (name, states)


def run(seed: int) -> None:
    """One world, driven at random from `seed` and then left to settle."""
    rng = random.Random(seed)
    world = World(skew=rng.choice([-SECOND, 0, SECOND, rng.randint(-SECOND, SECOND)]))
    world.restart()
    world.heartbeat()
    number = 0
    crashes, losses, trips = rng.random() * 0.06, rng.random() * 0.5, rng.random() * 0.04

    def choice() -> int:
        return rng.randint(0, 1) if rng.random() < losses else 3

    for _ in range(rng.randint(20, 150)):
        step = rng.random()
        if step < 0.15 and number < 6:
            number += 1
            where, event = decision(number, world.now)
            world.stored.append((where, event))
            world.read_on()
        elif step < 0.18:
            world.read_on() if rng.random() < 0.5 else world.keep()
        elif step < 0.55:
            ways = [
                (world.publishing, world.store_one),
                (world.acks, lambda: world.acknowledge(rng.randrange(len(world.acks)))),
                (world.effects, lambda: world.carry_out(rng.randrange(len(world.effects)), choice())),
                (world.network, lambda: world.arrive(rng.randrange(len(world.network)), answer=rng.random() > losses)),
            ]
            possible = [way for waiting, way in ways if waiting]
            if possible:
                rng.choice(possible)()
        elif step < 0.75:
            world.now += rng.choice([MS, MS, 10 * MS, 100 * MS, 300 * MS, 1100 * MS])
            world.heartbeat()
        elif step < 0.85:
            world.do(world.machine.tick(world.now))
        elif step < 0.87:
            world.now += 4000 * MS  # the breaker was silent
        elif step < 0.87 + trips:
            world.tripped = rng.choice([(), (), ("all",), ("strategy-alpha",), ("venue-paper",)])
            world.heartbeat()
        elif step < 0.87 + trips + crashes:
            # kill -9: what is not stored or on the wire is gone.
            for _ in range(rng.randint(0, len(world.publishing))):
                world.store_one()
            world.restart()
            world.heartbeat()
        elif world.venue:
            name = rng.choice(sorted(world.venue))
            if world.venue[name] == "NEW":
                world.venue[name] = "FILLED"
        check(world)
    # From here on everything works, and whatever is open is filled.
    for _ in range(200):
        world.now += 250 * MS
        world.heartbeat()
        for name, status in world.venue.items():
            if status == "NEW":
                world.venue[name] = "FILLED"
        while world.publishing or world.acks or world.effects or world.network:
            if world.publishing:
                world.store_one()
            elif world.acks:
                world.acknowledge(0)
            elif world.network:
                world.arrive(0, answer=True)
            else:
                world.carry_out(0, 3)
            check(world)
        world.do(world.machine.tick(world.now))
        if world.machine.open == 0 and not world.effects:
            break
    finals = world.finals()
    for name in (n.to_bytes(16, "big").hex() for n in range(1, number + 1)):
        assert finals.get(name), f"{name} has no final state"
        assert len(set(finals[name])) == 1, finals[name]
        assert (name in world.venue) == (finals[name][0] == "closed")


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_no_order_is_sent_twice_or_left_open_whatever_happens_in_between(first: int) -> None:
    for seed in range(first, first + 25):
        try:
            run(seed)
        except AssertionError as exc:
            raise AssertionError(f"seed {seed}: {exc}") from exc
