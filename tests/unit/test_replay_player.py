"""How a replay is paced, stopped and paid for, without a clock of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import pytest

from tallystick.replay.player import ReplayFailed, Schedule, parse_speed, play
from tallystick.replay.verify import Examined, Failure, Played, Tally
from tallystick.schemas.errors import ConfigError
from tallystick.schemas.seal import Verifier
from tests.support.forge import encoded, samples, writer
from tests.support.world import NOW, trust_root

SECOND = 1_000_000_000


def messages(*seconds: float) -> list[Played]:
    """Trades stated at these seconds."""
    chain, verifier = writer("market-data", "MARKET"), Verifier(trust_root())
    made = []
    for seq, at in enumerate(seconds, 1):
        [(subject, payload)] = chain.seal([encoded("md.trade.paper.XRP-ETH", samples()[0][2])], NOW + int(at * SECOND))
        made.append(Played("MARKET", seq, seq, verifier.open(subject, "MARKET", payload)))
    return made


class World:
    """A clock that moves when somebody sleeps, and a sink that takes `busy` ns for each message."""

    def __init__(self, busy: int = 0) -> None:
        self.now = 10**18
        self.start = self.now
        self.busy = busy
        self.taken: list[tuple[int, float]] = []
        self.sleeps: list[float] = []
        self.tally = Tally()

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += int(seconds * SECOND)

    async def play(self, played: Played) -> None:
        self.taken.append((played.seq, (self.now - self.start) / SECOND))
        self.now += self.busy

    async def run(self, items: Sequence[Examined], speed: str = "max", **options: object) -> None:
        async def source() -> AsyncIterator[Examined]:
            for item in items:
                yield item

        await play(
            source(),
            self,
            self.tally,
            schedule=Schedule(parse_speed(speed)),
            clock=lambda: self.now,
            sleep=self.sleep,
            **options,  # type: ignore[arg-type]
        )


BAD = Failure("MARKET", 2, "md.trade.paper.XRP-ETH", "SIGNATURE", "not signed", NOW)


@pytest.mark.parametrize(("speed", "factor"), [("1", 1.0), ("10", 10.0), ("0.5", 0.5)])
async def test_messages_come_as_they_were_stated_at_the_chosen_speed(speed: str, factor: float) -> None:
    world = World()
    await world.run(messages(0, 1, 1.5, 4), speed)
    assert [seq for seq, _ in world.taken] == [1, 2, 3, 4]
    assert [at for _, at in world.taken] == pytest.approx([0, 1 / factor, 1.5 / factor, 4 / factor], abs=0.001)


async def test_at_full_speed_nobody_waits() -> None:
    world = World()
    await world.run(messages(0, 100, 200))
    assert world.sleeps == []
    assert len(world.taken) == 3


async def test_a_slow_sink_delays_without_losing_and_is_caught_up_with() -> None:
    world = World(busy=SECOND)
    await world.run(messages(0, 0.1, 0.2, 10), "1")
    assert [at for _, at in world.taken] == pytest.approx([0, 1, 2, 10], abs=0.001)


async def test_a_clock_that_stepped_back_keeps_the_order() -> None:
    world = World()
    await world.run(messages(5, 3, 6), "1")
    assert [seq for seq, _ in world.taken] == [1, 2, 3]
    assert [at for _, at in world.taken] == pytest.approx([0, 0, 1], abs=0.001)


async def test_what_does_not_verify_stops_the_replay_and_is_not_played() -> None:
    world = World()
    first, second = messages(0, 1)
    with pytest.raises(ReplayFailed, match="SIGNATURE at MARKET 2"):
        await world.run([first, BAD, second])
    assert [seq for seq, _ in world.taken] == [1]
    assert (world.tally.messages, world.tally.failed, world.tally.failures) == (1, 1, [BAD])


async def test_told_to_go_on_it_passes_over_and_counts() -> None:
    world, told = World(), list[Failure]()
    first, second = messages(0, 1)
    await world.run([first, BAD, second], keep_going=True, on_failure=told.append)
    assert [seq for seq, _ in world.taken] == [1, 2]
    assert told == [BAD]
    assert (world.tally.messages, world.tally.failed) == (2, 1)


async def test_a_limit_counts_messages() -> None:
    world = World()
    await world.run(messages(0, 1, 2), limit=2)
    assert (world.tally.messages, world.tally.events) == (2, 2)


async def test_a_stop_is_heard_during_a_long_wait() -> None:
    world = World()
    await world.run(messages(0, 200), "1", stopped=lambda: world.now > world.start + SECOND)
    assert [seq for seq, _ in world.taken] == [1]
    assert world.now < world.start + 2 * SECOND


@pytest.mark.parametrize("text", ["", "fast", "0", "-1", "nan", "inf", "1e300", "1/2"])
def test_a_speed_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="SPEED"):
        parse_speed(text)
