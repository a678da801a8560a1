"""`python -m benchmarks`: every module is there, and docs/performance.md shows the rows that it measures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import __main__ as bench
from benchmarks.report import Row, number, percentiles, table

TEXT = bench.DOCUMENT.read_text("utf-8")
MEASURED = TEXT.partition(bench.BEGIN)[2].partition(bench.END)[0]
FOLDER = Path(bench.__file__).parent
# Read here, not in a test: a library of Faust's starts a program when it is read.
BENCHMARKS = [bench.module(name) for name in bench.MODULES]


def shown() -> list[str]:
    """The first cell of every row of the measured table."""
    lines = [line for line in MEASURED.splitlines() if line.startswith("|")]
    return [re.split(r"(?<!\\)\|", line)[1].strip() for line in lines[2:]]


def test_every_benchmark_in_the_folder_is_run() -> None:
    assert {p.stem.removeprefix("bench_") for p in FOLDER.glob("bench_*.py")} == set(bench.MODULES)


def test_the_document_shows_every_row_that_is_measured_once() -> None:
    names = [what for each in BENCHMARKS for what in each.WHAT.values()]
    assert len(set(names)) == len(names)
    assert sorted(shown()) == sorted(names)


def test_the_document_says_when_and_where_it_was_measured() -> None:
    assert TEXT.count(bench.BEGIN) == TEXT.count(bench.END) == 1
    assert re.search(r"^\d{4}-\d\d-\d\d, \d+ cores, .+, Python 3\.\d+\.\d+\. Other work used \d+%", MEASURED.strip())


def test_rows_show_units_tail_peer_and_ratio() -> None:
    rows = [Row("a", 12_345.6, "events/s", "≥ 1", 5_000.0, "b"), Row("c", 1.234, "ms", tail=5.678)]
    assert table(rows).splitlines()[2:] == [
        "| a | 12,346 events/s | ≥ 1 | b: 5,000 events/s | 2.47 |",
        "| c | 1.23 ms, p99 5.68 ms |  |  |  |",
    ]
    assert number(0) == "0"
    assert percentiles([float(n) for n in range(100)]) == (50.0, 99.0)


def test_writing_replaces_what_stands_between_the_markers_and_nothing_else(tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    document.write_text(f"before\n{bench.BEGIN}\nold\n{bench.END}\nafter\n")
    bench.write("new", document)
    assert document.read_text() == f"before\n{bench.BEGIN}\n\nnew\n\n{bench.END}\nafter\n"


@pytest.mark.parametrize("text", ["no markers", f"{bench.BEGIN} without its end"])
def test_a_document_without_both_markers_is_left_alone(tmp_path: Path, text: str) -> None:
    document = tmp_path / "performance.md"
    document.write_text(text)
    with pytest.raises(bench.Missing, match="markers"):
        bench.write("new", document)
    assert document.read_text() == text


def test_a_missing_program_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name, path=None: None)
    with pytest.raises(bench.Missing, match="nats-server"):
        bench.require()


@pytest.mark.parametrize("arguments", [["nonsense"], ["--nonsense"], ["--write", "bus"]])
def test_what_cannot_be_measured_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(arguments) == 2
    assert capsys.readouterr().err
