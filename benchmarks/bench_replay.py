"""What a verified replay from the archive costs: events/s at several message sizes, and where the time goes.

    python benchmarks/bench_replay.py [EVENTS]

An archive of market data is written by the audit's own projector, then read back by `ArchiveReader`: file hashes,
sequences, seals, sessions and chains checked, every event decoded and re-encoded.  Best of three, process time and
wall time; `verify` is `Verifier.open` and `ReaderChains.accept` alone on the same messages, so the difference is
what reading costs.  One process, one core.
"""

from __future__ import annotations

import gc
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tallystick.components.audit.projector import Projector
from tallystick.replay.reader import ArchiveReader
from tallystick.replay.selection import Selection
from tallystick.replay.verify import Failure
from tallystick.schemas.seal import ReaderChains, Verifier
from tests.support.archive import Session, Streams, Vault

SIZES = (512, 256, 128, 16, 1)
MESSAGES_A_FLUSH = 8


def build(folder: Path, events: int, size: int) -> tuple[Vault, int]:
    """An archive of `events` trades, `size` a message; how many messages that is."""
    streams = Streams()
    vault = Vault(folder)
    market: Session = streams.session("market-data")
    projector: Projector = vault.open()
    messages = done = 0
    while done < events:
        count = min(MESSAGES_A_FLUSH, -(-(events - done) // size))
        batch = [streams.trade(i) for i in range(size)]
        market.say(*(("md.trade.paper.XRP-ETH", batch) for _ in range(count)))
        messages += count
        done += count * size
        # Time moves with every event here; the credential must outlast the recording.
        streams.now = min(streams.now, market.credential.expires_at - 10**9)
        for message in streams.stored:
            projector.take(message, projector.open(message))
        streams.stored.clear()
        if projector.gathered > 100_000:
            projector.flush()
    projector.flush()
    projector.archive.close()
    return vault, messages


def best(work: Callable[[], int], times: int = 3) -> tuple[float, float, int]:
    """Least process seconds, least wall seconds, and what `work` counted."""
    process = wall = float("inf")
    count = 0
    for _ in range(times):
        gc.collect()
        a, b = time.process_time(), time.perf_counter()
        count = work()
        process, wall = min(process, time.process_time() - a), min(wall, time.perf_counter() - b)
    return process, wall, count


def replay(vault: Vault) -> int:
    events = 0
    for item in ArchiveReader(vault.place, Selection(streams=("MARKET",))):
        if isinstance(item, Failure):
            raise SystemExit(f"the archive does not verify: {item}")
        events += len(item.verified.events)
    return events


def verify(vault: Vault) -> int:
    reader = ArchiveReader(vault.place, Selection(streams=("MARKET",)))
    payloads = [(p.verified.subject.text, p.verified.payload) for p in reader if not isinstance(p, Failure)]
    verifier, chains, events = Verifier(reader.judge.verifiers[-1].trust), ReaderChains(), 0
    started, cpu = time.perf_counter(), time.process_time()
    for subject, payload in payloads:
        verified = verifier.open(subject, "MARKET", payload)
        chains.accept(verified)
        events += len(verified.events)
    wall, process = time.perf_counter() - started, time.process_time() - cpu
    print(f"{'':>8}  verify alone {events / wall:>10,.0f} events/s, {process / len(payloads) * 1e6:8.1f} µs a message")
    return events


def main(events: int) -> None:
    print("a message  events      events/s (wall)  events/s (cpu)  µs a message  µs an event")
    for size in SIZES:
        wanted = events if size >= 128 else events // 8 if size > 1 else events // 40
        with tempfile.TemporaryDirectory() as folder:
            vault, messages = build(Path(folder) / "desk", wanted, size)
            process, wall, count = best(lambda vault=vault: replay(vault))  # type: ignore[misc]
            print(
                f"{size:>9}  {count:>9,}  {count / wall:>15,.0f}  {count / process:>14,.0f}  "
                f"{process / messages * 1e6:>12.1f}  {process / count * 1e6:>11.2f}"
            )
            if size in (SIZES[0], 128, 1):
                verify(vault)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB (the builder included)")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
