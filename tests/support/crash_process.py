"""A process that takes a snapshot every few messages; execution and custody kill themselves at a named point as well.

    python -P -m tests.support.crash_process DIR COMPONENT --secrets-fd N

`DIR/run/<component>.crash-at` holds the name of a point, once it shall be reached; it is removed just before SIGKILL, so that the process that is
started again lives.  Everything else is the deployed process.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from tallystick.components.custody.main import Custody
from tallystick.components.execution.main import Execution
from tallystick.runtime.bus import snapshots
from tallystick.runtime.deployment import process
from tallystick.runtime.deployment.service import Service

EVERY = 50


def main(arguments: list[str]) -> int:
    directory, name = Path(arguments[0]), arguments[1]
    order = directory / "run" / f"{name}.crash-at"

    def checkpoint(point: str) -> None:
        if order.exists() and order.read_text() == point:
            order.unlink()
            os.kill(os.getpid(), signal.SIGKILL)

    made: dict[str, Service] = {
        "execution": Execution(checkpoint=checkpoint),
        "custody": Custody(checkpoint=checkpoint),
    }
    load = process.load_service
    process.load_service = lambda spec: made.get(spec.name) or load(spec)
    # Each kill finds one that was written moments before, or is being written.
    snapshots.EVERY = EVERY  # type: ignore[misc]
    return process.from_command_line(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
