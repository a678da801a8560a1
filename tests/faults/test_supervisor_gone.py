"""The supervisor dies without a word: what it started stops, it does not trade on unwatched, and the broker frees its port."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.support.deployment import make

SCRIPT = """
import asyncio, sys
from pathlib import Path
from tallystick.runtime.deployment.folder import Deployment
from tallystick.runtime.keys.keystore import Keystore
from tests.support.deployment import PIN, running

async def run():
    deployment = Deployment.load(Path(sys.argv[1]))
    async with running(deployment, Keystore.open(deployment.keystore, PIN), "breaker") as desk:
        names = [s.pid for s in desk.supervisor.states] + [desk.supervisor.server.pid]
        print(*names, flush=True)
        await asyncio.sleep(60)

asyncio.run(run())
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_processes_and_broker_end_when_their_supervisor_was_killed(tmp_path: Path) -> None:
    deployment, _ = make(tmp_path / "desk")
    root = Path(__file__).parents[2]
    supervisor = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(deployment.directory)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert supervisor.stdout is not None
    pids = [int(text) for text in supervisor.stdout.readline().split()]
    try:
        assert len(pids) == 3
        assert all(alive(pid) for pid in pids)
        supervisor.kill()
        supervisor.wait()
        deadline = time.monotonic() + 20
        while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not any(alive(pid) for pid in pids)
    finally:
        supervisor.kill()
        supervisor.stdout.close()
        for pid in pids:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
