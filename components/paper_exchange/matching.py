"""The matching engine: accounts, resting orders and a played market.  Pure: no IO, times are arguments.

The market that the orders meet is *played* from trades that happened at a real venue:

- A trade whose buyer was the maker happened at the bid: the bid becomes its price.  Any other trade makes the ask.
  Where the other side is unknown, or would be crossed by the new price, it is set one tick away.
- Each side of the market shows `Depth.levels` prices one tick apart, each with `Depth.multiple` times the
  quantity of the trade that set the side.  What orders take from a price is gone until a trade sets that side anew.
- A trade fills resting orders that it reaches, at the order's own price, best price first, then oldest first, and
  never more than its own quantity in all.  It reaches orders at its price or better on the maker's side, and orders
  strictly better than its price on the other.
- An incoming order takes the best price first; at one price resting orders of other accounts come before the market.
  Trades happen at the price that was there before.
- A resting order of the same account that would trade is expired instead (`EXPIRED_IN_MATCH`, Binance's EXPIRE_MAKER).
- What a MARKET or IOC order leaves is expired, what a GTC order leaves rests; FOK trades whole or not at all.
- What a trade is worth is price times quantity, rounded down to 8 places; an order to buy locks it rounded up.
- Commission is a share of what is received, in that asset, rounded down to 8 places.
- Client order ids are unique among an account's *open* orders only, as at Binance: a closed order's id is free again.

Balances are conserved exactly: what the played market gives and takes stands in `Engine.market`, commissions in
`Engine.fees`, withdrawals in `Engine.withdrawn`; the sum over these and all accounts never changes.  A request that
is refused changes nothing: everything is checked before the first change.

Source of behaviour, codes and messages: Binance Spot API documentation, "REST API", "Filters", "Errors".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Final

from tallystick.components.paper_exchange.book import Book, MarketSide, Plan
from tallystick.components.paper_exchange.orders import (
    MAX_VALUE,
    PLACES,
    UNIT,
    ZERO,
    Balance,
    Depth,
    Execution,
    Instrument,
    NewOrder,
    Order,
    Refused,
    Report,
    Status,
    Trade,
    reserve,
    share,
    worth,
)
from tallystick.schemas.amounts import EXACT
from tallystick.schemas.errors import ConfigError, Malformed
from tallystick.schemas.event import check_decimal, check_positive

# How many closed orders, and trades of each account, are kept for queries; older ones are forgotten.
HISTORY: Final = 100_000


class Engine:
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
        self._reports: list[Report] = []

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

    def drain(self) -> list[Report]:
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
                book.rest(order)
            else:
                self._closed.append(order)
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

    # What a caller does.

    def check(self, new: NewOrder) -> Instrument:
        """Raise `Refused` unless the order is complete and passes the instrument's filters."""
        instrument = self.instrument(new.symbol)
        if new.type == "MARKET":
            if new.price is not None:
                raise Refused(-1106, "Parameter 'price' sent when not required.")
            if new.tif is not None:
                raise Refused(-1106, "Parameter 'timeInForce' sent when not required.")
            if new.qty is None and new.quote_qty is None:
                raise Refused(-1102, "Param 'quantity' or 'quoteOrderQty' must be sent, but both were empty/null!")
            if new.qty is not None and new.quote_qty is not None:
                raise Refused(-1106, "Parameter 'quoteOrderQty' sent when not required.")
        else:
            for value, what in ((new.qty, "quantity"), (new.price, "price")):
                if value is None:
                    raise Refused(-1102, f"Mandatory parameter '{what}' was not sent, was empty/null, or malformed.")
            if new.quote_qty is not None:
                raise Refused(-1106, "Parameter 'quoteOrderQty' sent when not required.")
            if new.type == "LIMIT" and new.tif is None:
                raise Refused(-1102, "Mandatory parameter 'timeInForce' was not sent, was empty/null, or malformed.")
            if new.type == "LIMIT_MAKER" and new.tif is not None:
                raise Refused(-1106, "Parameter 'timeInForce' sent when not required.")
        for value, what in ((new.qty, "quantity"), (new.quote_qty, "quoteOrderQty"), (new.price, "price")):
            if value is not None and not value > 0:
                raise Refused(-1013, f"Invalid {what}.")
        self._filter(instrument, new)
        return instrument

    def place(self, account: str, new: NewOrder, now_ms: int) -> Order:
        """Take an order.  Raises `Refused`, having changed nothing."""
        instrument = self.check(new)
        client_id = new.client_id or f"auto-{self._last_id + 1}"
        if client_id in self._open[account]:
            raise Refused(-2010, "Duplicate order sent.")
        if new.type != "MARKET" and len(self.open_orders(account, new.symbol)) >= instrument.max_orders:
            raise Refused(-1013, "Filter failure: MAX_NUM_ORDERS")
        book = self.books[new.symbol]
        plan = book.plan(account, new, self.depth)
        if new.type == "LIMIT_MAKER" and (plan.fills or plan.own):
            raise Refused(-2010, "Order would immediately match and take.")
        if new.quote_qty is not None and not plan.fills:
            raise Refused(-2010, "Order book liquidity is less than symbol minimum quantity.")
        needed, locked = self._funds(new, plan)
        asset = instrument.quote if new.side == "BUY" else instrument.base
        balance = self.accounts[account][asset]
        if needed > balance.free:
            raise Refused(-2010, "Account has insufficient balance for requested action.")

        # Nothing above changed anything; nothing below refuses.
        self._last_id += 1
        order = Order(
            id=self._last_id,
            account=account,
            symbol=new.symbol,
            client_id=client_id,
            side=new.side,
            type=new.type,
            tif=new.tif or "GTC",
            price=new.price or ZERO,
            # An order by value has the quantity that it traded, and one step more if the market ran out: so it expires.
            qty=new.qty or plan.qty + (ZERO if plan.satisfied else instrument.step),
            quote_qty=new.quote_qty or ZERO,
            time_ms=now_ms,
            update_ms=now_ms,
            locked=locked,
        )
        balance.free -= locked
        balance.locked += locked
        self._orders[order.id] = order
        self._open[account][client_id] = order
        self._newest[account, new.symbol, client_id] = order.id
        self._report(order, "NEW", now_ms)
        if new.tif == "FOK" and not plan.satisfied:
            self._close(order, "EXPIRED", "EXPIRED", now_ms)
            return order
        for own in plan.own:
            book.remove(own)
            self._close(own, "EXPIRED_IN_MATCH", "TRADE_PREVENTION", now_ms)
        for price, qty, maker in plan.fills:
            trade_id = book.next_trade()
            if maker is None:
                book.take(order.side, price, qty)
                self._against_market(order, price, qty)
            else:
                if maker.executed + qty == maker.qty:
                    book.remove(maker)
                self._fill(maker, price, qty, trade_id, True, now_ms)
            self._fill(order, price, qty, trade_id, False, now_ms)
        if order.open:
            if order.type == "MARKET" or order.tif != "GTC":
                self._close(order, "EXPIRED", "EXPIRED", now_ms)
            else:
                book.rest(order)
        return order

    def cancel(
        self, account: str, symbol: str, order_id: int | None, client_id: str | None, now_ms: int, cancel_id: str = ""
    ) -> Order:
        """Cancel an open order.  Raises `Refused` -2011 if there is none (any more)."""
        self.instrument(symbol)
        order = self._orders.get(order_id) if order_id is not None else self._open[account].get(client_id or "")
        if order is None or order.account != account or order.symbol != symbol or not order.open:
            raise Refused(-2011, "Unknown order sent.")
        if client_id is not None and order.client_id != client_id:
            raise Refused(-2011, "Unknown order sent.")
        self.books[symbol].remove(order)
        self._close(order, "CANCELED", "CANCELED", now_ms, cancel_id)
        return order

    def cancel_all(self, account: str, symbol: str, now_ms: int) -> list[Order]:
        """Cancel an account's open orders of a symbol.  Raises `Refused` -2011 if there are none."""
        self.instrument(symbol)
        orders = self.open_orders(account, symbol)
        if not orders:
            raise Refused(-2011, "Unknown order sent.")
        for order in orders:
            self.books[symbol].remove(order)
            self._close(order, "CANCELED", "CANCELED", now_ms)
        return orders

    def withdraw(self, account: str, asset: str, amount: Decimal) -> None:
        """Take `amount` out of the venue.  Raises `Refused` -4026 if it is not free."""
        balance = self.accounts[account].get(asset)
        if balance is None or not ZERO < amount <= balance.free:
            raise Refused(-4026, "You have insufficient balance.")
        balance.free -= amount
        self.withdrawn[asset] = self.withdrawn.get(asset, ZERO) + amount

    def market_trade(self, symbol: str, price: Decimal, qty: Decimal, buyer_is_maker: bool, now_ms: int) -> int:
        """Play one trade of the market and return its id.  Raises `Malformed` for what cannot have traded here."""
        book = self.books.get(symbol)
        if book is None:
            raise Malformed("MARKET_SYMBOL", f"no instrument {symbol[:32]!r}")
        check_positive(price, f"{symbol}: price")
        check_positive(qty, f"{symbol}: quantity")
        tick, step = book.instrument.tick, book.instrument.step
        if price > book.instrument.max_price or price % tick:
            raise Malformed("MARKET_PRICE", f"{symbol}: price {price} is no multiple of {tick}, or above the maximum")
        qty = min(qty, book.instrument.max_qty) // step * step
        trade_id = book.next_trade()
        self._fill_resting(book, price, qty, buyer_is_maker, now_ms)
        book.last = price
        if buyer_is_maker:
            book.bid = MarketSide(price, qty)
            if book.ask is None or book.ask.price <= price:
                book.ask = MarketSide(price + tick, qty)
        else:
            book.ask = MarketSide(price, qty)
            if book.bid is None or book.bid.price >= price:
                book.bid = MarketSide(price - tick, qty)
        return trade_id

    # How it is done.

    def _filter(self, instrument: Instrument, new: NewOrder) -> None:
        book = self.books[new.symbol]
        price = book.last if new.price is None else new.price
        if new.price is not None and not (
            instrument.tick <= new.price <= instrument.max_price and new.price % instrument.tick == 0
        ):
            raise Refused(-1013, "Filter failure: PRICE_FILTER")
        if new.qty is not None:
            if not (instrument.step <= new.qty <= instrument.max_qty and new.qty % instrument.step == 0):
                raise Refused(-1013, "Filter failure: LOT_SIZE")
            if new.type == "MARKET" and new.qty > instrument.max_market_qty:
                raise Refused(-1013, "Filter failure: MARKET_LOT_SIZE")
        value = new.quote_qty if new.qty is None else EXACT.multiply(price, new.qty)
        # A market order before the first trade has no price to value it at.
        if value and not instrument.min_notional <= value <= instrument.max_notional:
            raise Refused(-1013, "Filter failure: NOTIONAL")

    def _funds(self, new: NewOrder, plan: Plan) -> tuple[Decimal, Decimal]:
        """What must be free for the order, and what it locks of that."""
        if new.type != "MARKET":
            qty, price = new.qty or ZERO, new.price or ZERO
            whole = reserve(price, qty) if new.side == "BUY" else qty
            return whole, whole
        locked = plan.value if new.side == "BUY" else plan.qty
        asked = new.quote_qty if new.side == "BUY" else new.qty
        return max(locked, asked or ZERO), locked

    def _fill_resting(self, book: Book, price: Decimal, left: Decimal, buyer_is_maker: bool, now_ms: int) -> None:
        """Fill resting orders that a market trade reaches.  Only one side can be in reach: the book is not crossed."""
        for side, is_makers_side in ((book.buys, buyer_is_maker), (book.sells, not buyer_is_maker)):
            while left > 0 and side:
                order = side[0][2]
                better = order.price > price if order.side == "BUY" else order.price < price
                if not (better or (is_makers_side and order.price == price)):
                    break
                qty = min(left, order.qty - order.executed)
                left -= qty
                if order.executed + qty == order.qty:
                    del side[0]
                self._against_market(order, order.price, qty)
                self._fill(order, order.price, qty, book.next_trade(), True, now_ms)

    def _against_market(self, order: Order, price: Decimal, qty: Decimal) -> None:
        instrument, sign = self.books[order.symbol].instrument, 1 if order.side == "BUY" else -1
        self.market[instrument.base] = self.market.get(instrument.base, ZERO) - sign * qty
        self.market[instrument.quote] = self.market.get(instrument.quote, ZERO) + sign * worth(price, qty)

    def _fill(self, order: Order, price: Decimal, qty: Decimal, trade_id: int, maker: bool, now_ms: int) -> None:
        """One side of a trade: locked balance is paid, what the limit reserved too much is free again."""
        instrument, held = self.books[order.symbol].instrument, self.accounts[order.account]
        base, quote = held[instrument.base], held[instrument.quote]
        value = worth(price, qty)
        if order.side == "BUY":
            left = reserve(order.price, order.qty - order.executed - qty)
            reserved = value if order.type == "MARKET" else order.locked - left
            quote.locked -= reserved
            quote.free += reserved - value
            got, asset, into = qty, instrument.base, base
        else:
            reserved = qty
            base.locked -= qty
            got, asset, into = value, instrument.quote, quote
        order.locked -= reserved
        fee = share(got, self.commission)
        into.free += got - fee
        self.fees[asset] = self.fees.get(asset, ZERO) + fee
        order.executed += qty
        order.value += value
        trade = Trade(
            trade_id, order.id, order.symbol, price, qty, value, fee, asset, now_ms, order.side == "BUY", maker
        )
        order.trades.append(trade)
        self.trades[order.account].append(trade)
        order.status = "FILLED" if order.executed == order.qty else "PARTIALLY_FILLED"
        order.update_ms = now_ms
        if order.status == "FILLED":
            self._retire(order)
        self._report(order, "TRADE", now_ms, trade)

    def _close(self, order: Order, status: Status, execution: Execution, now_ms: int, cancel_id: str = "") -> None:
        order.status = status
        order.update_ms = now_ms
        self._retire(order)
        self._report(order, execution, now_ms, None, cancel_id)

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
