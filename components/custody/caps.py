"""The operator's caps: what an account may move of an asset, by order and by hour.

- An order counts in both its assets: its quantity in the base, and in the quote its worth at the worse of its own
  price and the record's `market_price`, bought or sold (`Instrument.counts`).  An asset without a cap is not moved.
- Two caps hold at once, each by itself: the trust root's, and those of the lease that arms execution now, which may be
  narrower.  What was spent in the past hour counts under a new lease, too.
- Nothing is given back: an order that was counted and did not fill stays counted for its hour.
- The hour is measured by a clock that nobody can put forward or back; what was counted before a restart is as old as
  the journal's times say, and never older than they say.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Final

import msgspec

from tallystick.schemas.amounts import EXACT
from tallystick.schemas.arming import ArmLease
from tallystick.schemas.trust import HOUR_NS, TrustRoot
from tallystick.venues import Denied

_NOTHING: Final = Decimal(0)


class Spent(msgspec.Struct, frozen=True):
    """What one signed order counted for: `counted` holds `(asset, amount)`, `time` is Unix ns."""

    time: int
    account: str
    counted: tuple[tuple[str, Decimal], ...]


class Caps:
    """See the module docstring.  Owns what was spent in the past hour.

    `spent`: what the journal holds of it, oldest first; `now`: Unix ns; `monotonic`: ns from any beginning.
    """

    def __init__(self, trust: TrustRoot, spent: Iterable[Spent], now: int, monotonic: Callable[[], int]) -> None:
        self._trust = trust
        self._monotonic = monotonic
        self._window: deque[tuple[int, Spent]] = deque()
        self._totals: dict[tuple[str, str], Decimal] = {}
        begun = monotonic()
        for one in spent:
            self._count(begun - min(max(now - one.time, 0), HOUR_NS), one)

    def require(self, account: str, counted: Iterable[tuple[str, Decimal]], lease: ArmLease) -> None:
        """Raise `Denied` unless an order that counts for `counted` stays within every cap, the lease's as well."""
        self._forget()
        for asset, amount in counted:
            cap = self._trust.cap(account, asset)
            if cap is None:  # no cap, no order
                raise Denied("CAP_MISSING", f"the operator signed no cap for {asset} of {account}")
            if amount > cap.max_order:
                raise Denied("CAP_EXCEEDED", f"order={amount:f} {asset}, limit={cap.max_order:f} {asset} per order")
            hourly = EXACT.add(self._totals.get((account, asset), _NOTHING), amount)
            if hourly > cap.max_hourly:
                raise Denied("CAP_EXCEEDED", f"hour={hourly:f} {asset}, limit={cap.max_hourly:f} {asset} per hour")
            leased = lease.cap(account, asset)
            if leased is None:
                raise Denied("LEASE_CAP", f"the lease that holds now lets {account} move no {asset}")
            if amount > leased.max_order or hourly > leased.max_hourly:
                raise Denied(
                    "LEASE_CAP",
                    f"order={amount:f} {asset}, hour={hourly:f} {asset}, limit={leased.max_order:f} an order and "
                    f"{leased.max_hourly:f} an hour under the lease that holds now",
                )

    def spend(self, spent: Spent) -> None:
        """Count an order that may be signed."""
        self._count(self._monotonic(), spent)

    def _count(self, at: int, spent: Spent) -> None:
        self._window.append((at, spent))
        for asset, amount in spent.counted:
            key = (spent.account, asset)
            self._totals[key] = EXACT.add(self._totals.get(key, _NOTHING), amount)

    def _forget(self) -> None:
        over = self._monotonic() - HOUR_NS
        while self._window and self._window[0][0] <= over:
            _, old = self._window.popleft()
            for asset, amount in old.counted:
                key = (old.account, asset)
                self._totals[key] = EXACT.subtract(self._totals[key], amount)
