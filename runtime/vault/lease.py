"""How long a component holds its secrets by the vault's word: the pure core.

- A lease begins when it was asked for, not when the answer came: by the vault's clock it never ends before it does here.
- It ends by the wall clock or by a clock that nobody sets, whichever is first; a wall clock that goes back makes none
  longer.
- It is to be renewed after two thirds of its life.
- Before the first one, and once it has ended, nothing that needs it is done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tallystick.schemas.bounds import SECOND
from tallystick.schemas.errors import Unverified


class VaultLeaseEnded(Unverified):
    """The lease on the secrets from the vault has ended, and could not be renewed (`VAULT_LEASE_ENDED`)."""


_RENEW: Final = (2, 3)


class Lease:
    """See the module docstring.  `monotonic`: nanoseconds from any beginning; `why`: what keeps it from being renewed."""

    def __init__(self, monotonic: Callable[[], int]) -> None:
        self._monotonic = monotonic
        self._begins = self._ends = self._ends_here = 0
        self.why = "the vault has given none yet"

    def granted(self, asked: int, asked_here: int, seconds: int) -> None:
        """The vault gave so many seconds, asked for at `asked` (Unix ns) and `asked_here` (`monotonic`)."""
        self._begins, self._ends, self._ends_here = asked, asked + seconds * SECOND, asked_here + seconds * SECOND

    def lost(self, why: str) -> None:
        """It does not hold any more, whatever time it had: revoked."""
        self._ends = self._ends_here = 0
        self.why = why

    def waiting(self, why: str) -> None:
        """It could not be renewed: said once it ends."""
        self.why = why

    @property
    def ends(self) -> int:
        """When it ends by the wall clock: Unix ns, 0 where it has."""
        return self._ends

    def live(self, now: int) -> bool:
        """Whether it holds at `now` (Unix ns)."""
        return now < self._ends and self._monotonic() < self._ends_here

    def due(self, now: int) -> bool:
        """Whether it is time to renew."""
        life = self._ends - self._begins
        return not self.live(now) or (now - self._begins) * _RENEW[1] >= life * _RENEW[0]

    def require_live(self, now: int) -> None:
        """Raise `VaultLeaseEnded` unless it holds at `now` (Unix ns)."""
        if not self.live(now):
            raise VaultLeaseEnded("VAULT_LEASE_ENDED", f"no lease on the secrets from the vault: {self.why}")
