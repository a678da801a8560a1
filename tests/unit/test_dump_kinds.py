"""Every kind of file that people really have: played, or refused in one clear line before anything starts."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest

from tallystick.components.market_data.dumps import DumpTrade, find_dumps, open_dump
from tallystick.components.market_data.player import Tape, open_tape
from tallystick.schemas.errors import TallystickError
from tallystick.schemas.subjects import subject, token_symbol

HEADER = "agg_trade_id,price,quantity,first_trade_id,last_trade_id,transact_time,is_buyer_maker,is_best_match"


def rows(count: int = 5, first: int = 900, price: str = "0.3512", unit: int = 1) -> list[str]:
    """Lines of aggTrades, a second apart; `unit` 1000 for microseconds."""
    start = (1_740_873_600_000 + first * 1000) * unit
    return [
        f"{first + i},{price},{44 + i},{2 * i},{2 * i},{start + i * 1000 * unit},{i % 2 == 0},True"
        for i in range(count)
    ]


def write(folder: Path, text: str | list[str] | bytes, name: str = "NKNUSDT-aggTrades-2021-10-12.csv") -> Path:
    path = folder / name
    if isinstance(text, list):
        text = "".join(line + "\n" for line in text)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def zipped(folder: Path, members: dict[str, bytes], name: str = "NKNUSDT-aggTrades-2021-10-12.zip") -> Path:
    with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return folder / name


def refusal(path: Path) -> str:
    with pytest.raises(TallystickError) as caught:
        open_dump(path)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    return text


PLAYED: dict[str, Callable[[list[str]], str | bytes]] = {
    "plain": lambda lines: "\n".join(lines) + "\n",
    "no last line break": "\n".join,
    "blank lines at the end": lambda lines: "\n".join(lines) + "\n\n\r\n",
    "concatenated with headers and blank lines": lambda lines: "\n".join(
        [HEADER, *lines[:2], "", HEADER, *lines[2:], ""]
    ),
    "of Windows": lambda lines: "\r\n".join([HEADER, *lines]) + "\r\n",
    "of a spreadsheet": lambda lines: (
        b"\xef\xbb\xbf" + "\r\n".join([HEADER, *lines]).replace("True", "TRUE").replace("False", "FALSE").encode()
    ),
    "with a byte-order mark and no header": lambda lines: b"\xef\xbb\xbf" + "\n".join(lines).encode(),
}


@pytest.mark.parametrize("kind", PLAYED)
def test_what_programs_do_to_a_file_changes_no_trade(tmp_path: Path, kind: str) -> None:
    lines = rows()
    wanted = list(open_dump(write(tmp_path, lines, "NKNUSDT-aggTrades-plain.csv")).ticks())
    assert list(open_dump(write(tmp_path, PLAYED[kind](lines))).ticks()) == wanted
    packed = PLAYED[kind](lines)
    data = packed if isinstance(packed, bytes) else packed.encode()
    assert list(open_dump(zipped(tmp_path, {"x.csv": data})).ticks()) == wanted


def test_a_bad_line_between_blank_ones_is_named_by_its_own_number(tmp_path: Path) -> None:
    lines = rows()
    assert "csv:7: price is 'x'" in refusal(
        write(tmp_path, [HEADER, lines[0], "", lines[1], HEADER, lines[2], lines[3].replace("0.3512", "x")])
    )
    assert "csv:5: id 900 goes back" in refusal(write(tmp_path, [HEADER, lines[2], "", "", lines[0]]))


def test_small_numbers_as_programs_write_them_are_read_exactly(tmp_path: Path) -> None:
    path = write(tmp_path, rows(3, price="4.42e-06"), "DNTBTC-aggTrades-2021-02-06.csv")
    tick = next(open_dump(path).ticks())
    assert isinstance(tick, DumpTrade)
    assert tick.price == Decimal("0.00000442")


def test_utf16_is_named(tmp_path: Path) -> None:
    assert "byte-order mark of UTF-16" in refusal(write(tmp_path, "\n".join(rows()).encode("utf-16")))


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("kind", ["aggTrades", "trades"])
def test_a_futures_dump_is_called_one(tmp_path: Path, kind: str, header: bool) -> None:
    lines = {
        "aggTrades": [HEADER.removesuffix(",is_best_match"), "1720000000,28499.9,0.111,34,34,1683000000000,true"],
        "trades": ["id,price,qty,base_qty,time,is_buyer_maker", "1,28499.9,0.111,5,1683000000000,true"],
    }[kind]
    text = refusal(write(tmp_path, lines if header else lines[1:], f"BTCUSDT-{kind}-2023-05-02.csv"))
    assert text.startswith("DUMP_FUTURES")
    assert "futures dump" in text


@pytest.mark.parametrize("symbol", ["BTCUSD_PERP", "BTCUSDT_240628"])
def test_a_future_is_refused_by_its_name_in_a_folder_too(tmp_path: Path, symbol: str) -> None:
    path = write(tmp_path, rows(), f"{symbol}-aggTrades-2023-10-27.csv")
    assert find_dumps([tmp_path]) == [path]
    assert "is a future; only spot is played" in refusal(path)


@pytest.mark.parametrize("kind", ["klines", "fundingRate", "bookDepth"])
def test_other_kinds_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    assert f"{kind} are not played, only aggTrades, trades, bookTicker" in refusal(
        write(tmp_path, ["1"], f"BTCUSDT-{kind}-2023-10-27.csv")
    )


@pytest.mark.parametrize(
    ("name", "symbol"),
    [
        ("1000SATSUSDT-aggTrades-2025-03-02.csv", "1000SATS/USDT"),
        ("币安人生USDT-aggTrades-2025-10-23.csv", "币安人生/USDT"),
        ("XRPETH-aggTrades-2019-10-11 (1).csv", "XRP/ETH"),
        ("SOLEUR-aggTrades-2025-03.csv", "SOL/EUR"),
        ("BTCJPY-aggTrades-2025-03.csv", "BTC/JPY"),
        ("BNBFDUSD-aggTrades-2025-03.csv", "BNB/FDUSD"),
        ("SHIBTRY-aggTrades-2025-03.csv", "SHIB/TRY"),
    ],
)
def test_names_are_read_and_their_symbols_fit_a_subject(tmp_path: Path, name: str, symbol: str) -> None:
    dump = open_dump(write(tmp_path, rows(), name))
    assert dump.symbol == symbol
    where = subject("md.trade", venue="paper", symbol=dump.symbol)
    assert where.text.isascii()
    assert token_symbol(where.text.split(".")[-1]) == symbol


def test_what_macos_packs_beside_the_dump_is_passed_over(tmp_path: Path) -> None:
    data = "\n".join(rows()).encode()
    clutter = {"__MACOSX/._NKNUSDT.csv": b"x", "._NKNUSDT.csv": b"x", ".DS_Store": b"x"}
    assert open_dump(zipped(tmp_path, {"NKNUSDT.csv": data, **clutter})).rows == 5
    assert "found 2: a.csv, b.csv" in refusal(zipped(tmp_path, {"a.csv": data, "b.csv": data}))


def test_a_dump_must_be_what_the_checksum_beside_it_says(tmp_path: Path) -> None:
    path = zipped(tmp_path, {"x.csv": "\n".join(rows()).encode()})
    beside = path.with_name(path.name + ".CHECKSUM")
    beside.write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n")
    assert open_dump(path).rows == 5
    assert find_dumps([tmp_path]) == find_dumps([path, beside]) == [path]
    with pytest.raises(TallystickError, match="is a checksum, no dump"):
        find_dumps([beside])
    beside.write_text(f"{hashlib.sha256(b'another').hexdigest()}  {path.name}\n")
    assert refusal(path).startswith("DUMP_CHECKSUM")
    beside.write_text("<html>")
    assert "does not begin with a SHA-256" in refusal(path)


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    write(tmp_path, rows(), os.fsdecode(b"XRPETH-aggTrades-\xff.csv"))
    with pytest.raises(TallystickError, match=r"XRPETH-aggTrades-\\udcff.csv': the name is no UTF-8") as caught:
        find_dumps([tmp_path])
    str(caught.value).encode()


def test_a_cut_download_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path, {"x.csv": "\n".join(rows(200)).encode()})
    path.write_bytes(path.read_bytes()[:-100])
    assert refusal(path).startswith("DUMP_ZIP")


def test_days_in_milliseconds_and_in_microseconds_are_one_tape(tmp_path: Path) -> None:
    first = write(tmp_path, rows(5, 100), "BTCUSDT-aggTrades-2024-12-31.csv")
    second = write(tmp_path, rows(5, 105, unit=1000), "BTCUSDT-aggTrades-2025-01-01.csv")
    tape = open_tape([second, first])
    offsets = [offset // 1_000_000_000 for offset, _, _ in tape.ticks()]
    assert offsets == list(range(10))


def test_repeated_aggregates_with_an_older_time_are_played_and_noted(tmp_path: Path) -> None:
    lines = rows(30)
    cells = lines[20].split(",")
    lines[20] = ",".join([cells[0], *lines[17].split(",")[1:]])
    dump = open_dump(write(tmp_path, lines))
    assert (dump.rows, dump.back, dump.back_ns) == (30, 1, 2_000_000_000)
    assert sum(1 for _ in dump.ticks()) == 30
    assert "steps back 1 times" in Tape([dump]).notes[0]


# Cases that were collected: the trades and symbols of each, or the code of its refusal.
PLAYS: dict[str, tuple[int, set[str]]] = {
    "d01-us2025": (400, {"BTC/USDT"}),
    "d02-ms-then-us": (100, {"BTC/USDT"}),
    "d07-agg-repeats": (60, {"BTC/USDT"}),
    "d08-us-back": (60, {"ETH/USDT"}),
    "d11-gap": (30, {"OXT/BTC"}),
    "d13-spreadsheet": (40, {"NKN/USDT"}),
    "d15-trailing-blank": (40, {"NKN/USDT"}),
    "d16-no-last-newline": (40, {"NKN/USDT"}),
    "d17-ethbtc": (3000, {"ETH/BTC"}),
    "d18-btcjpy": (3000, {"BTC/JPY"}),
    "d19-pepe": (3000, {"PEPE/USDT"}),
    "d20-soleur": (3000, {"SOL/EUR"}),
    "d21-1000": (120, {"1000SATS/USDT"}),
    "d22-han": (120, {"币安人生/USDT"}),
    "d25-copy": (120, {"XRP/ETH"}),
    "d27-macos": (120, {"XRP/ETH"}),
    "d30-scientific": (30, {"DNT/BTC"}),
    "d31-same-base": (1200, {"BTC/USDT", "BTC/EUR", "XRP/ETH"}),
    "d35-scales": (3, {"BTC/USDT"}),
    "d36-control": (3000, {"BTC/USDT"}),
}
REFUSED = {
    "d04-um-agg-header": "DUMP_FUTURES",
    "d05-um-agg-plain": "DUMP_FUTURES",
    "d09-interleaved": "DUMP_ORDER",
    "d12-empty": "DUMP_EMPTY",
    "d24-perp": "DUMP_FUTURES",
    "d28-checksum": "DUMP_CHECKSUM",
    "d29-cut": "DUMP_ZIP",
    "d32-overlap": "DUMP_OVERLAP",
}


@pytest.mark.parametrize("case", PLAYS)
def test_every_collected_dump_that_can_be_played_is_played_whole(shared_cases: Path, case: str) -> None:
    tape = open_tape(find_dumps([shared_cases / case]))
    assert (tape.trades, set(tape.symbols)) == PLAYS[case]
    gaps = [tick.gap for _, _, tick in tape.ticks() if isinstance(tick, DumpTrade)]
    assert len(gaps) == tape.trades
    if case == "d11-gap":
        assert [gap for gap in gaps if gap] == [2128]


@pytest.mark.parametrize("case", REFUSED)
def test_every_other_collected_dump_is_refused_in_a_line(shared_cases: Path, case: str) -> None:
    with pytest.raises(TallystickError, match=r"^" + REFUSED[case]) as caught:
        open_tape(find_dumps([shared_cases / case]))
    assert "\n" not in str(caught.value)


def test_no_collected_dump_is_left_out(shared_cases: Path) -> None:
    assert {path.name for path in shared_cases.glob("d*")} == {*PLAYS, *REFUSED}
