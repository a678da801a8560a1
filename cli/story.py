"""What the demo plays: instruments, limits and strategies that fit the market that it is given.  Pure but for reading.

- Everything is measured on the recording: tick and step are the finest that occur in it, sizes, limits and caps follow
  its prices and quantities in each quote asset, so a coin in yen trades as one in dollars does.
- The story fits every length: the strategies' paces are parts of the trades of their instrument, and the runaway runs
  wild after a third of them.  What is too short to tell it, or would outlast the lease, is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from typing import Final

import msgspec

from tallystick.components.market_data.dumps import DumpQuote
from tallystick.components.market_data.player import Part, Recording, Tape, open_tape
from tallystick.components.market_data.synthetic import QUOTE_EVERY
from tallystick.runtime.deployment.config import StrategyConfig
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.errors import ConfigError

PLAY_S: Final = 30
# Longer where there is more to play, as everything has to pass a dozen processes on small machines; of a long
# recording the beginning, unless a speed is asked for.
MOST_TICKS_S: Final = 500
MOST_TICKS: Final = 30_000
# From here on every attack is over before the market is.
LEAST_S: Final = 15
# Well within the lease of an hour.
MOST_S: Final = 3_000
# Fewer give no averages to cross and no mistakes to make.
LEAST_TRADES: Final = 60
# As many as the synthetic market makes in `PLAY_S`.
SYNTHETIC_TRADES: Final = 3_000
# Each strategy is a process.
MOST_FOLLOWED: Final = 4
# Short, so that renewal and expiry are there to be seen.
SESSION_S: Final = 20
MESSAGES_S: Final = 20
BURST: Final = 40
PLACES: Final = 8
INTRUDER: Final = "mallory"
EXAMPLES: Final = "tallystick.components.strategy.examples"
# What the clumsy strategy does wrong, and the codes that each is denied with.
MISTAKES: Final = {
    "far too large": frozenset(("QUANTITY_EXCEEDS_LIMIT", "NOTIONAL_EXCEEDS_LIMIT", "NOTIONAL_EXCEEDS_CAP")),
    "far off the market": frozenset(("PRICE_OUTSIDE_COLLAR",)),
    "no such instrument": frozenset(("UNKNOWN_INSTRUMENT",)),
    "between ticks": frozenset(("TICK_SIZE",)),
    "between steps": frozenset(("LOT_SIZE",)),
    "too small": frozenset(("NOTIONAL_BELOW_MINIMUM",)),
}

D: Final = Decimal
_TEMPLATE: Final = """\
# Written by `tallystick demo`.
deployment = {{deployment}}
host = "127.0.0.1"
session_lifetime_s = {session}

[broker]
port = {{broker}}

[authority]
port = {{authority}}

[vault]
port = {{vault}}

[venue]
name = "paper"
kind = "paper"
host = "127.0.0.1:{{venue}}"
account = "main"
{instruments}
[limits]
collar_bps = 200
messages_per_second = {messages}
burst = {burst}
stale_ms = 20000
{limits}{caps}
[market_data]
{market}
"""


class Instrument(msgspec.Struct, frozen=True):
    """What the demo trades: measured on a recording of `trades` trades, or made up.  `lot` is an ordinary size."""

    symbol: str
    tick: Decimal
    step: Decimal
    lot: Decimal
    highest: Decimal
    trades: int

    @property
    def base(self) -> str:
        """What is traded."""
        return self.symbol.partition("/")[0]

    @property
    def quote(self) -> str:
        """What it is paid in."""
        return self.symbol.partition("/")[2]

    @property
    def market_price(self) -> Decimal:
        """Well above any plausible price."""
        return one_digit(self.highest * 4)

    @property
    def worth(self) -> Decimal:
        """An ordinary lot at that price, in the quote asset."""
        return self.lot * self.market_price

    def toml(self) -> str:
        """Its record in deployment.toml."""
        return (
            f'\n[[instruments]]\nvenue = "paper"\nsymbol = "{self.symbol}"\nvenue_symbol = "{self.base}{self.quote}"\n'
            f'base = "{self.base}"\nquote = "{self.quote}"\ntick = "{self.tick:f}"\nstep = "{self.step:f}"\n'
            f'min_notional = "{one_digit(self.lot * self.highest / 4):f}"\nmarket_price = "{self.market_price:f}"\n'
        )

    def limits(self) -> str:
        """The money limits of a strategy that trades it, as lines of deployment.toml."""
        whole = f"{one_digit(self.worth * 400):f}"
        return (
            f'max_notional = "{one_digit(self.worth * 4):f}"\nmax_qty = "{(self.lot * 20).normalize():f}"\n'
            f'max_open_notional = "{whole}"\nmax_position_notional = "{whole}"\nmax_gross_notional = "{whole}"\n'
        )


class Story(msgspec.Struct, frozen=True):
    """What will be played: the deployment's template and strategies, and what is meant to be seen of it."""

    says: tuple[str, ...]
    template: str
    strategies: tuple[StrategyConfig, ...]
    trades: int
    quotes: int
    seconds: float

    @property
    def main(self) -> str:
        """The symbol that the story is about."""
        return self.strategies[0].instruments[0]


def one_digit(value: Decimal) -> Decimal:
    """Rounded down to one significant digit, as people set limits."""
    shift = value.adjusted()
    return (value.scaleb(-shift) // 1).scaleb(shift)


class _Seen:
    """What was seen of one symbol: the finest places, the highest price, the sum of sizes, and how many of them."""

    def __init__(self) -> None:
        self.price_places = self.qty_places = 0
        self.highest = self.volume = Decimal(0)
        self.sizes = self.trades = 0

    def add(self, price: Decimal, qty: Decimal) -> None:
        """One price and size."""
        self.price_places = min(self.price_places, _exponent(price))
        self.qty_places = min(self.qty_places, _exponent(qty))
        self.highest = max(self.highest, price)
        self.volume += qty
        self.sizes += 1


def measure(recording: Recording) -> list[Instrument]:
    """The instruments of a recording, most traded first.  Raises `ConfigError` for what the paper exchange cannot keep."""
    seen: dict[str, _Seen] = {}
    for _, symbol, tick in recording.ticks():
        now = seen.setdefault(symbol, _Seen())
        if isinstance(tick, DumpQuote):
            now.add(tick.bid, tick.bid_qty)
            now.add(tick.ask, tick.ask_qty)
        else:
            now.add(tick.price, tick.qty)
            now.trades += 1
    made = []
    for symbol, now in seen.items():
        if min(now.price_places, now.qty_places) < -PLACES:
            raise ConfigError(
                "INSTRUMENT",
                f"{symbol}: its recording has numbers of more than {PLACES} places, which no order can have",
            )
        finest, step = Decimal(1).scaleb(now.price_places), Decimal(1).scaleb(now.qty_places)
        half = now.volume / now.sizes / 2
        # Of many steps, so that less than the minimum, a quarter of a lot, can be asked for.
        lot = max(16 * step, half // step * step)
        made.append(Instrument(symbol, finest, step, lot, now.highest, now.trades))
    return sorted(made, key=lambda i: -i.trades)


def _exponent(value: Decimal) -> int:
    exponent = value.normalize().as_tuple().exponent
    return exponent if isinstance(exponent, int) else 0


def tell(data: Sequence[Path], speed: Decimal | None) -> Story:
    """The story of the dumps `data`, or of a made-up market without any; `speed` None: some half a minute.

    Raises what `open_tape` raises, and `ConfigError` for what is too short or would take too long.
    """
    return _recorded(open_tape([path.absolute() for path in data]), data, speed) if data else _made_up(speed)


def _made_up(speed: Decimal | None) -> Story:
    each = SYNTHETIC_TRADES // 2
    instruments = [
        Instrument("XRP/ETH", D("0.00000001"), D(1), D(100), D("0.0015"), each),
        Instrument("BTC/USDT", D("0.01"), D("0.00001"), D("0.001"), D(40_000), each),
    ]
    speed = Decimal(1) if speed is None else speed
    seconds = _seconds(PLAY_S * SECOND, speed)
    market = f'source = "synthetic"\nseed = 7\ncount = {SYNTHETIC_TRADES}\nspeed = "{speed}"\n'
    says = "no recording given, and no folder ./data: a seeded synthetic market plays"
    quotes = SYNTHETIC_TRADES // QUOTE_EVERY
    return _story([says], instruments, market, SYNTHETIC_TRADES, quotes, seconds)


def _recorded(tape: Tape, data: Sequence[Path], speed: Decimal | None) -> Story:
    says, limit = list(tape.notes), ""
    played: Recording = tape
    whole = tape.trades + tape.quotes
    if speed is None and whole > MOST_TICKS:
        played = _beginning(tape)
        limit = f"most = {played.trades + played.quotes}\n"
        says.append(f"of {whole:,} recorded trades and quotes the beginning is played; all of them with a speed")
    instruments = measure(played)
    most = instruments[0].trades
    if most < LEAST_TRADES:
        raise ConfigError(
            "DEMO_SHORT",
            f"{most} trades of {', '.join(tape.symbols)}: the demo needs {LEAST_TRADES} of one instrument; "
            "give a longer recording, or play this one in a deployment of your own (tallystick init)",
        )
    if speed is None:
        lasting = max(PLAY_S, (played.trades + played.quotes) // MOST_TICKS_S)
        speed = max(Decimal("0.000001"), (Decimal(played.span_ns) / SECOND / lasting).quantize(Decimal("0.000001")))
    seconds = _seconds(played.span_ns, speed)
    quotes = f" and {played.quotes:,} quotes" if played.quotes else ""
    what = f"{played.trades:,} recorded trades{quotes} of {', '.join(tape.symbols)}"
    says.append(f"{what} at {speed.normalize():f} times their speed: {seconds:.0f} s")
    # Written once more through `str.format`, as the template is.
    paths = (
        json.dumps([str(path.absolute()) for path in data], ensure_ascii=False).replace("{", "{{").replace("}", "}}")
    )
    market = f'source = "dump"\npaths = {paths}\nspeed = "{speed}"\n{limit}'
    return _story(says, instruments, market, played.trades, played.quotes, seconds)


def _beginning(tape: Tape) -> Part:
    """As much of it as fits, and every symbol at least once."""
    unseen, most = set(tape.symbols), 0
    for most, (_, symbol, _) in enumerate(tape.ticks(), start=1):
        unseen.discard(symbol)
        if most >= MOST_TICKS and not unseen:
            break
    return Part(tape, most)


def _seconds(span_ns: int, speed: Decimal) -> float:
    """How long the market lasts.  Raises `ConfigError` for a speed at which the story cannot be told."""
    if not (speed.is_finite() and speed > 0):
        raise ConfigError("SPEED", f"speed must be above zero, got {speed}")
    recorded = Decimal(max(span_ns, 1)) / SECOND
    if not LEAST_S <= recorded / speed <= MOST_S:
        slowest, fastest = (f"{(recorded / s).normalize():.3g}" for s in (MOST_S, LEAST_S))
        raise ConfigError(
            "SPEED",
            f"at speed {speed} the market lasts {recorded / speed:.3g} s, the demo {LEAST_S} to {MOST_S} s: "
            f"give a speed from {slowest} to {fastest}, or none",
        )
    return float(recorded / speed)


def _story(
    says: list[str], instruments: list[Instrument], market: str, trades: int, quotes: int, seconds: float
) -> Story:
    strategies = _strategies(instruments, seconds)
    own = {i.symbol: i for i in instruments}
    limits = "".join(f"\n[limits.strategy.{s.name}]\n{own[s.instruments[0]].limits()}" for s in strategies)
    template = _TEMPLATE.format(
        session=SESSION_S,
        instruments="".join(i.toml() for i in instruments),
        messages=MESSAGES_S,
        burst=BURST,
        limits=instruments[0].limits() + limits,
        caps=_caps(instruments),
        market=market,
    )
    return Story(tuple(says), template, tuple(strategies), trades, quotes, seconds)


def _caps(instruments: list[Instrument]) -> str:
    """One cap for each asset: eight of the largest lots an order, four thousand an hour."""
    largest: dict[str, Decimal] = {}
    for one in instruments:
        for asset, amount in ((one.quote, one.worth), (one.base, one.lot)):
            largest[asset] = max(largest.get(asset, Decimal(0)), amount)
    return "".join(
        f'\n[[caps]]\naccount = "main"\nasset = "{asset}"\nmax_order = "{one_digit(amount * 8):f}"\n'
        f'max_hourly = "{one_digit(amount * 4000):f}"\n'
        for asset, amount in largest.items()
    )


def _strategies(instruments: list[Instrument], seconds: float) -> list[StrategyConfig]:
    """Momentum on the most traded; the clumsy, the wild and the compromised one on the very first."""
    main = instruments[0]
    made = [
        _strategy("momentum", "momentum", main, _momentum(main.trades)),
        _strategy("fat-finger", "fat_finger", main, {"every": _part(main.trades, 16, 150)}),
        _strategy("runaway", "runaway", main, _runaway(main.trades, seconds)),
        _strategy(INTRUDER, "momentum", main, _momentum(main.trades)),
    ]
    taken = {s.name for s in made}
    traded = [i for i in instruments[1:MOST_FOLLOWED] if i.trades]
    for number, other in enumerate(traded, start=2):
        slug = re.sub("[^a-z0-9]+", "-", other.symbol.lower()).strip("-")
        name = f"momentum-{slug}"[:40].rstrip("-")
        name = name if name not in taken else f"momentum-{number}"
        taken.add(name)
        made.append(_strategy(name, "momentum", other, _momentum(other.trades)))
    return made


def _strategy(name: str, module: str, where: Instrument, params: Mapping[str, int]) -> StrategyConfig:
    texts = {key: str(value) for key, value in params.items()}
    return StrategyConfig(name=name, module=f"{EXAMPLES}.{module}", instruments=(where.symbol,), params=texts)


def _part(trades: int, parts: int, most: int) -> int:
    return max(1, min(most, trades // parts))


def _momentum(trades: int) -> dict[str, int]:
    slow = max(2, _part(trades, 12, 100))
    return {"slow": slow, "fast": max(1, slow // 5)}


def _runaway(trades: int, seconds: float) -> dict[str, int]:
    """Wild after a third, and then twice as fast as the throttle ever lets pass in a second."""
    a_second = Decimal(trades) / Decimal(seconds)
    burst = int((2 * (MESSAGES_S + BURST) / a_second).to_integral_value(ROUND_CEILING))
    return {"every": _part(trades, 15, 200), "after": trades // 3, "burst": max(3, min(100, burst))}


def unseen_mistakes(denials: Iterable[str]) -> list[str]:
    """The mistakes that no denial is known of."""
    codes = set(denials)
    return [mistake for mistake, expected in MISTAKES.items() if not expected & codes]
