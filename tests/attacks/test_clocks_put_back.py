"""Clocks that are put back, and a broker that lets through late: a heartbeat is as old as its statement says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tallystick.components.custody.journal import Journal
from tallystick.components.execution import effects as fx
from tallystick.components.execution import orders as o
from tallystick.schemas.errors import Unverified
from tallystick.schemas.standing import LISTED
from tests.support import gateway as gateways
from tests.support.breaker import heartbeat
from tests.support.custody import Desk
from tests.support.world import NOW

SECOND = 1_000_000_000
HOUR = 3600 * SECOND
DAY = 24 * HOUR


def test_custody_takes_no_heartbeat_from_the_future_for_a_fresh_one(tmp_path: Path) -> None:
    """A clock put back by an hour would otherwise keep the last heartbeat fresh for an hour of silence."""
    desk = Desk(tmp_path)
    desk.now -= HOUR
    with pytest.raises(Unverified, match="BREAKER_HEARTBEAT_MISSING"):
        desk.permits._breakers.require_closed("alpha", "paper", desk.now, SECOND)


def test_the_gateway_denies_on_facts_from_the_future() -> None:
    world = gateways.World()
    world.now -= HOUR
    world.list_sessions()
    codes = world.codes(world.intent())
    assert {"BREAKER_HEARTBEAT_MISSING", "MARKET_DATA_STALE"} <= set(codes)


def test_execution_is_not_kept_waiting_by_heartbeats_that_come_late() -> None:
    """A broker that holds each heartbeat back for five seconds would hide the breaker's silence for as long."""
    orders = o.Orders([("paper", "XRP/ETH")], NOW)
    orders.on_breaker(heartbeat(stated=NOW), LISTED, NOW)
    orders.on_breaker(heartbeat(stated=NOW + SECOND), LISTED, NOW + 5 * SECOND)
    effects = orders.tick(NOW + 5 * SECOND)
    assert [e.code for e in effects if isinstance(e, fx.Alarm)] == ["BREAKER_HEARTBEAT_MISSING"]
    assert any(isinstance(e, fx.CancelAll) for e in effects)


def test_execution_takes_a_clock_that_was_put_back_for_silence() -> None:
    """Heartbeats stated before the newest one are ignored: what they trip would be, too."""
    orders = o.Orders([("paper", "XRP/ETH")], NOW)
    orders.on_breaker(heartbeat(stated=NOW), LISTED, NOW)
    back = NOW - HOUR
    assert orders.on_breaker(heartbeat("all", stated=back), LISTED, back) == []
    assert any(isinstance(e, fx.CancelAll) for e in orders.tick(back))


def test_custody_starts_after_its_clock_went_back_over_midnight(tmp_path: Path) -> None:
    """Lines in yesterday's file after today's looked like tampering: custody, and the kill switch, stayed down."""
    now = [(NOW // DAY) * DAY + 1]
    journal = Journal(tmp_path, lambda: now[0])
    for step in (0, -2 * SECOND, 3 * SECOND):
        now[0] += step
        journal.append("cancel", "paper", "XRP/ETH")
    journal.close()
    now[0] -= 2 * SECOND
    again = Journal(tmp_path, lambda: now[0])
    again.append("cancel", "paper", "XRP/ETH")
    again.close()
    assert Journal(tmp_path, lambda: now[0]).number == 4
