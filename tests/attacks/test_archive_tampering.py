"""What somebody with root on the archive's disk can do to it, manifest rewritten and all: each is located."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from tallystick.record.manifest import MANIFEST, Entry, Segment
from tests.support.archive import Story, Vault, codes, found
from tests.support.world import key


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Vault:
    """An archive of several manifest lines and segments, with a sealed checkpoint."""
    vault = Vault(tmp_path_factory.mktemp("honest"))
    story = Story()
    story.streams.ticks(story.market, 6)
    story.market.heartbeat()
    vault.project(story.streams.stored, flush=8)
    vault.checkpoint(story.streams, story.audit)
    assert vault.verify().problems == []
    return vault


@pytest.fixture
def vault(honest: Vault, tmp_path: Path) -> Vault:
    return honest.copy(tmp_path / "deployment")


def with_messages(vault: Vault, stream: str, count: int = 2) -> Segment:
    return next(s for s in vault.segments(stream) if s.messages >= count)


def test_the_honest_archive_is_clean(vault: Vault) -> None:
    report = vault.verify()
    assert report.clean
    assert report.checkpoints == 1
    assert report.status["ok"] == report.messages


# ---------------------------------------------------------------- one byte


def test_a_flipped_byte_in_a_file_is_located_to_the_file(vault: Vault) -> None:
    segment = vault.segments("ORDERS")[0]
    path = vault.path / segment.file
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    report = vault.verify()
    assert found(report, "FILE_HASH").file == segment.file


@pytest.mark.parametrize("rehash", [False, True], ids=["as it is", "manifest rewritten"])
def test_a_changed_byte_in_a_payload_is_located_to_stream_and_sequence(vault: Vault, rehash: bool) -> None:
    segment = vault.segments("ORDERS")[0]
    table = vault.table(segment)
    payload = bytearray(table["payload"][0].as_py())
    payload[-5] ^= 1
    vault.rewrite(segment, "payload", 0, bytes(payload))
    if rehash:
        vault.rehash()
    report = vault.verify()
    problem = found(report, "SEAL")
    assert (problem.stream, problem.stream_seq, problem.file) == ("ORDERS", segment.first_seq, segment.file)
    assert ("FILE_HASH" in codes(report)) != rehash
    if rehash:
        assert "MANIFEST_REWRITTEN" in codes(report)  # audit's sealed checkpoint names another line


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("subject", "order.intent.beta.paper.XRP-ETH"),
        ("kind", "fill"),
        ("strategy", "beta"),
        ("venue", "other"),
        ("symbol", "BTC/USDT"),
        ("asset", "ETH"),
        ("component", "gateway"),
        ("boot", bytes(16)),
        ("chain_seq", 99),
        ("chain_index", 7),
        ("flags", 1),
        ("statement_time", 1),
        ("credential", bytes(32)),
        ("leaf", bytes(32)),
        ("event_id", bytes(16)),
        ("type", "fill/1"),
        ("ts", 1),
        ("causes", []),
        ("order_id", bytes(16)),
        ("status", "late"),
        ("code", "LATE"),
        ("data", "{}"),
        ("pos", 3),
    ],
)
def test_an_edited_column_is_located_to_its_row(vault: Vault, column: str, value: object) -> None:
    segment = vault.segments("ORDERS")[0]
    vault.rewrite(segment, column, 0, value)
    vault.rehash()
    report = vault.verify()
    located = [p for p in report.problems if p.stream == "ORDERS" and p.row == 0]
    assert located, [str(p) for p in report.problems]
    assert located[0].stream_seq == segment.first_seq
    assert located[0].file == segment.file


def test_an_edited_time_of_storage_shows_in_the_file_hash_and_the_checkpoint(vault: Vault) -> None:
    segment = vault.segments("ORDERS")[0]
    vault.rewrite(segment, "received", 0, segment.first_time + 1)
    assert found(vault.verify(), "FILE_HASH").file == segment.file
    vault.rehash()
    assert found(vault.verify(), "MANIFEST_REWRITTEN").stream == "SECURITY"


# ---------------------------------------------------------------- rows


def without(table: pa.Table, row: int) -> pa.Table:
    return pa.concat_tables([table.slice(0, row), table.slice(row + 1)])


def test_a_dropped_event_row_is_located(vault: Vault) -> None:
    segment = with_messages(vault, "MARKET", 1)
    vault.write(segment, without(vault.table(segment), 2))
    vault.rehash()
    problem = found(vault.verify(), "ROWS")
    assert (problem.stream, problem.stream_seq) == ("MARKET", segment.first_seq)


def test_a_doubled_event_row_is_located(vault: Vault) -> None:
    segment = with_messages(vault, "MARKET", 1)
    table = vault.table(segment)
    vault.write(segment, pa.concat_tables([table.slice(0, 3), table.slice(2)]))
    vault.rehash()
    problem = found(vault.verify(), "ROWS")
    assert (problem.stream, problem.stream_seq) == ("MARKET", segment.first_seq)


def test_swapped_event_rows_are_located(vault: Vault) -> None:
    segment = with_messages(vault, "MARKET", 1)
    table = vault.table(segment)
    vault.write(segment, table.take([0, 2, 1, *range(3, table.num_rows)]))
    vault.rehash()
    report = vault.verify()
    assert {p.row for p in report.problems if p.code == "ROW"} == {1, 2}


def test_a_row_without_its_payload_is_located(vault: Vault) -> None:
    segment = with_messages(vault, "ORDERS")
    vault.rewrite(segment, "payload", 1, None)
    vault.rehash()
    assert found(vault.verify(), "ROWS").file == segment.file


def drop_message(vault: Vault, stream: str, *, renumber: bool = False) -> int:
    """Take a whole message out of the middle of a stream; returns its sequence."""
    segment = next(s for s in vault.segments(stream) if s.messages >= 3)
    table = vault.table(segment)
    seqs = table["stream_seq"].to_pylist()
    victim = sorted(set(seqs))[1]
    kept = table.filter(pa.array([s != victim for s in seqs]))
    if renumber:
        moved = pa.array([s - 1 if s > victim else s for s in kept["stream_seq"].to_pylist()], pa.int64())
        kept = kept.set_column(1, kept.schema.field(1), moved)
    vault.write(segment, kept)
    vault.rehash()
    return int(victim)


def test_a_dropped_message_leaves_a_hole_in_sequence_log_and_chain(vault: Vault) -> None:
    victim = drop_message(vault, "ORDERS")
    report = vault.verify()
    problem = found(report, "SEQUENCE")
    assert (problem.stream, problem.stream_seq) == ("ORDERS", victim + 1)
    assert f"{victim} to {victim} are missing" in problem.text
    assert {"LOG_GAP", "HOLE"} <= codes(report) or "DROPPED" in codes(report)


def test_a_dropped_message_with_all_numbers_closed_up_still_breaks_its_chain(vault: Vault) -> None:
    """Root renumbers every sequence and log index after the hole: signatures and prev hashes do not move."""
    segment = with_messages(vault, "MARKET", 4)
    table = vault.table(segment)
    victim = segment.first_seq + 2
    seqs, logs = table["stream_seq"].to_pylist(), table["log_index"].to_pylist()
    gone = logs[seqs.index(victim)]
    vault.write(segment, table.filter(pa.array([s != victim for s in seqs])))
    for stream in ("SECURITY", "GUARD", "ORDERS", "SIGNALS", "MARKET"):
        for other in vault.segments(stream):
            t = vault.table(other)
            log = pa.array([i - 1 if i > gone else i for i in t["log_index"].to_pylist()], pa.int64())
            t = t.set_column(0, t.schema.field(0), log)
            if stream == "MARKET":
                seq = pa.array([s - 1 if s > victim else s for s in t["stream_seq"].to_pylist()], pa.int64())
                t = t.set_column(1, t.schema.field(1), seq)
            vault.write(other, t)
    vault.rehash()
    report = vault.verify()
    assert not codes(report) & {"SEQUENCE", "LOG_GAP", "FILE_HASH", "FILE_EXTENT"}
    problem = found(report, "HOLE")
    assert problem.stream == "MARKET"
    assert problem.stream_seq in {victim, victim + 1}
    assert "MANIFEST_REWRITTEN" in codes(report)


def test_two_swapped_messages_are_located(vault: Vault) -> None:
    segment = with_messages(vault, "ORDERS", 3)
    table = vault.table(segment)
    vault.write(segment, table.take([1, 0, *range(2, table.num_rows)]))
    vault.rehash()
    assert found(vault.verify(), "SEQUENCE").stream == "ORDERS"


def test_an_added_message_that_was_never_sealed_is_located(vault: Vault) -> None:
    segment = vault.segments("ORDERS")[-1]
    table = vault.table(segment)
    forged = table.slice(table.num_rows - 1, 1)
    forged = forged.set_column(1, forged.schema.field(1), pa.array([segment.last_seq + 1], pa.int64()))
    forged = forged.set_column(0, forged.schema.field(0), pa.array([vault.manifest.next_log], pa.int64()))
    vault.write(segment, pa.concat_tables([table, forged]))
    vault.rehash()
    problem = found(vault.verify(), "SEAL")  # a copy of a sealed message: recorded ok, it is a replay
    assert (problem.stream, problem.stream_seq) == ("ORDERS", segment.last_seq + 1)
    assert "REPLAY" in problem.text


def test_a_message_moved_to_another_subject_or_stream_is_located(vault: Vault) -> None:
    """Root replaces a message by a genuine one of another stream."""
    target, source = vault.segments("ORDERS")[0], vault.segments("SIGNALS")[0]
    vault.rewrite(target, "payload", 0, vault.table(source)["payload"][0].as_py())
    vault.rehash()
    problem = found(vault.verify(), "SEAL")
    assert (problem.stream, problem.stream_seq) == ("ORDERS", target.first_seq)
    assert "STATEMENT_STREAM" in problem.text


def test_a_message_called_refused_to_hide_it_is_located(vault: Vault) -> None:
    segment = vault.segments("ORDERS")[0]
    vault.rewrite(segment, "status", 0, "refused")
    vault.rewrite(segment, "code", 0, "SIGNATURE")
    vault.rehash()
    problem = found(vault.verify(), "STATUS")
    assert (problem.stream, problem.stream_seq) == ("ORDERS", segment.first_seq)


# ---------------------------------------------------------------- files


def test_a_dropped_file_is_located(vault: Vault) -> None:
    segment = vault.segments("MARKET")[1]
    (vault.path / segment.file).unlink()
    report = vault.verify()
    assert found(report, "FILE_MISSING").file == segment.file


def test_a_dropped_file_with_its_manifest_line_rewritten_is_located(vault: Vault) -> None:
    segment = vault.segments("MARKET")[1]
    (vault.path / segment.file).unlink()
    entries = [
        Entry(e.n, e.prev, tuple(s for s in e.segments if s.file != segment.file), e.replaces)
        for e in vault.manifest.entries
    ]
    vault.rehash(entries)
    report = vault.verify()
    problem = found(report, "SEQUENCE")
    assert (problem.stream, problem.stream_seq) == ("MARKET", segment.last_seq + 1)
    assert {"LOG_GAP", "MANIFEST_REWRITTEN"} <= codes(report)


def test_a_cut_end_is_shown_by_heads_that_components_stated(tmp_path: Path) -> None:
    """The last file goes with its manifest line, before any checkpoint: a heartbeat vouches for what was in it."""
    vault, story = Vault(tmp_path / "deployment"), Story()
    streams = story.streams
    vault.project(streams.stored)
    streams.ticks(story.market, 2)
    heads = story.market.heads()
    guard = len(streams.stored)
    story.market.heartbeat()
    # Archived in this order: the heartbeat's flush first, then the ticks' (as root would arrange it).
    streams.stored[guard - 4 :] = [streams.stored[guard], *streams.stored[guard - 4 : guard]]
    vault.project(streams.stored, flush=len(streams.stored) - 4)
    assert vault.verify().clean
    last = vault.manifest.entries[-1]
    assert {s.stream for s in last.segments} == {"MARKET"}
    for segment in last.segments:
        (vault.path / segment.file).unlink()
    vault.rehash(vault.manifest.entries[:-1])
    report = vault.verify()
    problem = found(report, "DROPPED")
    assert f"seq {next(h.seq for h in heads if h.stream == 'MARKET')}" in problem.text
    assert f"(at MARKET {last.segments[0].first_seq - 1}): it lies, or the rest was dropped" in problem.text


def test_a_cut_end_is_shown_by_the_checkpoint_that_audit_sealed(tmp_path: Path) -> None:
    vault, story = Vault(tmp_path / "deployment"), Story()
    vault.project(story.streams.stored, flush=8)
    vault.checkpoint(story.streams, story.audit)
    *kept, a, b, last = vault.manifest.entries
    for segment in (*a.segments, *b.segments):
        (vault.path / segment.file).unlink()
    vault.rehash([*kept, last])
    problem = found(vault.verify(), "MANIFEST_CUT")
    assert problem.stream == "SECURITY"
    assert "4 lines, 3 are there" in problem.text


def test_an_added_file_is_located(vault: Vault) -> None:
    segment = vault.segments("ORDERS")[0]
    extra = segment.file.replace(".parquet", "-copy.parquet")
    shutil.copy(vault.path / segment.file, vault.path / extra)
    assert found(vault.verify(), "EXTRA_FILE").file == extra


@pytest.mark.parametrize("rehash", [False, True], ids=["as it is", "manifest rewritten"])
def test_two_swapped_files_are_located(vault: Vault, rehash: bool) -> None:
    first, second = vault.segments("MARKET")[:2]
    a, b = vault.path / first.file, vault.path / second.file
    spare = vault.path / "spare"
    a.rename(spare)
    b.rename(a)
    spare.rename(b)
    if rehash:
        lines = vault.manifest.entries
        vault.rehash(lines)
    report = vault.verify()
    assert not report.clean
    assert {p.file for p in report.problems if p.file} & {first.file, second.file, MANIFEST}
    if not rehash:
        assert {p.file for p in report.problems if p.code == "FILE_HASH"} == {first.file, second.file}


def test_a_file_that_is_no_parquet_is_located(vault: Vault) -> None:
    segment = vault.segments("ORDERS")[0]
    path = vault.path / segment.file
    path.chmod(0o644)
    path.write_bytes(b"PAR1 nothing PAR1")
    assert found(vault.verify(), "FILE_LAYOUT").file == segment.file


def test_a_file_with_another_schema_is_located(vault: Vault) -> None:
    segment = vault.segments("ORDERS")[0]
    vault.write(segment, vault.table(segment).drop_columns(["leaf"]))
    assert found(vault.verify(), "FILE_SCHEMA").file == segment.file


# ---------------------------------------------------------------- manifest


def edit_manifest(vault: Vault, change: Callable[[list[bytes]], list[bytes]]) -> None:
    lines = (vault.path / MANIFEST).read_bytes().splitlines(keepends=True)
    (vault.path / MANIFEST).write_bytes(b"".join(change(lines)))


def test_an_edited_manifest_line_is_located(vault: Vault) -> None:
    edit_manifest(vault, lambda ls: [ls[0], ls[1].replace(b'"level":0', b'"level":1', 1), *ls[2:]])
    assert "line 2" in found(vault.verify(), "MANIFEST_LINE").text
    edit_manifest(vault, lambda ls: ls)


def test_an_edited_number_in_a_manifest_line_breaks_the_next_link(vault: Vault) -> None:
    size = str(vault.manifest.entries[1].segments[0].size).encode()
    edit_manifest(vault, lambda ls: [ls[0], ls[1].replace(b'"size":' + size, b'"size":1', 1), *ls[2:]])
    report = vault.verify()
    assert "line 3" in found(report, "MANIFEST_LINK").text
    assert found(report, "FILE_HASH").file == vault.manifest.entries[1].segments[0].file


def test_reordered_manifest_lines_are_located(vault: Vault) -> None:
    edit_manifest(vault, lambda ls: [ls[1], ls[0], *ls[2:]])
    report = vault.verify()
    assert "line 1" in found(report, "MANIFEST_NUMBER").text
    assert "line 1" in found(report, "MANIFEST_LINK").text


def test_a_removed_manifest_line_is_located(vault: Vault) -> None:
    edit_manifest(vault, lambda ls: [ls[0], *ls[2:]])
    report = vault.verify()
    assert "line 2" in found(report, "MANIFEST_LINK").text
    assert "LOG_GAP" in codes(report)


def test_a_line_that_replaces_what_it_does_not_hold_is_located(vault: Vault) -> None:
    entries = vault.manifest.entries
    victim = vault.segments("MARKET")[1].file
    last = entries[-1]
    vault.rehash([*entries[:-1], Entry(last.n, last.prev, last.segments, (victim,))])
    report = vault.verify()
    assert (
        "replaces" in found(report, "MANIFEST_REPLACES").text
        or "do not hold" in found(report, "MANIFEST_REPLACES").text
    )
    assert found(report, "SEQUENCE").stream == "MARKET"


def test_a_torn_manifest_line_is_no_tampering(vault: Vault) -> None:
    with (vault.path / MANIFEST).open("ab") as file:
        file.write(b'{"n":99,"prev":"')
    report = vault.verify()
    assert report.clean
    assert any("never finished" in note for note in report.notes)


# ---------------------------------------------------------------- trust


def test_another_operators_root_key_verifies_nothing(vault: Vault) -> None:
    vault.place.root.write_text(key("somebody else").public.hex())
    report = vault.verify()
    assert found(report, "NOTE_UNSIGNED").file == "trust/root-1.note"
    assert report.messages > 0  # sequences, files and manifest are held against each other all the same


def test_a_forged_trust_root_in_the_archive_is_refused(vault: Vault) -> None:
    note = vault.path / "trust" / "root-1.note"
    note.write_text(note.read_text().replace('"deployment": "test"', '"deployment": "evil"'))
    assert found(vault.verify(), "NOTE_SIGNATURE").file == "trust/root-1.note"
