"""Custody with everything that it needs to sign, and helpers to take one thing away: real seals, real ccxt, software keys."""

from __future__ import annotations

import functools
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec

from tallystick.components.custody.journal import Journal
from tallystick.components.custody.permits import Permits
from tallystick.components.custody.server import SigningServer
from tallystick.runtime.bus.tasks import Tasks
from tallystick.schemas import signing
from tallystick.schemas.credential import Credential
from tallystick.schemas.errors import Unverified
from tallystick.schemas.event import Event
from tallystick.schemas.ids import EventIds
from tallystick.schemas.nats_jwt import SessionKey
from tallystick.schemas.orders import Decision, Permit, VenueOrder
from tallystick.schemas.registry import encode_events
from tallystick.schemas.seal import ChainWriter, Verifier
from tallystick.schemas.security import Arm, BreakerHeartbeat, ListedSession, SessionList, Trip
from tallystick.schemas.sessions import SessionView
from tallystick.schemas.standing import LISTED, Standing
from tallystick.schemas.subjects import parse_subject
from tallystick.schemas.trust import ArmLease, Instrument, TrustRoot, sign_document
from tallystick.venues.binance.request import RequestBuilder
from tests.support import world

SECOND = 1_000_000_000
SUBJECT = "order.decision.alpha.paper.XRP-ETH"
BOOT = world.seed("boot custody")[:16]
API_KEY = "apikey0123456789"
VENUE_KEY = world.key("venue")
UID = 1000


def trust_root() -> TrustRoot:
    """The common trust root, with ticks and steps that orders can miss and a price for market orders."""
    root = world.trust_root()
    xrp, btc = root.instruments
    xrp = msgspec.structs.replace(xrp, tick=Decimal("0.0000001"), market_price=Decimal("0.01"))
    return msgspec.structs.replace(root, instruments=(xrp, btc))


def order(**changes: str) -> VenueOrder:
    """A limit order within all caps; `changes` replace fields."""
    base = VenueOrder("XRPETH", "BUY", "LIMIT", "GTC", "100", "0.0012345", "0190abcd00007000800000000000000a")
    return msgspec.structs.replace(base, **changes)


@functools.cache
def shared_builder(key: Any = VENUE_KEY) -> RequestBuilder:
    """ccxt is set up once a test process; its clock is the desk's that was made last."""
    root = trust_root()
    return RequestBuilder(root.venues["paper"], root.instruments, API_KEY, key, lambda: shared_now[0])


shared_now = [world.NOW]


PAST = Standing("past", Unverified("HISTORY", "test"))


class Desk:
    """Custody that would sign `permit()`; `now` is the clock."""

    def __init__(self, folder: Path, trust: TrustRoot | None = None) -> None:
        self.now = world.NOW
        self.trust = trust or trust_root()
        self.ids = EventIds(world.seed("ids"))
        self.writers: dict[tuple[str, str, str], ChainWriter] = {}
        self.verifier = Verifier(self.trust)
        self.sessions = SessionView()
        self.journal = Journal(folder / "journal", lambda: self.now)
        self.permits = Permits(self.trust, BOOT, self.sessions, self.journal.spent)
        self.server = SigningServer(
            self.permits,
            self.verifier,
            {"paper": shared_builder()},
            self.journal,
            lambda: self.now,
            frozenset({UID}),
            VENUE_KEY.public,
            Tasks(),
        )
        self.server._sync_soon = self.journal.sync  # type: ignore[method-assign] # without an event loop
        self.number = 0
        self.session: dict[str, Any] = {}
        self.list_sessions()
        self.heartbeat()
        self.arm()

    def advance(self, seconds: float) -> None:
        """Let time pass; sessions and heartbeat grow old."""
        self.now += int(seconds * SECOND)

    def renew(self) -> None:
        """Everybody has a fresh credential, listed; the breaker is heard and execution armed."""
        self.session = {"issued_at": self.now, "jti": str(self.now)}
        self.list_sessions()
        self.heartbeat()
        self.arm()

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
        for component in components or ("gateway", "execution", "breaker"):
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
        lease = ArmLease(
            deployment=self.trust.deployment,
            component="execution",
            venues=("paper",),
            start=self.now - SECOND,
            until=self.now + 3600 * SECOND,
        )
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

    def decision(self, **changes: Any) -> Decision:
        return self.event(  # type: ignore[no-any-return]
            Decision,
            **{
                "verdict": "permit",
                "intent_id": self.ids.next(self.now),
                "intent_hash": bytes(32),
                "permit": self.permit(),
                **changes,
            },
        )

    def request(self, decision: Decision | None = None, **kw: Any) -> signing.SignOrder:
        """Execution's request for a decision, sealed by the gateway unless `component` says otherwise."""
        decision = decision or self.decision()
        subject = kw.pop("subject", SUBJECT)
        payload = self.seal(kw.pop("component", "gateway"), kw.pop("sealed_for", subject), decision, **kw)
        return signing.SignOrder(id=1, decision_id=decision.id, subject=subject, payload=payload)

    def ask(self, request: signing.Request) -> signing.Reply:
        shared_now[0] = self.now
        return self.server.answer(request)

    def sign(self, **permit: Any) -> signing.Reply:
        """Ask for a fresh permit with some fields changed."""
        return self.ask(self.request(self.decision(permit=self.permit(**permit))))
