"""A stolen gateway without a strategy, a strategy without the gateway, and who asks custody in execution's place."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tallystick.schemas import signing
from tallystick.schemas.orders import CancelIntent
from tests.support import world
from tests.support.custody import INTENT, Desk, order


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def code(reply: signing.Reply) -> str:
    assert isinstance(reply, signing.Refused), reply
    return reply.code


def test_a_stolen_gateway_cannot_name_an_intent_that_does_not_exist(desk: Desk) -> None:
    decision = desk.decision(intent_id=bytes(16))
    assert code(desk.ask(desk.request(decision))) == "INTENT_MISSING"


def test_a_stolen_gateway_cannot_trade_for_a_strategy_that_does_not_exist(desk: Desk) -> None:
    subject = "order.decision.ghost.paper.XRP-ETH"
    decision = desk.decision()
    # The gateway may seal for any strategy; nobody admitted can seal the intent.
    for thief in ("gateway", "execution", "strategy-alpha"):
        sealed = desk.seal(thief, "order.intent.ghost.paper.XRP-ETH", desk.intent())
        assert code(desk.ask(desk.request(decision, subject=subject, intent=sealed))) == "SCOPE"


@pytest.mark.parametrize(
    "other",
    [
        {"side": "sell"},
        {"qty": Decimal(99)},
        {"price": Decimal("0.0012346")},
        {"type": "market", "price": None},
        {"tif": "IOC"},
    ],
    ids=",".join,
)
def test_a_permit_for_another_order_than_the_strategy_asked_for_is_refused(desk: Desk, other: dict[str, Any]) -> None:
    intent = desk.intent(order(), **other)
    assert code(desk.ask(desk.request(desk.decision(intent)))) == "INTENT_DIFFERS"


def test_a_permit_under_another_order_id_than_the_intents_is_refused(desk: Desk) -> None:
    assert code(desk.sign(order=order(client_order_id="another-order-id"))) == "INTENT_DIFFERS"


def test_an_old_intent_cannot_be_permitted_again(desk: Desk) -> None:
    intent = desk.intent()
    sealed = desk.seal("strategy-alpha", INTENT, intent)
    desk.advance(3)
    desk.list_sessions()
    desk.heartbeat()
    assert isinstance(desk.ask(desk.request(desk.decision(intent, sealed))), signing.Signed)
    other = desk.intent()
    sealed = desk.seal("strategy-alpha", INTENT, other)
    desk.advance(3.001)
    desk.list_sessions()
    desk.heartbeat()
    assert code(desk.ask(desk.request(desk.decision(other, sealed)))) == "STALE"


def test_an_intent_is_signed_once_also_across_a_restart_of_custody(desk: Desk, tmp_path: Path) -> None:
    intent = desk.intent()
    sealed = desk.seal("strategy-alpha", INTENT, intent)
    assert isinstance(desk.ask(desk.request(desk.decision(intent, sealed))), signing.Signed)
    again = Desk(tmp_path)
    assert code(again.ask(again.request(again.decision(intent, sealed)))) == "PERMIT_USED"


def test_an_intent_handed_in_for_another_decision_is_refused(desk: Desk) -> None:
    mine, theirs = desk.decision(), desk.decision()
    assert code(desk.ask(desk.request(mine, intent=desk.intents[theirs.id]))) == "INTENT_HASH"
    cancel = desk.event(CancelIntent, intent_id=mine.intent_id)
    sealed = desk.seal("strategy-alpha", INTENT, cancel)
    decision = desk.decision(intent_hash=desk.verifier.open(INTENT, "ORDERS", sealed).leaf)
    assert code(desk.ask(desk.request(decision, intent=sealed))) == "INTENT_MISSING"


def test_a_strategy_whose_session_is_on_no_list_has_no_second_key(desk: Desk) -> None:
    desk.now += 1
    desk.list_sessions("gateway", "execution", "breaker")
    assert code(desk.ask(desk.request())) == "SESSION_UNLISTED"


@pytest.mark.parametrize("thief", ["gateway", "strategy-alpha", "custody", "breaker"])
def test_nobody_but_execution_asks_for_orders(desk: Desk, thief: str) -> None:
    assert code(desk.ask(desk.request(asker=thief))) == "FRAME_SIGNER"


def test_a_permit_read_off_the_bus_cannot_be_used_up_by_another_process(desk: Desk) -> None:
    request = desk.request()
    forger = world.key("thief")
    for forged in (
        msgspec.structs.replace(request, signature=forger.sign(request.spoken())),
        msgspec.structs.replace(request, signature=b""),
        msgspec.structs.replace(desk.request(), signature=request.signature),
    ):
        assert code(desk.ask(forged)) == "FRAME_SIGNATURE"
    assert isinstance(desk.ask(request), signing.Signed)


def test_an_execution_that_was_revoked_or_is_over_asks_in_vain(desk: Desk) -> None:
    desk.now += 1
    desk.list_sessions("gateway", "breaker", "strategy-alpha")
    assert code(desk.ask(desk.request())) == "SESSION_UNLISTED"
    desk.now += 1
    desk.list_sessions()
    assert isinstance(desk.ask(desk.request()), signing.Signed)


def test_what_execution_signs_for_custody_is_neither_a_statement_nor_a_login(desk: Desk) -> None:
    spoken = desk.request().spoken()
    assert not spoken.startswith(b"tallystick seal v1\0")
    assert b"\0" in spoken  # a login nonce is letters, digits, '_' and '-'
