"""Everything that somebody who writes to the archive's disk can do without a key, each applied to one real archive.

Each must give exit code 1, name its place, and let the rest be checked; none may hang, raise, or take much memory.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tallystick.record.archive import segment_options
from tallystick.record.manifest import MANIFEST, Entry, Segment, segment_files
from tallystick.record.rows import SCHEMA
from tallystick.schemas.trust import ROOT_KEY_NAME, sign_document
from tests.support.archive import Vault
from tests.support.desk import (
    Desk,
    append_line,
    column,
    compact_all,
    compacted,
    describe,
    run,
    write_segment,
)
from tests.support.world import key, trust_root

HOUR = 3_600_000_000_000


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    return Desk(tmp_path_factory.mktemp("desk") / "deployment")


@pytest.fixture
def vault(desk: Desk, tmp_path: Path) -> Vault:
    return desk.vault.copy(tmp_path / "deployment")


def last(vault: Vault, stream: str) -> Segment:
    return vault.segments(stream)[-1]


# ---------------------------------------------------------------- rows that nothing covers


def _forged(vault: Vault, stream: str = "ORDERS", **columns: int) -> pa.Table:
    """A genuine last row of a stream as if it were stored after it."""
    segment = last(vault, stream)
    table = vault.table(segment)
    starts = [i for i, p in enumerate(table["payload"].to_pylist()) if p is not None]
    table = table.slice(starts[-1])
    places = {"log_index": vault.manifest.next_log, "stream_seq": segment.last_seq + 1, **columns}
    for name, value in places.items():
        table = column(table, name, [value] * table.num_rows)
    return table


def far_log_index(vault: Vault) -> str:
    segment = write_segment(vault, "ORDERS", _forged(vault, log_index=10**9))
    append_line(vault, Entry(0, "", (segment,)))
    return segment.file


def backward_log(vault: Vault) -> str:
    segment = write_segment(vault, "ORDERS", _forged(vault))
    line = b'{"n":%d,"prev":"%s","replaces":[],"segments":[%s]}\n'
    import msgspec

    told = msgspec.json.encode(segment, order="sorted").replace(
        b'"first_log":%d' % segment.first_log, b'"first_log":%d' % (segment.first_log + 5)
    )
    manifest = vault.manifest
    with (vault.path / MANIFEST).open("ab") as file:
        file.write(line % (manifest.count + 1, manifest.head.encode(), told))
    return f"manifest line {manifest.count + 1}"


def inside_another(vault: Vault) -> str:
    compact_all(vault)
    held = max(vault.segments("ORDERS"), key=lambda s: s.messages)
    seq = held.first_seq + 1
    segment = write_segment(vault, "ORDERS", _forged(vault, stream_seq=seq))
    append_line(vault, Entry(0, "", (segment,)))
    return segment.file


def fill_twice(vault: Vault) -> str:
    segment = write_segment(vault, "ORDERS", _forged(vault))
    append_line(vault, Entry(0, "", (segment,)))
    return f"ORDERS {segment.first_seq}"


def invented_fill(vault: Vault) -> str:
    table = _forged(vault)
    data = table["data"].to_pylist()
    segment = write_segment(vault, "ORDERS", column(table, "data", [d.replace("10", "1000000") for d in data]))
    append_line(vault, Entry(0, "", (segment,)))
    return f"ORDERS {segment.first_seq}"


def negative_log(vault: Vault) -> str:
    table = _forged(vault, log_index=-5)
    segment = write_segment(vault, "ORDERS", table, first_log=vault.manifest.next_log, last_log=vault.manifest.next_log)
    append_line(vault, Entry(0, "", (segment,)))
    return f"ORDERS {segment.first_seq}"


def claimed_extent(vault: Vault) -> str:
    """A line that claims to lie where rows are judged no more, over rows that lie elsewhere."""
    table = _forged(vault, log_index=3)
    segment = write_segment(vault, "ORDERS", table, first_log=vault.manifest.next_log, last_log=vault.manifest.next_log)
    append_line(vault, Entry(0, "", (segment,)))
    return segment.file


def renamed_day(vault: Vault) -> str:
    segment = write_segment(vault, "ORDERS", _forged(vault))
    other = segment.file.replace("day=2024", "day=2023")
    (vault.path / other).parent.mkdir()
    (vault.path / segment.file).rename(vault.path / other)
    line = vault.manifest
    import msgspec

    told = msgspec.json.encode(segment, order="sorted").replace(segment.file.encode(), other.encode())
    with (vault.path / MANIFEST).open("ab") as file:
        file.write(b'{"n":%d,"prev":"%s","replaces":[],"segments":[%s]}\n' % (line.count + 1, line.head.encode(), told))
    return other


# ---------------------------------------------------------------- compactions that nothing covers


def same_rows_dropped(vault: Vault) -> str:
    compacted(vault, "ORDERS", lambda t: t.slice(0, t.num_rows - 1))
    return "TOTAL at ORDERS"


def received_moved(vault: Vault) -> str:
    def change(table: pa.Table) -> pa.Table:
        times = table["received"].cast(pa.int64()).to_pylist()
        return column(table, "received", [times[0], *(t - 1 for t in times[1:-1]), times[-1]])

    compacted(vault, "ORDERS", change)
    return "TOTAL at ORDERS"


def log_indexes_swapped(vault: Vault) -> str:
    """Two messages of two streams change their places in the log; each stream's own order stays."""
    orders, signals = vault.table(vault.segments("ORDERS")[0]), vault.table(vault.segments("SIGNALS")[0])
    a, b = orders["log_index"][0].as_py(), signals["log_index"][0].as_py()

    def swapped(table: pa.Table) -> pa.Table:
        swap = {a: b, b: a}
        return column(table, "log_index", [swap.get(i, i) for i in table["log_index"].to_pylist()])

    for stream, table in (("ORDERS", orders), ("SIGNALS", signals)):
        vault.write(vault.segments(stream)[0], swapped(table))
    vault.rehash()
    return "TOTAL at SIGNALS"


def lying_statistics(vault: Vault) -> str:
    segment = compacted(vault, "ORDERS", lambda t: t)
    path = vault.path / segment.file
    data = path.read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    path.write_bytes(data[:footer] + data[footer:].replace(b"strategy-alpha", b"strategy-aaaaa"))
    _redescribe(vault, segment)
    return segment.file


def zeroed_bloom(vault: Vault) -> str:
    segment = compacted(vault, "ORDERS", lambda t: t)
    path = vault.path / segment.file
    group = pq.ParquetFile(path).metadata.row_group(0)
    chunk = next(c for i in range(group.num_columns) if (c := group.column(i)).path_in_schema == "event_id")
    data = bytearray(path.read_bytes())
    end = chunk.bloom_filter_offset + chunk.bloom_filter_length
    data[end - 32 : end] = bytes(32)
    path.write_bytes(data)
    _redescribe(vault, segment)
    return segment.file


def other_physical_type(vault: Vault) -> str:
    """Arrow reads nanoseconds as ever, other readers see plain numbers."""
    segment = compacted(vault, "ORDERS", lambda t: t)
    table = vault.table(segment)
    path = vault.path / segment.file
    schema = pa.schema([pa.field(f.name, pa.int64()) if f.name == "ts" else f for f in SCHEMA])
    pq.write_table(column_as(table, "ts", pa.int64()).cast(schema), path, **segment_options())
    _redescribe(vault, segment)
    return segment.file


def column_as(table: pa.Table, name: str, kind: pa.DataType) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, table[name].cast(kind))


def page_index(vault: Vault) -> str:
    segment = compacted(vault, "ORDERS", lambda t: t)
    pq.write_table(vault.table(segment), vault.path / segment.file, **{**segment_options(), "write_page_index": True})
    _redescribe(vault, segment)
    return segment.file


def many_rows_in_a_small_file(vault: Vault) -> str:
    segment = compacted(vault, "ORDERS", lambda t: t)
    table = vault.table(segment).slice(0, 1)
    rows = table.take(pa.array([0] * 60_000, pa.int64()))
    path = vault.path / segment.file
    with pq.ParquetWriter(path, SCHEMA, **segment_options()) as writer:
        for _ in range(4):
            writer.write_table(rows)
    _redescribe(vault, segment, messages=8, last_seq=8, last_log=segment.last_log, last_time=segment.last_time)
    return segment.file


def _redescribe(vault: Vault, segment: Segment, **claims: int) -> None:
    """Let the last manifest line, which nothing covers, fit the file as it is now."""
    lines = (vault.path / MANIFEST).read_bytes().splitlines(keepends=True)
    replaces = vault.manifest.entries[-1].replaces
    (vault.path / MANIFEST).write_bytes(b"".join(lines[:-1]))
    table = pq.ParquetFile(vault.path / segment.file).read()
    told = describe(vault, segment.file, table, segment.stream, segment.level, **claims)
    append_line(vault, Entry(0, "", (told,), replaces))


# ---------------------------------------------------------------- manifest and files


def emptied_manifest(vault: Vault) -> str:
    (vault.path / MANIFEST).write_bytes(b"")
    return "MANIFEST_EMPTY"


def no_manifest(vault: Vault) -> str:
    (vault.path / MANIFEST).unlink()
    return "MANIFEST_EMPTY"


def segments_as_temporary_files(vault: Vault) -> str:
    """As if a crash in the very first flush had left them."""
    for number, name in enumerate(segment_files(vault.path)):
        (vault.path / name).rename(vault.path / f"stream=MARKET-{number}.tmp")
    (vault.path / MANIFEST).write_bytes(b"")
    return "MANIFEST_EMPTY"


def not_utf8(vault: Vault) -> str:
    with (vault.path / MANIFEST).open("ab") as file:
        file.write(b'{"n":1,"prev":"\xff\xfe"}\n')
    return f"manifest line {vault.manifest.count}"


def not_utf8_in_the_middle(vault: Vault) -> str:
    data = (vault.path / MANIFEST).read_bytes()
    (vault.path / MANIFEST).write_bytes(data.replace(b"stream=ORDERS", b"stream=ORDER\xff", 1))
    return "MANIFEST_LINE"


def nested_line(vault: Vault) -> str:
    with (vault.path / MANIFEST).open("ab") as file:
        file.write(b"[" * 100_000 + b"\n")
    return "MANIFEST_LINE"


def blank_line(vault: Vault) -> str:
    with (vault.path / MANIFEST).open("ab") as file:
        file.write(b"\n")
    return "MANIFEST_LINE"


def unsigned_empty_line(vault: Vault) -> str:
    append_line(vault, Entry(0, "", ()))
    append_line(vault, Entry(7, "", (), ("stream=ORDERS/day=2024-11-22/none.parquet",)))
    return "MANIFEST_REPLACES"


def hidden_parquet(vault: Vault) -> str:
    (vault.path / "stream=ORDERS" / "extra").mkdir()
    (vault.path / "stream=ORDERS" / "extra" / "x.parquet").write_bytes(b"PAR1")
    return "stream=ORDERS/extra/x.parquet"


def fifo_beside(vault: Vault) -> str:
    os.mkfifo(vault.path / "stream=ORDERS" / "pipe")
    return "stream=ORDERS/pipe"


def in_place(how: Callable[[Path], None], stream: str = "ORDERS") -> Callable[[Vault], str]:
    def attack(vault: Vault) -> str:
        segment = vault.segments(stream)[0]
        path = vault.path / segment.file
        path.chmod(0o644)
        how(path)
        return segment.file

    return attack


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def _link(path: Path) -> None:
    path.rename(path.with_suffix(".kept"))
    path.symlink_to(path.with_suffix(".kept"))


def _garbage(path: Path) -> None:
    path.write_bytes(b"\xff" * 10_000)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def linked_folder(vault: Vault) -> str:
    folder = vault.path / "stream=ORDERS"
    folder.rename(vault.deployment / "elsewhere")
    folder.symlink_to(vault.deployment / "elsewhere")
    return "FILE_KIND at ORDERS"


def no_root(vault: Vault) -> str:
    (vault.path / "trust" / "root-1.note").unlink()
    return "TRUST_ROOT_MISSING at trust"


def empty_root(vault: Vault) -> str:
    (vault.path / "trust" / "root-1.note").write_bytes(b"")
    return "trust/root-1.note"


def binary_root(vault: Vault) -> str:
    (vault.path / "trust" / "root-1.note").write_bytes(b"\xff\xfe")
    return "trust/root-1.note"


def fifo_root(vault: Vault) -> str:
    _fifo(vault.path / "trust" / "root-1.note")
    return "trust/root-1.note"


def foreign_root(vault: Vault) -> str:
    note = sign_document(trust_root(), (ROOT_KEY_NAME, key("somebody else")))
    (vault.path / "trust" / "root-1.note").write_text(note)
    return "trust/root-1.note"


def foreign_second_root(vault: Vault) -> str:
    note = sign_document(trust_root(), (ROOT_KEY_NAME, key("somebody else")))
    (vault.path / "trust" / "root-2.note").write_text(note)
    return "trust/root-2.note"


def missing_second_root(vault: Vault) -> str:
    note = (vault.path / "trust" / "root-1.note").read_text()
    (vault.path / "trust" / "root-3.note").write_text(note)
    return "trust/root-3.note"


def wrong_pin(vault: Vault) -> str:
    vault.place.root.write_text(key("somebody else").public.hex())
    return "trust/root-1.note"


NAMED: dict[str, Callable[[Vault], str]] = {
    f.__name__: f
    for f in (
        far_log_index,
        backward_log,
        inside_another,
        fill_twice,
        invented_fill,
        negative_log,
        claimed_extent,
        renamed_day,
        same_rows_dropped,
        received_moved,
        log_indexes_swapped,
        lying_statistics,
        zeroed_bloom,
        other_physical_type,
        page_index,
        many_rows_in_a_small_file,
        emptied_manifest,
        no_manifest,
        segments_as_temporary_files,
        not_utf8,
        not_utf8_in_the_middle,
        nested_line,
        blank_line,
        unsigned_empty_line,
        hidden_parquet,
        fifo_beside,
        linked_folder,
        no_root,
        empty_root,
        binary_root,
        fifo_root,
        foreign_root,
        foreign_second_root,
        missing_second_root,
        wrong_pin,
    )
}
ATTACKS: dict[str, Callable[[Vault], str]] = {
    **NAMED,
    "a segment is a FIFO": in_place(_fifo),
    "a segment is a device": in_place(_device),
    "a segment is a link": in_place(_link),
    "a segment is a folder": in_place(_folder),
    "a segment is empty": in_place(lambda path: os.truncate(path, 0)),
    "a segment is garbage": in_place(_garbage),
    "a segment is cut": in_place(lambda path: os.truncate(path, path.stat().st_size // 2)),
    "a segment is huge": in_place(lambda path: os.truncate(path, 1 << 40)),
    "a segment of SECURITY is gone": in_place(Path.unlink, "SECURITY"),
}  # fmt: skip


def test_the_honest_desk_is_clean(vault: Vault) -> None:
    code, output = run(vault)
    assert code == 0, output
    assert f"key       {key('operator-root').public.hex()} ({vault.place.root}; it lies beside the archive" in output
    assert "deployment test, trust roots 1 to 1" in output
    report = vault.verify()
    assert report.covered is not None
    assert f"{report.covered.entries}:{report.covered.head}" in output
    assert f"{report.open_messages} messages in lines {report.covered.entries + 1} to {report.entries}" in output
    compact_all(vault)
    assert run(vault)[0] == 0


@pytest.mark.timeout(60)
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_forgery_gives_1_and_its_place(vault: Vault, attack: str) -> None:
    place = ATTACKS[attack](vault)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    code, output = run(vault)
    assert code == 1, output
    assert any(place in line for line in output.splitlines() if line.startswith("at ")), output
    assert "messages (" in output  # the rest was checked
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600_000  # KiB


def test_the_first_defects_do_not_hide_others(vault: Vault) -> None:
    for segment in vault.segments("MARKET")[:4]:
        table = vault.table(segment)
        vault.write(segment, column(table, "kind", ["lie"] * table.num_rows))
    segment = vault.segments("ORDERS")[0]
    vault.rewrite(segment, "kind", 0, "lie")
    vault.rehash()
    code, output = run(vault)
    assert code == 1
    lines = output.splitlines()
    summary = [i for i, line in enumerate(lines) if line.startswith("TAMPERED")]
    details = [i for i, line in enumerate(lines) if line.startswith("at ")]
    assert max(summary) < min(details)
    assert any("TAMPERED  ORDERS ROW 1 times" in line for line in lines)
    assert any(line.startswith("at ") and "ORDERS 1" in line for line in lines)
