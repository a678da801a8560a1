"""A gateway core with everything that it needs to say yes, and helpers to take one thing away."""

from __future__ import annotations

import hashlib
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec

from tallystick import infra
from tallystick.components.gateway import decide
from tallystick.components.gateway.policy import Policy
from tallystick.components.gateway.risk.exposure import OpenOrder
from tallystick.components.gateway.risk.facts import Caller, Facts, Order
from tallystick.runtime.deployment.house_rules import read_house_rules
from tallystick.schemas.credential import Credential
from tallystick.schemas.event import Event
from tallystick.schemas.ids import EventIds
from tallystick.schemas.limits import Limits
from tallystick.schemas.market import FeedStatus, Trade
from tallystick.schemas.orders import CancelIntent, Decision, Fill, Intent, OrderEvent, OrderState
from tallystick.schemas.seal import Statement, Verified
from tallystick.schemas.security import Arm, BreakerHeartbeat, ListedSession, SessionList, Trip
from tallystick.schemas.sessions import SessionView
from tallystick.schemas.subjects import Subject, parse_subject
from tallystick.schemas.trust import Instrument, TrustRoot, sign_document
from tests.support import world

POLICY = Path(infra.__file__).parent / "policies"
NOW = world.NOW
SECOND = 1_000_000_000
MS = 1_000_000
CUSTODY_BOOT = world.seed("boot custody")[:16]
XRP = "paper.XRP-ETH"
LAST = Decimal("0.001")
LIMITS = world.LIMITS

# A deployment with two strategies, whose limits hold nobody back.
CONFIG = """
deployment = "test"
[broker]
port = 0
[authority]
port = 0
[venue]
name = "paper"
kind = "paper"
host = "127.0.0.1:1"
account = "main"
[[instruments]]
venue = "paper"
symbol = "XRP/ETH"
venue_symbol = "XRPETH"
base = "XRP"
quote = "ETH"
tick = "0.00000001"
step = "1"
min_notional = "0.001"
market_price = "0.0015"
[limits]
max_notional = "1"
max_qty = "1000"
max_open_notional = "100"
max_position_notional = "100"
max_gross_notional = "100"
burst = 1000
messages_per_second = 1000
[[caps]]
account = "main"
asset = "ETH"
max_order = "5"
max_hourly = "500"
[[caps]]
account = "main"
asset = "XRP"
max_order = "5000"
max_hourly = "500000"
[market_data]
source = "synthetic"
[[strategies]]
name = "alpha"
module = "none"
instruments = ["XRP/ETH"]
[[strategies]]
name = "beta"
module = "none"
instruments = ["XRP/ETH"]
"""


def trust_root() -> TrustRoot:
    """The common trust root, with a step, a tick and a minimum that tests can miss."""
    root = world.trust_root()
    xrp = Instrument(
        venue="paper",
        symbol="XRP/ETH",
        venue_symbol="XRPETH",
        base="XRP",
        quote="ETH",
        tick=Decimal("0.0000001"),
        step=Decimal(1),
        min_notional=Decimal("0.01"),
        market_price=LAST,
    )
    policy = read_house_rules(POLICY).digest.hex()
    return msgspec.structs.replace(root, instruments=(xrp, *root.instruments[1:]), policy=policy)


def facts(**changes: Any) -> Facts:
    """Facts to which neither a control nor the shipped policy objects, with `changes` of whoever's fields."""
    caller: dict[str, Any] = {
        "strategy": "alpha",
        "venue": "paper",
        "symbol": "XRP/ETH",
        "ready": True,
        "error": None,
        "list_age": 0,
        "intent_age": 0,
        "duplicate": False,
    }
    order: dict[str, Any] = {
        "side": "buy",
        "type": "limit",
        "tif": "GTC",
        "qty": Decimal(100),
        "price": Decimal("0.001"),
        "deviation_bps": 0,
        "notional": Decimal("0.1"),
        "open_notional": Decimal("0.1"),
        "position_notional": Decimal("0.1"),
        "gross_notional": Decimal("0.1"),
        "reducing": False,
    }
    world: dict[str, Any] = {
        "instrument": trust_root().instruments[0],
        "limits": LIMITS,
        "caps": (("ETH", Decimal("0.1"), Decimal(5)), ("XRP", Decimal(100), Decimal(5000))),
        "lease": (0, 1),
        "armed": True,
        "custody": bytes(16),
        "heartbeat_age": 0,
        "tripped": (),
        "feed": "live",
        "data_age": 0,
        "messages_left": 1,
    }
    for name, value in changes.items():
        next(part for part in (caller, order, world) if name in part)[name] = value
    return Facts(caller=Caller(**caller), order=Order(**order), **world)


class World:
    """`gateway` is ready and would permit `intent()`; `now` is the clock."""

    def __init__(
        self,
        limits: Limits = LIMITS,
        policy: Policy | None = None,
        trust: TrustRoot | None = None,
        ready: bool = True,
    ) -> None:
        self.now = NOW
        self.trust = msgspec.structs.replace(trust or trust_root(), limits=world.limit_rows(limits))
        self.ids = EventIds(b"gateway.test")
        self.policy = policy or Policy.load(POLICY, self.trust)
        self.credentials: dict[str, Credential] = {
            name: world.credential(name, self.trust, boot=CUSTODY_BOOT if name == "custody" else None)[0]
            for name in self.trust.components
        }
        self.sessions = SessionView()
        self.gateway = decide.Gateway(self.trust, self.policy, self.sessions, self._new_decision)
        self.decisions: list[tuple[Subject, Decision]] = []
        self.alarms: list[str] = []
        self.gateway.alarm = lambda code, _: self.alarms.append(code)
        if ready:
            self.decisions += self.gateway.caught_up(self.now)
            self.refresh()
            self.arm()

    def _new_decision(self, *, causes: tuple[bytes, ...], **fields: Any) -> Decision:
        return Decision(id=self.ids.next(self.now), ts=self.now, causes=causes, **fields)

    # -- events in ------------------------------------------------------------------------------

    def base(self, ts: int | None = None) -> dict[str, Any]:
        """Id and time of a new event."""
        at = self.now if ts is None else ts
        return {"id": self.ids.next(at), "ts": at}

    def verified(self, component: str, subject: str, *events: Event, time: int | None = None) -> Verified:
        """A message as the verifier hands it over (the seal has tests of its own)."""
        parsed = parse_subject(subject)
        credential = self.credentials[component]
        return Verified(
            subject=parsed,
            events=list(events),
            statement=Statement(
                deployment=self.trust.deployment,
                component=component,
                boot=credential.boot,
                stream=parsed.stream,
                seq=0,
                prev=bytes(32),
                size=1,
                root=bytes(32),
                time=self.now if time is None else time,
                flags=0,
                credential=credential.digest,
            ),
            credential=credential,
            index=0,
            leaf=hashlib.sha256(b"leaf" + b"".join(e.id for e in events)).digest(),
            digest=bytes(32),
            payload=b"",
        )

    def apply(self, component: str, subject: str, *events: Event) -> None:
        """Apply a message of another component."""
        self.gateway.apply(self.verified(component, subject, *events), self.now)

    def refresh(self) -> None:
        """Session list, heartbeat and market data of this moment."""
        self.list_sessions()
        self.beat()
        self.trade()

    def list_sessions(self, without: str = "", revoked: tuple[bytes, ...] = ()) -> None:
        """The authority's list of everybody but `without`."""
        live = tuple(
            ListedSession(component=n, boot=c.boot, credential_hash=c.digest, expires_at=c.expires_at)
            for n, c in self.credentials.items()
            if n != without
        )
        event = SessionList(**self.base(), number=1, live=live, revoked=revoked)
        self.sessions.apply(self.verified("authority", "cred.authority", event))

    def beat(self, *scopes: str) -> None:
        """The breaker's heartbeat with these scopes tripped."""
        tripped = tuple(Trip(scope=s, reason="test", since=self.now, by="test") for s in scopes)
        self.apply("breaker", "control.breaker.all", BreakerHeartbeat(**self.base(), number=1, tripped=tripped))

    def arm(
        self, venues: tuple[str, ...] = ("paper",), start: int = NOW - SECOND, until: int = NOW + 3600 * SECOND
    ) -> None:
        """An operator's lease for execution."""
        lease = world.lease(self.trust, start, until, venues=venues)
        note = sign_document(lease, ("operator", world.key("operator")))
        self.apply("breaker", "control.arm.execution", Arm(**self.base(), note=note))

    def trade(self, price: Decimal = LAST, subject: str = XRP) -> None:
        """A trade of the market."""
        event = Trade(**self.base(), trade_id=1, price=price, qty=Decimal(1), time=self.now, buyer_is_maker=False)
        self.apply("market-data", f"md.trade.{subject}", event)

    def feed(self, state: Any, symbol: str = "XRP/ETH") -> None:
        """A state of the feed."""
        self.apply("market-data", "ref.market.paper", FeedStatus(**self.base(), symbol=symbol, state=state))

    # -- intents in, decisions out --------------------------------------------------------------

    def intent(self, qty: str = "100", price: str | None = "0.001", side: Any = "buy", **more: Any) -> Intent:
        """An intent within every limit."""
        kind: Any = "market" if price is None else "limit"
        fields = {**self.base(), "tif": "GTC", **more}
        return Intent(side=side, type=kind, qty=Decimal(qty), price=None if price is None else Decimal(price), **fields)

    def ask(self, intent: Intent | CancelIntent, strategy: str = "alpha", subject: str = XRP, **more: Any) -> Decision:
        """The gateway's decision on an intent of `strategy`."""
        message = self.verified(f"strategy-{strategy}", f"order.intent.{strategy}.{subject}", intent, **more)
        decision = self.gateway.on_intent(message, intent, self.now)
        assert decision is not None
        return decision

    def codes(self, intent: Intent | CancelIntent, strategy: str = "alpha", **more: Any) -> list[str]:
        """The codes of the denials of an intent; [] for a permit."""
        decision = self.ask(intent, strategy, **more)
        return [d.code for d in decision.denials]


def wide(**changes: Any) -> Limits:
    """Limits that only the changed one can hold back."""
    huge = Decimal(10**9)
    wide = {"max_notional": huge, "max_qty": huge, "max_open_notional": huge, "max_position_notional": huge}
    limits: Limits = msgspec.structs.replace(LIMITS, **{**wide, "max_gross_notional": huge, **changes})
    return limits


def order_event(w: World, intent_id: bytes, state: OrderState, **more: Any) -> None:
    """Execution says that an order is in `state`."""
    event = OrderEvent(**w.base(), intent_id=intent_id, decision_id=bytes(16), client_order_id="x", state=state, **more)
    w.apply("execution", f"order.event.alpha.{XRP}", event)


def hold(w: World, qty: str, subject: str = XRP, trade_id: int = 1) -> bytes:
    """Alpha bought `qty` by a permit of an earlier time; the order's id."""
    where = parse_subject(f"fill.alpha.{subject}")
    intent_id = w.ids.next(w.now)
    order = OpenOrder(
        intent_id=intent_id,
        strategy="alpha",
        venue=where.venue,
        symbol=where.symbol,
        quote=where.symbol.split("/")[1],
        side="buy",
        qty=Decimal(qty),
        price=LAST,
        whole=Decimal(0),
        expires_at=w.now,
    )
    w.gateway.exposure.reserve(order)
    fill(w, intent_id, qty, subject=subject, trade_id=trade_id)
    return intent_id


def fill(w: World, intent_id: bytes, qty: str, side: Any = "buy", trade_id: int = 1, subject: str = XRP) -> None:
    """The portfolio says that an order was filled, in part or whole."""
    event = Fill(
        **w.base(),
        intent_id=intent_id,
        client_order_id="x",
        venue_order_id="1",
        trade_id=trade_id,
        side=side,
        price=LAST,
        qty=Decimal(qty),
        commission=Decimal(0),
        commission_asset="BNB",
        maker=False,
        time=w.now,
    )
    w.apply("portfolio", f"fill.alpha.{subject}", event)
