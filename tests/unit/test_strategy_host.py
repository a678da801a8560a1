from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tallystick.components import Strategy, StrategyContext
from tallystick.components.strategy import host as host_module
from tallystick.components.strategy.examples.fat_finger import FatFinger
from tallystick.components.strategy.examples.momentum import Momentum
from tallystick.components.strategy.examples.runaway import Runaway
from tallystick.components.strategy.host import Host
from tallystick.components.strategy.load import load_strategy, typed_params
from tallystick.schemas.errors import ConfigError, Unverified
from tallystick.schemas.ids import EventIds
from tallystick.schemas.market import Quote, Trade
from tallystick.schemas.orders import (
    CancelIntent,
    Decision,
    Denial,
    Intent,
    OrderEvent,
    Permit,
    Position,
    Signal,
    VenueOrder,
)
from tallystick.schemas.security import Notice
from tallystick.schemas.subjects import subject
from tallystick.schemas.trust import Instrument
from tests.support.log import Lines

NOW = 1_800_000_000_000_000_000
MS = 1_000_000
D = Decimal
XRP = Instrument(
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


class World:
    """A host and the market around it: every limit order is filled at once, wholly, at its price."""

    def __init__(self, strategy: Strategy, params: dict[str, str] | None = None) -> None:
        ids = EventIds(bytes(8))
        ticks = itertools.count(NOW)

        def new(kind: type, causes: tuple[bytes, ...] = (), **fields: Any) -> Any:
            now = next(ticks)
            return kind(id=ids.next(now), ts=now, causes=causes, **fields)

        self.new: Callable[..., Any] = new
        self.log = Lines()
        self.out: list[tuple[str, Any]] = []
        self.trades = 0
        self.host = Host(
            strategy,
            name="alpha",
            venue="paper",
            symbols=("XRP/ETH",),
            params=typed_params(strategy, params or {}),
            new=new,
            instrument=self.instrument,
            log=self.log,
        )

    @staticmethod
    def instrument(symbol: str) -> Instrument:
        if symbol != XRP.symbol:
            raise Unverified("UNKNOWN_INSTRUMENT", symbol)
        return XRP

    def take(self, outputs: Any) -> list[Any]:
        self.out += [(where.text, event) for where, event in outputs]
        return [event for _, event in outputs]

    def start(self) -> list[Any]:
        return self.take(self.host.start(NOW))

    def hear(self, kind: str, event: Any, symbol: str = "XRP/ETH") -> list[Any]:
        fields = {"venue": "paper", "symbol": symbol}
        if not kind.startswith("md."):
            fields["strategy"] = "alpha"
        return self.take(self.host.on_event(subject(kind, **fields), event))

    def trade(self, price: str | Decimal, ts: int | None = None) -> list[Any]:
        self.trades += 1
        event = self.new(Trade, trade_id=self.trades, price=D(price), qty=D(1), time=0, buyer_is_maker=False)
        if ts is not None:
            event = Trade(
                id=event.id, ts=ts, trade_id=self.trades, price=D(price), qty=D(1), time=0, buyer_is_maker=False
            )
        return self.hear("md.trade", event)

    def permit(self, intent_id: bytes) -> list[Any]:
        order = VenueOrder("XRPETH", "BUY", "LIMIT", "GTC", "1", "1", "c")
        permit = Permit("main", order, bytes(32), bytes(16), NOW)
        return self.hear(
            "order.decision",
            self.new(
                Decision,
                verdict="permit",
                intent_id=intent_id,
                intent_hash=bytes(32),
                trust_root=bytes(32),
                permit=permit,
            ),
        )

    def deny(self, intent_id: bytes) -> list[Any]:
        denial = (Denial("NOTIONAL", "too much"),)
        return self.hear(
            "order.decision",
            self.new(
                Decision,
                verdict="deny",
                intent_id=intent_id,
                intent_hash=bytes(32),
                trust_root=bytes(32),
                denials=denial,
            ),
        )

    def order(self, intent_id: bytes, state: str) -> list[Any]:
        return self.hear(
            "order.event",
            self.new(OrderEvent, intent_id=intent_id, decision_id=bytes(16), client_order_id="c", state=state),
        )

    def position(self, qty: str | Decimal) -> list[Any]:
        return self.hear("position", self.new(Position, qty=D(qty), average_price=D(1), realized=D(0), fills=1))

    def fill_all(self, events: list[Any]) -> None:
        for intent in [e for e in events if isinstance(e, Intent)]:
            sign = 1 if intent.side == "buy" else -1
            self.order(intent.id, "closed")
            self.position(self.host.position("XRP/ETH") + sign * intent.qty)


class Scripted(Strategy):
    """Does what the test says at each trade."""

    def __init__(self, script: Callable[[StrategyContext, Trade], object]) -> None:
        self.script = script

    def on_trade(self, ctx: StrategyContext, symbol: str, trade: Trade) -> None:
        self.script(ctx, trade)


def once(script: Callable[[StrategyContext, Trade], object]) -> World:
    world = World(Scripted(script))
    world.start()
    return world


def test_an_intent_stands_on_the_strategys_subject_with_the_trade_as_its_cause() -> None:
    ids = []
    world = once(lambda ctx, trade: ids.append(ctx.buy("XRP/ETH", "10", D("0.0013"))))
    [intent] = world.trade("0.0013")
    assert world.out[-1][0] == "order.intent.alpha.paper.XRP-ETH"
    assert (intent.id, intent.side, intent.type, intent.qty, intent.price, intent.tif) == (
        ids[0],
        "buy",
        "limit",
        D(10),
        D("0.0013"),
        "GTC",
    )
    assert len(intent.causes) == 1


def test_without_a_price_it_is_a_market_order_and_further_causes_are_kept() -> None:
    other = bytes(15) + b"x"
    world = once(lambda ctx, trade: ctx.sell("XRP/ETH", 10, causes=[trade.id, other]))
    [intent] = world.trade("1")
    assert (intent.type, intent.price) == ("market", None)
    assert intent.causes[1:] == (other,)


@pytest.mark.parametrize(
    "ask",
    [
        lambda ctx, _: ctx.buy("XRP/ETH", 0.1),
        lambda ctx, _: ctx.buy("XRP/ETH", D(1), 0.0013),
        lambda ctx, _: ctx.buy("XRP/ETH", True),
        lambda ctx, _: ctx.buy("XRP/ETH", "NaN"),
        lambda ctx, _: ctx.buy("XRP/ETH", "-1"),
        lambda ctx, _: ctx.buy("XRP/ETH", "0"),
        lambda ctx, _: ctx.buy("XRP/ETH", "1e-19"),
        lambda ctx, _: ctx.buy("", 1),
        lambda ctx, _: ctx.buy("XRP/ETH", 1, 1, "DAY"),
        lambda ctx, _: ctx.signal("XRP/ETH", "x", 0.5),
        lambda ctx, _: ctx.instrument("DOGE/ETH"),
        lambda ctx, _: 1 / 0,
    ],
    ids=range(12),
)
def test_a_mistake_in_user_code_halts_the_strategy_and_nothing_is_sent(ask: Any) -> None:
    def script(ctx: StrategyContext, trade: Trade) -> None:
        ctx.buy("XRP/ETH", 1)
        ask(ctx, trade)

    world = once(script)
    [notice] = world.trade("1")
    assert isinstance(notice, Notice)
    assert notice.code == "STRATEGY_HALTED"
    assert "on_trade: " in notice.text
    assert world.out[-1][0] == "guard.strategy-alpha"
    assert "Traceback" in str(world.log.lines[0])
    assert world.trade("1") == []
    assert world.host.open_orders() == ()


def test_the_notice_names_the_place_in_the_users_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from tallystick.components import Strategy\n"
        "class Mine(Strategy):\n"
        "    def on_start(self, ctx):\n"
        "        raise KeyError('no price')\n"
    )
    world = World(load_strategy("mine.py", tmp_path))
    [notice] = world.start()
    assert "on_start: KeyError at" in notice.text
    assert "mine.py:4" in notice.text


def test_a_halted_strategys_open_orders_are_cancelled_also_those_that_appear_late() -> None:
    world = once(lambda ctx, trade: ctx.buy("XRP/ETH", 1) if trade.trade_id < 3 else 1 / 0)
    first, second = world.trade("1")[0], world.trade("1")[0]
    world.order(first.id, "closed")
    cancel, _ = world.trade("1")
    assert isinstance(cancel, CancelIntent)
    assert cancel.intent_id == second.id
    [late] = world.permit(bytes(15) + b"l")
    assert isinstance(late, CancelIntent)


def test_a_loop_gone_wild_within_one_event_is_dropped_whole_and_halted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_module, "MAX_OUTPUTS", 10)

    def script(ctx: StrategyContext, trade: Trade) -> None:
        for _ in range(1000):
            try:
                ctx.buy("XRP/ETH", 1)
            except Exception:  # noqa: BLE001, S110  # as careless user code does
                pass

    world = once(script)
    [notice] = world.trade("1")
    assert "more than 10 intents" in notice.text
    assert world.trade("1") == []


def test_exactly_the_allowed_number_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_module, "MAX_OUTPUTS", 10)
    world = once(lambda ctx, _: [ctx.buy("XRP/ETH", 1) for _ in range(10)])
    assert len(world.trade("1")) == 10
    assert not world.host.halted


@pytest.mark.parametrize("state", ["rejected", "void", "closed"])
def test_an_order_is_open_until_it_ends(state: str) -> None:
    world = once(lambda ctx, _: ctx.buy("XRP/ETH", 1))
    [intent] = world.trade("1")
    for step in ("submitting", "accepted", "unknown"):
        world.order(intent.id, step)
        assert [o.intent_id for o in world.host.open_orders("XRP/ETH")] == [intent.id]
    world.order(intent.id, state)
    assert world.host.open_orders() == ()


def test_a_denied_intent_is_not_open() -> None:
    world = once(lambda ctx, _: ctx.buy("XRP/ETH", 1))
    [intent] = world.trade("1")
    world.deny(intent.id)
    assert world.host.open_orders() == ()


def test_cancelling_asks_for_an_open_order_and_not_for_a_closed_one() -> None:
    asked: list[Any] = []
    world = once(
        lambda ctx, t: asked.append(ctx.buy("XRP/ETH", 1)) if t.trade_id == 1 else asked.append(ctx.cancel(asked[0]))
    )
    world.trade("1")
    [cancel] = world.trade("1")
    assert (cancel.intent_id, asked[1]) == (asked[0], True)
    world.order(asked[0], "closed")
    assert world.trade("1") == []
    assert asked[2] is False


def test_history_builds_positions_and_open_orders_and_calls_nothing() -> None:
    calls: list[str] = []

    class Watching(Strategy):
        def on_start(self, ctx: StrategyContext) -> None:
            calls.append(f"start {ctx.position('XRP/ETH')} {[o.intent_id[-1:] for o in ctx.open_orders()]}")

        def on_position(self, ctx: StrategyContext, symbol: str, position: Position) -> None:
            calls.append(f"position {position.qty} {ctx.position(symbol)}")

    world = World(Watching())
    world.permit(bytes(15) + b"a")
    world.permit(bytes(15) + b"b")
    world.order(bytes(15) + b"a", "closed")
    world.position("7")
    assert calls == []
    world.start()
    world.position("8")
    assert calls == ["start 7 [b'b']", "position 8 8"]


def test_a_quote_is_heard_and_can_lead_to_an_order() -> None:
    class Follows(Strategy):
        def on_quote(self, ctx: StrategyContext, symbol: str, quote: Quote) -> None:
            ctx.buy(symbol, quote.ask_qty, quote.ask, "IOC")

    world = World(Follows())
    world.start()
    quote = world.new(Quote, bid=D("0.0013"), bid_qty=D(4), ask=D("0.0014"), ask_qty=D(7), time=0)
    (intent,) = world.hear("md.quote", quote)
    assert world.out[-1][0] == "order.intent.alpha.paper.XRP-ETH"
    assert (intent.side, intent.qty, intent.price, intent.causes) == ("buy", D(7), D("0.0014"), (quote.id,))


def test_the_same_events_give_the_same_intents() -> None:
    def run() -> list[tuple[str, Any]]:
        world = World(Momentum(), {"slow": "20", "fast": "5"})
        world.start()
        for i in range(400):
            price = D("0.0013") + D(abs((i % 120) - 60)) * D("0.000001")
            world.fill_all(world.trade(price, NOW + i * 50 * MS))
        return world.out

    assert run() == run()
    assert any(isinstance(e, Intent) for _, e in run())


def test_momentum_buys_the_rise_sells_the_fall_and_stays_within_its_lot() -> None:
    world = World(Momentum(), {"slow": "20", "fast": "5", "pause_ms": "0"})
    world.start()
    held = []
    for i in range(2000):
        price = D("0.0013") + D(abs((i % 200) - 100)) * D("0.000001")
        events = world.trade(price, NOW + i * 50 * MS)
        for intent in [e for e in events if isinstance(e, Intent)]:
            assert intent.tif == "IOC"
            assert intent.price is not None
            assert intent.price % XRP.tick == 0
            assert intent.qty % XRP.step == 0
            assert intent.price * intent.qty >= XRP.min_notional
        world.fill_all(events)
        held.append(world.host.position("XRP/ETH"))
    sides = [e.side for _, e in world.out if isinstance(e, Intent)]
    assert sides[:4] == ["buy", "sell", "buy", "sell"] or sides[:4] == ["sell", "buy", "sell", "buy"]
    assert len(sides) >= 8
    assert 0 <= min(held) <= max(held) < 20
    assert any(isinstance(e, Signal) for _, e in world.out)


def test_momentum_trades_on_with_a_rest_too_small_to_sell() -> None:
    world = World(Momentum(), {"slow": "20", "fast": "5", "pause_ms": "0"})
    world.start()
    sides = []
    for i in range(2000):
        price = D("0.0013") + D(abs((i % 200) - 100)) * D("0.000001")
        for intent in [e for e in world.trade(price, NOW + i * 50 * MS) if isinstance(e, Intent)]:
            sides.append(intent.side)
            world.order(intent.id, "closed")
            # Every sale leaves one unit behind, as a partly filled one does.
            rest = world.host.position("XRP/ETH") + intent.qty if intent.side == "buy" else D(1)
            world.position(rest)
    assert len(sides) >= 8
    assert sides[-2:] in (["buy", "sell"], ["sell", "buy"])


def test_fat_finger_makes_every_kind_of_mistake_between_proper_orders() -> None:
    world = World(FatFinger(), {"every": "1"})
    world.start()
    for _ in range(24):
        world.fill_all(world.trade("0.0013"))
    intents = [(where, e) for where, e in world.out if isinstance(e, Intent)]
    assert len(intents) == 24
    prices = [e.price or D(0) for _, e in intents]
    assert any("TULIP" in where for where, _ in intents)
    assert any(e.qty > 10_000 for _, e in intents)
    assert any(p > D("0.003") for p in prices)
    assert any(p % XRP.tick for p in prices)
    assert any(e.qty % XRP.step for _, e in intents)
    assert any(e.qty * (e.price or D(0)) < XRP.min_notional for _, e in intents)
    proper = [
        e for where, e in intents if "XRP" in where and e.price in (D("0.0012987"), D("0.0013013")) and 4 <= e.qty <= 20
    ]
    assert len(proper) >= 12
    assert not world.host.halted


def test_runaway_behaves_and_then_does_not() -> None:
    world = World(Runaway(), {"every": "10", "after": "50", "burst": "7", "orders": "40"})
    world.start()
    counts = [len(world.trade("0.0013")) for _ in range(60)]
    assert sum(counts[:50]) == 5
    assert counts[50:55] == [7] * 5
    assert counts[55:] == [0, 0, 0, 0, 1]


# ---------------------------------------------------------------- loading


def write(folder: Path, text: str) -> str:
    (folder / "s.py").write_text(text)
    return "s.py"


HEAD = "from decimal import Decimal\nfrom tallystick.components import Strategy\n"


def test_a_strategy_is_loaded_from_a_file_or_a_module(tmp_path: Path) -> None:
    assert type(load_strategy(write(tmp_path, HEAD + "class A(Strategy): pass\n"), tmp_path)).__name__ == "A"
    two = write(tmp_path, HEAD + "class A(Strategy): pass\nclass B(Strategy): pass\n")
    assert type(load_strategy(f"{two}:B", tmp_path)).__name__ == "B"
    assert isinstance(load_strategy("tallystick.components.strategy.examples.momentum", tmp_path), Momentum)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1\n", "found none"),
        (HEAD + "class A(Strategy): pass\nclass B(Strategy): pass\n", "found A, B; name it as FILE:CLASS"),
        ("def f(:\n", r"s\.py:1: "),
        ("import nowhere_at_all\n", r"ModuleNotFoundError at .*s\.py:1"),
        ("\n\n1 / 0\n", r"ZeroDivisionError at .*s\.py:3"),
        (HEAD + "class A(Strategy):\n    def __init__(self): raise OSError('x')\n", r"OSError at .*s\.py:4"),
    ],
)
def test_a_strategy_that_cannot_be_loaded_says_where(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_strategy(write(tmp_path, text), tmp_path)


def test_a_missing_file_or_module_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file"):
        load_strategy("none.py", tmp_path)
    with pytest.raises(ConfigError, match="there is no module"):
        load_strategy("no.such.module", tmp_path)


def test_a_strategy_file_cannot_take_the_place_of_a_module(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text(HEAD + "class A(Strategy): pass\n")
    load_strategy("json.py", tmp_path)
    assert json.loads("1") == 1
    assert __import__("json") is json


def test_parameters_take_the_type_of_their_default(tmp_path: Path) -> None:
    text = HEAD + "class A(Strategy):\n    params = {'a': Decimal(1), 'b': 2, 'c': 'x', 'd': 1.5}\n"
    strategy = load_strategy(write(tmp_path, text), tmp_path)
    assert typed_params(strategy, {"a": "0.5", "b": "7"}) == {"a": D("0.5"), "b": 7, "c": "x", "d": 1.5}
    for name, value, says in (
        ("z", "1", "has no parameter 'z'; it has: a, b, c, d"),
        ("a", "NaN", "expected a decimal"),
        ("b", "1.5", "expected a int"),
        ("d", "1", "is no Decimal, int or str"),
    ):
        with pytest.raises(ConfigError, match=says):
            typed_params(strategy, {name: value})


def test_the_strategies_of_the_guide_run_as_printed(tmp_path: Path) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "write-a-strategy.md").read_text()
    blocks = [b.split("```")[0] for b in guide.split("```python\n")[1:]]
    assert len(blocks) >= 2
    for block in blocks:
        world = World(load_strategy(write(tmp_path, block), tmp_path))
        world.start()
        for i in range(600):
            events = world.trade(D("0.0013") + D(abs((i % 120) - 60)) * D("0.000001"), NOW + i * 50 * MS)
            world.fill_all(events)
        assert any(isinstance(e, Intent) for _, e in world.out), block
        assert not world.host.halted
