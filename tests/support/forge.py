"""Sealed messages from fixed keys, one of every event type, and the means to change any part of them.

Whoever attacks the wire holds one of two things: no key (then signatures stay as they are), or the
session key of a component (then a changed statement is signed anew).  `forge` does either.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import msgspec

from tallystick.schemas import market, orders, security
from tallystick.schemas.credential import Credential
from tallystick.schemas.event import At, Event
from tallystick.schemas.ids import EventIds
from tallystick.schemas.nats_jwt import SessionKey
from tallystick.schemas.registry import encode_events
from tallystick.schemas.seal import PREFIX, ChainWriter, Payload, Statement
from tallystick.schemas.subjects import parse_subject
from tallystick.schemas.trust import OPERATOR_KEY_NAME, Revocation, sign_document
from tests.support import world
from tests.support.world import NOW, key, seed

MS = 1_000_000
# The same arguments give the same credential, and checking one costs half a millisecond.
credential = functools.cache(world.credential)
PAYLOAD_FIELDS = Payload.__struct_fields__
STATEMENT_FIELDS = Statement.__struct_fields__


def base(label: str) -> dict[str, Any]:
    """The fields that every event has, from a label alone."""
    ids = EventIds(seed(f"ids {label}"))
    cause = ids.next(NOW - 5 * MS)
    return {
        "id": ids.next(NOW),
        "ts": NOW,
        "causes": (cause,),
        "at": (At("MARKET", 41), At("ORDERS", 7)),
    }


def revocation(component: str, number: int, *, revoked: bool = True, since: int = NOW, by: str = "operator") -> str:
    """The operator's word on a component, signed by the key `by`."""
    document = Revocation(
        deployment=world.DEPLOYMENT,
        component=component,
        number=number,
        revoked=revoked,
        since=since,
        reason="its host was entered",
    )
    return sign_document(document, (OPERATOR_KEY_NAME, key(by)))


def samples() -> list[tuple[str, str, Event]]:
    """(component, subject, event): one of every type that may stand on the wire."""
    order = orders.VenueOrder("XRPETH", "BUY", "LIMIT", "GTC", "100", "0.00017", "ts-1")
    permit = orders.Permit("main", order, seed("instrument"), seed("boot custody")[:16], NOW + 3_000_000_000)
    c, _ = credential("execution")
    session = security.ListedSession("execution", c.boot, c.digest, c.expires_at, c.session_key)
    intent, decision = base("intent")["id"], base("decision")["id"]
    alpha = "alpha.paper.XRP-ETH"
    return [
        (
            "market-data",
            "md.trade.paper.XRP-ETH",
            market.Trade(
                **base("trade"),
                trade_id=7_301,
                price=Decimal("0.00017100"),
                qty=Decimal(250),
                time=NOW - 3 * MS,
                buyer_is_maker=True,
            ),
        ),
        (
            "market-data",
            "md.quote.paper.BTC-USDT~USDT=2D240628",
            market.Quote(
                **base("quote"),
                bid=Decimal("64000.10"),
                bid_qty=Decimal("0.5"),
                ask=Decimal("64000.20"),
                ask_qty=Decimal(0),
                time=NOW - MS,
            ),
        ),
        (
            "market-data",
            "ref.market.paper",
            market.FeedStatus(
                **base("feed"), symbol="XRP/ETH", state="gap", text="3 trades", missing_from=7298, missing_to=7300
            ),
        ),
        (
            "strategy-alpha",
            f"signal.{alpha}",
            orders.Signal(**base("signal"), name="momentum", value=Decimal("-0.125"), text="grüße"),
        ),
        (
            "strategy-alpha",
            f"order.intent.{alpha}",
            orders.Intent(**base("intent"), side="buy", type="limit", qty=Decimal(100), price=Decimal("0.00017")),
        ),
        ("strategy-alpha", f"order.intent.{alpha}", orders.CancelIntent(**base("cancel"), intent_id=intent)),
        (
            "gateway",
            f"order.decision.{alpha}",
            orders.Decision(
                **base("decision"),
                verdict="permit",
                intent_id=intent,
                intent_hash=seed("intent leaf"),
                trust_root=seed("trust root"),
                policy_hash=seed("policy"),
                policies=("orders-0",),
                permit=permit,
            ),
        ),
        (
            "execution",
            f"order.event.{alpha}",
            orders.OrderEvent(
                **base("order event"),
                intent_id=intent,
                decision_id=decision,
                client_order_id="ts-1",
                state="closed",
                venue_order_id="9001",
                status="FILLED",
                executed=Decimal(100),
            ),
        ),
        (
            "breaker",
            f"order.correction.{alpha}",
            orders.Corrected(**base("correction"), note="a note\n\n— operator AAAA\n"),
        ),
        (
            "portfolio",
            f"fill.{alpha}",
            orders.Fill(
                **base("fill"),
                intent_id=intent,
                client_order_id="ts-1",
                venue_order_id="9001",
                trade_id=7_302,
                side="buy",
                price=Decimal("0.00017"),
                qty=Decimal(100),
                commission=Decimal("0.1"),
                commission_asset="XRP",
                maker=False,
                time=NOW - 2 * MS,
            ),
        ),
        (
            "portfolio",
            f"position.{alpha}",
            orders.Position(
                **base("position"), qty=Decimal(100), average_price=Decimal("0.00017"), realized=Decimal(0), fills=1
            ),
        ),
        ("portfolio", "balance.paper.XRP", orders.Balance(**base("balance"), free=Decimal("99.9"), locked=Decimal(0))),
        (
            "authority",
            "cred.execution",
            security.CredentialIssued(
                **base("issued"),
                boot=c.boot,
                session_key=c.session_key,
                credential_hash=c.digest,
                issued_at=c.issued_at,
                expires_at=c.expires_at,
                method="hardware-token",
                certificate=seed("certificate"),
            ),
        ),
        ("authority", "cred.execution", security.SessionRevoked(**base("revoked"), boot=c.boot, reason="stolen")),
        (
            "authority",
            "cred.execution",
            security.ComponentRevocation(**base("revocation"), note=revocation("execution", 1)),
        ),
        (
            "authority",
            "cred.execution",
            security.CertificateIssued(
                **base("certificate"),
                certificate=seed("certificate"),
                replaces=seed("certificate before"),
                issued_at=c.issued_at,
                expires_at=c.expires_at,
            ),
        ),
        ("authority", "cred.execution", security.BootEnded(**base("ended"), boot=c.boot, reason="stopped")),
        (
            "authority",
            "cred.authority",
            security.SessionList(**base("list"), number=12, live=(session,), revoked=(seed("revoked"),)),
        ),
        (
            "breaker",
            "control.breaker.all",
            security.BreakerHeartbeat(
                **base("beat"), number=5, tripped=(security.Trip("strategy-alpha", "losses", NOW, "streams"),)
            ),
        ),
        (
            "breaker",
            "control.breaker.strategy-alpha",
            security.BreakerTripped(**base("trip"), reason="losses", by="streams"),
        ),
        ("breaker", "control.breaker.strategy-alpha", security.BreakerRearmed(**base("rearm"), note="a note\n")),
        ("breaker", "control.arm.execution", security.Arm(**base("arm"), note="a note\n")),
        ("custody", "control.config.custody", security.RootInForce(**base("root"), note="a note\n")),
        ("custody", "control.config.custody", security.IncidentStep(**base("incident"), note="a note\n")),
        (
            "custody",
            "control.config.custody",
            security.KeyRotation(
                **base("rotation"),
                rotation="0123456789abcdef",
                venue="paper",
                holder="custody",
                step="switched",
                old=seed("old key"),
                new=seed("new key"),
                public_key="-----BEGIN PUBLIC KEY-----\n",
                text="",
            ),
        ),
        (
            "custody",
            "control.key.custody",
            security.KeyAsked(
                **base("key asked"),
                rotation="0123456789abcdef",
                holder="custody",
                op="born",
                key_id="api-0123456789abcdef",
            ),
        ),
        (
            "custody",
            "control.key.custody",
            security.KeyAnswered(
                **base("key answered"), asked=seed("asked")[:16], code="KEY_ROOM", text="4 keys", result=""
            ),
        ),
        ("custody", "control.config.custody", security.RotationOrdered(**base("rotate"), note="a note\n")),
        (
            "custody",
            "control.config.custody",
            security.ConfigChanged(**base("config"), name="venue-key", digest=seed("config"), text="rotated"),
        ),
        (
            "streams",
            "alert.order-burst.critical",
            security.Alert(
                **base("alert"), code="BURST", scope="all", text="40 in 1 s", value=Decimal(40), limit=Decimal(20)
            ),
        ),
        (
            "audit",
            "audit.checkpoint",
            security.Checkpoint(**base("checkpoint"), entries=3, head=seed("head"), rows=900),
        ),
        (
            "audit",
            "audit.checkpoint",
            security.StreamTotal(**base("total"), stream="ORDERS", messages=200, last_seq=204, digest=seed("total")),
        ),
        (
            "witness-one",
            "audit.cosignature.one",
            security.Cosignature(**base("cosignature"), entries=3, head=seed("head"), note="a note\n"),
        ),
        (
            "execution",
            "guard.execution",
            security.Heartbeat(**base("heartbeat"), heads=(security.Head("ORDERS", 8, seed("statement")),)),
        ),
        (
            "custody",
            "guard.custody",
            security.Notice(**base("notice"), code="REFUSED", text="no", evidence=b"\x00\xff"),
        ),
        (
            "gateway",
            "dead.gateway",
            security.DeadLetter(
                **base("dead"),
                subject=f"order.intent.{alpha}",
                stream="ORDERS",
                stream_seq=17,
                code="SIGNATURE",
                text="not signed",
                digest=hashlib.sha256(b"junk").digest(),
                payload=b"junk",
            ),
        ),
    ]


def encoded(subject: str, *events: Event) -> tuple[str, bytes]:
    """What a `ChainWriter` seals: a subject with its encoded events."""
    return subject, encode_events(parse_subject(subject).kind, events)


def writer(component: str, stream: str, **more: Any) -> ChainWriter:
    """A chain of a component under its fixed key; `more` as in `world.credential`."""
    return ChainWriter(*credential(component, **more), stream)


def sealed(
    component: str, *messages: tuple[str, bytes], time: int = NOW, close: bool = False
) -> list[tuple[str, bytes]]:
    """The first flush of a fresh chain."""
    return writer(component, parse_subject(messages[0][0]).stream).seal(messages, time, close=close)


def forge(
    payload: bytes,
    *,
    signer: SessionKey | None = None,
    statement: Mapping[str, object] | bytes | None = None,
    **fields: object,
) -> bytes:
    """`payload` with fields of its statement and its own replaced; `signer` signs the statement anew.

    `statement` is a mapping of fields to replace, or bytes to stand in its place.
    """
    parts: dict[str, Any] = dict(zip(PAYLOAD_FIELDS, msgspec.msgpack.decode(payload), strict=True))
    if isinstance(statement, bytes):
        parts["statement"] = statement
    elif statement is not None:
        values = msgspec.msgpack.decode(parts["statement"][len(PREFIX) :])
        named = {**dict(zip(STATEMENT_FIELDS, values, strict=True)), **statement}
        parts["statement"] = PREFIX + msgspec.msgpack.encode(list(named.values()))
    parts.update(fields)
    if signer is not None and "signature" not in fields:
        parts["signature"] = signer.sign(parts["statement"])
    return msgspec.msgpack.encode(list(parts.values()))


def field(payload: bytes, name: str) -> Any:
    """One field of a payload, undecoded."""
    return msgspec.msgpack.decode(payload)[PAYLOAD_FIELDS.index(name)]


def session_key(component: str, jti: str = "1") -> SessionKey:
    """The session key that `world.credential` gives a component."""
    return key(f"session {component} {jti}")


def other_session(component: str) -> tuple[Credential, SessionKey]:
    """Another session of the same component: another boot and key."""
    return credential(component, boot=seed("another boot")[:16], jti="other")


def flush_of_five(time: int = NOW) -> Sequence[tuple[str, bytes]]:
    """Five messages of market data in one flush: a tree of five leaves, so that paths have one and three hashes."""
    trade, quote, feed = (event for _, _, event in samples()[:3])
    later = msgspec.structs.replace(trade, id=base("trade 2")["id"], trade_id=7_302, price=Decimal("0.00017200"))
    return sealed(
        "market-data",
        encoded("md.trade.paper.XRP-ETH", trade, later),
        encoded("md.trade.paper.BTC-USDT", trade),
        encoded("md.quote.paper.XRP-ETH", quote),
        encoded("ref.market.paper", feed),
        encoded("md.quote.paper.BTC-USDT", quote),
        time=time,
    )
