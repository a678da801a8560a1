"""What the audit costs: rows/s verified and projected into Parquet, beside DuckDB inserting the same rows as Arrow.

    python benchmarks/bench_audit.py [EVENTS]

Sealed market data (256 events a message, 8 messages a flush) goes through `Projector.open`, `take` and a
durable flush every 50,000 rows; then `verify` reads it all back.  The peer inserts the very same Arrow rows,
already decoded and verified, into a DuckDB table on disk.
"""

from __future__ import annotations

import gc
import sys
import tempfile
import time
from pathlib import Path

import duckdb

from benchmarks.report import Row, say, table
from tallystick.components.audit.projector import Projector, Stored
from tests.support.archive import Streams, Vault

EVENTS_A_MESSAGE = 256
MESSAGES_A_FLUSH = 8
ROWS_A_FLUSH = 50_000


def sealed(events: int) -> tuple[Streams, list[Stored]]:
    """Really sealed messages of `events` trades."""
    streams = Streams()
    market = streams.session("market-data")
    batch = [streams.trade(i) for i in range(EVENTS_A_MESSAGE)]
    while len(streams.stored) * EVENTS_A_MESSAGE < events:
        market.say(*(("md.trade.paper.XRP-ETH", batch) for _ in range(MESSAGES_A_FLUSH)))
        streams.now = min(streams.now, market.credential.expires_at - 10**9)
    return streams, streams.stored


def project(projector: Projector, messages: list[Stored]) -> float:
    """Seconds to verify and archive `messages`."""
    begun = time.perf_counter()
    for message in messages:
        projector.take(message, projector.open(message))
        if projector.gathered >= ROWS_A_FLUSH:
            projector.flush()
    projector.flush()
    return time.perf_counter() - begun


def insert(vault: Vault, folder: Path) -> float:
    """Seconds that DuckDB needs to insert the same rows from Arrow tables."""
    tables = [vault.table(s) for stream in ("SECURITY", "MARKET") for s in vault.segments(stream)]
    with duckdb.connect(str(folder / "peer.duckdb")) as connection:
        connection.register("part", tables[0])
        connection.execute("CREATE TABLE log AS SELECT * FROM part LIMIT 0")
        begun = time.perf_counter()
        for part in tables:
            connection.register("part", part)
            connection.execute("INSERT INTO log SELECT * FROM part")
        connection.execute("CHECKPOINT")
        return time.perf_counter() - begun


def run(events: int = 500_000) -> list[Row]:
    """The rows of the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        say(f"sealing {events:,} events")
        _, messages = sealed(events)
        best = float("inf")
        rows = 0
        for number in range(3):
            vault = Vault(folder / f"archive-{number}")
            projector = vault.open()
            gc.collect()
            best = min(best, project(projector, messages))
            rows = projector.archived
            projector.archive.close()
        peer = min(insert(vault, folder / str(i)) for i in range(3) if not (folder / str(i)).mkdir())
        begun = time.perf_counter()
        report = vault.verify()
        verifying = time.perf_counter() - begun
        if not report.clean or report.rows != rows:
            raise SystemExit(f"the archive does not verify: {report.problems[:3]}")
    return [
        Row(
            "audit projection, verified rows into Parquet",
            rows / best,
            "rows/s",
            "≥ 150,000",
            rows / peer,
            "DuckDB, Arrow",
        ),
        Row("audit verify, every seal, chain and row", rows / verifying, "events/s", "≥ 50,000"),
    ]


if __name__ == "__main__":
    print(table(run(int(sys.argv[1]) if len(sys.argv) > 1 else 500_000)))
