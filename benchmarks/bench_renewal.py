"""Credential renewal under a steady flow: what it costs in time, and that nothing is lost.

A source publishes an event every 2 ms with sessions of five seconds, so that it renews every three; a reader verifies
all of it.  A gap is the time between two acknowledgements; those within half a second of a renewal are compared with
all others.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
import time
from decimal import Decimal
from pathlib import Path

import uvloop

from benchmarks.report import Row, Void, say
from tallystick.runtime.bus.received import Received
from tallystick.schemas.market import Trade
from tallystick.schemas.subjects import subject
from tests.support.bus import TestBus, running_bus
from tests.support.runtime import Desk

SECONDS = 17.0
EVERY_S = 0.002
LIFETIME_S = 5
NEAR_S = 0.5
XRP = subject("md.trade", venue="paper", symbol="XRP/ETH")

WHAT = {
    "gap": "credential renewal: largest gap between acknowledgements",
    "lost": "credential renewal: events lost",
}


async def measure(bus: TestBus) -> list[Row]:
    """Publish for a while, then compare what was sent with what was read."""
    desk = Desk(bus)
    source = await desk.context("market-data", lifetime_s=LIFETIME_S)
    reader = await desk.context("paper-exchange")
    seen: set[int] = set()
    acknowledged: list[float] = []
    renewals: list[float] = []

    def read(received: Received) -> None:
        seen.update(event.trade_id for event in received.events if isinstance(event, Trade))

    def count(name: str, _: int) -> None:
        if name == "renewals":
            renewals.append(time.perf_counter())

    reader.subscribe("md.trade.>", read)
    reader.open()
    await reader.caught_up()
    source.metrics.on_add(count)
    began, sent = time.perf_counter(), 0
    last = None
    while time.perf_counter() - began < SECONDS:
        trade = source.new(
            Trade, trade_id=sent, price=Decimal("0.00141"), qty=Decimal(1), time=sent, buyer_is_maker=True
        )
        last = source.publish(XRP, trade)
        last.add_done_callback(lambda _: acknowledged.append(time.perf_counter()))
        sent += 1
        await asyncio.sleep(EVERY_S)
    if last is not None:
        await last
    for _ in range(200):
        if len(seen) == sent:
            break
        await asyncio.sleep(0.01)
    await desk.close()
    if not renewals:
        raise Void(f"no renewal within {SECONDS} s")
    near, far = 0.0, 0.0
    for one, next_one in itertools.pairwise(acknowledged):
        if any(one - NEAR_S < at < next_one + NEAR_S for at in renewals):
            near = max(near, next_one - one)
        else:
            far = max(far, next_one - one)
    say(f"renewal: {len(renewals)} renewals, {sent:,} events, {len(seen):,} read")
    return [
        Row(WHAT["gap"], near * 1e3, "ms", "≤ 60 ms", far * 1e3, "largest gap away from renewals"),
        Row(WHAT["lost"], sent - len(seen), "events", "0"),
    ]


def rows() -> list[Row]:
    """Gap and loss."""
    say("renewal: publishing for a while")
    with (
        tempfile.TemporaryDirectory() as name,
        running_bus(Path(name)) as bus,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        return runner.run(measure(bus))
