"""Nothing that is said later hides an order that was carried out: `orders` shows every decision, the effective one first."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest

from tallystick.record.opened import Opened
from tallystick.record.sandbox import connect
from tallystick.record.views import QUERIES
from tallystick.schemas.event import Event
from tallystick.schemas.ids import id_text
from tallystick.schemas.orders import CancelIntent, Decision, Denial, Fill, Intent, OrderEvent, Permit, VenueOrder
from tests.support.archive import Streams, Vault
from tests.support.world import seed

SUBJECT = "alpha.paper.XRP-ETH"


class Desk:
    """An order of strategy alpha that was permitted, carried out and filled; attacks add what they like."""

    def __init__(self) -> None:
        s = self.streams = Streams()
        names = ("strategy-alpha", "strategy-beta", "gateway", "execution", "portfolio")
        self.alpha, self.beta, self.gateway, self.execution, self.portfolio = (s.session(name) for name in names)
        self.intent = s.new(Intent, side="buy", type="limit", qty=Decimal(10), price=Decimal("0.00141"))
        self.alpha.say((f"order.intent.{SUBJECT}", [self.intent]))
        self.permit = self.decide("permit")
        self.happen("submitting", "accepted", "closed")
        self.fill()

    def decide(
        self, verdict: str, *codes: str, about: bytes = b"", answers: bytes = b"", where: str = SUBJECT
    ) -> Event:
        order = VenueOrder("XRPETH", "BUY", "LIMIT", "GTC", "10", "0.00141", "ts-1")
        about = about or self.intent.id
        permit = Permit("main", order, seed("instrument"), seed("boot")[:16], self.streams.now + 10**9)
        event = self.streams.new(
            Decision,
            causes=[answers or about],
            verdict=verdict,
            intent_id=about,
            intent_hash=seed("intent"),
            trust_root=seed("trust root"),
            denials=tuple(Denial(code=code, text="") for code in codes),
            permit=permit if verdict == "permit" else None,
        )
        self.gateway.say((f"order.decision.{where}", [event]))
        return event

    def happen(self, *states: str, order: bytes = b"") -> None:
        """All in one message."""
        events = [
            self.streams.new(
                OrderEvent,
                intent_id=order or self.intent.id,
                decision_id=self.permit.id,
                client_order_id="ts-1",
                state=state,
            )
            for state in states
        ]
        self.execution.say((f"order.event.{SUBJECT}", events))

    def fill(self, order: bytes | None = None, **changed: object) -> None:
        fields: dict[str, Any] = {
            "intent_id": self.intent.id if order is None else order,
            "client_order_id": "ts-1",
            "venue_order_id": "4711",
            "trade_id": 9,
            "side": "buy",
            "price": Decimal("0.00141"),
            "qty": Decimal(10),
            "commission": Decimal("0.01"),
            "commission_asset": "XRP",
            "maker": False,
            "time": self.streams.now,
        }
        self.portfolio.say((f"fill.{SUBJECT}", [self.streams.new(Fill, **{**fields, **changed})]))

    def cancel(self, order: bytes) -> bytes:
        event = self.streams.new(CancelIntent, intent_id=order)
        self.alpha.say((f"order.intent.{SUBJECT}", [event]))
        return event.id

    def ask(self, directory: Path, sql: str) -> list[dict[str, Any]]:
        vault = Vault(directory)
        vault.project(self.streams.stored)
        connection = connect(Opened(vault.path, vault.manifest.live.values()))
        rows = connection.execute(sql)
        names = [column[0] for column in rows.description]
        return [dict(zip(names, row, strict=True)) for row in rows.fetchall()]


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_a_later_denial_as_a_duplicate_does_not_hide_the_permit(desk: Desk, tmp_path: Path) -> None:
    desk.alpha.say((f"order.intent.{SUBJECT}", [desk.intent]))
    desk.decide("deny", "DUPLICATE_INTENT")
    [row] = desk.ask(tmp_path, QUERIES["orders"][1])
    assert (row["order_id"], row["permit"]) == (id_text(desk.intent.id), id_text(desk.permit.id))
    assert row["decisions"] == ["permit", "deny DUPLICATE_INTENT"]
    assert (row["state"], row["fills"]) == ("closed", ["10 @ 0.00141"])


def test_a_cancellation_that_passes_or_is_denied_does_not_hide_the_permit(desk: Desk, tmp_path: Path) -> None:
    desk.decide("cancel", answers=desk.cancel(desk.intent.id))
    refused = desk.cancel(desk.intent.id)
    desk.decide("deny", "UNKNOWN_ORDER", about=refused)
    [row] = desk.ask(tmp_path, "SELECT * FROM orders")
    assert (row["verdict"], row["decision_id"]) == ("permit", id_text(desk.permit.id))
    assert row["decisions"] == ["permit", "cancel", "deny UNKNOWN_ORDER"]


def test_cancellations_are_shown_with_what_was_answered(desk: Desk, tmp_path: Path) -> None:
    desk.decide("cancel", answers=desk.cancel(desk.intent.id))
    desk.decide("deny", "UNKNOWN_ORDER", about=desk.cancel(desk.intent.id))
    desk.cancel(desk.intent.id)
    rows = desk.ask(tmp_path, "SELECT * FROM cancels ORDER BY ts")
    assert [(r["verdict"], r["denial_codes"]) for r in rows] == [
        ("cancel", []),
        ("deny", ["UNKNOWN_ORDER"]),
        (None, None),
    ]
    assert {r["order_id"] for r in rows} == {id_text(desk.intent.id)}


def test_the_denied_cancellation_is_among_the_denials(desk: Desk, tmp_path: Path) -> None:
    desk.decide("deny", "UNKNOWN_ORDER", about=desk.cancel(desk.intent.id))
    [row] = desk.ask(tmp_path, QUERIES["denials"][1])
    assert (row["what"], row["code"], row["qty"]) == ("cancel denied", "UNKNOWN_ORDER", 10)


def test_a_second_permit_does_not_take_the_place_of_the_one_that_was_carried_out(desk: Desk, tmp_path: Path) -> None:
    desk.decide("deny", "NOT_ARMED")
    desk.decide("permit")
    [row] = desk.ask(tmp_path, "SELECT * FROM orders")
    assert row["decision_id"] == id_text(desk.permit.id)
    assert row["decisions"] == ["permit", "permit", "deny NOT_ARMED"]


def test_the_newest_state_of_one_message_counts(desk: Desk, tmp_path: Path) -> None:
    [row] = desk.ask(tmp_path, "SELECT * FROM orders")
    assert (row["state"], row["states"]) == ("closed", ["submitting", "accepted", "closed"])


def test_whoever_uses_anothers_id_makes_an_order_of_his_own(desk: Desk, tmp_path: Path) -> None:
    theirs = desk.streams.new(Intent, side="sell", type="market", qty=Decimal(1))
    desk.beta.say(("order.intent.beta.paper.XRP-ETH", [theirs.__class__(**{**_fields(theirs), "id": desk.intent.id})]))
    desk.decide("deny", "DUPLICATE_INTENT", where="beta.paper.XRP-ETH")
    mine, other = desk.ask(tmp_path, "SELECT * FROM orders ORDER BY strategy")
    assert (mine["strategy"], mine["side"], mine["decisions"], mine["filled"]) == ("alpha", "buy", ["permit"], 10)
    assert (other["strategy"], other["verdict"], other["filled"]) == ("beta", "deny", 0)


def test_of_two_intents_under_one_id_the_permitted_one_is_shown(tmp_path: Path) -> None:
    desk = Desk()
    vault = Vault(tmp_path)
    vault.project(desk.streams.stored)
    first = (
        connect(Opened(vault.path, vault.manifest.live.values())).execute("SELECT intent_hash FROM intents").fetchall()
    )
    other = desk.intent.__class__(**{**_fields(desk.intent), "qty": Decimal(999)})
    desk.alpha.say((f"order.intent.{SUBJECT}", [other]))
    rows = desk.ask(tmp_path / "later", "SELECT qty FROM orders")
    assert len(first) == 1
    assert [row["qty"] for row in rows] == [10]


def test_what_nobody_asked_for_or_permitted_is_shown_all_the_same(desk: Desk, tmp_path: Path) -> None:
    stray, wild = desk.streams.ids.next(desk.streams.tick()), desk.streams.ids.next(desk.streams.tick())
    desk.decide("permit", about=stray)
    desk.happen("submitting", "accepted", order=wild)
    desk.fill(b"", client_order_id="web_1", commission_asset="BNB")
    rows = {row["order_id"]: row for row in desk.ask(tmp_path, QUERIES["orders"][1])}
    assert rows.keys() == {id_text(desk.intent.id), id_text(stray), id_text(wild), None}
    assert (rows[id_text(stray)]["decisions"], rows[id_text(stray)]["qty"]) == (["permit"], None)
    assert (rows[id_text(wild)]["decisions"], rows[id_text(wild)]["state"]) == ([], "accepted")
    assert (rows[None]["client_order_id"], rows[None]["filled"]) == ("web_1", 10)


def test_values_and_fees_are_in_the_quote(desk: Desk, tmp_path: Path) -> None:
    desk.fill(side="sell", commission=Decimal("0.00001"), commission_asset="ETH")
    desk.fill(commission=Decimal("0.1"), commission_asset="BNB")
    rows = desk.ask(tmp_path, "SELECT * FROM fills ORDER BY log_index")
    assert [row["signed_value"] for row in rows] == [Decimal("-0.0141"), Decimal("0.0141"), Decimal("-0.0141")]
    assert [row["fee_quote"] for row in rows] == [Decimal("0.0000141"), Decimal("0.00001"), None]
    [order] = desk.ask(tmp_path / "again", "SELECT * FROM orders")
    assert (order["filled_value"], order["fee_quote"]) == (Decimal("0.0423"), None)
    assert order["commissions"] == ["0.01 XRP", "0.00001 ETH", "0.1 BNB"]


def test_an_absurd_fill_does_not_take_the_others_out_of_sight(desk: Desk, tmp_path: Path) -> None:
    huge = Decimal("99999999999999999999.999999999999999999")
    desk.fill(price=huge, qty=huge)
    desk.fill(price=huge, qty=huge, commission=huge, commission_asset="XRP")
    [row] = desk.ask(tmp_path, "SELECT * FROM orders")
    assert (row["filled"], row["filled_value"], len(row["fills"])) == (None, Decimal("0.0141"), 3)
    assert len(desk.ask(tmp_path / "again", "SELECT * FROM fills")) == 3


def test_every_view_can_be_asked_by_time_and_position(desk: Desk, tmp_path: Path) -> None:
    from tallystick.record.views import VIEWS

    connection: duckdb.DuckDBPyConnection = connect()
    for view in VIEWS:
        connection.execute(
            f"SELECT stream_seq FROM {view} WHERE received <= now()::TIMESTAMP AND log_index < 9"
        ).fetchall()


def _fields(event: Event) -> dict[str, Any]:
    return {name: getattr(event, name) for name in event.__struct_fields__}
