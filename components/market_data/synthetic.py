"""A synthetic market from a seed: for trying things out where no recording is at hand.

The same seed and symbols give the same trades on every machine: only integers are drawn, no floats.

- A price is a whole number of ticks.  It moves by a few ticks at a time, with a drift that lasts for some hundred
  trades and then turns, so that trends exist, and is held between half and double its start.
- Sizes are many small and few large ones, in whole steps.  The buyer is the maker where the price fell.
- Trades of a symbol are 1 to 2·`every_ns` - 1 apart, `every_ns` on average.
- Every `QUOTE_EVERY`th trade is followed by the best bid and ask that it leaves: it happened at one of them, the other
  is a few ticks away.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction

import msgspec

from tallystick.components.market_data.dumps import DumpQuote, DumpTrade, Tick
from tallystick.schemas.errors import ConfigError

DRIFT_TRADES = 300
QUOTE_EVERY = 4


class SyntheticSymbol(msgspec.Struct, frozen=True):
    """One instrument: start `price`, `tick` and `step` (decimals), `volatility` in ticks a trade, mean distance."""

    symbol: str
    price: Decimal
    tick: Decimal
    step: Decimal
    volatility: int = 3
    every_ns: int = 20_000_000


# Magnitudes as on Binance spot, so that an instrument record made for one fits the other.
DEFAULT_SYMBOLS = (
    SyntheticSymbol("XRP/ETH", Decimal("0.00141000"), Decimal("0.00000001"), Decimal(1), volatility=40),
    SyntheticSymbol("BTC/USDT", Decimal("39430.00"), Decimal("0.01"), Decimal("0.00001"), volatility=120),
)


class SyntheticMarket:
    """`count` trades over all symbols, ordered by time from `start_ns`; iterate `ticks()` as often as you like.

    `span_ns` is about the time that they cover: the average.
    """

    def __init__(
        self, seed: int, count: int, start_ns: int, symbols: tuple[SyntheticSymbol, ...] = DEFAULT_SYMBOLS
    ) -> None:
        """Raises `ConfigError` if there is nothing to make up, or a price is off its tick."""
        if count < 1 or not symbols:
            raise ConfigError("SYNTHETIC", f"{count} trades of {len(symbols)} symbols: expected at least one of one")
        if len({s.symbol for s in symbols}) != len(symbols):
            raise ConfigError("SYNTHETIC", "a symbol stands twice")
        for s in symbols:
            if not (s.tick > 0 and s.step > 0 and s.price > 0 and s.price % s.tick == 0):
                raise ConfigError("SYNTHETIC", f"{s.symbol}: price {s.price} must be a multiple of its tick {s.tick}")
            if s.volatility < 1 or s.every_ns < 1:
                raise ConfigError("SYNTHETIC", f"{s.symbol}: volatility and every_ns must be at least 1")
        self._seed, self._count, self._start, self._specs = seed, count, start_ns, symbols
        self.symbols = tuple(s.symbol for s in symbols)
        self.trades = count
        self.quotes = count // QUOTE_EVERY
        self.notes: tuple[str, ...] = ()
        self.span_ns = int(count / sum(Fraction(1, s.every_ns) for s in symbols))

    def ticks(self) -> Iterator[tuple[int, str, Tick]]:
        """Trades and quotes with their offset from `start_ns` and their symbols, ordered by time."""
        # Of its own, so that the trades of a seed do not depend on the quotes.
        rng = random.Random(f"{self._seed}/quotes")
        walks = [_walk(s, random.Random(f"{self._seed}/{s.symbol}"), self._start) for s in self._specs]
        heap = [(next(walk), i) for i, walk in enumerate(walks)]
        heapq.heapify(heap)
        for number in range(1, self._count + 1):
            (_, trade), i = heap[0]
            heapq.heapreplace(heap, (next(walks[i]), i))
            yield trade.time_ns - self._start, self.symbols[i], trade
            if number % QUOTE_EVERY == 0:
                yield trade.time_ns - self._start, self.symbols[i], _quote(self._specs[i], trade, rng)


def _quote(spec: SyntheticSymbol, trade: DumpTrade, rng: random.Random) -> DumpQuote:
    spread = rng.randrange(1, 2 + spec.volatility // 4) * spec.tick
    sizes = [(1 + rng.randrange(500)) * spec.step for _ in range(2)]
    bid = trade.price if trade.buyer_is_maker else max(spec.tick, trade.price - spread)
    return DumpQuote(bid, sizes[0], max(trade.price, bid + spread), sizes[1], trade.time_ns)


def _walk(spec: SyntheticSymbol, rng: random.Random, start_ns: int) -> Iterator[tuple[int, DumpTrade]]:
    start = ticks = int(spec.price / spec.tick)
    low, high = max(1, start // 2), start * 2
    time_ns, drift = start_ns, 0
    trade_id = rng.randrange(1_000_000, 10_000_000)
    while True:
        if rng.randrange(DRIFT_TRADES) == 0 or not drift:
            drift = rng.choice((-1, 1)) * (1 + rng.randrange(1 + spec.volatility // 4))
        move = rng.randrange(-spec.volatility, spec.volatility + 1) + rng.choice((0, 0, drift))
        if not low <= ticks + move <= high:
            move, drift = -move, -drift
        ticks = min(max(ticks + move, low), high)
        time_ns += rng.randrange(1, 2 * spec.every_ns)
        trade_id += 1
        # A random number of doublings: half of all trades stay small, one in a thousand is a thousand times larger.
        doublings = next((k for k in range(10) if rng.getrandbits(1)), 10)
        steps = (1 + rng.randrange(100)) << doublings
        fell = move < 0 if move else bool(rng.getrandbits(1))
        trade = DumpTrade(trade_id, ticks * spec.tick, steps * spec.step, time_ns, fell, 1, 0)
        yield time_ns, trade
