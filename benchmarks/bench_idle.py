"""What a deployment takes while nobody trades: `tallystick up` as people run it, every process of it counted.

Idle means: everything runs and is armed, the feed is open and silent, no strategy asks for anything.  What goes on are
heartbeats, session lists, checkpoints and the watch.  The second round plays the synthetic market that `tallystick init`
sets up, a hundred trades a second, which every strategy, gateway, exchange and audit read.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import msgspec

from benchmarks.processes import Memory, memory, processor_s, tree
from benchmarks.report import Row, Void, say
from tallystick.cli import operate
from tallystick.runtime.deployment.ceremony import init
from tallystick.runtime.deployment.folder import Deployment
from tallystick.runtime.deployment.template import DEFAULT_TEMPLATE
from tallystick.runtime.keys.keystore import Keystore, Secret

SETTLE_S = 10.0
SECONDS = 30.0
START_S = 120.0
STOP_S = 60.0
SILENT = DEFAULT_TEMPLATE.replace('source = "synthetic"', 'source = "synthetic"\ncount = 1')

WHAT = {
    "up": "`tallystick up`, from the command to the last process ready",
    "pss": "memory of everything, supervisor included, idle; shared pages counted once (PSS)",
    "rss": "the same, shared pages counted in each process (RSS)",
    "cores": "processor time of everything, idle",
    "market": "processor time of everything, the synthetic market's 100 trades a second",
}


class Taken(msgspec.Struct, frozen=True):
    """What one round took: seconds to start, memory, and processor seconds a second."""

    start_s: float
    memory: Memory
    cores: float


@contextlib.contextmanager
def up(deployment: Deployment, pin: Secret) -> Iterator[tuple[subprocess.Popen[str], float]]:
    """`tallystick up` in a process of its own, and how long it took to be ready, s.  Raises `Void`."""
    reading, writing = os.pipe()
    began = time.perf_counter()
    with subprocess.Popen(
        [Path(sys.executable).parent / "tallystick", "up", str(deployment.directory), "--pin-fd", str(reading)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=(reading,),
        text=True,
    ) as process:
        try:
            os.close(reading)
            with os.fdopen(writing, "w") as given:
                given.write(pin.reveal() + "\n")
            said = []
            for line in process.stdout or ():
                said.append(line)
                if "processes ready after" in line:
                    break
                if time.perf_counter() - began > START_S:
                    raise Void(f"`tallystick up` was not ready within {START_S:.0f} s")
            else:
                raise Void(f"`tallystick up` ended: {''.join(said)[-500:]}")
            yield process, time.perf_counter() - began
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.communicate(timeout=STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


def measure(folder: Path, template: str) -> Taken:
    """One deployment, started, armed, left alone."""
    pin = Secret.random()
    deployment = init(folder, "idle", pin, time.time_ns, template=template)
    with up(deployment, pin) as (process, start_s):
        asyncio.run(operate.arm(deployment, Keystore.open(deployment.keystore, pin), Decimal(1)))
        time.sleep(SETTLE_S)
        names = tree(process.pid)
        before, began = {pid: processor_s(pid) for pid in names}, time.perf_counter()
        time.sleep(SECONDS)
        took = time.perf_counter() - began
        shares = {names[pid]: (processor_s(pid) - then) / took for pid, then in before.items()}
        held = {names[pid]: memory((pid,)) for pid in names}
        if process.poll() is not None:
            raise Void("`tallystick up` ended while it was measured")
    say("cores in thousandths: " + ", ".join(f"{name} {1000 * share:.0f}" for name, share in shares.items()))
    say("MB (PSS of RSS): " + ", ".join(f"{name} {each}" for name, each in held.items()))
    return Taken(start_s, sum(held.values(), Memory(0, 0)), sum(shares.values()))


def rows() -> list[Row]:
    """Start, memory, processor time."""
    with tempfile.TemporaryDirectory() as name:
        say("idle: everything runs, nothing happens")
        idle = measure(Path(name) / "idle", SILENT)
        say("idle: the synthetic market")
        market = measure(Path(name) / "market", DEFAULT_TEMPLATE)
    return [
        Row(WHAT["up"], min(idle.start_s, market.start_s), "s"),
        idle.memory.row(WHAT["pss"], "≤ 600 MB"),
        Row(WHAT["rss"], idle.memory.rss, "MB"),
        Row(WHAT["cores"], idle.cores, "cores", "≤ 0.2 cores"),
        Row(WHAT["market"], market.cores, "cores"),
    ]
