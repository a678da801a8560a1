"""The demo on markets that are not in dollars, not in Latin, not at ordinary prices: played whole, and traded."""

from __future__ import annotations

import os
import random
import subprocess
from decimal import Decimal
from pathlib import Path

import pytest

from tests.support.command import COMMAND

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

MARKETS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "finer than eight places": (("ETHBTC", "0.061233", "0.0481"),),
    "above a million": (("BTCJPY", "14100249", "0.00481"),),
    "by the hundred million": (("PEPEUSDT", "0.00000711", "77500000"),),
    "of any script, with others": (("币安人生USDT", "0.02124", "629"), ("BTCUSDT", "93000.01", "0.037"), ("BTCEUR", "89000.01", "0.037")),
}  # fmt: skip


def record(folder: Path, symbol: str, price: str, qty: str, quoted: bool) -> None:
    """600 trades of a price that wanders by ticks, a second apart, and the quote after each."""
    chance = random.Random(symbol)
    now, tick, size = Decimal(price), Decimal(1).scaleb(Decimal(price).as_tuple().exponent), Decimal(qty)  # type: ignore[arg-type]
    trades, quotes = [], []
    for i in range(600):
        now += tick * chance.randrange(-9, 10)
        when, maker = 1_740_873_600_000 + 1_000 * i, chance.random() < 0.5
        trades.append(f"{i},{now},{size * chance.randrange(1, 9)},1,{when},{maker},True\n")
        quotes.append(f"{i},{now - tick},{size},{now + tick},{size},{when},{when}\n")
    (folder / f"{symbol}-trades-2025-03-02.csv").write_text("".join(trades))
    if quoted:
        (folder / f"{symbol}-bookTicker-2025-03-02.csv").write_text("".join(quotes))


@pytest.mark.parametrize("kind", MARKETS)
def test_every_promise_holds_on_a_market(whole: None, tmp_path: Path, kind: str) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for number, (symbol, price, qty) in enumerate(MARKETS[kind]):
        record(data, symbol, price, qty, quoted=number == 0)
    done = subprocess.run(
        [*COMMAND, "demo", "--dir", str(tmp_path / "demo"), "--data", str(data)],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert f"{600 * len(MARKETS[kind]):,} trades of {600 * len(MARKETS[kind]):,}, 600 quotes of 600" in done.stdout
