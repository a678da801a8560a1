"""What strategies asked for lately: the second key of every order.

- An intent is stored before the decision on it, in the same stream, so it is here when the decision is read.
- Each strategy has room of its own: who floods it forgets his own intents, and his orders are void.
- What is too old for a decision is forgotten.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from tallystick.schemas import registry
from tallystick.schemas.bounds import MAX_INTENT_AGE_NS, MAX_SKEW_NS
from tallystick.schemas.orders import Decision
from tallystick.schemas.seal import Verified
from tallystick.schemas.subjects import Subject
from tallystick.schemas.trust import TrustRoot
from tallystick.venues import Adapter, Denied
from tallystick.venues.two_keys import require_asked

KEEP_NS: Final = MAX_INTENT_AGE_NS + registry.MAX_AGE_NS["order.decision"] + 2 * MAX_SKEW_NS
# Far more than a strategy's throttle lets through while an intent is worth anything.
MAX_MESSAGES: Final = 1_024
MAX_BYTES: Final = 4 << 20


class _Asked:
    __slots__ = ("messages", "size")

    def __init__(self) -> None:
        self.messages: OrderedDict[bytes, Verified] = OrderedDict()
        self.size = 0

    def drop(self) -> None:
        _, oldest = self.messages.popitem(last=False)
        self.size -= len(oldest.payload)


class Intents:
    """See the module docstring.  Owns the opened messages, by strategy and leaf."""

    def __init__(self, trust: TrustRoot, adapter: Adapter) -> None:
        self._trust = trust
        self._adapter = adapter
        self._asked: dict[str, _Asked] = {}

    def heard(self, intent: Verified, now: int) -> None:
        """A message with intents was read; `now` is Unix ns."""
        if intent.statement.time < now - KEEP_NS or len(intent.payload) > MAX_BYTES:
            return
        asked = self._asked.setdefault(intent.subject.strategy, _Asked())
        if intent.leaf not in asked.messages:
            asked.messages[intent.leaf] = intent
            asked.size += len(intent.payload)
        while asked.messages and (
            len(asked.messages) > MAX_MESSAGES
            or asked.size > MAX_BYTES
            or next(iter(asked.messages.values())).statement.time < now - KEEP_NS
        ):
            asked.drop()

    def snapshot(self) -> list[tuple[str, bytes]]:
        """(subject, payload) of each message, as it was read."""
        return [(m.subject.text, m.payload) for asked in self._asked.values() for m in asked.messages.values()]

    def require(self, where: Subject, decision: Decision) -> Verified:
        """The message with the intent that the permit `decision` on `where` answers.

        Raises `Denied` or `Unverified` where no admitted strategy asked for exactly this order.
        """
        asked = self._asked.get(where.strategy)
        intent = None if asked is None else asked.messages.get(decision.intent_hash)
        if intent is None:
            raise Denied(
                "INTENT_MISSING", f"{where.strategy} asked for nothing that decision {decision.id.hex()} permits"
            )
        record = self._trust.instrument(where.venue, where.symbol)
        require_asked(where, decision, intent, record, self._adapter)
        return intent
