"""One process of a deployment as its supervisor sees it: started with its secrets and nothing else, looked at, ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections import deque
from typing import Final

import msgspec

from tallystick.runtime.deployment.folder import Deployment
from tallystick.runtime.deployment.logs import last_lines
from tallystick.runtime.deployment.owners import ready_pid, unready
from tallystick.runtime.durable import read_regular
from tallystick.runtime.environment import environment
from tallystick.runtime.keys.identity import MAX_FILE
from tallystick.runtime.keys.keystore import Secret, hand_over

POLL_S: Final = 0.02
# This many ends of it are remembered.
MAX_RESTARTS: Final = 10


class ProcessState(msgspec.Struct):
    """One supervised process as `up` shows it."""

    name: str
    pid: int = 0
    restarts: int = 0
    state: str = "stopped"
    exit_code: int | None = None


class Managed:
    """Owns the process.  `wanted`: it is to run; `ends`: when it ended by itself, as of the monotonic clock (s)."""

    def __init__(self, deployment: Deployment, name: str) -> None:
        self.state = ProcessState(name=name)
        self.process: subprocess.Popen[bytes] | None = None
        self.ends: deque[float] = deque(maxlen=MAX_RESTARTS)
        self.wanted = False
        self._deployment = deployment
        self._errors = deployment.log(name).with_suffix(".err")
        # Its certificate when it was started last.
        self._shown = b""
        # Where in its .err file this start's words begin.
        self._said_from = 0

    def launch(self, secrets: dict[str, Secret], channel: socket.socket | None) -> None:
        """Start it.  `channel`, which is closed here, is where it is given secret ids of the vault.  Raises `OSError`."""
        name = self.state.name
        unready(self._deployment, name)
        with contextlib.ExitStack() as ours:
            if channel is not None:
                ours.enter_context(channel)
            fd = hand_over(secrets)
            ours.callback(os.close, fd)
            fds = (fd,) if channel is None else (fd, channel.fileno())
            options = zip(("--secrets-fd", "--vault-fd"), map(str, fds), strict=False)
            stderr = ours.enter_context(self._errors.open("ab"))
            self._said_from = stderr.tell()
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "tallystick.runtime.deployment.process",
                    str(self._deployment.directory),
                    name,
                    *(word for option in options for word in option),
                ],
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                start_new_session=True,
                env={**environment(os.environ, self._deployment.variables(name)), "PYTHONSAFEPATH": "1"},
            )
        self.wanted = True
        self._shown = self._certificate()
        self.state.pid = self.process.pid
        self.state.state = "starting"

    @property
    def running(self) -> subprocess.Popen[bytes] | None:
        """Its process while that lives."""
        return self.process if self.process is not None and self.process.poll() is None else None

    @property
    def ended(self) -> subprocess.Popen[bytes] | None:
        """Its process once that has ended."""
        return self.process if self.process is not None and self.process.poll() is not None else None

    @property
    def ready(self) -> bool:
        """Whether this very process says that everything stored before its start was handled."""
        return ready_pid(self._deployment, self.state.name) == self.state.pid

    @property
    def has_another_certificate(self) -> bool:
        """Whether it was given one since it was started: a revoked component is when it is reinstated."""
        return self._certificate() != self._shown

    def why(self) -> str:
        """The last that it said in this run, or where to look."""
        lines = last_lines(self._errors, self._said_from)
        last = lines[-1].removeprefix("tallystick: ").removeprefix(f"{self.state.name}: ") if lines else ""
        return last[:500] or f"see {self._deployment.log(self.state.name)}"

    async def gone(self, seconds: float) -> None:
        """Wait until it has ended, for at most so many seconds."""
        for _ in range(int(seconds / POLL_S)):
            if self.running is None:
                return
            await asyncio.sleep(POLL_S)

    def _certificate(self) -> bytes:
        """What tells its certificate's file from another one."""
        try:
            return read_regular(self._deployment.identity(self.state.name), MAX_FILE)
        except OSError:
            return b""
