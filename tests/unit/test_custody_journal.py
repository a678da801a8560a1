"""Custody's journal: what survives, what is torn, what was changed."""

from __future__ import annotations

import json
import os
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tallystick.components.custody.caps import Spent
from tallystick.components.custody.journal import Journal
from tallystick.schemas.errors import ConfigError
from tallystick.schemas.trust import HOUR_NS
from tallystick.venues import Denied
from tests.support.world import NOW

DAY = 24 * HOUR_NS


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> int:
        return self.now


def spend(journal: Journal, clock: Clock, amount: str) -> None:
    counted = Spent(clock.now, "main", (("ETH", Decimal(amount)), ("XRP", Decimal(amount) * 1000)))
    journal.append("order", "paper", "XRP/ETH", client_order_id="id-of-order", spent=counted)


def spent(journal: Journal) -> list[Decimal]:
    """What counts of ETH, oldest first."""
    return [dict(s.counted)["ETH"] for s in journal.spent]


def test_what_was_spent_in_the_past_hour_is_there_after_a_restart_and_no_more(tmp_path: Path) -> None:
    clock = Clock()
    journal = Journal(tmp_path, clock)
    assert journal.spent == ()
    spend(journal, clock, "1.5")
    journal.append("cancel_all", "paper", "XRP/ETH")
    clock.now += HOUR_NS - 1
    spend(journal, clock, "2.5")
    assert spent(Journal(tmp_path, clock)) == [Decimal("1.5"), Decimal("2.5")]
    clock.now += 1
    assert spent(Journal(tmp_path, clock)) == [Decimal("2.5")]


def test_midnight_does_not_hide_what_was_spent_before_it(tmp_path: Path) -> None:
    clock = Clock()
    clock.now = NOW // DAY * DAY + DAY - 1
    journal = Journal(tmp_path, clock)
    spend(journal, clock, "1")
    clock.now += 2
    spend(journal, clock, "2")
    assert len(list(tmp_path.iterdir())) == 2
    again = Journal(tmp_path, clock)
    assert sum(spent(again)) == 3
    assert (again.number, again.head) == (journal.number, journal.head)


def test_the_chain_goes_on_across_restarts(tmp_path: Path) -> None:
    clock = Clock()
    for _ in range(3):
        journal = Journal(tmp_path, clock)
        journal.append("query", "paper", "XRP/ETH", client_order_id="id-of-order")
        journal.close()
    lines = [json.loads(x) for path in tmp_path.iterdir() for x in path.read_text().splitlines() if x]
    assert [x["number"] for x in lines] == [1, 2, 3]
    assert Journal(tmp_path, clock).number == 3
    assert all(oct(path.stat().st_mode & 0o777) == "0o600" for path in tmp_path.iterdir())


@settings(max_examples=60)
@given(cut=st.integers(1, 400), garbage=st.binary(max_size=20))
@example(cut=3, garbage=b'\x80"')  # text that is not UTF-8
def test_a_torn_end_is_skipped_and_the_next_line_stands_alone(
    tmp_path_factory: pytest.TempPathFactory, cut: int, garbage: bytes
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    clock = Clock()
    journal = Journal(folder, clock)
    for amount in ("1", "2", "3"):
        spend(journal, clock, amount)
    journal.close()
    (path,) = folder.iterdir()
    raw = path.read_bytes()
    path.write_bytes(raw[: max(0, len(raw) - cut)] + garbage.replace(b"\n", b""))
    again = Journal(folder, clock)
    kept = len(again.spent)
    spend(again, clock, "9")
    again.close()
    final = Journal(folder, clock)
    assert spent(final) == [*(Decimal(n) for n in range(1, kept + 1)), Decimal(9)]


@pytest.mark.parametrize("change", ["drop", "edit", "swap"])
def test_a_changed_journal_is_refused_and_says_where(tmp_path: Path, change: str) -> None:
    clock = Clock()
    journal = Journal(tmp_path, clock)
    for amount in ("1", "2", "3", "4"):
        spend(journal, clock, amount)
    (path,) = tmp_path.iterdir()
    lines = [x for x in path.read_bytes().split(b"\n") if x]
    if change == "drop":
        del lines[1]
    elif change == "edit":
        lines[1] = lines[1].replace(b'"2"', b'"0"')
    else:
        lines[1], lines[2] = lines[2], lines[1]
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(ConfigError, match=r"JOURNAL_CHAIN: .*line [23]"):
        Journal(tmp_path, clock)


def test_a_full_disk_is_a_refusal_and_the_journal_recovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    journal = Journal(tmp_path, clock)
    spend(journal, clock, "1")
    real = os.write

    def half(fd: int, data: bytes) -> int:
        return real(fd, data[: len(data) // 2])

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(Denied, match="JOURNAL"):
        spend(journal, clock, "2")
    monkeypatch.undo()
    spend(journal, clock, "3")
    assert spent(Journal(tmp_path, clock)) == [Decimal(1), Decimal(3)]


def test_a_folder_that_cannot_be_written_is_told_at_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="JOURNAL"):
        Journal(tmp_path / "file", Clock())
