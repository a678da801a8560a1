"""What the venue knows: accounts, orders, lists and trades, and how they are found and taken up again.  Pure.

`matching.Engine` changes it.  Funds of an order are moved between `free` and `locked` here alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Final

from tallystick.components.paper_exchange.book import Book
from tallystick.components.paper_exchange.orders import (
    MAX_VALUE,
    PLACES,
    UNIT,
    ZERO,
    Balance,
    Depth,
    Execution,
    Instrument,
    ListReport,
    Order,
    OrderList,
    Refused,
    Report,
    Side,
    Trade,
)
from tallystick.schemas.errors import ConfigError
from tallystick.schemas.event import check_decimal

# How many closed orders, and trades of each account, are kept for queries; older ones are forgotten.
HISTORY: Final = 100_000


class Ledger:
    """All books, accounts and orders of the venue.

    `instruments` are traded, `accounts` maps account to asset to initial balance, `commission` is the share that
    maker and taker pay, `first_id` the first id of orders and trades: above every one of a life before.
    Raises `ConfigError` or `Malformed` for what it cannot keep exactly.
    """

    def __init__(
        self,
        instruments: Iterable[Instrument],
        accounts: Mapping[str, Mapping[str, Decimal]],
        commission: Decimal = Decimal("0.001"),
        depth: Depth | None = None,
        history: int = HISTORY,
        first_id: int = 1,
    ) -> None:
        self.books = {i.symbol: Book(i, first_id) for i in instruments}
        if not ZERO <= commission < 1:
            raise ConfigError("COMMISSION", f"commission must be a share from 0 to below 1, got {commission}")
        self.commission = commission
        self.depth = depth or Depth()
        if self.depth.levels < 1 or not ZERO < self.depth.multiple <= 1_000_000:
            raise ConfigError("DEPTH", "depth needs levels ≥ 1 and a multiple above 0, up to 1,000,000")
        assets = {a for b in self.books.values() for a in (b.instrument.base, b.instrument.quote)}
        self.accounts: dict[str, dict[str, Balance]] = {}
        for name, held in accounts.items():
            for asset, amount in held.items():
                check_decimal(amount, f"balance of {asset} in {name}")
                if not ZERO <= amount <= MAX_VALUE or amount % UNIT:
                    raise ConfigError("BALANCE", f"{name}: {asset} must be 0 to {MAX_VALUE:f} with {PLACES} places")
            self.accounts[name] = {a: Balance(held.get(a, ZERO)) for a in sorted(assets | set(held))}
        self.market: dict[str, Decimal] = {}
        self.fees: dict[str, Decimal] = {}
        self.withdrawn: dict[str, Decimal] = {}
        self.trades: dict[str, deque[Trade]] = {name: deque(maxlen=history) for name in self.accounts}
        self._orders: dict[int, Order] = {}
        self._open: dict[str, dict[str, Order]] = {name: {} for name in self.accounts}  # account -> client id
        self._newest: dict[tuple[str, str, str], int] = {}  # (account, symbol, client id) -> order id
        self._closed: deque[Order] = deque()
        self._history = history
        self._last_id = first_id - 1
        self._reports: list[Report | ListReport] = []
        self._lists: dict[int, OrderList] = {}

    # What a caller reads.

    def instrument(self, symbol: str) -> Instrument:
        """Raises `Refused` -1121 for a symbol that is not traded."""
        book = self.books.get(symbol)
        if book is None:
            raise Refused(-1121, "Invalid symbol.")
        return book.instrument

    def touch(self, symbol: str) -> tuple[Decimal, Decimal, Decimal, Decimal] | None:
        """The played market's best bid and ask: `(bid, quantity, ask, quantity)`; None before the first trade."""
        book = self.books[symbol]
        if book.bid is None or book.ask is None:
            return None
        return book.bid.price, book.bid.qty, book.ask.price, book.ask.qty

    def depth_of(self, symbol: str) -> tuple[list[tuple[Decimal, Decimal]], list[tuple[Decimal, Decimal]]]:
        """Bids and asks, best first, of the played market and of resting orders together."""
        return self.books[symbol].levels(self.depth)

    def drain(self) -> list[Report | ListReport]:
        """What happened since the last call, in order."""
        reports, self._reports = self._reports, []
        return reports

    def order(self, account: str, symbol: str, order_id: int | None, client_id: str | None) -> Order:
        """An order by its id, else the newest with that client id.  Raises `Refused` -2013."""
        self.instrument(symbol)
        if order_id is None:
            order_id = self._newest.get((account, symbol, client_id or ""))
        order = None if order_id is None else self._orders.get(order_id)
        if order is None or order.account != account or order.symbol != symbol:
            raise Refused(-2013, "Order does not exist.")
        return order

    def open_orders(self, account: str, symbol: str | None = None) -> list[Order]:
        """An account's open orders, oldest first."""
        return [o for o in self._open[account].values() if symbol in (None, o.symbol)]

    def totals(self) -> dict[str, Decimal]:
        """The sum of each asset over accounts, market, fees and withdrawals: never changes."""
        sums: dict[str, Decimal] = {}
        for held in self.accounts.values():
            for asset, balance in held.items():
                sums[asset] = sums.get(asset, ZERO) + balance.free + balance.locked
        for ledger in (self.market, self.fees, self.withdrawn):
            for asset, amount in ledger.items():
                sums[asset] = sums.get(asset, ZERO) + amount
        return sums

    def restore(self, orders: Iterable[Order], accounts: Mapping[str, Mapping[str, Balance]]) -> None:
        """Take up orders and balances of a life before; the ledgers are plain dicts for the caller to fill.

        Raises `ConfigError` for an account or instrument that is not here, or balances that its open orders belie.
        """
        for name, held in accounts.items():
            if name not in self.accounts:
                raise ConfigError("PAPER_STATE", f"account {name!r} is not in the configuration any more")
            self.accounts[name].update({asset: Balance(b.free, b.locked) for asset, b in held.items()})
        known = sorted(orders, key=lambda o: o.id)
        closed = [order.id for order in known if not order.open]
        forgotten = set(closed[: max(0, len(closed) - self._history)])
        for order in known:
            self._last_id = max(self._last_id, order.id)
            if order.id in forgotten:
                continue
            if order.account not in self.accounts or order.symbol not in self.books:
                raise ConfigError("PAPER_STATE", f"order {order.id}: no {order.account!r} or {order.symbol} any more")
            book = self.books[order.symbol]
            book.trade_id = max([book.trade_id, *(t.id for t in order.trades)])
            self._orders[order.id] = order
            self._newest[order.account, order.symbol, order.client_id] = order.id
            if order.open:
                self._open[order.account][order.client_id] = order
                if order.waits:
                    book.stops.append(order)
                else:
                    book.rest(order)
            else:
                self._closed.append(order)
        listed: dict[int, list[Order]] = {}
        for order in known:
            if order.list_id >= 0 and order.id in self._orders:
                listed.setdefault(order.list_id, []).append(order)
        for number, legs in listed.items():
            first, done = legs[0], not all(leg.open for leg in legs)
            self._lists[number] = OrderList(
                number, first.account, first.symbol, first.list_client_id, tuple(legs), first.time_ms, done
            )
        for name, account_trades in self.trades.items():
            mine = [t for o in self._orders.values() if o.account == name for t in o.trades]
            account_trades.extend(sorted(mine, key=lambda t: (t.time_ms, t.id)))
            locked: dict[str, Decimal] = {}
            for order in self.open_orders(name):
                instrument = self.books[order.symbol].instrument
                asset = instrument.quote if order.side == "BUY" else instrument.base
                locked[asset] = locked.get(asset, ZERO) + order.locked
            for asset, balance in self.accounts[name].items():
                if balance.free < 0 or balance.locked != locked.get(asset, ZERO):
                    raise ConfigError("PAPER_STATE", f"{name}: {asset} is not what the open orders say")

    def orders(self) -> list[Order]:
        """Every order that is remembered, oldest first."""
        return list(self._orders.values())

    def open_lists(self, account: str) -> list[OrderList]:
        """An account's open lists, oldest first."""
        return [of for of in self._lists.values() if of.account == account and not of.done]

    def list_of(self, order: Order) -> OrderList | None:
        """The list that an order is in, if any."""
        return self._lists.get(order.list_id)

    def lists(self, account: str) -> list[OrderList]:
        """An account's lists, oldest first, as far as they are remembered."""
        return [of for of in self._lists.values() if of.account == account]

    # How an order holds its funds.

    def _balance(self, account: str, symbol: str, side: Side) -> Balance:
        instrument = self.books[symbol].instrument
        return self.accounts[account][instrument.quote if side == "BUY" else instrument.base]

    def _lock(self, order: Order, locked: Decimal) -> None:
        """Have the order hold `locked`, neither more nor less."""
        balance = self._balance(order.account, order.symbol, order.side)
        balance.free -= locked - order.locked
        balance.locked += locked - order.locked
        order.locked = locked

    def _retire(self, order: Order) -> None:
        """An order will not trade again: what it still holds is free, so is its client id."""
        instrument = self.books[order.symbol].instrument
        balance = self.accounts[order.account][instrument.quote if order.side == "BUY" else instrument.base]
        balance.locked -= order.locked
        balance.free += order.locked
        order.locked = ZERO
        del self._open[order.account][order.client_id]
        self._closed.append(order)
        if len(self._closed) > self._history:
            old = self._closed.popleft()
            del self._orders[old.id]
            key = old.account, old.symbol, old.client_id
            if self._newest.get(key) == old.id:
                del self._newest[key]

    def _report(
        self, order: Order, execution: Execution, now_ms: int, trade: Trade | None = None, cancel_id: str = ""
    ) -> None:
        self._reports.append(
            Report(order, execution, order.status, order.qty, order.executed, order.value, trade, now_ms, cancel_id)
        )
