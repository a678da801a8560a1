"""The bare way beside an order's: hops of nats-py and a call of ccxt, without any check, at an order's priority."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, Final

from tallystick import venues
from tallystick.runtime.deployment.folder import Deployment
from tallystick.runtime.deployment.scheduling import precede
from tallystick.schemas.subjects import ORDERS
from tests.support.bus import TestBus
from tests.support.paper import client

MS: Final = 1e6
PAUSE_S: Final = 0.06
SYMBOL: Final = "XRP/ETH"
# A sealed intent, decision or order event with its credential.
MESSAGE_BYTES: Final = 1_500


async def bare_ccxt(exchange: Any, price: Decimal, count: int) -> list[float]:
    """`create_order` of the same order, ms each."""
    took = []
    with at_the_same_priority():
        for _ in range(count):
            began = time.perf_counter_ns()
            await exchange.create_order(SYMBOL, "limit", "buy", 10, float(price) * 0.99, {"timeInForce": "IOC"})
            took.append((time.perf_counter_ns() - began) / MS)
            await asyncio.sleep(PAUSE_S)
    return took


@contextlib.contextmanager
def at_the_same_priority() -> Iterator[None]:
    """A peer goes first as an order's way does (`scheduling`), where the system lets it."""
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


class Hops:
    """Three hops of bare nats-py: an intent's, a decision's and an order event's, from publish to imported pull."""

    _WAY = (
        ("strategy-alpha", "order.intent.alpha.paper.XRP-ETH", "gateway"),
        ("gateway", "order.decision.alpha.paper.XRP-ETH", "execution"),
        ("execution", "order.event.alpha.paper.XRP-ETH", "strategy-alpha"),
    )

    def __init__(self, bus: TestBus) -> None:
        self._bus = bus
        self._clients: dict[str, Any] = {}
        self._arrived = asyncio.Event()

    async def open(self) -> None:
        """Log in and pull."""
        with contextlib.suppress(PermissionError):
            precede(self._bus.server.pid)
        for name, _, _ in self._WAY:
            self._clients[name] = await self._bus.connect_as(name)
        for number, (_, where, to) in enumerate(self._WAY):
            await self._pull(to, where, number)

    async def _pull(self, name: str, wanted: str, number: int) -> None:
        spec, reader = self._bus.component(name), self._clients[name]
        inbox = f"{spec.inbox}.h{number}"

        async def arrived(message: Any) -> None:
            if message.subject == wanted:
                if number < len(self._WAY) - 1:
                    await self._send(number + 1)
                else:
                    self._arrived.set()

        await reader.request(f"{spec.api}.CONSUMER.RESET.{ORDERS}.{name}", b'{"seq":1}', timeout=3)
        await reader.subscribe(inbox, cb=arrived)
        await reader.publish(
            f"{spec.api}.CONSUMER.MSG.NEXT.{ORDERS}.{name}", b'{"batch":100000,"expires":600000000000}', reply=inbox
        )

    async def _send(self, number: int) -> None:
        name, where, _ = self._WAY[number]
        await self._clients[name].publish(
            where, os.urandom(MESSAGE_BYTES), reply=f"{self._bus.component(name).inbox}.acks"
        )

    async def measure(self, count: int) -> list[float]:
        """Ms from the first publish to the third arrival."""
        took = []
        with at_the_same_priority():
            for _ in range(count):
                self._arrived.clear()
                began = time.perf_counter_ns()
                await self._send(0)
                await asyncio.wait_for(self._arrived.wait(), 5)
                took.append((time.perf_counter_ns() - began) / MS)
                await asyncio.sleep(PAUSE_S)
        return took

    async def close(self) -> None:
        """Log out."""
        for each in self._clients.values():
            await each.close()


def venue_client(deployment: Deployment) -> Any:
    """Bare ccxt on the deployment's paper exchange."""
    import ccxt.async_support as ccxt_async  # a second to import, which only a measurement needs

    tls = venues.client_tls(deployment.ca)
    return client(ccxt_async.binance, deployment.config.venue.port(), tls, "benchkey")
