"""Custody's record of what it refused: each attempt counts, none is hidden by others, and no flood fills the disk."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tallystick.components.custody.files import DayFiles
from tallystick.components.custody.journal import GENESIS
from tallystick.components.custody.refusals import _KEPT, MAX_RECORD, TOLD, Refusals
from tallystick.runtime.unix_socket import Peer
from tallystick.schemas.registry import MAX_SIZE
from tests.support.world import NOW

SECOND = 1_000_000_000
HOSTILE = Peer(66, 1066)


class Custody:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = NOW
        self.refusals = Refusals(folder, lambda: self.now)

    def order(self, code: str = "PERMIT_USED", **known: str) -> None:
        self.refusals.note(code, "text", HOSTILE, "order", **known)

    def rubbish(self, text: str = "not a frame") -> None:
        self.refusals.note("FRAME", text, HOSTILE, "frame")

    def records(self) -> list[dict[str, Any]]:
        lines = [raw for path in sorted(self.folder.glob("refused-*")) for raw in path.read_bytes().split(b"\n") if raw]
        return [{**json.loads(raw), "sha256": hashlib.sha256(raw).hexdigest()} for raw in lines]


@pytest.fixture
def custody(tmp_path: Path) -> Custody:
    return Custody(tmp_path)


def test_an_attempt_is_on_record_with_who_asked_for_what_and_people_are_told(custody: Custody) -> None:
    what = {"asker": "execution/00112233", "about": "order.decision.alpha.paper.XRP-ETH", "client_order_id": "ts00"}
    custody.order(decision_id="0190", **what)
    (record,) = custody.records()
    wanted = {"number": 1, "time": NOW, "code": "PERMIT_USED", "pid": 66, "uid": 1066, "op": "order", "prev": GENESIS}
    assert record.items() >= {**wanted, **what, "decision_id": "0190"}.items()
    (told,) = custody.refusals.report()
    assert told.code == "ORDER_REFUSED"
    assert told.evidence.hex() == record["sha256"] == custody.refusals.head
    assert (
        "PERMIT_USED=1; 1 of 1 on record, the newest is number 1, evidence is its SHA-256; first: PERMIT_USED: text "
        "(order about order.decision.alpha.paper.XRP-ETH decision 0190 order ts00; "
        "by execution/00112233, pid 66, uid 1066)"
    ) in told.text
    assert custody.refusals.report() == []


def test_each_record_names_the_one_before_also_across_a_restart_and_a_day(custody: Custody) -> None:
    for _ in range(3):
        custody.order()
        custody.rubbish()
        custody.now += 86_400 * SECOND
        custody.refusals.close()
        custody.refusals = Refusals(custody.folder, lambda: custody.now)
    records = custody.records()
    assert [r["number"] for r in records] == [1, 2, 3, 4, 5, 6]
    assert [r["prev"] for r in records] == [GENESIS, *(r["sha256"] for r in records[:-1])]
    assert custody.refusals.head == records[-1]["sha256"]


def test_what_was_torn_by_a_power_failure_is_passed_over(custody: Custody) -> None:
    custody.order()
    custody.order()
    (path,) = custody.folder.iterdir()
    path.write_bytes(path.read_bytes()[:-20])
    custody.refusals.close()
    again = Custody(custody.folder)
    assert again.refusals.number == 1
    again.order()
    assert [json.loads(raw)["number"] for raw in path.read_bytes().split(b"\n") if raw.endswith(b"}")] == [1, 2]


def test_a_flood_at_the_door_hides_no_attempt_at_an_order(custody: Custody) -> None:
    for number in range(20_000):
        custody.rubbish(f"rubbish {number}")
        if number % 5_000 == 4_999:
            custody.order(asker=f"execution/{number}")
    orders, other = custody.refusals.report()
    assert "PERMIT_USED=4; 4 of 4 on record" in orders.text
    for number in (4_999, 9_999, 14_999, 19_999):
        assert f"execution/{number}" in orders.text
    assert "FRAME=20000; 1024 of 20000 on record" in other.text
    assert "rubbish 0 " in other.text
    assert "rubbish 19999 " in other.text
    assert [r["asker"] for r in custody.records() if r["op"] == "order"] == [
        f"execution/{n}" for n in (4_999, 9_999, 14_999, 19_999)
    ]


def test_the_hash_that_is_told_speaks_for_attempts_that_were_not_kept_too(tmp_path: Path) -> None:
    heads = set()
    for text in ("one", "other"):
        custody = Custody(tmp_path / text)
        (tmp_path / text).mkdir()
        for number in range(_KEPT["other"].burst + 5):
            custody.rubbish(text if number == _KEPT["other"].burst + 2 else "same")
        heads.add(custody.refusals.head)
        assert len(custody.records()) == _KEPT["other"].burst
    assert len(heads) == 2


def test_a_day_of_flooding_takes_bounded_space_and_bounded_words(custody: Custody) -> None:
    told = {"ORDER_REFUSED": 0, "SIGNING_REFUSED": 0}
    seconds = 2_000
    for _ in range(seconds):
        custody.now += SECOND
        for _ in range(10):
            custody.order(
                about="\\" * 10_000, asker="\u0661" * 999, decision_id="\x00" * 999, client_order_id='"' * 999
            )
            custody.rubbish("\x00" * 10_000)
        for notice in custody.refusals.report():
            told[notice.code] += 1
            assert len(notice.text) + len(notice.evidence) < MAX_SIZE["guard"][1] - 4_096
    assert told["ORDER_REFUSED"] <= seconds
    assert told["SIGNING_REFUSED"] <= seconds / 5
    size = sum(path.stat().st_size for path in custody.folder.iterdir())
    bursts = sum(pace.burst for pace in _KEPT.values())
    lasting = sum(pace.per_second for pace in _KEPT.values()) * seconds
    assert size <= (bursts + lasting) * MAX_RECORD
    assert sum(pace.per_second for pace in _KEPT.values()) * 86_400 * MAX_RECORD < 1e9


def test_a_clock_that_is_put_back_gives_no_room_and_keeps_nobody_silent(custody: Custody) -> None:
    for _ in range(_KEPT["order"].burst):
        custody.order()
    custody.now -= 3_600 * SECOND
    custody.order()
    assert len(custody.records()) == _KEPT["order"].burst
    (told,) = custody.refusals.report()
    assert f"PERMIT_USED={_KEPT['order'].burst + 1}" in told.text


def test_a_full_disk_loses_the_record_and_not_the_word(custody: Custody, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DayFiles, "write", full)
    custody.order()
    (told,) = custody.refusals.report()
    assert "0 of 1 on record" in told.text
    assert "no record can be written: No space left on device" in told.text
    monkeypatch.undo()
    custody.order()
    assert [r["number"] for r in custody.records()] == [2]


def test_the_first_and_the_last_are_told_in_full(custody: Custody) -> None:
    for number in range(10):
        custody.order(asker=f"execution/{number}")
    (told,) = custody.refusals.report()
    said = [n for n in range(10) if f"execution/{n}," in told.text]
    assert said == [*range(TOLD), *range(10 - TOLD, 10)]
