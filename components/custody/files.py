"""The files of custody's journals: one a UTC day (`<kind>-YYYY-MM-DD.jsonl`), a JSON object a line, only ever appended to.

A line is one `write`: kill -9 leaves whole lines.  A power failure may tear the last ones; the next line then starts on
a line of its own.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from tallystick.runtime.durable import append, open_append
from tallystick.schemas.bounds import SECOND

MODE: Final = 0o600


class DayFiles:
    """The files of one `kind` in `directory`; one process at a time."""

    def __init__(self, directory: Path, kind: str) -> None:
        self.directory = directory
        self._kind = kind
        self._file: int | None = None
        self._day = self._newest = ""
        self._dirty = False

    def newest(self, count: int) -> list[Path]:
        """The newest `count` files that there are, oldest first.  Raises `OSError`."""
        found = sorted(self.directory.glob(f"{self._kind}-*.jsonl"))[-count:]
        if found:
            self._newest = found[-1].stem.removeprefix(f"{self._kind}-")
        return found

    def write(self, text: bytes, now: int) -> None:
        """Append a line at `now` (Unix ns).  Raises `OSError`."""
        # A clock that is put back over midnight goes on in the newer file: numbers rise from file to file.
        day = max(self._newest, datetime.fromtimestamp(now // SECOND, UTC).strftime("%Y-%m-%d"))
        if self._file is None or day != self._day:
            self.close()
            self._file = open_append(self.directory / f"{self._kind}-{day}.jsonl", MODE)
            self._day = self._newest = day
            self._dirty = True
        # After a torn line the next one begins on a line of its own; an empty line means nothing.
        data = (b"\n" if self._dirty else b"") + text + b"\n"
        self._dirty = True
        append(self._file, data)
        self._dirty = False

    def sync(self) -> None:
        """Make what was appended outlast a power failure.  Raises `OSError`; safe in another thread."""
        if self._file is not None:
            os.fsync(self._file)

    def close(self) -> None:
        """Close the file; the next line opens it again."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
