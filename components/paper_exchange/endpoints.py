"""What each REST endpoint does, once its request was authenticated and its parameters were parsed.

`server` calls these, one at a time; refusals are `Refused`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tallystick.components.paper_exchange import wire
from tallystick.components.paper_exchange.access import Key, Limits, Permission, Rates
from tallystick.components.paper_exchange.matching import Engine
from tallystick.components.paper_exchange.orders import Order


@dataclass(slots=True)
class Call:
    """A request on its way through an endpoint, and what the journal and the headers will say of it."""

    key: Key
    parameters: dict[str, str]
    now_ms: int
    order: Order | None = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True, frozen=True)
class Public:
    """An endpoint for everyone: `run(parameters, now in ms)` answers."""

    run: Callable[[dict[str, str], int], Any]
    weight: int
    parameters: frozenset[str] = frozenset()


@dataclass(slots=True, frozen=True)
class Signed:
    """An endpoint for keys with a permission."""

    run: Callable[[Call], Any]
    weight: int
    permission: Permission
    parameters: frozenset[str]
    journalled: bool = False


class Endpoints:
    """The endpoints over one engine; `keep` is told an account whose balance changed without an order."""

    def __init__(self, engine: Engine, rates: Rates, limits: Limits, keep: Callable[[str], None]) -> None:
        self._engine = engine
        self._rates = rates
        self._limits = limits
        self._keep = keep
        self._withdrawals = 0

    def table(self) -> dict[str, Public | Signed]:
        """Every endpoint by method and path."""
        which = frozenset(("symbol", "orderId", "origClientOrderId"))
        symbol = frozenset(("symbol",))
        return {
            "GET /api/v3/ping": Public(lambda _parameters, _now: {}, 1),
            "GET /api/v3/time": Public(lambda _parameters, now: {"serverTime": now}, 1),
            "GET /api/v3/exchangeInfo": Public(self._exchange_info, 20, symbol),
            "POST /api/v3/order": Signed(self._new_order, 1, "trade", wire.ORDER_PARAMETERS, True),
            "POST /api/v3/order/test": Signed(self._test_order, 1, "trade", wire.ORDER_PARAMETERS, True),
            "GET /api/v3/order": Signed(self._get_order, 4, "read", which),
            "DELETE /api/v3/order": Signed(self._cancel, 1, "trade", which | {"newClientOrderId"}, True),
            "GET /api/v3/openOrders": Signed(self._open_orders, 6, "read", symbol),
            "DELETE /api/v3/openOrders": Signed(self._cancel_all, 1, "trade", symbol, True),
            "GET /api/v3/account": Signed(self._account, 20, "read", frozenset(("omitZeroBalances",))),
            "GET /api/v3/myTrades": Signed(
                self._my_trades, 20, "read", symbol | {"orderId", "startTime", "endTime", "fromId", "limit"}
            ),
            "GET /sapi/v1/capital/config/getall": Signed(self._coins, 10, "read", frozenset()),
            "GET /sapi/v1/asset/tradeFee": Signed(self._trade_fee, 1, "read", symbol),
            "GET /sapi/v1/account/apiRestrictions": Signed(
                lambda call: wire.restrictions(call.key), 1, "read", frozenset()
            ),
            "POST /sapi/v1/capital/withdraw/apply": Signed(
                self._withdraw,
                900,
                "withdraw",
                frozenset(("coin", "address", "addressTag", "network", "amount", "withdrawOrderId")),
                True,
            ),
        }

    def _exchange_info(self, parameters: dict[str, str], now_ms: int) -> wire.Json:
        if "symbol" in parameters:
            instruments = [self._engine.instrument(parameters["symbol"])]
        else:
            instruments = [book.instrument for book in self._engine.books.values()]
        return wire.exchange_info(instruments, self._limits, now_ms)

    def _new_order(self, call: Call) -> wire.Json:
        new, answer = wire.new_order(call.parameters)
        soon, day = self._rates.new_order(call.key.account, call.now_ms)
        call.headers["X-MBX-ORDER-COUNT-10S"] = str(soon)
        call.headers["X-MBX-ORDER-COUNT-1D"] = str(day)
        call.order = self._engine.place(call.key.account, new, call.now_ms)
        return wire.placed(call.order, answer)

    def _test_order(self, call: Call) -> wire.Json:
        self._engine.check(wire.new_order(call.parameters)[0])
        return {}

    def _get_order(self, call: Call) -> wire.Json:
        order_id, client_id = wire.which_order(call.parameters)
        return wire.queried(self._engine.order(call.key.account, wire.symbol(call.parameters), order_id, client_id))

    def _cancel(self, call: Call) -> wire.Json:
        order_id, client_id = wire.which_order(call.parameters)
        symbol = wire.symbol(call.parameters)
        # Binance gives a cancel without an id of its own a random one.
        cancel_id = wire.client_id(call.parameters, "newClientOrderId") or f"cancel-{order_id or client_id}"[:36]
        call.order = self._engine.cancel(call.key.account, symbol, order_id, client_id, call.now_ms, cancel_id)
        return wire.cancelled(call.order, cancel_id)

    def _cancel_all(self, call: Call) -> list[wire.Json]:
        symbol = wire.symbol(call.parameters)
        orders = self._engine.cancel_all(call.key.account, symbol, call.now_ms)
        return [wire.cancelled(order, f"cancel-{order.id}") for order in orders]

    def _open_orders(self, call: Call) -> list[wire.Json]:
        symbol = wire.symbol(call.parameters) if "symbol" in call.parameters else None
        if symbol is not None:
            self._engine.instrument(symbol)
        return [wire.queried(order) for order in self._engine.open_orders(call.key.account, symbol)]

    def _account(self, call: Call) -> wire.Json:
        held = self._engine.accounts[call.key.account]
        omit = call.parameters.get("omitZeroBalances") == "true"
        return wire.account(call.key, held, self._engine.commission, call.now_ms, omit)

    def _my_trades(self, call: Call) -> list[wire.Json]:
        p = call.parameters
        symbol = wire.symbol(p)
        self._engine.instrument(symbol)
        order_id, first = wire.integer(p, "orderId"), wire.integer(p, "fromId")
        start, end = wire.integer(p, "startTime"), wire.integer(p, "endTime")
        asked = wire.integer(p, "limit")
        limit = min(500 if asked is None else asked, wire.MAX_LIST)
        found = [
            t
            for t in self._engine.trades[call.key.account]
            if t.symbol == symbol
            and (order_id is None or t.order_id == order_id)
            and (first is None or t.id >= first)
            and (start is None or t.time_ms >= start)
            and (end is None or t.time_ms <= end)
        ]
        # From a given trade or time the oldest come first, else the newest are wanted.
        found = (
            found[:limit] if first is not None or start is not None else found[len(found) - min(limit, len(found)) :]
        )
        return [wire.trade(t) for t in found]

    def _coins(self, call: Call) -> list[wire.Json]:
        return wire.coins(self._engine.accounts[call.key.account])

    def _trade_fee(self, call: Call) -> list[wire.Json]:
        wanted = [wire.symbol(call.parameters)] if "symbol" in call.parameters else list(self._engine.books)
        rate = wire.number(self._engine.commission)
        return [
            {"symbol": self._engine.instrument(s).symbol, "makerCommission": rate, "takerCommission": rate}
            for s in wanted
        ]

    def _withdraw(self, call: Call) -> wire.Json:
        coin, amount = wire.withdrawal(call.parameters)
        self._engine.withdraw(call.key.account, coin, amount)
        self._withdrawals += 1
        self._keep(call.key.account)
        return {"id": f"withdrawal-{self._withdrawals}"}
