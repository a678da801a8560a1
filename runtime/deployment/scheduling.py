"""Who gets the core where cores are scarce: what an order, or its stopping, waits for goes first, who reads along yields.

- An order's way and the breaker (`PRECEDENCE`, and the broker) run under real-time round robin, at its lowest priority,
  once they are ready: an order, and a trip, then wait for nobody who merely reads.  Without the right to it, everything goes on at ordinary priority.
- No loop of ours holds the machine: a process that runs for `STRETCH_S` without once waiting falls back to ordinary
  priority for `REST_S`, and one that cannot even do that is killed by the kernel after `KILLED_S`.  The broker's bound
  is the kernel's own (`sched_rt_runtime_us`), which leaves a twentieth of each core to others.
- Who reads along is lowered no further than `NICENESS`: on a machine that others fill, the audit has to say that it
  lives, and the detectors have to see a runaway strategy, in their time.

Source: sched(7), getrlimit(2) `RLIMIT_RTTIME`.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

PRECEDENCE: Final = frozenset(("gateway", "execution", "custody", "breaker"))
STRETCH_S: Final = 1
KILLED_S: Final = 20
REST_S: Final = 5.0
NICENESS: Final = {"audit": 5, "portfolio": 5, "streams": 5}
# The kernel takes one change of a group's niceness in a tenth of a second from whoever is not root.
RETRY_S: Final = 0.05
ATTEMPTS: Final = 60


def yield_to_others(component: str) -> None:
    """Lower this process's priority; it leads a session of its own.  Raises `OSError` where the system refuses.

    Where the kernel schedules sessions as groups (`CONFIG_SCHED_AUTOGROUP`), only the group's niceness counts between
    them.
    """
    nice = NICENESS.get(component)
    if nice is None:
        return
    os.setpriority(os.PRIO_PROCESS, 0, max(nice, os.getpriority(os.PRIO_PROCESS, 0)))
    group = Path("/proc/self/autogroup")
    for _ in range(ATTEMPTS):
        try:
            group.write_text(str(nice))
        except FileNotFoundError:  # no such groups here
            return
        except BlockingIOError:
            time.sleep(RETRY_S)
        else:
            return
    raise TimeoutError(f"refused {ATTEMPTS} times: a lower priority")


def precede(pid: int) -> None:
    """Put the threads of another process of ours, and those that they will start, first.  Raises `OSError`."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # a thread that has ended meanwhile
            os.sched_setscheduler(int(thread.name), os.SCHED_RR, os.sched_param(1))


class Precedence:
    """This process's main thread first, as long as it waits now and then.  Called from the main thread.

    `said` is told when it falls back, in `text`.
    """

    def __init__(self, said: Callable[..., object]) -> None:
        self._said = said

    def take(self) -> None:
        """Raises `OSError` where the system refuses."""
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
        resource.setrlimit(resource.RLIMIT_RTTIME, (STRETCH_S * 1_000_000, KILLED_S * 1_000_000))
        signal.signal(signal.SIGXCPU, self._rest)

    def _rest(self, _: int, __: object) -> None:
        """The kernel says that we ran too long without waiting."""
        os.sched_setscheduler(0, os.SCHED_OTHER | os.SCHED_RESET_ON_FORK, os.sched_param(0))
        self._said(text=f"ran for {STRETCH_S} s without waiting: ordinary priority for {REST_S:.0f} s")
        main = threading.get_native_id()
        timer = threading.Timer(REST_S, self._again, (main,))
        timer.daemon = True
        timer.start()

    def _again(self, main: int) -> None:
        os.sched_setscheduler(main, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
