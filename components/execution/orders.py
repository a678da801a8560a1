"""Each order's way from permit to its final state: a pure state machine, fed with what happened.

    (permit) ─► submitting ─► accepted ─► closed
                    │  │ └──► rejected
                    │  └────► unknown ─► accepted | void
                    └───────► void

Rules

- A permit becomes `submitting` once, and only while it is live, our breakers are closed and we have read
  our history.  `submitting` is published and custody asked at the same time; the request is sent once, when
  the event is durable and the signature is there.
- Sending is marked before it happens and never undone: nothing is sent twice, whatever follows.  What was
  not sent is `void`.
- Sent without an answer is `unknown`, and is resolved by asking the venue.  "Not found" counts only if it
  was asked for after the venue can no longer accept the request: its timestamp + `VALID_NS` + clock skew.
- After a crash the same rules apply: a permit without `submitting` was never sent (`void`); `submitting`
  without outcome may have been (`unknown`); its request's timestamp is at most the permit's expiry.
- `accepted` orders are followed by asking for the open orders; one that is not open any more is asked for.
  An open order at the venue that we do not know raises an alarm.
- Events of an order that no decision permits raise an alarm and cause nothing: they would be asked for, and signed for, for
  ever.
- A final state (`rejected`, `void`, `closed`) never changes; `accepted` comes before `closed`.
- A trip of `all`, the strategy or the venue, or silence of the breaker, stops placing at once and
  cancels: whole instruments for `all` and the venue, single orders for a strategy.  What is accepted
  afterwards is cancelled as soon as it is known; cancelling repeats until nothing is open.

The methods take what happened and return effects, in order, for the process to carry out.  Every effect
may be lost in a crash: `recover` finds the way on from the events alone.

The venue is not trusted with our books: an attacker who controls it can at most lie about our orders,
which portfolio's reconciliation shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

import msgspec

from tallystick.components.execution.effects import (
    RETRY_NS,
    Alarm,
    Cancel,
    CancelAll,
    Effect,
    ListOpen,
    Order,
    Publish,
    Query,
    Send,
    Sign,
    Told,
)
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.breakers import BreakerView
from tallystick.schemas.errors import Unverified
from tallystick.schemas.orders import Decision, OrderEvent, OrderState
from tallystick.schemas.seal import Verified
from tallystick.schemas.signing import Signed
from tallystick.schemas.standing import Standing
from tallystick.schemas.subjects import Subject
from tallystick.schemas.trust import Correction
from tallystick.venues import SKEW_NS, VALID_NS, NoAnswer, NotFound, NotSent, OrderReport, Outcome, Rejected

# Silence of the breaker beyond this means that everything is tripped.
SILENCE_NS: Final = 3 * SECOND
FOLLOW_NS: Final = 2 * SECOND
MAX_RETRY_NS: Final = 5 * SECOND
CANCEL_RETRY_NS: Final = SECOND
# Final orders are remembered while a late answer or a repeated decision may still name them.
KEEP_NS: Final = 60 * SECOND
# Orders held while history is read before those that ended long ago are dropped.
MAX_HISTORY: Final = 2_000


class Row(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One order in a snapshot; times are Unix ns."""

    strategy: str
    venue: str
    symbol: str
    intent_id: bytes
    decision_id: bytes
    client_order_id: str
    deadline: int
    cancel_wanted: bool
    final_at: int
    told: Told


class Orders:
    """All orders of this process; see the module docstring.

    - `instruments`: the (venue, symbol) pairs that may be traded: what a cancel of everything covers.
    - `now` everywhere: Unix nanoseconds; `started` begins the wait for the breaker's first heartbeat.
    """

    def __init__(self, instruments: Iterable[tuple[str, str]], started: int) -> None:
        self._instruments = tuple(instruments)
        self._orders: dict[bytes, Order] = {}
        self._by_name: dict[str, Order] = {}
        self._recovered = False
        self._started = started
        self._breakers = BreakerView()
        self._silent = False
        self._followed: dict[tuple[str, str], int] = {}
        self._cancelling: dict[tuple[str, str], int] = {}
        self._strangers: set[str] = set()
        self._most = MAX_HISTORY

    # --- what others say -------------------------------------------------------------------------

    def decided(
        self, subject: Subject, decision: Decision, now: int, late: tuple[str, str] | None = None
    ) -> list[Effect]:
        """A decision of the gateway was read; `late` is code and text of why it must not be carried out any more."""
        if decision.verdict == "cancel":
            return self._cancel_wanted(decision.intent_id, now)
        if decision.permit is None:
            return []
        known = self._orders.get(decision.intent_id)
        permit = decision.permit
        deadline = permit.expires_at + VALID_NS + SKEW_NS
        if known is not None:
            known.deadline = max(known.deadline, deadline)
            known.permit_deadline = max(known.permit_deadline, deadline)
            if known.decision_id == decision.id:
                return []
            return [Alarm("PERMIT_REPEATED", f"a second permit for order {known.client_order_id}")]
        order = Order(subject, decision.intent_id, decision.id, permit.order.client_order_id, deadline)
        taken = order.client_order_id in self._by_name
        self._add(order)
        if not self._recovered:
            return []
        if late is not None:
            return self._end(order, "void", now, *late)
        if taken:
            text = f"order id {order.client_order_id} is permitted for two intents"
            return [
                Alarm("CLIENT_ORDER_ID_REUSED", text),
                *self._end(order, "void", now, "CLIENT_ORDER_ID_REUSED", text),
            ]
        if now >= permit.expires_at:
            return self._end(order, "void", now, "PERMIT_EXPIRED", "read after the permit had expired")
        stop = self._stopped(order, now)
        if stop is not None:
            return self._end(order, "void", now, *stop)
        order.state = "submitting"
        # Custody takes longer than the disk.
        return [Sign(order), Publish(order, "submitting")]

    def remembered(self, subject: Subject, event: OrderEvent, now: int, stored: int | None = None) -> list[Effect]:
        """An order event of an earlier boot, `stored` when the broker says, was read: how far the order had come."""
        order = self._orders.get(event.intent_id)
        effects: list[Effect] = []
        if order is None:
            # A permit is read before anything that follows it: what none backs is an alarm, and no work.
            text = f"{event.client_order_id[:48]} of strategy {subject.strategy} has events and no decision"
            return [Alarm("ORDER_WITHOUT_PERMIT", text)]
        if order.final:
            order.told = order.told.then(event)
            return effects
        order.remember(order.told.then(event), now if stored is None else min(now, stored))
        if order.final and not self._recovered and len(self._orders) > self._most:
            self._forget(lambda known: known.final and now - known.final_at > KEEP_NS)
            self._most = max(MAX_HISTORY, 2 * len(self._orders))
        if self._recovered and event.state in {"submitting", "unknown"}:
            # The last words of a predecessor that we took to be silent.
            effects += self._unknown(order, now, "RECOVERED", "found in our history")
        return effects

    def stored(self, event: OrderEvent) -> None:
        """An event of our own was read back."""
        order = self._orders.get(event.intent_id)
        if order is not None:
            order.told = order.told.then(event)

    def corrected(self, correction: Correction, now: int) -> list[Effect]:
        """The operator says how an order ended; one of a position changes nothing here."""
        order = self._orders.get(correction.order)
        if order is None or order.strategy != correction.strategy:
            return []
        if not order.told.final:
            order.told = msgspec.structs.replace(order.told, state="closed", executed=correction.done)
        if order.final:
            return []
        order.executed = correction.done
        ended = self._end(order, "closed", now, "CORRECTED", correction.reason)
        return ended if self._recovered else []

    def recover(self, now: int) -> list[Effect]:
        """All history was read: take up every order where it was left."""
        effects: list[Effect] = []
        self._recovered = True
        for order in list(self._orders.values()):
            if order.state == "":
                effects += self._end(
                    order, "void", now, "PERMIT_EXPIRED", "permitted while execution was away; not sent"
                )
            elif order.state == "submitting":
                effects += self._unknown(order, now, "RECOVERED", "execution ended while submitting")
            elif order.state == "unknown":
                effects += self._ask(order, now)
            elif order.state == "accepted" and self._must_cancel(order, now):
                effects += self._cancel(order, now)
        return effects + self.tick(now)

    def on_breaker(self, verified: Verified, standing: Standing, now: int) -> list[Effect]:
        """The breaker's word: what it trips anew is cancelled."""
        new = self._breakers.learn(verified, standing, now)
        if not self._quiet(now):
            self._silent = False
        return [effect for scope in new for effect in self._cancel_scope(scope, now)]

    # --- what came of our own doing ---------------------------------------------------------------

    def durable(self, order: Order, now: int) -> list[Effect]:
        """Its `submitting` is stored."""
        order.durable = True
        return self._send(order, now)

    def signed(self, order: Order, request: Signed, now: int) -> list[Effect]:
        """Custody signed."""
        order.request = request
        return self._send(order, now)

    def refused(self, order: Order, code: str, text: str, now: int) -> list[Effect]:
        """Custody refused, or cannot be reached: there is nothing to send."""
        if order.state != "submitting" or order.sent:
            return []
        return self._end(order, "void", now, code, text)

    def answered(self, order: Order, outcome: Outcome, now: int) -> list[Effect]:
        """The venue's answer to the order's one request."""
        if order.state != "submitting":
            return []
        match outcome:
            case OrderReport():
                return self._reported(order, outcome, now)
            case Rejected(code, text):
                return self._end(order, "rejected", now, code, text)
            case NotSent(code, text):
                return self._end(order, "void", now, code, text)
            case NoAnswer(code, text):
                return self._unknown(order, now, code, text)
            case NotFound():
                return self._unknown(order, now, "NOT_FOUND", "the answer to a new order was: not found")

    def queried(self, order: Order, outcome: Outcome, asked: int, now: int) -> list[Effect]:
        """The venue's answer to a query that was sent at `asked` (Unix ns)."""
        if order.final:
            return []
        if isinstance(outcome, OrderReport):
            return self._reported(order, outcome, now)
        if isinstance(outcome, NotFound):
            if order.state == "unknown" and asked >= order.deadline:
                return self._end(order, "void", now, "NOT_AT_VENUE", "the venue never took it and cannot any more")
            if order.state == "accepted" and asked >= order.deadline:
                text = f"the venue knew {order.client_order_id} as {order.venue_order_id} and does not any more"
                closed = self._end(order, "closed", now, "ORDER_VANISHED", text)
                return [Alarm("ORDER_VANISHED", text), *closed]
        if order.state == "unknown":
            # Not found too early, no answer, or refused (rate limit, revoked key): ask again.
            soon = now + order.retry
            order.query_at = max(soon, order.deadline) if isinstance(outcome, NotFound) else soon
            order.retry = min(order.retry * 2, MAX_RETRY_NS)
        return []

    def cancelled(self, order: Order, outcome: Outcome, now: int) -> list[Effect]:
        """The venue's answer to a cancel of one order."""
        if order.final:
            return []
        if isinstance(outcome, OrderReport):
            return self._reported(order, outcome, now)
        if isinstance(outcome, Rejected | NotFound):
            # Not open any more (filled meanwhile, say): the venue knows how it ended.
            return [Query(order)]
        return []  # `tick` repeats it

    def all_cancelled(
        self, venue: str, symbol: str, outcome: tuple[OrderReport, ...] | Outcome, now: int
    ) -> list[Effect]:
        """The venue's answer to a cancel of a whole instrument."""
        if not isinstance(outcome, tuple):
            return []  # `tick` repeats it
        effects: list[Effect] = []
        self._cancelling.pop((venue, symbol), None)
        for report in outcome:
            order = self._by_name.get(report.client_order_id)
            if order is not None and not order.final:
                effects += self._reported(order, report, now)
        # What still counts as accepted was not open: filled or cancelled before.
        return effects + [Query(order) for order in self._accepted(venue, symbol)]

    def listed(self, venue: str, symbol: str, open_orders: Iterable[OrderReport], asked: int, now: int) -> list[Effect]:
        """The open orders of an instrument, as of a request that was sent at `asked` (Unix ns)."""
        effects: list[Effect] = []
        seen = set()
        for report in open_orders:
            seen.add(report.client_order_id)
            order = self._by_name.get(report.client_order_id)
            if order is None or (order.final and order.final_at < asked):
                if report.client_order_id not in self._strangers:
                    self._strangers.add(report.client_order_id)
                    effects.append(
                        Alarm(
                            "ORDER_NOT_OURS", f"{symbol} at {venue}: {report.client_order_id[:36]} is open and not ours"
                        )
                    )
            elif order.state == "unknown":
                effects += self._reported(order, report, now)
        effects += [Query(order) for order in self._accepted(venue, symbol) if order.client_order_id not in seen]
        return effects

    # --- time ---------------------------------------------------------------------------------------

    def tick(self, now: int) -> list[Effect]:
        """Called several times a second: what is due."""
        effects: list[Effect] = []
        if not self._silent and self._quiet(now):
            self._silent = True
            effects.append(
                Alarm(
                    "BREAKER_HEARTBEAT_MISSING",
                    f"no heartbeat of the breaker for {SILENCE_NS / 1e9:.0f} s: cancelling all",
                )
            )
            effects += self._cancel_scope("all", now)
        for (venue, symbol), due in list(self._cancelling.items()):
            if now >= due:
                effects += self._cancel_all(venue, symbol, now)
        if not self._recovered:
            return effects
        self._forget(lambda known: known.final and now - known.final_at > KEEP_NS)
        for order in list(self._orders.values()):
            if order.state == "unknown" and now >= order.query_at:
                effects += self._ask(order, now)
            elif order.state == "accepted":
                if self._must_cancel(order, now):
                    effects += self._cancel(order, now)
                where = (order.venue, order.symbol)
                if now - self._followed.get(where, 0) >= FOLLOW_NS:
                    self._followed[where] = now
                    effects.append(ListOpen(*where))
        return effects

    @property
    def open(self) -> int:
        """How many orders have not reached a final state."""
        return sum(not order.final for order in self._orders.values())

    def orders(self) -> Mapping[bytes, Order]:
        """The orders by intent id, for display and tests."""
        return self._orders

    # --- what is kept from one start to the next ------------------------------------------------------

    def snapshot(self) -> list[Row]:
        """What the stream says of each order: of what is under way beyond that, nothing."""
        return [
            Row(
                *(o.strategy, o.venue, o.symbol, o.intent_id, o.decision_id, o.client_order_id),
                *(o.permit_deadline, o.cancel_wanted, o.final_at if o.told.final else 0, o.told),
            )
            for o in self._orders.values()
        ]

    def restore(self, rows: Iterable[Row]) -> None:
        """Take the orders from such rows; called before anything was read."""
        for row in rows:
            order = Order(row, row.intent_id, row.decision_id, row.client_order_id, row.deadline)
            order.cancel_wanted = row.cancel_wanted
            if row.told.state:
                order.remember(row.told, row.final_at)
            self._add(order)

    # --- inside -------------------------------------------------------------------------------------

    def _add(self, order: Order) -> None:
        self._orders[order.intent_id] = order
        self._by_name.setdefault(order.client_order_id, order)

    def _forget(self, old: Callable[[Order], bool]) -> None:
        # What the stream does not say yet is not over: the next start would not know of it.
        for order in [known for known in self._orders.values() if old(known) and known.told.final]:
            del self._orders[order.intent_id]
            if self._by_name.get(order.client_order_id) is order:
                del self._by_name[order.client_order_id]

    def _send(self, order: Order, now: int) -> list[Effect]:
        if order.state != "submitting" or order.sent or not order.durable or order.request is None:
            return []
        stop = self._stopped(order, now)
        if stop is not None:
            return self._end(order, "void", now, *stop)
        if order.cancel_wanted:
            return self._end(order, "void", now, "CANCELLED", "cancelled before it was sent")
        if now >= order.request.signed_at + VALID_NS:
            late = (now - order.request.signed_at) / 1e9
            return self._end(
                order, "void", now, "SIGNATURE_STALE", f"signed {late:.3f} s ago; it was not durable in time"
            )
        order.sent = True
        order.deadline = order.request.signed_at + VALID_NS + SKEW_NS
        return [Send(order, order.request)]

    def _stopped(self, order: Order, now: int) -> tuple[str, str] | None:
        """Code and text of what keeps `order` from being placed."""
        try:
            self._breakers.require_closed(order.strategy, order.venue, now, SILENCE_NS)
        except Unverified as exc:
            return exc.code, exc.text
        return None

    def _quiet(self, now: int) -> bool:
        """Whether the breaker is silent; until its first heartbeat the start counts as one."""
        age = self._breakers.age(now) if self._breakers.heard else abs(now - self._started)
        return age is None or age > SILENCE_NS

    def _must_cancel(self, order: Order, now: int) -> bool:
        return order.cancel_wanted or self._quiet(now) or bool(self._breakers.tripped_for(order.strategy, order.venue))

    def _reported(self, order: Order, report: OrderReport, now: int) -> list[Effect]:
        order.venue_order_id = report.venue_order_id
        order.status = report.status
        order.executed = report.executed
        effects: list[Effect] = []
        if order.state != "accepted":
            order.state = "accepted"
            order.retry = RETRY_NS
            effects.append(Publish(order, "accepted"))
        if report.final:
            return effects + self._end(order, "closed", now)
        if self._must_cancel(order, now):
            effects += self._cancel(order, now)
        return effects

    def _end(self, order: Order, state: OrderState, now: int, code: str = "", text: str = "") -> list[Effect]:
        order.state = state
        order.final_at = now
        order.request = None
        return [Publish(order, state, code, text)]

    def _unknown(self, order: Order, now: int, code: str, text: str) -> list[Effect]:
        order.state = "unknown"
        return [Publish(order, "unknown", code, text), *self._ask(order, now)]

    def _ask(self, order: Order, now: int) -> list[Effect]:
        # An answer sets the next time; this one is for a query whose answer never comes.
        order.query_at = now + MAX_RETRY_NS
        return [Query(order)]

    def _accepted(self, venue: str, symbol: str) -> list[Order]:
        return [o for o in self._orders.values() if o.state == "accepted" and (o.venue, o.symbol) == (venue, symbol)]

    def _cancel_wanted(self, intent_id: bytes, now: int) -> list[Effect]:
        order = self._orders.get(intent_id)
        if order is None:
            return []
        order.cancel_wanted = True
        return self._cancel(order, now) if order.state == "accepted" and self._recovered else []

    def _cancel(self, order: Order, now: int) -> list[Effect]:
        if now - order.cancel_at < CANCEL_RETRY_NS:
            return []
        order.cancel_at = now
        return [Cancel(order)]

    def _cancel_scope(self, scope: str, now: int) -> list[Effect]:
        """Everything that stops the scope's open orders, whatever we know of them."""
        kind, _, name = scope.partition("-")
        if kind == "strategy":
            if not self._recovered:
                return []  # `recover` cancels them
            return [
                effect
                for order in list(self._orders.values())
                if order.strategy == name and order.state == "accepted"
                for effect in self._cancel(order, now)
            ]
        effects: list[Effect] = []
        for venue, symbol in self._instruments:
            if scope in {"all", f"venue-{venue}"}:
                effects += self._cancel_all(venue, symbol, now)
        return effects

    def _cancel_all(self, venue: str, symbol: str, now: int) -> list[Effect]:
        """Cancel a whole instrument, and again until the venue has answered."""
        self._cancelling[venue, symbol] = now + CANCEL_RETRY_NS
        for order in self._accepted(venue, symbol):
            order.cancel_at = now
        return [CancelAll(venue, symbol)]
