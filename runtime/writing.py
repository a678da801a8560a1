"""When what is written leaves the process."""

from __future__ import annotations

import asyncio


def at_once(transport: asyncio.WriteTransport) -> None:
    """Hand to the kernel what is written when it is written.

    uvloop keeps it to the end of the event loop's turn, behind whatever else is to be done in it, unless the buffer is
    above its bound.
    """
    transport.set_write_buffer_limits(high=0)
