"""The operators' leases that let execution trade: the pure book that gateway and custody share.

- A lease counts by its signature alone: whoever brings it, listed or not, cannot make one.
- Of several that have begun, the one that begins last counts, also when it is over: the operator's latest word, in whatever
  order they are brought.  So one that is played back widens no caps, and a narrow hour does not end in a wide one.
- One is remembered as long as any that began before it can last.  Of more than `MAX_LEASES` those that begin last are kept,
  also one that begins in a moment: clocks differ.
"""

from __future__ import annotations

from typing import Final

from tallystick.schemas.arming import MAX_LEASE_NS, ArmLease, read_arm_lease
from tallystick.schemas.bounds import MAX_LEASES
from tallystick.schemas.trust import TrustRoot

EXECUTION: Final = "execution"


class LeaseBook:
    """The leases for execution under one trust root.  Times are Unix nanoseconds."""

    def __init__(self, trust: TrustRoot) -> None:
        self._trust = trust
        # The one that begins last stands last.
        self._leases: list[ArmLease] = []

    def learn(self, component: str, note: str, now: int) -> None:
        """Take in the note of an `Arm` event for `component`.

        Raises `Unverified` or `Malformed` where it is no operator's word; a lease that is over has no effect.
        """
        if component != EXECUTION:
            return
        lease = read_arm_lease(note, self._trust, EXECUTION)
        kept = [known for known in (*self._leases, lease) if known.start + MAX_LEASE_NS > now]
        self._leases = sorted(set(kept), key=lambda its: (its.start, its.until))[-MAX_LEASES:]

    def newest(self, venue: str) -> ArmLease | None:
        """The newest lease that names `venue`, whether it holds now or not."""
        return next((lease for lease in reversed(self._leases) if venue in lease.venues), None)

    def holding(self, venue: str, now: int) -> ArmLease | None:
        """The lease that lets execution trade at `venue` now; None: nobody armed it."""
        last = next((its for its in reversed(self._leases) if venue in its.venues and its.start <= now), None)
        return last if last is not None and now < last.until else None
