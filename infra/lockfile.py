"""One owner of a folder or a store: a file that its owner keeps locked, with the owner's process id in it.

- The lock is fcntl(2)'s on the open file (`F_OFD_SETLK`): the kernel lets it go when the last process that holds its
  descriptor is gone, killed ones included, and tells whether it stands.  A file that lies there unlocked means nothing.
- The id is written while the lock is held, and is that of a process that holds it: as long as the lock stands, that
  process lives, and its number is nobody else's.
- A file says nothing of other users' processes: whoever owns the file could have named any of them, and none but its own is
  ended.
- An owner that says `alone` belongs to whoever started it, and is never ended from here.
- The descriptor may be handed to a child, which then is the owner: its starter writes the child's id, and lets go.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import stat
import struct
import time
from pathlib import Path
from typing import Final, Self

from tallystick.schemas.errors import ConfigError

POLL_S: Final = 0.05
# A text of our own is far shorter.
_MAX: Final = 64
# Linux has no larger ones (PID_MAX_LIMIT).
PIDS: Final = 1 << 22
_ALONE: Final = " alone"
_FLOCK: Final = "hhqqi"


class Held(ConfigError):
    """Somebody else is the owner: `pid`, 0 where that is not known."""

    def __init__(self, path: Path, pid: int) -> None:
        """`path` is the file."""
        super().__init__("RUNNING", f"{path} is held by process {pid or '?'}: end that first")
        self.pid = pid


class Lockfile:
    """The lock on `path`, from `take` to `release`; a context manager."""

    def __init__(self, path: Path, fd: int) -> None:
        """For `take`."""
        self.path = path
        self.fd = fd

    @classmethod
    def take(cls, path: Path, *, alone: bool = False) -> Self:
        """Become the owner, in this process's name.  Raises `Held`, and `OSError` where the file cannot be made."""
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                try:
                    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_WRLCK))
                except BlockingIOError:
                    raise Held(path, _read(fd)[0]) from None
                # Whoever had it before may have taken the name away between our two steps.
                if os.fstat(fd).st_nlink:
                    made = cls(path, fd)
                    made.name(os.getpid(), alone=alone)
                    return made
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def name(self, pid: int, *, alone: bool = False) -> None:
        """Write the owner's process id; 0: none that could be named yet."""
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, f"{pid}{_ALONE if alone else ''}\n".encode(), 0)

    def hand_on(self) -> None:
        """Let go of this process's hold and leave it to the child that has the descriptor."""
        os.close(self.fd)

    def release(self) -> None:
        """Take the file away and let go."""
        self.path.unlink(missing_ok=True)
        os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def owner(path: Path) -> int | None:
    """The process id of who holds `path`; 0 for one that is not named (yet); None if nobody does."""
    found = _owner(path)
    return None if found is None else found[0]


def _owner(path: Path) -> tuple[int, bool] | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as exc:
        if exc.errno == errno.ELOOP:  # a link
            return None
        raise
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            # Whoever owns the folder put it there, and could as well have put nothing.
            return None
        kind, *_ = struct.unpack(_FLOCK, fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _flock(fcntl.F_RDLCK)))
        return None if kind == fcntl.F_UNLCK else _read(fd)
    finally:
        os.close(fd)


def ask_owner_to_end(path: Path) -> None:
    """Send SIGTERM to whoever holds `path`, if somebody does.  Raises `Held` for another user's process."""
    if pid := owner(path):
        _signal(path, pid, signal.SIGTERM)


def end_owner(path: Path, patience: float) -> int:
    """Wait `patience` seconds for the owner of `path` to end, and end it with SIGKILL then; its process id, 0 for none.

    Only for an owner that nobody watches any more.  Raises `Held` for one that cannot be ended.
    """
    ended = 0
    deadline = time.monotonic() + patience
    killed = False
    while (found := _owner(path)) is not None:
        pid, alone = found
        ended = pid or ended
        if alone or (time.monotonic() > deadline and (killed or not pid)):
            raise Held(path, pid)
        if time.monotonic() > deadline:
            _signal(path, pid, signal.SIGKILL)
            killed, deadline = True, time.monotonic() + patience
        time.sleep(POLL_S)
    return ended


def _signal(path: Path, pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        process = os.pidfd_open(pid)
        try:
            if _user(pid) != path.lstat().st_uid:
                raise Held(path, pid)
            # It may have ended meanwhile, and its number be another one's: the descriptor is of who holds the lock.
            if owner(path) == pid:
                signal.pidfd_send_signal(process, number)
        finally:
            os.close(process)


def _user(pid: int) -> int:
    """Whose process it is.  Raises `FileNotFoundError` where it has ended."""
    for line in Path(f"/proc/{pid}/status").read_text("utf-8", "replace").splitlines():
        if line.startswith("Uid:"):
            return int(line.split()[1])
    raise FileNotFoundError(pid)


def _flock(kind: int) -> bytes:
    """The kernel's `struct flock` over a whole file."""
    return struct.pack(_FLOCK, kind, os.SEEK_SET, 0, 0, 0)


def _read(fd: int) -> tuple[int, bool]:
    number, space, _ = os.pread(fd, _MAX, 0).decode("ascii", "replace").strip().partition(" ")
    named = int(number) if number.isascii() and number.isdigit() else 0
    return named if named < PIDS else 0, bool(space)
