"""The detectors' worker as its process loads it, with the limits that the operator signed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tallystick.runtime.deployment.process import load_service
from tallystick.streams.main import Streams
from tests.support.bus import TestBus, running_bus
from tests.support.runtime import Desk
from tests.support.streams import (
    alerts_at,
    begin,
    intent,
    intents_of,
    same,
)
from tests.support.waiting import until

ALPHA, BETA = intents_of("alpha"), intents_of("beta")


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[TestBus]:
    with running_bus(tmp_path) as running:
        yield running


async def test_the_process_loads_it_by_its_folder_and_it_takes_the_operators_limits(
    desk: Desk, bus: TestBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = load_service(bus.component("streams"))
    assert isinstance(worker, Streams)

    bursts = {"alpha": 3, "beta": 9}
    rows = tuple(
        msgspec.structs.replace(
            row, limits=msgspec.structs.replace(row.limits, messages_per_second=2, burst=bursts[row.strategy])
        )
        for row in desk.trust.limits
    )
    monkeypatch.setattr(desk, "trust", msgspec.structs.replace(desk.trust, limits=rows))
    alerts = await alerts_at(desk)
    await begin(await desk.context("streams"), worker)
    alpha, beta = await desk.context("strategy-alpha"), await desk.context("strategy-beta")
    await alpha.publish(ALPHA, *(intent(alpha) for _ in range(6)))
    await beta.publish(BETA, *(intent(beta) for _ in range(11)))
    await until(lambda: bool(alerts), "the alert")
    await beta.publish(BETA, intent(beta))
    await until(lambda: len(alerts) == 2, "the other alert")
    assert [str(alert.limit) for alert in same(alerts).values()] == ["5", "11"]
