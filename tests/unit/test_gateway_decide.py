"""The gateway's core: each control allows at its limit and denies one step beyond it."""

from __future__ import annotations

import re
import statistics
import time
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from tallystick.schemas.bounds import PERMIT_NS
from tallystick.schemas.errors import Unverified
from tallystick.schemas.market import Trade
from tallystick.schemas.orders import CancelIntent, Decision, Fill, OrderEvent
from tallystick.schemas.registry import decode_events, encode_events
from tallystick.schemas.security import Arm, BootEnded, BreakerTripped
from tallystick.schemas.trust import sign_document
from tests.support import world
from tests.support.gateway import (
    CUSTODY_BOOT,
    LAST,
    LIMITS,
    MS,
    NOW,
    SECOND,
    XRP,
    World,
    order_event,
    trust_root,
    wide,
)

# --- permits ------------------------------------------------------------------------------------------


def test_permit_holds_the_exact_order_in_the_venues_strings() -> None:
    w = World()
    intent = w.intent(qty="120.00", price="0.00100000", side="sell", tif="IOC")
    decision = w.ask(intent)
    assert decision.verdict == "permit"
    assert decision.permit is not None
    order = decision.permit.order
    assert (order.symbol, order.side, order.type, order.time_in_force) == ("XRPETH", "SELL", "LIMIT", "IOC")
    assert (order.quantity, order.price) == ("120", "0.001")
    assert order.client_order_id == "ts" + intent.id.hex()
    assert re.fullmatch(r"[a-zA-Z0-9-_]{1,36}", order.client_order_id)
    assert decision.permit.account == "main"
    assert decision.permit.audience == CUSTODY_BOOT
    assert decision.permit.instrument_hash == w.trust.instruments[0].digest
    assert decision.permit.expires_at == w.now + PERMIT_NS
    assert decision.causes == (intent.id,)
    assert decision.intent_id == intent.id
    assert decision.policies == ("listed-strategy-places",)
    assert decision.policy_hash == w.policy.digest


def test_decision_is_accepted_by_the_wire_codec() -> None:
    w = World()
    for decision in (w.ask(w.intent()), w.ask(w.intent(qty="100000"))):
        assert decode_events("order.decision", encode_events("order.decision", [decision])) == [decision]


def test_market_order_has_neither_price_nor_time_in_force_and_is_valued_at_the_collar() -> None:
    w = World(wide(max_notional=Decimal("0.101")))  # 100 XRP at 0.001 plus 100 bps
    decision = w.ask(w.intent(price=None))
    assert decision.permit is not None
    order = decision.permit.order
    assert (order.type, order.time_in_force, order.price, order.quantity) == ("MARKET", "", "", "100")
    assert w.codes(w.intent(qty="101", price=None)) == ["NOTIONAL_EXCEEDS_LIMIT"]


def test_same_inputs_give_the_same_decision_bytes() -> None:
    first, second = World(), World()
    for w in (first, second):
        w.decisions = [(None, w.ask(w.intent(qty=q))) for q in ("100", "700", "5", "101.5")]  # type: ignore[misc]
    a, b = ([encode_events("order.decision", [d]) for _, d in w.decisions] for w in (first, second))
    assert a == b


# --- each control, at its limit and one step beyond ------------------------------------------------------


def test_quantity_limit() -> None:
    w = World(wide(max_qty=Decimal(600)))
    assert w.codes(w.intent(qty="600")) == []
    assert w.codes(w.intent(qty="601")) == ["QUANTITY_EXCEEDS_LIMIT"]


def test_notional_limit() -> None:
    w = World(wide(max_notional=Decimal("0.5")))
    assert w.codes(w.intent(qty="500")) == []
    assert w.codes(w.intent(qty="501")) == ["NOTIONAL_EXCEEDS_LIMIT"]
    denial = w.ask(w.intent(qty="501")).denials[0]
    assert denial.text == "notional=0.501 ETH, limit=0.5 ETH"


def test_operators_cap_holds_whatever_the_limits_say() -> None:
    w = World(wide())
    assert w.codes(w.intent(qty="5000")) == []
    assert w.codes(w.intent(qty="5001")) == ["ORDER_EXCEEDS_CAP"]


def test_an_order_below_the_market_counts_in_the_operators_cap_as_custody_counts_it() -> None:
    w = World(wide(collar_bps=10_000))
    assert w.codes(w.intent(qty="5000", price="0.0000001", side="sell")) != ["ORDER_EXCEEDS_CAP"]
    assert w.codes(w.intent(qty="5001", price="0.0005", side="sell")) == ["ORDER_EXCEEDS_CAP"]


def test_no_cap_no_order() -> None:
    root = trust_root()
    for asset in ("ETH", "XRP"):
        w = World(trust=msgspec.structs.replace(root, caps=tuple(c for c in root.caps if c.asset != asset)))
        assert w.codes(w.intent()) == ["ORDER_EXCEEDS_CAP"]


def test_minimum_notional() -> None:
    w = World()
    assert w.codes(w.intent(qty="10")) == []
    assert w.codes(w.intent(qty="9")) == ["NOTIONAL_BELOW_MINIMUM"]


@pytest.mark.parametrize("side", ["buy", "sell"])
def test_collar_holds_in_both_directions(side: str) -> None:
    w = World(wide())
    assert w.codes(w.intent(price="0.00101", side=side)) == []
    assert w.codes(w.intent(price="0.00099", side=side)) == []
    assert w.codes(w.intent(price="0.0010101", side=side)) == ["PRICE_OUTSIDE_COLLAR"]
    assert w.codes(w.intent(price="0.0009899", side=side)) == ["PRICE_OUTSIDE_COLLAR"]


def test_price_must_be_a_multiple_of_the_tick() -> None:
    w = World()
    assert w.codes(w.intent(price="0.0010001")) == []
    assert w.codes(w.intent(price="0.00100015")) == ["TICK_SIZE"]


def test_quantity_must_be_a_multiple_of_the_step() -> None:
    assert World().codes(World().intent(qty="100.5")) == ["LOT_SIZE"]


def test_throttle_allows_the_burst_and_then_the_rate() -> None:
    w = World(wide())
    assert [w.codes(w.intent(qty="10")) for _ in range(LIMITS.burst)] == [[]] * LIMITS.burst
    assert w.codes(w.intent(qty="10")) == ["MESSAGE_RATE_EXCEEDED"]
    w.now += SECOND // LIMITS.messages_per_second - 1
    assert w.codes(w.intent(qty="10")) == ["MESSAGE_RATE_EXCEEDED"]
    w.now += 1
    assert w.codes(w.intent(qty="10")) == []
    assert w.codes(w.intent(qty="10"), strategy="beta") == [], "one strategy's flood leaves the others alone"


def test_market_data_may_be_as_old_as_the_limit() -> None:
    w = World()
    w.now += LIMITS.stale_ms * MS
    w.beat()
    w.list_sessions()
    assert w.codes(w.intent()) == []
    w.now += 1
    assert w.codes(w.intent()) == ["MARKET_DATA_STALE"]


def test_heartbeat_may_be_one_second_old() -> None:
    w = World()
    w.now += SECOND
    assert w.codes(w.intent()) == []
    w.now += 1
    assert w.codes(w.intent()) == ["BREAKER_HEARTBEAT_MISSING"]


def test_session_list_may_be_three_seconds_old() -> None:
    w = World()
    w.now += 3 * SECOND
    w.beat()
    w.trade()
    assert w.codes(w.intent()) == []
    w.now += 1
    assert w.codes(w.intent()) == ["SESSIONS_STALE"]


def test_intent_may_be_three_seconds_old() -> None:
    w = World()
    intents = [w.intent() for _ in range(3)]
    sealed = w.now
    w.now += 3 * SECOND
    w.refresh()
    assert w.codes(intents[0], time=sealed) == []
    w.now += 1
    assert w.codes(intents[1], time=sealed) == ["STALE_INTENT"]
    assert w.codes(intents[2]) == ["STALE_INTENT"], "sealing an old intent anew does not make it young"


def test_intent_may_be_one_second_ahead_of_the_clock() -> None:
    w = World()
    assert w.codes(w.intent(), time=w.now + SECOND + 1) == ["STALE_INTENT"], "the statement counts too"
    assert w.codes(w.intent(), time=w.now + SECOND) == []
    # Last: the generator of ids never steps back.
    ahead = [w.intent(**w.base(w.now + SECOND + more)) for more in (0, MS)]
    assert w.codes(ahead[0]) == []
    assert w.codes(ahead[1]) == ["STALE_INTENT"]


def test_trade_cannot_be_younger_than_the_message_that_holds_it() -> None:
    w = World()
    w.now += 1
    later = w.now + 3600 * SECOND
    event = Trade(id=bytes(16), ts=later, trade_id=2, price=LAST, qty=Decimal(1), time=later, buyer_is_maker=False)
    w.apply("market-data", f"md.trade.{XRP}", event)
    w.now += LIMITS.stale_ms * MS + 1
    w.beat()
    w.list_sessions()
    assert w.codes(w.intent()) == ["MARKET_DATA_STALE"]


@pytest.mark.parametrize("state", ["stale", "reconnecting", "ended"])
def test_feed_that_is_not_live_denies_until_the_next_trade(state: str) -> None:
    w = World()
    w.feed(state)
    assert w.codes(w.intent()) == ["FEED_NOT_LIVE"]
    w.trade()
    assert w.codes(w.intent()) == []


def test_gap_forgets_the_last_price() -> None:
    w = World()
    w.feed("gap")
    assert w.codes(w.intent()) == ["MARKET_DATA_STALE", "PRICE_OUTSIDE_COLLAR"]
    w.trade()
    assert w.codes(w.intent()) == []


@pytest.mark.parametrize("scope", ["all", "strategy-alpha", "venue-paper"])
def test_tripped_scope_denies_whom_it_covers(scope: str) -> None:
    w = World()
    w.beat(scope)
    assert w.codes(w.intent()) == ["BREAKER_TRIPPED"]
    assert w.codes(w.intent(), strategy="beta") == ([] if scope == "strategy-alpha" else ["BREAKER_TRIPPED"])
    w.now += 1
    w.beat()
    assert w.codes(w.intent()) == []


def test_trip_counts_before_the_next_heartbeat_and_until_one_that_is_later() -> None:
    w = World()
    w.now += 1
    w.apply("breaker", "control.breaker.strategy-alpha", BreakerTripped(**w.base(), reason="r", by="b"))
    assert w.codes(w.intent()) == ["BREAKER_TRIPPED"]
    w.beat()
    assert w.codes(w.intent()) == ["BREAKER_TRIPPED"], "stated at the same time: not later"
    w.now += 1
    w.beat()
    assert w.codes(w.intent()) == []


def test_lease_holds_from_its_start_until_its_end() -> None:
    w = World(ready=False)
    w.gateway.caught_up(w.now)
    w.refresh()
    assert w.codes(w.intent()) == ["NOT_ARMED"]
    w.arm(until=w.now + 500 * MS)
    assert w.codes(w.intent()) == []
    w.now += 500 * MS - 1
    assert w.codes(w.intent()) == []
    w.now += 1
    assert w.codes(w.intent()) == ["LEASE_EXPIRED"]


def test_lease_for_another_venue_arms_nothing_here() -> None:
    w = World(ready=False)
    w.gateway.caught_up(w.now)
    w.refresh()
    w.arm(venues=("elsewhere",))
    assert w.codes(w.intent()) == ["NOT_ARMED"]


def test_lease_that_no_operator_signed_is_refused() -> None:
    w = World(ready=False)
    lease = world.lease(w.trust, NOW - 1, NOW + SECOND)
    note = sign_document(lease, ("operator", world.key("breaker")))
    with pytest.raises(Unverified):
        w.apply("breaker", "control.arm.execution", Arm(**w.base(), note=note))
    w.gateway.caught_up(w.now)
    w.refresh()
    assert w.codes(w.intent()) == ["NOT_ARMED"]


def test_without_custody_on_the_list_nothing_is_permitted() -> None:
    w = World()
    w.now += 1
    w.list_sessions(without="custody")
    assert w.codes(w.intent()) == ["CUSTODY_UNKNOWN"]


def test_custody_that_ended_is_no_audience() -> None:
    w = World()
    w.sessions.apply(w.verified("authority", "cred.custody", BootEnded(**w.base(), boot=CUSTODY_BOOT, reason="gone")))
    assert w.codes(w.intent()) == ["CUSTODY_UNKNOWN"]


def test_unlisted_and_revoked_sessions_are_denied() -> None:
    w = World()
    w.now += 1
    w.list_sessions(without="strategy-alpha")
    assert w.codes(w.intent()) == ["SESSION_UNLISTED"]
    w.now += 1
    w.list_sessions(revoked=(w.credentials["strategy-alpha"].digest,))
    assert w.codes(w.intent()) == ["SESSION_REVOKED"]
    assert w.codes(w.intent(), strategy="beta") == []


def test_expired_trust_root_permits_nothing() -> None:
    root = msgspec.structs.replace(trust_root(), expires=NOW + 1)
    w = World(trust=root)
    assert w.codes(w.intent()) == []
    w.now += 1
    assert w.codes(w.intent()) == ["TRUST_ROOT_EXPIRED"]


def test_instrument_outside_the_trust_root() -> None:
    assert World().codes(World().intent(), subject="paper.DOGE-ETH") == ["UNKNOWN_INSTRUMENT"]


def test_strategy_that_is_not_listed_for_the_instrument_is_denied_by_default() -> None:
    w = World(wide())
    w.trade(Decimal(50000), "paper.BTC-USDT")
    intent = {"qty": "0.01", "price": "50000"}
    root = msgspec.structs.replace(w.trust.instruments[1], step=Decimal("0.01"))
    w = World(wide(), trust=msgspec.structs.replace(trust_root(), instruments=(w.trust.instruments[0], root)))
    w.trade(Decimal(50000), "paper.BTC-USDT")
    assert w.ask(w.intent(**intent), strategy="alpha", subject="paper.BTC-USDT").verdict == "permit"
    denied = w.ask(w.intent(**intent), strategy="beta", subject="paper.BTC-USDT")
    assert [d.code for d in denied.denials] == ["POLICY_DENIED"]
    assert "no policy permits it" in denied.denials[0].text
    assert denied.policies == ()


# --- duplicates, cancellations, restarts ------------------------------------------------------------------


def test_intent_id_is_decided_once() -> None:
    w = World()
    intent = w.intent()
    assert w.codes(intent) == []
    assert w.codes(intent) == ["DUPLICATE_INTENT"]
    w.now += 2 * SECOND
    w.refresh()
    assert w.codes(intent) == ["DUPLICATE_INTENT"]
    w.now += 600 * SECOND
    w.credentials = {n: world.credential(n, w.trust, boot=c.boot, issued_at=w.now)[0] for n, c in w.credentials.items()}
    w.refresh()
    assert w.codes(intent) == ["STALE_INTENT"], "forgotten, but its own time is too old"
    assert len(w.gateway._deciding) == 1


def test_cancel_passes_for_an_open_order_of_ones_own() -> None:
    w = World()
    intent = w.intent()
    w.ask(intent)
    cancel = CancelIntent(**w.base(), intent_id=intent.id)
    decision = w.ask(cancel)
    assert (decision.verdict, decision.intent_id, decision.causes) == ("cancel", intent.id, (cancel.id,))
    assert decision.policies == ("listed-strategy-cancels-own",)


def test_cancel_of_a_filled_order_passes_until_execution_says_that_it_has_ended() -> None:
    w = World()
    intent = w.intent()
    w.ask(intent)
    fields: dict[str, Any] = {"client_order_id": "c", "venue_order_id": "v"}
    fill = Fill(
        **w.base(),
        **fields,
        intent_id=intent.id,
        trade_id=1,
        side=intent.side,
        price=LAST,
        qty=intent.qty,
        commission=Decimal(0),
        commission_asset="ETH",
        maker=False,
        time=NOW,
    )
    w.apply("portfolio", f"fill.alpha.{XRP}", fill)
    assert w.ask(CancelIntent(**w.base(), intent_id=intent.id)).verdict == "cancel"
    closed = OrderEvent(**w.base(), **fields, intent_id=intent.id, decision_id=b"", state="closed", executed=intent.qty)
    w.apply("execution", f"order.event.alpha.{XRP}", closed)
    denied = w.ask(CancelIntent(**w.base(), intent_id=intent.id))
    assert [d.code for d in denied.denials][:1] == ["UNKNOWN_ORDER"]


def test_cancel_of_anothers_or_of_no_order_is_denied() -> None:
    w = World()
    intent = w.intent()
    w.ask(intent)
    for strategy, subject, target in (
        ("beta", XRP, intent.id),
        ("alpha", "paper.BTC-USDT", intent.id),
        ("alpha", XRP, bytes(16)),
    ):
        cancel = CancelIntent(**w.base(), intent_id=target)
        decision = w.ask(cancel, strategy=strategy, subject=subject)
        assert decision.verdict == "deny"
        assert decision.denials[0].code == "UNKNOWN_ORDER"
        assert decision.intent_id == cancel.id
    order_event(w, intent.id, "void")
    assert w.codes(CancelIntent(**w.base(), intent_id=intent.id)) == ["UNKNOWN_ORDER", "POLICY_DENIED"]


def test_breaker_lease_stale_data_and_throttle_never_keep_an_order_alive() -> None:
    w = World()
    intents = [w.intent(qty="10") for _ in range(LIMITS.burst)]
    for intent in intents:
        assert w.codes(intent) == []
    w.now += 3 * SECOND  # no heartbeat, no trade since
    w.feed("ended")
    assert w.codes(CancelIntent(**w.base(), intent_id=intents[0].id)) == []


def test_history_is_applied_and_not_decided_again() -> None:
    before = World(wide(max_open_notional=Decimal(1)))
    done, left = before.intent(qty="800"), before.intent(qty="100")
    decision = before.ask(done)
    after = World(wide(max_open_notional=Decimal(1)), ready=False)
    for intent in (done, left):
        message = after.verified("strategy-alpha", f"order.intent.alpha.{XRP}", intent)
        assert after.gateway.on_intent(message, intent, after.now) is None
    after.apply("gateway", f"order.decision.alpha.{XRP}", decision)
    after.refresh()
    after.arm()
    ((where, denied),) = after.gateway.caught_up(after.now)
    assert where.text == f"order.intent.alpha.{XRP}"
    assert (denied.verdict, denied.intent_id, denied.denials[0].code) == ("deny", left.id, "STALE_INTENT")
    assert after.codes(done)[0] == "DUPLICATE_INTENT"
    assert after.codes(left)[0] == "DUPLICATE_INTENT"
    assert after.codes(after.intent(qty="201")) == ["OPEN_NOTIONAL_EXCEEDS_LIMIT"], "the recorded permit is reserved"
    assert after.codes(after.intent(qty="200")) == []


def test_open_market_order_of_history_reserves_the_whole_limit() -> None:
    limits = wide(max_notional=Decimal("0.5"), max_open_notional=Decimal(1))
    before = World(limits)
    intent = before.intent(price=None)
    decision = before.ask(intent)
    after = World(limits, ready=False)
    after.apply("gateway", f"order.decision.alpha.{XRP}", decision)
    assert after.gateway.exposure.open_notional("alpha", "ETH") == Decimal("0.5")


def test_own_decision_read_back_changes_nothing() -> None:
    w = World(wide())
    intent = w.intent(qty="100")
    decision = w.ask(intent)
    order_event(w, intent.id, "void")
    w.apply("gateway", f"order.decision.alpha.{XRP}", decision)
    assert w.gateway.exposure.open_notional("alpha", "ETH") == 0


def test_every_answer_carries_the_hash_of_the_message_that_it_answers() -> None:
    w = World()
    intent = w.intent()
    message = w.verified("strategy-alpha", f"order.intent.alpha.{XRP}", intent)
    decision = w.gateway.on_intent(message, intent, w.now)
    assert isinstance(decision, Decision)
    assert decision.intent_hash == message.leaf


@pytest.mark.slow
def test_decision_takes_well_under_a_millisecond() -> None:
    w = World(wide(burst=10_000))
    taken = []
    for _ in range(200):
        intent = w.intent(qty="10")
        started = time.perf_counter_ns()
        w.ask(intent)
        taken.append(time.perf_counter_ns() - started)
        w.gateway.exposure = type(w.gateway.exposure)()
    # The budget is 300 µs at the median on an idle core; the bound leaves room for a shared one.
    assert statistics.median(taken) < 1_000_000
