"""What each strategy has open and holds, and what of it is reserved; all state explicit, the clock an argument.

- An order is reserved in full when its permit is made.  Fills move it from reservation to position;
  it is released by a final order event (after the fills that this event reports), or when its permit
  expired `PERMIT_GRACE_NS` ago and no submission of it was ever stored: execution sends nothing before
  its `submitting` event is durable.
- A fill can come seconds before execution says that its order has ended.  Until then its strategy may ask to cancel it:
  it cannot know better, and execution finds out at once.
- A position is the sum of the fills that a permit backs: of its instrument and side, within its quantity.  Whatever
  else is said of fills, orders and positions is without effect, and comes back as an alarm: a portfolio or an
  execution in other hands could deny a strategy's orders for ever by it.
- Where a position is wrong all the same, the operator's correction says what it is.
- Amounts are kept per strategy and *per quote asset*; amounts of different assets are never added.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from decimal import Decimal
from typing import Any, Final, Literal

import msgspec

from tallystick.components.gateway.risk.amounts import ZERO
from tallystick.runtime.bus.snapshots import keep_newest
from tallystick.schemas.amounts import EXACT
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.orders import Fill, OrderEvent, Position, Side, moved
from tallystick.schemas.subjects import Subject
from tallystick.schemas.trust import Correction

# Custody never signs after expiry, so a submission stored later than this cannot have reached a venue.
PERMIT_GRACE_NS: Final = 10 * SECOND
# Orders remembered that are filled wholly while execution has not said yet that they have ended.
FILLED_REMEMBERED: Final = 4096
# Fills remembered per instrument against a second publication of the same trade.
FILLS_REMEMBERED: Final = 4096
# Permits in one row of a snapshot.
RUN: Final = 20
# Permits remembered beyond their order's end, for fills that come late.
PERMITS_REMEMBERED: Final = 200_000


class Alarm(msgspec.Struct, frozen=True):
    """What people must hear of."""

    code: str
    text: str


class OpenOrder(msgspec.Struct, kw_only=True):
    """A permitted order until it is final; owned and changed by `Exposure` alone.

    `price` is what a unit is reserved at; None (a market order found in history) reserves `whole`.
    """

    intent_id: bytes
    strategy: str
    venue: str
    symbol: str
    quote: str
    side: Side
    qty: Decimal
    price: Decimal | None
    whole: Decimal
    expires_at: int
    filled: Decimal = ZERO
    executed: Decimal | None = None  # once final: what the venue executed; released when the fills reach it

    @property
    def remaining(self) -> Decimal:
        """Base quantity that may still become a position."""
        goal = self.qty if self.executed is None else self.executed
        return max(ZERO, EXACT.subtract(goal, self.filled))

    @property
    def notional(self) -> Decimal:
        """Quote amount that is still reserved."""
        return self.whole if self.price is None else EXACT.multiply(self.price, self.remaining)


class _Permitted(msgspec.Struct, frozen=True, gc=False):
    """What a permit still lets be filled."""

    where: tuple[str, str, str]  # venue, symbol, side
    left: Decimal


class _Holding(msgspec.Struct):
    """A position: signed base quantity, the number of fills in it, and the last price seen for it."""

    qty: Decimal = ZERO
    fills: int = 0
    mark: Decimal | None = None


# What a snapshot holds, table by table; the totals follow from the orders.
Tables = Mapping[str, Iterable[Any]]
TABLES: Final[Mapping[str, Any]] = {
    "orders": tuple[OpenOrder, Literal["unsubmitted", "open", "filled"]],
    # What many have in common stands once: strategy, (venue, symbol, side), then (intent id, left) of each.
    "permitted": tuple[str, tuple[str, str, str], list[tuple[bytes, Decimal]]],
    "holdings": tuple[str, tuple[str, str], str, _Holding],
    "trades": tuple[tuple[str, str], int],
    "corrected": tuple[tuple[str, str, str], int],
}


def _runs(rows: Iterable[tuple[tuple[str, bytes], _Permitted]]) -> Iterator[Any]:
    """Neighbours of one strategy and place in one row, in order, at most `RUN` of them."""
    for (strategy, where), run in itertools.groupby(rows, key=lambda row: (row[0][0], row[1].where)):
        while some := [(key[1], permitted.left) for key, permitted in itertools.islice(run, RUN)]:
            yield strategy, where, some


class Exposure:
    """Open orders and positions of every strategy, from decisions, order events, fills and positions.

    Totals are kept as orders change, so that a decision costs the same however many are open.
    """

    __slots__ = (
        "_corrected",
        "_filled",
        "_holdings",
        "_notionals",
        "_orders",
        "_permitted",
        "_quantities",
        "_trades",
        "_unsubmitted",
    )

    def __init__(self) -> None:
        self._orders: dict[tuple[str, bytes], OpenOrder] = {}
        self._unsubmitted: OrderedDict[tuple[str, bytes], OpenOrder] = OrderedDict()
        self._filled: OrderedDict[tuple[str, bytes], OpenOrder] = OrderedDict()
        self._permitted: dict[tuple[str, bytes], _Permitted] = {}
        # when the correction of a position was issued that counted last
        self._corrected: dict[tuple[str, str, str], int] = {}
        self._notionals: dict[tuple[str, str], Decimal] = {}
        self._quantities: dict[tuple[str, str, str, str], Decimal] = {}
        self._holdings: dict[str, dict[tuple[str, str], tuple[str, _Holding]]] = {}
        self._trades: dict[tuple[str, str], OrderedDict[int, None]] = {}

    def reserve(self, order: OpenOrder) -> None:
        """Count a permitted order; one that is known already is left as it is."""
        key = (order.strategy, order.intent_id)
        if key not in self._orders:
            self._orders[key] = self._unsubmitted[key] = order
            self._count(order, EXACT.add)
            if key not in self._permitted:
                self._permitted[key] = _Permitted((order.venue, order.symbol, order.side), order.qty)
                keep_newest(self._permitted, PERMITS_REMEMBERED)

    def order(self, strategy: str, intent_id: bytes) -> OpenOrder | None:
        """The open order of `strategy` with this intent id; not to be changed."""
        return self._orders.get((strategy, intent_id))

    def may_end(self, strategy: str, intent_id: bytes) -> OpenOrder | None:
        """An order that execution has not called ended yet, open or filled; not to be changed."""
        return self.order(strategy, intent_id) or self._filled.get((strategy, intent_id))

    def apply_event(self, strategy: str, event: OrderEvent) -> Alarm | None:
        """Apply what execution says about an order; an alarm for one that was never permitted."""
        if event.state in {"rejected", "void", "closed"}:
            self._filled.pop((strategy, event.intent_id), None)
        order = self.order(strategy, event.intent_id)
        if order is None:
            if (strategy, event.intent_id) in self._permitted:
                return None  # it has ended
            text = f"execution says {event.state} of order {event.intent_id.hex()} of {strategy}, which no permit backs"
            return Alarm("ORDER_WITHOUT_PERMIT", text)
        if event.state in {"rejected", "void"}:
            self._count(order, EXACT.subtract)
            self._drop(order)
        elif event.state == "closed":
            # Unknown executed quantity: all of it may still come as fills.
            executed = order.qty if event.executed is None else min(event.executed, order.qty)
            self._change(order, executed=executed)
        else:
            self._change(order)
        return None

    def apply_fill(self, subject: Subject, quote: str, fill: Fill) -> Alarm | None:
        """Move a fill from reservation to position, once; an alarm for one that no permit backs."""
        where = f"trade {fill.trade_id} of {subject.symbol} at {subject.venue} for {subject.strategy}"
        permitted = self._permit(subject.strategy, fill.intent_id)
        if permitted is None or permitted.where != (subject.venue, subject.symbol, fill.side):
            return Alarm("FILL_WITHOUT_PERMIT", f"{where}: {fill.side} {fill.qty} and no permit: not counted")
        trades = self._trades.setdefault((subject.venue, subject.symbol), OrderedDict())
        if fill.trade_id in trades:
            return None
        if fill.qty > permitted.left:
            return Alarm(
                "FILL_WITHOUT_PERMIT", f"{where}: {fill.qty}, its permit has {permitted.left} left: not counted"
            )
        # One zero for all that is used up: they are many.
        left = EXACT.subtract(permitted.left, fill.qty) or ZERO
        if (subject.strategy, fill.intent_id) in self._permitted:
            self._permitted[subject.strategy, fill.intent_id] = _Permitted(permitted.where, left)
        trades[fill.trade_id] = None
        if len(trades) > FILLS_REMEMBERED:
            trades.popitem(last=False)
        holding = self._holding(subject, quote)
        base = subject.symbol.partition("/")[0]
        change = moved(fill.side, fill.qty, base, fill.commission, fill.commission_asset)
        holding.qty = EXACT.add(holding.qty, change)
        holding.fills += 1
        holding.mark = fill.price
        order = self.order(subject.strategy, fill.intent_id)
        if order is not None:
            self._change(order, filled=EXACT.add(order.filled, fill.qty))
            if order.remaining == 0 and order.executed is None:
                self._filled[order.strategy, order.intent_id] = order
                if len(self._filled) > FILLED_REMEMBERED:
                    self._filled.popitem(last=False)
        return None

    def apply_position(self, subject: Subject, position: Position) -> Alarm | None:
        """Compare the portfolio's statement with what was counted here: an alarm where they cannot both be right.

        One of fewer fills than were seen here is on its way; it is never adopted.
        """
        found = self._holdings.get(subject.strategy, {}).get((subject.venue, subject.symbol))
        qty, fills = (ZERO, 0) if found is None else (found[1].qty, found[1].fills)
        if position.fills < fills or (position.fills, position.qty) == (fills, qty):
            return None
        ours = f"{subject.strategy} holds {qty} {subject.symbol} at {subject.venue} after {fills} fills with permits"
        return Alarm("POSITION_DIFFERS", f"{ours}, the portfolio says {position.qty} after {position.fills}")

    def correct(self, subject: Subject, quote: str, correction: Correction) -> Alarm | None:
        """Apply the operator's word; an alarm where it does not fit what is counted here."""
        if correction.order:
            self._filled.pop((subject.strategy, correction.order), None)
            order = self.order(subject.strategy, correction.order)
            if order is not None:
                self._change(order, executed=min(correction.done, order.qty))
            return None
        key = (subject.strategy, subject.venue, subject.symbol)
        holding = self._holding(subject, quote)
        if correction.issued <= self._corrected.get(key, -1) or holding.qty not in (
            correction.before,
            correction.after,
        ):
            text = f"{subject.text}: {correction.was} to {correction.position}, issued {correction.issued}"
            return Alarm("CORRECTION_PASSED_OVER", f"{text}: the position counted here is {holding.qty}")
        self._corrected[key] = correction.issued
        holding.qty = correction.after
        return None

    def expire(self, now: int) -> None:
        """Release permits that expired without a stored submission (see the module docstring)."""
        while self._unsubmitted:
            order = next(iter(self._unsubmitted.values()))
            if now <= order.expires_at + PERMIT_GRACE_NS:
                return
            self._count(order, EXACT.subtract)
            self._drop(order)

    def snapshot(self, left_out: Container[tuple[str, bytes]]) -> Tables:
        """The rows of `TABLES`, but for the orders and permits of these (strategy, intent id)."""
        orders = [
            (msgspec.structs.replace(order), "unsubmitted" if key in self._unsubmitted else "open")
            for key, order in self._orders.items()
            if key not in left_out
        ]
        orders += [(msgspec.structs.replace(order), "filled") for order in self._filled.values()]
        holdings = [
            (strategy, where, quote, msgspec.structs.replace(holding))
            for strategy, own in self._holdings.items()
            for where, (quote, holding) in own.items()
        ]
        trades = [(where, list(known)) for where, known in self._trades.items()]
        permitted = self._permitted.copy()
        return {
            "orders": orders,
            "permitted": _runs(row for row in permitted.items() if row[0] not in left_out),
            "holdings": holdings,
            "trades": ((where, trade) for where, known in trades for trade in known),
            "corrected": list(self._corrected.items()),
        }

    def restore(self, tables: Tables) -> None:
        """Take the state from such rows; called before anything was applied."""
        for order, place in tables["orders"]:
            key = (order.strategy, order.intent_id)
            if place == "filled":
                self._filled[key] = order
                continue
            self._orders[key] = order
            self._count(order, EXACT.add)
            if place == "unsubmitted":
                self._unsubmitted[key] = order
        names: dict[str, str] = {}
        places: dict[tuple[str, str, str], tuple[str, str, str]] = {}
        for strategy, where, permits in tables["permitted"]:
            name, place = names.setdefault(strategy, strategy), places.setdefault(where, where)
            for intent_id, left in permits:
                self._permitted[name, intent_id] = _Permitted(place, left or ZERO)
        for strategy, where, quote, holding in tables["holdings"]:
            self._holdings.setdefault(strategy, {})[where] = (quote, holding)
        for where, trade in tables["trades"]:
            self._trades.setdefault(where, OrderedDict())[trade] = None
        self._corrected.update(tables["corrected"])

    def open_notional(self, strategy: str, quote: str) -> Decimal:
        """What the open orders of `strategy` in `quote` still reserve."""
        return self._notionals.get((strategy, quote), ZERO)

    def open_qty(self, strategy: str, venue: str, symbol: str, side: str) -> Decimal:
        """Base quantity of the strategy's open orders on one side of an instrument."""
        return self._quantities.get((strategy, venue, symbol, side), ZERO)

    def position(self, strategy: str, venue: str, symbol: str) -> Decimal:
        """Signed base quantity."""
        found = self._holdings.get(strategy, {}).get((venue, symbol))
        return ZERO if found is None else found[1].qty

    def positions_notional(self, strategy: str, quote: str, last: Mapping[tuple[str, str], Decimal]) -> Decimal | None:
        """Sum of absolute positions in `quote` at the last trades; None where one has no known price."""
        total = ZERO
        for key, (asset, holding) in self._holdings.get(strategy, {}).items():
            if asset == quote and holding.qty:
                price = last.get(key, holding.mark)
                if price is None:
                    return None
                total = EXACT.add(total, EXACT.multiply(EXACT.abs(holding.qty), price))
        return total

    def _permit(self, strategy: str, intent_id: bytes) -> _Permitted | None:
        found = self._permitted.get((strategy, intent_id))
        order = self._orders.get((strategy, intent_id))
        if found is None and order is not None:  # open for so long that its permit was forgotten
            return _Permitted((order.venue, order.symbol, order.side), order.remaining)
        return found

    def _holding(self, subject: Subject, quote: str) -> _Holding:
        own = self._holdings.setdefault(subject.strategy, {})
        return own.setdefault((subject.venue, subject.symbol), (quote, _Holding()))[1]

    def _change(self, order: OpenOrder, filled: Decimal | None = None, executed: Decimal | None = None) -> None:
        """Change an order that was submitted, as now is known; it is dropped once nothing of it remains."""
        self._count(order, EXACT.subtract)
        self._unsubmitted.pop((order.strategy, order.intent_id), None)
        if filled is not None:
            order.filled = filled
        if executed is not None:
            order.executed = executed
        if order.remaining == 0:
            self._drop(order)
        else:
            self._count(order, EXACT.add)

    def _drop(self, order: OpenOrder) -> None:
        key = (order.strategy, order.intent_id)
        self._orders.pop(key, None)
        self._unsubmitted.pop(key, None)

    def _count(self, order: OpenOrder, how: Callable[[Decimal, Decimal], Decimal]) -> None:
        """Add an order to the totals of its strategy, or subtract it; totals of zero take no memory."""
        quote = (order.strategy, order.quote)
        side = (order.strategy, order.venue, order.symbol, order.side)
        self._notionals[quote] = how(self._notionals.get(quote, ZERO), order.notional)
        self._quantities[side] = how(self._quantities.get(side, ZERO), order.remaining)
        if not self._notionals[quote]:
            del self._notionals[quote]
        if not self._quantities[side]:
            del self._quantities[side]
