"""Execution and custody between a real broker, a real token and a paper exchange that fails on demand.

Each fault is injected twice: the request was not applied, and it was applied but its answer lost.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from tallystick.components.paper_exchange.orders import NewOrder
from tallystick.components.paper_exchange.server import Fault
from tallystick.schemas.orders import Decision
from tests.support.bus import TestBus, running_bus
from tests.support.trading import Floor, trading

NEW = "POST /api/v3/order"
QUERY = "GET /api/v3/order"
CANCEL = "DELETE /api/v3/order"
CANCEL_ALL = "DELETE /api/v3/openOrders"


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[TestBus]:
    with running_bus(tmp_path / "bus") as running:
        yield running


@pytest.fixture
async def floor(bus: TestBus, tmp_path: Path) -> AsyncIterator[Floor]:
    async with trading(bus, tmp_path / "floor") as opened:
        yield opened


async def test_orders_go_their_whole_way_and_every_answer_of_the_venue_is_understood(floor: Floor) -> None:
    await floor.execution()

    resting = await floor.place()
    assert (await floor.ends(resting, "submitting", "accepted")).status == "NEW"
    assert [o.client_id for o in floor.open_orders()] == ["ts" + resting.intent_id.hex()]

    filled = await floor.place(price="0.0013002", time_in_force="IOC")
    last = await floor.ends(filled, "submitting", "accepted", "closed")
    assert (last.status, last.executed) == ("FILLED", Decimal(10))

    missed = await floor.place(price="0.0010001", time_in_force="IOC")
    assert (await floor.ends(missed, "submitting", "accepted", "closed")).status == "EXPIRED"

    patient = await floor.place()
    await floor.ends(patient, "submitting", "accepted")
    poor = await floor.place(quantity="1", price="0.0000001")  # below the venue's smallest notional
    assert (await floor.ends(poor, "submitting", "rejected")).code == "-1013"

    # A cancel decision needs no permit.
    gateway = floor.people["gateway"]
    cancel = gateway.new(
        Decision, verdict="cancel", intent_id=resting.intent_id, intent_hash=bytes(32), trust_root=bytes(32)
    )
    await floor.publish(cancel)
    assert (await floor.ends(resting, "submitting", "accepted", "closed")).status == "CANCELED"

    # An order that ends at the venue by itself is followed to its end.
    floor.exchange.on_market_trade("XRPETH", Decimal("0.0009"), Decimal(1_000_000), True, time.time_ns())
    assert (await floor.ends(patient, "submitting", "accepted", "closed")).status == "FILLED"

    # What custody refuses is void, with custody's code, and never reaches the venue.
    posted = len(floor.posted())
    wrong = floor.decision(quantity="10.5")
    await floor.publish(wrong)
    assert (await floor.ends(wrong, "submitting", "void")).code == "FIELD_MISMATCH"
    late = floor.decision(lifetime=-1)
    await floor.publish(late)
    assert (await floor.ends(late, "void")).code == "PERMIT_EXPIRED"
    assert len(floor.posted()) == posted

    # Somebody places an order with our key behind our back.
    floor.exchange.engine.place("main", stranger(), now_ms())
    await floor.place()
    await floor.until(lambda: any(n.code == "ORDER_NOT_OURS" for n in floor.notices))
    hashes = [e.payload_sha256 for e in floor.posted()]
    assert len(hashes) == len(set(hashes))


async def test_a_permit_that_no_strategy_asked_for_is_void_and_told(floor: Floor) -> None:
    """A stolen gateway, alone: for a strategy that is none, for an intent that is none, for another order than asked for."""
    await floor.execution()
    gateway = floor.people["gateway"]
    honest = floor.decision()
    await gateway.publish("order.decision.ghost.paper.XRP-ETH", honest)
    await floor.until(lambda: floor.states(honest) == ["void"])
    invented = floor.decision()
    await gateway.publish("order.decision.alpha.paper.XRP-ETH", invented)
    assert (await floor.ends(invented, "void")).code == "INTENT_MISSING"
    larger = floor.decision(quantity="11")
    asked = floor.decision()
    await floor.people["strategy-alpha"].publish("order.intent.alpha.paper.XRP-ETH", floor.asked[asked.id])
    assert larger.permit is not None
    swapped = gateway.new(
        Decision,
        verdict="permit",
        intent_id=asked.intent_id,
        intent_hash=asked.intent_hash,
        trust_root=bytes(32),
        permit=larger.permit,
    )
    await floor.publish(swapped)
    assert (await floor.ends(swapped, "void")).code == "INTENT_DIFFERS"
    await floor.until(lambda: sum(n.code == "PERMIT_UNASKED" for n in floor.notices) == 3)
    assert not floor.posted()
    # What a strategy did ask for is sent all the same.
    await floor.ends(await floor.place(), "submitting", "accepted")


def stranger() -> NewOrder:
    return NewOrder(
        symbol="XRPETH",
        side="BUY",
        type="LIMIT",
        qty=Decimal(10),
        price=Decimal("0.001"),
        tif="GTC",
        client_id="theirs00",
    )


async def test_an_order_without_answer_is_resolved_by_asking_and_never_sent_again(floor: Floor) -> None:
    await floor.execution()
    # Applied, the answer lost: found.
    floor.faults[NEW] = Fault("drop_after")
    lost = await floor.place()
    await floor.ends(lost, "submitting", "unknown", "accepted")
    # Not applied: "not found" is final only when the request cannot arrive any more.
    floor.faults[NEW] = Fault("drop_before")
    begun = time.monotonic()
    gone = await floor.place()
    assert (await floor.ends(gone, "submitting", "unknown", "void")).code == "NOT_AT_VENUE"
    assert time.monotonic() - begun > 2.0
    # The query fails as well, for a while.
    floor.faults[NEW] = Fault("drop_after")
    floor.faults[QUERY] = Fault("drop_before", times=3)
    both = await floor.place()
    await floor.ends(both, "submitting", "unknown", "accepted")
    # The venue is slower than its own window, and takes the request all the same or not at all.
    floor.faults[NEW] = Fault("delay", seconds=1.2)
    slow = await floor.place()
    await floor.until(lambda: len(floor.states(slow)) > 1)
    assert floor.states(slow) == ["submitting", "rejected"]
    assert floor.last(slow).code == "-1021"
    hashes = [e.payload_sha256 for e in floor.posted()]
    assert len(hashes) == len(set(hashes))


def _ended(floor: Floor, decisions: list[Decision]) -> bool:
    return all({"accepted", "void", "rejected"} & set(floor.states(decision)) for decision in decisions)


async def resting(floor: Floor, strategy: str, wanted: int) -> list[Decision]:
    """So many open orders of a strategy; on a busy machine a permit is over before its turn, and asked for again."""
    placed: list[Decision] = []
    while len(placed) < wanted:
        more = [await floor.place(strategy) for _ in range(wanted - len(placed))]
        await floor.until(functools.partial(_ended, floor, more), timeout=20)
        placed += [decision for decision in more if floor.states(decision) == ["submitting", "accepted"]]
    return placed


async def test_a_trip_stops_placing_and_cancels_what_is_open_in_time(floor: Floor) -> None:
    await floor.execution()
    alpha, beta = await resting(floor, "alpha", 50), await resting(floor, "beta", 50)
    await floor.until(lambda: len(floor.open_orders()) == 100)

    # One strategy: its orders alone, one by one.
    floor.trip("strategy-alpha")
    await floor.all_closed(alpha)
    assert all(floor.states(d) == ["submitting", "accepted"] for d in beta)
    assert len(floor.open_orders()) == 50
    refused = await floor.place("alpha")
    assert (await floor.ends(refused, "void")).code == "BREAKER_TRIPPED"
    beta.append(await floor.place("beta"))
    await floor.ends(beta[-1], "submitting", "accepted")

    # Everything, 100 orders in at most 250 ms; on a shared machine one of three tries must show it.
    elapsed = []
    for _ in range(3):
        beta += await resting(floor, "beta", 100 - len(floor.open_orders()))
        await floor.until(lambda: len(floor.open_orders()) == 100)
        begun = time.monotonic()
        floor.trip("all")
        await floor.until(lambda: not floor.open_orders())
        elapsed.append(time.monotonic() - begun)
        await floor.all_closed(beta)
        if elapsed[-1] < 0.25:
            break
        floor.trip("strategy-alpha")
        await asyncio.sleep(0.3)
    assert min(elapsed) < 0.25, elapsed

    # Closed again by the breaker's next heartbeat.
    floor.trip()
    await asyncio.sleep(0.3)
    again = await floor.place("alpha")
    await floor.ends(again, "submitting", "accepted")


async def test_cancelling_works_while_the_venue_fails_and_repeats_until_nothing_is_open(floor: Floor) -> None:
    await floor.execution()
    first, second = await floor.place(), await floor.place("beta")
    await floor.until(lambda: len(floor.open_orders()) == 2)
    floor.faults[CANCEL_ALL] = Fault("drop_before", times=2)
    floor.trip("venue-paper")
    await floor.until(lambda: not floor.open_orders(), timeout=6)
    await floor.all_closed([first, second])


async def test_a_silent_breaker_cancels_everything_and_places_nothing(floor: Floor) -> None:
    await floor.execution()
    resting = await floor.place()
    await floor.ends(resting, "submitting", "accepted")
    floor.beating = False
    await asyncio.sleep(1.2)  # a heartbeat counts for one second at custody
    # Custody is the stricter one.
    unsigned = await floor.place()
    assert (await floor.ends(unsigned, "submitting", "void")).code == "BREAKER_HEARTBEAT_MISSING"
    assert floor.open_orders()
    await floor.until(lambda: not floor.open_orders(), timeout=4)
    await floor.ends(resting, "submitting", "accepted", "closed")
    assert (await floor.ends(await floor.place(), "void")).code == "BREAKER_HEARTBEAT_MISSING"
    floor.beating = True
    await asyncio.sleep(0.3)
    await floor.ends(await floor.place(), "submitting", "accepted")


async def test_the_kill_switch_works_with_the_broker_dead(floor: Floor, bus: TestBus) -> None:
    await floor.execution()
    for _ in range(3):
        await floor.place()
    await floor.until(lambda: len(floor.open_orders()) == 3)
    await asyncio.to_thread(bus.server.stop)
    # Neither bus nor breaker nor gateway: silence is the trip.
    await floor.until(lambda: not floor.open_orders(), timeout=6)
    bus.server.start()
    await bus.provision()
    await floor.until(lambda: len([e for e in floor.events if e.state == "closed"]) == 3, timeout=15)
    signed = (floor.folder / "state" / "custody").glob("signed-*.jsonl")
    assert '"op":"cancel_all"' in "".join(path.read_text() for path in signed)
    for context in floor.desk.contexts:  # who is still away when it closes says what it could not publish
        assert await context.link.answers(10)


async def test_custody_dead_means_void_and_custody_back_means_trading(floor: Floor) -> None:
    await floor.execution()
    custody = floor.people["custody"]
    before = await floor.place()
    await floor.ends(before, "submitting", "accepted")
    stale = floor.decision()  # for the custody that is about to go
    await floor.gone(custody)
    away = await floor.place()
    assert (await floor.ends(away, "submitting", "void")).code == "CUSTODY_AWAY"
    await floor.custody()
    await asyncio.sleep(0.3)
    await floor.publish(stale)
    last = await floor.ends(stale, "submitting", "void")
    assert last.code == "PERMIT_AUDIENCE"
    after = await floor.place()
    await floor.ends(after, "submitting", "accepted")


async def test_a_new_execution_takes_up_every_order_where_the_old_one_left_it(floor: Floor) -> None:
    _, first = await floor.execution()
    resting = await floor.place()
    await floor.ends(resting, "submitting", "accepted")
    await floor.gone(first)
    floor.exchange.engine.cancel("main", "XRPETH", None, "ts" + resting.intent_id.hex(), now_ms())
    missed = await floor.place()
    await floor.execution()
    assert (await floor.ends(missed, "void")).code == "PERMIT_EXPIRED"
    assert (await floor.ends(resting, "submitting", "accepted", "closed")).status == "CANCELED"
    after = await floor.place()
    await floor.ends(after, "submitting", "accepted")


def now_ms() -> int:
    return time.time_ns() // 1_000_000


async def test_a_revoked_key_is_a_security_matter_and_nothing_is_retried(floor: Floor) -> None:
    await floor.execution()
    floor.exchange.revoke("tradingkey")
    refused = await floor.place()
    assert (await floor.ends(refused, "submitting", "rejected")).code == "-2015"
    await floor.until(lambda: any(n.code == "VENUE_CREDENTIAL" for n in floor.notices))
    assert len(floor.posted()) == 0
