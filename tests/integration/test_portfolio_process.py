"""The portfolio on a real broker and the paper exchange: no fill is lost, none counts twice, none goes unexplained."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tallystick.components.paper_exchange.server import Exchange, Fault
from tallystick.components.portfolio.main import Portfolio
from tallystick.runtime.bus.received import Received
from tallystick.runtime.deployment.service import ServiceContext
from tallystick.runtime.keys.hsm import Token, create_token
from tallystick.runtime.keys.keystore import Secret
from tallystick.schemas.orders import Balance, Decision, Fill, Permit, Position, VenueOrder
from tallystick.schemas.security import Notice
from tallystick.venues import Listener
from tallystick.venues.binance.follow import UserStream
from tests.support import paper
from tests.support.bus import TestBus, running_bus
from tests.support.leases import held
from tests.support.paper import Raw, raw, sign, venue
from tests.support.runtime import Desk
from tests.support.tls import ServerTls
from tests.support.waiting import until

D = Decimal


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[TestBus]:
    with running_bus(tmp_path / "bus") as running:
        yield running


@dataclass
class Scene:
    desk: Desk
    exchange: Exchange
    raw: Raw
    tls: ServerTls
    faults: dict[str, Fault]
    gateway: ServiceContext
    signer: Any = paper.SECRET
    reconcile_s: float = 30.0
    heard: list[tuple[str, Any]] = field(default_factory=list)
    portfolio: Portfolio = field(default_factory=Portfolio)

    def connect(self, ctx: ServiceContext, listener: Listener) -> UserStream:
        return UserStream(
            host=f"127.0.0.1:{self.exchange.port}",
            paper=True,
            api_key="readerkey",
            signer=self.signer,
            symbols={"XRPETH": "XRP/ETH"},
            tls=self.tls.client(),
            clock=ctx.clock,
            listener=listener,
            reconcile_s=self.reconcile_s,
        )

    async def start(self, **given: Any) -> None:
        context = await self.desk.context("portfolio", **given)
        self.portfolio = Portfolio("paper", self.connect)
        await self.portfolio.start(context)
        await context.resume()
        context.open()
        await context.caught_up()
        await self.portfolio.ready()

    async def stop(self) -> None:
        await self.desk.contexts.pop().close()

    async def permit(self, client: str, side: str = "BUY", qty: str = "100", price: str = "0.0014") -> bytes:
        intent = self.gateway.new_id()
        order = VenueOrder("XRPETH", side, "LIMIT", "GTC", qty, price, client)
        decision = self.gateway.new(
            Decision,
            verdict="permit",
            intent_id=intent,
            intent_hash=bytes(32),
            trust_root=bytes(32),
            permit=Permit("main", order, bytes(32), bytes(16), time.time_ns()),
        )
        await self.gateway.publish("order.decision.alpha.paper.XRP-ETH", decision)
        return intent

    async def order(self, client: str, side: str = "BUY", qty: str = "100", price: str = "0.0014") -> None:
        fields = f"symbol=XRPETH&side={side}&type=LIMIT&timeInForce=GTC&quantity={qty}&price={price}"
        stamp = f"&newClientOrderId={client}&timestamp={time.time_ns() // 10**6}"
        status, answer = await self.raw.send("POST", "/api/v3/order", sign(fields + stamp))
        assert status == 200, answer

    def hear(self, received: Received) -> None:
        self.heard += [(received.subject.text, event) for event in received.events]

    def of(self, kind: type, where: str = "") -> list[Any]:
        return [e for text, e in self.heard if isinstance(e, kind) and where in text]

    async def until(self, condition: Callable[[], Any], timeout: float = 8.0) -> None:
        await until(condition, lambda: f"heard {[(w, type(e).__name__) for w, e in self.heard[-9:]]}", timeout)


@contextlib.asynccontextmanager
async def opened(desk: Desk, tls: ServerTls, folder: Path) -> AsyncIterator[Scene]:
    faults: dict[str, Fault] = {}
    async with venue(tls, folder, faults) as exchange, raw(exchange, tls) as client:
        gateway = await desk.context("gateway")
        auditor = await desk.context("audit")
        made = Scene(desk, exchange, client, tls, faults, gateway)
        auditor.subscribe(("fill.>", "position.>", "balance.>"), made.hear)
        auditor.subscribe("guard.portfolio", made.hear)
        auditor.open()
        await auditor.caught_up()
        yield made
        # Before the venue goes.
        await desk.close()


@pytest.fixture
async def scene(desk: Desk, tls: ServerTls, tmp_path: Path) -> AsyncIterator[Scene]:
    async with opened(desk, tls, tmp_path) as made:
        yield made


async def test_a_fill_comes_as_its_strategys_fill_and_position_with_balances(scene: Scene) -> None:
    await scene.start()
    await scene.until(lambda: len(scene.of(Balance)) == 2)
    intent = await scene.permit("c1")
    await scene.order("c1")
    await scene.until(lambda: scene.of(Position))
    [fill] = scene.of(Fill, "fill.alpha.paper.XRP-ETH")
    assert (fill.intent_id, fill.client_order_id, fill.side, fill.qty) == (intent, "c1", "buy", D(100))
    assert (fill.price, fill.commission, fill.commission_asset) == (D("0.0013002"), D("0.1"), "XRP")
    [position] = scene.of(Position, "position.alpha.paper.XRP-ETH")
    assert (position.qty, position.average_price, position.causes) == (D("99.9"), D("0.0013002"), (fill.id,))
    await scene.until(lambda: len(scene.of(Balance, "balance.paper.XRP")) == 2)
    assert scene.of(Balance, "balance.paper.XRP")[-1].free == D("100099.9")


async def test_a_fill_that_nobody_permitted_is_unknown_and_reported(scene: Scene) -> None:
    await scene.start()
    await scene.until(lambda: scene.of(Balance))
    await scene.order("thief")
    await scene.until(lambda: scene.of(Fill, "fill.unknown.paper.XRP-ETH"))
    await scene.until(lambda: [n for n in scene.of(Notice) if n.code == "FILL_WITHOUT_PERMIT"])
    assert scene.of(Fill)[0].intent_id == b""


async def test_fills_during_a_cut_of_the_stream_are_fetched_once(scene: Scene) -> None:
    await scene.start()
    await scene.until(lambda: scene.of(Balance))
    for i in range(6):
        await scene.permit(f"c{i}", qty="10")
        if i % 2:
            for socket in list(scene.exchange.sockets.open):
                socket.cut()
        await scene.order(f"c{i}", qty="10")
    await scene.permit("last", qty="10")
    await scene.order("last", qty="10")
    # One that was fetched twice would stand before the last.
    await scene.until(lambda: any(f.client_order_id == "last" for f in scene.of(Fill)))
    await scene.until(lambda: len(scene.of(Position)) >= 7)
    assert [f.client_order_id for f in scene.of(Fill)] == [*(f"c{i}" for i in range(6)), "last"]
    assert [p.qty for p in scene.of(Position)] == [D("9.99") * n for n in range(1, 8)]
    assert "USER_STREAM_DOWN" in [n.code for n in scene.of(Notice)]


async def test_fills_while_the_portfolio_is_down_are_fetched_at_its_start(scene: Scene) -> None:
    await scene.permit("before", qty="5")
    await scene.order("before", qty="5")
    await scene.start()
    await scene.until(lambda: len(scene.of(Position)) == 1)
    await scene.stop()
    await scene.permit("between", qty="7")
    await scene.order("between", qty="7")
    await scene.start()
    await scene.until(lambda: len(scene.of(Position)) == 2)
    await scene.stop()
    await scene.start()
    await scene.permit("after", side="SELL", qty="12", price="0.0012")
    await scene.order("after", side="SELL", qty="12", price="0.0012")
    await scene.until(lambda: len(scene.of(Position)) == 3)
    assert [f.client_order_id for f in scene.of(Fill)] == ["before", "between", "after"]
    last = scene.of(Position)[-1]
    assert (last.qty, last.fills) == (D("-0.012"), 3)


async def test_a_trade_before_the_first_permit_is_none_of_ours(scene: Scene) -> None:
    await scene.order("somebodys")
    await asyncio.sleep(0.01)  # the venue dates trades in whole milliseconds: the permit must be later than this one
    await scene.start()
    await scene.until(lambda: scene.of(Balance))
    await scene.permit("ours")
    await scene.order("ours")
    await scene.until(lambda: scene.of(Position))
    await scene.permit("last")
    await scene.order("last")
    # Fills come in the order of their trades: one of somebody's would stand before these.
    await scene.until(lambda: len(scene.of(Position)) == 2)
    assert [f.client_order_id for f in scene.of(Fill)] == ["ours", "last"]


async def test_a_fill_that_a_mute_stream_kept_back_is_found_by_asking(scene: Scene) -> None:
    scene.reconcile_s = 0.3
    await scene.start()
    await scene.until(lambda: scene.of(Balance))
    for socket in scene.exchange.sockets.open:
        socket.users.clear()
    await scene.permit("c1")
    await scene.order("c1")
    await scene.until(lambda: scene.of(Fill, "fill.alpha"))


@pytest.mark.parametrize(
    ("endpoint", "kind"),
    [
        ("GET /api/v3/account", "drop_before"),
        ("GET /api/v3/myTrades", "drop_after"),
        ("GET /api/v3/order", "drop_before"),
    ],
)
async def test_a_question_that_fails_is_asked_again(scene: Scene, endpoint: str, kind: Any) -> None:
    await scene.permit("c1")
    await scene.order("c1")
    scene.faults[endpoint] = Fault(kind, times=2)
    await scene.start()
    await scene.until(lambda: scene.of(Position, "position.alpha"))
    assert len(scene.of(Fill)) == 1


async def test_a_revoked_key_is_reported_as_such(scene: Scene) -> None:
    await scene.start()
    await scene.until(lambda: scene.of(Balance))
    scene.exchange.revoke("readerkey")
    await scene.until(lambda: "VENUE_CREDENTIAL" in [n.code for n in scene.of(Notice)])


async def test_the_account_is_read_with_a_key_that_never_leaves_the_token(
    desk: Desk, tls: ServerTls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_token(tmp_path / "hsm", "portfolio", Secret("1234567"), Secret("7654321"))
    with Token.open(tmp_path / "hsm", "portfolio", Secret("7654321"), writable=True) as token:
        public = token.generate_ed25519(b"venue", "read-only key")
        monkeypatch.setattr(paper, "SPKI", base64.b64encode(public).decode())
        async with opened(desk, tls, tmp_path) as scene:
            scene.signer = token.signer(b"venue")
            await scene.start()
            await scene.until(lambda: len(scene.of(Balance)) == 2)
            assert not scene.of(Notice)


async def test_without_a_lease_of_the_vault_the_account_is_not_followed_and_with_one_nothing_was_missed(
    scene: Scene,
) -> None:
    lease = held()
    await scene.start(leased=lease)
    await scene.until(lambda: len(scene.of(Balance)) == 2)
    await scene.permit("c1")
    lease.lost("test")
    await scene.until(lambda: [e for e in scene.of(Notice) if e.code == "VAULT_LEASE_ENDED"])
    await scene.order("c1")
    await asyncio.sleep(1.0)
    assert scene.of(Fill) == []
    lease.granted(time.time_ns(), time.monotonic_ns(), 3_600)
    await scene.until(lambda: scene.of(Fill, "fill.alpha.paper.XRP-ETH"))
    assert scene.portfolio._down == ""
