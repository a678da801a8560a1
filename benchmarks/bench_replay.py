"""A verified replay from the archive, beside `eventsourcing`'s notification log.

An archive of market data is written by the audit's own projector, then read back by `ArchiveReader`: file hashes,
sequences, seals, sessions and chains checked, every event decoded and re-encoded.  One process, one core.
"""

from __future__ import annotations

import gc
import tempfile
from pathlib import Path

from benchmarks import peers
from benchmarks.report import Row, Void, rate, resident_mb, say
from tallystick.components.audit.projector import Projector
from tallystick.replay.reader import ArchiveReader
from tallystick.replay.selection import Selection
from tallystick.replay.verify import Failure
from tests.support.archive import Session, Streams, Vault

EVENTS = 500_000
BATCH = 512
SINGLES = 20_000
PEER = 50_000
MESSAGES_A_FLUSH = 8
ROUNDS = 3

WHAT = {
    "batched": "replay with full verification from the archive, 512 events a message",
    "raw": "the same, its peer without decoding",
    "single": "replay with full verification from the archive, one event a message",
    "memory": "memory that a replay's last three quarters add to its first",
}


def build(folder: Path, events: int, size: int) -> Vault:
    """An archive of `events` trades, `size` a message."""
    streams = Streams()
    vault = Vault(folder)
    market: Session = streams.session("market-data")
    projector: Projector = vault.open()
    batch = [streams.trade(i) for i in range(size)]
    done = 0
    while done < events:
        market.say(*(("md.trade.paper.XRP-ETH", batch) for _ in range(MESSAGES_A_FLUSH)))
        done += MESSAGES_A_FLUSH * size
        # Time moves with every event here; the credential must outlast the recording.
        streams.now = min(streams.now, market.credential.expires_at - 10**9)
        for message in streams.stored:
            projector.take(message, projector.open(message))
        streams.stored.clear()
        if projector.gathered > 100_000:
            projector.flush()
    projector.flush()
    projector.archive.close()
    return vault


def replay(vault: Vault) -> int:
    """Read and verify everything; how many events."""
    gc.collect()
    events = 0
    for item in ArchiveReader(vault.place, Selection(streams=("MARKET",))):
        if isinstance(item, Failure):
            raise Void(f"the archive does not verify: {item}")
        events += len(item.verified.events)
    return events


def growth(vault: Vault) -> float:
    """MB by which a replay grows after its first quarter."""
    quarter, events = 0.0, 0
    for item in ArchiveReader(vault.place, Selection(streams=("MARKET",))):
        events += 0 if isinstance(item, Failure) else len(item.verified.events)
        if not quarter and events >= EVENTS // 4:
            quarter = resident_mb()
    return max(0.0, resident_mb() - quarter)


def rows() -> list[Row]:
    """Large messages and single events; ours and the peer in turns, the best of each."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        say(f"writing an archive of {EVENTS:,} events")
        large, single = build(folder / "large", EVENTS, BATCH), build(folder / "single", SINGLES, 1)
        grown = growth(large)
        app = peers.ledger(folder)
        peers.save(app, PEER)
        batched = alone = decoded = raw = 0.0
        for number in range(ROUNDS):
            batched = max(batched, rate(lambda: replay(large)))
            alone = max(alone, rate(lambda: replay(single)))
            decoded = max(decoded, peers.read(app, decode=True))
            raw = max(raw, peers.read(app, decode=False))
            say(f"replay: round {number + 1} of {ROUNDS}")
        app.close()
    return [
        Row(WHAT["batched"], batched, "events/s", "≥ 400,000", decoded, peers.READ),
        Row(WHAT["raw"], batched, "events/s", "≥ 400,000", raw, peers.READ_RAW),
        Row(WHAT["single"], alone, "events/s", "", decoded, peers.READ),
        Row(WHAT["memory"], grown, "MB", "flat"),
    ]
