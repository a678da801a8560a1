"""Two keys an order: the strategy's sealed intent, and the gateway's sealed decision on exactly that intent.  Pure.

The gateway makes the order from the intent; whoever carries the order on makes it again and compares.  So whoever
controls the gateway can at most permit what an admitted strategy asked for, and whoever controls a strategy needs the
gateway.
"""

from __future__ import annotations

from tallystick.schemas.orders import Decision, Intent
from tallystick.schemas.seal import Verified
from tallystick.schemas.subjects import Subject, subject
from tallystick.schemas.trust import Instrument
from tallystick.venues import Adapter, Denied


def intent_subject(decision: Subject) -> Subject:
    """Where the intent stands that a decision on `decision` answers."""
    return subject("order.intent", strategy=decision.strategy, venue=decision.venue, symbol=decision.symbol)


def require_asked(where: Subject, decision: Decision, intent: Verified, record: Instrument, adapter: Adapter) -> Intent:
    """The event of the opened message `intent` that `decision` on subject `where` permits, to the letter.

    Raises `Denied`: the intent is another strategy's or instrument's, is not the one that was decided on, or asks for
    another order.
    """
    if intent.subject.text != intent_subject(where).text:
        raise Denied("INTENT_SUBJECT", f"an intent on {intent.subject.text} for a decision on {where.text}")
    if intent.leaf != decision.intent_hash:
        raise Denied("INTENT_HASH", f"decided on message {decision.intent_hash.hex()[:16]}, not this one")
    asked = next((e for e in intent.events if isinstance(e, Intent) and e.id == decision.intent_id), None)
    if asked is None:
        raise Denied("INTENT_MISSING", f"intent {decision.intent_id.hex()} is not in the message that was decided on")
    if decision.permit is None or adapter.venue_order(record, asked) != decision.permit.order:
        raise Denied("INTENT_DIFFERS", f"the permit is for another order than intent {asked.id.hex()} asks for")
    return asked
