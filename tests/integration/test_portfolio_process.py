"""The portfolio on a real broker and the paper exchange: no fill is lost, none counts twice, none goes unexplained."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Awaitable, Callable, Iterator
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
from tests.support.paper import Raw, raw, sign, venue
from tests.support.runtime import Desk
from tests.support.tls import ServerTls, make_server_tls

D = Decimal


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> ServerTls:
    return make_server_tls(tmp_path_factory.mktemp("tls"))


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

    async def start(self) -> None:
        context = await self.desk.context("portfolio")
        self.portfolio = Portfolio("paper", self.connect)
        await self.portfolio.start(context)
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
        for _ in range(int(timeout / 0.01)):
            if condition():
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"not within {timeout} s; heard {[(w, type(e).__name__) for w, e in self.heard[-9:]]}")


def on_scene(bus: TestBus, tls: ServerTls, folder: Path, work: Callable[[Scene], Awaitable[None]]) -> None:
    async def run() -> None:
        desk = Desk(bus)
        faults: dict[str, Fault] = {}
        try:
            async with venue(tls, folder, faults) as exchange, raw(exchange, tls) as client:
                gateway = await desk.context("gateway")
                auditor = await desk.context("audit")
                scene = Scene(desk, exchange, client, tls, faults, gateway)
                auditor.subscribe(("fill.>", "position.>", "balance.>"), scene.hear)
                auditor.subscribe("guard.portfolio", scene.hear)
                auditor.open()
                await auditor.caught_up()
                await asyncio.wait_for(work(scene), 25)
        finally:
            await desk.close()

    asyncio.run(run())


def test_a_fill_comes_as_its_strategys_fill_and_position_with_balances(
    bus: TestBus, tls: ServerTls, tmp_path: Path
) -> None:
    async def work(scene: Scene) -> None:
        await scene.start()
        await scene.until(lambda: len(scene.of(Balance)) == 2)
        intent = await scene.permit("c1")
        await scene.order("c1")
        await scene.until(lambda: scene.of(Position))
        [fill] = scene.of(Fill, "fill.alpha.paper.XRP-ETH")
        assert (fill.intent_id, fill.client_order_id, fill.side, fill.qty) == (intent, "c1", "buy", D(100))
        assert (fill.price, fill.commission, fill.commission_asset) == (D("0.0013002"), D("0.1"), "XRP")
        [position] = scene.of(Position, "position.alpha.paper.XRP-ETH")
        assert (position.qty, position.average_price, position.causes) == (D(100), D("0.0013002"), (fill.id,))
        await scene.until(lambda: len(scene.of(Balance, "balance.paper.XRP")) == 2)
        assert scene.of(Balance, "balance.paper.XRP")[-1].free == D("100099.9")

    on_scene(bus, tls, tmp_path, work)


def test_a_fill_that_nobody_permitted_is_unknown_and_reported(bus: TestBus, tls: ServerTls, tmp_path: Path) -> None:
    async def work(scene: Scene) -> None:
        await scene.start()
        await scene.until(lambda: scene.of(Balance))
        await scene.order("thief")
        await scene.until(lambda: scene.of(Fill, "fill.unknown.paper.XRP-ETH"))
        await scene.until(lambda: [n for n in scene.of(Notice) if n.code == "FILL_WITHOUT_PERMIT"])
        assert scene.of(Fill)[0].intent_id == b""

    on_scene(bus, tls, tmp_path, work)


def test_fills_during_a_cut_of_the_stream_are_fetched_once(bus: TestBus, tls: ServerTls, tmp_path: Path) -> None:
    async def work(scene: Scene) -> None:
        await scene.start()
        await scene.until(lambda: scene.of(Balance))
        for i in range(6):
            await scene.permit(f"c{i}", qty="10")
            if i % 2:
                for socket in list(scene.exchange._sockets):
                    socket.cut()
            await scene.order(f"c{i}", qty="10")
        await scene.until(lambda: len(scene.of(Position)) >= 6)
        await asyncio.sleep(0.3)
        assert [f.client_order_id for f in scene.of(Fill)] == [f"c{i}" for i in range(6)]
        assert [p.qty for p in scene.of(Position)] == [D(10 * n) for n in range(1, 7)]
        assert "USER_STREAM_DOWN" in [n.code for n in scene.of(Notice)]

    on_scene(bus, tls, tmp_path, work)


def test_fills_while_the_portfolio_is_down_are_fetched_at_its_start(
    bus: TestBus, tls: ServerTls, tmp_path: Path
) -> None:
    async def work(scene: Scene) -> None:
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
        assert (last.qty, last.fills) == (D(0), 3)

    on_scene(bus, tls, tmp_path, work)


def test_a_trade_before_the_first_permit_is_none_of_ours(bus: TestBus, tls: ServerTls, tmp_path: Path) -> None:
    async def work(scene: Scene) -> None:
        await scene.order("somebodys")
        await asyncio.sleep(0.01)
        await scene.start()
        await scene.until(lambda: scene.of(Balance))
        await scene.permit("ours")
        await scene.order("ours")
        await scene.until(lambda: scene.of(Position))
        await asyncio.sleep(0.3)
        assert [f.client_order_id for f in scene.of(Fill)] == ["ours"]

    on_scene(bus, tls, tmp_path, work)


def test_a_fill_that_a_mute_stream_kept_back_is_found_by_asking(bus: TestBus, tls: ServerTls, tmp_path: Path) -> None:
    async def work(scene: Scene) -> None:
        scene.reconcile_s = 0.3
        await scene.start()
        await scene.until(lambda: scene.of(Balance))
        for socket in scene.exchange._sockets:
            socket.users.clear()
        await scene.permit("c1")
        await scene.order("c1")
        await scene.until(lambda: scene.of(Fill, "fill.alpha"))

    on_scene(bus, tls, tmp_path, work)


@pytest.mark.parametrize(
    ("endpoint", "kind"),
    [
        ("GET /api/v3/account", "drop_before"),
        ("GET /api/v3/myTrades", "drop_after"),
        ("GET /api/v3/order", "drop_before"),
    ],
)
def test_a_question_that_fails_is_asked_again(
    bus: TestBus, tls: ServerTls, tmp_path: Path, endpoint: str, kind: Any
) -> None:
    async def work(scene: Scene) -> None:
        await scene.permit("c1")
        await scene.order("c1")
        scene.faults[endpoint] = Fault(kind, times=2)
        await scene.start()
        await scene.until(lambda: scene.of(Position, "position.alpha"))
        assert len(scene.of(Fill)) == 1

    on_scene(bus, tls, tmp_path, work)


def test_a_revoked_key_is_reported_as_such(bus: TestBus, tls: ServerTls, tmp_path: Path) -> None:
    async def work(scene: Scene) -> None:
        await scene.start()
        await scene.until(lambda: scene.of(Balance))
        scene.exchange.revoke("readerkey")
        await scene.until(lambda: "VENUE_CREDENTIAL" in [n.code for n in scene.of(Notice)])

    on_scene(bus, tls, tmp_path, work)


def test_the_account_is_read_with_a_key_that_never_leaves_the_token(
    bus: TestBus, tls: ServerTls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_token(tmp_path / "hsm", "portfolio", Secret("1234567"), Secret("7654321"))
    with Token.open(tmp_path / "hsm", "portfolio", Secret("7654321"), writable=True) as token:
        public = token.generate_ed25519(b"venue", "read-only key")
        signer = token.signer(b"venue")
        monkeypatch.setattr(paper, "SPKI", base64.b64encode(public).decode())

        async def work(scene: Scene) -> None:
            scene.signer = signer
            await scene.start()
            await scene.until(lambda: len(scene.of(Balance)) == 2)
            assert not scene.of(Notice)

        on_scene(bus, tls, tmp_path, work)
