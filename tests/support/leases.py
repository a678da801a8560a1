"""A lease of the vault for a component whose secrets the test hands it."""

from __future__ import annotations

import time
from collections.abc import Callable

from tallystick.runtime.vault.lease import Lease


def held(seconds: int = 86_400, monotonic: Callable[[], int] = time.monotonic_ns, now: int | None = None) -> Lease:
    """One that was given now (Unix ns)."""
    lease = Lease(monotonic)
    lease.granted(time.time_ns() if now is None else now, monotonic(), seconds)
    return lease
