"""Runs one strategy: events in, intents and signals out.  Pure.

- History (decisions, order events, positions of before) builds state and calls nothing.  `start` calls `on_start`;
  from then on each event updates the state first and calls its callback then.
- What a callback asks for is collected and given out when it returns.  If it raises, or asks for more than
  `MAX_OUTPUTS`, all of it is dropped and the strategy is halted: open orders are cancelled, a notice names the place,
  and no callback is called ever again.  State is still kept, so that orders that appear late are cancelled too.
- An order is open from its intent, or in history from its permit, until it is denied or an order event ends it.

The strategy is not trusted: it can at most ask.  What it asks for stands on its own subjects alone.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

from tallystick.runtime.bus.log import Log
from tallystick.runtime.bus.strategy import Number, OpenOrder, Strategy
from tallystick.schemas.errors import Malformed
from tallystick.schemas.event import MAX_CAUSES, Event, check_decimal
from tallystick.schemas.market import Quote, Trade
from tallystick.schemas.orders import (
    CancelIntent,
    Decision,
    Fill,
    Intent,
    OrderEvent,
    Position,
    Side,
    Signal,
    TimeInForce,
)
from tallystick.schemas.security import Notice
from tallystick.schemas.subjects import Subject, subject
from tallystick.schemas.trust import Instrument

# More than this from one event is a loop gone wild, not a decision.
MAX_OUTPUTS: Final = 1_000
MAX_OPEN: Final = 10_000
MAX_NOTICE: Final = 1_000
FINAL: Final = frozenset(("rejected", "void", "closed"))

Output = tuple[Subject, Event]
New = Callable[..., Any]


class _TooMuch(Exception):  # says what happened
    """A callback asked for more than `MAX_OUTPUTS`."""


def exact(value: Number, what: str) -> Decimal:
    """A number as an exact decimal.  Raises `Malformed`, for a float always."""
    if isinstance(value, float | bool):
        raise Malformed("NOT_EXACT", f"{what} is {value!r}: use Decimal or text, floats are not exact")
    try:
        number = Decimal(value)
    except (ArithmeticError, TypeError, ValueError) as exc:
        raise Malformed("DECIMAL", f"{what} is {str(value)[:48]!r}, expected a decimal") from exc
    check_decimal(number, what)
    return number


class Host:
    """The strategy, its state, and the `StrategyContext` that it sees."""

    version = 1
    tables: Mapping[str, Any] = {"positions": tuple[str, Decimal], "orders": tuple[bytes, str]}

    def __init__(
        self,
        strategy: Strategy,
        *,
        name: str,
        venue: str,
        symbols: Sequence[str],
        params: Mapping[str, Any],
        new: New,
        instrument: Callable[[str], Instrument],
        log: Log,
    ) -> None:
        """`new(type, causes=…, **fields)` makes an event of now; `instrument(symbol)` finds the signed record."""
        self.name = name
        self.venue = venue
        self.symbols = tuple(symbols)
        self.params = params
        self.log = log
        self.halted = ""
        self._strategy = strategy
        self._new = new
        self._instrument = instrument
        self._started = False
        self._now = 0
        self._cause: tuple[bytes, ...] = ()
        self._out: list[Output] = []
        self._positions: dict[str, Decimal] = {}
        self._open: dict[bytes, str] = {}
        # Of the open orders those with a stored permit, in its order.
        self._permitted: dict[bytes, str] = {}

    # -- events ---------------------------------------------------------------------------------

    def start(self, now: int) -> list[Output]:
        """History has ended: the strategy begins."""
        self._started = True
        self._now = now
        return self._call((), self._strategy.on_start)

    def on_event(self, where: Subject, event: Event) -> list[Output]:
        """A verified event; returns what to publish, in order."""
        self._now = max(self._now, event.ts)
        late = self._apply(where, event)
        if not self._started:
            return []
        if self.halted:
            return late
        strategy, causes = self._strategy, (event.id,)
        if isinstance(event, Trade):
            return self._call(causes, strategy.on_trade, where.symbol, event)
        if isinstance(event, Quote):
            return self._call(causes, strategy.on_quote, where.symbol, event)
        if isinstance(event, Decision):
            return self._call(causes, strategy.on_decision, where.symbol, event)
        if isinstance(event, OrderEvent):
            return self._call(causes, strategy.on_order, where.symbol, event)
        if isinstance(event, Fill):
            return self._call(causes, strategy.on_fill, where.symbol, event)
        if isinstance(event, Position):
            return self._call(causes, strategy.on_position, where.symbol, event)
        return []

    def _apply(self, where: Subject, event: Event) -> list[Output]:
        """Update the state; for a halted strategy: cancels for orders that turn up."""
        if isinstance(event, Position):
            self._positions[where.symbol] = event.qty
        elif isinstance(event, Decision):
            if event.verdict == "deny":
                # Where the gateway denied several intents at once, its causes name them all.
                for denied in (event.intent_id, *event.causes):
                    self._ended(denied)
            elif event.verdict == "permit":
                self._remember(self._open, event.intent_id, where.symbol)
                self._remember(self._permitted, event.intent_id, where.symbol)
                if self.halted:
                    return [self._cancel(event.intent_id, where.symbol, (event.id,))]
        elif isinstance(event, OrderEvent) and event.state in FINAL:
            self._ended(event.intent_id)
        return []

    def _ended(self, intent_id: bytes) -> None:
        self._open.pop(intent_id, None)
        self._permitted.pop(intent_id, None)

    @staticmethod
    def _remember(orders: dict[bytes, str], intent_id: bytes, symbol: str) -> None:
        orders[intent_id] = symbol
        if len(orders) > MAX_OPEN:
            del orders[next(iter(orders))]

    # -- what is kept from one start to the next (`runtime.bus.snapshots.Kept`) -------------------

    def settled(self, _now: int) -> bool:
        """Always: what the strategy asked for and was not permitted yet is left out."""
        return True

    def snapshot(self) -> Mapping[str, Iterable[Any]]:
        """The rows of `tables`: what the stream says, nothing of the strategy's own."""
        return {"positions": list(self._positions.items()), "orders": list(self._permitted.items())}

    def restore(self, tables: Mapping[str, list[Any]]) -> None:
        """Take the state from such rows; called before anything was applied."""
        self._positions.update(tables["positions"])
        self._open.update(tables["orders"])
        self._permitted.update(tables["orders"])

    def _call(self, causes: tuple[bytes, ...], callback: Callable[..., object], *args: object) -> list[Output]:
        self._cause, self._out = causes, []
        asked = dict(self._open)
        try:
            callback(self, *args)
            if len(self._out) > MAX_OUTPUTS:
                raise _TooMuch(f"more than {MAX_OUTPUTS} intents and signals from one event")
        except Exception as exc:  # noqa: BLE001  # user code may raise anything; whatever it is halts it
            self._open = asked
            self._halt(exc, callback.__name__)
        out, self._out = self._out, []
        return out

    def _halt(self, exc: Exception, callback: str) -> None:
        frame = traceback.extract_tb(exc.__traceback__)[-1]
        self.halted = f"{callback}: {type(exc).__name__} at {frame.filename}:{frame.lineno}: {exc}"[:MAX_NOTICE]
        self.log.error("strategy halted", callback=callback, error="".join(traceback.format_exception(exc)))
        notice = self._new(Notice, causes=self._cause, code="STRATEGY_HALTED", text=self.halted)
        self._out = [self._cancel(intent_id, symbol, self._cause) for intent_id, symbol in self._open.items()]
        self._out.append((subject("guard", component=f"strategy-{self.name}"), notice))

    def _give(self, kind: str, symbol: str, event: Event) -> None:
        if (
            len(self._out) <= MAX_OUTPUTS
        ):  # one beyond is kept, and `_call` sees it: user code could catch an error here
            self._out.append((subject(kind, strategy=self.name, venue=self.venue, symbol=symbol), event))

    def _cancel(self, intent_id: bytes, symbol: str, causes: tuple[bytes, ...]) -> Output:
        where = subject("order.intent", strategy=self.name, venue=self.venue, symbol=symbol)
        return where, self._new(CancelIntent, causes=causes, intent_id=intent_id)

    # -- the context that callbacks see -----------------------------------------------------------

    @property
    def now(self) -> int:
        """The time of the event that is being handled; it never goes back."""
        return self._now

    def buy(
        self,
        symbol: str,
        qty: Number,
        price: Number | None = None,
        tif: TimeInForce = "GTC",
        causes: Sequence[bytes] = (),
    ) -> bytes:
        """See `StrategyContext`."""
        return self._ask("buy", symbol, qty, price, tif, causes)

    def sell(
        self,
        symbol: str,
        qty: Number,
        price: Number | None = None,
        tif: TimeInForce = "GTC",
        causes: Sequence[bytes] = (),
    ) -> bytes:
        """See `StrategyContext`."""
        return self._ask("sell", symbol, qty, price, tif, causes)

    def _ask(
        self,
        side: Side,
        symbol: str,
        qty: Number,
        price: Number | None,
        tif: TimeInForce,
        causes: Sequence[bytes],
    ) -> bytes:
        if tif not in ("GTC", "IOC", "FOK"):
            raise Malformed("INTENT_TIF", f"tif is {str(tif)[:16]!r}, expected GTC, IOC or FOK")
        event: Intent = self._new(
            Intent,
            causes=self._causes(causes),
            side=side,
            type="market" if price is None else "limit",
            qty=exact(qty, "qty"),
            price=None if price is None else exact(price, "price"),
            tif=tif,
        )
        self._give("order.intent", symbol, event)
        self._remember(self._open, event.id, symbol)
        return event.id

    def cancel(self, intent_id: bytes) -> bool:
        """See `StrategyContext`."""
        symbol = self._open.get(intent_id)
        if symbol is None:
            return False
        self._give("order.intent", symbol, self._new(CancelIntent, causes=self._cause, intent_id=intent_id))
        return True

    def signal(self, symbol: str, name: str, value: Number, text: str = "") -> None:
        """See `StrategyContext`."""
        event = self._new(Signal, causes=self._cause, name=name, value=exact(value, "value"), text=text)
        self._give("signal", symbol, event)

    def _causes(self, more: Sequence[bytes]) -> tuple[bytes, ...]:
        return tuple(dict.fromkeys((*self._cause, *more)))[:MAX_CAUSES]

    def position(self, symbol: str) -> Decimal:
        """See `StrategyContext`."""
        return self._positions.get(symbol, Decimal(0))

    def open_orders(self, symbol: str | None = None) -> tuple[OpenOrder, ...]:
        """See `StrategyContext`."""
        return tuple(OpenOrder(i, s) for i, s in self._open.items() if symbol in (None, s))

    def instrument(self, symbol: str) -> Instrument:
        """See `StrategyContext`."""
        return self._instrument(symbol)
