from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest

from tallystick.components.market_data.dumps import DumpQuote, DumpTrade, Tick
from tallystick.components.market_data.feed import Backoff, Change, Feed
from tallystick.components.market_data.player import Schedule, open_tape, play, speed_for
from tallystick.components.market_data.synthetic import SyntheticMarket, SyntheticSymbol
from tallystick.schemas.errors import ConfigError, Malformed

SECOND = 1_000_000_000


class World:
    """A clock that only sleeping moves, and what came out at which moment."""

    def __init__(self) -> None:
        self.now = 1_800_000_000 * SECOND
        self.start = self.now
        self.out: list[tuple[int, str, object]] = []

    def clock(self) -> int:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += round(seconds * SECOND)

    def tick(self, symbol: str, tick: Tick) -> None:
        self.out.append((self.now - self.start, symbol, getattr(tick, "trade_id", "quote")))

    def change(self, change: Change) -> None:
        self.out.append((self.now - self.start, change.symbol, change.state))


def dump(folder: Path, symbol: str, rows: list[tuple[int, int]], day: int = 1) -> Path:
    path = folder / f"{symbol}-trades-2021-01-0{day}.csv"
    path.write_text("".join(f"{i},1.5,2,3,{1_600_000_000_000 + t},True,True\n" for i, t in rows))
    return path


async def played(paths: list[Path], speed: Fraction) -> World:
    world = World()
    await play(open_tape(paths), speed, world.clock, world.sleep, world.tick, world.change)
    return world


async def test_trades_come_in_their_own_rhythm_at_the_asked_speed(tmp_path: Path) -> None:
    world = await played([dump(tmp_path, "BTCUSDT", [(1, 0), (2, 1000), (3, 4000)])], Fraction(2))
    ids = [(at, what) for at, _, what in world.out if isinstance(what, int)]
    assert ids == [(0, 1), (SECOND // 2, 2), (2 * SECOND, 3)]


async def test_several_files_are_merged_by_time_and_days_follow_each_other(tmp_path: Path) -> None:
    paths = [
        dump(tmp_path, "BTCUSDT", [(10, 3000), (11, 3100)], day=2),
        dump(tmp_path, "XRPETH", [(7, 500), (8, 3050)]),
        dump(tmp_path, "BTCUSDT", [(8, 0), (9, 1000)], day=1),
    ]
    world = await played(paths, Fraction(1))
    assert [(s, i) for _, s, i in world.out if isinstance(i, int)] == [
        ("BTC/USDT", 8),
        ("XRP/ETH", 7),
        ("BTC/USDT", 9),
        ("BTC/USDT", 10),
        ("XRP/ETH", 8),
        ("BTC/USDT", 11),
    ]


async def test_recordings_of_different_days_begin_together_and_end_together(tmp_path: Path) -> None:
    paths = [
        dump(tmp_path, "BTCUSDT", [(1, 10**9), (2, 10**9 + 500), (3, 10**9 + 1000)]),
        dump(tmp_path, "XRPETH", [(1, 0), (2, 100_000)]),
    ]
    tape = open_tape(paths)
    assert [(offset, symbol) for offset, symbol, _ in tape.ticks()] == [
        (0, "XRP/ETH"),
        (0, "BTC/USDT"),
        (50 * SECOND, "BTC/USDT"),
        (100 * SECOND, "XRP/ETH"),
        (100 * SECOND, "BTC/USDT"),
    ]
    world = await played(paths, speed_for(tape, 10 * SECOND))
    assert world.now - world.start == 10 * SECOND


async def test_a_gap_in_the_ids_is_reported_before_the_trade_after_it_and_the_end_at_last(tmp_path: Path) -> None:
    world = World()
    changes: list[Change] = []
    tape = open_tape([dump(tmp_path, "BTCUSDT", [(1, 0), (5, 10)])])
    (await play(tape, Fraction(1), world.clock, world.sleep, world.tick, changes.append))
    assert changes == [
        Change("BTC/USDT", "live"),
        Change("BTC/USDT", "gap", "3 trades missing", 2, 4),
        Change("BTC/USDT", "ended", "recording over after 2 trades and quotes"),
    ]


def quotes(folder: Path, rows: list[tuple[int, int]]) -> Path:
    path = folder / "BTCUSDT-bookTicker-2021-01-01.csv"
    header = "update_id,best_bid_price,best_bid_qty,best_ask_price,best_ask_qty,transaction_time,event_time\n"
    path.write_text(
        header + "".join(f"{i},1.4,2,1.5,0,{1_600_000_000_000 + t},{1_600_000_000_003 + t}\n" for i, t in rows)
    )
    return path


async def test_quotes_are_played_between_the_trades_of_their_symbol(tmp_path: Path) -> None:
    trades = dump(tmp_path, "BTCUSDT", [(1, 0), (2, 1000)])
    paths = [quotes(tmp_path, [(70, 10), (90, 1500)]), trades]
    tape = open_tape(paths)
    assert (tape.symbols, tape.trades, tape.quotes) == (("BTC/USDT",), 2, 2)
    ms = 1_000_000
    assert [(offset // ms, getattr(t, "trade_id", "quote")) for offset, _, t in tape.ticks()] == [
        (0, 1),
        (10, "quote"),
        (1000, 2),
        (1500, "quote"),
    ]
    quote = next(t for _, _, t in tape.ticks() if isinstance(t, DumpQuote))
    assert quote == DumpQuote(Decimal("1.4"), Decimal(2), Decimal("1.5"), Decimal(0), 1_600_000_000_010 * ms)
    # Update ids jump by nature: that is no gap.
    world = await played([paths[0]], Fraction(1))
    assert [what for _, _, what in world.out] == ["live", "quote", "quote", "ended"]


async def test_where_time_steps_back_the_files_order_is_played_at_once_and_noted(tmp_path: Path) -> None:
    path = dump(tmp_path, "BTCUSDT", [(1, 0), (2, 1000), (3, 400), (4, 1200)])
    world = await played([path], Fraction(1))
    assert [(at // 1_000_000, what) for at, _, what in world.out if isinstance(what, int)] == [
        (0, 1),
        (1000, 2),
        (1000, 3),
        (1200, 4),
    ]
    tape = open_tape([path])
    assert tape.span_ns == 1200 * 1_000_000
    assert [t.time_ns - 1_600_000_000 * SECOND for _, _, t in tape.ticks()][2] == 400_000_000  # the venue's own time
    (note,) = tape.notes
    assert "steps back 1 times, by up to 0.600000 s" in note


def test_an_empty_day_is_passed_over_where_others_have_trades(tmp_path: Path) -> None:
    empty = dump(tmp_path, "BTCUSDT", [], day=2)
    with pytest.raises(Malformed, match="DUMP_EMPTY"):
        open_tape([empty])
    tape = open_tape([dump(tmp_path, "BTCUSDT", [(1, 0)]), empty])
    assert tape.trades == 1
    assert any(str(empty) in note and "passed over" in note for note in tape.notes)


def test_days_that_overlap_are_refused(tmp_path: Path) -> None:
    paths = [dump(tmp_path, "BTCUSDT", [(1, 0), (5, 10)], 1), dump(tmp_path, "BTCUSDT", [(5, 10), (6, 12)], 2)]
    with pytest.raises(ConfigError, match="overlap"):
        open_tape(paths)


async def test_the_default_speed_makes_the_recording_last_the_asked_time(tmp_path: Path) -> None:
    path = dump(tmp_path, "BTCUSDT", [(i, i * 977) for i in range(1000)])
    world = await played([path], speed_for(open_tape([path]), 30 * SECOND))
    assert abs(world.now - world.start - 30 * SECOND) < SECOND // 100


async def test_a_late_player_catches_up_without_leaving_anything_out(tmp_path: Path) -> None:
    class Slow(World):
        def tick(self, symbol: str, tick: Tick) -> None:
            super().tick(symbol, tick)
            if isinstance(tick, DumpTrade) and tick.trade_id == 100:
                self.now += 5 * SECOND

    world = Slow()
    tape = open_tape([dump(tmp_path, "BTCUSDT", [(i, i * 10) for i in range(1000)])])
    (await play(tape, Fraction(1), world.clock, world.sleep, world.tick, world.change))
    assert [i for _, _, i in world.out if isinstance(i, int)] == list(range(1000))
    assert world.now - world.start < 11 * SECOND


@pytest.mark.parametrize("speed", [Fraction(0), Fraction(-1)])
def test_a_speed_of_nothing_is_refused(speed: Fraction) -> None:
    with pytest.raises(ConfigError, match="above zero"):
        Schedule(0, speed)


def test_no_rounding_adds_up_over_a_long_recording() -> None:
    schedule = Schedule(0, Fraction(7, 3))
    assert schedule.due(7 * 10**18) == 3 * 10**18


def test_a_synthetic_market_is_the_same_for_a_seed_and_another_for_another() -> None:
    first, same, other = (list(SyntheticMarket(seed, 500, 10**18).ticks()) for seed in (7, 7, 8))
    assert first == same
    assert first != other


def test_a_synthetic_market_of_a_seed_never_changes() -> None:
    ticks = list(SyntheticMarket(1, 1000, 10**18).ticks())
    _, symbol, trade = [t for t in ticks if isinstance(t[2], DumpTrade)][-1]
    assert isinstance(trade, DumpTrade)
    assert (symbol, trade.price, trade.qty, trade.buyer_is_maker) == (
        "BTC/USDT",
        Decimal("39457.03"),
        Decimal("0.00087"),
        False,
    )


def test_synthetic_trades_lie_on_tick_and_step_in_order_and_stay_plausible() -> None:
    market = SyntheticMarket(3, 20_000, 10**18)
    ticks = list(market.ticks())
    trades = [(offset, symbol, t) for offset, symbol, t in ticks if isinstance(t, DumpTrade)]
    assert (market.trades, market.quotes) == (len(trades), len(ticks) - len(trades)) == (20_000, 5_000)
    specs = {"XRP/ETH": ("0.00141", "0.00000001", "1"), "BTC/USDT": ("39430", "0.01", "0.00001")}
    assert {s for _, s, _ in trades} == set(specs)
    last = 0
    for offset, symbol, trade in trades:
        start, tick, step = map(Decimal, specs[symbol])
        assert trade.price % tick == 0
        assert trade.qty % step == 0
        assert trade.qty > 0
        assert start / 2 <= trade.price <= start * 2
        assert trade.time_ns >= last
        last = trade.time_ns
        assert offset == last - 10**18
    assert 0.9 < (last - 10**18) / market.span_ns < 1.1
    for symbol in specs:
        ids = [t.trade_id for _, s, t in trades if s == symbol]
        assert ids == list(range(ids[0], ids[0] + len(ids)))


def test_synthetic_quotes_lie_around_the_trade_before_them() -> None:
    before: Tick | None = None
    ticks = {"XRP/ETH": Decimal("0.00000001"), "BTC/USDT": Decimal("0.01")}
    for _, symbol, tick in SyntheticMarket(3, 4_000, 10**18).ticks():
        if isinstance(tick, DumpQuote):
            assert isinstance(before, DumpTrade)
            assert 0 < tick.bid < tick.ask
            assert (tick.bid if before.buyer_is_maker else tick.ask) == before.price
            assert (tick.ask - tick.bid) % ticks[symbol] == 0
            assert tick.time_ns == before.time_ns
        before = tick


def test_a_synthetic_price_off_its_tick_is_refused() -> None:
    with pytest.raises(ConfigError, match="multiple of its tick"):
        SyntheticMarket(1, 1, 0, (SyntheticSymbol("A/B", Decimal("1.05"), Decimal("0.1"), Decimal(1)),))


def test_a_feed_says_each_change_once() -> None:
    feed = Feed("BTC/USDT", stale_after_ns=10)
    assert feed.trade(5, 0) == (True, [Change("BTC/USDT", "live")])
    assert feed.trade(6, 1) == (True, [])
    assert feed.tick(10) == []
    assert [c.state for c in feed.tick(11)] == ["stale"]
    assert feed.tick(100) == []
    assert feed.trade(7, 101) == (True, [Change("BTC/USDT", "live")])
    assert [c.state for c in feed.down("cut")] == ["reconnecting"]
    assert feed.down("cut") == []
    assert feed.trade(9, 102) == (
        True,
        [Change("BTC/USDT", "gap", "1 trades missing", 8, 8), Change("BTC/USDT", "live")],
    )


def test_a_trade_seen_twice_is_no_news() -> None:
    feed = Feed("BTC/USDT")
    feed.trade(5, 0)
    assert feed.trade(5, 1) == (False, [])
    assert feed.trade(4, 1) == (False, [])


def test_back_off_doubles_to_its_limit_and_starts_again() -> None:
    backoff = Backoff(1, 5)
    assert [backoff.next() for _ in range(4)] == [1, 2, 4, 5]
    backoff.reset()
    assert backoff.next() == 1
