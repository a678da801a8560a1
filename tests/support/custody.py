"""Custody with everything that it needs to sign, and helpers to take one thing away: real seals, real ccxt, software keys."""

from __future__ import annotations

import functools
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec

from tallystick.components.custody.journal import Journal
from tallystick.components.custody.permits import Permits
from tallystick.components.custody.refusals import Refusals
from tallystick.components.custody.server import SigningServer
from tallystick.runtime.bus.tasks import Tasks
from tallystick.runtime.unix_socket import Peer
from tallystick.schemas import signing
from tallystick.schemas.credential import Credential
from tallystick.schemas.errors import Unverified
from tallystick.schemas.event import Event
from tallystick.schemas.ids import EventIds
from tallystick.schemas.nats_jwt import SessionKey
from tallystick.schemas.orders import Decision, Intent, Permit, VenueOrder
from tallystick.schemas.registry import encode_events
from tallystick.schemas.seal import ChainWriter, Verifier
from tallystick.schemas.security import Arm, BreakerHeartbeat, ListedSession, SessionList, Trip
from tallystick.schemas.sessions import SessionView
from tallystick.schemas.standing import LISTED, Standing
from tallystick.schemas.subjects import parse_subject
from tallystick.schemas.trust import Instrument, TrustRoot, sign_document
from tallystick.venues.binance.request import RequestBuilder
from tallystick.venues.order import client_order_id
from tests.support import world
from tests.support.leases import held

SECOND = 1_000_000_000
LEASE_S = 3_600
SUBJECT = "order.decision.alpha.paper.XRP-ETH"
BOOT = world.seed("boot custody")[:16]
API_KEY = "apikey0123456789"
UID = 1000
# What limit orders below it, and market orders, count at; the market stands at an eighth of it.
MARKET_PRICE = Decimal("0.01")
# Replaced by the client order id that names the intent, where there is one.
OWN = "0190abcd00007000800000000000000a"
INTENT = "order.intent.alpha.paper.XRP-ETH"


def trust_root() -> TrustRoot:
    """The common trust root, with a tick that orders can miss and a price that market orders count at."""
    root = world.trust_root()
    xrp, btc = root.instruments
    xrp = msgspec.structs.replace(xrp, tick=Decimal("0.0000001"), market_price=MARKET_PRICE)
    return msgspec.structs.replace(root, instruments=(xrp, btc))


def order(**changes: str) -> VenueOrder:
    """A limit order within all caps; `changes` replace fields."""
    base = VenueOrder("XRPETH", "BUY", "LIMIT", "GTC", "100", "0.0012345", OWN)
    return msgspec.structs.replace(base, **changes)


class Counting:
    """A venue key that counts what it signed, as a token would."""

    def __init__(self, key: SessionKey) -> None:
        self._key = key
        self.public = key.public
        self.signatures = 0

    def sign(self, data: bytes) -> bytes:
        self.signatures += 1
        return self._key.sign(data)


VENUE_KEY = Counting(world.key("venue"))


@functools.cache
def shared_builder(key: Any = VENUE_KEY) -> RequestBuilder:
    """ccxt is set up once a test process; its clock is the desk's that was made last."""
    root = trust_root()
    return RequestBuilder(root.venues["paper"], root.instruments, API_KEY, key, lambda: shared_now[0])


shared_now = [world.NOW]
# Who asks, by the kernel's word.
PEER = Peer(4242, UID)


PAST = Standing("past", Unverified("HISTORY", "test"))


class Desk:
    """Custody that would sign `permit()`; `now` is the clock."""

    def __init__(self, folder: Path, trust: TrustRoot | None = None, now: int = world.NOW) -> None:
        self.now = now
        self.trust = trust or trust_root()
        self.ids = EventIds(world.seed("ids"))
        self.writers: dict[tuple[str, str, str], ChainWriter] = {}
        self.verifier = Verifier(self.trust)
        self.sessions = SessionView()
        self.journal = Journal(folder / "journal", lambda: self.now)
        self.refusals = Refusals(folder / "journal", lambda: self.now)
        self.monotonic = 10**15
        self.permits = Permits(
            self.trust,
            BOOT,
            self.sessions,
            self.now,
            lambda: self.monotonic,
            self.journal.spent,
            self.journal.signed,
        )
        self.lease = held(monotonic=lambda: self.monotonic, now=now)
        self.server = SigningServer(
            self.permits,
            self.verifier,
            {"paper": shared_builder()},
            self.journal,
            self.refusals,
            lambda: self.now,
            frozenset({UID}),
            VENUE_KEY.public,
            Tasks(),
            lease=self.lease,
        )
        self.server._sync_soon = self.journal.sync  # type: ignore[method-assign] # without an event loop
        self.number = 0
        # decision id -> the sealed message of its intent
        self.intents: dict[bytes, bytes] = {}
        self.session: dict[str, Any] = {} if now == world.NOW else {"issued_at": now, "jti": str(now)}
        self.list_sessions()
        self.heartbeat()
        self.arm()

    def advance(self, seconds: float) -> None:
        """Let time pass; sessions and heartbeat grow old."""
        self.now += int(seconds * SECOND)
        self.monotonic += int(seconds * SECOND)

    def renew(self) -> None:
        """Everybody has a fresh credential, listed; the breaker is heard and execution armed."""
        self.session = {"issued_at": self.now, "jti": str(self.now)}
        self.list_sessions()
        self.heartbeat()
        self.arm()

    def lend(self) -> None:
        """The vault gives its lease on custody's secrets again."""
        self.lease.granted(self.now, self.monotonic, LEASE_S)

    def credential(self, component: str = "gateway", **kw: Any) -> tuple[Credential, SessionKey]:
        return world.credential(component, self.trust, **{**self.session, **kw})

    def seal(self, component: str, subject: str, *events: Event, **kw: Any) -> bytes:
        """`events` sealed by `component`, as they would stand on the bus."""
        stream = parse_subject(subject).stream
        place = (component, stream, repr({**self.session, **kw}))
        if place not in self.writers:
            credential, session = self.credential(component, **kw)
            self.writers[place] = ChainWriter(credential, session, stream)
        payload = encode_events(parse_subject(subject).kind, events)
        return self.writers[place].seal([(subject, payload)], self.now)[0][1]

    def event(self, kind: Any, **fields: Any) -> Any:
        return kind(id=self.ids.next(self.now), ts=self.now, **fields)

    def tell(self, component: str, subject: str, *events: Event, live: bool = True, **kw: Any) -> None:
        """Custody reads a sealed message."""
        verified = self.verifier.open(
            subject, parse_subject(subject).stream, self.seal(component, subject, *events, **kw)
        )
        self.sessions.apply(verified)
        if verified.subject.kind == "control.breaker":
            self.permits.on_breaker(verified, LISTED if live else PAST, self.now)
        else:
            self.permits.on_arm(verified, self.now)

    def list_sessions(self, *components: str) -> None:
        self.number += 1
        live = []
        for component in components or ("gateway", "execution", "breaker", "strategy-alpha"):
            credential, _ = self.credential(component)
            live.append(ListedSession(component, credential.boot, credential.digest, credential.expires_at))
        self.tell(
            "authority",
            "cred.authority",
            self.event(SessionList, number=self.number, live=tuple(live), revoked=()),
        )

    def heartbeat(self, *tripped: str) -> None:
        self.number += 1
        trips = tuple(Trip(scope, "test", self.now, "test") for scope in tripped)
        self.tell("breaker", "control.breaker.all", self.event(BreakerHeartbeat, number=self.number, tripped=trips))

    def arm(self, signer: SessionKey | None = None, live: bool = True, **changes: Any) -> None:
        lease = world.lease(self.trust, self.now - SECOND, self.now + 3600 * SECOND)
        lease = msgspec.structs.replace(lease, **changes)
        note = sign_document(lease, ("operator", signer or world.key("operator")))
        self.tell("breaker", "control.arm.execution", self.event(Arm, note=note), live=live)

    def permit(self, **changes: Any) -> Permit:
        base = Permit(
            account="main",
            order=order(),
            instrument_hash=self.instrument().digest,
            audience=BOOT,
            expires_at=self.now + 3 * SECOND,
        )
        return msgspec.structs.replace(base, **changes)

    def instrument(self) -> Instrument:
        return self.trust.instrument("paper", "XRP/ETH")

    def intent(self, asked: VenueOrder | None = None, **changes: Any) -> Intent:
        """The strategy's wish for `asked`, as far as an intent can say it; `changes` replace fields."""
        base: dict[str, Any] = {"side": "buy", "type": "limit", "qty": Decimal(100), "price": Decimal("0.0012345")}
        if asked is not None and asked.type == "MARKET":
            base |= {"type": "market", "price": None}
        limit = base["price"] is not None
        if asked is not None and asked.side == "SELL":
            base["side"] = "sell"
        for field, text in (("qty", asked.quantity), ("price", asked.price)) if asked is not None else ():
            if (
                (limit or field == "qty")
                and re.fullmatch(r"[0-9]{1,20}(\.[0-9]{1,18})?", text, re.ASCII)
                and Decimal(text) > 0
            ):
                base[field] = Decimal(text)
        if asked is not None and asked.time_in_force in {"IOC", "FOK"}:
            base["tif"] = asked.time_in_force
        return self.event(Intent, **{**base, **changes})  # type: ignore[no-any-return]

    def decision(self, intent: Intent | None = None, sealed: bytes | None = None, **changes: Any) -> Decision:
        """The gateway's permit for `intent`, or for one that asks for just what the permit says.

        `sealed`: the strategy's message that holds the intent; it is sealed anew unless given.
        """
        permit = changes.pop("permit", self.permit())
        wish = intent or self.intent(None if permit is None else permit.order)
        if permit is not None and permit.order.client_order_id == OWN:
            named = msgspec.structs.replace(permit.order, client_order_id=client_order_id(wish.id))
            permit = msgspec.structs.replace(permit, order=named)
        sealed = sealed or self.seal("strategy-alpha", INTENT, wish)
        made: Decision = self.event(
            Decision,
            **{
                "verdict": "permit",
                "intent_id": wish.id,
                "intent_hash": self.verifier.open(INTENT, "ORDERS", sealed).leaf,
                "trust_root": self.trust.digest,
                "permit": permit,
                **changes,
            },
        )
        self.intents[made.id] = sealed
        return made

    def request(self, decision: Decision | None = None, **kw: Any) -> signing.SignOrder:
        """Execution's request for a decision, sealed by the gateway unless `component` says otherwise.

        `intent`: another sealed message than the decision's; `asker`: who signs the request.
        """
        decision = decision or self.decision()
        subject = kw.pop("subject", SUBJECT)
        intent = kw.pop("intent", self.intents[decision.id])
        credential, session = self.credential(kw.pop("asker", "execution"))
        payload = self.seal(kw.pop("component", "gateway"), kw.pop("sealed_for", subject), decision, **kw)
        return signing.ask_for(1, decision.id, subject, payload, intent, credential.text, session)

    def ask(self, request: signing.Request) -> signing.Reply:
        """Custody's answer; whatever is refused is signed by no key, and is on record as an attempt."""
        shared_now[0] = self.now
        signatures, attempts, lines = VENUE_KEY.signatures, self.refusals.number, self.journal.number
        reply = self.server.answer(request, PEER)
        if isinstance(reply, signing.Refused):
            assert VENUE_KEY.signatures == signatures, "refused, and signed all the same"
            assert self.refusals.number == attempts + 1, "refused, and nobody hears of it"
            assert self.refusals.counts[reply.code]
        elif isinstance(reply, signing.Signed):
            assert VENUE_KEY.signatures == signatures + 1
            assert self.journal.number <= lines + 1
        return reply

    def sign(self, **permit: Any) -> signing.Reply:
        """Ask for a fresh permit with some fields changed."""
        return self.ask(self.request(self.decision(permit=self.permit(**permit))))
