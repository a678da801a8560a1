"""Positions from fills, and which permit each fill belongs to.  Pure.

- A fill is identified by (venue, symbol, trade id) and counts once, whether it comes by the user stream, by
  `myTrades` after a reconnect, or from our own history at start.
- A fill belongs to the permit with its client order id, if that permit is for its venue, symbol and side, allows its
  price, and still has its quantity left.  What no permit covers is booked under the strategy `unknown` and reported
  (`FILL_WITHOUT_PERMIT`): somebody traded with our account.  The breaker trips on it.
- The venue's report can overtake the gateway's decision by a moment, so a fill without a permit waits for `GRACE_NS`
  before it counts as unknown.  Everything of one instrument that comes later waits behind it: order is kept.
- A position is signed base quantity that can be sold, the average price of what is open, profit realized in quote units
  before fees, and the fees.  Commission in the base lessens the quantity, as if that much less had been bought or more
  sold, and counts as a fee at the fill's price; so profit after fees is what came in and went out, to the last unit.
  Commission in a third asset is kept in its own units.
- Sums and products are exact; only a division rounds, and what is realized with it, and a fee in the base: to 18 places,
  half to even.  Crossing zero closes the position at its average price and opens the rest at the fill's.
- A permit is used up once it is filled wholly, or as far as execution says that its closed order was; of an order
  that never reached the venue at once.  The newest `MAX_SPENT` of those are remembered: what fills one of them again was
  sent a second time, and waits for nothing.  Trade ids are forgotten beyond `REMEMBERED` per instrument: an id older than all
  that are remembered is refused (`FILL_TOO_OLD`), never counted again.

The venue is trusted to say what was filled; nothing else can be.
"""

from __future__ import annotations

import decimal
import itertools
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any, Final, Literal

import msgspec

from tallystick.runtime.bus.snapshots import keep_newest
from tallystick.schemas.amounts import EXACT
from tallystick.schemas.errors import Malformed
from tallystick.schemas.event import Event, check_decimal
from tallystick.schemas.orders import Decision, Fee, Fill, OrderEvent, Position, VenueOrder, moved
from tallystick.schemas.security import Notice
from tallystick.schemas.subjects import Subject, subject
from tallystick.schemas.trust import Correction
from tallystick.venues import FillReport

UNKNOWN: Final = "unknown"
GRACE_NS: Final = 2_000_000_000
REMEMBERED: Final = 100_000
MAX_PERMITS: Final = 200_000
# Far more than are signed within the second in which a request can be sent again.
MAX_SPENT: Final = 10_000
# More than one flush holds.
OVERLAP: Final = 1_000
# For a snapshot fills wait until those before them are stored, at most so long, and not again for a while.
HOLD_NS: Final = 2_000_000_000
HOLD_AGAIN_NS: Final = 60_000_000_000
# Trade ids in one row of a snapshot.
_ROW: Final = 100
# Waiting fills without a permit: beyond it they count as unknown at once.
MAX_WAITING: Final = 10_000

_ROUND = decimal.Context(prec=120, rounding=decimal.ROUND_HALF_EVEN, traps=[decimal.InvalidOperation, decimal.Overflow])
_PLACES = Decimal(1).scaleb(-18)
_ZERO = Decimal(0)

Output = tuple[Subject, Event]
# Strategy (or venue), venue (or symbol), symbol (or the venue's order id); venue and symbol.
_Key = tuple[str, str, str]
_Where = tuple[str, str]
New = Callable[..., Any]


class Holding(msgspec.Struct, frozen=True):
    """A position; see the module docstring for units and rounding."""

    qty: Decimal = _ZERO
    average_price: Decimal = _ZERO
    realized: Decimal = _ZERO
    fills: int = 0
    fees: Decimal = _ZERO
    other_fees: tuple[Fee, ...] = ()

    def after(self, symbol: str, fill: Fill | FillReport) -> Holding:
        """The position after a fill of `symbol`.  Raises `Malformed` where a number no longer fits DECIMAL(38,18)."""
        base, _, quote = symbol.partition("/")
        with decimal.localcontext(EXACT):
            signed = moved(fill.side, fill.qty, base, fill.commission, fill.commission_asset)
            fees, others = self.fees, {fee.asset: fee.amount for fee in self.other_fees}
            if fill.commission_asset == base:
                fees += _rounded(fill.commission * fill.price)
            elif fill.commission_asset == quote:
                fees += fill.commission
            elif fill.commission:
                others[fill.commission_asset] = others.get(fill.commission_asset, _ZERO) + fill.commission
            total, average, profit = self._moved(signed, fill.price)
            realized = self.realized + profit
        for value, what in (
            (total, "position"),
            (average, "average price"),
            (realized, "realized profit"),
            (fees, "fees"),
        ):
            check_decimal(value, what)
        paid = tuple(Fee(asset, others[asset]) for asset in sorted(others))
        return Holding(total, average, realized, self.fills + 1, fees, paid)

    def _moved(self, signed: Decimal, price: Decimal) -> tuple[Decimal, Decimal, Decimal]:
        """Quantity, average price, and the profit of what `signed` closes.  In the exact context."""
        total, average = self.qty + signed, self.average_price
        if not signed:
            return total, average, _ZERO
        if self.qty * signed >= 0:
            cost = abs(self.qty) * average + abs(signed) * price
            return total, _rounded(_ROUND.divide(cost, abs(total))), _ZERO
        closed = min(abs(signed), abs(self.qty))
        profit = _rounded((price - average) * closed)
        if not total:
            total = average = _ZERO
        elif total * self.qty < 0:
            average = price
        return total, average, profit if self.qty > 0 else -profit


def _rounded(value: Decimal) -> Decimal:
    """`value` to 18 places without trailing zeros; adding zero turns `1E+2` back into `100` and drops the sign of 0."""
    return value.quantize(_PLACES, context=_ROUND).normalize(_ROUND) + _ZERO


class _Permitted(msgspec.Struct):
    strategy: str
    venue: str
    symbol: str
    intent_id: bytes
    decision_id: bytes
    order: VenueOrder
    left: Decimal
    price: Decimal | None
    quantity: Decimal


def _permitted(where: Subject, decision: Decision, order: VenueOrder) -> _Permitted:
    quantity, price = order.amounts()
    return _Permitted(
        *(where.strategy, where.venue, where.symbol, decision.intent_id, decision.id),
        *(order, quantity, price, quantity),
    )


class _Ids:
    """The trade ids of one instrument, the newest `REMEMBERED` of them."""

    __slots__ = ("floor", "seen")

    def __init__(self) -> None:
        self.seen: OrderedDict[int, None] = OrderedDict()
        self.floor = -1

    def add(self, trade_id: int) -> Literal["new", "seen", "old"]:
        if trade_id in self.seen:
            return "seen"
        if trade_id <= self.floor:
            return "old"
        self.seen[trade_id] = None
        if len(self.seen) > REMEMBERED:
            self.floor = max(self.floor, self.seen.popitem(last=False)[0])
        return "new"


class Book:
    """All positions.  Methods return what to publish, in order; the state has changed already.

    It is kept in snapshots (`runtime.bus.snapshots.Kept`) when it is what the stream says (`settled`).
    """

    version = 2
    tables: Mapping[str, Any] = {
        "holdings": tuple[_Key, Holding],
        "stated": tuple[_Key, tuple[int, Decimal]],
        "corrected": tuple[_Key, int],
        "permits": _Permitted,
        "spent": tuple[_Where, Decimal],
        "names": tuple[_Key, str],
        "first": tuple[_Where, int],
        "floors": tuple[_Where, int],
        "trades": tuple[_Where, list[int]],
    }

    def __init__(self, new: New) -> None:
        """`new(type, causes=…, **fields)` makes an event of now."""
        self._new = new
        self._holdings: dict[tuple[str, str, str], Holding] = {}
        self._permits: OrderedDict[tuple[str, str], _Permitted] = OrderedDict()
        # (venue, client order id) of permits that are used up -> what they were for
        self._spent: dict[tuple[str, str], Decimal] = {}
        self._client_ids: dict[tuple[str, str, str], str] = {}
        self._ids: dict[tuple[str, str], _Ids] = {}
        self._waiting: dict[tuple[str, str], deque[tuple[FillReport, int]]] = {}
        self._first_permit: dict[tuple[str, str], int] = {}
        self._corrected: dict[tuple[str, str, str], int] = {}
        self._stated: dict[tuple[str, str, str], tuple[int, Decimal]] = {}
        # Fills and positions that we published and have not read back.
        self._unstored: set[bytes] = set()
        self._held_at: int | None = None

    def position(self, strategy: str, venue: str, symbol: str) -> Holding:
        """A strategy's position in an instrument; flat where there was no fill."""
        return self._holdings.get((strategy, venue, symbol), Holding())

    def ask_from(self, venue: str, symbol: str) -> int:
        """The trade id from which to ask the venue for what may be missing; -1: from the first permit on.

        It lies `OVERLAP` trades back: if we crashed in the middle of a flush, of two fills the later one alone may
        have been stored, and a stream may have kept one back.  Where fewer are known, one may be missing before them.
        """
        ids = self._ids.get((venue, symbol))
        if ids is None or len(ids.seen) < OVERLAP:
            return -1
        return min(itertools.islice(reversed(ids.seen), OVERLAP))

    def first_permit(self, venue: str, symbol: str) -> int | None:
        """When (Unix ns) the oldest known permit for the instrument was given: no fill of ours can be older."""
        return self._first_permit.get((venue, symbol))

    def on_decision(self, where: Subject, decision: Decision, now: int) -> list[Output]:
        """A verified decision; fills that waited for it are applied."""
        if decision.permit is None:
            return []
        order = decision.permit.order
        self._first_permit.setdefault((where.venue, where.symbol), decision.ts)
        self._permits[where.venue, order.client_order_id] = _permitted(where, decision, order)
        if len(self._permits) > MAX_PERMITS:
            self._permits.popitem(last=False)
        return self._release(where.venue, where.symbol, now)

    def booked(self, where: Subject, fill: Fill) -> None:
        """A fill of our own history: applied as it was booked then."""
        ids = self._ids.setdefault((where.venue, where.symbol), _Ids())
        if ids.add(fill.trade_id) != "new":
            return
        key = (where.strategy, where.venue, where.symbol)
        self._holdings[key] = self._holdings.get(key, Holding()).after(where.symbol, fill)
        self.on_order(where.venue, where.symbol, fill.venue_order_id, fill.client_order_id)
        permit = self._permits.get((where.venue, fill.client_order_id))
        if permit is not None and fill.intent_id == permit.intent_id:
            self._use(permit, fill.client_order_id, fill.qty)

    def stated(self, where: Subject, position: Position) -> None:
        """A position of our own history."""
        self._stated[where.strategy, where.venue, where.symbol] = (position.fills, position.qty)

    def correct(self, where: Subject, correction: Correction) -> list[Output]:
        """The operator says what a position is, or how an order ended; what is stated then, in order."""
        if correction.order:
            for (_, client_order_id), permit in list(self._permits.items()):
                if permit.intent_id == correction.order and permit.strategy == where.strategy:
                    filled = EXACT.subtract(permit.quantity, permit.left)
                    still = max(_ZERO, EXACT.subtract(correction.done, filled))
                    self._use(permit, client_order_id, EXACT.subtract(permit.left, min(still, permit.left)))
            return []
        key = (where.strategy, where.venue, where.symbol)
        held = self._holdings.get(key, Holding())
        if correction.issued <= self._corrected.get(key, -1) or held.qty not in (correction.before, correction.after):
            return []  # the gateway tells of what does not fit
        self._corrected[key] = correction.issued
        if held.qty != correction.after:
            average = held.average_price if correction.after else _ZERO
            self._holdings[key] = msgspec.structs.replace(held, qty=correction.after, average_price=average)
            self._stated.pop(key, None)
        return [self._position(key, self._holdings[key], ())] if key in self._holdings else []

    def published(self, event: Event) -> None:
        """One of the events that were returned is on its way to the stream."""
        if isinstance(event, Fill | Position):
            self._unstored.add(event.id)

    def stored(self, where: Subject, event: Fill | Position) -> None:
        """A fill or position of our own was read back."""
        self._unstored.discard(event.id)
        if isinstance(event, Position):
            self.stated(where, event)

    def resume(self) -> list[Output]:
        """History has ended: positions whose fill was stored, but not they, before a crash."""
        outputs: list[Output] = []
        for key, holding in self._holdings.items():
            if self._stated.get(key, (0, _ZERO)) != (holding.fills, holding.qty):
                outputs.append(self._position(key, holding, ()))
        return outputs

    def on_order_event(self, where: Subject, event: OrderEvent) -> None:
        """Execution's word on an order: names it, and says how much of its permit can still be filled."""
        self.on_order(where.venue, where.symbol, event.venue_order_id, event.client_order_id)
        permit = self._permits.get((where.venue, event.client_order_id))
        if permit is None or permit.intent_id != event.intent_id:
            return
        if event.state in ("rejected", "void"):
            self._use(permit, event.client_order_id, permit.left)
        elif event.state == "closed" and event.executed is not None:
            # What was executed and not reported yet may still come; the permit never grows by it.
            filled = EXACT.subtract(permit.quantity, permit.left)
            still = EXACT.subtract(event.executed, filled)
            self._use(permit, event.client_order_id, EXACT.subtract(permit.left, min(still, permit.left)))

    def on_order(self, venue: str, symbol: str, venue_order_id: str, client_order_id: str) -> None:
        """The venue or execution named an order by both its ids."""
        if venue_order_id and client_order_id:
            self._client_ids[venue, symbol, venue_order_id] = client_order_id
            keep_newest(self._client_ids, MAX_PERMITS)

    def client_order_id(self, venue: str, symbol: str, venue_order_id: str) -> str:
        """The client order id of an order; "" if it was not told yet."""
        return self._client_ids.get((venue, symbol, venue_order_id), "")

    def on_report(self, venue: str, report: FillReport, now: int) -> list[Output]:
        """A fill reported by the venue; its symbol is the unified one."""
        key = (venue, report.symbol)
        waiting = self._waiting.setdefault(key, deque())
        verdict = self._ids.setdefault(key, _Ids()).add(report.trade_id)
        if verdict == "old":
            text = f"trade {report.trade_id} of {report.symbol} at {venue} is older than all remembered"
            return [self._notice("FILL_TOO_OLD", text)]
        if verdict == "seen":
            return []
        self.on_order(venue, report.symbol, report.venue_order_id, report.client_order_id)
        waiting.append((report, now))
        return self._release(*key, now)

    def on_time(self, now: int) -> list[Output]:
        """Time passed: fills that waited long enough for a permit are booked under `unknown`."""
        return [output for venue, symbol in list(self._waiting) for output in self._release(venue, symbol, now)]

    # -- what is kept from one start to the next -----------------------------------------------------

    def settled(self, now: int) -> bool:
        """Whether all that was counted is stored; if not, what comes waits a moment until it is."""
        if not self._unstored:
            return True
        if self._held_at is None or abs(now - self._held_at) > HOLD_AGAIN_NS:
            self._held_at = now
        return False

    def snapshot(self) -> Mapping[str, Iterable[Any]]:
        """The rows of `tables`: without the fills that wait for their permit, which the venue is asked for again.

        Both ids of an order are a fact, whether execution named them or the venue did.
        """
        self._held_at = None
        trades = []
        for where, ids in self._ids.items():
            waiting = {report.trade_id for report, _ in self._waiting.get(where, ())}
            trades.append((where, [trade for trade in ids.seen if trade not in waiting]))
        return {
            "holdings": list(self._holdings.items()),
            "stated": list(self._stated.items()),
            "corrected": list(self._corrected.items()),
            "permits": [msgspec.structs.replace(permit) for permit in self._permits.values()],
            "spent": list(self._spent.items()),
            "names": self._client_ids.copy().items(),
            "first": list(self._first_permit.items()),
            "floors": [(where, ids.floor) for where, ids in self._ids.items() if ids.floor >= 0],
            "trades": ((w, known[i : i + _ROW]) for w, known in trades for i in range(0, len(known), _ROW)),
        }

    def restore(self, tables: Mapping[str, list[Any]]) -> None:
        """Take the state from such rows; called before anything was applied."""
        self._holdings.update(tables["holdings"])
        self._stated.update(tables["stated"])
        self._corrected.update(tables["corrected"])
        self._permits.update(((p.venue, p.order.client_order_id), p) for p in tables["permits"])
        self._spent.update(tables["spent"])
        self._client_ids.update(tables["names"])
        self._first_permit.update(tables["first"])
        for where, floor in tables["floors"]:
            self._ids.setdefault(where, _Ids()).floor = floor
        for where, trades in tables["trades"]:
            self._ids.setdefault(where, _Ids()).seen.update(dict.fromkeys(trades))

    def _release(self, venue: str, symbol: str, now: int) -> list[Output]:
        waiting = self._waiting.get((venue, symbol))
        outputs: list[Output] = []
        if self._unstored and self._held_at is not None and abs(now - self._held_at) < HOLD_NS:
            return []
        while waiting:
            report, since = waiting[0]
            permit, client_order_id, why = self._permit(venue, report)
            if permit is None and why == "" and now - since < GRACE_NS and len(waiting) <= MAX_WAITING:
                break
            waiting.popleft()
            outputs += self._apply(venue, report, permit, client_order_id, why)
        return outputs

    def _permit(self, venue: str, report: FillReport) -> tuple[_Permitted | None, str, str]:
        """The permit that covers the report, its client order id, and why a permit found does not cover it."""
        client_order_id = report.client_order_id or self.client_order_id(venue, report.symbol, report.venue_order_id)
        permit = self._permits.get((venue, client_order_id)) if client_order_id else None
        if permit is None:
            whole = self._spent.get((venue, client_order_id))
            why = "" if whole is None else f"the permit for {whole} is used up"
            return None, client_order_id, why
        why = ""
        if permit.symbol != report.symbol:
            why = f"permit is for {permit.symbol}"
        elif permit.order.side.lower() != report.side:
            why = f"permit is to {permit.order.side.lower()}"
        elif report.qty > permit.left:
            why = f"permit has {permit.left} left"
        elif permit.price is not None and (
            report.price > permit.price if report.side == "buy" else report.price < permit.price
        ):
            why = f"permit allows {permit.order.price}"
        return (None if why else permit), client_order_id, why

    def _apply(
        self, venue: str, report: FillReport, permit: _Permitted | None, client_order_id: str, why: str
    ) -> list[Output]:
        strategy = permit.strategy if permit else UNKNOWN
        key = (strategy, venue, report.symbol)
        try:
            after = self._holdings.get(key, Holding()).after(report.symbol, report)
        except Malformed as exc:
            return [self._notice("POSITION_RANGE", f"trade {report.trade_id} of {report.symbol}: {exc.text}")]
        self._holdings[key] = after
        if permit:
            self._use(permit, client_order_id, report.qty)
        fill = self._new(
            Fill,
            causes=(permit.decision_id,) if permit else (),
            intent_id=permit.intent_id if permit else b"",
            client_order_id=client_order_id,
            venue_order_id=report.venue_order_id,
            trade_id=report.trade_id,
            side=report.side,
            price=report.price,
            qty=report.qty,
            commission=report.commission,
            commission_asset=report.commission_asset,
            maker=report.maker,
            time=report.time,
        )
        # A crash after this fill is stored and before its position is: `resume` states the position again.
        # A crash before: the venue is asked for the fill again (`ask_from`).
        outputs: list[Output] = [
            (subject("fill", strategy=strategy, venue=venue, symbol=report.symbol), fill),
            self._position(key, after, (fill.id,)),
        ]
        if not permit:
            text = (
                f"trade {report.trade_id} of {report.symbol} at {venue}: {report.side} {report.qty} at "
                f"{report.price}, order {report.venue_order_id} ({client_order_id[:48] or 'no client order id'})"
            )
            outputs.append(self._notice("FILL_WITHOUT_PERMIT", f"{text}: {why or 'no permit'}", (fill.id,)))
        return outputs

    def _position(self, key: tuple[str, str, str], holding: Holding, causes: tuple[bytes, ...]) -> Output:
        strategy, venue, symbol = key
        return subject("position", strategy=strategy, venue=venue, symbol=symbol), self._new(
            Position,
            causes=causes,
            qty=holding.qty,
            average_price=holding.average_price,
            realized=holding.realized,
            fills=holding.fills,
            fees=holding.fees,
            other_fees=holding.other_fees,
        )

    def _notice(self, code: str, text: str, causes: tuple[bytes, ...] = ()) -> Output:
        return subject("guard", component="portfolio"), self._new(Notice, causes=causes, code=code, text=text)

    def _use(self, permit: _Permitted, client_order_id: str, qty: Decimal) -> None:
        permit.left = EXACT.subtract(permit.left, qty)
        if permit.left <= 0:
            del self._permits[permit.venue, client_order_id]
            self._spent[permit.venue, client_order_id] = permit.quantity
            keep_newest(self._spent, MAX_SPENT)
