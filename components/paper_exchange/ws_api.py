"""The WebSocket API: the REST endpoints under other names, sessions, and subscriptions to user data.

A socket that logged on (Ed25519 keys alone, as at Binance) need not sign its requests; it is asked for each whether its key
still holds.

Source: Binance Spot API documentation, "WebSocket API".
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from tallystick.components.paper_exchange import wire
from tallystick.components.paper_exchange.access import (
    TOO_MUCH,
    Key,
    Limits,
    RateLimited,
    Rates,
    check_names,
    check_window,
    permit,
)
from tallystick.components.paper_exchange.dispatch import Dispatch
from tallystick.components.paper_exchange.orders import Refused
from tallystick.components.paper_exchange.sockets import Socket
from tallystick.components.paper_exchange.units import micros
from tallystick.schemas.errors import NOT_DECODED

_API: Final = "/api/v3"
METHODS: Final = {
    "ping": f"GET {_API}/ping",
    "time": f"GET {_API}/time",
    "exchangeInfo": f"GET {_API}/exchangeInfo",
    "depth": f"GET {_API}/depth",
    "trades.recent": f"GET {_API}/trades",
    "trades.historical": f"GET {_API}/historicalTrades",
    "trades.aggregate": f"GET {_API}/aggTrades",
    "klines": f"GET {_API}/klines",
    "uiKlines": f"GET {_API}/uiKlines",
    "avgPrice": f"GET {_API}/avgPrice",
    "ticker.24hr": f"GET {_API}/ticker/24hr",
    "ticker.tradingDay": f"GET {_API}/ticker/tradingDay",
    "ticker": f"GET {_API}/ticker",
    "ticker.price": f"GET {_API}/ticker/price",
    "ticker.book": f"GET {_API}/ticker/bookTicker",
    "order.place": f"POST {_API}/order",
    "order.test": f"POST {_API}/order/test",
    "order.status": f"GET {_API}/order",
    "order.cancel": f"DELETE {_API}/order",
    "order.cancelReplace": f"POST {_API}/order/cancelReplace",
    "openOrders.status": f"GET {_API}/openOrders",
    "openOrders.cancelAll": f"DELETE {_API}/openOrders",
    "orderList.place": f"POST {_API}/order/oco",
    "orderList.place.oco": f"POST {_API}/orderList/oco",
    "orderList.status": f"GET {_API}/orderList",
    "orderList.cancel": f"DELETE {_API}/orderList",
    "openOrderLists.status": f"GET {_API}/openOrderList",
    "allOrders": f"GET {_API}/allOrders",
    "allOrderLists": f"GET {_API}/allOrderList",
    "myTrades": f"GET {_API}/myTrades",
    "myPreventedMatches": f"GET {_API}/myPreventedMatches",
    "myAllocations": f"GET {_API}/myAllocations",
    "account.status": f"GET {_API}/account",
    "account.commission": f"GET {_API}/account/commission",
    "account.rateLimits.orders": f"GET {_API}/rateLimit/order",
    "userDataStream.start": f"POST {_API}/userDataStream",
    "userDataStream.ping": f"PUT {_API}/userDataStream",
    "userDataStream.stop": f"DELETE {_API}/userDataStream",
}
_TIMED: Final = frozenset(("timestamp", "recvWindow"))
_encode = msgspec.json.Encoder().encode


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    method: str
    id: int | str | None = None
    params: dict[str, Any] = {}


class WsApi:
    """Answers the requests of WebSocket API sockets."""

    def __init__(self, dispatch: Dispatch, rates: Rates, limits: Limits) -> None:
        self._dispatch = dispatch
        self._limits = limits
        self._rates = rates

    def on_message(self, socket: Socket, text: str, now_ms: int) -> bool:
        """One request; false for one too many, after which the socket is closed."""
        answer: wire.Json = {"id": None, "status": 200}
        too_many = False
        try:
            try:
                request = msgspec.json.decode(text, type=_Request)
            except NOT_DECODED as exc:
                self._rates.request(socket.remote, 1, now_ms)
                raise Refused(-1135, "Invalid JSON Request") from exc
            answer["id"] = request.id
            parameters = {name: _text(value) for name, value in request.params.items()}
            try:
                result = self._answer(socket, request.method, parameters, now_ms)
            finally:
                if parameters.get("returnRateLimits") != "false":
                    answer["rateLimits"] = [
                        wire.rate_limits(self._limits)[0] | {"count": self._rates.used(socket.remote, now_ms)}
                    ]
            answer["result"] = micros(result) if socket.micros else result
        except Refused as exc:
            error: wire.Json = {"code": exc.number, "msg": exc.text}
            data = getattr(exc, "data", None)
            if isinstance(exc, RateLimited):
                too_many = exc.number == TOO_MUCH
                data = {"serverTime": now_ms, "retryAfter": now_ms + exc.retry_after * 1_000}
            answer |= {"status": exc.status, "error": error if data is None else error | {"data": data}}
        except OSError:
            # The journal could not be written: what was asked may have been done.
            answer |= {"status": 500, "error": {"code": -1006, "msg": "Execution status unknown."}}
        socket.send(_encode(answer))
        return not too_many

    def _answer(self, socket: Socket, method: str, parameters: dict[str, str], now_ms: int) -> Any:
        name = METHODS.get(method)
        weight = 2 if name is None else self._dispatch.table[name].weight
        self._rates.request(socket.remote, weight, now_ms)
        if name is not None:
            return self._dispatch.socket(name, parameters, socket.remote, socket.session)
        match method:
            case "session.logon":
                return self._logon(socket, parameters, now_ms)
            case "session.status":
                return _session(socket, now_ms)
            case "session.logout":
                socket.session, socket.session_ms = None, 0
                return _session(socket, now_ms)
            case "session.subscriptions":
                return [{"subscriptionId": number} for number in socket.users]
            case "userDataStream.subscribe":
                if socket.session is None:
                    raise Refused(-2015, "Invalid API-key, IP, or permissions for action.", 401)
                return self._subscribe(socket, self._dispatch.authenticate({}, socket.remote, socket.session)[0])
            case "userDataStream.subscribe.signature":
                key = self._signer(socket, parameters, now_ms)
                return self._subscribe(socket, key)
            case "userDataStream.subscribe.listenToken" | "userDataStream.unsubscribe":
                if method.endswith("listenToken"):
                    raise Refused(-1020, "This operation is not supported.")
                number = parameters.get("subscriptionId")
                for each in [n for n in socket.users if number in (None, str(n))]:
                    del socket.users[each]
                return {}
        raise Refused(-1020, "This operation is not supported.")

    def _signer(self, socket: Socket, parameters: dict[str, str], now_ms: int) -> Key:
        key, _ = self._dispatch.authenticate(parameters, socket.remote, None)
        check_names(parameters, _TIMED)
        check_window(parameters, now_ms)
        return key

    @staticmethod
    def _subscribe(socket: Socket, key: Key) -> wire.Json:
        permit(key, "read")
        number = socket.next_subscription
        socket.next_subscription += 1
        socket.users[number] = key
        return {"subscriptionId": number}

    def _logon(self, socket: Socket, parameters: dict[str, str], now_ms: int) -> wire.Json:
        key = self._signer(socket, parameters, now_ms)
        if key.secret:
            raise Refused(-4056, "HMAC_SHA256 API key is not supported.")
        socket.session, socket.session_ms = key, now_ms
        return _session(socket, now_ms)


def _session(socket: Socket, now_ms: int) -> wire.Json:
    key = socket.session
    return {
        "apiKey": None if key is None else key.api_key,
        "authorizedSince": None if key is None else socket.session_ms,
        "connectedSince": socket.since_ms,
        "returnRateLimits": False,
        "serverTime": now_ms,
        "userDataStream": bool(socket.users),
    }


def _text(value: Any) -> str:
    """A parameter as it stands in what is signed."""
    return value if isinstance(value, str) else _encode(value).decode()
