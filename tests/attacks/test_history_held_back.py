"""A broker that brings an old end of the history back to a breaker that starts again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tallystick.components.breaker.main import Breaker
from tallystick.schemas.control import Kill
from tests.support.bus import TestBus
from tests.support.runtime import Desk


async def start(desk: Desk, folder: Path) -> Breaker:
    context = await desk.context("breaker")
    made = Breaker(folder)
    await made.start(context)
    context.open()
    await context.caught_up()
    await made.ready()
    return made


async def tripped(folder: Path, bus_folder: Path, kill: str = "") -> list[str]:
    """What a breaker with this folder says on a bus of its own, after a person tripped `kill`."""
    bus = TestBus(bus_folder)
    bus.server.start()
    try:
        await bus.provision()
        async with Desk(bus) as desk:
            made = await start(desk, folder)
            if kill:
                await made._on_request(Kill(scope=kill, reason="drill"), "uid 0")
            scopes = [trip.scope for trip in made.breakers.tripped]
            await made.ctx.release()
    finally:
        bus.server.stop()
    return scopes


async def test_a_trip_that_the_broker_keeps_back_is_still_tripped_after_a_restart(tmp_path: Path) -> None:
    assert await tripped(tmp_path, tmp_path / "one", "strategy-alpha") == ["strategy-alpha"]
    # The bus as it was before: it never heard of the trip.
    assert await tripped(tmp_path, tmp_path / "two") == ["strategy-alpha"]


@pytest.mark.parametrize("text", [b"", b"[]x", b'[["all"]]', b"\xff"])
async def test_notes_that_cannot_be_read_trip_everything(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "tripped.json").write_bytes(text)
    assert await tripped(tmp_path, tmp_path / "bus") == ["all"]
