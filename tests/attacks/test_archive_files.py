"""What stands in place of an archive's files: nothing makes a reader wait, or take more memory than it may."""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
import socket
from collections.abc import Callable
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tallystick.record.archive import segment_options
from tallystick.record.files import FileRefused, read_regular
from tallystick.record.manifest import MANIFEST, Segment
from tallystick.record.parquet import LayoutError, Seen, read_layout
from tallystick.record.rows import SCHEMA
from tallystick.record.segment import open_segment
from tests.support.archive import Story, Vault


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Vault:
    vault = Vault(tmp_path_factory.mktemp("honest"))
    vault.project(Story().streams.stored, flush=12)
    return vault


@pytest.fixture
def vault(honest: Vault, tmp_path: Path) -> Vault:
    return honest.copy(tmp_path / "deployment")


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(path.parent)  # a socket's path is short
        try:
            server.bind(path.name)
        finally:
            os.chdir(here)


KINDS: dict[str, Callable[[Path, Path], None]] = {
    "fifo": lambda path, _: os.mkfifo(path),
    "link": lambda path, kept: path.symlink_to(kept),
    "device": lambda path, _: path.symlink_to("/dev/zero"),
    "folder": lambda path, _: path.mkdir(),
    "socket": lambda path, _: _socket(path),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_regular_file_is_refused_at_once(vault: Vault, tmp_path: Path, kind: str) -> None:
    segment = vault.segments("ORDERS")[0]
    for name, read in (
        (segment.file, lambda: open_segment(vault.path, segment)),
        (MANIFEST, lambda: read_regular(vault.path, MANIFEST, 1 << 30)),
    ):
        kept = tmp_path / Path(name).name
        (vault.path / name).rename(kept)
        KINDS[kind](vault.path / name, kept)
        with pytest.raises(FileRefused) as refused:
            read()
        assert refused.value.code in ("FILE_KIND", "FILE_UNREADABLE")
        assert name in refused.value.text


def test_a_folder_that_is_a_link_is_refused(vault: Vault, tmp_path: Path) -> None:
    segment = vault.segments("ORDERS")[0]
    folder = vault.path / "stream=ORDERS"
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileRefused, match="FILE_KIND"):
        open_segment(vault.path, segment)


def test_another_size_or_hash_is_refused_and_a_huge_file_is_not_read(vault: Vault) -> None:
    segment = vault.segments("ORDERS")[0]
    path = vault.path / segment.file
    with open_segment(vault.path, segment) as file:
        assert read_layout(file, segment.rows).rows == segment.rows
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(FileRefused, match="FILE_HASH"):
        open_segment(vault.path, segment)
    os.truncate(path, 1 << 40)  # sparse: takes no room
    with pytest.raises(FileRefused, match="has 1099511627776 bytes"):
        open_segment(vault.path, segment)


def _measured(vault: Vault, segment: Segment, rows: int) -> Segment:
    data = (vault.path / segment.file).read_bytes()
    return msgspec.structs.replace(segment, size=len(data), sha256=hashlib.sha256(data).hexdigest(), rows=rows)


def _layout(vault: Vault, segment: Segment, rows: int) -> None:
    with open_segment(vault.path, _measured(vault, segment, rows)) as file:
        layout = read_layout(file, rows)
        parquet = pq.ParquetFile(file)
        for number, group in enumerate(layout.groups):
            seen = Seen()
            for batch in parquet.iter_batches(layout.batch_rows, row_groups=[number]):
                seen.add(pa.Table.from_batches([batch]), group)
            for text in group.compare(seen):
                raise LayoutError("FILE_INDEX", text)


def _repeated(table: pa.Table, rows: int) -> pa.Table:
    return table.take(pa.array([0] * rows, pa.int64()))


def test_a_small_file_with_a_million_rows_takes_no_gigabytes(vault: Vault) -> None:
    """Rows that repeat one are some kilobytes on the disk, and more than a gigabyte in memory."""
    segment = vault.segments("ORDERS")[0]
    path = vault.path / segment.file
    table = _repeated(vault.table(segment), 60_000)
    path.chmod(0o644)
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        for _ in range(20):
            writer.write_table(table)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert path.stat().st_size < 1_000_000
    _layout(vault, segment, 1_200_000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


def test_a_long_value_that_repeats_is_decoded_in_small_batches(vault: Vault) -> None:
    segment = vault.segments("ORDERS")[0]
    table = _repeated(vault.table(segment), 100_000)
    code = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int32()), pa.array(["x" * 1_000_000]))
    index = table.schema.get_field_index("code")
    table = table.set_column(index, "code", code)
    (vault.path / segment.file).chmod(0o644)
    pq.write_table(table, vault.path / segment.file, **segment_options())
    with open_segment(vault.path, _measured(vault, segment, 100_000)) as file:
        assert read_layout(file, 100_000).batch_rows <= 300


@pytest.mark.parametrize(
    "options",
    [
        {"use_dictionary": False, "column_encoding": {"payload": "DELTA_BYTE_ARRAY"}},
        {"write_page_index": True},
        {"data_page_version": "2.0"},
        {"row_group_size": 200_000},
        {"store_schema": False},
    ],
    ids=str,
)
def test_a_file_as_the_archives_writer_makes_none_is_refused(vault: Vault, options: dict[str, object]) -> None:
    segment = vault.segments("ORDERS")[0]
    rows = 150_000 if "row_group_size" in options else 40
    table = _repeated(vault.table(segment), rows).cast(SCHEMA)
    (vault.path / segment.file).chmod(0o644)
    pq.write_table(table, vault.path / segment.file, **{"compression": "zstd", **options})
    if options == {"store_schema": False}:
        _layout(vault, segment, rows)  # that one is harmless: the columns are compared where they are read
        return
    with pytest.raises(LayoutError, match="FILE_LAYOUT"):
        _layout(vault, segment, rows)


@pytest.mark.parametrize("column", ["event_id", "order_id"])
def test_a_zeroed_bloom_filter_is_found(vault: Vault, column: str) -> None:
    segment = vault.segments("ORDERS")[0]
    path = vault.path / segment.file
    _layout(vault, segment, segment.rows)
    group = pq.ParquetFile(path).metadata.row_group(0)
    chunk = next(c for i in range(group.num_columns) if (c := group.column(i)).path_in_schema == column)
    data = bytearray(path.read_bytes())
    start, length = chunk.bloom_filter_offset, chunk.bloom_filter_length
    data[start + length - 32 : start + length] = bytes(32)
    path.chmod(0o644)
    path.write_bytes(data)
    with pytest.raises(LayoutError, match=f"Bloom filter of column {column} denies"):
        _layout(vault, segment, segment.rows)


def test_statistics_that_lie_are_found(vault: Vault) -> None:
    segment = vault.segments("ORDERS")[0]
    path = vault.path / segment.file
    data = path.read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    true = b"strategy-alpha"
    assert data.count(true, footer) >= 2
    path.chmod(0o644)
    path.write_bytes(data[:footer] + data[footer:].replace(true, b"strategy-aaaaa"))
    with pytest.raises(LayoutError, match="column component states a"):
        _layout(vault, segment, segment.rows)


def test_any_changed_byte_of_the_metadata_is_refused_or_harmless(vault: Vault) -> None:
    """No byte of the footer brings anything but a refusal by name."""
    segment = vault.segments("ORDERS")[0]
    path = vault.path / segment.file
    data = path.read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    path.chmod(0o644)
    for at in range(footer, len(data), 37):
        changed = bytearray(data)
        changed[at] ^= 1 << at % 8
        path.write_bytes(changed)
        measured = _measured(vault, segment, segment.rows)
        with open_segment(vault.path, measured) as file, contextlib.suppress(LayoutError):
            read_layout(file, segment.rows)
