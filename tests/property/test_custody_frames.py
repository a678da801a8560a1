"""Whatever strategies ask for and the gateway answers: an order's frame fits into what custody reads."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallystick.runtime.bus import publisher
from tallystick.schemas import signing
from tallystick.schemas.errors import Malformed
from tallystick.schemas.event import MAX_CAUSES, Event
from tallystick.schemas.ids import EventIds
from tallystick.schemas.nats_jwt import MAX_CREDENTIAL
from tallystick.schemas.orders import Decision, Denial, Intent, Permit, VenueOrder
from tallystick.schemas.registry import MAX_SIZE, encode_events, join_events
from tallystick.schemas.seal import MAX_FLUSH, ChainWriter, Payload, Verifier, max_payload
from tallystick.schemas.subjects import MAX_SUBJECT
from tests.support import world

VERIFIER = Verifier(world.trust_root())
INTENT, DECISION = "order.intent.alpha.paper.XRP-ETH", "order.decision.alpha.paper.XRP-ETH"
# Messages of other subjects in the same flush, which lengthen the path.
OTHER = "order.decision.beta.paper.XRP-ETH"
IDS = EventIds(world.seed("frames"))
WRITERS: dict[str, ChainWriter] = {}


def made(kind: Any, causes: int, **fields: Any) -> Event:
    event: Event = kind(
        id=IDS.next(world.NOW), ts=world.NOW, causes=tuple(bytes([n]) * 16 for n in range(causes)), **fields
    )
    return event


def intent(causes: int) -> Event:
    return made(Intent, causes, side="buy", type="limit", qty=Decimal(10) ** 19, price=Decimal(1).scaleb(-18))


def decision(causes: int, text: int) -> Event:
    order = VenueOrder("S" * 64, "BUY", "LIMIT", "GTC", "9" * 40, "9" * 40, "ts" + "0" * 32)
    permit = Permit(account="main", order=order, instrument_hash=bytes(32), audience=bytes(16), expires_at=world.NOW)
    common = {"intent_id": bytes(16), "intent_hash": bytes(32), "trust_root": bytes(32), "policy_hash": bytes(32)}
    if not text:
        return made(Decision, causes, verdict="permit", permit=permit, **common)
    return made(Decision, causes, verdict="deny", denials=(Denial("POLICY_DENIED", "x" * text),), **common)


def sealed(component: str, subject: str, batches: list[list[Event]], others: int) -> list[bytes]:
    """The messages of `subject` when all of it was queued at once, as a publisher gathers and seals them."""
    if component not in WRITERS:
        credential, session = world.credential(component)
        WRITERS[component] = ChainWriter(credential, session, "ORDERS")
    messages: list[publisher._Message] = []
    for events in batches:
        encoded = encode_events(subject.split(".alpha", maxsplit=1)[0], events)
        if not messages or not messages[-1].has_room(len(events), len(encoded)):
            messages.append(publisher._Message(subject))
        messages[-1].encoded.append((len(events), encoded))
        messages[-1].count += len(events)
        messages[-1].size += len(encoded)
    parts = [(m.subject, join_events(m.encoded)) for m in messages]
    if component == "gateway":
        parts += [(OTHER, encode_events("order.decision", [decision(1, 5)]))] * others
    flush = WRITERS[component].seal(parts[:MAX_FLUSH], world.NOW)
    return [payload for where, payload in flush if where == subject]


@settings(max_examples=60, deadline=None)
@given(
    asked=st.lists(
        st.lists(st.builds(intent, st.integers(0, MAX_CAUSES)), min_size=1, max_size=8), min_size=1, max_size=40
    ),
    answers=st.lists(st.builds(decision, st.integers(0, MAX_CAUSES), st.integers(0, 4_000)), min_size=1, max_size=120),
    others=st.integers(0, 400),
)
def test_an_order_fits_into_a_frame_however_much_was_asked_and_answered_at_once(
    asked: list[list[Event]], answers: list[Event], others: int
) -> None:
    intents = sealed("strategy-alpha", INTENT, asked, 0)
    decisions = sealed("gateway", DECISION, [[one] for one in answers], others)
    assert sum(len(VERIFIER.open(INTENT, "ORDERS", p).events) for p in intents) == sum(map(len, asked))
    assert sum(len(VERIFIER.open(DECISION, "ORDERS", p).events) for p in decisions) == len(answers)
    frame = signing.SignOrder(
        id=2**63 - 1,
        decision_id=bytes(16),
        subject="s" * MAX_SUBJECT,
        payload=max(decisions, key=len),
        intent=max(intents, key=len),
        credential="c" * MAX_CREDENTIAL,
        signature=bytes(64),
    )
    assert len(signing.encode_frame(frame)) <= signing.MAX_FRAME + signing.LENGTH.size
    assert signing.decode_request(signing.encode_frame(frame)[signing.LENGTH.size :]) == frame


@pytest.mark.parametrize(("component", "subject"), [("strategy-alpha", INTENT), ("gateway", DECISION)])
def test_a_message_above_the_bound_is_read_by_nobody(component: str, subject: str) -> None:
    """Who publishes past our publisher finds the same bound at every reader: gateway, execution, custody, audit."""
    credential, session = world.credential(component)
    kind = subject.split(".alpha", maxsplit=1)[0]
    small = intent(0) if component.startswith("strategy") else decision(0, 0)
    honest = msgspec.msgpack.decode(
        ChainWriter(credential, session, "ORDERS").seal([(subject, encode_events(kind, [small]))], world.NOW)[0][1],
        type=Payload,
    )
    for size, code in ((max_payload(kind), "PAYLOAD_SIZE"), (MAX_SIZE[kind][1], "EVENTS_SIZE|MERKLE")):
        padded = msgspec.structs.replace(honest, events=honest.events + bytes(size))
        with pytest.raises(Exception, match=code):
            VERIFIER.open(subject, "ORDERS", msgspec.msgpack.encode(padded))
    with pytest.raises(Malformed, match="EVENTS_SIZE"):
        encode_events(kind, [small] * 65 if component.startswith("strategy") else [decision(0, 0)] * 257)


def test_the_largest_messages_that_may_be_read_fit_into_a_frame_of_64_kib() -> None:
    assert signing.MAX_FRAME == 64 * 1024
    frame = signing.SignOrder(
        id=2**63 - 1,
        decision_id=bytes(16),
        subject="s" * MAX_SUBJECT,
        payload=bytes(max_payload("order.decision")),
        intent=bytes(max_payload("order.intent")),
        credential="c" * MAX_CREDENTIAL,
        signature=bytes(64),
    )
    signing.encode_frame(frame)
    with pytest.raises(Malformed, match="FRAME_SIZE"):
        signing.encode_frame(msgspec.structs.replace(frame, payload=bytes(signing.MAX_FRAME)))
