"""The demo's story fits every market that it is given, or is refused before anything starts."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from tallystick.cli import story
from tallystick.cli.story import INTRUDER, MISTAKES, Story, measure, tell, unseen_mistakes
from tallystick.components.market_data.dumps import find_dumps
from tallystick.components.market_data.player import Part, open_tape
from tallystick.components.paper_exchange.orders import Instrument as VenueInstrument
from tallystick.runtime.deployment.config import Config, parse_config
from tallystick.schemas.errors import ConfigError, TallystickError
from tallystick.schemas.limits import LimitBook


def recording(
    folder: Path, symbol: str, price: str, qty: str, count: int = 600, first_ms: int = 1_740_873_600_000
) -> Path:
    """Trades 100 ms apart, their prices some ticks up and down."""
    start, tick = Decimal(price), Decimal(1).scaleb(Decimal(price).as_tuple().exponent)  # type: ignore[arg-type]
    lines = [
        f"{i},{start + tick * (i * 7 % 23)},{Decimal(qty) * (1 + i % 5)},1,{first_ms + 100 * i},{i % 2 == 0},True\n"
        for i in range(count)
    ]
    path = folder / f"{symbol}-trades-2025-03-02.csv"
    path.write_text("".join(lines))
    return path


def config(told: Story) -> Config:
    """What `tallystick init` makes of it."""
    text = told.template.format(deployment='"demo"', broker=1, authority=2, vault=3, venue=4)
    for strategy in told.strategies:
        params = "".join(f'{key} = "{value}"\n' for key, value in strategy.params.items())
        text += (
            f'\n[[strategies]]\nname = "{strategy.name}"\nmodule = "{strategy.module}"\n'
            f'instruments = ["{strategy.instruments[0]}"]\n[strategies.params]\n{params}'
        )
    return parse_config(text, "deployment.toml")


MAGNITUDES = [
    ("ETHBTC", "0.061233", "0.0481"),
    ("BTCJPY", "14100249", "0.00481"),
    ("BTCIDRT", "1400000000", "0.00001"),
    ("PEPEUSDT", "0.00000711", "277500000"),
    ("SOLEUR", "161.24", "0.629"),
    ("1000SATSUSDT", "0.02124", "629"),
    ("币安人生USDT", "0.02124", "629"),
    ("SHIBDOGE", "0.00001", "1"),
]


@pytest.mark.parametrize(("symbol", "price", "qty"), MAGNITUDES)
def test_sizes_limits_and_caps_follow_the_market(tmp_path: Path, symbol: str, price: str, qty: str) -> None:
    told = tell([recording(tmp_path, symbol, price, qty)], None)
    made = config(told)
    (instrument,) = made.instruments
    caps = {cap.asset: cap for cap in made.caps}
    assert caps.keys() == {instrument.base, instrument.quote}
    cap = caps[instrument.quote]
    assert instrument.venue_symbol == symbol
    assert Decimal(price) % instrument.tick == 0
    assert Decimal(qty) % instrument.step == 0
    VenueInstrument(
        symbol=symbol, name=instrument.symbol, base="A", quote="B", tick=instrument.tick, step=instrument.step,
        min_notional=instrument.min_notional,
    )  # fmt: skip
    # What the strategies ask for: some multiples of the minimum, in steps.
    dearest = Decimal(price) * 2
    size = -(-instrument.min_notional * 3 / Decimal(price) // instrument.step) * instrument.step
    limits = LimitBook(made.limit_rows())
    for strategy in told.strategies:
        own = limits.of(strategy.name, instrument.quote)
        assert size <= own.max_qty < size * 100_000
        assert size * dearest <= own.max_notional <= cap.max_order
        assert size <= own.max_qty <= caps[instrument.base].max_order * 100
        assert size * dearest * 10 < own.max_gross_notional
    # Less than the minimum can be asked for.
    assert instrument.step * dearest < instrument.min_notional
    assert instrument.market_price > dearest


def test_each_quote_asset_has_limits_and_a_cap_of_its_own(tmp_path: Path) -> None:
    for symbol, price, qty in (
        ("BTCUSDT", "93000.01", "0.037"),
        ("BTCJPY", "14100249", "0.037"),
        ("XRPETH", "0.0007", "9"),
    ):
        recording(tmp_path, symbol, price, qty)
    told = tell(find_dumps([tmp_path]), None)
    made = config(told)
    caps = {cap.asset: cap.max_order for cap in made.caps}
    assert set(caps) == {"USDT", "JPY", "ETH", "BTC", "XRP"}
    assert caps["JPY"] > 50 * caps["USDT"] > 50 * 1000 * caps["ETH"]
    names = [s.name for s in told.strategies]
    assert len(set(names)) == len(names) == 6
    limits = LimitBook(made.limit_rows())
    by_symbol = {
        s.instruments[0]: limits.of(s.name, s.instruments[0].partition("/")[2]).max_notional for s in told.strategies
    }
    assert by_symbol["BTC/JPY"] > 50 * by_symbol["BTC/USDT"] > 50 * 1000 * by_symbol["XRP/ETH"]


def test_many_instruments_play_and_few_are_followed(tmp_path: Path) -> None:
    for symbol in ("BTCUSDT", "BTCEUR", "BTCTRY", "BTCBRL", "BTCUAH", "币安人生USDT"):
        recording(tmp_path, symbol, "100.5", "0.2", 60)
    told = tell(find_dumps([tmp_path]), None)
    assert len(config(told).instruments) == 6
    assert len(told.strategies) == 7


@pytest.mark.parametrize("count", [60, 200, 2_000, 14_000])
def test_the_climax_fits_every_length(tmp_path: Path, count: int) -> None:
    told = tell([recording(tmp_path, "BTCUSDT", "93000.01", "0.037", count)], None)
    params = {s.name: {key: int(value) for key, value in s.params.items()} for s in told.strategies}
    wild = params["runaway"]
    assert 0 < wild["after"] <= count / 2
    # Within a second of running wild it asks for more than the throttle ever passes.
    assert wild["burst"] * max(1, int(count / told.seconds)) > story.MESSAGES_S + story.BURST
    assert count // params["fat-finger"]["every"] >= 2 * len(MISTAKES)
    assert 1 <= params["momentum"]["fast"] < params["momentum"]["slow"] < count / 5
    assert params[INTRUDER] == params["momentum"]
    assert (told.trades, told.quotes) == (count, 0)


def test_the_made_up_market_lasts_as_long_as_it_says() -> None:
    told = tell([], None)
    assert (told.trades, told.quotes, told.seconds) == (3_000, 750, 30)
    assert tell([], Decimal("0.1")).seconds == 300
    assert config(told).market_data.source == "synthetic"


def test_a_long_recording_takes_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(story, "MOST_TICKS_S", 10)
    assert round(tell([recording(tmp_path, "BTCUSDT", "93000.01", "0.037", 900)], None).seconds) == 90


def test_of_a_very_long_recording_the_beginning_is_played_with_every_symbol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(story, "MOST_TICKS", 500)
    paths = [
        recording(tmp_path, "BTCUSDT", "93000.01", "0.037", 900),
        # Begins when the first 600 of the other have been played.
        recording(tmp_path, "ETHUSDT", "2100.01", "0.37", 900, 1_740_873_660_000),
    ]
    told = tell(paths, None)
    assert told.trades == 602
    assert any("the beginning is played" in line for line in told.says)
    made = config(told)
    assert {i.symbol for i in made.instruments} == {"BTC/USDT", "ETH/USDT"}
    assert made.market_data.most == 602
    opened = Part(open_tape(paths), made.market_data.most)
    assert sum(1 for _ in opened.ticks()) == opened.trades == 602
    assert told.seconds == pytest.approx(30, abs=0.1)
    # With a speed everything is played.
    whole = tell(paths, Decimal(2))
    assert whole.trades == 1_800
    assert config(whole).market_data.most == 0


def test_quotes_alone_make_an_instrument_that_nobody_follows(tmp_path: Path) -> None:
    quotes = tmp_path / "ETHUSDT-bookTicker-2025-03-02.csv"
    quotes.write_text(
        "".join(f"{i},2100.1,{i},2100.25,1,{1_740_873_600_000 + i},{1_740_873_600_000 + i}\n" for i in range(1, 100))
    )
    told = tell([quotes, recording(tmp_path, "BTCUSDT", "93000.01", "0.037")], None)
    assert (told.trades, told.quotes) == (600, 99)
    assert "and 99 quotes" in told.says[-1]
    ether = next(i for i in config(told).instruments if i.symbol == "ETH/USDT")
    assert (ether.tick, ether.step) == (Decimal("0.01"), Decimal(1))
    assert all(s.instruments == ("BTC/USDT",) for s in told.strategies)


@pytest.mark.parametrize("speed", ["0", "-1", "NaN", "Infinity", "0.001", "1000"])
def test_a_speed_at_which_the_story_cannot_be_told_is_refused(tmp_path: Path, speed: str) -> None:
    path = recording(tmp_path, "BTCUSDT", "93000.01", "0.037")
    for data in ([], [path]):
        with pytest.raises(ConfigError, match="SPEED"):
            tell(data, Decimal(speed))
    assert tell([path], Decimal("0.02")).seconds == pytest.approx(59.9 * 50)


def test_what_is_too_short_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"DEMO_SHORT: 59 trades of BTC/USDT: the demo needs 60"):
        tell([recording(tmp_path, "BTCUSDT", "93000.01", "0.037", 59)], None)


def test_numbers_that_no_order_can_have_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="more than 8 places"):
        tell([recording(tmp_path, "XRPETH", "0.000000001", "1")], None)


def test_tick_and_step_are_the_finest_that_occur(tmp_path: Path) -> None:
    path = tmp_path / "BTCUSDT-trades-2021-01-08.csv"
    path.write_text(
        "1,40000,1,40000,1610064000000,True,True\n2,40000.1,0.5,20000.05,1610064000001,False,True\n"
        "3,40000.12000000,0.10000000,4000.01200000,1610064000002,False,True\n"
    )
    (instrument,) = measure(open_tape([path]))
    assert (instrument.tick, instrument.step, instrument.trades) == (Decimal("0.01"), Decimal("0.1"), 3)


def test_a_mistake_is_seen_by_its_own_codes_alone() -> None:
    assert unseen_mistakes(["BREAKER_TRIPPED", "MESSAGE_RATE_EXCEEDED"]) == list(MISTAKES)
    assert unseen_mistakes(code for codes in MISTAKES.values() for code in codes) == []
    assert unseen_mistakes(["TICK_SIZE", "NOTIONAL_EXCEEDS_CAP"]) == [
        m for m in MISTAKES if m not in ("between ticks", "far too large")
    ]


def test_a_story_is_told_of_every_collected_market(shared_cases: Path) -> None:
    told = 0
    refused = set()
    for folder in sorted(shared_cases.glob("d*")):
        try:
            made = tell(find_dumps([folder]), None)
        except TallystickError as exc:
            refused.add(exc.code.partition("_")[0])
            continue
        config(made)
        told += 1
    assert refused == {"DUMP", "DEMO"}
    assert told > 8
