"""The gateway's core: verified messages and the clock in, decisions out.  Pure; the process does the IO.

What is learned before the first decision, and after it:

- `order.*`, `fill.*` and `position.*` are applied from the beginning of their stream: what is open, what
  is held, which intents were decided.  Nothing is decided before `caught_up`.
- An intent of history that has no decision is denied then (STALE_INTENT, see `intake`); one that has is done.
- Markets are kept of the operator's instruments alone, whatever a feed names.
- Sessions, breakers and leases follow the rules of custody (`SessionView`, heartbeat, lease): what is
  not known, or known too long ago, denies.

How an intent is decided:

1. An id that was seen in the last `REMEMBER_NS` is a duplicate.  Older ids need no memory: the time in
   the id itself is too old then.
2. All facts are gathered.  The risk engine (`risk`) decides what is limited and what must be fresh, Cedar (`policy`)
   the house rules; one objection denies, and the decision names all of them, the policy's last.
3. A permit holds the exact order in the venue's own strings, the hash of the instrument's record,
   custody's boot as audience, and lives `PERMIT_NS`.  It is reserved at once.
4. A cancellation passes (`cancel`) if it names an open order of the same strategy and instrument.  It
   needs a listed session and a policy's consent, and none of the controls on orders: breakers, leases
   and throttles never keep an order alive.

`intent_id` of a decision is the order's: that of the intent, or, when a cancellation passes, that of the
intent to cancel.  `causes` names the event that was answered.

The gateway is not trusted beyond the operator's caps: an attacker who controls it can at most trade the
operator's instruments while armed, to the caps that custody enforces.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, Final, Protocol

import msgspec

from tallystick import venues
from tallystick.components.gateway.intake import Left
from tallystick.components.gateway.policy import NOT_ASKED, Policy, PolicyVerdict
from tallystick.components.gateway.risk.amounts import ZERO
from tallystick.components.gateway.risk.controls import check, check_caller, unknown_instrument
from tallystick.components.gateway.risk.exposure import TABLES, Alarm, Exposure, OpenOrder, Tables
from tallystick.components.gateway.risk.facts import Caller, Facts
from tallystick.components.gateway.risk.markets import Markets
from tallystick.components.gateway.risk.throttle import Throttle
from tallystick.components.gateway.risk.valuation import value_order
from tallystick.schemas.bounds import MAX_INTENT_AGE_NS, MAX_SKEW_NS, PERMIT_NS
from tallystick.schemas.breakers import BreakerView
from tallystick.schemas.errors import Unverified
from tallystick.schemas.ids import id_time_ns
from tallystick.schemas.leases import LeaseBook
from tallystick.schemas.limits import LimitBook
from tallystick.schemas.market import FeedStatus, Trade
from tallystick.schemas.orders import (
    CancelIntent,
    Corrected,
    Decision,
    Denial,
    Fill,
    Intent,
    OrderEvent,
    Permit,
    Position,
    Side,
)
from tallystick.schemas.seal import Verified
from tallystick.schemas.security import Arm
from tallystick.schemas.sessions import SessionView
from tallystick.schemas.standing import LISTED, Standing
from tallystick.schemas.subjects import Subject, parse_subject
from tallystick.schemas.trust import Instrument, TrustRoot, open_correction, require_current

CUSTODY: Final = "custody"
# Where the portfolio books what no permit covers; the breaker trips on it, and no limit is asked of it.
UNKNOWN: Final = "unknown"
# Beyond the oldest and the newest id that could still be decided.
REMEMBER_NS: Final = 2 * (MAX_INTENT_AGE_NS + MAX_SKEW_NS)


class NewDecision(Protocol):
    """Makes a decision event: fills id, time and the applied positions around these fields."""

    def __call__(self, *, causes: tuple[bytes, ...], **fields: Any) -> Decision:
        """The event with `causes` and the decision's own `fields`."""
        ...


class Gateway:
    """See the module docstring.  Owns all state that decisions rest on; not for use from several threads.

    What it learned from ORDERS is kept in snapshots (`version`, `tables`, `snapshot`, `restore`).

    - `trust`: the trust root, whose limits, caps and instruments count; `policy`: checked policies.
    - `sessions`: the view of live sessions that the caller keeps up to date with `cred.>`.
    - `new`: makes a `Decision` (in a process, the runtime's maker of events).
    """

    version = 2
    tables: Mapping[str, Any] = {**TABLES, "seen": tuple[bytes, int], "left": tuple[str, bytes, bytes]}

    def __init__(self, trust: TrustRoot, policy: Policy, sessions: SessionView, new: NewDecision) -> None:
        self.sessions = sessions
        self.exposure = Exposure()
        self.markets = Markets()
        self.ready = False
        # Takes (code, text) of what people must hear of.
        self.alarm: Callable[[str, str], object] = lambda _code, _text: None
        self._trust = trust
        self._policy = policy
        self.limits = LimitBook(trust.limits)
        self._root = trust.digest
        self._new = new
        self._instruments = {(i.venue, i.symbol): (i, i.digest) for i in trust.instruments}
        self._leases = LeaseBook(trust)
        self._breakers = BreakerView()
        self._throttles: dict[str, Throttle] = {}
        # Ids whose decision was read, and those that were decided here and are not stored yet, with the time of that.
        self._seen: OrderedDict[bytes, int] = OrderedDict()
        self._deciding: OrderedDict[bytes, int] = OrderedDict()
        self._left = Left()

    # --- what is learned -----------------------------------------------------------------------------

    def apply(self, verified: Verified, now: int, standing: Standing = LISTED) -> None:
        """Take in one verified message of any kind but `order.intent` and `cred`; others have no effect.

        `now` is Unix ns.  Raises `Unverified` or `Malformed` for an arming lease that does not verify.
        """
        subject = verified.subject
        if subject.kind == "control.breaker":
            self._breakers.learn(verified, standing, now)
            return
        for event in verified.events:
            if isinstance(event, Trade):
                if (subject.venue, subject.symbol) in self._instruments:
                    self.markets.on_trade(subject, event, verified.statement.time)
            elif isinstance(event, FeedStatus):
                if (subject.venue, event.symbol) in self._instruments:
                    self.markets.on_feed(subject, event)
            elif isinstance(event, Arm):
                self._leases.learn(subject.component, event.note, now)
            elif isinstance(event, Decision):
                self.on_decision(subject, event)
            elif isinstance(event, OrderEvent):
                self._alarm(self.exposure.apply_event(subject.strategy, event))
            elif isinstance(event, Corrected):
                correction = open_correction(event.note, self._trust, subject)
                self._alarm(self.exposure.correct(subject, self._quote(subject), correction))
            elif isinstance(event, Fill) and subject.strategy != UNKNOWN:
                self._alarm(self.exposure.apply_fill(subject, self._quote(subject), event))
            elif isinstance(event, Position) and subject.strategy != UNKNOWN:
                self._alarm(self.exposure.apply_position(subject, event))

    def _alarm(self, alarm: Alarm | None) -> None:
        if alarm is not None:
            self.alarm(alarm.code, alarm.text)

    def on_decision(self, subject: Subject, decision: Decision) -> None:
        """A stored decision of the gateway, of this boot or an earlier one: what it answered is done."""
        for cause in decision.causes:
            self._left.answered(subject.strategy, cause)
            self._seen.setdefault(cause, decision.ts)
            self._deciding.pop(cause, None)
        self._forget(decision.ts)
        if decision.permit is not None:
            self._reserve_recorded(subject, decision)

    # --- what is kept from one start to the next (`runtime.bus.snapshots.Kept`) ----------------------

    def settled(self, _now: int) -> bool:
        """Always: what is under way is left out."""
        return True

    def snapshot(self) -> Tables:
        """What the stream says up to the message that was applied last.

        A decision that is under way does not count yet, its reservation neither.
        """
        left = self._left.keys()
        tables = self.exposure.snapshot(left)
        orders = [(msgspec.structs.replace(o, whole=self._most(o.strategy, o.quote)), p) for o, p in tables["orders"]]
        return {**tables, "orders": orders, "seen": list(self._seen.items()), "left": self._left.rows()}

    def restore(self, tables: Tables) -> None:
        """Take the state from such rows; called before anything was applied."""
        self.exposure.restore(tables)
        self._seen.update(tables["seen"])
        for where, leaf, intent_id in tables["left"]:
            self._left.add(parse_subject(where), leaf, intent_id)

    # --- what is decided -----------------------------------------------------------------------------

    def caught_up(self, now: int) -> list[tuple[Subject, Decision]]:
        """History is applied: from here on intents are decided.  Returns the denials of those left behind."""
        self.exposure.expire(now)
        # Whatever its age, an intent of history is not decided again.
        why = Denial(code="STALE_INTENT", text="sent before the gateway had applied the history, limit=after it")
        self.ready = True
        return [(subject, self.refuse(leaf, ids, why, now)) for subject, leaf, ids in self._left.groups()]

    def refuse(self, leaf: bytes, ids: list[bytes], why: Denial, now: int) -> Decision:
        """One denial of several intents of the message with this leaf hash; none of them is looked at."""
        for intent_id in ids:
            self._deciding.setdefault(intent_id, now)
        return self._new(
            causes=tuple(ids),
            verdict="deny",
            intent_id=ids[0],
            intent_hash=leaf,
            trust_root=self._root,
            denials=(why,),
            policy_hash=self._policy.digest,
            policies=(),
            permit=None,
        )

    def on_intent(self, verified: Verified, intent: Intent | CancelIntent, now: int) -> Decision | None:
        """The decision on one event of an `order.intent` message; None while history is being applied."""
        # Crash point: a decision may have been stored, or not, before the process ended; the stream says.
        self.heard(verified, intent)
        return self._decide(verified, intent, now) if self.ready else None

    def heard(self, verified: Verified, intent: Intent | CancelIntent) -> None:
        """An intent was read: it is left until a decision on it was."""
        if intent.id not in self._seen:
            self._left.add(verified.subject, verified.leaf, intent.id)

    def _decide(self, verified: Verified, intent: Intent | CancelIntent, now: int) -> Decision:
        self.exposure.expire(now)
        self._forget(now)
        seen = intent.id in self._seen or intent.id in self._deciding
        self._deciding.setdefault(intent.id, now)
        if isinstance(intent, CancelIntent):
            return self._cancel(verified, intent, seen, now)
        return self._place(verified, intent, seen, now)

    def _place(self, verified: Verified, intent: Intent, seen: bool, now: int) -> Decision:
        subject, caller = verified.subject, self._caller(verified, intent, seen, now)
        record = self._instruments.get((subject.venue, subject.symbol))
        if record is None:
            denials = [*check_caller(caller), unknown_instrument(caller)]
            return self._answer(verified, intent.id, intent.id, denials, NOT_ASKED, None)
        facts = self._facts(caller, record[0], verified, intent, now)
        verdict = self._policy.place(caller, facts.order)
        denials = check(facts) + verdict.denials(subject.strategy)
        if facts.messages_left and not seen:
            self._throttles[subject.strategy].take()
        permit = None
        if facts.custody is not None and verdict.allow and not denials:
            permit = self._permit(intent, record, facts.custody, subject, now)
            worth = facts.order.notional or ZERO
            self.exposure.reserve(_open_order(subject, record[0].quote, intent, worth, permit.expires_at))
        return self._answer(verified, intent.id, intent.id, denials, verdict, permit)

    def _cancel(self, verified: Verified, intent: CancelIntent, seen: bool, now: int) -> Decision:
        subject, caller = verified.subject, self._caller(verified, intent, seen, now)
        order = self.exposure.may_end(subject.strategy, intent.intent_id)
        own = order is not None and (order.venue, order.symbol) == (subject.venue, subject.symbol)
        denials = check_caller(caller)
        if not own:
            denials.append(
                Denial(code="UNKNOWN_ORDER", text="no such open order, limit=own open orders of this instrument")
            )
        verdict = NOT_ASKED
        if (subject.venue, subject.symbol) in self._instruments:
            verdict = self._policy.cancel(caller, own)
        denials += verdict.denials(subject.strategy)
        answered = intent.id if denials else intent.intent_id
        return self._answer(verified, intent.id, answered, denials, verdict, None)

    def _answer(
        self,
        verified: Verified,
        cause: bytes,
        intent_id: bytes,
        denials: list[Denial],
        verdict: PolicyVerdict,
        permit: Permit | None,
    ) -> Decision:
        return self._new(
            causes=(cause,),
            verdict="deny" if denials else "cancel" if permit is None else "permit",
            intent_id=intent_id,
            intent_hash=verified.leaf,
            trust_root=self._root,
            denials=tuple(denials),
            policy_hash=self._policy.digest,
            policies=verdict.policies,
            permit=permit,
        )

    def _permit(
        self, intent: Intent, record: tuple[Instrument, bytes], custody: bytes, subject: Subject, now: int
    ) -> Permit:
        venue = self._trust.venues[subject.venue]
        return Permit(
            account=venue.account,
            order=venues.adapter(venue.kind).venue_order(record[0], intent),
            instrument_hash=record[1],
            audience=custody,
            expires_at=now + PERMIT_NS,
        )

    # --- facts ---------------------------------------------------------------------------------------

    def _caller(self, verified: Verified, intent: Intent | CancelIntent, seen: bool, now: int) -> Caller:
        subject, credential = verified.subject, verified.credential
        error = None
        try:
            require_current(self._trust, now)
            self.sessions.require_listed(credential, now)
        except Unverified as exc:
            error = Denial(code=exc.code, text=f"{exc.text}, limit=valid, listed, not revoked")
        # Oldest and newest of what the strategy claims: statement, event and the id itself.
        times = (verified.statement.time, intent.ts, id_time_ns(intent.id))
        ahead = max(times) - now
        return Caller(
            strategy=subject.strategy,
            venue=subject.venue,
            symbol=subject.symbol,
            ready=self.ready,
            error=error,
            list_age=max(0, now - self.sessions.listed_at) if self.sessions.listed_at else None,
            intent_age=-ahead if ahead > MAX_SKEW_NS else now - min(times),
            duplicate=seen,
        )

    def _facts(self, caller: Caller, instrument: Instrument, verified: Verified, intent: Intent, now: int) -> Facts:
        subject, limits = verified.subject, self.limits.of(caller.strategy, instrument.quote)
        market = self.markets.of(subject.venue, subject.symbol)
        lease = self._leases.newest(subject.venue)
        account = self._account(subject.venue)
        caps = []
        for asset, amount in instrument.counts(intent.qty, intent.price):
            cap = self._trust.cap(account, asset)
            caps.append((asset, amount, None if cap is None else cap.max_order))
        return Facts(
            caller=caller,
            order=value_order(subject, instrument, intent, limits.collar_bps, self.markets, self.exposure),
            instrument=instrument,
            limits=limits,
            caps=tuple(caps),
            lease=(lease.start, lease.until) if lease is not None else None,
            armed=self._leases.holding(subject.venue, now) is not None,
            custody=self._custody(now),
            heartbeat_age=self._breakers.age(now),
            tripped=self._breakers.tripped_for(subject.strategy, subject.venue),
            feed=market.feed,
            data_age=market.age(now),
            messages_left=self._throttle(subject.strategy, now).left(now),
        )

    def _custody(self, now: int) -> bytes | None:
        boots = {session.boot for session in self.sessions.live(CUSTODY, now)}
        return boots.pop() if len(boots) == 1 else None

    def _throttle(self, strategy: str, now: int) -> Throttle:
        known = self._throttles.get(strategy)
        if known is None:
            known = self._throttles[strategy] = Throttle(*self.limits.rate(strategy), now)
        return known

    def _account(self, venue: str) -> str:
        record = self._trust.venues.get(venue)
        return "" if record is None else record.account

    def _quote(self, subject: Subject) -> str:
        record = self._instruments.get((subject.venue, subject.symbol))
        return "" if record is None else record[0].quote

    def _most(self, strategy: str, quote: str) -> Decimal:
        """What an order was valued at is not on record; it cannot have been more."""
        return self.limits.of(strategy, quote).max_notional

    def _forget(self, now: int) -> None:
        """Drop the ids that are too old to be decided anyway; they stand in the order of their arrival."""
        for ids in (self._seen, self._deciding):
            while ids and next(iter(ids.values())) < now - REMEMBER_NS:
                ids.popitem(last=False)

    def _reserve_recorded(self, subject: Subject, decision: Decision) -> None:
        """Count a permit of the stream: one of this boot is known already, an earlier one's is rebuilt."""
        permit = decision.permit
        if permit is None or self.exposure.order(subject.strategy, decision.intent_id) is not None or self.ready:
            return
        order = permit.order
        qty, price = order.amounts()
        quote = self._quote(subject)
        side: Side = "buy" if order.side == "BUY" else "sell"
        self.exposure.reserve(
            OpenOrder(
                intent_id=decision.intent_id,
                strategy=subject.strategy,
                venue=subject.venue,
                symbol=subject.symbol,
                quote=quote,
                side=side,
                qty=qty,
                price=price,
                whole=self._most(subject.strategy, quote),
                expires_at=permit.expires_at,
            )
        )


def _open_order(subject: Subject, quote: str, intent: Intent, worth: Decimal, expires_at: int) -> OpenOrder:
    return OpenOrder(
        intent_id=intent.id,
        strategy=subject.strategy,
        venue=subject.venue,
        symbol=subject.symbol,
        quote=quote,
        side=intent.side,
        qty=intent.qty,
        price=intent.price,
        whole=worth,
        expires_at=expires_at,
    )
