"""The live view: all of it on 80 columns and 24 lines, the reason first, one line for one event."""

from __future__ import annotations

import io
from decimal import Decimal

import pytest
from rich.console import Console as Screen

from tallystick.cli import view
from tallystick.components.console.state import DeskState
from tallystick.schemas.ids import id_text
from tallystick.schemas.orders import Balance, Decision, Denial, Intent, OrderEvent, Position
from tallystick.schemas.security import DeadLetter
from tallystick.schemas.sessions import SessionView
from tallystick.schemas.subjects import subject

NOW = 1_800_000_000_000_000_000
ORDER = {"strategy": "momentum-long-name", "venue": "paper", "symbol": "XRP/ETH"}


def identity(n: int) -> bytes:
    return NOW.to_bytes(8, "big")[:6] + bytes.fromhex("7000800000") + n.to_bytes(5, "big")


def desk(orders: int = 30) -> DeskState:
    state = DeskState()
    for n in range(orders):
        intent = Intent(id=identity(n), ts=NOW, causes=(), side="buy", type="limit", qty=Decimal(100), price=Decimal("0.00146001"), tif="GTC")  # fmt: skip
        state.apply(subject("order.intent", **ORDER), [intent], NOW)
        if n % 2:
            denial = Denial(code="NOTIONAL_EXCEEDS_LIMIT", text="too much")
            decision = Decision(id=identity(100 + n), ts=NOW, causes=(), intent_id=intent.id, verdict="deny", denials=(denial,), intent_hash=bytes(32), trust_root=bytes(32))  # fmt: skip
            state.apply(subject("order.decision", **ORDER), [decision], NOW)
        else:
            line = state.orders[intent.id]
            line.verdict, line.permitted = "permit", True
    held = Position(id=identity(200), ts=NOW, causes=(), qty=Decimal("10.989"), average_price=Decimal("0.00146"), realized=Decimal("0.0002"), fees=Decimal("0.0036"), fills=3)  # fmt: skip
    state.apply(subject("position", **ORDER), [held], NOW)
    balance = Balance(id=identity(201), ts=NOW, causes=(), free=Decimal("99.5"), locked=Decimal("0.25"))
    state.apply(subject("balance", venue="paper", asset="ETH"), [balance], NOW)
    return state


def shown(state: DeskState, width: int, height: int) -> list[str]:
    file = io.StringIO()
    Screen(file=file, width=width, height=height, force_terminal=False).print(
        view.render(state, SessionView(), NOW, "Tallystick", ["a note"] * 5, (width, height))
    )
    return file.getvalue().rstrip("\n").splitlines()


@pytest.mark.parametrize("size", [(80, 24), (80, 50), (200, 60)])
def test_everything_that_matters_is_on_the_screen(size: tuple[int, int]) -> None:
    lines = shown(desk(), *size)
    assert len(lines) < size[1]
    text = "\n".join(lines)
    for word in (
        "NOTIONAL_EXCEEDS_LIMIT",
        "10.989",
        "-0.0034",
        "ETH 99.5 and 0.25 locked",
        "15 momentum-long-name buy",
        "a note",
    ):
        assert word in text, text


def test_an_order_is_open_from_its_permit_to_its_end() -> None:
    state = desk(1)
    assert len(state.open_orders) == 1
    closed = OrderEvent(id=identity(300), ts=NOW, causes=(), intent_id=identity(0), decision_id=b"", client_order_id="x", state="closed")  # fmt: skip
    state.apply(subject("order.event", **ORDER), [closed], NOW)
    assert state.open_orders == []


def test_one_message_that_many_refuse_is_one_line() -> None:
    state = DeskState()
    for component in ("gateway", "execution", "gateway"):
        letter = DeadLetter(id=identity(1), ts=NOW, causes=(), subject="order.intent.a.b.c", stream="ORDERS", stream_seq=1, code="REVOKED_SESSION", text="over", digest=bytes(32))  # fmt: skip
        state.apply(subject("dead", component=component), [letter], NOW)
    assert [(r.by, r.code) for r in state.refusals] == [("gateway, execution", "REVOKED_SESSION")]


def test_an_order_is_called_by_the_end_of_its_id() -> None:
    line = next(iter(desk(1).orders.values()))
    assert id_text(line.intent_id).endswith(line.short_id)
