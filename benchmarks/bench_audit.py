"""What the audit costs: rows/s verified and projected into Parquet, beside DuckDB inserting the same rows as Arrow.

Sealed market data (256 events a message, 8 messages a flush) goes through `Projector.open`, `take` and a
durable flush every 50,000 rows; then `verify` reads it all back.  The peer inserts the very same Arrow rows,
already decoded and verified, into a DuckDB table on disk.
"""

from __future__ import annotations

import functools
import gc
import tempfile
import time
from pathlib import Path

import duckdb

from benchmarks.report import Row, Void, rate, say
from tallystick.components.audit.projector import Projector, Stored
from tests.support.archive import Streams, Vault

EVENTS = 300_000
EVENTS_A_MESSAGE = 256
MESSAGES_A_FLUSH = 8
ROWS_A_FLUSH = 50_000
ROUNDS = 3

WHAT = {
    "project": "audit projection, verified rows into Parquet",
    "verify": "audit verify of the archive: every seal, chain and row",
}


def sealed(events: int) -> list[Stored]:
    """Really sealed messages of `events` trades."""
    streams = Streams()
    market = streams.session("market-data")
    batch = [streams.trade(i) for i in range(EVENTS_A_MESSAGE)]
    while len(streams.stored) * EVENTS_A_MESSAGE < events:
        market.say(*(("md.trade.paper.XRP-ETH", batch) for _ in range(MESSAGES_A_FLUSH)))
        streams.now = min(streams.now, market.credential.expires_at - 10**9)
    return streams.stored


def project(projector: Projector, messages: list[Stored]) -> int:
    """Verify and archive `messages`; how many rows."""
    for message in messages:
        projector.take(message, projector.open(message))
        if projector.gathered >= ROWS_A_FLUSH:
            projector.flush()
    projector.flush()
    return projector.archived


def insert(vault: Vault, folder: Path) -> float:
    """Rows a second that DuckDB inserts from the same rows as Arrow tables, on disk at the end."""
    tables = [vault.table(s) for stream in ("SECURITY", "MARKET") for s in vault.segments(stream)]
    with duckdb.connect(str(folder / "peer.duckdb")) as connection:
        connection.register("part", tables[0])
        connection.execute("CREATE TABLE log AS SELECT * FROM part LIMIT 0")
        began = time.perf_counter()
        for part in tables:
            connection.register("part", part)
            connection.execute("INSERT INTO log SELECT * FROM part")
        connection.execute("CHECKPOINT")
        took = time.perf_counter() - began
    return sum(int(part.num_rows) for part in tables) / took


def verify(vault: Vault) -> int:
    """Verify the archive; how many rows."""
    report = vault.verify()
    if not report.clean:
        raise Void(f"the archive does not verify: {report.problems[:3]}")
    return report.rows


def rows() -> list[Row]:
    """Ours and the peer in turns, the best of each."""
    projected = inserted = verified = 0.0
    say(f"sealing {EVENTS:,} events")
    messages = sealed(EVENTS)
    for number in range(ROUNDS):
        with tempfile.TemporaryDirectory() as name:
            vault = Vault(Path(name) / "archive")
            projector = vault.open()
            gc.collect()
            projected = max(projected, rate(functools.partial(project, projector, messages)))
            projector.archive.close()
            inserted = max(inserted, insert(vault, Path(name)))
            verified = max(verified, rate(functools.partial(verify, vault)))
        say(f"audit: round {number + 1} of {ROUNDS}")
    return [
        Row(WHAT["project"], projected, "rows/s", "≥ 150,000", inserted, "DuckDB inserting the same rows from Arrow"),
        Row(WHAT["verify"], verified, "rows/s"),
    ]
