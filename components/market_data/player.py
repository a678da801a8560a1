"""Plays recorded trades and quotes in their own rhythm, faster or slower.

- Recordings of one symbol must follow each other; its quotes may lie beside its trades.  Those of several symbols are
  merged by their recorded time, if together they cover one period; if they are of different days, they have no common
  rhythm: all begin at once and are stretched to the length of the longest.
- Days without trades are passed over if others have some.  Where the recorded time steps back, what follows is due at
  once: the order is the file's.  `Tape.notes` says both.
- What was recorded `offset` after the beginning is due at `start + offset / speed`, in exact integers: no drift adds up.
- What is due is emitted at once, in order; nothing is left out or reordered when the player is late.
- A `Trade` or `Quote` published from a recording keeps the *venue's recorded time* in `time`; its `ts` is now.  Freshness is
  judged by `ts` and by the seal, never by `time`, so that a replayed past is fresh data of an old market.
- Gaps in a recording are published as `FeedStatus` before the trade that follows, its end as `ended`.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Final, Protocol

from tallystick.components.market_data.dumps import MAX_BACK_NS, Dump, DumpQuote, Tick, open_dump
from tallystick.components.market_data.feed import Change, Feed
from tallystick.schemas.errors import ConfigError, Malformed

# Sleeping is left out below this: event loops wake up no more precisely.
_GRAIN_NS: Final = 1_000_000
# After this many trades without a sleep the event loop gets its turn.
_BURST: Final = 256


class Recording(Protocol):
    """`trades` trades and `quotes` quotes in their order of playing, which can be iterated again."""

    symbols: tuple[str, ...]
    trades: int
    quotes: int
    span_ns: int
    notes: tuple[str, ...]

    def ticks(self) -> Iterator[tuple[int, str, Tick]]:
        """Each trade or quote with its offset from the beginning (ns, never falling) and its unified symbol."""
        ...


class Tape:
    """Dumps as one `Recording`."""

    def __init__(self, dumps: Sequence[Dump], notes: Iterable[str] = ()) -> None:
        """Raises `ConfigError` for no dumps, or for two of one symbol that overlap or are of different kinds."""
        if not dumps:
            raise ConfigError("DUMP_NONE", "no dump to play")
        chains: dict[tuple[str, bool], list[Dump]] = {}
        for dump in sorted(dumps, key=lambda d: (d.first_ns, d.first_id)):
            chain = chains.setdefault((dump.symbol, dump.quotes), [])
            if chain and (chain[-1].last_id >= dump.first_id or chain[-1].last_ns - MAX_BACK_NS > dump.first_ns):
                raise ConfigError("DUMP_OVERLAP", f"{chain[-1].path} and {dump.path} overlap; give each day once")
            if chain and chain[-1].kind != dump.kind:
                raise ConfigError("DUMP_KINDS", f"{chain[-1].path} and {dump.path}: aggTrades and trades do not mix")
            chain.append(dump)
        self._chains = chains
        self.quotes = sum(d.rows for d in dumps if d.quotes)
        self.trades = sum(d.rows for d in dumps) - self.quotes
        periods: dict[str, tuple[int, int]] = {}
        for (symbol, _), chain in chains.items():
            first, last = periods.get(symbol, (chain[0].first_ns, chain[-1].last_ns))
            periods[symbol] = min(first, chain[0].first_ns), max(last, *(d.last_ns for d in chain))
        self.symbols = tuple(periods)
        if _one_period(sorted(periods.values())):
            whole = min(first for first, _ in periods.values()), max(last for _, last in periods.values())
            periods = dict.fromkeys(periods, whole)
        self._periods = periods
        self.span_ns = max(last - first for first, last in periods.values())
        back = [
            f"{d.path}: the time steps back {d.back} times, by up to {d.back_ns / 1e9:.6f} s; played in the file's order"
            for d in dumps
            if d.back
        ]
        self.notes = (*notes, *back)

    def ticks(self) -> Iterator[tuple[int, str, Tick]]:
        """Everything in all dumps; of equal offsets in the order in which the symbols first appear."""
        tracks = (self._track(symbol, chain) for (symbol, _), chain in self._chains.items())
        return heapq.merge(*tracks, key=lambda item: item[0])

    def _track(self, symbol: str, chain: list[Dump]) -> Iterator[tuple[int, str, Tick]]:
        first, last = self._periods[symbol]
        span, latest = last - first, 0
        for dump in chain:
            for tick in dump.ticks():
                latest = max(latest, tick.time_ns - first)
                yield latest if span in (0, self.span_ns) else latest * self.span_ns // span, symbol, tick


class Part:
    """The first `most` trades and quotes of a recording."""

    def __init__(self, whole: Recording, most: int) -> None:
        """Reads as far as it goes, to count."""
        self._whole, self._most = whole, most
        self.symbols, self.notes = whole.symbols, whole.notes
        self.trades = self.quotes = self.span_ns = 0
        for offset, _, tick in self.ticks():
            if isinstance(tick, DumpQuote):
                self.quotes += 1
            else:
                self.trades += 1
            self.span_ns = offset

    def ticks(self) -> Iterator[tuple[int, str, Tick]]:
        """As the whole, but no more."""
        return itertools.islice(self._whole.ticks(), self._most)


def _one_period(periods: list[tuple[int, int]]) -> bool:
    """Whether the periods (sorted by their beginning) leave no time uncovered between them."""
    end = periods[0][1]
    for first, last in periods:
        if first > end:
            return False
        end = max(end, last)
    return True


def open_tape(paths: Sequence[Path], symbols: Mapping[str, str] | None = None) -> Tape:
    """Check all dumps wholly and put them on one tape.  Raises what `open_dump` and `Tape` raise.

    A dump without a line is passed over, with a note, if another has some.
    """
    dumps: list[Dump] = []
    empty: list[Malformed] = []
    for path in paths:
        try:
            dumps.append(open_dump(path, symbols))
        except Malformed as exc:
            if exc.code != "DUMP_EMPTY":
                raise
            empty.append(exc)
    if empty and not dumps:
        raise empty[0]
    return Tape(dumps, [f"{exc.text}: passed over" for exc in empty])


class Schedule:
    """When each recorded moment is due."""

    def __init__(self, start_ns: int, speed: Fraction) -> None:
        """`speed` 60 plays an hour in a minute.  Raises `ConfigError` unless it is above zero."""
        if speed <= 0:
            raise ConfigError("SPEED", f"speed must be above zero, got {speed}")
        self._start, self._speed = start_ns, speed

    def due(self, offset_ns: int) -> int:
        """The moment (nanoseconds of the player's clock) at which what lies `offset_ns` into the recording is due."""
        return self._start + offset_ns * self._speed.denominator // self._speed.numerator


def speed_for(recording: Recording, duration_ns: int) -> Fraction:
    """The speed at which `recording` takes `duration_ns`.  Raises `ConfigError` unless that is above zero."""
    if duration_ns <= 0:
        raise ConfigError("DURATION", f"the playing time must be above zero, got {duration_ns} ns")
    return Fraction(max(recording.span_ns, 1), duration_ns)


async def play(
    recording: Recording,
    speed: Fraction,
    clock: Callable[[], int],
    sleep: Callable[[float], Awaitable[object]],
    on_tick: Callable[[str, Tick], object],
    on_change: Callable[[Change], object],
) -> int:
    """Play to the end; returns the number of trades and quotes.  `clock` in nanoseconds, `sleep` in seconds (0 yields)."""
    feeds = {symbol: Feed(symbol) for symbol in recording.symbols}
    schedule = Schedule(clock(), speed)
    played = dict.fromkeys(recording.symbols, 0)
    for turn, (offset, symbol, tick) in enumerate(recording.ticks()):
        wait = schedule.due(offset) - clock()
        if wait > _GRAIN_NS:
            await sleep(wait / 1e9)
        elif turn % _BURST == 0:
            await sleep(0)
        if isinstance(tick, DumpQuote):
            changes = feeds[symbol].quote(clock())
        else:
            _, changes = feeds[symbol].trade(tick.trade_id, clock())
        for change in changes:
            on_change(change)
        on_tick(symbol, tick)
        played[symbol] += 1
    for symbol, feed in feeds.items():
        for change in feed.ended(f"recording over after {played[symbol]} trades and quotes"):
            on_change(change)
    return sum(played.values())
