"""The market data process: recorded, synthetic or live trades and quotes, as `md.trade`, `md.quote` and `ref.market`.

- Input is checked wholly before anything is published: a bad dump stops the process, with nothing played.  (`up` checks
  before it starts anything; here it is done when the process is ready, as a month's file takes minutes.)
- Playing begins when all is checked.  After a recording's end the process stays, with nothing to say.
- The `time` of a `Trade` or `Quote` is the venue's (the recorded one for a recording), its `ts` is now (`player`).

Market data is trusted with prices: an attacker who controls it can at most show wrong ones, which the gateway's
collar and the operator-signed caps bound.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

from tallystick.components.market_data.dumps import DumpQuote, Tick
from tallystick.components.market_data.feed import Change
from tallystick.components.market_data.player import Part, Recording, open_tape, play
from tallystick.components.market_data.synthetic import DEFAULT_SYMBOLS, SyntheticMarket, SyntheticSymbol
from tallystick.runtime.deployment.folder import Deployment
from tallystick.runtime.deployment.service import Service, ServiceContext
from tallystick.schemas.errors import ConfigError
from tallystick.schemas.market import FeedStatus, Quote, Trade
from tallystick.schemas.subjects import MARKET, Subject, subject
from tallystick.schemas.trust import Instrument, TrustRoot

# `market_price` lies well above any plausible price; a made-up market starts at this part of it.
_START_PART: Final = 4
_VOLATILITY_PART: Final = 20_000


def synthetic_symbol(instrument: Instrument) -> SyntheticSymbol:
    """What to make up for an instrument: a default of its name on its tick and step, else by its `market_price`.

    Raises `ConfigError` where neither gives a price.
    """
    known = next((s for s in DEFAULT_SYMBOLS if s.symbol == instrument.symbol), None)
    start = known.price if known else instrument.market_price / _START_PART
    price = start - start % instrument.tick
    if price <= 0:
        raise ConfigError(
            "SYNTHETIC", f"{instrument.symbol}: no price to start from; its market_price is below four ticks"
        )
    volatility = max(1, int(price / instrument.tick) // _VOLATILITY_PART)
    return SyntheticSymbol(instrument.symbol, price, instrument.tick, instrument.step, volatility)


def shown(deployment: Deployment, trust: TrustRoot) -> tuple[Instrument, ...]:
    """The signed instruments that market data shows.  Raises `ConfigError` where there is none."""
    venue, symbols = deployment.config.venue.name, deployment.config.market_data.symbols
    found = tuple(i for i in trust.instruments if i.venue == venue and (not symbols or i.symbol in symbols))
    if not found:
        raise ConfigError("MARKET_DATA", f"the trust root has no instrument at {venue} to show")
    return found


def open_recording(deployment: Deployment, instruments: tuple[Instrument, ...], now: int) -> Recording:
    """The recording that the deployment names, checked wholly.  Raises `ConfigError` or `Malformed`."""
    config = deployment.config.market_data
    if config.source == "synthetic":
        return SyntheticMarket(config.seed, config.count, now, tuple(synthetic_symbol(i) for i in instruments))
    paths = [path if path.is_absolute() else deployment.directory / path for path in map(Path, config.paths)]
    tape = open_tape(paths, {i.venue_symbol: i.symbol for i in instruments})
    for symbol in tape.symbols:
        if symbol not in {i.symbol for i in instruments}:
            raise ConfigError("DUMP_SYMBOL", f"there is a dump of {symbol}, which is no instrument to be played here")
    return Part(tape, config.most) if config.most else tape


class MarketData(Service):
    """See the module docstring."""

    async def start(self, ctx: ServiceContext) -> None:
        """Check the configuration."""
        self.ctx = ctx
        deployment = ctx.deployment
        config = deployment.config.market_data
        self._venue = deployment.config.venue.name
        instruments = shown(deployment, ctx.trust)
        self._trades = {i.symbol: subject("md.trade", venue=self._venue, symbol=i.symbol) for i in instruments}
        self._quotes = {i.symbol: subject("md.quote", venue=self._venue, symbol=i.symbol) for i in instruments}
        self._states: dict[str, str] = {}
        self._status: Subject = subject("ref.market", venue=self._venue)
        if config.source == "live":
            # Here, not above: ccxt is a second of start that a recording, and the check before `up`, need not pay.
            from tallystick.components.market_data.live import LiveFeed, open_live

            feed = LiveFeed(
                open_live(deployment),
                list(self._trades),
                clock=ctx.clock,
                stale_ns=config.stale_ms * 1_000_000,
                on_tick=self._on_tick,
                on_change=self._on_change,
                on_problem=lambda symbol, text: ctx.log.warning("feed", symbol=symbol, problem=text),
                sleep=self._sleep,
            )
            self._work: Callable[[], Coroutine[Any, Any, None]] = feed.run
            return
        self._work = lambda: self._play(instruments)

    def status(self) -> dict[str, str]:
        """Each symbol's feed."""
        return {"feed": ", ".join(f"{symbol} {self._states.get(symbol, 'silent')}" for symbol in self._trades)}

    async def ready(self) -> None:
        """Play, or follow the exchange."""
        self.ctx.spawn(self._work())

    async def _play(self, instruments: tuple[Instrument, ...]) -> None:
        ctx = self.ctx
        recording = await asyncio.to_thread(open_recording, ctx.deployment, instruments, ctx.clock())
        ctx.log.info(
            "recording",
            symbols=list(recording.symbols),
            trades=recording.trades,
            quotes=recording.quotes,
            seconds=recording.span_ns / 1e9,
        )
        for note in recording.notes:
            ctx.log.warning("recording", note=note)
        speed = ctx.deployment.config.market_data.speed
        rows = await play(recording, Fraction(speed), self.ctx.clock, self._sleep, self._on_tick, self._on_change)
        self.ctx.log.info("recording over", rows=rows)

    async def _sleep(self, seconds: float) -> None:
        await self.ctx.room(MARKET)
        await asyncio.sleep(seconds)

    def _on_tick(self, symbol: str, tick: Tick) -> None:
        if isinstance(tick, DumpQuote):
            bid, bid_qty, ask, ask_qty, time = tick
            quote = self.ctx.new(Quote, bid=bid, bid_qty=bid_qty, ask=ask, ask_qty=ask_qty, time=time)
            self.ctx.publish(self._quotes[symbol], quote)
            return
        self.ctx.publish(
            self._trades[symbol],
            self.ctx.new(
                Trade,
                trade_id=tick.trade_id,
                price=tick.price,
                qty=tick.qty,
                time=tick.time_ns,
                buyer_is_maker=tick.buyer_is_maker,
            ),
        )

    def _on_change(self, change: Change) -> None:
        self._states[change.symbol] = change.state
        self.ctx.log.info("feed", symbol=change.symbol, state=change.state, text=change.text)
        self.ctx.publish(
            self._status,
            self.ctx.new(
                FeedStatus,
                symbol=change.symbol,
                state=change.state,
                text=change.text,
                missing_from=change.missing_from,
                missing_to=change.missing_to,
            ),
        )


SERVICE = MarketData
