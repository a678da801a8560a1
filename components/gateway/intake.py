"""What comes in of each strategy's wishes, so that none of them can keep the gateway from the others.  Pure.

- A strategy may have `INTAKE` times its throttle decided one by one (`[limits]`: rate and burst).  What is beyond is not
  looked at: one denial (`INTAKE_RATE`) for all of it in a message, which names every id among its causes.
- A cancellation of an open order of its own is beyond no limit, once a second for each order.
- An intent is left until the decision on it was read back: only then is it stored.  What history left undecided is
  denied when history ends: one by one, or where a strategy left more than `SINGLY`, one denial a message.  Of each
  strategy the newest `MAX_LEFT` are kept: what is older was stale long ago.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from tallystick.components.gateway.risk.throttle import Throttle
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.orders import CancelIntent, Decision, Denial, Intent
from tallystick.schemas.seal import Verified
from tallystick.schemas.subjects import Subject

if TYPE_CHECKING:
    from tallystick.components.gateway.decide import Gateway

INTAKE: Final = 10
SINGLY: Final = 64
MAX_LEFT: Final = 4_096
# Cancellations beyond the limit that are remembered, of all strategies.
MAX_PASSED: Final = 4_096


class Intake:
    """The door before `gateway`.  Owns each strategy's budget."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._budgets: dict[str, Throttle] = {}
        # (strategy, order) -> when its cancellation last passed beyond the budget
        self._passed: OrderedDict[tuple[str, bytes], int] = OrderedDict()

    def decide(self, verified: Verified, now: int) -> Iterator[Decision]:
        """The decisions on an `order.intent` message, as they are made; nothing while history is applied."""
        strategy, gateway = verified.subject.strategy, self._gateway
        budget = self._budget(strategy, now)
        beyond: list[Intent | CancelIntent] = []
        for event in verified.events:
            if not isinstance(event, Intent | CancelIntent):
                continue
            if not gateway.ready or budget.left(now) or self._may_cancel(strategy, event, now):
                if gateway.ready and budget.left(now):
                    budget.take()
                decision = gateway.on_intent(verified, event, now)
                if decision is not None:
                    yield decision
            else:
                gateway.heard(verified, event)
                beyond.append(event)
        if beyond:
            rate, burst = self._gateway.limits.rate(strategy)
            text = f"{len(beyond)} beyond what is decided, limit={INTAKE * rate}/s, burst={INTAKE * burst}"
            why = Denial(code="INTAKE_RATE", text=text)
            yield gateway.refuse(verified.leaf, [event.id for event in beyond], why, now)

    def _may_cancel(self, strategy: str, event: Intent | CancelIntent, now: int) -> bool:
        if not isinstance(event, CancelIntent) or self._gateway.exposure.may_end(strategy, event.intent_id) is None:
            return False
        key = (strategy, event.intent_id)
        if abs(now - self._passed.pop(key, now - SECOND)) < SECOND:
            self._passed[key] = now
            return False
        self._passed[key] = now
        if len(self._passed) > MAX_PASSED:
            self._passed.popitem(last=False)
        return True

    def _budget(self, strategy: str, now: int) -> Throttle:
        known = self._budgets.get(strategy)
        if known is None:
            rate, burst = self._gateway.limits.rate(strategy)
            known = self._budgets[strategy] = Throttle(INTAKE * rate, INTAKE * burst, now)
        return known


class Left:
    """The intents that have no stored decision yet: by strategy, the oldest first."""

    def __init__(self) -> None:
        self._of: dict[str, OrderedDict[bytes, tuple[Subject, bytes]]] = {}
        self.dropped = 0

    def add(self, subject: Subject, leaf: bytes, intent_id: bytes) -> None:
        """An intent was read, in the message of this leaf hash; the first of that id counts."""
        mine = self._of.setdefault(subject.strategy, OrderedDict())
        mine.setdefault(intent_id, (subject, leaf))
        if len(mine) > MAX_LEFT:
            mine.popitem(last=False)
            self.dropped += 1

    def answered(self, strategy: str, intent_id: bytes) -> None:
        """Its decision was read."""
        self._of.get(strategy, OrderedDict()).pop(intent_id, None)

    def keys(self) -> set[tuple[str, bytes]]:
        """(strategy, intent id) of all."""
        return {(strategy, intent_id) for strategy, mine in self._of.items() for intent_id in mine}

    def rows(self) -> list[tuple[str, bytes, bytes]]:
        """(subject, leaf hash, intent id) of all, from which `add` makes the same again."""
        return [(where.text, leaf, key) for mine in self._of.values() for key, (where, leaf) in mine.items()]

    def groups(self) -> Iterator[tuple[Subject, bytes, list[bytes]]]:
        """Subject, leaf hash and ids of what is to be denied together."""
        for mine in self._of.values():
            groups: dict[bytes, tuple[Subject, bytes, list[bytes]]] = {}
            for intent_id, (subject, leaf) in mine.items():
                key = leaf if len(mine) > SINGLY else intent_id
                groups.setdefault(key, (subject, leaf, []))[2].append(intent_id)
            yield from groups.values()
