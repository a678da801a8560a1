"""One component that sends without end, against those who have to read it."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import structlog

from tallystick.runtime.bus.context import MAX_DEAD
from tallystick.runtime.bus.metrics import Metrics
from tallystick.runtime.bus.reader import Delivery
from tallystick.runtime.deployment.service import ServiceContext
from tallystick.schemas.errors import Malformed
from tests.support import world


def context() -> ServiceContext:
    return ServiceContext(
        component="gateway",
        boot=os.urandom(16),
        link=None,  # nothing is sent here
        trust=world.trust_root(),
        clock=time.time_ns,
        entropy=os.urandom,
        metrics=Metrics(),
        log=structlog.get_logger(),
        reads={},
        api="$JS.API",
    )


async def test_rubbish_without_end_fills_neither_memory_nor_queue_nor_ends_the_reader() -> None:
    """A full queue used to raise out of the reader: any component could end the gateway with its own subjects."""

    made: Any = context()
    waiting: list[asyncio.Future[int]] = []

    def publish(*_: Any) -> asyncio.Future[int]:
        waiting.append(asyncio.get_running_loop().create_future())
        return waiting[-1]

    made.publish = publish
    rubbish = Delivery("order.intent.alpha.paper.XRP-ETH", bytes(60_000), 1, 1, 0)
    for _ in range(10_000):
        made.dead_letter(rubbish, "ORDERS", Malformed("PAYLOAD", "rubbish"))
    assert len(waiting) == MAX_DEAD
    counts = made.metrics.snapshot()
    assert (counts["dead_letters"], counts["dead_letters_dropped"]) == (10_000, 10_000 - MAX_DEAD)
    waiting[0].set_result(1)
    await asyncio.sleep(0)
    made.dead_letter(rubbish, "ORDERS", Malformed("PAYLOAD", "rubbish"))
    assert len(waiting) == MAX_DEAD + 1
