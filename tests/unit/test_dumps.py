from __future__ import annotations

import gzip
import json
import re
import tracemalloc
import zipfile
from decimal import Decimal
from pathlib import Path

import pytest

from tallystick.components.market_data import lines as lines_module
from tallystick.components.market_data.dumps import DumpTrade, find_dumps, open_dump, unified_symbol
from tallystick.schemas.errors import ConfigError, Malformed

AGG = [
    "100,0.00141342,23.00000000,500,501,1570752011620,True,True",
    "101,0.00141266,54.00000000,502,502,1570752011620,False,True",
    "103,0.00141266,8.00000000,504,504,1570752017964,true,false",
]
TRADES = [
    "553287559,39432.48000000,0.00026300,10.37074224,1610064000278,True,True",
    "553287560,39439.44000000,0.00437600,172.58698944,1610064000310,False,True",
]
AGG_HEADER = "agg_trade_id,price,quantity,first_trade_id,last_trade_id,transact_time,is_buyer_maker,is_best_match"


def agg(folder: Path, lines: list[str], name: str = "XRPETH-aggTrades-2019-10-11.csv", end: str = "\n") -> Path:
    path = folder / name
    path.write_text("".join(line + end for line in lines), newline="")
    return path


def zipped(folder: Path, members: dict[str, bytes], name: str = "XRPETH-aggTrades-2019-10-11.zip") -> Path:
    path = folder / name
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return path


def test_aggregated_trades_are_read_exactly_and_a_gap_is_counted(tmp_path: Path) -> None:
    dump = open_dump(agg(tmp_path, AGG))
    assert (dump.symbol, dump.venue_symbol, dump.kind, dump.rows, dump.missing) == (
        "XRP/ETH",
        "XRPETH",
        "aggTrades",
        3,
        1,
    )
    assert (dump.first_ns, dump.last_ns) == (1570752011620_000000, 1570752017964_000000)
    trades = [tick for tick in dump.ticks() if isinstance(tick, DumpTrade)]
    assert trades[0] == DumpTrade(100, Decimal("0.00141342"), Decimal(23), 1570752011620_000000, True, 2, 0)
    assert [t.buyer_is_maker for t in trades] == [True, False, True]
    assert [t.gap for t in trades] == [0, 0, 1]
    assert str(trades[0].qty) == "23.00000000"


def test_trades_are_read_with_their_seven_columns(tmp_path: Path) -> None:
    dump = open_dump(agg(tmp_path, TRADES, "BTCUSDT-trades-2021-01-08.csv"))
    assert (dump.symbol, dump.kind, dump.rows) == ("BTC/USDT", "trades", 2)
    assert next(dump.ticks()) == DumpTrade(
        553287559, Decimal("39432.48"), Decimal("0.000263"), 1610064000278_000000, True, 1, 0
    )


@pytest.mark.parametrize(
    "header",
    [
        AGG_HEADER,
        "Aggregate tradeId,Price,Quantity,First tradeId,Last tradeId,Timestamp,Was the buyer the maker,Was the trade the best price match",
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_header_and_windows_line_ends_change_nothing(tmp_path: Path, header: str, end: str) -> None:
    plain = list(open_dump(agg(tmp_path, AGG)).ticks())
    assert list(open_dump(agg(tmp_path, [header, *AGG], end=end)).ticks()) == plain


def test_the_last_line_needs_no_line_break(tmp_path: Path) -> None:
    path = tmp_path / "XRPETH-aggTrades-x.csv"
    path.write_text("\n".join(AGG))
    assert open_dump(path).rows == 3


def test_microseconds_and_milliseconds_are_told_apart_by_their_digits(tmp_path: Path) -> None:
    micro = [re.sub(r"(1570752\d{6})", r"\g<1>123", line) for line in AGG]
    assert open_dump(agg(tmp_path, micro)).first_ns == 1570752011620_123000


def test_a_zip_is_read_like_its_csv(tmp_path: Path) -> None:
    data = "\n".join(AGG).encode()
    assert list(open_dump(zipped(tmp_path, {"a.csv": data})).ticks()) == list(open_dump(agg(tmp_path, AGG)).ticks())


def test_the_declared_symbol_wins_over_the_known_quote_assets(tmp_path: Path) -> None:
    assert open_dump(agg(tmp_path, AGG), {"XRPETH": "XRPE/TH"}).symbol == "XRPE/TH"


def test_an_unknown_quote_asset_asks_for_the_instrument() -> None:
    with pytest.raises(ConfigError, match=r"ABCXYZ.*declare the instrument"):
        unified_symbol("ABCXYZ")


def bad(line: str, column: int, value: str) -> str:
    cells = line.split(",")
    cells[column] = value
    return ",".join(cells)


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        (bad(AGG[1], 1, "NaN"), "DUMP_LINE", r"csv:2: price is 'NaN', expected a decimal above zero"),
        (bad(AGG[1], 1, "Infinity"), "DUMP_LINE", r"csv:2: price"),
        (bad(AGG[1], 1, "-0.1"), "DUMP_LINE", r"csv:2: price is '-0.1'"),
        (bad(AGG[1], 1, "+0.1"), "DUMP_LINE", r"csv:2: price"),
        (bad(AGG[1], 1, ".5"), "DUMP_LINE", r"csv:2: price"),
        (bad(AGG[1], 1, "0.00000000"), "DUMP_LINE", r"csv:2: price"),
        (bad(AGG[1], 1, "1_0"), "DUMP_LINE", r"csv:2: price"),
        (bad(AGG[1], 1, "٣"), "DUMP_LINE", r"csv:2: price"),
        (bad(AGG[1], 1, "0.1234567890123456789"), "DUMP_LINE", r"csv:2: price"),
        (bad(AGG[1], 2, ""), "DUMP_LINE", r"csv:2: quantity is ''"),
        (bad(AGG[1], 2, " 5"), "DUMP_LINE", r"csv:2: quantity"),
        (bad(AGG[1], 0, "1.0"), "DUMP_LINE", r"csv:2: id is '1.0', expected a whole number"),
        (bad(AGG[1], 5, "1570752011"), "DUMP_LINE", r"csv:2: time is '1570752011', expected milliseconds"),
        (bad(AGG[1], 5, "15707520116201"), "DUMP_LINE", r"csv:2: time"),
        (bad(AGG[1], 5, "1570752011620000"), "DUMP_LINE", r"csv:2: time .* another unit"),
        (bad(AGG[1], 6, "1"), "DUMP_LINE", r"csv:2: buyer is maker"),
        (bad(AGG[1], 7, "yes"), "DUMP_LINE", r"csv:2: best match"),
        (bad(AGG[1], 3, "503"), "DUMP_LINE", r"csv:2: first id 503 is above last id 502"),
        (bad(AGG[1], 5, "1570748411619"), "DUMP_ORDER", r"csv:2: time 1570748411619 goes back; .* at most 3600 s"),
        (bad(AGG[1], 1, "1.23E+11"), "DUMP_LINE", r"csv:2: price is '1.23E\+11'"),
        (bad(AGG[1], 1, "1.2e-19"), "DUMP_LINE", r"csv:2: price is '1.2e-19'"),
        (bad(AGG[1], 1, "1.23456789e-12"), "DUMP_LINE", r"csv:2: price does not fit .*1.23456789E-12"),
        (bad(AGG[1], 1, "0.0e-3"), "DUMP_LINE", r"csv:2: price is '0.0e-3'"),
        (bad(AGG[1], 6, "TrUE"), "DUMP_LINE", r"csv:2: buyer is maker is 'TrUE', expected True or False"),
        (bad(AGG[1], 0, "100"), "DUMP_ORDER", r"csv:2: id 100 is repeated; expected more than 100"),
        (bad(AGG[1], 0, "99"), "DUMP_ORDER", r"csv:2: id 99 goes back; .* sort the lines by id"),
        (AGG[1] + ",True", "DUMP_COLUMNS", r"csv:2: 9 columns, expected 8 of aggTrades"),
        (AGG[1][: len(AGG[1]) // 2], "DUMP_COLUMNS", r"csv:2: \d columns, expected 8"),
        (TRADES[0], "DUMP_COLUMNS", r"csv:2: 7 columns, expected 8"),
        ("x" + AGG[1], "DUMP_LINE", r"csv:2: id is 'x101'"),
        ('"' + AGG[1] + '"', "DUMP_LINE", r"csv:2: id"),
    ],
)
def test_a_bad_line_is_refused_by_place_and_expectation(tmp_path: Path, line: str, code: str, says: str) -> None:
    path = agg(tmp_path, [AGG[0], line, AGG[2]])
    with pytest.raises(Malformed, match=says) as caught:
        open_dump(path)
    assert caught.value.code == code
    with pytest.raises(Malformed, match=says.replace("csv:2", "csv:3")):
        open_dump(agg(tmp_path, [AGG_HEADER, AGG[0], line, AGG[2]]))


def test_a_bad_line_far_behind_is_found_at_its_number(tmp_path: Path) -> None:
    lines = [f"{i},1.5,2,{i},{i},{1570752011620 + i},True,True" for i in range(20_000)]
    lines[17_321] = lines[17_321].replace("1.5", "nan")
    with pytest.raises(Malformed, match="csv:17322: price is 'nan'"):
        open_dump(agg(tmp_path, lines))
    lines[17_321] = lines[17_320]
    with pytest.raises(Malformed, match="csv:17322: id 17320 is repeated"):
        open_dump(agg(tmp_path, lines))


@pytest.mark.parametrize("lines", [[], [AGG_HEADER]])
def test_a_dump_without_trades_is_refused(tmp_path: Path, lines: list[str]) -> None:
    with pytest.raises(Malformed, match="nothing recorded"):
        open_dump(agg(tmp_path, lines))


def test_a_path_that_does_not_exist_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"XRPETH-aggTrades-1\.zip: cannot be opened"):
        open_dump(tmp_path / "XRPETH-aggTrades-1.zip")
    (tmp_path / "XRPETH-aggTrades-2.csv").mkdir()
    with pytest.raises(ConfigError, match="cannot be opened"):
        open_dump(tmp_path / "XRPETH-aggTrades-2.csv")


def test_a_name_that_does_not_say_what_it_is_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a dump is named like"):
        open_dump(agg(tmp_path, AGG, "mine.csv"))


@pytest.mark.parametrize("members", [{}, {"a.csv": b"", "b.csv": b""}, {"a.txt": b"x"}, {"folder/": b""}])
def test_a_zip_with_other_than_one_csv_is_refused(tmp_path: Path, members: dict[str, bytes]) -> None:
    with pytest.raises(Malformed, match=r"exactly one \.csv"):
        open_dump(zipped(tmp_path, members))


def test_a_zip_bomb_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = zipped(tmp_path, {"a.csv": b"1" * 20_000_000})
    with pytest.raises(Malformed, match=r"unpacks \d+ bytes to 20000000; limits: ratio 100"):
        open_dump(bomb)
    monkeypatch.setattr(lines_module, "MAX_UNPACKED", 100)
    with pytest.raises(Malformed, match="limits: ratio 100, 100 bytes"):
        open_dump(zipped(tmp_path, {"a.csv": "\n".join(AGG).encode()}))


def test_a_file_without_line_breaks_does_not_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "XRPETH-aggTrades-x.csv"
    path.write_bytes(b"1" * 8_000_000)
    tracemalloc.start()
    with pytest.raises(Malformed, match="longer than"):
        open_dump(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    def peak(rows: int) -> int:
        lines = [f"{i},1.5,2,{i},{i},{1570752011620 + i},True,True" for i in range(rows)]
        path = zipped(tmp_path, {"a.csv": "\n".join(lines).encode()})
        del lines
        tracemalloc.start()
        open_dump(path)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    assert peak(50_000) < 1.2 * peak(20_000) < 20_000_000


@pytest.mark.parametrize("kind", ["cut", "flipped", "text", "encrypted"])
def test_a_damaged_zip_is_refused(tmp_path: Path, kind: str) -> None:
    path = zipped(tmp_path, {"a.csv": "\n".join(AGG * 1).encode()})
    data = bytearray(path.read_bytes())
    if kind == "cut":
        data = data[: len(data) // 2]
    elif kind == "flipped":
        data[60] ^= 0x55
    elif kind == "text":
        data = bytearray(b"not a zip")
    else:
        data[6] |= 1
        data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(Malformed):
        open_dump(path)


def test_a_file_that_changes_after_the_check_stops_the_playing(tmp_path: Path) -> None:
    dump = open_dump(agg(tmp_path, AGG))
    agg(tmp_path, AGG[:2])
    with pytest.raises(Malformed, match="2 lines, but 3 when it was checked"):
        list(dump.ticks())


def test_a_folder_stands_for_its_dumps_and_for_nothing_else_in_it(tmp_path: Path) -> None:
    dump = agg(tmp_path, AGG)
    (tmp_path / "notes.zip").touch()
    other = tmp_path / "other"
    other.mkdir()
    assert find_dumps([tmp_path, tmp_path / "absent.zip"]) == [dump, tmp_path / "absent.zip"]
    with pytest.raises(ConfigError, match="DUMP_NONE"):
        find_dumps([other])


@pytest.mark.parametrize(
    ("name", "rows"), [("XRPETH-aggTrades-2019-10-11.zip", 12_477), ("BTCUSDT-trades-2021-01-08.zip", 2_001)]
)
def test_the_real_recordings_read_whole_and_without_a_gap(shared_data: Path, name: str, rows: int) -> None:
    dump = open_dump(shared_data / name)
    assert (dump.rows, dump.missing) == (rows, 0)
    assert sum(1 for _ in dump.ticks()) == rows


def test_every_symbol_of_binance_splits_as_binance_says(shared_data: Path) -> None:
    with gzip.open(shared_data / "binance-exchangeInfo-2021-10-12.json.gz") as file:
        symbols = json.load(file)["symbols"]
    wrong = [s["symbol"] for s in symbols if unified_symbol(s["symbol"]) != f"{s['baseAsset']}/{s['quoteAsset']}"]
    assert len(symbols) > 1000
    assert not wrong
