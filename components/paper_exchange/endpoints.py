"""What each REST endpoint that reads does, once its request was authenticated and its parameters were parsed.

`dispatch` calls these, one at a time; refusals are `Refused`.  `trading` has those for orders, `market` those for everyone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tallystick.components.paper_exchange import parameters as parse
from tallystick.components.paper_exchange import wire
from tallystick.components.paper_exchange.access import Limits, Rates
from tallystick.components.paper_exchange.call import Call, Endpoint, Public, Signed
from tallystick.components.paper_exchange.market import symbols
from tallystick.components.paper_exchange.matching import Engine
from tallystick.components.paper_exchange.orders import Refused

_PAGE = frozenset(("startTime", "endTime", "limit"))


class Endpoints:
    """The endpoints over one engine; `keep` is told an account whose balance changed without an order."""

    def __init__(self, engine: Engine, rates: Rates, limits: Limits, keep: Callable[[str], None]) -> None:
        self._engine = engine
        self._rates = rates
        self._limits = limits
        self._keep = keep
        self._withdrawals = 0

    def table(self) -> dict[str, Endpoint]:
        """Every endpoint by method and path."""
        which = frozenset(("symbol", "orderId", "origClientOrderId"))
        none: frozenset[str] = frozenset()
        symbol = frozenset(("symbol",))
        info = symbol | {"symbols", "permissions", "showPermissionSets", "symbolStatus"}
        which_list = frozenset(("orderListId", "origClientOrderId", "listClientOrderId"))
        return {
            "GET /api/v3/ping": Public(lambda _parameters, _now: {}, 1),
            "GET /api/v3/time": Public(lambda _parameters, now: {"serverTime": now}, 1),
            "GET /api/v3/exchangeInfo": Public(self._exchange_info, 20, info),
            "GET /sapi/v1/system/status": Public(lambda _parameters, _now: {"status": 0, "msg": "normal"}, 1),
            "GET /api/v3/order": Signed(self._get_order, 4, "read", which),
            "GET /api/v3/openOrders": Signed(self._open_orders, 6, "read", symbol),
            "GET /api/v3/allOrders": Signed(self._all_orders, 20, "read", symbol | _PAGE | {"orderId"}),
            "GET /api/v3/orderList": Signed(self._get_list, 4, "read", which_list),
            "GET /api/v3/openOrderList": Signed(self._open_lists, 6, "read", none),
            "GET /api/v3/allOrderList": Signed(self._all_lists, 20, "read", _PAGE | {"fromId"}),
            "GET /api/v3/account": Signed(self._account, 20, "read", frozenset(("omitZeroBalances",))),
            "GET /api/v3/account/commission": Signed(self._commission, 20, "read", symbol),
            "GET /api/v3/rateLimit/order": Signed(self._order_counts, 40, "read", none),
            "GET /api/v3/myTrades": Signed(self._my_trades, 20, "read", symbol | _PAGE | {"orderId", "fromId"}),
            "GET /api/v3/myPreventedMatches": Signed(
                lambda _call: [], 20, "read", symbol | {"preventedMatchId", "orderId", "fromPreventedMatchId", "limit"}
            ),
            "GET /api/v3/myAllocations": Signed(
                lambda _call: [], 20, "read", symbol | _PAGE | {"fromAllocationId", "orderId"}
            ),
            "GET /sapi/v1/capital/config/getall": Signed(self._coins, 10, "read", none),
            "GET /sapi/v1/asset/tradeFee": Signed(self._trade_fee, 1, "read", symbol),
            "GET /sapi/v1/capital/deposit/hisrec": Signed(
                lambda _call: [], 1, "read", _PAGE | {"coin", "status", "offset", "txId", "includeSource"}
            ),
            "GET /sapi/v1/account/status": Signed(lambda _call: {"data": "Normal"}, 1, "read", none),
            "GET /sapi/v1/account/apiRestrictions": Signed(lambda call: wire.restrictions(call.key), 1, "read", none),
            "POST /sapi/v1/capital/withdraw/apply": Signed(
                self._withdraw,
                900,
                "withdraw",
                frozenset(("coin", "address", "addressTag", "network", "amount", "withdrawOrderId")),
                True,
            ),
        }

    def _exchange_info(self, parameters: dict[str, str], now_ms: int) -> wire.Json:
        asked = symbols(parameters, self._engine.books)
        instruments = [self._engine.instrument(symbol) for symbol in (self._engine.books if asked is None else asked)]
        return wire.exchange_info(instruments, self._limits, now_ms)

    def _get_order(self, call: Call) -> wire.Json:
        order_id, client_id = parse.which_order(call.parameters)
        return wire.queried(self._engine.order(call.key.account, parse.symbol(call.parameters), order_id, client_id))

    def _open_orders(self, call: Call) -> list[wire.Json]:
        symbol = parse.symbol(call.parameters) if "symbol" in call.parameters else None
        if symbol is not None:
            self._engine.instrument(symbol)
        return [wire.queried(order) for order in self._engine.open_orders(call.key.account, symbol)]

    def _all_orders(self, call: Call) -> list[wire.Json]:
        p = call.parameters
        symbol = parse.symbol(p)
        self._engine.instrument(symbol)
        first, (start, end) = parse.integer(p, "orderId"), parse.span(p)
        limit = parse.limit(p, 500, parse.MAX_LIST)
        found = [
            o
            for o in self._engine.orders()
            if o.account == call.key.account
            and o.symbol == symbol
            and (first is None or o.id >= first)
            and (start is None or o.time_ms >= start)
            and (end is None or o.time_ms <= end)
        ]
        return [wire.queried(o) for o in _page(found, limit, forward=first is not None or start is not None)]

    def _get_list(self, call: Call) -> wire.Json:
        list_id = parse.integer(call.parameters, "orderListId")
        name = parse.client_id(call.parameters, "origClientOrderId") or parse.client_id(
            call.parameters, "listClientOrderId"
        )
        if list_id is None and name is None:
            text = "Param 'origClientOrderId' or 'orderListId' must be sent, but both were empty/null!"
            raise Refused(-1102, text)
        for of in reversed(self._engine.lists(call.key.account)):
            if of.id == (list_id or of.id) and of.client_id == (name or of.client_id):
                return wire.order_list(of)
        raise Refused(-2018, "Order list does not exist.")

    def _open_lists(self, call: Call) -> list[wire.Json]:
        return [wire.order_list(of) for of in self._engine.open_lists(call.key.account)]

    def _all_lists(self, call: Call) -> list[wire.Json]:
        p = call.parameters
        first, (start, end) = parse.integer(p, "fromId"), parse.span(p)
        found = [
            of
            for of in self._engine.lists(call.key.account)
            if (first is None or of.id >= first)
            and (start is None or of.time_ms >= start)
            and (end is None or of.time_ms <= end)
        ]
        limit = parse.limit(p, 500, parse.MAX_LIST)
        return [wire.order_list(of) for of in _page(found, limit, forward=first is not None or start is not None)]

    def _account(self, call: Call) -> wire.Json:
        held = self._engine.accounts[call.key.account]
        omit = call.parameters.get("omitZeroBalances") == "true"
        return wire.account(call.key, held, self._engine.commission, call.now_ms, omit)

    def _commission(self, call: Call) -> wire.Json:
        symbol = parse.symbol(call.parameters)
        self._engine.instrument(symbol)
        return wire.commission(symbol, self._engine.commission)

    def _order_counts(self, call: Call) -> list[wire.Json]:
        counts = self._rates.orders(call.key.account, call.now_ms)
        limits = [limit for limit in wire.rate_limits(self._limits) if limit["rateLimitType"] == "ORDERS"]
        return [limit | {"count": count} for limit, count in zip(limits, counts, strict=True)]

    def _my_trades(self, call: Call) -> list[wire.Json]:
        p = call.parameters
        symbol = parse.symbol(p)
        self._engine.instrument(symbol)
        order_id, first = parse.integer(p, "orderId"), parse.integer(p, "fromId")
        start, end = parse.span(p)
        limit = parse.limit(p, 500, parse.MAX_LIST)
        found = [
            t
            for t in self._engine.trades[call.key.account]
            if t.symbol == symbol
            and (order_id is None or t.order_id == order_id)
            and (first is None or t.id >= first)
            and (start is None or t.time_ms >= start)
            and (end is None or t.time_ms <= end)
        ]
        return [wire.trade(t) for t in _page(found, limit, forward=first is not None or start is not None)]

    def _coins(self, call: Call) -> list[wire.Json]:
        return wire.coins(self._engine.accounts[call.key.account])

    def _trade_fee(self, call: Call) -> list[wire.Json]:
        wanted = [parse.symbol(call.parameters)] if "symbol" in call.parameters else list(self._engine.books)
        rate = wire.number(self._engine.commission)
        return [
            {"symbol": self._engine.instrument(s).symbol, "makerCommission": rate, "takerCommission": rate}
            for s in wanted
        ]

    def _withdraw(self, call: Call) -> wire.Json:
        coin, amount = parse.withdrawal(call.parameters)
        self._engine.withdraw(call.key.account, coin, amount)
        self._withdrawals += 1
        self._keep(call.key.account)
        return {"id": f"withdrawal-{self._withdrawals}"}


def _page(found: list[Any], limit: int, *, forward: bool) -> list[Any]:
    """From a given id or time the oldest come first, else the newest are wanted."""
    return found[:limit] if forward else found[-limit:]
