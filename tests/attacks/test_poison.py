"""One bad message that stays in the stream for ever, or bad ones without end, must not stop whoever reads them."""

from __future__ import annotations

import asyncio
import os
import time
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from tallystick.components.breaker import main as breaker_main
from tallystick.components.breaker.main import Breaker
from tallystick.components.portfolio.book import Book
from tallystick.runtime.bus import context as bus_context
from tallystick.runtime.bus.dead import BURST, KEPT_BYTES, MAX_DEAD, RATE
from tallystick.runtime.bus.metrics import Metrics
from tallystick.runtime.bus.reader import Delivery
from tallystick.runtime.deployment.service import ServiceContext
from tallystick.schemas import sessions
from tallystick.schemas.amounts import MAX_PRICE
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.credential import Credential
from tallystick.schemas.errors import Malformed
from tallystick.schemas.ids import EventIds
from tallystick.schemas.orders import Decision, OrderEvent, Permit, VenueOrder
from tallystick.schemas.seal import ReaderChains, Statement, Verified
from tallystick.schemas.security import BootEnded, DeadLetter
from tallystick.schemas.subjects import parse_subject, subject
from tests.support import gateway as gateways
from tests.support.world import NOW, credential, seed, trust_root

WHERE = "order.decision.alpha.paper.XRP-ETH"
AMOUNTS = ["NaN", "sNaN", "Infinity", "abc", "1E+999999", "-1", "0", "", "1_0", "9" * 30, "٣", "."]
_IDS = EventIds(bytes(8))


def new(kind: Any, causes: tuple[bytes, ...] = (), **fields: Any) -> Any:
    return kind(id=_IDS.next(NOW), ts=NOW, causes=causes, **fields)


def decision(quantity: str = "100", price: str = "0.001") -> Decision:
    order = VenueOrder("XRPETH", "BUY", "LIMIT", "GTC", quantity, price, "c1")
    permit = Permit("main", order, seed("record"), seed("boot")[:16], NOW)
    made: Decision = new(
        Decision, verdict="permit", intent_id=seed("i")[:16], intent_hash=seed("h"), trust_root=bytes(32), permit=permit
    )
    return made


@pytest.mark.parametrize("amount", AMOUNTS)
def test_a_permit_with_nonsense_for_an_amount_is_malformed_to_everybody_who_counts(amount: str) -> None:
    """A gateway that was in other hands for one message would else have stopped portfolio and gateway for good."""
    where = subject("order.decision", strategy="alpha", venue="paper", symbol="XRP/ETH")
    bad = [decision(amount), decision(price=amount)] if amount else [decision(amount)]
    for one in bad:
        with pytest.raises(Malformed):
            Book(new).on_decision(where, one, NOW)
        world = gateways.World(ready=False)
        with pytest.raises(Malformed):
            world.gateway.apply(world.verified("gateway", WHERE, one), NOW)
        assert world.gateway.exposure.open_notional("alpha", "ETH") == 0


def test_execution_cannot_say_that_less_than_nothing_was_executed() -> None:
    with pytest.raises(Malformed, match="executed"):
        new(
            OrderEvent,
            intent_id=seed("i")[:16],
            decision_id=b"",
            client_order_id="c1",
            state="closed",
            executed=Decimal(-1000),
        )


def test_what_execution_says_never_enlarges_a_permit() -> None:
    where = subject("order.decision", strategy="alpha", venue="paper", symbol="XRP/ETH")
    made = Book(new)
    one = decision("100")
    made.on_decision(where, one, NOW)
    closed = new(
        OrderEvent,
        intent_id=one.intent_id,
        decision_id=one.id,
        client_order_id="c1",
        state="closed",
        executed=Decimal(1_000_000),
    )
    made.on_order_event(where, closed)
    assert made._permits["paper", "c1"].left == 100


async def test_a_lease_in_history_that_is_no_note_does_not_end_the_breaker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker_main, "ARM_S", 0.001)
    made: Any = Breaker()
    made.ctx = SimpleNamespace(trust=trust_root(), clock=lambda: NOW, log=structlog.get_logger())

    for note in ("junk", "a\n\nb\n", "{}\n\n— operator AAAA\n"):
        made._armed = note
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(made._repeat_arm(), 0.05)
        assert made._armed == ""


@pytest.mark.parametrize("size", ["99999999999999999999", "0.000000000000000001"])
def test_numbers_at_the_edge_of_the_wire_are_decided_not_raised(size: str) -> None:
    """An intent that stops the gateway would stop it again at each start: undecided intents are decided then."""
    world = gateways.World()
    for price in (size, None):
        assert world.codes(world.intent(size, price))
    world.trade(min(Decimal(size), MAX_PRICE))
    for price in (size, None):
        assert world.codes(world.intent(size, price))


def context() -> ServiceContext:
    nothing_is_sent: Any = SimpleNamespace(tasks=None)
    return ServiceContext(
        component="gateway",
        boot=os.urandom(16),
        link=nothing_is_sent,
        trust=trust_root(),
        clock=time.time_ns,
        entropy=os.urandom,
        metrics=Metrics(),
        log=structlog.get_logger(),
        reads={},
        api="$JS.API",
    )


async def test_rubbish_without_end_fills_neither_memory_nor_stream_nor_ends_the_reader() -> None:
    """A full queue used to raise out of the reader; later each reader told of every message again, bytes and all."""
    made: Any = context()
    letters: list[DeadLetter] = []

    def publish(_: Any, letter: DeadLetter) -> asyncio.Future[int]:
        letters.append(letter)
        stored: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        stored.set_result(1)
        return stored

    now = time.time_ns()
    made._letters._clock = lambda: now
    made.publish = publish
    rubbish = Delivery("order.intent.alpha.paper.XRP-ETH", bytes(30_000), 1, 1, 0)
    for _ in range(10_000):
        made.dead_letter(rubbish, "ORDERS", Malformed("PAYLOAD", "rubbish"))
        await asyncio.sleep(0)
    assert len(letters) == BURST
    assert sum(len(letter.payload) for letter in letters) == 0, "the stream holds the bytes"
    counts = made.metrics.snapshot()
    assert (counts["dead_letters"], counts["dead_letters_dropped"]) == (10_000, 10_000 - BURST)
    assert made._letters.report().startswith(f"{10_000 - BURST:} more messages")
    assert made._letters.report() == ""
    # Another's rubbish is told all the same, and whole where it is short.
    short = Delivery("order.intent.beta.paper.XRP-ETH", bytes(KEPT_BYTES), 1, 1, 0)
    made.dead_letter(short, "ORDERS", Malformed("PAYLOAD", "rubbish"))
    assert len(letters[-1].payload) == KEPT_BYTES
    now += SECOND
    for _ in range(100):
        made.dead_letter(rubbish, "ORDERS", Malformed("PAYLOAD", "rubbish"))
        await asyncio.sleep(0)
    assert len(letters) == BURST + 1 + RATE


async def test_letters_that_are_not_taken_do_not_pile_up() -> None:
    made: Any = context()
    waiting: list[asyncio.Future[int]] = []

    def publish(*_: Any) -> asyncio.Future[int]:
        waiting.append(asyncio.get_running_loop().create_future())
        return waiting[-1]

    made.publish = publish

    def send(number: int) -> None:
        rubbish = Delivery(f"order.intent.s{number}.paper.XRP-ETH", b"", 1, 1, 0)
        made.dead_letter(rubbish, "ORDERS", Malformed("PAYLOAD", "rubbish"))

    for number in range(10 * MAX_DEAD):
        send(number)
    assert len(waiting) == MAX_DEAD
    waiting[0].set_result(1)
    await asyncio.sleep(0)
    send(0)
    assert len(waiting) == MAX_DEAD + 1


def sealed(credential: Credential, where: str, number: int, *events: Any) -> Verified:
    """A message as the verifier hands it over."""
    statement = Statement(
        deployment="test", component=credential.component, boot=credential.boot, stream="GUARD", seq=0, prev=bytes(32),
        size=1, root=bytes(32), time=NOW, flags=0, credential=credential.digest,
    )  # fmt: skip
    return Verified(
        subject=parse_subject(where), events=list(events), statement=statement, credential=credential, index=0,
        leaf=number.to_bytes(32, "big"), digest=number.to_bytes(32, "big"), payload=b"",
    )  # fmt: skip


async def test_boots_without_end_leave_neither_chains_nor_names_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each boot of a component had a chain in every reader, and a name among the dead, for as long as the reader lived."""
    monkeypatch.setattr(sessions, "MAX_DEAD", 50)
    monkeypatch.setattr(bus_context, "MAX_CHAINS", 20)
    made: Any = context()
    made._subscriptions, made._chains = {"GUARD": []}, {"GUARD": ReaderChains()}
    made._caught_up = {"GUARD": asyncio.Event()}
    handle = made._handler("GUARD")
    alive, authority = credential("gateway")[0], credential("authority")[0]
    boots = [credential("strategy-alpha", boot=n.to_bytes(16, "big"), jti=str(n))[0] for n in range(300)]
    for number, one in enumerate([alive, *boots]):
        opened = sealed(one, f"guard.{one.component}", number)
        made.verifier = SimpleNamespace(open=lambda *_, opened=opened: opened)
        await handle(Delivery(f"guard.{one.component}", b"", number + 1, NOW, 0))
        if one is not alive:
            over = sealed(authority, f"cred.{one.component}", number, new(BootEnded, boot=one.boot, reason="stopped"))
            made.sessions.apply(over)
    assert made.metrics.snapshot().get("dead_letters", 0) == 0
    assert len(made._chains["GUARD"]) <= 21
    assert ("gateway", alive.boot) in made._chains["GUARD"]._chains, "the living keep their place"
    assert len(made.sessions._dead_boots) == 50
