"""Which market the configuration asks for."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tallystick.components.market_data.main import open_recording, shown
from tallystick.runtime.deployment.config import MarketDataConfig
from tallystick.runtime.deployment.folder import Deployment
from tallystick.schemas.errors import ConfigError, Malformed
from tallystick.schemas.trust import Instrument, TrustRoot


def instrument(symbol: str) -> Instrument:
    base, _, quote = symbol.partition("/")
    tick = Decimal("0.01")
    return Instrument(
        venue="paper", symbol=symbol, venue_symbol=base + quote, base=base, quote=quote, tick=tick, step=tick,
        min_notional=tick, market_price=Decimal(10),
    )  # fmt: skip


INSTRUMENTS = (instrument("BTC/USDT"), instrument("ETH/USDT"))


def deployment(folder: Path, **market: Any) -> Deployment:
    config = SimpleNamespace(market_data=MarketDataConfig(**market), venue=SimpleNamespace(name="paper"))
    return cast("Deployment", SimpleNamespace(config=config, directory=folder))


def dump(folder: Path, symbol: str) -> str:
    path = folder / f"{symbol}-trades-2021-01-01.csv"
    path.write_text("".join(f"{i},1.5,2,3,{1_600_000_000_000 + i},True,True\n" for i in range(10)))
    return path.name


def test_paths_are_of_the_folder_and_the_beginning_may_be_all_that_plays(tmp_path: Path) -> None:
    paths = (dump(tmp_path, "BTCUSDT"), dump(tmp_path, "ETHUSDT"))
    whole = open_recording(deployment(tmp_path, source="dump", paths=paths), INSTRUMENTS, 0)
    assert (whole.trades, set(whole.symbols)) == (20, {"BTC/USDT", "ETH/USDT"})
    some = open_recording(deployment(tmp_path, source="dump", paths=paths, most=7), INSTRUMENTS, 0)
    assert some.trades == len(list(some.ticks())) == 7
    assert list(some.ticks()) == list(whole.ticks())[:7]
    for wrong in ({"most": -1}, {"source": "synthetic", "paths": (), "most": 1}):
        with pytest.raises(Malformed, match="MARKET_DATA"):
            deployment(tmp_path, **{"source": "dump", "paths": paths} | wrong)


def test_a_dump_of_what_is_not_shown_is_refused(tmp_path: Path) -> None:
    asked = deployment(tmp_path, source="dump", paths=(dump(tmp_path, "ETHUSDT"),), symbols=("BTC/USDT",))
    trust = cast("TrustRoot", SimpleNamespace(instruments=INSTRUMENTS))
    assert shown(asked, trust) == INSTRUMENTS[:1]
    with pytest.raises(ConfigError, match=r"DUMP_SYMBOL.*ETH/USDT"):
        open_recording(asked, shown(asked, trust), 0)
    with pytest.raises(ConfigError, match="no instrument at paper to show"):
        shown(deployment(tmp_path, source="synthetic", symbols=("XRP/ETH",)), trust)


def test_a_synthetic_market_is_of_the_instruments_and_quotes(tmp_path: Path) -> None:
    made = open_recording(deployment(tmp_path, source="synthetic", count=100), INSTRUMENTS, 0)
    assert (made.trades, made.quotes, set(made.symbols)) == (100, 25, {"BTC/USDT", "ETH/USDT"})
