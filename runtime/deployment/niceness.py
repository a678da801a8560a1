"""Who reads what the money path writes yields to it where cores are scarce.

No further than `NICENESS`: on a machine that others fill, the audit has to say that it lives, and the detectors have to
see a runaway strategy, in their time.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

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
