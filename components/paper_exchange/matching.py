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
- An order with a stop price waits until the last price of the market reaches it, and is placed then; funds are locked
  before that, but for one that buys at the market.  Of the two orders of a list (OCO) both wait or rest until one of
  them trades, is set off or ends: the other ends with it.
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

from collections.abc import Sequence
from decimal import Decimal
from typing import Literal

from tallystick.components.paper_exchange.book import Book, MarketSide, Plan
from tallystick.components.paper_exchange.checks import check, check_pair, check_waiting
from tallystick.components.paper_exchange.ledger import Ledger
from tallystick.components.paper_exchange.orders import (
    WAITING,
    ZERO,
    Execution,
    Instrument,
    ListReport,
    NewOrder,
    Order,
    OrderList,
    Refused,
    Status,
    Trade,
    reserve,
    share,
    worth,
)
from tallystick.schemas.errors import Malformed
from tallystick.schemas.event import check_positive


class Engine(Ledger):
    """All books, accounts and orders of the venue, and what happens to them."""

    # What a caller does.

    def check(self, new: NewOrder) -> Instrument:
        """Raise `Refused` unless the order is complete and passes the instrument's filters."""
        instrument = self.instrument(new.symbol)
        check(self.books[new.symbol], new)
        return instrument

    def place(self, account: str, new: NewOrder, now_ms: int) -> Order:
        """Take an order.  Raises `Refused`, having changed nothing."""
        client_id = self._require_free(account, [new])[0]
        book = self.books[new.symbol]
        if new.type in WAITING:
            check_waiting(book, new)
            locked = self._wanted(new)
            self._require_funds(account, new, locked)
            return self._book_in(account, new, client_id, locked, now_ms)
        plan = book.plan(account, new, self.depth)
        if new.type == "LIMIT_MAKER" and (plan.fills or plan.own):
            raise Refused(-2010, "Order would immediately match and take.")
        if new.quote_qty is not None and not plan.fills:
            raise Refused(-2010, "Order book liquidity is less than symbol minimum quantity.")
        needed, locked = self._funds(new, plan)
        self._require_funds(account, new, needed)

        # Nothing above changed anything; nothing below refuses.
        order = self._book_in(account, new, client_id, locked, now_ms, plan)
        self._execute(order, plan, now_ms)
        return order

    def place_list(
        self, account: str, above: NewOrder, below: NewOrder, client_id: str | None, now_ms: int
    ) -> OrderList:
        """Take two orders of which one at most trades.  Raises `Refused`, having changed nothing."""
        legs = (above, below)
        ids = self._require_free(account, legs)
        book = self.books[above.symbol]
        check_pair(book, above, below)
        for leg in legs:
            check_waiting(book, leg)
            plan = book.plan(account, leg, self.depth)
            if leg.type == "LIMIT_MAKER" and (plan.fills or plan.own):
                raise Refused(-2010, "Order would immediately match and take.")
        wanted = [self._wanted(leg) for leg in legs]
        self._require_funds(account, above, max(wanted))
        name = client_id or f"list-{self._last_id + 1}"
        if any(o.list_client_id == name for o in self._open[account].values()):
            raise Refused(-2010, "Duplicate order sent.")
        list_id = self._last_id + 1
        # Both hold together what the dearer of them needs.
        orders = tuple(
            self._book_in(account, leg, own, locked, now_ms, list_id=list_id, list_client_id=name)
            for leg, own, locked in zip(legs, ids, (wanted[0], max(ZERO, wanted[1] - wanted[0])), strict=True)
        )
        made = self._lists[list_id] = OrderList(list_id, account, above.symbol, name, orders, now_ms)
        self._reports.append(ListReport(made, now_ms))
        for order in orders:
            if not order.waits:
                book.rest(order)
        return made

    def _require_free(self, account: str, new: Sequence[NewOrder]) -> list[str]:
        """The orders' client ids.  Raises `Refused` for incomplete orders, ids in use, or too many orders."""
        ids = []
        for number, each in enumerate(new, 1):
            instrument = self.check(each)
            client_id = each.client_id or f"auto-{self._last_id + number}"
            if client_id in self._open[account] or client_id in ids:
                raise Refused(-2010, "Duplicate order sent.")
            ids.append(client_id)
            if each.type != "MARKET" and len(self.open_orders(account, each.symbol)) + number > instrument.max_orders:
                raise Refused(-1013, "Filter failure: MAX_NUM_ORDERS")
        return ids

    def _require_funds(self, account: str, new: NewOrder, needed: Decimal) -> None:
        if needed > self._balance(account, new.symbol, new.side).free:
            raise Refused(-2010, "Account has insufficient balance for requested action.")

    def _book_in(
        self,
        account: str,
        new: NewOrder,
        client_id: str,
        locked: Decimal,
        now_ms: int,
        plan: Plan | None = None,
        list_id: int = -1,
        list_client_id: str = "",
    ) -> Order:
        """The order, known and with its funds locked, but not in the book unless it waits."""
        book = self.books[new.symbol]
        self._last_id += 1
        qty = new.qty
        if qty is None:
            # An order by value has the quantity that it traded, and one step more if the market ran out: so it expires.
            plan = plan or Plan()
            qty = plan.qty + (ZERO if plan.satisfied else book.instrument.step)
        order = Order(
            id=self._last_id,
            account=account,
            symbol=new.symbol,
            client_id=client_id,
            side=new.side,
            type=new.type,
            tif=new.tif or "GTC",
            price=new.price or ZERO,
            qty=qty,
            quote_qty=new.quote_qty or ZERO,
            time_ms=now_ms,
            update_ms=now_ms,
            locked=ZERO,
            stop=new.stop or ZERO,
            working_ms=-1 if new.type in WAITING else now_ms,
            list_id=list_id,
            list_client_id=list_client_id,
            strategy_id=new.strategy_id,
            strategy_type=new.strategy_type,
        )
        self._lock(order, locked)
        self._orders[order.id] = order
        self._open[account][client_id] = order
        self._newest[account, new.symbol, client_id] = order.id
        if order.waits:
            book.stops.append(order)
        self._report(order, "NEW", now_ms)
        return order

    def _execute(self, order: Order, plan: Plan, now_ms: int) -> None:
        """Trade as planned; what is left rests or expires."""
        book = self.books[order.symbol]
        if order.tif == "FOK" and not plan.satisfied:
            self._close(order, "EXPIRED", "EXPIRED", now_ms)
            return
        for own in plan.own:
            if own.open:  # not ended with the other of its list
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
            if order.at_market or order.tif != "GTC":
                self._close(order, "EXPIRED", "EXPIRED", now_ms)
            else:
                book.rest(order)

    def _set_off(self, book: Book, now_ms: int) -> None:
        """The last price has moved: place what waited for it, oldest first."""
        for order in book.reached():
            if not order.open:
                continue  # the other of its list came first
            book.stops.remove(order)
            order.working_ms = order.update_ms = now_ms
            self._end_list(order, now_ms)
            self._lock(order, ZERO)
            new = NewOrder(
                symbol=order.symbol,
                side=order.side,
                type="MARKET" if order.at_market else "LIMIT",
                tif=None if order.at_market else order.tif,
                qty=order.qty,
                price=None if order.at_market else order.price,
            )
            plan = book.plan(order.account, new, self.depth)
            needed, locked = self._funds(new, plan)
            if needed > self._balance(order.account, order.symbol, order.side).free:
                self._close(order, "EXPIRED", "EXPIRED", now_ms)
                continue
            self._lock(order, locked)
            self._report(order, "NEW", now_ms)
            self._execute(order, plan, now_ms)

    def _end_list(self, order: Order, now_ms: int, status: Literal["EXPIRED", "CANCELED"] = "EXPIRED") -> None:
        """One order of a list has begun to trade, or ended: so does the other."""
        of = self._lists.get(order.list_id)
        if of is None or of.done:
            return
        of.done = True
        for other in of.orders:
            if other is not order and other.open:
                self.books[other.symbol].remove(other)
                self._close(other, status, status, now_ms)
        self._reports.append(ListReport(of, now_ms))
        if len(self._lists) > self._history:
            del self._lists[next(iter(self._lists))]

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

    def cancel_list(
        self, account: str, symbol: str, list_id: int | None, client_id: str | None, now_ms: int
    ) -> OrderList:
        """Cancel both orders of a list.  Raises `Refused` -2011 if it is not open (any more)."""
        self.instrument(symbol)
        for of in self.open_lists(account):
            if of.symbol == symbol and of.id == (list_id or of.id) and of.client_id == (client_id or of.client_id):
                self.cancel(account, symbol, of.orders[0].id, None, now_ms)
                return of
        raise Refused(-2011, "Unknown order sent.")

    def cancel_all(self, account: str, symbol: str, now_ms: int) -> list[Order]:
        """Cancel an account's open orders of a symbol.  Raises `Refused` -2011 if there are none."""
        self.instrument(symbol)
        orders = self.open_orders(account, symbol)
        if not orders:
            raise Refused(-2011, "Unknown order sent.")
        for order in orders:
            if order.open:  # not cancelled with the other of its list
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
        self._set_off(book, now_ms)
        return trade_id

    # How it is done.

    def _wanted(self, new: NewOrder) -> Decimal:
        """What an order locks that does not trade at once; one to buy at the market has no price to lock at."""
        if new.side == "SELL":
            return new.qty or ZERO
        return reserve(new.price, new.qty or ZERO) if new.price else ZERO

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
            reserved = value if order.at_market else order.locked - left
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
        self._end_list(order, now_ms)

    def _close(self, order: Order, status: Status, execution: Execution, now_ms: int, cancel_id: str = "") -> None:
        order.status = status
        order.update_ms = now_ms
        self._retire(order)
        self._report(order, execution, now_ms, None, cancel_id)
        self._end_list(order, now_ms, "CANCELED" if status == "CANCELED" else "EXPIRED")
