"""The demo's folder, which each demo makes anew: only one that is a demo's, that nobody has up, and one demo at a time."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tallystick.infra.lockfile import Held, Lockfile
from tallystick.runtime.deployment.folder import CONFIG_NAME, Deployment
from tallystick.runtime.deployment.owners import end_orphans
from tallystick.schemas.errors import ConfigError

MARK: Final = ".tallystick-demo"


def alone(directory: Path) -> Lockfile:
    """The right to make `directory` anew, to be held for as long as the demo runs.  Raises `ConfigError`."""
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        return Lockfile.take(directory.with_name(f".{directory.name}.demo"))
    except Held as exc:
        raise ConfigError(
            "RUNNING",
            f"a demo runs in {directory} (pid {exc.pid or '?'}): wait for it, or take another folder with --dir",
        ) from exc
    except OSError as exc:
        raise ConfigError("DEMO_FOLDER", f"{directory.parent} cannot be used: {exc.strerror}") from exc


def clear(directory: Path, report: Callable[[str], None]) -> None:
    """Remove an earlier demo, and the processes that one left that was killed.  Raises `ConfigError`."""
    if not directory.exists():
        return
    if any(directory.iterdir()) and not (directory / MARK).exists():
        raise ConfigError("DEMO_FOLDER", f"{directory} is not a demo's folder: choose another with --dir")
    if (directory / CONFIG_NAME).exists():
        end_orphans(Deployment.load(directory), report)
    shutil.rmtree(directory)


def mark(directory: Path) -> None:
    """Say that the folder is a demo's."""
    (directory / MARK).touch()
