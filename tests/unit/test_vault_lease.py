"""The lease on secrets from the vault: when it holds, when it is due, whatever the clocks do."""

from __future__ import annotations

import pytest

from tallystick.runtime.vault.lease import Lease, VaultLeaseEnded
from tallystick.schemas.bounds import SECOND

NOW = 1_800_000_000 * SECOND


class Clocks:
    def __init__(self) -> None:
        self.here = 5 * SECOND
        self.lease = Lease(lambda: self.here)

    def granted(self, seconds: int) -> Lease:
        self.lease.granted(NOW, self.here, seconds)
        return self.lease


def test_before_the_first_grant_nothing_holds() -> None:
    lease = Clocks().lease
    assert lease.due(NOW)
    with pytest.raises(
        VaultLeaseEnded, match="VAULT_LEASE_ENDED: no lease on the secrets from the vault: the vault has given none"
    ):
        lease.require_live(NOW)


def test_it_holds_until_its_last_nanosecond_and_is_due_after_two_thirds() -> None:
    clocks = Clocks()
    lease = clocks.granted(300)
    for after, live, due in (
        (0, True, False),
        (200 * SECOND - 1, True, False),
        (200 * SECOND, True, True),
        (300 * SECOND - 1, True, True),
        (300 * SECOND, False, True),
    ):
        clocks.here = 5 * SECOND + after
        assert (lease.live(NOW + after), lease.due(NOW + after)) == (live, due), after


def test_a_clock_that_is_put_back_makes_no_lease_longer() -> None:
    clocks = Clocks()
    lease = clocks.granted(300)
    clocks.here += 300 * SECOND
    for wall in (NOW, NOW - 86_400 * SECOND, NOW + SECOND):
        with pytest.raises(VaultLeaseEnded):
            lease.require_live(wall)


def test_a_machine_that_slept_has_lost_it() -> None:
    """The clock that nobody sets stands still meanwhile, the wall clock does not."""
    lease = Clocks().granted(300)
    with pytest.raises(VaultLeaseEnded):
        lease.require_live(NOW + 301 * SECOND)


def test_one_that_was_lost_holds_no_more_and_says_why() -> None:
    lease = Clocks().granted(300)
    lease.require_live(NOW)
    lease.lost("VAULT_DENIED: permission denied")
    with pytest.raises(VaultLeaseEnded, match="permission denied"):
        lease.require_live(NOW)


def test_a_grant_after_the_end_holds_again() -> None:
    clocks = Clocks()
    lease = clocks.granted(1)
    clocks.here += 10 * SECOND
    assert not lease.live(NOW + 10 * SECOND)
    lease.granted(NOW + 10 * SECOND, clocks.here, 1)
    assert lease.live(NOW + 10 * SECOND)
