"""What a process says of itself to whoever looks (`tallystick status`), in a small file.

`<component>.status` in its `Deployment.seat` is JSON, an object of text: what the component's `Service.status` says, and
`error`, the newest error that it logged, which outlives a restart.  It is for people and decides nothing: whoever can write
the folder can say anything there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from tallystick.runtime.deployment.folder import Deployment
from tallystick.runtime.deployment.logs import last_error
from tallystick.runtime.durable import read_regular, write_durably
from tallystick.schemas.errors import NOT_DECODED

# How often a component says it anew.
STATUS_S: Final = 1.0
MAX_BYTES: Final = 65_536


class Board:
    """One component's file."""

    def __init__(self, deployment: Deployment, component: str) -> None:
        """Reads what the process before has left."""
        self._path = _path(deployment, component)
        self._shown = read(deployment, component)
        self._error = self._shown.get("error", "")

    def show(self, status: Mapping[str, str]) -> None:
        """Replace what it says, where that changed.  Raises `OSError`."""
        shown = dict(status)
        if error := last_error() or self._error:
            shown["error"] = error
        if shown != self._shown:
            write_durably(self._path, msgspec.json.encode(shown), 0o600)
            self._shown = shown


def read(deployment: Deployment, component: str) -> dict[str, str]:
    """What a component said last, as it is or was: look whether it runs."""
    try:
        return msgspec.json.decode(read_regular(_path(deployment, component), MAX_BYTES), type=dict[str, str])
    except (OSError, *NOT_DECODED):
        return {}


def _path(deployment: Deployment, component: str) -> Path:
    return deployment.seat(component) / f"{component}.status"
