"""What custody signs: the pure decision core, fed with verified messages and the clock.

An order is signed only if, in this order,

1. its sealed message verifies under the trust root and is fresh (`seal.Verifier`, `seal.require_live`),
   stands on `order.decision` and was sealed by the gateway;
2. the gateway's session is on a session list at most 3 s old, unexpired and not revoked;
3. the named decision is in the message and carries a permit;
4. it was decided by the very document of limits, caps, instruments and house rules that custody has; the permit's
   audience is this boot, it has not expired and lives no longer than `MAX_PERMIT_NS`;
5. the breaker's heartbeat is at most 1 s old, not ahead of the clock, and neither `all`, the strategy nor the venue is tripped;
6. an operator-signed lease arms execution, with its own hardware key, for the venue now;
7. the permit names our account, and the hash of the operator-signed instrument record of its subject;
   the order is for that record's symbol, in plain canonical decimals, in whole steps and ticks;
8. the intent that it answers is there too: sealed by the strategy of the subject, whose session is listed as well,
   fresh when the gateway decided, and asking for exactly this order (`venues.two_keys`);
9. both its assets stay within the operator-signed caps, the trust root's and the lease's, per order and over the past
   hour (`caps`);
10. neither the decision nor its client order id, which names the intent, was used before.

A permit counts as used from the moment that the rules hold, before anything is signed.  What was used is
kept in memory until neither permit nor intent can be fresh any more: a restart has a new boot, which is the audience,
and so voids every outstanding permit.  What was spent in the past hour, and which orders were signed just now, is
restored from the journal.

Cancelling and asking need no permit and none of these rules: nothing can keep the kill switch from
its way.

The gateway is not trusted beyond the caps and the intents: an attacker who controls it can at most permit, while
armed and to the hourly caps, what strategies asked for.  Execution is not trusted: an attacker who controls it can at
most withhold orders, cancel ours and ask about them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Final

import msgspec

from tallystick import venues
from tallystick.components.custody.caps import Caps, Spent
from tallystick.schemas import registry
from tallystick.schemas.bounds import MAX_HEARTBEAT_AGE_NS, MAX_INTENT_AGE_NS, MAX_PERMIT_NS, MAX_SKEW_NS
from tallystick.schemas.breakers import BreakerView
from tallystick.schemas.credential import Credential
from tallystick.schemas.ids import id_text
from tallystick.schemas.leases import EXECUTION, LeaseBook
from tallystick.schemas.orders import Decision, VenueOrder
from tallystick.schemas.seal import Verified, require_live
from tallystick.schemas.security import Arm
from tallystick.schemas.sessions import SessionView
from tallystick.schemas.standing import Standing
from tallystick.schemas.trust import Instrument, TrustRoot, require_current
from tallystick.venues import Denied
from tallystick.venues.two_keys import require_asked

GATEWAY: Final = "gateway"
# Far above what a gateway issues while permits live; beyond it memory is under attack.
MAX_USED: Final = 100_000
# From a permit's end until its intent is too old for any other: what is forgotten sooner could be permitted again.
REMEMBER_NS: Final = MAX_INTENT_AGE_NS + registry.MAX_AGE_NS["order.decision"] + 2 * MAX_SKEW_NS


class Authorized(msgspec.Struct, frozen=True):
    """An order that may be signed now, once."""

    venue: str
    account: str
    strategy: str
    record: Instrument
    order: VenueOrder
    decision_id: bytes
    counted: tuple[tuple[str, Decimal], ...]


class Permits:
    """See the module docstring.  Owns the view of breakers and leases, and what was used and spent.

    - `trust`: the trust root; `boot`: the boot id of this process, the audience of its permits.
    - `sessions`: the live sessions, kept by who reads `cred.>`.
    - `spent`: what was signed in the past hour, oldest first, and `signed`: the client order ids that were signed
      lately, with their times; both from the journal, as of `now` (Unix ns).
    - `monotonic`: nanoseconds from any beginning, which no setting of the clock moves.
    """

    def __init__(
        self,
        trust: TrustRoot,
        boot: bytes,
        sessions: SessionView,
        now: int,
        monotonic: Callable[[], int],
        spent: Iterable[Spent] = (),
        signed: Mapping[str, int] | None = None,
    ) -> None:
        self.trust = trust
        self._root = trust.digest
        self._newer = 0
        self.boot = boot
        self.sessions = sessions
        self._breakers = BreakerView()
        self._leases = LeaseBook(trust)
        self._used: dict[bytes, int] = {}
        self._used_names = {name: at + MAX_PERMIT_NS + REMEMBER_NS for name, at in (signed or {}).items()}
        self._caps = Caps(trust, spent, now, monotonic)

    def on_breaker(self, verified: Verified, standing: Standing, now: int) -> None:
        """The breaker's word."""
        self._breakers.learn(verified, standing, now)

    def on_arm(self, verified: Verified, now: int) -> None:
        """Operators' leases, which count by their signatures alone.  Raises `Unverified` or `Malformed` for others."""
        for event in verified.events:
            if isinstance(event, Arm):
                self._leases.learn(verified.subject.component, event.note, now)

    def superseded_by(self, newer: TrustRoot) -> None:
        """A newer trust root than ours was in force already: no order is signed any more, cancels are."""
        self._newer = newer.number

    @property
    def used(self) -> int:
        """How many permits are remembered as used."""
        return len(self._used)

    def tripped(self) -> tuple[str, ...]:
        """The tripped scopes that were heard of last, sorted."""
        return self._breakers.tripped

    def require_execution(self, credential: Credential, now: int) -> None:
        """Raise `Unverified` or `Denied` unless the session is execution's, listed and not revoked."""
        if credential.component != EXECUTION:
            raise Denied("FRAME_SIGNER", f"orders are signed for {EXECUTION}, not for {credential.component}")
        self.sessions.require_listed(credential, now)

    def authorize(self, verified: Verified, decision_id: bytes, intent: Verified, now: int) -> Authorized:
        """The order that `decision_id` in the opened message permits, and that `intent` asks for; used from here on.

        `now` is Unix nanoseconds.  Raises `Denied`, `Unverified` or `Malformed`: nothing may be signed then.
        """
        require_current(self.trust, now)
        if self._newer:
            raise Denied(
                "TRUST_ROOT_NEWER", f"trust root {self._newer} was in force already, this is {self.trust.number}"
            )
        subject, credential = verified.subject, verified.credential
        if subject.kind != "order.decision" or credential.component != GATEWAY:
            raise Denied(
                "PERMIT_ISSUER", f"a permit is the gateway's decision, not {subject.kind} of {credential.component}"
            )
        require_live(verified, now)
        self.sessions.require_listed(credential, now)
        decision = next((e for e in verified.events if isinstance(e, Decision) and e.id == decision_id), None)
        if decision is None:
            raise Denied("NOT_A_PERMIT", f"decision {id_text(decision_id)} is not in the message")
        permit = decision.permit
        if permit is None:
            raise Denied("NOT_A_PERMIT", f"decision {id_text(decision_id)} says {decision.verdict}")
        if decision.trust_root != self._root:
            raise Denied(
                "TRUST_ROOT_DIFFERS",
                f"decided by document {decision.trust_root.hex()[:16]}, this is {self._root.hex()[:16]}, "
                f"trust root {self.trust.number}",
            )
        if permit.audience != self.boot:
            raise Denied("PERMIT_AUDIENCE", f"for boot {permit.audience.hex()[:16]}, this is {self.boot.hex()[:16]}")
        if now >= permit.expires_at:
            raise Denied("PERMIT_EXPIRED", f"expired {(now - permit.expires_at) / 1e9:.3f} s ago")
        if permit.expires_at > verified.statement.time + MAX_PERMIT_NS:
            lifetime = (permit.expires_at - verified.statement.time) / 1e9
            raise Denied("PERMIT_LIFETIME", f"{lifetime:.3f} s, limit {MAX_PERMIT_NS / 1e9:.0f} s")
        self._breakers.require_closed(subject.strategy, subject.venue, now, MAX_HEARTBEAT_AGE_NS)
        lease = self._leases.holding(subject.venue, now)
        if lease is None:
            raise Denied("NOT_ARMED", f"no operator's lease arms {EXECUTION} at {subject.venue} now")
        venue = self.trust.venues.get(subject.venue)
        if venue is None or permit.account != venue.account:
            raise Denied("VENUE_ACCOUNT", f"{permit.account[:48]!r} is not our account at {subject.venue}")
        record = self.trust.instrument(subject.venue, subject.symbol)
        if permit.instrument_hash != record.digest:
            raise Denied("INSTRUMENT_HASH", f"not the operator's record of {record.symbol} at {record.venue}")
        adapter = venues.adapter(venue.kind)
        counted = record.counts(*adapter.amounts(record, permit.order))
        require_asked(subject, decision, intent, record, adapter)
        # Fresh when it was decided on; the decision is fresh now.
        require_live(intent, verified.statement.time)
        self.sessions.require_listed(intent.credential, now)
        self._caps.require(venue.account, counted, lease)
        self._use(decision_id, permit.order.client_order_id, permit.expires_at + REMEMBER_NS, now)
        self._caps.spend(Spent(now, venue.account, counted))
        return Authorized(subject.venue, venue.account, subject.strategy, record, permit.order, decision_id, counted)

    def _use(self, decision_id: bytes, name: str, until: int, now: int) -> None:
        if decision_id in self._used or name in self._used_names:
            raise Denied("PERMIT_USED", f"decision {id_text(decision_id)} or its order {name[:36]} was signed before")
        if len(self._used) >= MAX_USED:
            self._used = {key: end for key, end in self._used.items() if end > now}
            self._used_names = {key: end for key, end in self._used_names.items() if end > now}
            if len(self._used) >= MAX_USED:
                raise Denied("PERMITS_FULL", f"{MAX_USED} permits in use; none is signed until some expire")
        self._used[decision_id] = self._used_names[name] = until
