"""The streams worker on a test broker: in this process, or in one of its own that can be killed.

    python -m tests.support.streams URL PKI_FOLDER COMMIT_S LEASE_S

prints `ready` once history is applied, and `failed CODE` when it stops by itself.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
import sys
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import uvloop

from tallystick.infra.nats.topology import load
from tallystick.runtime.bus.received import Received
from tallystick.runtime.deployment.service import ServiceContext
from tallystick.schemas.errors import TallystickError
from tallystick.schemas.limits import LimitBook, LimitRow
from tallystick.schemas.orders import Intent
from tallystick.schemas.security import Alert
from tallystick.schemas.subjects import subject
from tallystick.streams import store
from tallystick.streams.detectors.burst import Bucket, Rules
from tallystick.streams.main import Streams
from tests.support import world
from tests.support.bus import STRATEGIES, TestBus, bus_keys
from tests.support.runtime import Desk
from tests.support.waiting import until


def rules(rate: int, burst: int, strategies: Sequence[str] = ("alpha", "beta")) -> Rules:
    """The same rule for all `strategies`."""
    limits = msgspec.structs.replace(world.LIMITS, messages_per_second=rate, burst=burst)
    return Rules(LimitBook(LimitRow(strategy=name, quote="ETH", limits=limits) for name in strategies))


def intents_of(strategy: str) -> Any:
    """The subject on which `strategy` sends its intents."""
    return subject("order.intent", strategy=strategy, venue="paper", symbol="XRP/ETH")


def intent(context: ServiceContext) -> Intent:
    """An order intent of the context's strategy."""
    return context.new(Intent, side="buy", type="limit", qty=Decimal(1), price=Decimal("0.001"))


async def begin(context: ServiceContext, worker: Streams) -> Streams:
    """What the process does with a component, up to ready."""
    await worker.start(context)
    context.open()
    await context.caught_up()
    await worker.ready()
    return worker


async def leave(context: ServiceContext, worker: Streams) -> None:
    """It ends when every alert that it found is durable, and the state says so."""
    await until(lambda: not (worker._pending or worker._waiting), "the alerts are durable")
    await worker._commit()
    await worker._ctx.release()
    await context.close()


async def stored_windows(bus: TestBus) -> dict[tuple[str, float], Bucket]:
    """The committed windows, read as the administrator of the worker's account: (strategy, start) -> bucket."""
    reader = await bus.connect_as("streams")
    windows: dict[tuple[str, float], Bucket] = {}
    inbox = reader.new_inbox()
    try:
        subscription = await reader.subscribe(inbox)
        start = 1
        while True:
            request = {"seq": start, "batch": 1000, "next_by_subj": "state.orders.table.intents.>"}
            await reader.publish("$JS.API.DIRECT.GET.STATE", msgspec.json.encode(request), reply=inbox)
            while True:
                message = await subscription.next_msg(timeout=3)
                headers = message.headers or {}
                if headers.get("Status") in ("204", "404"):
                    break
                start = int(headers["Nats-Sequence"]) + 1
                if message.data:
                    token = headers["Nats-Subject"].rsplit(".", 1)[1]
                    key = msgspec.msgpack.decode(_unbase64(token))
                    windows[key[0], key[1][0]] = msgspec.msgpack.decode(message.data, type=Bucket)
            if headers.get("Status") == "404" or headers.get("Nats-Num-Pending", "0") == "0":
                return windows
    finally:
        await reader.close()


MARKER = "alert.marker.info"


async def alerts_at(desk: Desk, reader: str = "gateway") -> list[Received]:
    """All alerts from the beginning, as a reader verifies them."""
    context = await desk.context(reader)
    got: list[Received] = []
    context.subscribe("alert.>", got.append, start="all")
    context.open()
    await context.caught_up("SECURITY")
    return got


async def all_of(alerts: list[Received], context: ServiceContext, worker: Streams, last: int) -> list[Received]:
    """The alerts once intent `last` was applied: a marker in the same queue comes after whatever it caused."""
    await until(lambda: worker._applied >= last, "everything applied")
    marker = context.new(Alert, code="MARKER", scope="strategy-alpha", text="")
    await context.publish(MARKER, marker)
    await until(lambda: any(marker in received.events for received in alerts), "the marker")
    return [received for received in alerts if received.subject.text != MARKER]


def same(alerts: list[Received]) -> dict[bytes, Alert]:
    """Alerts by id; a repeat must be the same event bit for bit."""
    by_id: dict[bytes, Alert] = {}
    for received in alerts:
        for event in received.events:
            assert isinstance(event, Alert)
            known = by_id.setdefault(event.id, event)
            assert msgspec.msgpack.encode(known) == msgspec.msgpack.encode(event)
    return by_id


async def crash(desk: Desk, context: ServiceContext) -> None:
    """Stop as a crash would: nothing is committed, nothing is given back."""
    await context.tasks.end()
    for reader in context._readers.values():
        await reader.stop()
    for publisher in context._publishers.values():
        await publisher.kill()
    await context.link.stop()
    desk.contexts.remove(context)


def _unbase64(token: str) -> bytes:
    return base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))


async def counts(bus: TestBus, since: float = 0.0) -> dict[str, int]:
    """Committed intents of each strategy in windows that start at `since` (s) or later."""
    totals: dict[str, int] = {}
    for (strategy, start), bucket in (await stored_windows(bus)).items():
        if start >= since:
            totals[strategy] = totals.get(strategy, 0) + bucket.count
    return totals


async def _spawn(arguments: Sequence[str]) -> int:
    url, pki = arguments[0], Path(arguments[1])
    expanded = load().expand(STRATEGIES)
    tls = ssl.create_default_context(cafile=str(pki / "ca.pem"))
    tls.minimum_version = ssl.TLSVersion.TLSv1_3
    tls.load_cert_chain(pki / "streams.pem", pki / "streams.key")
    # What a desk uses of a broker that runs in another process.
    remote: Any = SimpleNamespace(
        bus=expanded,
        folder=pki.parent,
        keys=bus_keys(expanded),
        component=expanded.component,
        server=SimpleNamespace(url=url),
        certificate=lambda _: (tls, ""),
    )
    desk = Desk(remote)
    context = await desk.context("streams")
    worker = Streams(rules=rules(10, 20), commit_s=float(arguments[2]))
    store.LEASE_S = float(arguments[3])  # type: ignore[misc]
    store.RENEW_S = store.LEASE_S / 4  # type: ignore[misc]
    try:
        await begin(context, worker)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await context.failed()
    except TallystickError as exc:
        sys.stdout.write(f"failed {exc.code}\n")
        sys.stdout.flush()
        return 1
    return 0


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.exit(runner.run(_spawn(sys.argv[1:])))
