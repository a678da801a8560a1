"""When a stop is given up: what is queued goes out as long as there is a broker that takes it."""

from __future__ import annotations

import asyncio
from typing import Final

from tallystick.runtime.bus.link import Link

# A stop gives up when the broker left so many questions in a row unanswered for so long: two, because a process that
# was busy itself may miss the answer to one.
ASK_S: Final = 0.25
BRIEF_S: Final = 0.05
MAX_UNANSWERED: Final = 2
# In all, for a broker that answers but does not take what is queued, and a component that does not come to its end.
LONGEST_STOP_S: Final = 10.0


async def give_up(link: Link, finishing: asyncio.Task[None]) -> str:
    """Wait for `finishing`, as long as there is a broker; why it has to be given up, if so."""
    loop = asyncio.get_running_loop()
    started, unanswered, pause = loop.time(), 0, BRIEF_S
    while not (await asyncio.wait((finishing,), timeout=pause))[0]:
        answered = await link.answers(ASK_S)
        unanswered, pause = (0, ASK_S) if answered else (unanswered + 1, 0)
        if finishing.done():
            break
        if unanswered == MAX_UNANSWERED:
            return f"the broker did not answer for {loop.time() - started:.1f} s"
        if loop.time() - started > LONGEST_STOP_S:
            return f"not done within {LONGEST_STOP_S:.0f} s"
    return ""
