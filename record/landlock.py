"""Landlock (linux/landlock.h): this process, and every thread that it starts from here on, reads what is named and no more.

Threads that exist already would stay outside of it, so there must be none.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tallystick.schemas.errors import TallystickError

# Rights over files, of each version of the interface that added some.
_ALL_RIGHTS: Final = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_NET: Final = 0b11  # BIND_TCP, CONNECT_TCP, from version 4
_SCOPED: Final = 0b11  # abstract Unix sockets and signals of other processes, from version 6
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_PR_SET_NO_NEW_PRIVS: Final = 38


class LandlockError(TallystickError):
    """The kernel has Landlock, and this process could not be restricted."""


def restrict(readable: Iterable[Path]) -> bool:
    """Forbid everything but reading `readable` (files, and folders with all below); whether the kernel could do that.

    Raises `LandlockError`, also where other threads run already.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    if version < 1:
        return False
    threads = sum(1 for _ in Path("/proc/self/task").iterdir())
    if threads != 1:
        raise LandlockError("SANDBOX", f"{threads - 1} other threads run already, and would not be restricted")
    rights = _ALL_RIGHTS[max(v for v in _ALL_RIGHTS if v <= version)]
    attributes = struct.pack("<Q", rights)
    if version >= 4:
        attributes += struct.pack("<Q", _NET)
    if version >= 6:
        attributes += struct.pack("<Q", _SCOPED)
    ruleset = libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))
    done = ruleset >= 0 and all(_allow(libc, ruleset, path) for path in readable)
    done = done and libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    if not done or libc.syscall(_RESTRICT_SELF, ruleset, 0) != 0:
        raise LandlockError("SANDBOX", f"the kernel refused to restrict the process: {os.strerror(ctypes.get_errno())}")
    os.close(ruleset)
    return True


def _allow(libc: ctypes.CDLL, ruleset: int, path: Path) -> bool:
    try:
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return True  # what is not there needs no rule
    try:
        rights = _READ_FILE | _READ_DIR if path.is_dir() else _READ_FILE
        return bool(libc.syscall(_ADD_RULE, ruleset, 1, struct.pack("<Qi", rights, parent), 0) == 0)
    finally:
        os.close(parent)
