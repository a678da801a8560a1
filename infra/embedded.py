"""What the embedded servers, the broker and the vault, have in common: how such a program is started and given secrets.

- Configuration and keys reach it through memory files (`/proc/self/fd/N`), never through a file or the environment.  They
  are handed over once the process is closed to others of its user (`child`), and hold something only while it reads.
- It ends when whoever started it was killed (`child`), and gets no variable of its starter's environment but `PATH`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from tallystick.infra.nats import child
from tallystick.schemas.errors import ConfigError

START_TIMEOUT_S: Final = 20.0
# A server that starts with less stops soon after: better not to start, with a reason.
MIN_FREE_BYTES: Final = 16 * 1_048_576


class MemoryFiles:
    """`count` files in memory that hold something only while they are `filled`."""

    def __init__(self, name: str, count: int = 2) -> None:
        self._fds = [os.memfd_create(name, os.MFD_CLOEXEC) for _ in range(count)]

    @contextlib.contextmanager
    def filled(self, *contents: bytes) -> Iterator[list[int]]:
        """The descriptors, of files that hold `contents` until the block ends."""
        try:
            for fd, data in zip(self._fds, contents, strict=True):
                os.pwrite(fd, data, 0)
            yield self._fds
        finally:
            # Whoever was handed the descriptors has them still.
            for fd in self._fds:
                os.ftruncate(fd, 0)

    def close(self) -> None:
        """Empty them and let go of them."""
        for fd in self._fds:
            os.ftruncate(fd, 0)
            os.close(fd)
        self._fds = []


def launch(
    program: Sequence[str], fds: Sequence[int], log_fd: int, variables: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start `program`, which ends with this thread, and finds `fds` from `child.FIRST_FD` on.

    A process that ends at once is for the caller to find, with its reason in the log.
    """
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            process = subprocess.Popen(
                [
                    sys.executable, "-I", "-S", str(Path(child.__file__)), str(os.getpid()), str(int(signal.SIGTERM)),
                    str(theirs.fileno()), *program,
                ],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=log_fd,
                stderr=log_fd,
                env={"PATH": os.environ.get("PATH", ""), **variables},
                # Ctrl-C in the terminal must reach the supervisor alone, which stops things in order.
                start_new_session=True,
            )  # fmt: skip
        with contextlib.suppress(OSError):
            child.hand_over(ours, fds, START_TIMEOUT_S)
    return process


def stop(process: subprocess.Popen[bytes], timeout: float) -> None:
    """End it by its process id: SIGTERM, after `timeout` seconds SIGKILL.  Does nothing if it has ended."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            # What was acknowledged is on disk; recovery at the next start is the same code as after SIGTERM.
            process.kill()
            process.wait()


def check_space(folder: Path, who: str) -> None:
    """Raise `ConfigError` where too little is free for `who` to start."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < MIN_FREE_BYTES:
        raise ConfigError(
            "DISK_FULL", f"{free:,} bytes are free at {folder}, {who} needs {MIN_FREE_BYTES:,}: free some space"
        )


def taken(host: str, port: int) -> ConfigError:
    """The error for a port that another program has."""
    return ConfigError(
        "PORT_TAKEN", f"port {port} on {host} is taken by another program: stop that one or choose another port"
    )


def free_port(host: str) -> int:
    """A port that nothing listens on now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def await_tls(process: subprocess.Popen[bytes], host: str, port: int, refused: Callable[[], ConfigError]) -> None:
    """Wait until `process` shakes hands.  Raises what `refused` makes where it ends instead, or does not in time.

    That it takes connections is not enough: a server may listen before it has read its key.
    """
    # Whose certificate it is, is for its clients to look at: nothing is said here.
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            with socket.create_connection((host, port), timeout=1) as plain, tls.wrap_socket(plain):
                return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise refused() from None
        time.sleep(0.01)


def check_free(host: str, port: int) -> None:
    """Raise `ConfigError` where another program has the port."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as exc:
            raise taken(host, port) from exc
