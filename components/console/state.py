"""What the live view shows, as a pure fold over verified events.

Rates are events a second over the last full second of the viewer's clock.  Everything is bounded: the
view costs the same after a minute and after a month.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from decimal import Decimal
from typing import Any, Final

import msgspec

from tallystick.schemas import orders, security
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.event import Event
from tallystick.schemas.ids import id_text
from tallystick.schemas.market import FeedStatus
from tallystick.schemas.sessions import SessionView
from tallystick.schemas.subjects import Subject

# Enough for a session's orders on a screen and for the demo's own accounting.
MAX_ORDERS: Final = 8192
MAX_SHOWN: Final = 64
# Ends of an order: ours, and the venue's own words.
ENDED: Final = frozenset(
    ("rejected", "void", "closed", "FILLED", "CANCELED", "EXPIRED", "EXPIRED_IN_MATCH", "REJECTED")
)


class OrderLine(msgspec.Struct):
    """One order as it went: the intent, its verdict, what the venue said."""

    intent_id: bytes
    strategy: str
    symbol: str
    side: str = ""
    qty: Decimal = Decimal(0)
    price: Decimal | None = None
    verdict: str = "…"
    permitted: bool = False
    codes: tuple[str, ...] = ()
    state: str = ""
    filled: Decimal = Decimal(0)

    @property
    def short_id(self) -> str:
        """The id's random end, enough to tell orders apart on a screen."""
        return id_text(self.intent_id)[-8:]


class Refusal(msgspec.Struct, frozen=True):
    """Something that was refused or noticed: by whom (whoever refused the same message), why, where."""

    by: str
    code: str
    text: str
    subject: str
    digest: bytes = b""


class DeskState:
    """The fold.  Owns all counters; `apply` is its only input."""

    def __init__(self) -> None:
        self.totals: Counter[str] = Counter()
        self.rates: dict[str, int] = {}
        self.orders: OrderedDict[bytes, OrderLine] = OrderedDict()
        self.verdicts: Counter[str] = Counter()
        self.denials: Counter[str] = Counter()
        self.decided: Counter[tuple[str, str]] = Counter()
        self.fills: Counter[str] = Counter()
        self.filled_at: dict[str, int] = {}
        self.refusals: deque[Refusal] = deque(maxlen=MAX_SHOWN)
        self.dead: Counter[tuple[str, str]] = Counter()
        self.dead_by_digest: OrderedDict[bytes, dict[str, str]] = OrderedDict()
        self.alerts: deque[tuple[Subject, security.Alert]] = deque(maxlen=MAX_SHOWN)
        self.tripped: tuple[security.Trip, ...] = ()
        self.trips_seen: dict[str, int] = {}
        self.breaker_at = 0
        self.feeds: dict[tuple[str, str], str] = {}
        self.positions: dict[tuple[str, str], orders.Position] = {}
        self.balances: dict[tuple[str, str], orders.Balance] = {}
        self.checkpoint: security.Checkpoint | None = None
        self._second = 0
        self._current: Counter[str] = Counter()

    def tick(self, now: int) -> None:
        """Roll the rates over to a new second of the viewer's clock (Unix ns)."""
        second = now // SECOND
        if second != self._second:
            self.rates = dict(self._current) if second == self._second + 1 else {}
            self._current.clear()
            self._second = second

    def apply(self, where: Subject, events: list[Event], now: int) -> None:
        """Take in one verified message."""
        self.tick(now)
        self.totals[where.kind] += len(events)
        self._current[where.kind] += len(events)
        for event in events:
            self._event(where, event, now)

    def _event(self, where: Subject, event: Event, now: int) -> None:
        match event:
            case orders.Intent():
                line = self._order(event.id, where)
                line.side, line.qty, line.price = event.side, event.qty, event.price
            case orders.Decision():
                self._decision(where, event)
            case orders.OrderEvent():
                self._order(event.intent_id, where).state = event.status or event.state
            case orders.Fill():
                self._order(event.intent_id, where).filled += event.qty
                self.fills[where.strategy] += 1
                self.filled_at[where.strategy] = now
            case security.BreakerHeartbeat():
                self.breaker_at, self.tripped = now, event.tripped
                for trip in event.tripped:
                    self.trips_seen.setdefault(trip.scope, now)
            case security.Alert():
                self.alerts.append((where, event))
            case security.DeadLetter():
                self.dead[where.component, event.code] += 1
                self.dead_by_digest.setdefault(event.digest, {})[where.component] = event.code
                if len(self.dead_by_digest) > MAX_ORDERS:
                    self.dead_by_digest.popitem(last=False)
                self._refused(Refusal(where.component, event.code, event.text, event.subject, event.digest))
            case security.Notice():
                if event.code != "SIGNED":
                    self.refusals.append(Refusal(where.component, event.code, event.text, where.text))
            case orders.Position():
                self.positions[where.strategy, where.symbol] = event
                _bound(self.positions)
            case orders.Balance():
                self.balances[where.venue, where.asset] = event
                _bound(self.balances)
            case FeedStatus():
                self.feeds[where.venue, event.symbol] = event.state
            case security.Checkpoint():
                self.checkpoint = event
            case _:
                pass

    def _refused(self, refusal: Refusal) -> None:
        """One line for one message, however many readers refuse it."""
        for place, seen in enumerate(self.refusals):
            if (seen.digest, seen.code) == (refusal.digest, refusal.code):
                if refusal.by not in seen.by.split(", "):
                    self.refusals[place] = msgspec.structs.replace(seen, by=f"{seen.by}, {refusal.by}")
                return
        self.refusals.append(refusal)

    def _decision(self, where: Subject, event: orders.Decision) -> None:
        line = self._order(event.intent_id, where)
        line.verdict = event.verdict
        line.permitted = line.permitted or event.verdict == "permit"
        line.codes = tuple(d.code for d in event.denials)
        self.verdicts[event.verdict] += 1
        self.decided[where.strategy, event.verdict] += 1
        for denial in event.denials:
            self.denials[denial.code] += 1

    def _order(self, intent_id: bytes, where: Subject) -> OrderLine:
        line = self.orders.get(intent_id)
        if line is None:
            line = self.orders[intent_id] = OrderLine(intent_id=intent_id, strategy=where.strategy, symbol=where.symbol)
            if len(self.orders) > MAX_ORDERS:
                self.orders.popitem(last=False)
        return line

    @property
    def open_orders(self) -> list[OrderLine]:
        """What was permitted and is not known to have ended, oldest first."""
        return [line for line in self.orders.values() if line.permitted and line.state not in ENDED]

    @property
    def ended(self) -> bool:
        """Whether every feed that was seen has ended."""
        return bool(self.feeds) and all(state == "ended" for state in self.feeds.values())


def _bound(found: dict[tuple[str, str], Any]) -> None:
    if len(found) > MAX_ORDERS:
        del found[next(iter(found))]


def seconds_to_live(sessions: SessionView, now: int) -> list[tuple[str, int]]:
    """(component, seconds its newest session has left) of every listed component."""
    newest: dict[str, int] = {}
    for session in sessions.all_live():
        newest[session.component] = max(newest.get(session.component, 0), session.expires_at)
    return [(name, max(0, (until - now) // SECOND)) for name, until in sorted(newest.items())]
