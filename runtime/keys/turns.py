"""Processes take turns at the files of a SoftHSM token: one that makes or destroys keys is alone there.

SoftHSM 2.6 locks each file for itself and not the folder: a process that only looks for keys while another one makes one leaves
half a key there for good.  What signs takes no turn: it reads its own key alone, and disturbs nobody.

It is flock(2) on the token's folder, let go by the kernel when its holder ends.  Who may open the folder could hold it for
ever: whoever waits gives up after `WAIT_S`, in its own thread, and signing never waits for anybody's turn.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tallystick.schemas.errors import ConfigError

WAIT_S: Final = 2.0
_POLL_S: Final = 0.002


@contextlib.contextmanager
def turn(folder: Path, *, alone: bool, wait_s: float = WAIT_S) -> Iterator[None]:
    """Be at the token in `folder`, `alone` or beside others that only look.  Raises `ConfigError`."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        raise ConfigError("HSM_TOKEN", f"{folder}: {exc.strerror}") from exc
    try:
        _wait(fd, folder, fcntl.LOCK_EX if alone else fcntl.LOCK_SH, time.monotonic() + wait_s)
        yield
    finally:
        os.close(fd)


def _wait(fd: int, folder: Path, kind: int, ends: float) -> None:
    while True:
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > ends:
                raise ConfigError(
                    "HSM_TURN",
                    f"another process has been at the token in {folder} for seconds: `fuser {folder}` names it",
                ) from None
            time.sleep(_POLL_S)
        else:
            return
