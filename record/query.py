"""Asks the sandbox: starts it, hands it the question, gives its rows.  See `sandbox` for what it may do."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from tallystick.record.basis import Basis, basis, read_sound
from tallystick.record.files import FileRefused
from tallystick.record.sandbox import QueryRefused, Request
from tallystick.record.views import ALWAYS
from tallystick.schemas.seal import Verifier

SECONDS: Final = 60
# A file that compaction replaced is gone a minute later: then the manifest is read again, so many times.
_TRIES: Final = 3
# Nothing of the caller's environment: it may hold what SQL has no business with.  Arrow's allocator would start a thread
# of its own, which Landlock could not restrict any more.
ENVIRONMENT: Final = {
    "PATH": os.defpath,
    "PYTHONSAFEPATH": "1",
    "HOME": "/nonexistent",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}


class Answer:
    """A running query: `columns` are known at once, `rows` come as they are computed, `total` when they ended.

    `basis` says what it rests on.
    """

    def __init__(
        self,
        archive: Path,
        sql: str,
        *,
        limit: int = 0,
        seconds: int = SECONDS,
        since: int = ALWAYS[0],
        until: int = ALWAYS[1],
        verifiers: Sequence[Verifier] = (),
    ) -> None:
        """Ask about what the broker stored from `since` and before `until` (Unix ns); other files are not read.

        Raises `QueryRefused`; `ArchiveError` if there is no archive, or, as `Tampered` and `FileRefused`, if it is not
        what its manifest and newest checkpoint name.
        """
        try:
            sql.encode()
        except UnicodeEncodeError as exc:
            raise QueryRefused("SQL_ENCODING", f"the query is not UTF-8: character {exc.start + 1}") from exc
        self.total = 0
        self._seconds = seconds
        self._timer: threading.Timer | None = None
        for attempt in range(_TRIES):
            manifest = read_sound(archive)
            segments = [s for s in manifest.live.values() if since <= s.last_time and s.first_time < until]
            request = Request(str(archive.resolve()), segments, sql, limit, seconds, since, until)
            try:
                self.basis: Basis = basis(archive, manifest, verifiers)
                self._start(request)
            except FileRefused as exc:
                if exc.code != "FILE_MISSING" or attempt == _TRIES - 1 or read_sound(archive).head == manifest.head:
                    raise
            else:
                break
        # From here on the query alone takes time.
        self._timer = threading.Timer(seconds + 5, self._process.kill)
        # Whoever interrupts us waits for no timer, nor does the query outlive us.
        self._timer.daemon = True
        self._timer.start()
        first = self._next()
        self.columns: list[str] = first["columns"] if isinstance(first, dict) else []

    def _start(self, request: Request) -> None:
        """Start the process and wait until it has opened its files.  Raises `FileRefused`, `QueryRefused`."""
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tallystick.record.sandbox"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=ENVIRONMENT,
        )
        atexit.register(self._process.kill)
        stdin = self._process.stdin
        if stdin is None:
            raise QueryRefused("SANDBOX", "no pipe to the query's process")
        try:
            stdin.write(msgspec.json.encode(request))
            stdin.close()
        except BrokenPipeError:
            pass  # it ended at once; what follows says why
        self._next()

    @property
    def rows(self) -> Iterator[list[Any]]:
        """The rows, values as JSON has them.  Raises `QueryRefused` or `FileRefused` where the query fails later."""
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
            refusal = FileRefused if value.get("file") else QueryRefused
            raise refusal(value["error"], value["text"])
        return value

    def _end(self) -> int:
        if self._timer is not None:
            self._timer.cancel()
        atexit.unregister(self._process.kill)
        if self._process.stdout is not None:
            self._process.stdout.close()
        return self._process.wait()
