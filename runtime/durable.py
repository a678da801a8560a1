"""Files that outlast a crash of the process and, where it says so, of the machine.

- A file is replaced whole: temporary file beside it, fsync, rename, fsync of the folder.  At every moment the old or
  the new content is there, never a mixture.
- A line is appended by one write: kill -9 leaves it whole or not at all.  Only fsync makes it outlast a power failure.
- A new name is on the disk only once its folder was fsynced.

The disk is not trusted: what is read back is checked by whoever reads it.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from pathlib import Path


def write_durably(path: Path, data: bytes, mode: int) -> None:
    """Replace `path` by `data`, made with `mode`.  Raises `OSError`, and then leaves the old file and no other."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    # If we crash here, the new file is visible but may not survive a power failure: the caller has not been told yet.
    sync(path.parent)


def read_regular(path: Path, most: int, at: int = 0) -> bytes:
    """At most `most` bytes, from byte `at` on, of a regular file that somebody else may have put there.

    Raises `OSError`; also for a link, a pipe or a device, which would have us wait, or read something else.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        file.seek(at)
        return file.read(most)


def open_append(path: Path, mode: int) -> int:
    """A descriptor that appends to `path`, which is made with `mode` where it is missing.  Raises `OSError`."""
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, mode)


def append(descriptor: int, data: bytes) -> None:
    """Append `data` by one write, to the kernel.  Raises `OSError`, where the disk is full after a part of it."""
    written = os.write(descriptor, data)
    if written != len(data):
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {written} of {len(data)} bytes written")


def append_durably(path: Path, data: bytes, mode: int) -> None:
    """Append `data` to `path`, which is made with `mode` where it is missing, and bring it onto the disk.

    Raises `OSError`, and then leaves the file as long as it was.
    """
    new = not path.exists()
    descriptor = open_append(path, mode)
    try:
        size = os.fstat(descriptor).st_size
        try:
            append(descriptor, data)
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)
    if new:
        sync(path.parent)


def sync(path: Path) -> None:
    """Bring a file's content, or a folder's names, onto the disk.  Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Bring everything below `folder`, and its own names, onto the disk.  Raises `OSError`."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)
