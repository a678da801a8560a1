"""Opening what lies in an archive: regular files only, reached through no link, never larger than they may be.

Nothing here waits: a FIFO, a device or a socket in place of a file is refused (`FILE_KIND`), and so is a link in any
part of its path.

The archive is not trusted: an attacker who controls it can at most have its files refused, by name.
"""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import ClassVar, Final

from tallystick.schemas.errors import TallystickError

_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_LINKED: Final = (errno.ELOOP, errno.ENOTDIR, errno.EMLINK, errno.ENXIO)


class ArchiveError(TallystickError):
    """An archive that cannot be used as it is."""


class FileRefused(ArchiveError):
    """A file of an archive that is not what it should be.

    Codes: `FILE_MISSING`, `FILE_KIND`, `FILE_SIZE`, `FILE_HASH`, `FILE_LAYOUT`, `FILE_UNREADABLE`.
    """

    exit_code: ClassVar[int] = 1


def open_regular(directory: Path, name: str) -> BufferedReader:
    """Open the regular file `name` (relative to `directory`, which alone may be reached through links).

    Raises `FileRefused`; never waits.
    """
    folder = -1
    try:
        *folders, last = name.split("/")
        folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for part in folders:
            inner = os.open(part, _FLAGS | os.O_DIRECTORY, dir_fd=folder)
            os.close(folder)
            folder = inner
        descriptor = os.open(last, _FLAGS, dir_fd=folder)
    except FileNotFoundError:
        raise FileRefused("FILE_MISSING", f"{name} is not there") from None
    except OSError as exc:
        if exc.errno in _LINKED:
            raise FileRefused("FILE_KIND", f"{name} is no regular file, or reached through a link") from exc
        raise FileRefused("FILE_UNREADABLE", f"{name}: {exc.strerror}") from exc
    finally:
        if folder >= 0:
            os.close(folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileRefused("FILE_KIND", f"{name} is no regular file")
    return os.fdopen(descriptor, "rb")


def read_regular(directory: Path, name: str, limit: int) -> bytes:
    """The whole content of a regular file of at most `limit` bytes.  Raises `FileRefused`."""
    with open_regular(directory, name) as file:
        try:
            data = file.read(limit + 1)
        except OSError as exc:
            raise FileRefused("FILE_UNREADABLE", f"{name}: {exc.strerror}") from exc
    if len(data) > limit:
        raise FileRefused("FILE_SIZE", f"{name} has more than the {limit} bytes that it may have")
    return data
