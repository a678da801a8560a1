"""Who runs a deployment: one supervisor, one process a component; and what a killed supervisor left behind.

A component's process holds `<component>.pid` in its `Deployment.seat` as long as it lives (`infra/lockfile.py`), the
supervisor `DIR/run/supervisor.pid`; `<component>.ready` holds its process id once it is ready.  A component with a user of
its own can put there what it likes: it is read as such (`read_regular`).

Where a process holds its file and nobody has the deployment up, it is an orphan: it was told to end when its supervisor was
killed, and is waited for, and ended, before a second one touches the same files.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tallystick.infra.embedded import end_orphan
from tallystick.infra.lockfile import PIDS, end_owner, owner
from tallystick.runtime.deployment.folder import Deployment
from tallystick.runtime.durable import read_regular
from tallystick.schemas.errors import ConfigError

# A component that is stopped publishes what is queued first; it has no longer under a supervisor either.
PATIENCE_S: Final = 15.0
_MAX_PID: Final = 32


def supervisor_file(deployment: Deployment) -> Path:
    """What the supervisor holds."""
    return deployment.run / "supervisor.pid"


def component_file(deployment: Deployment, component: str) -> Path:
    """What the process of a component holds."""
    return deployment.seat(component) / f"{component}.pid"


def ready_file(deployment: Deployment, component: str) -> Path:
    """What the process of a component writes when it is ready."""
    return deployment.seat(component) / f"{component}.ready"


def ready_pid(deployment: Deployment, component: str) -> int:
    """The process id that the component says is ready; 0 where it says none."""
    try:
        pid = int(read_regular(ready_file(deployment, component), _MAX_PID))
    except (OSError, ValueError):
        return 0
    return pid if 0 < pid < PIDS else 0


def unready(deployment: Deployment, component: str) -> None:
    """Take away what a process before said, where that can be: another process id is nobody's word."""
    with contextlib.suppress(OSError):
        ready_file(deployment, component).unlink()


def require_down(deployment: Deployment) -> None:
    """Refuse a deployment that a process has up.  Raises `ConfigError`."""
    pid = owner(supervisor_file(deployment))
    if pid is not None:
        raise ConfigError("RUNNING", f"{deployment.directory} is up (pid {pid or '?'}): stop that first")


def end_orphans(deployment: Deployment, report: Callable[[str], None]) -> None:
    """End what a killed supervisor left running of a deployment that is down.  Raises `Held`, and `RUNNING` where it is up.

    A component that somebody runs alone (`tallystick run`) is no orphan: it belongs to whoever started it.
    """
    require_down(deployment)
    for component in deployment.bus().components:
        if orphan := end_owner(component_file(deployment, component), PATIENCE_S):
            report(f"{component} (pid {orphan}), left by an `up` that was killed, has ended")
    if orphan := end_orphan(deployment.vault):
        report(f"the vault (pid {orphan}), left by an `up` that was killed, has ended")
    if orphan := end_orphan(deployment.jetstream):
        report(f"the broker (pid {orphan}), left by an `up` that was killed, has ended")
