"""The paper exchange as a process: it plays the bus's market, and forgets nothing that it answered."""

from __future__ import annotations

import socket
import ssl
import time
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from tallystick.components import Received
from tallystick.components.paper_exchange.main import PaperExchange
from tallystick.components.paper_exchange.orders import Order
from tallystick.components.paper_exchange.server import Exchange
from tallystick.components.paper_exchange.state import State
from tallystick.runtime.bus.tasks import Tasks
from tallystick.runtime.deployment.config import Config, Endpoint, MarketDataConfig, VenueConfig
from tallystick.runtime.deployment.folder import Deployment
from tallystick.runtime.deployment.service import ServiceContext
from tallystick.schemas.errors import ConfigError
from tallystick.schemas.market import Trade
from tallystick.schemas.security import DeadLetter
from tallystick.schemas.trust import Instrument
from tests.support.paper import Raw, config, raw, sign, trade
from tests.support.runtime import Desk
from tests.support.tls import ServerTls
from tests.support.waiting import until

D = Decimal
ORDER = "/api/v3/order"


def exchange(tls: ServerTls, folder: Path) -> Exchange:
    return Exchange(
        config(),
        clock=time.time_ns,
        tls=tls.server(),
        within=Tasks(),
        journal=folder / "requests.jsonl",
        state=folder / "state.jsonl",
    )


async def order(client: Raw, side: str, qty: int, price: str, name: str, api_key: str = "traderkey") -> Any:
    fields = f"symbol=XRPETH&side={side}&type=LIMIT&timeInForce=GTC&quantity={qty}&price={price}"
    stamp = f"&newClientOrderId={name}&timestamp={time.time_ns() // 10**6}"
    status, answer = await client.send("POST", ORDER, sign(fields + stamp), api_key)
    assert status == 200, answer
    return answer


async def busy_life(tls: ServerTls, folder: Path) -> Exchange:
    """A life with resting, partly filled, filled and cancelled orders of two accounts, and a withdrawal.

    It ends without a goodbye: nothing is written that was not written by then.
    """
    life = exchange(tls, folder)
    await life.start()
    trade(life, "0.0013", buyer_is_maker=True)
    trade(life, "0.0013002", buyer_is_maker=False)
    async with raw(life, tls) as client:
        await order(client, "BUY", 30, "0.0013002", "taker")
        await order(client, "BUY", 50, "0.0012", "resting")
        await order(client, "BUY", 40, "0.0012001", "partly")
        await order(client, "BUY", 20, "0.001", "other", "otherkey")
        trade(life, "0.0012001", "15", buyer_is_maker=True)
        gone = await order(client, "SELL", 10, "0.01", "gone")
        stamp = f"timestamp={time.time_ns() // 10**6}"
        await client.send("DELETE", ORDER, sign(f"symbol=XRPETH&orderId={gone['orderId']}&{stamp}"))
        withdrawal = sign(f"coin=ETH&address=0xdead&amount=1&{stamp}")
        status, _ = await client.send("POST", "/sapi/v1/capital/withdraw/apply", withdrawal, "withdrawkey")
        assert status == 200
    assert life._runner is not None
    await life._runner.cleanup()
    return life


def world(life: Exchange) -> Any:
    """Everything that may not change over a restart."""
    engine = life.engine
    return (
        [msgspec.to_builtins(o) for o in engine.orders()],
        {name: [o.id for o in engine.open_orders(name)] for name in engine.accounts},
        msgspec.to_builtins(engine.accounts),
        {name: [t.id for t in trades] for name, trades in engine.trades.items()},
        engine.totals(),
        (engine.market, engine.fees, engine.withdrawn),
    )


async def test_a_killed_exchange_remembers_all_that_it_answered(tls: ServerTls, tmp_path: Path) -> None:
    before = await busy_life(tls, tmp_path)
    after = exchange(tls, tmp_path)
    assert world(after) == world(before)
    assert {o.client_id: o.status for o in after.engine.orders()} == {
        "taker": "FILLED",
        "resting": "NEW",
        "partly": "PARTIALLY_FILLED",
        "other": "NEW",
        "gone": "CANCELED",
    }
    # It goes on where it was: the rest of an order fills, ids are new, the client ids of open orders are taken.
    await after.start()
    trade(after, "0.0012", "30", buyer_is_maker=True)
    partly = after.engine.order("main", "XRPETH", None, "partly")
    resting = after.engine.order("main", "XRPETH", None, "resting")
    assert (partly.status, resting.executed) == ("FILLED", D(5))
    async with raw(after, tls) as client:
        stamp = f"timestamp={time.time_ns() // 10**6}"
        again = f"symbol=XRPETH&side=BUY&type=LIMIT&timeInForce=GTC&quantity=9&price=0.001&{stamp}"
        taken = sign(f"{again}&newClientOrderId=resting")
        assert await client.code("POST", ORDER, taken) == (400, -2010)
        new = await order(client, "BUY", 20, "0.001", "new")
    known: list[Order] = before.engine.orders()
    assert new["orderId"] > max(o.id for o in known)
    assert resting.trades[-1].id > max(t.id for o in known for t in o.trades)
    await after.stop()
    # And a third life, from the second's file.
    assert world(exchange(tls, tmp_path)) == world(after)


async def test_orders_that_wait_and_pairs_of_orders_outlive_a_kill(tls: ServerTls, tmp_path: Path) -> None:
    before = exchange(tls, tmp_path)
    await before.start()
    trade(before, "0.0013", buyer_is_maker=True)
    trade(before, "0.0013002", buyer_is_maker=False)
    async with raw(before, tls) as client:
        sell = "symbol=XRPETH&side=SELL&quantity=10"
        pair = "aboveType=LIMIT_MAKER&abovePrice=0.0014&belowType=STOP_LOSS&belowStopPrice=0.0012"
        for path, fields in (
            (ORDER, f"{sell}&type=STOP_LOSS&stopPrice=0.0012&newClientOrderId=stop"),
            ("/api/v3/orderList/oco", f"{sell}&{pair}&listClientOrderId=pair"),
        ):
            status, answer = await client.send("POST", path, sign(f"{fields}&timestamp={time.time_ns() // 10**6}"))
            assert status == 200, answer
    assert before._runner is not None
    await before._runner.cleanup()
    after = exchange(tls, tmp_path)
    assert world(after) == world(before)
    [of] = after.engine.open_lists("main")
    assert (of.client_id, [o.status for o in of.orders]) == ("pair", ["NEW", "NEW"])
    await after.start()
    trade(after, "0.0012", "50", buyer_is_maker=True)
    assert after.engine.order("main", "XRPETH", None, "stop").status == "FILLED"
    assert (of.done, [o.status for o in of.orders]) == (True, ["EXPIRED", "FILLED"])
    assert not after.engine.open_orders("main")
    await after.stop()
    assert world(exchange(tls, tmp_path)) == world(after)


async def test_ids_of_a_life_that_was_lost_do_not_come_again(tls: ServerTls, tmp_path: Path) -> None:
    known = (await busy_life(tls, tmp_path)).engine.orders()
    (tmp_path / "state.jsonl").unlink()
    later = (await busy_life(tls, tmp_path)).engine.orders()
    assert min(o.id for o in later) > max(o.id for o in known)
    assert min(t.id for o in later for t in o.trades) > max(t.id for o in known for t in o.trades)


async def test_a_torn_last_line_is_dropped_and_any_other_damage_refused(tls: ServerTls, tmp_path: Path) -> None:
    path = tmp_path / "state.jsonl"

    before = await busy_life(tls, tmp_path)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(whole[:-7])
    withdrawn = exchange(tls, tmp_path).engine.withdrawn
    assert withdrawn == {}  # the last line was the withdrawal
    path.write_bytes(whole)
    assert world(exchange(tls, tmp_path)) == world(before)
    for damaged in (
        b"".join([*lines[:2], lines[2][:-9] + b"\n", *lines[3:]]),
        b'"locked":"0.01'.join(whole.rsplit(b'"locked":"0.0', 1)),
        whole.replace(b'"main"', b'"nobody"'),
        whole.replace(b"XRPETH", b"ETHXRP"),
    ):
        assert damaged != whole
        path.write_bytes(damaged)
        with pytest.raises(ConfigError) as caught:
            exchange(tls, tmp_path)
        assert caught.value.code == "PAPER_STATE"


async def test_an_answer_waits_for_the_state_and_a_full_disk_is_no_success(
    tls: ServerTls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_self: State, _change: Any) -> None:
        raise OSError(28, "No space left on device")

    life = exchange(tls, tmp_path)
    await life.start()
    monkeypatch.setattr(State, "append", full)
    async with raw(life, tls) as client:
        stamp = f"timestamp={time.time_ns() // 10**6}"
        placed = sign(f"symbol=XRPETH&side=BUY&type=LIMIT&timeInForce=GTC&quantity=9&price=0.001&{stamp}")
        assert await client.code("POST", ORDER, placed) == (500, -1006)
    await life.stop()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def made(folder: Path, kind: Any = "paper") -> Deployment:
    """A folder with what this process reads of one."""
    instrument = Instrument(
        venue="paper",
        symbol="XRP/ETH",
        venue_symbol="XRPETH",
        base="XRP",
        quote="ETH",
        tick=D("0.0000001"),
        step=D(1),
        min_notional=D("0.005"),
        market_price=D("0.01"),
    )
    made = Deployment(
        folder,
        Config(
            deployment="test",
            broker=Endpoint(port=0),
            authority=Endpoint(port=0),
            venue=VenueConfig(name="paper", kind=kind, host=f"127.0.0.1:{free_port()}", account="main"),
            instruments=(instrument,),
            limits={},
            caps=(),
            market_data=MarketDataConfig(source="synthetic" if kind == "paper" else "live"),
        ),
    )
    made.directory.mkdir()
    made.paper_exchange.write_bytes(msgspec.json.encode(config()))
    return made


class Shown:
    """The certificate of a server of tests."""

    def __init__(self, tls: ServerTls) -> None:
        self._tls = tls

    def server(self, *, mutual: bool = True) -> ssl.SSLContext:
        assert not mutual
        return self._tls.server()


async def test_the_process_plays_the_market_of_its_own_venue_and_no_history(
    desk: Desk, tls: ServerTls, tmp_path: Path
) -> None:
    component = PaperExchange()
    try:
        feed = await desk.context("market-data")
        feed.open()

        async def play(where: str, price: str, qty: str = "70") -> None:
            event = feed.new(Trade, trade_id=1, price=D(price), qty=D(qty), time=time.time_ns(), buyer_is_maker=True)
            await feed.publish(where, event)

        await play("md.trade.paper.XRP-ETH", "0.009")  # before the exchange runs: history
        context = await desk.context("paper-exchange", deployment=made(tmp_path / "dir"), identity=Shown(tls))
        await component.start(context)
        context.open()
        await context.caught_up()
        await component.ready()
        engine = component.exchange.engine
        assert engine.touch("XRPETH") is None

        letters: list[DeadLetter] = []
        auditor = await desk.context("audit")
        auditor.subscribe(
            "dead.paper-exchange", lambda r: letters.extend(e for e in r.events if isinstance(e, DeadLetter))
        )
        auditor.open()
        await auditor.caught_up()
        async with raw(component.exchange, tls) as client:
            await order(client, "BUY", 50, "0.0013", "resting")
            await play("md.trade.elsewhere.XRP-ETH", "0.0012")
            await play("md.trade.paper.BTC-USDT", "0.0012")
            await play("md.trade.paper.XRP-ETH", "0.00120005")  # off the tick
            await until(lambda: bool(letters))
            assert letters[0].code == "MARKET_PRICE"
            assert engine.order("main", "XRPETH", None, "resting").status == "NEW"
            await play("md.trade.paper.XRP-ETH", "0.0012")
            await until(lambda: engine.order("main", "XRPETH", None, "resting").status == "FILLED")
        touch = engine.touch("XRPETH")
        assert touch == (D("0.0012"), D(70), D("0.0012001"), D(70))
        heard: list[Received] = []
        listener = await desk.context("gateway")
        listener.subscribe("md.trade.>", heard.append)
        listener.open()
        await listener.caught_up()
        await play("md.trade.paper.XRP-ETH", "0.0011")
        await until(lambda: bool(heard) and engine.touch("XRPETH") != touch)
        touch = engine.touch("XRPETH")
        await play("md.trade.paper.XRP-ETH", "0.0015")
        await until(lambda: engine.touch("XRPETH") != touch)
        touch = engine.touch("XRPETH")
        component._on_trades(msgspec.structs.replace(heard[0], live=False))  # one that came late
        assert engine.touch("XRPETH") == touch
        component._on_trades(heard[0])
        assert engine.touch("XRPETH") != touch
    finally:
        await context.release()


@pytest.mark.parametrize("defect", ["no file", "no certificate", "not paper", "not json"])
async def test_a_process_that_lacks_something_says_so_and_does_not_start(
    tls: ServerTls, tmp_path: Path, defect: str
) -> None:
    desk = made(tmp_path / "dir", "binance" if defect == "not paper" else "paper")
    if defect == "no file":
        desk.paper_exchange.unlink()
    elif defect == "not json":
        desk.paper_exchange.write_bytes(b"{")

    class Context(SimpleNamespace):
        identity = ServiceContext.identity

    context: Any = Context(clock=time.time_ns, component="paper-exchange", deployment=desk)
    context._identity = Shown(tls) if defect != "no certificate" else None
    with pytest.raises(ConfigError):
        await PaperExchange().start(context)
