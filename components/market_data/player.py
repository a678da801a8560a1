"""Plays recorded trades in their own rhythm, faster or slower.

- Trades of several recordings are merged by their recorded time; recordings of one symbol must follow each other.
- A trade recorded at `t` is due at `start + (t - first) / speed`, in exact integers: no drift adds up.
- What is due is emitted at once, in order; nothing is left out or reordered when the player is late.
- A `Trade` published from a recording keeps the *venue's recorded time* in `time`; its `ts` is now.  Freshness is
  judged by `ts` and by the seal, never by `time`, so that a replayed past is fresh data of an old market.
- Gaps in a recording are published as `FeedStatus` before the trade that follows, its end as `ended`.
"""

from __future__ import annotations

import heapq
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Final, Protocol

from tallystick.components.market_data.dumps import Dump, DumpTrade, open_dump
from tallystick.components.market_data.feed import Change, Feed
from tallystick.schemas.errors import ConfigError

# Sleeping is left out below this: event loops wake up no more precisely.
_GRAIN_NS: Final = 1_000_000
# After this many trades without a sleep the event loop gets its turn.
_BURST: Final = 256


class Recording(Protocol):
    """Trades ordered by time, which can be iterated again; times are Unix nanoseconds of the venue."""

    symbols: tuple[str, ...]
    rows: int
    first_ns: int
    last_ns: int

    def trades(self) -> Iterator[tuple[str, DumpTrade]]:
        """Each trade with its unified symbol."""
        ...


class Tape:
    """Dumps as one `Recording`, merged by time."""

    def __init__(self, dumps: Sequence[Dump]) -> None:
        """Raises `ConfigError` for no dumps, or for two of one symbol that overlap or are of different kinds."""
        if not dumps:
            raise ConfigError("DUMP_NONE", "no dump to play")
        chains: dict[str, list[Dump]] = {}
        for dump in sorted(dumps, key=lambda d: (d.first_ns, d.first_id)):
            chain = chains.setdefault(dump.symbol, [])
            if chain and (chain[-1].last_id >= dump.first_id or chain[-1].last_ns > dump.first_ns):
                raise ConfigError("DUMP_OVERLAP", f"{chain[-1].path} and {dump.path} overlap; give each day once")
            if chain and chain[-1].kind != dump.kind:
                raise ConfigError("DUMP_KINDS", f"{chain[-1].path} and {dump.path}: aggTrades and trades do not mix")
            chain.append(dump)
        self._chains = chains
        self.symbols = tuple(chains)
        self.rows = sum(d.rows for d in dumps)
        self.first_ns = min(d.first_ns for d in dumps)
        self.last_ns = max(d.last_ns for d in dumps)

    def trades(self) -> Iterator[tuple[str, DumpTrade]]:
        """The trades of all dumps, ordered by time; equal times in the order the symbols first appear."""
        streams = (_keyed(order, symbol, chain) for order, (symbol, chain) in enumerate(self._chains.items()))
        for _, _, symbol, trade in heapq.merge(*streams, key=lambda item: item[:2]):
            yield symbol, trade


def _keyed(order: int, symbol: str, chain: list[Dump]) -> Iterator[tuple[int, int, str, DumpTrade]]:
    for dump in chain:
        for trade in dump.trades():
            yield trade.time_ns, order, symbol, trade


def open_tape(paths: Sequence[Path], symbols: Mapping[str, str] | None = None) -> Tape:
    """Check all dumps wholly and put them on one tape.  Raises what `open_dump` and `Tape` raise."""
    return Tape([open_dump(path, symbols) for path in paths])


class Schedule:
    """When each recorded moment is due."""

    def __init__(self, first_ns: int, start_ns: int, speed: Fraction) -> None:
        """`speed` 60 plays an hour in a minute.  Raises `ConfigError` unless it is above zero."""
        if speed <= 0:
            raise ConfigError("SPEED", f"speed must be above zero, got {speed}")
        self._first, self._start, self._speed = first_ns, start_ns, speed

    def due(self, time_ns: int) -> int:
        """The moment (nanoseconds of the player's clock) at which what was recorded at `time_ns` is due."""
        return self._start + (time_ns - self._first) * self._speed.denominator // self._speed.numerator


def speed_for(recording: Recording, duration_ns: int) -> Fraction:
    """The speed at which `recording` takes `duration_ns`.  Raises `ConfigError` unless that is above zero."""
    if duration_ns <= 0:
        raise ConfigError("DURATION", f"the playing time must be above zero, got {duration_ns} ns")
    return Fraction(max(recording.last_ns - recording.first_ns, 1), duration_ns)


async def play(
    recording: Recording,
    speed: Fraction,
    clock: Callable[[], int],
    sleep: Callable[[float], Awaitable[object]],
    on_trade: Callable[[str, DumpTrade], object],
    on_change: Callable[[Change], object],
) -> int:
    """Play to the end; returns the number of trades.  `clock` in nanoseconds, `sleep` in seconds (0 yields)."""
    feeds = {symbol: Feed(symbol) for symbol in recording.symbols}
    schedule = Schedule(recording.first_ns, clock(), speed)
    played = 0
    for symbol, trade in recording.trades():
        wait = schedule.due(trade.time_ns) - clock()
        if wait > _GRAIN_NS:
            await sleep(wait / 1e9)
        elif played % _BURST == 0:
            await sleep(0)
        _, changes = feeds[symbol].trade(trade.trade_id, clock())
        for change in changes:
            on_change(change)
        on_trade(symbol, trade)
        played += 1
    for feed in feeds.values():
        for change in feed.ended(f"recording over after {played} trades"):
            on_change(change)
    return played
