"""Who sends more than its quota: pure, fed with the broker's counts.

- A component may send `quota` a second, and `QUOTA_BURST_S` times that at once; what it did not use it keeps, up to that.
- Whoever is beyond is cut off: its account is closed at the broker, its sessions are revoked (which trips a strategy's
  breaker), and it gets no other session until the operator has re-armed its breaker; an observer, which has none, after
  `BAR_NS`.
- A count that falls begins anew: the broker was restarted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tallystick.infra.nats.topology import QUOTA_BURST_S, Quota
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.errors import Unverified

BAR_NS: Final = 600 * SECOND


class Quotas:
    """The quota of each component that has one.  Times are Unix ns."""

    def __init__(self, quotas: Mapping[str, Quota]) -> None:
        self._quotas = dict(quotas)
        # component -> (messages, bytes) counted last, credit left of each (times SECOND), as of when
        self._seen: dict[str, tuple[tuple[int, int], tuple[int, int], int]] = {}
        self._cut: dict[str, int] = {}

    @property
    def components(self) -> tuple[str, ...]:
        """Whose counts are wanted."""
        return tuple(self._quotas)

    def observe(self, counts: Mapping[str, tuple[int, int]], now: int) -> dict[str, str]:
        """Take in what each component has sent so far; those that are beyond their quota, and why."""
        beyond: dict[str, str] = {}
        for component, quota in self._quotas.items():
            counted = counts.get(component)
            if counted is None:
                continue
            rates = (quota.messages, quota.bytes)
            full = (rates[0] * QUOTA_BURST_S * SECOND, rates[1] * QUOTA_BURST_S * SECOND)
            before, credit, at = self._seen.get(component, (counted, full, now))
            left = [
                min(most, have + rate * max(0, now - at)) - max(0, count - old) * SECOND
                for most, have, rate, count, old in zip(full, credit, rates, counted, before, strict=True)
            ]
            self._seen[component] = (counted, (max(0, left[0]), max(0, left[1])), max(now, at))
            if min(left) < 0 and component not in self._cut:
                sent = f"{counted[0] - before[0]:,} messages of {counted[1] - before[1]:,} bytes since the last count"
                limit = (
                    f"{quota.messages:,} messages and {quota.bytes:,} bytes a second, {QUOTA_BURST_S} s of it at once"
                )
                beyond[component] = f"{sent}, limit={limit}"
        return beyond

    def cut(self, component: str, now: int) -> None:
        """It was cut off."""
        self._cut[component] = now

    def rearmed(self, component: str) -> bool:
        """The operator re-armed its breaker: it may come back; whether it was cut off."""
        return self._cut.pop(component, None) is not None

    def over(self, now: int) -> list[str]:
        """Those whose time is over, for whom no breaker is re-armed; they may come back."""
        gone = [c for c, at in self._cut.items() if not c.startswith("strategy-") and abs(now - at) >= BAR_NS]
        for component in gone:
            del self._cut[component]
        return gone

    def require_open(self, component: str) -> None:
        """Raise `Unverified` for a component that was cut off."""
        if component in self._cut:
            until = (
                "its breaker is re-armed" if component.startswith("strategy-") else f"{BAR_NS // SECOND} s have passed"
            )
            raise Unverified("QUOTA_EXCEEDED", f"{component} sent more than its quota; no session until {until}")
