"""Run a program that ends with whoever started it: `python -I -S child.py PARENT SIGNAL CHANNEL PROGRAM ARGUMENT…`.

- The kernel sends SIGNAL when the thread that started this process is gone, killed ones included: prctl(2),
  PR_SET_PDEATHSIG, which the program inherits through exec(3).
- PARENT is the starter's process id: where it has gone before the kernel was asked, nothing is run.
- CHANNEL is a Unix socket.  Once this process is closed to others of its user, it asks there for descriptors
  (`hand_over`), which the program finds from `FIRST_FD` on: they are never below the `/proc` of a process that others
  can read.

`harden` closes a process: undumpable, so that the kernel refuses others of its user `/proc/PID/mem`, `environ`, `fd`
and ptrace, and writes no core file.  A program that is executed afterwards starts dumpable again, unless it may not
read its own file: `unreadable`.  Root, and whoever may trace anything (`CAP_SYS_PTRACE`), is kept out by nothing here.

A script of the standard library alone, so that it costs a few milliseconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import resource
import shutil
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
# Above whatever the interpreter opens for itself.
FIRST_FD: Final = 100
MAX_FDS: Final = 8
_ASK: Final = b"?"


def harden() -> None:
    """Close this process to others of its user, and forbid it core files.  Raises `OSError` where the kernel refuses."""
    try:
        # One byte holds no core either, and stops a kernel that would hand the core to a program (core(5): a
        # `core_pattern` that is a pipe), to which no other limit applies: fs/coredump.c.
        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    except ValueError:  # it is nothing already, and may not be raised
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(PR_SET_DUMPABLE, 0)


def end_with_parent(number: int) -> None:
    """Ask the kernel for signal `number` when the parent is gone.

    It counts the thread that started us: one that lives as long as its process.
    """
    _prctl(PR_SET_PDEATHSIG, number)


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}): {os.strerror(ctypes.get_errno())}")


def hand_over(channel: socket.socket, fds: Sequence[int], timeout: float) -> None:
    """Give the child the descriptors once it asks.  Raises `OSError` (`TimeoutError`) where it does not."""
    channel.settimeout(timeout)
    if channel.recv(1) == _ASK:
        socket.send_fds(channel, [_ASK], fds)


def unreadable(program: str, copy: Path) -> str:
    """A copy of `program` that its owner may execute and not read, so that the kernel makes its process undumpable.

    `program` itself for root, who reads everything, and on a file system that executes nothing.  Raises `OSError`.
    """
    if os.geteuid() == 0:
        return program
    copy.unlink(missing_ok=True)
    try:
        shutil.copyfile(program, copy)
        copy.chmod(0o100)
        if os.access(copy, os.X_OK):
            return str(copy)
    except BaseException:
        copy.unlink(missing_ok=True)
        raise
    copy.unlink()
    return program


def main(arguments: list[str]) -> None:
    """`PARENT SIGNAL CHANNEL PROGRAM ARGUMENT…`."""
    parent, number, channel, *command = arguments
    harden()
    end_with_parent(int(number))
    if os.getppid() != int(parent):
        return
    fds: list[int] = []
    with socket.socket(fileno=int(channel)) as ours, contextlib.suppress(ConnectionError):
        ours.sendall(_ASK)
        _, fds, _, _ = socket.recv_fds(ours, 1, MAX_FDS)
    # Out of the way first: where the starter holds a hundred files, the channel or one of these has such a number itself.
    apart = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FIRST_FD + MAX_FDS) for fd in fds]
    for fd in fds:
        os.close(fd)
    for place, fd in enumerate(apart, FIRST_FD):
        os.dup2(fd, place, inheritable=True)
    os.execv(command[0], command)  # noqa: S606 - the same arguments, no shell


if __name__ == "__main__":
    main(sys.argv[1:])
