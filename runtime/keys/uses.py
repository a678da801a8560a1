"""How often each key of a component's token was used, over restarts: a small file of the component's own, for people.

`DIR/state/<component>/key-uses.json`: an object of CKA_ID in hex to a number.  It is written every `SAVE_S` and at a stop: who
is killed forgets what he counted since.  Whoever can write the file can say anything there: it decides nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from tallystick.runtime.durable import write_durably
from tallystick.schemas.errors import NOT_DECODED

SAVE_S: Final = 10.0


def read(state: Path) -> dict[str, int]:
    """What is counted in a component's `state` folder; nothing where there is no file, or none of ours."""
    try:
        return msgspec.json.decode(_path(state).read_bytes(), type=dict[str, int])
    except (OSError, *NOT_DECODED):
        return {}


class Uses:
    """Counts on from what the process before has left; `counted` is what this one uses (`Token.uses`)."""

    def __init__(self, state: Path, counted: Mapping[bytes, int]) -> None:
        self._state = state
        self._before = read(state)
        self._counted = counted
        self._saved: dict[str, int] = self._before

    def save(self) -> None:
        """Write the file where something changed.  Raises `OSError`."""
        total = dict(self._before)
        for key_id, count in self._counted.items():
            total[key_id.hex()] = total.get(key_id.hex(), 0) + count
        if total != self._saved:
            self._state.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_durably(_path(self._state), msgspec.json.encode(total, order="sorted"), 0o600)
            self._saved = total

    async def keep(self) -> None:
        """Save every `SAVE_S`, for ever.  Raises `OSError`."""
        while True:
            await asyncio.sleep(SAVE_S)
            await asyncio.to_thread(self.save)


def _path(state: Path) -> Path:
    return state / "key-uses.json"
