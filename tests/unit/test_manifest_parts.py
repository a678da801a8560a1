"""The manifest's parts: bounded, linked, and what the last one says is what all lines come to."""

from __future__ import annotations

from pathlib import Path

import pytest

from tallystick.components.audit.projector import Projector
from tallystick.record import archive as archiving
from tallystick.record.archive import Archive
from tallystick.record.manifest import MANIFEST, Carry, encode_entry, parts, read_history, read_manifest
from tallystick.record.place import load_verifiers
from tests.support.archive import Story, Vault, codes, found


@pytest.fixture(scope="module")
def story() -> Story:
    story = Story()
    story.streams.ticks(story.market, 25)
    return story


@pytest.fixture
def vault(story: Story, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Vault:
    """An archive whose manifest has several parts, compacted on the way."""
    monkeypatch.setattr(archiving, "PART_BYTES", 6_000)
    monkeypatch.setattr(archiving, "PART_FACTOR", 1)
    vault = Vault(tmp_path / "deployment")
    projector = Projector(Archive(vault.path), load_verifiers(vault.place))
    for message in story.streams.stored:
        projector.take(message, projector.open(message))
        projector.flush()
        projector.archive.compact("MARKET", 0)
    projector.archive.close()
    assert len(parts(vault.path, 1 << 40)) > 2
    return vault


def test_the_last_part_alone_says_what_all_lines_come_to(vault: Vault, story: Story) -> None:
    last, whole = read_manifest(vault.path), read_history(vault.path)
    assert last.first > 1
    assert whole.first == 1
    assert whole.defects == last.defects == []
    assert last.live == whole.live
    assert (last.count, last.head, last.next_log) == (whole.count, whole.head, whole.next_log)
    assert all(last.resume(s) == whole.resume(s) for s in ("MARKET", "ORDERS", "GUARD"))
    report = vault.verify()
    assert report.problems == []
    assert report.messages == len(story.streams.stored)
    assert report.entries == whole.count


def test_no_part_is_longer_than_it_may_be(vault: Vault) -> None:
    for name in parts(vault.path, 1 << 40):
        data = (vault.path / name).read_bytes()
        assert len(data) < 6_000 + 2 * len(data.split(b"\n", 1)[0]) + 1_000


def test_the_writer_goes_on_after_a_crash_at_every_point_of_a_new_part(vault: Vault, story: Story) -> None:
    """Killed after the last part got its second name: it loses that, and the next flush begins the part."""
    count, first = read_manifest(vault.path).count, read_manifest(vault.path).first
    (vault.path / f"manifest/{first:012d}.jsonl").hardlink_to(vault.path / MANIFEST)
    assert vault.verify().problems == []
    archive = Archive(vault.path)
    assert archive.manifest.count == count
    assert parts(vault.path, 1 << 40) == parts(vault.path, first)
    archive.close()
    again = vault.open()
    assert again.positions == {s: read_manifest(vault.path).resume(s) for s in again.positions}
    again.archive.close()


def test_a_saved_state_of_a_part_before_is_used(vault: Vault) -> None:
    projector = vault.open()
    projector.archive.save_state(projector.dump())
    projector.archive._begin_part(vault.path / MANIFEST)
    assert projector.archive.load_state() == projector.dump()
    projector.archive.close()
    assert vault.verify().problems == []


def test_a_part_that_is_missing_is_located(vault: Vault) -> None:
    first, second, *_ = parts(vault.path, 1 << 40)
    data = (vault.path / second).read_bytes()
    (vault.path / second).unlink()
    assert found(vault.verify(), "MANIFEST_NUMBER").file == MANIFEST
    (vault.path / second).write_bytes(data)
    (vault.path / first).unlink()
    assert "the parts before it are missing" in found(vault.verify(), "MANIFEST_CUT").text


def test_a_part_that_is_edited_is_located(vault: Vault) -> None:
    first = vault.path / parts(vault.path, 1 << 40)[0]
    first.write_bytes(first.read_bytes().replace(b'"rows":5', b'"rows":6', 1))
    report = vault.verify()
    assert found(report, "MANIFEST_LINK").file == MANIFEST


def test_a_part_that_is_no_file_is_located(vault: Vault) -> None:
    first = vault.path / parts(vault.path, 1 << 40)[0]
    first.rename(vault.deployment / "kept")
    first.symlink_to(vault.deployment / "kept")
    report = vault.verify()
    assert found(report, "FILE_KIND").file == first.relative_to(vault.path).as_posix()


def test_a_carry_that_leaves_out_a_file_is_located(vault: Vault) -> None:
    """The last part, with its links made to fit: nobody but who reads all of them could tell."""
    last = read_manifest(vault.path)
    live = last.carried()
    before = read_history(vault.path)
    carry = Carry(before.count + 1, before.head, live[:-1], ())
    (vault.path / MANIFEST).rename(vault.path / f"manifest/{last.first:012d}.jsonl")
    (vault.path / MANIFEST).write_bytes(encode_entry(carry) + b"\n")
    report = vault.verify()
    assert "MANIFEST_CARRY" in codes(report)
    assert f"manifest line {before.count + 1}" in found(report, "MANIFEST_CARRY").text
