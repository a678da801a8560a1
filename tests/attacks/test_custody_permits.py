"""What a stolen execution, gateway or strategy can get signed: the reply says what was refused, and why."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tallystick.components.custody.files import DayFiles
from tallystick.schemas import signing
from tallystick.schemas.bounds import MAX_PERMIT_NS
from tallystick.schemas.breakers import BreakerView
from tallystick.schemas.errors import Malformed, Unverified
from tallystick.schemas.leases import LeaseBook
from tallystick.schemas.orders import Denial, Intent
from tallystick.schemas.security import BootEnded, BreakerHeartbeat, BreakerTripped, SessionRevoked
from tallystick.venues.order import client_order_id
from tests.support import world
from tests.support.custody import BOOT, INTENT, SECOND, SUBJECT, Desk, order, trust_root


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def code(reply: signing.Reply) -> str:
    assert isinstance(reply, signing.Refused), reply
    return reply.code


def signed(reply: signing.Reply) -> signing.Signed:
    assert isinstance(reply, signing.Signed), reply
    return reply


def fields(reply: signing.Reply) -> dict[str, str]:
    return dict(part.split("=", 1) for part in signed(reply).body.split("&"))


def test_a_permit_is_signed_exactly_as_it_says(desk: Desk) -> None:
    decision = desk.decision()
    reply = signed(desk.ask(desk.request(decision)))
    assert (reply.method, reply.url) == ("POST", "https://localhost/api/v3/order")
    got = fields(reply)
    got.pop("signature")
    assert got == {
        "symbol": "XRPETH",
        "side": "BUY",
        "type": "LIMIT",
        "timeInForce": "GTC",
        "quantity": "100",
        "price": "0.0012345",
        "newClientOrderId": client_order_id(decision.intent_id),
        "newOrderRespType": "RESULT",
        "recvWindow": "1000",
        "timestamp": str(desk.now // 1_000_000),
    }
    assert reply.signed_at == desk.now // 1_000_000 * 1_000_000


def test_a_permit_used_twice_is_signed_once(desk: Desk) -> None:
    request = desk.request()
    signed(desk.ask(request))
    assert code(desk.ask(request)) == "PERMIT_USED"


def test_the_same_order_under_a_second_decision_is_refused(desk: Desk) -> None:
    intent = desk.intent()
    sealed = desk.seal("strategy-alpha", INTENT, intent)
    signed(desk.ask(desk.request(desk.decision(intent, sealed))))
    assert code(desk.ask(desk.request(desk.decision(intent, sealed)))) == "PERMIT_USED"


def test_a_permit_resealed_by_the_gateway_stays_used(desk: Desk) -> None:
    decision = desk.decision()
    signed(desk.ask(desk.request(decision)))
    assert code(desk.ask(desk.request(decision))) == "PERMIT_USED"


def test_a_restart_voids_outstanding_permits(desk: Desk, tmp_path: Path) -> None:
    reply = desk.sign(audience=world.seed("the boot before")[:16])
    assert code(reply) == "PERMIT_AUDIENCE"


def test_a_permit_that_was_decided_by_another_document_is_refused(desk: Desk) -> None:
    """A gateway whose limits were raised decides by limits that custody does not have."""
    limits = msgspec.structs.replace(world.LIMITS, collar_bps=9_000)
    raised = msgspec.structs.replace(desk.trust, limits=world.limit_rows(limits))
    assert code(desk.ask(desk.request(desk.decision(trust_root=raised.digest)))) == "TRUST_ROOT_DIFFERS"


def test_once_a_newer_trust_root_was_heard_of_only_cancels_are_signed(desk: Desk) -> None:
    desk.permits.superseded_by(msgspec.structs.replace(desk.trust, number=2))
    assert code(desk.ask(desk.request())) == "TRUST_ROOT_NEWER"
    signed(desk.ask(signing.SignCancelAll(id=1, venue="paper", symbol="XRP/ETH")))


def test_an_expired_permit_is_refused_at_the_nanosecond(desk: Desk) -> None:
    last = desk.request()
    desk.now += 3 * SECOND - 1
    desk.list_sessions()
    desk.heartbeat()
    signed(desk.ask(last))
    late = desk.request(desk.decision(permit=desk.permit(expires_at=desk.now, order=order())))
    assert code(desk.ask(late)) == "PERMIT_EXPIRED"


def test_a_permit_for_tomorrow_is_refused(desk: Desk) -> None:
    assert code(desk.sign(expires_at=desk.now + MAX_PERMIT_NS + 1)) == "PERMIT_LIFETIME"


def test_a_decision_kept_for_a_better_moment_is_stale(desk: Desk) -> None:
    request = desk.request(desk.decision(permit=desk.permit(expires_at=desk.now + MAX_PERMIT_NS)))
    desk.advance(6)
    desk.list_sessions()
    desk.heartbeat()
    assert code(desk.ask(request)) == "STALE"


def test_a_denial_is_no_permit(desk: Desk) -> None:
    decision = desk.decision(verdict="deny", permit=None, denials=(Denial("NOTIONAL", "too much"),))
    assert code(desk.ask(desk.request(decision))) == "NOT_A_PERMIT"


def test_a_cancel_decision_is_no_permit(desk: Desk) -> None:
    assert code(desk.ask(desk.request(desk.decision(verdict="cancel", permit=None)))) == "NOT_A_PERMIT"


def test_a_decision_that_is_not_in_the_message_is_no_permit(desk: Desk) -> None:
    sealed, other = desk.request(), desk.decision()
    credential, session = desk.credential("execution")
    request = signing.ask_for(1, other.id, SUBJECT, sealed.payload, desk.intents[other.id], credential.text, session)
    assert code(desk.ask(request)) == "NOT_A_PERMIT"


def test_an_intent_handed_in_as_a_decision_is_refused(desk: Desk) -> None:
    subject = "order.intent.alpha.paper.XRP-ETH"
    intent = desk.event(Intent, side="buy", type="limit", qty=Decimal(1), price=Decimal("0.001"))
    payload = desk.seal("strategy-alpha", subject, intent)
    credential, session = desk.credential("execution")
    for where, refusal in ((subject, "PERMIT_ISSUER"), (SUBJECT, "MERKLE_ROOT")):
        request = signing.ask_for(1, intent.id, where, payload, payload, credential.text, session)
        assert code(desk.ask(request)) == refusal


@pytest.mark.parametrize("thief", ["strategy-alpha", "execution", "breaker"])
def test_a_decision_sealed_by_another_component_is_out_of_scope(desk: Desk, thief: str) -> None:
    assert code(desk.ask(desk.request(component=thief))) == "SCOPE"


def test_a_component_that_the_trust_root_lets_publish_decisions_is_still_not_the_gateway(tmp_path: Path) -> None:
    root = trust_root()
    alpha = msgspec.structs.replace(root.components["strategy-alpha"], publishes=("order.>",))
    root = msgspec.structs.replace(root, components={**root.components, "strategy-alpha": alpha})
    desk = Desk(tmp_path, root)
    desk.list_sessions("strategy-alpha", "gateway")
    assert code(desk.ask(desk.request(component="strategy-alpha"))) == "PERMIT_ISSUER"


def test_a_permit_redirected_to_another_strategy_or_instrument_is_refused(desk: Desk) -> None:
    for other in ("order.decision.beta.paper.XRP-ETH", "order.decision.alpha.paper.BTC-USDT"):
        decision = desk.decision()
        assert code(desk.ask(desk.request(decision, subject=other, sealed_for=SUBJECT))) == "MERKLE_ROOT"
    intent = desk.seal("strategy-alpha", "order.intent.alpha.paper.BTC-USDT", desk.intent())
    honest = desk.request(desk.decision(), subject="order.decision.alpha.paper.BTC-USDT", intent=intent)
    assert code(desk.ask(honest)) == "INSTRUMENT_HASH"


def test_every_flipped_bit_of_a_sealed_permit_is_refused(desk: Desk) -> None:
    request = desk.request()
    for at in range(0, len(request.payload), 7):
        payload = bytearray(request.payload)
        payload[at] ^= 1
        changed = msgspec.structs.replace(request, payload=bytes(payload))
        assert code(desk.ask(changed)) == "FRAME_SIGNATURE", at
        credential, session = desk.credential("execution")
        again = signing.ask_for(
            1, request.decision_id, request.subject, bytes(payload), request.intent, credential.text, session
        )
        assert isinstance(desk.ask(again), signing.Refused), at
    signed(desk.ask(request))


def test_a_gateway_session_minted_with_a_stolen_role_key_is_not_listed(desk: Desk) -> None:
    assert code(desk.ask(desk.request(session=world.key("thief"), jti="9"))) == "SESSION_UNLISTED"


def test_a_revoked_gateway_has_no_permits(desk: Desk) -> None:
    boot = desk.credential("gateway")[0].boot
    desk.tell("authority", "cred.gateway", desk.event(SessionRevoked, boot=boot, reason="stolen"))
    assert code(desk.ask(desk.request())) == "SESSION_REVOKED"
    desk.list_sessions()  # a list that still names it does not revive it
    assert code(desk.ask(desk.request())) == "SESSION_REVOKED"


def test_an_ended_gateway_has_no_permits(desk: Desk) -> None:
    boot = desk.credential("gateway")[0].boot
    desk.tell("authority", "cred.gateway", desk.event(BootEnded, boot=boot, reason="stopped"))
    assert code(desk.ask(desk.request())) == "SESSION_REVOKED"


def test_without_a_session_list_nothing_is_signed(desk: Desk) -> None:
    desk.advance(3)
    desk.heartbeat()
    signed(desk.ask(desk.request()))
    desk.now += 1
    assert code(desk.sign(order=order())) == "SESSIONS_STALE"


def test_without_a_heartbeat_nothing_is_signed(desk: Desk) -> None:
    desk.advance(1)
    signed(desk.ask(desk.request()))
    desk.now += 1
    assert code(desk.sign(order=order())) == "BREAKER_HEARTBEAT_MISSING"


def test_a_heartbeat_of_history_counts_for_nothing(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.permits._breakers = BreakerView()
    desk.tell("breaker", "control.breaker.all", desk.event(BreakerHeartbeat, number=1, tripped=()), live=False)
    assert code(desk.ask(desk.request())) == "BREAKER_HEARTBEAT_MISSING"


@pytest.mark.parametrize("scope", ["all", "strategy-alpha", "venue-paper"])
def test_a_tripped_breaker_stops_signing_by_heartbeat_and_by_event(desk: Desk, scope: str) -> None:
    desk.now += 1
    desk.heartbeat(scope)
    assert code(desk.ask(desk.request())) == "BREAKER_TRIPPED"
    desk.now += 1
    desk.heartbeat()
    signed(desk.ask(desk.request()))
    desk.now += 1
    desk.tell("breaker", f"control.breaker.{scope}", desk.event(BreakerTripped, reason="test", by="test"))
    assert code(desk.sign(order=order())) == "BREAKER_TRIPPED"


def test_a_breaker_of_another_strategy_or_venue_does_not_stop_this_one(desk: Desk) -> None:
    desk.now += 1
    desk.heartbeat("strategy-beta", "venue-other")
    signed(desk.ask(desk.request()))


def test_a_heartbeat_from_before_the_trip_does_not_close_it(desk: Desk) -> None:
    desk.now += 10
    desk.tell("breaker", "control.breaker.all", desk.event(BreakerTripped, reason="test", by="test"))
    desk.now -= 5
    desk.heartbeat()
    desk.now += 5
    assert code(desk.ask(desk.request())) == "BREAKER_TRIPPED"


class TestArming:
    def unarmed(self, tmp_path: Path) -> Desk:
        desk = Desk(tmp_path)
        desk.permits._leases = LeaseBook(desk.trust)
        return desk

    def test_without_a_lease_nothing_is_signed(self, tmp_path: Path) -> None:
        desk = self.unarmed(tmp_path)
        assert code(desk.ask(desk.request())) == "NOT_ARMED"

    @pytest.mark.parametrize(
        "changes",
        [{"venues": ("other",)}, {"start": world.NOW + 1}, {"start": world.NOW - 2, "until": world.NOW}],
        ids=["another venue", "not yet", "over"],
    )
    def test_a_lease_for_another_venue_or_time_arms_nothing(self, tmp_path: Path, changes: dict[str, Any]) -> None:
        desk = self.unarmed(tmp_path)
        desk.arm(**changes)
        assert code(desk.ask(desk.request())) == "NOT_ARMED"

    @pytest.mark.parametrize("changes", [{"component": "strategy-alpha"}, {"deployment": "another"}])
    def test_a_lease_for_somebody_else_is_refused(self, tmp_path: Path, changes: dict[str, Any]) -> None:
        desk = self.unarmed(tmp_path)
        with pytest.raises(Unverified, match="ARM_LEASE_SCOPE"):
            desk.arm(**changes)

    def test_a_lease_for_another_hardware_token_than_the_operator_signed_arms_nothing(self, tmp_path: Path) -> None:
        """Execution's host was replaced, or somebody else's token would do."""
        desk = self.unarmed(tmp_path)
        for key in (world.key("another token").public.hex(), ""):
            with pytest.raises(Unverified, match="LEASE_HARDWARE_KEY"):
                desk.arm(hardware_key=key)
        assert code(desk.ask(desk.request())) == "NOT_ARMED"

    def test_a_lease_that_the_breaker_signed_itself_is_refused(self, tmp_path: Path) -> None:
        desk = self.unarmed(tmp_path)
        with pytest.raises(Unverified, match="NOTE"):
            desk.arm(signer=world.key("role breaker"))
        assert code(desk.ask(desk.request())) == "NOT_ARMED"

    def test_a_lease_ends_while_custody_runs(self, tmp_path: Path) -> None:
        desk = self.unarmed(tmp_path)
        desk.arm(until=desk.now + SECOND // 2)
        signed(desk.ask(desk.request()))
        desk.advance(0.5)
        assert code(desk.sign(order=order())) == "NOT_ARMED"

    def test_a_lease_read_from_history_arms(self, tmp_path: Path) -> None:
        desk = self.unarmed(tmp_path)
        desk.arm(live=False)
        signed(desk.ask(desk.request()))


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        ({"symbol": "BTCUSDT"}, "FIELD_MISMATCH"),
        ({"symbol": "XRPETH&side=SELL"}, "FIELD_MISMATCH"),
        ({"side": "buy"}, "FIELD_MISMATCH"),
        ({"side": "BUY&quantity=1"}, "FIELD_MISMATCH"),
        ({"type": "STOP_LOSS_LIMIT"}, "ORDER_TYPE"),
        ({"type": "LIMIT_MAKER"}, "ORDER_TYPE"),
        ({"type": "MARKET"}, "ORDER_TYPE"),  # with a price
        ({"time_in_force": "GTX"}, "FIELD_MISMATCH"),
        ({"time_in_force": ""}, "FIELD_MISMATCH"),
        ({"quantity": "100.0"}, "FIELD_MISMATCH"),
        ({"quantity": "1e2"}, "FIELD_MISMATCH"),
        ({"quantity": "-100"}, "FIELD_MISMATCH"),
        ({"quantity": "+100"}, "FIELD_MISMATCH"),
        ({"quantity": "0"}, "DECIMAL_SIGN"),
        ({"quantity": "1.5"}, "FIELD_MISMATCH"),  # step 1
        ({"quantity": "NaN"}, "FIELD_MISMATCH"),
        ({"quantity": "\u0661\u0660\u0660"}, "FIELD_MISMATCH"),
        ({"quantity": "100\n"}, "FIELD_MISMATCH"),
        ({"price": "0.00123456"}, "FIELD_MISMATCH"),  # tick 1e-7
        ({"price": "0.00123450"}, "FIELD_MISMATCH"),
        ({"price": ""}, "FIELD_MISMATCH"),
        ({"client_order_id": "x-ABCDEFGH1234"}, "CLIENT_ORDER_ID"),
        ({"client_order_id": "short"}, "CLIENT_ORDER_ID"),
        ({"client_order_id": "id&recvWindow=60000"}, "CLIENT_ORDER_ID"),
        ({"client_order_id": "a" * 37}, "CLIENT_ORDER_ID"),
        ({"client_order_id": "%26price%3D1"}, "CLIENT_ORDER_ID"),
    ],
)
def test_an_order_that_is_not_plainly_the_instruments_is_refused(
    desk: Desk, change: dict[str, str], refusal: str
) -> None:
    assert code(desk.sign(order=order(**change))) == refusal


def test_a_permit_for_another_account_is_refused(desk: Desk) -> None:
    assert code(desk.sign(account="another")) == "VENUE_ACCOUNT"


def test_a_permit_under_an_instrument_record_that_the_operator_never_signed_is_refused(desk: Desk) -> None:
    forged = msgspec.structs.replace(desk.instrument(), tick=Decimal("0.00000001"))
    assert code(desk.sign(instrument_hash=forged.digest)) == "INSTRUMENT_HASH"


def test_an_order_that_cannot_be_journalled_is_not_signed_and_a_cancel_is(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DayFiles, "write", full)
    assert code(desk.ask(desk.request())) == "JOURNAL"
    signed(desk.ask(signing.SignCancelAll(id=1, venue="paper", symbol="XRP/ETH")))
    assert desk.refusals.counts["JOURNAL"] == 2


class TestKillSwitch:
    def test_cancels_and_queries_need_nobody(self, desk: Desk) -> None:
        # No list, no heartbeat, no lease, everything tripped.
        desk.heartbeat("all")
        desk.permits._leases = LeaseBook(desk.trust)
        desk.advance(1000)
        venue, symbol, name = "paper", "XRP/ETH", "ts" + "0" * 32
        wanted: dict[signing.Request, str] = {
            signing.SignCancel(id=1, venue=venue, symbol=symbol, client_order_id=name): "DELETE /api/v3/order",
            signing.SignCancelAll(id=1, venue=venue, symbol=symbol): "DELETE /api/v3/openOrders",
            signing.SignQuery(id=1, venue=venue, symbol=symbol, client_order_id=name): "GET /api/v3/order",
            signing.SignOpenOrders(id=1, venue=venue, symbol=symbol): "GET /api/v3/openOrders",
        }
        for request, endpoint in wanted.items():
            reply = signed(desk.ask(request))
            url, _, query = reply.url.partition("?")
            assert f"{reply.method} {url.removeprefix('https://localhost')}" == endpoint
            assert reply.body == ""
            assert "recvWindow=1000" in query.split("&")

    @pytest.mark.parametrize("name", ["x-broker-order", "id&symbol=BTCUSDT", "a", "", "id%26", "id\n12345"])
    def test_a_query_cannot_be_injected_through_an_order_id(self, desk: Desk, name: str) -> None:
        cancel = signing.SignCancel(id=1, venue="paper", symbol="XRP/ETH", client_order_id=name)
        assert code(desk.ask(cancel)) == "ORDER_ID_NOT_OURS"

    def test_unknown_instruments_and_venues_are_refused(self, desk: Desk) -> None:
        assert code(desk.ask(signing.SignCancelAll(id=1, venue="paper", symbol="DOGE/ETH"))) == "UNKNOWN_INSTRUMENT"
        assert code(desk.ask(signing.SignCancelAll(id=1, venue="other", symbol="XRP/ETH"))) == "UNKNOWN_INSTRUMENT"


def test_a_withdrawal_is_not_even_a_request() -> None:
    frame = msgspec.msgpack.encode(["withdraw", 1, "paper", "ETH", "100", "0xabc"])
    with pytest.raises(Malformed, match="FRAME"):
        signing.decode_request(frame)


def test_status_says_which_boot_permits_must_name(desk: Desk) -> None:
    reply = desk.ask(signing.StatusRequest(id=7))
    assert isinstance(reply, signing.Status)
    assert (reply.id, reply.boot, reply.trust_root) == (7, BOOT, 1)
