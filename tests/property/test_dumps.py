from __future__ import annotations

import itertools
import re
import tempfile
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallystick.components.market_data.dumps import MAX_BACK_NS, DumpTrade, open_dump
from tallystick.schemas.errors import ConfigError, Malformed

amounts = st.builds(lambda n, places: Decimal(n).scaleb(-places), st.integers(1, 10**20 - 1), st.integers(0, 18))


@st.composite
def recordings(draw: st.DrawFn) -> tuple[list[DumpTrade], int]:
    scale = draw(st.sampled_from([1_000, 1_000_000]))
    time = draw(st.integers(10**12, 9 * 10**12)) * (1_000_000 // scale)
    trade_id = draw(st.integers(0, 10**17))
    trades: list[DumpTrade] = []
    for _ in range(draw(st.integers(1, 20))):
        gap = draw(st.integers(0, 3)) if trades else 0
        trade_id += gap
        merged = draw(st.integers(1, 5))
        trades.append(DumpTrade(trade_id, draw(amounts), draw(amounts), time * scale, draw(st.booleans()), merged, gap))
        trade_id += 1
        time += draw(st.integers(0, 10_000))
    return trades, scale


def text(trades: list[DumpTrade], scale: int) -> bytes:
    return "".join(
        f"{t.trade_id},{t.price:f},{t.qty:f},7,{6 + t.merged},{t.time_ns // scale},{t.buyer_is_maker},True\n"
        for t in trades
    ).encode()


def read(data: bytes) -> list[DumpTrade]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "XRPETH-aggTrades-x.csv"
        path.write_bytes(data)
        return [tick for tick in open_dump(path).ticks() if isinstance(tick, DumpTrade)]


@settings(max_examples=60, deadline=None)
@given(recordings())
def test_what_was_written_is_read_back_exactly(recording: tuple[list[DumpTrade], int]) -> None:
    trades, scale = recording
    assert read(text(trades, scale)) == trades


@settings(max_examples=100, deadline=None)
@given(recordings(), st.data())
def test_a_changed_byte_is_refused_or_gives_other_legal_trades(
    recording: tuple[list[DumpTrade], int], data: st.DataObject
) -> None:
    trades, scale = recording
    raw = bytearray(text(trades, scale))
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        got = read(bytes(raw))
    except Malformed:
        return
    assert all(t.price > 0 and t.qty > 0 and t.merged >= 1 for t in got)
    assert [t.trade_id for t in got] == sorted({t.trade_id for t in got})
    assert all(later.time_ns > earlier.time_ns - MAX_BACK_NS for earlier, later in itertools.pairwise(got))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_arbitrary_bytes_raise_only_the_documented_errors(raw: bytes) -> None:
    for name in ("XRPETH-aggTrades-x.csv", "XRPETH-trades-x.zip"):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.write_bytes(raw)
            with pytest.raises((Malformed, ConfigError), match=re.escape(name)):
                open_dump(path)
