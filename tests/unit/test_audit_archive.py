"""The archive's writer: durable or nothing, one log without holes, small files merged, crashes recovered."""

from __future__ import annotations

import os
from pathlib import Path

import duckdb
import msgspec
import pyarrow.parquet as pq
import pytest

from tallystick.record.archive import FAN_IN, Archive, plan_compaction
from tallystick.record.chains import Log
from tallystick.record.files import ArchiveError
from tallystick.record.manifest import (
    MANIFEST,
    Manifest,
    Segment,
    decode_entry,
    encode_entry,
    read_manifest,
    segment_name,
)
from tallystick.record.verify import Verification
from tallystick.schemas.errors import Malformed
from tests.support.archive import Story, Vault
from tests.support.world import NOW

ROOT = Path(__file__).resolve().parents[2]
DAY = 86_400_000_000_000


@pytest.fixture(scope="module")
def story() -> Story:
    story = Story()
    story.streams.ticks(story.market, 20)
    return story


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path / "deployment")


def test_segments_are_read_only_parquet_with_bloom_filters_below_stream_and_day(vault: Vault, story: Story) -> None:
    vault.project(story.streams.stored)
    for segment in vault.manifest.live.values():
        path = vault.path / segment.file
        assert path.stat().st_mode & 0o777 == 0o444
        assert segment.file.startswith(f"stream={segment.stream}/day=2024-11-22/")
        assert pq.ParquetFile(path).metadata.num_rows == segment.rows
        with duckdb.connect() as connection:
            filters = connection.execute(
                "SELECT path_in_schema FROM parquet_metadata($1) WHERE bloom_filter_length > 0", [str(path)]
            ).fetchall()
        assert ("event_id",) in filters


def test_goes_on_exactly_where_it_stopped_and_judges_the_same(tmp_path: Path, story: Story) -> None:
    whole, parts = Vault(tmp_path / "whole"), Vault(tmp_path / "parts")
    messages = story.streams.stored
    at_once = whole.project(messages, flush=7)
    piece_by_piece = [j for end in range(5, len(messages) + 5, 5) for j in parts.project(messages[:end], flush=7)]
    assert piece_by_piece == at_once
    assert whole.verify().messages == parts.verify().messages == len(messages)
    assert parts.verify().clean


def test_the_saved_state_gives_the_same_log_as_reading_everything_again(vault: Vault, story: Story) -> None:
    messages = story.streams.stored
    half = len(messages) // 2
    vault.project(messages[:half])
    projector = vault.open()
    projector.archive.save_state(projector.dump())
    projector.archive.close()
    vault.project(messages[half:])
    quick = vault.open()
    quick.archive.close()
    (vault.path / "state").unlink()
    slow = vault.open()
    slow.archive.close()
    assert quick.dump() == slow.dump()


@pytest.mark.parametrize(
    "state", [b"\xff", msgspec.msgpack.encode([b"", {}]), Log().dump()], ids=["no", "empty", "old"]
)
def test_a_state_that_is_none_is_made_again_from_the_rows(vault: Vault, story: Story, state: bytes) -> None:
    vault.project(story.streams.stored)
    slow = vault.open()
    slow.archive.save_state(state)
    slow.archive.close()
    again = vault.open()
    again.archive.close()
    assert again.dump() == slow.dump()


def test_a_state_of_another_archive_is_not_used(vault: Vault, story: Story, tmp_path: Path) -> None:
    vault.project(story.streams.stored)
    other = Vault(tmp_path / "other")
    other.project(story.streams.stored, flush=3)
    projector = other.open()
    projector.archive.save_state(projector.dump())
    projector.archive.close()
    (vault.path / "state").write_bytes((other.path / "state").read_bytes())
    archive = Archive(vault.path)
    assert archive.load_state() is None
    (vault.path / "state").write_bytes(b"\xff not a state")
    assert archive.load_state() is None
    archive.close()


def test_a_dump_of_the_log_that_is_not_one_is_refused() -> None:
    with pytest.raises(Malformed):
        Log.load(b"\x01\x02")


def test_one_process_writes(vault: Vault) -> None:
    archive = Archive(vault.path)
    with pytest.raises(ArchiveError, match="ARCHIVE_LOCKED"):
        Archive(vault.path)
    archive.close()


def test_days_are_days_of_storage_and_never_share_a_file(vault: Vault, story: Story) -> None:
    early = story.streams.stored[:20]
    late = [m._replace(stored=m.stored + DAY) for m in story.streams.stored[20:]]
    vault.project([*early, *late], flush=1000)
    days = {s.file.split("/")[1] for s in vault.manifest.live.values()}
    assert days == {"day=2024-11-22", "day=2024-11-23"}
    assert len(vault.manifest.entries) == 1
    assert vault.verify().clean


# ---------------------------------------------------------------- crashes


def test_a_torn_manifest_line_is_cut_and_its_flush_read_again(vault: Vault, story: Story) -> None:
    messages = story.streams.stored
    vault.project(messages[:20], flush=20)
    vault.project(messages, flush=1000)
    path = vault.path / MANIFEST
    data = path.read_bytes()
    path.write_bytes(data[:-40])
    archive = Archive(vault.path)
    assert archive.recovered.torn_line > 0
    assert len(archive.recovered.orphans) == len({m.stream for m in messages[20:]})
    archive.close()
    vault.project(messages, flush=1000)
    assert path.read_bytes() == data
    assert vault.verify().clean


def test_files_between_rename_and_manifest_line_are_no_tampering_and_go_at_the_next_start(
    vault: Vault, story: Story
) -> None:
    messages = story.streams.stored
    vault.project(messages[:20], flush=20)
    before = (vault.path / MANIFEST).read_bytes()
    vault.project(messages, flush=1000)
    (vault.path / MANIFEST).write_bytes(before)
    (vault.path / "stream=ORDERS-0.tmp").write_bytes(b"half a segment")
    report = vault.verify()
    assert report.clean
    assert report.notes
    archive = Archive(vault.path)
    assert archive.recovered.temporary == ("stream=ORDERS-0.tmp",)
    assert archive.recovered.orphans
    archive.close()
    vault.project(messages)
    assert vault.verify().messages == len(messages)
    assert vault.verify().notes == []


def test_a_stranger_is_left_alone_by_the_writer_and_reported_by_verify(vault: Vault, story: Story) -> None:
    vault.project(story.streams.stored)
    stranger = vault.path / Path(vault.segments("ORDERS")[0].file).parent / "evidence.parquet"
    stranger.write_bytes(b"who put this here?")
    Archive(vault.path).close()
    assert stranger.exists()
    assert [p.code for p in vault.verify().problems] == ["EXTRA_FILE"]


def test_a_missing_or_cut_segment_stops_the_writer(vault: Vault, story: Story) -> None:
    vault.project(story.streams.stored)
    path = vault.path / vault.segments("ORDERS")[0].file
    data = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(data[:-1])
    with pytest.raises(ArchiveError, match="SEGMENT_SIZE"):
        Archive(vault.path)
    path.unlink()
    with pytest.raises(ArchiveError, match="FILE_MISSING"):
        Archive(vault.path)


def test_a_damaged_manifest_stops_the_writer(vault: Vault, story: Story) -> None:
    vault.project(story.streams.stored)
    path = vault.path / MANIFEST
    path.write_bytes(path.read_bytes().replace(b'"level":0', b'"level":9', 1))
    with pytest.raises(ArchiveError, match="line 1"):
        Archive(vault.path)


def test_a_full_disk_leaves_nothing_half_written(vault: Vault, story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    messages = story.streams.stored
    vault.project(messages[:20])
    before = (vault.path / MANIFEST).read_bytes()
    projector = vault.open()
    for message in messages[20:]:
        projector.take(message, projector.open(message))
    monkeypatch.setattr(os, "write", lambda fd, data: len(data) // 2)
    with pytest.raises(ArchiveError, match="MANIFEST_WRITE"):
        projector.flush()
    monkeypatch.undo()
    projector.archive.close()
    assert (vault.path / MANIFEST).read_bytes() == before
    vault.project(messages)
    assert vault.verify().messages == len(messages)


# ---------------------------------------------------------------- compaction


def test_many_small_files_become_few_with_the_same_rows(vault: Vault, story: Story) -> None:
    vault.project(story.streams.stored, flush=1)
    before = vault.verify()
    archive = Archive(vault.path)
    count = len(archive.manifest.segments("MARKET"))
    rows = archive.manifest.rows
    merged = 0
    while archive.compact("MARKET", NOW) is not None:
        merged += 1
    assert merged == count // FAN_IN
    assert len(archive.manifest.segments("MARKET")) == count - merged * (FAN_IN - 1)
    assert archive.manifest.rows == rows
    replaced = archive.manifest.replaced
    assert all((vault.path / name).exists() for name in replaced)  # readers of the old manifest go on
    assert vault.verify().clean
    assert archive.sweep(NOW) == 0
    assert archive.sweep(NOW + DAY) == len(replaced)
    archive.close()
    after = vault.verify()
    assert after.problems == []
    assert (after.messages, after.events, after.rows) == (before.messages, before.events, before.rows)


def test_replaced_files_that_a_crash_left_behind_go_at_the_next_start(vault: Vault, story: Story) -> None:
    vault.project(story.streams.stored, flush=1)
    archive = Archive(vault.path)
    archive.compact("MARKET", NOW)
    replaced = set(archive.manifest.replaced)
    archive.close()
    archive = Archive(vault.path)
    assert set(archive.recovered.orphans) == replaced
    archive.close()
    assert vault.verify().clean


def test_a_verification_that_began_before_a_compaction_goes_on_in_the_merged_file(vault: Vault, story: Story) -> None:
    vault.project(story.streams.stored, flush=1)
    messages = len(story.streams.stored)
    running = Verification(vault.place)
    archive = Archive(vault.path)
    while archive.compact("MARKET", 0) is not None:
        pass
    archive.sweep(1 << 62)
    archive.close()
    report = running.run()
    assert report.problems == []
    assert report.messages == messages


def segment(first: int, level: int = 0, rows: int = 10, day: int = 0) -> Segment:
    first, last, time = first + 1, first + 10, NOW + day * DAY
    return Segment(
        file=segment_name("ORDERS", time, first, last, level),
        sha256="",
        size=1,
        stream="ORDERS",
        level=level,
        rows=rows,
        messages=10,
        first_seq=first,
        last_seq=last,
        first_log=first,
        last_log=last,
        first_time=time,
        last_time=time,
    )


def test_neighbours_of_one_day_and_level_are_merged_and_nothing_else() -> None:
    run = [segment(i * 10) for i in range(FAN_IN)]
    assert plan_compaction(run) == run
    assert plan_compaction(run[:-1]) == []
    assert plan_compaction([segment(1000, level=1), *run]) == run
    mixed = [segment(i * 10, level=i % 2) for i in range(FAN_IN)]
    assert plan_compaction(mixed) == []


def test_a_day_that_is_over_is_merged_whatever_its_levels() -> None:
    over = [segment(i * 10, level=i % 3) for i in range(5)]
    assert plan_compaction(over) == []
    assert plan_compaction([*over, segment(50, day=1)]) == over
    assert plan_compaction([over[0], segment(50, day=1)]) == []
    large = [segment(i * 10, rows=200_000) for i in range(5)]
    assert plan_compaction([*large, segment(50, day=1)]) == large[:2]
    assert plan_compaction([segment(0, rows=400_000), *large[2:], segment(50, day=1)]) == large[2:4]


def test_large_neighbours_stay() -> None:
    large = [segment(i * 10, rows=100_000) for i in range(FAN_IN)]
    assert plan_compaction(large) == []


def test_a_manifest_line_is_canonical(vault: Vault, story: Story) -> None:
    vault.project(story.streams.stored)
    for line in (vault.path / MANIFEST).read_bytes().splitlines():
        assert encode_entry(decode_entry(line)) == line
        for wrong in (line + b" ", line.replace(b":", b": ", 1), line[:-1], b"[" + line + b"]", line.upper()):
            with pytest.raises(Malformed):
                decode_entry(wrong)


def test_an_empty_archive_and_a_missing_one(tmp_path: Path) -> None:
    assert read_manifest(tmp_path).rows == 0
    with pytest.raises(ArchiveError, match="ARCHIVE_MISSING"):
        read_manifest(tmp_path / "nowhere")
    assert Manifest(b"").next_log == 0
