"""A process that failed ends with its reason and its exit code, whatever still holds on to it."""

from __future__ import annotations

import subprocess
import sys

import pytest

# A service that fails in `ready`, as a gateway whose queue was full did, beside a task that swallows every cancellation.
SCRIPT = """
import asyncio, sys, tempfile, types
from pathlib import Path
from tallystick.runtime.deployment import process
from tallystick.schemas.errors import ConfigError, TallystickError

process.LEAVE_S = 0.5
FOLDER = tempfile.mkdtemp()
log = types.SimpleNamespace(exception=lambda *_, **__: None)
process.load_setup = lambda *_: types.SimpleNamespace(
    spec=None, log=log, deployment=types.SimpleNamespace(log=lambda name: name, seat=lambda _: Path(FOLDER), run=Path(FOLDER))
)
process.load_service = lambda _: None

async def deaf():
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass

async def run(setup, service, stop, leaving):
    asyncio.get_running_loop().kept = asyncio.create_task(deaf())
    await asyncio.sleep(0)
    raise {error}

process.run = run
sys.exit(process.main(Path("."), "gateway", {{}}, alone=False))
"""


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        ('TallystickError("BACKPRESSURE", "full")', 1, "tallystick: gateway: BACKPRESSURE: full"),
        ('ConfigError("LIMITS", "wrong")', 2, "tallystick: gateway: LIMITS: wrong"),
        ('RuntimeError("defect")', 1, "tallystick: gateway failed (RuntimeError); see gateway"),
    ],
)
def test_a_process_that_failed_never_hangs(error: str, code: int, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(error=error)], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr.strip()) == (code, said)
