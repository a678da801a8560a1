"""Orders and lists of orders: what their endpoints do, once the request was authenticated.

`dispatch` calls these, one at a time; refusals are `Refused`.
"""

from __future__ import annotations

from tallystick.components.paper_exchange import parameters as parse
from tallystick.components.paper_exchange import wire
from tallystick.components.paper_exchange.access import RateLimited, Rates
from tallystick.components.paper_exchange.call import Call, Signed
from tallystick.components.paper_exchange.checks import missing
from tallystick.components.paper_exchange.matching import Engine
from tallystick.components.paper_exchange.orders import NewOrder, Order, Refused

_WHICH = frozenset(("symbol", "orderId", "origClientOrderId"))
_CANCEL = _WHICH | {"newClientOrderId", "cancelRestrictions"}
_WHICH_LIST = frozenset(("symbol", "orderListId", "listClientOrderId", "newClientOrderId"))
_REPLACE = parse.ORDER_PARAMETERS | {
    "cancelReplaceMode",
    "cancelNewClientOrderId",
    "cancelOrigClientOrderId",
    "cancelOrderId",
    "cancelRestrictions",
    "orderRateLimitExceededMode",
}
_RESTRICTIONS = {"ONLY_NEW": "NEW", "ONLY_PARTIALLY_FILLED": "PARTIALLY_FILLED"}


class Failed(Refused):
    """A cancel-replace of which at least one half failed; `data` says what became of each."""

    def __init__(self, number: int, text: str, status: int, data: wire.Json) -> None:
        super().__init__(number, text, status)
        self.data = data


class Trading:
    """The endpoints over one engine."""

    def __init__(self, engine: Engine, rates: Rates) -> None:
        self._engine = engine
        self._rates = rates

    def table(self) -> dict[str, Signed]:
        """Every endpoint by method and path."""
        order = parse.ORDER_PARAMETERS
        return {
            "POST /api/v3/order": Signed(self._new_order, 1, "trade", order, True),
            "POST /api/v3/order/test": Signed(self._test_order, 1, "trade", order | {"computeCommissionRates"}, True),
            "DELETE /api/v3/order": Signed(self._cancel, 1, "trade", _CANCEL, True),
            "DELETE /api/v3/openOrders": Signed(self._cancel_all, 1, "trade", frozenset(("symbol",)), True),
            "POST /api/v3/order/cancelReplace": Signed(self._replace, 1, "trade", _REPLACE, True),
            "POST /api/v3/orderList/oco": Signed(self._new_list, 1, "trade", parse.OCO_PARAMETERS, True),
            "POST /api/v3/order/oco": Signed(self._old_list, 1, "trade", parse.OLD_OCO_PARAMETERS, True),
            "DELETE /api/v3/orderList": Signed(self._cancel_list, 1, "trade", _WHICH_LIST, True),
        }

    def _count(self, call: Call, orders: int) -> None:
        soon, day = self._rates.new_order(call.key.account, call.now_ms, orders)
        call.headers["X-MBX-ORDER-COUNT-10S"] = str(soon)
        call.headers["X-MBX-ORDER-COUNT-1D"] = str(day)

    def _new_order(self, call: Call) -> wire.Json:
        return self._place(call, *parse.new_order(call.parameters))

    def _place(self, call: Call, new: NewOrder, answer: str) -> wire.Json:
        self._count(call, 1)
        call.order = self._engine.place(call.key.account, new, call.now_ms)
        return wire.placed(call.order, answer)

    def _test_order(self, call: Call) -> wire.Json:
        new, _ = parse.new_order(call.parameters)
        self._engine.check(new)
        if call.parameters.get("computeCommissionRates") != "true":
            return {}
        rates = wire.commission(new.symbol, self._engine.commission)
        return {
            "standardCommissionForOrder": rates["standardCommission"],
            "specialCommissionForOrder": rates["specialCommission"],
            "taxCommissionForOrder": rates["taxCommission"],
            "discount": rates["discount"],
        }

    def _cancel(self, call: Call) -> wire.Json:
        order_id, client_id = parse.which_order(call.parameters)
        own_id = parse.client_id(call.parameters, "newClientOrderId")
        order = self._do_cancel(call, order_id, client_id, own_id)
        return self._cancelled(order, own_id or f"cancel-{order.id}")

    def _do_cancel(self, call: Call, order_id: int | None, client_id: str | None, own_id: str | None) -> Order:
        symbol, account = parse.symbol(call.parameters), call.key.account
        restriction = call.parameters.get("cancelRestrictions")
        if restriction is not None:
            if restriction not in _RESTRICTIONS:
                text = "cancelRestrictions has to be either ONLY_NEW or ONLY_PARTIALLY_FILLED."
                raise Refused(-1145, text)
            try:
                found = self._engine.order(account, symbol, order_id, client_id)
            except Refused as exc:
                raise Refused(-2011, "Unknown order sent.") from exc
            if found.open and found.status != _RESTRICTIONS[restriction]:
                raise Refused(-2011, "Order was not canceled due to cancel restrictions.")
        # Binance gives a cancel without an id of its own a random one.
        cancel_id = own_id or f"cancel-{order_id or client_id}"[:36]
        call.order = self._engine.cancel(account, symbol, order_id, client_id, call.now_ms, cancel_id)
        return call.order

    def _cancelled(self, order: Order, cancel_id: str) -> wire.Json:
        of = self._engine.list_of(order)
        return wire.cancelled(order, cancel_id) if of is None else wire.cancelled_list(of, cancel_id)

    def _cancel_all(self, call: Call) -> list[wire.Json]:
        symbol = parse.symbol(call.parameters)
        orders = self._engine.cancel_all(call.key.account, symbol, call.now_ms)
        answers: dict[int, wire.Json] = {}
        for order in orders:
            key = order.id if order.list_id < 0 else order.list_id
            answers.setdefault(key, self._cancelled(order, f"cancel-{order.id}"))
        return list(answers.values())

    def _replace(self, call: Call) -> wire.Json:
        p = call.parameters
        mode = p.get("cancelReplaceMode")
        if mode is None:
            raise missing("cancelReplaceMode")
        if mode not in {"STOP_ON_FAILURE", "ALLOW_FAILURE"}:
            raise Refused(-1130, "Data sent for parameter 'cancelReplaceMode' is not valid.")
        order_id, client_id = parse.integer(p, "cancelOrderId"), parse.client_id(p, "cancelOrigClientOrderId")
        if order_id is None and client_id is None:
            text = "Param 'cancelOrigClientOrderId' or 'cancelOrderId' must be sent, but both were empty/null!"
            raise Refused(-1102, text)
        own_id = parse.client_id(p, "cancelNewClientOrderId")
        new, answer = parse.new_order(p)
        self._engine.check(new)
        data: wire.Json = {
            "cancelResult": "FAILURE",
            "newOrderResult": "NOT_ATTEMPTED",
            "cancelResponse": None,
            "newOrderResponse": None,
        }
        try:
            order = self._do_cancel(call, order_id, client_id, own_id)
            data |= {
                "cancelResult": "SUCCESS",
                "cancelResponse": self._cancelled(order, own_id or f"cancel-{order.id}"),
            }
        except Refused as exc:
            data["cancelResponse"] = {"code": exc.number, "msg": exc.text}
            if mode == "STOP_ON_FAILURE":
                raise Failed(-2022, "Order cancel-replace failed.", 400, data) from exc
        try:
            data |= {"newOrderResult": "SUCCESS", "newOrderResponse": self._place(call, new, answer)}
        except RateLimited:
            raise
        except Refused as exc:
            data |= {"newOrderResult": "FAILURE", "newOrderResponse": {"code": exc.number, "msg": exc.text}}
            if data["cancelResult"] == "SUCCESS":
                raise Failed(-2021, "Order cancel-replace partially failed.", 409, data) from exc
            raise Failed(-2022, "Order cancel-replace failed.", 400, data) from exc
        if data["cancelResult"] == "FAILURE":
            raise Failed(-2021, "Order cancel-replace partially failed.", 409, data)
        return data

    def _new_list(self, call: Call) -> wire.Json:
        return self._place_list(call, parse.oco(call.parameters))

    def _old_list(self, call: Call) -> wire.Json:
        return self._place_list(call, parse.old_oco(call.parameters))

    def _place_list(self, call: Call, asked: tuple[NewOrder, NewOrder, str | None, str]) -> wire.Json:
        above, below, client_id, answer = asked
        self._count(call, 2)
        of = self._engine.place_list(call.key.account, above, below, client_id, call.now_ms)
        call.order = of.orders[0]
        return wire.placed_list(of, answer)

    def _cancel_list(self, call: Call) -> wire.Json:
        list_id = parse.integer(call.parameters, "orderListId")
        client_id = parse.client_id(call.parameters, "listClientOrderId")
        if list_id is None and client_id is None:
            text = "Param 'orderListId' or 'listClientOrderId' must be sent, but both were empty/null!"
            raise Refused(-1102, text)
        symbol = parse.symbol(call.parameters)
        of = self._engine.cancel_list(call.key.account, symbol, list_id, client_id, call.now_ms)
        call.order = of.orders[0]
        own_id = parse.client_id(call.parameters, "newClientOrderId")
        return wire.cancelled_list(of, own_id or f"cancel-{of.id}")
