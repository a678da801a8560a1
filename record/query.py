"""Asks the sandbox: starts it, hands it the question, gives its rows.  See `sandbox` for what it may do."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from tallystick.record.manifest import read_manifest
from tallystick.record.sandbox import QueryRefused, Request

SECONDS: Final = 60


class Answer:
    """A running query: `columns` are known at once, `rows` come as they are computed, `total` when they ended."""

    def __init__(self, archive: Path, sql: str, *, limit: int = 0, seconds: int = SECONDS) -> None:
        """Raises `QueryRefused`, or `ArchiveError` if there is no archive."""
        manifest = read_manifest(archive)
        request = Request(str(archive.resolve()), sorted(manifest.live), sql, limit, seconds)
        self.total = 0
        self._seconds = seconds
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tallystick.record.sandbox"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Nothing of the caller's environment: it may hold what SQL has no business with.
            env={"PATH": os.defpath, "PYTHONSAFEPATH": "1", "HOME": "/nonexistent"},
        )
        self._timer = threading.Timer(seconds + 5, self._process.kill)
        # Whoever interrupts us waits for no timer, nor does the query outlive us.
        self._timer.daemon = True
        atexit.register(self._process.kill)
        self._timer.start()
        stdin = self._process.stdin
        if stdin is None:
            raise QueryRefused("SANDBOX", "no pipe to the query's process")
        try:
            stdin.write(msgspec.json.encode(request))
            stdin.close()
        except BrokenPipeError:
            pass  # it ended at once; what follows says why
        first = self._next()
        self.columns: list[str] = first["columns"] if isinstance(first, dict) else []

    @property
    def rows(self) -> Iterator[list[Any]]:
        """The rows, values as JSON has them.  Raises `QueryRefused` where the query fails later."""
        while True:
            value = self._next()
            if isinstance(value, dict):
                self.total = value["rows"]
                self._end()
                return
            yield value

    def _next(self) -> Any:
        stdout = self._process.stdout
        line = stdout.readline() if stdout is not None else b""
        if not line.endswith(b"\n"):
            code = self._end()
            raise QueryRefused("SQL_LIMITS", f"the query was ended (exit {code}): over {self._seconds} s or its memory")
        value = msgspec.json.decode(line)
        if isinstance(value, dict) and "error" in value:
            self._end()
            raise QueryRefused(value["error"], value["text"])
        return value

    def _end(self) -> int:
        self._timer.cancel()
        atexit.unregister(self._process.kill)
        if self._process.stdout is not None:
            self._process.stdout.close()
        return self._process.wait()
