"""No process, no network, no server: what a unit test may not start fails where it is started.

Python's own audit events tell of it, whichever library it comes from.  A hook cannot be taken back, so one stands for
the whole run and a flag says whether it watches.  Pairs of sockets within the process, which event loops need, are fine.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

FORBIDDEN = frozenset(
    {"subprocess.Popen", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.system", "socket.bind", "socket.connect"}
)  # fmt: skip


class _Watch:
    installed = False
    on = False


def _hook(event: str, _: tuple[object, ...]) -> None:
    if _Watch.on and event in FORBIDDEN:
        raise AssertionError(f"{event} in a unit test: tests that need it stand in tests/integration")


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Within this, starting a process or using the network raises `AssertionError`."""
    if not _Watch.installed:
        sys.addaudithook(_hook)
        _Watch.installed = True
    _Watch.on = True
    try:
        yield
    finally:
        _Watch.on = False
