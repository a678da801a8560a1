"""What the session that sealed a verified message may do: the answer to "who may act now".

Three standings, and an exception for everybody else:

- `listed`: the message is live and the authority's list, at most 3 s old, holds the session.  It may act.
- `unproven`: it is live and was announced, and the list is missing or stale.  What it says is a fact; what it asks
  for is not done.
- `past`: it is history, or came late, and was announced at its time.  The same.
- `Unverified` is raised for a session that is revoked, expired, not listed or never announced: no effect at all.

`SessionView` holds the rules, the runtime's `admit` waits for what is still on its way and gives the standing.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from tallystick.schemas.errors import TallystickError


class Standing(msgspec.Struct, frozen=True):
    """See the module docstring; `why` is the reason for anything but `listed`."""

    kind: Literal["listed", "unproven", "past"]
    why: TallystickError | None = None

    def require_listed(self) -> None:
        """Raise the reason unless the session may act now."""
        if self.why is not None:
            raise self.why


LISTED: Final = Standing("listed")
