"""The archive for other tools: its live files by name, and the views as Parquet files with ids as text.

A folder's files cannot be counted by a pattern: those that compaction replaced lie there for a minute, and what a crash or
an attacker left lies there too.  What counts is what the manifest names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from tallystick.record.basis import Basis, basis, read_sound
from tallystick.record.opened import Opened
from tallystick.record.sandbox import QueryRefused, connect
from tallystick.record.views import ALWAYS, VIEWS
from tallystick.schemas.errors import ConfigError
from tallystick.schemas.seal import Verifier

BATCH_ROWS: Final = 65_536
# What an export says of itself, beside its files.
BASIS: Final = "basis.txt"


def live_files(
    archive: Path, verifiers: Sequence[Verifier], since: int = ALWAYS[0], until: int = ALWAYS[1]
) -> tuple[list[Path], Basis]:
    """The files that hold what the broker stored from `since` and before `until` (Unix ns), each held against the manifest.

    Raises as `query.Answer`.
    """
    manifest = read_sound(archive)
    found = basis(archive, manifest, verifiers)
    segments = [s for s in manifest.live.values() if since <= s.last_time and s.first_time < until]
    Opened(archive, segments)
    return [archive.absolute() / s.file for s in sorted(segments, key=lambda s: (s.stream, s.first_seq))], found


def export(
    archive: Path,
    out: Path,
    names: Sequence[str],
    verifiers: Sequence[Verifier],
    since: int = ALWAYS[0],
    until: int = ALWAYS[1],
) -> Iterator[tuple[Path, int]]:
    """Write views (`names`, or all) to `out`, which is made: one Parquet file each; yields the file and its rows.

    Raises `ConfigError` for a view that there is not and for a folder that is there, and as `query.Answer`.
    """
    unknown = [name for name in names if name not in VIEWS]
    if unknown:
        raise ConfigError("EXPORT", f"no view {unknown[0][:32]!r}; there are {', '.join(VIEWS)}")
    manifest = read_sound(archive)
    found = basis(archive, manifest, verifiers)
    opened = Opened(archive, [s for s in manifest.live.values() if since <= s.last_time and s.first_time < until])
    connection = connect(opened, since, until)
    try:
        out.mkdir(parents=True)
    except FileExistsError:
        raise ConfigError("EXPORT", f"{out} is there already: name a new folder") from None
    for name in names or VIEWS:
        # JSON is text to every reader.
        select = "* REPLACE (CAST(data AS VARCHAR) AS data)" if name == "events" else "*"
        path, rows = out / f"{name}.parquet", 0
        try:
            reader = connection.sql(f"SELECT {select} FROM {name}").to_arrow_reader(BATCH_ROWS)  # noqa: S608 - a view's name
            with pq.ParquetWriter(path, reader.schema, compression="zstd") as writer:
                for batch in reader:
                    writer.write_batch(batch)
                    rows += batch.num_rows
        except (duckdb.Error, pa.ArrowException) as exc:
            raise QueryRefused("SQL_LIMITS", f"{name}: {exc}") from exc
        yield path, rows
    opened.check_unchanged()
    (out / BASIS).write_text(f"{found}\n", "utf-8")
