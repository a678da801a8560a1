"""The venue's doors: REST and websockets in Binance spot's words, over TLS 1.3 alone.

- A request is counted, read up to a limit, authenticated (`access`), parsed (`wire`), done (`matching`), journalled,
  answered, in that order and within one step of the event loop: requests do not interleave.
- Market streams are for everyone; a user data stream carries one account's events to keys of that account that may
  read.  Revoking a key ends its streams.
- A socket that does not keep up is closed rather than buffered without bound.

Whoever controls this process can at
most invent trades and balances of paper; no other component takes its word for anything but this venue.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from aiohttp import WSMsgType, web

from tallystick.components.paper_exchange import wire
from tallystick.components.paper_exchange.access import (
    Config,
    Key,
    Keys,
    Permission,
    RateLimited,
    Rates,
    check_window,
    parse_parameters,
    permit,
    split_signature,
)
from tallystick.components.paper_exchange.journal import Entry, Journal
from tallystick.components.paper_exchange.matching import Engine, Order, Refused, Report
from tallystick.components.paper_exchange.state import Change, State
from tallystick.runtime.bus.tasks import Tasks, end
from tallystick.schemas.errors import ConfigError

# A signed order is about 400 bytes.
MAX_BODY: Final = 8_192
MAX_SOCKET_MESSAGE: Final = 4_096
MAX_SOCKETS: Final = 256
MAX_STREAMS: Final = 1_024
# Messages that wait for one socket; a slower reader is cut off.
MAX_BACKLOG: Final = 10_000
# Binance closes a socket that sends more than 5 messages a second.
MAX_SOCKET_RATE: Final = 5
_NS_PER_MS: Final = 1_000_000
_STREAM_KINDS: Final = ("trade", "bookTicker")
_encode = msgspec.json.Encoder().encode


@dataclass(slots=True)
class Fault:
    """What goes wrong with requests to one endpoint, for tests of clients: nothing does unless a caller says so.

    `delay` holds the request for `seconds` before it is read; `drop_before` cuts the connection with nothing done;
    `drop_after` does what was asked and cuts the connection instead of answering.  It happens `times` times.
    """

    kind: Literal["delay", "drop_before", "drop_after"]
    seconds: float = 0.0
    times: int = 1


@dataclass(slots=True)
class _Call:
    """A request on its way through an endpoint, and what the journal and the headers will say of it."""

    key: Key
    parameters: dict[str, str]
    now_ms: int
    order: Order | None = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True, frozen=True)
class _Public:
    run: Callable[[dict[str, str], int], Any]
    weight: int
    parameters: frozenset[str] = frozenset()


@dataclass(slots=True, frozen=True)
class _Signed:
    run: Callable[[_Call], Any]
    weight: int
    permission: Permission
    parameters: frozenset[str]
    journalled: bool = False


class _StreamRequest(msgspec.Struct, forbid_unknown_fields=True):
    method: str
    id: int | str | None = None
    params: list[str] = []


class _ApiRequest(msgspec.Struct, forbid_unknown_fields=True):
    method: str
    id: int | str | None = None
    params: dict[str, str | int] = {}


class _Socket:
    """One websocket: what is to be sent waits in a bounded queue, so a slow reader cannot hold the venue up."""

    def __init__(
        self, ws: web.WebSocketResponse, transport: asyncio.Transport | None, clock: Callable[[], int]
    ) -> None:
        self.ws = ws
        self._transport = transport
        self.streams: set[str] = set()
        self.users: dict[int, Key] = {}  # subscription id -> key
        self.next_subscription = 0
        self._queue: asyncio.Queue[bytes] = asyncio.Queue(MAX_BACKLOG)
        self._clock = clock
        self._second = 0
        self._messages = 0

    def send(self, data: bytes) -> None:
        try:
            self._queue.put_nowait(data)
        except asyncio.QueueFull:
            self.cut()

    def cut(self) -> None:
        """Drop the connection at once; its reader ends and cleans up."""
        self.streams.clear()
        self.users.clear()
        if self._transport is not None:
            self._transport.abort()

    async def write(self) -> None:
        while True:
            text = (await self._queue.get()).decode()
            try:
                await self.ws.send_str(text)
            except ConnectionError:
                return  # the client is gone; its reader ends and cleans up

    def count(self) -> bool:
        """Count a message received; false if there are too many in this second."""
        second = self._clock() // 1_000_000_000
        if second != self._second:
            self._second, self._messages = second, 0
        self._messages += 1
        return self._messages <= MAX_SOCKET_RATE


class Exchange:
    """The paper exchange.

    `clock` gives Unix nanoseconds; `tls` is a server context that allows nothing below TLS 1.3; `journal` is the path
    of the request journal, `state` where orders and balances outlive a restart (None: they do not); `port` 0 takes a
    free one.  `faults` maps `"POST /api/v3/order"` to what goes wrong there; `within` hears of its own failures.
    Raises `ConfigError` for a configuration or context that it does not run with.
    """

    def __init__(
        self,
        config: Config,
        *,
        clock: Callable[[], int],
        tls: ssl.SSLContext,
        journal: Path,
        within: Tasks,
        state: Path | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        faults: MutableMapping[str, Fault] | None = None,
    ) -> None:
        if tls.minimum_version < ssl.TLSVersion.TLSv1_3:
            raise ConfigError("PAPER_TLS", "the TLS context must allow nothing below TLS 1.3")
        # Ids in µs since 1970: a client that knew an id of a life before never meets it again.
        self.engine = Engine(
            config.instruments, config.accounts, config.commission, config.depth, first_id=clock() // 1_000
        )
        self.keys = Keys(config.keys, config.accounts)
        self.port = port
        self._config = config
        self._rates = Rates(config.limits)
        self._clock = clock
        self._tls = tls
        self._host = host
        self._faults = faults if faults is not None else {}
        self._journal = Journal(journal)
        self._state = None if state is None else State(state)
        if self._state is not None:
            self._restore(self._state)
        self._sockets: set[_Socket] = set()
        self._tasks = Tasks(within)
        self._withdrawals = 0
        self._runner: web.AppRunner | None = None

    # Life.

    async def start(self) -> int:
        """Listen; returns the port."""
        app = web.Application(client_max_size=MAX_BODY)
        for name, endpoint in self._endpoints().items():
            method, path = name.split(" ")
            app.router.add_route(method, path, self._handler(name, endpoint))
        for path in ("/ws", "/ws/{name}"):
            app.router.add_get(path, self._streams)
        app.router.add_get("/ws-api/v3", self._api)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self.port, ssl_context=self._tls)
        await site.start()
        self.port = int(self._runner.addresses[0][1])
        return self.port

    async def stop(self) -> None:
        """Cut all connections and stop listening."""
        for socket in list(self._sockets):
            socket.cut()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
            self._journal.close()
            if self._state is not None:
                self._state.close()

    def _restore(self, state: State) -> None:
        changes = state.read()
        orders = {order.id: order for change in changes for order in change.orders}
        accounts = {name: held for change in changes for name, held in change.accounts.items()}
        self.engine.restore(orders.values(), accounts)
        if changes:
            self.engine.market.update(changes[-1].market)
            self.engine.fees.update(changes[-1].fees)
            self.engine.withdrawn.update(changes[-1].withdrawn)
        state.open(self._change(self.engine.orders(), list(self.engine.accounts)))

    def _change(self, orders: list[Order], accounts: list[str]) -> Change:
        engine = self.engine
        return Change(
            orders=orders,
            accounts={name: engine.accounts[name] for name in accounts},
            market=engine.market,
            fees=engine.fees,
            withdrawn=engine.withdrawn,
        )

    def revoke(self, api_key: str) -> None:
        """Revoke a key and end its user data streams.  Raises `ConfigError` for an unknown one."""
        self.keys.revoke(api_key)
        ended = {"e": "eventStreamTerminated", "E": self._now_ms()}
        for socket in self._sockets:
            for number in [n for n, key in socket.users.items() if key.api_key == api_key]:
                del socket.users[number]
                socket.send(_encode({"subscriptionId": number, "event": ended}))

    # The market.

    def on_market_trade(self, symbol: str, price: Decimal, qty: Decimal, buyer_is_maker: bool, time_ns: int) -> None:
        """Play one trade of the market: fills what it reaches, then tells the streams.  Raises `Malformed`."""
        now_ms = self._now_ms()
        before = self.engine.touch(symbol) if symbol in self.engine.books else None
        trade_id = self.engine.market_trade(symbol, price, qty, buyer_is_maker, now_ms)
        stream = symbol.lower()
        self._broadcast(
            f"{stream}@trade",
            lambda: {
                "e": "trade",
                "E": now_ms,
                "s": symbol,
                "t": trade_id,
                "p": wire.number(price),
                "q": wire.number(qty),
                "T": time_ns // _NS_PER_MS,
                "m": buyer_is_maker,
                "M": True,
            },
        )
        after = self.engine.touch(symbol)
        if after is not None and after != before:
            bid, bid_qty, ask, ask_qty = (wire.number(x) for x in after)
            self._broadcast(
                f"{stream}@bookTicker",
                lambda: {"u": trade_id, "s": symbol, "b": bid, "B": bid_qty, "a": ask, "A": ask_qty},
            )
        self._publish(now_ms)

    def _broadcast(self, stream: str, event: Callable[[], wire.Json]) -> None:
        data: bytes | None = None
        for socket in self._sockets:
            if stream in socket.streams:
                data = data or _encode(event())
                socket.send(data)

    def _publish(self, now_ms: int) -> None:
        """Keep what just happened; send it to the user data streams of the accounts concerned, and to nobody else."""
        reports = self.engine.drain()
        if not reports:
            return
        by_account: dict[str, list[Report]] = {}
        for report in reports:
            by_account.setdefault(report.order.account, []).append(report)
        if self._state is not None:
            touched = {report.order.id: report.order for report in reports}
            self._state.append(self._change(list(touched.values()), list(by_account)))
        if not any(socket.users for socket in self._sockets):
            return
        for account, its in by_account.items():
            assets: dict[str, None] = {}
            for report in its:
                instrument = self.engine.instrument(report.order.symbol)
                assets[instrument.base] = assets[instrument.quote] = None
            events = [wire.execution_report(report, now_ms) for report in its]
            events.append(wire.account_position(self.engine.accounts[account], list(assets), now_ms))
            for socket in self._sockets:
                for number, key in list(socket.users.items()):
                    if key.account == account:
                        for event in events:
                            socket.send(_encode({"subscriptionId": number, "event": event}))

    # REST.

    def _endpoints(self) -> dict[str, _Public | _Signed]:
        which = frozenset(("symbol", "orderId", "origClientOrderId"))
        symbol = frozenset(("symbol",))
        return {
            "GET /api/v3/ping": _Public(lambda _parameters, _now: {}, 1),
            "GET /api/v3/time": _Public(lambda _parameters, now: {"serverTime": now}, 1),
            "GET /api/v3/exchangeInfo": _Public(self._exchange_info, 20, symbol),
            "POST /api/v3/order": _Signed(self._new_order, 1, "trade", wire.ORDER_PARAMETERS, True),
            "POST /api/v3/order/test": _Signed(self._test_order, 1, "trade", wire.ORDER_PARAMETERS, True),
            "GET /api/v3/order": _Signed(self._get_order, 4, "read", which),
            "DELETE /api/v3/order": _Signed(self._cancel, 1, "trade", which | {"newClientOrderId"}, True),
            "GET /api/v3/openOrders": _Signed(self._open_orders, 6, "read", symbol),
            "DELETE /api/v3/openOrders": _Signed(self._cancel_all, 1, "trade", symbol, True),
            "GET /api/v3/account": _Signed(self._account, 20, "read", frozenset(("omitZeroBalances",))),
            "GET /api/v3/myTrades": _Signed(
                self._my_trades, 20, "read", symbol | {"orderId", "startTime", "endTime", "fromId", "limit"}
            ),
            "GET /sapi/v1/capital/config/getall": _Signed(self._coins, 10, "read", frozenset()),
            "GET /sapi/v1/asset/tradeFee": _Signed(self._trade_fee, 1, "read", symbol),
            "GET /sapi/v1/account/apiRestrictions": _Signed(
                lambda call: wire.restrictions(call.key), 1, "read", frozenset()
            ),
            "POST /sapi/v1/capital/withdraw/apply": _Signed(
                self._withdraw,
                900,
                "withdraw",
                frozenset(("coin", "address", "addressTag", "network", "amount", "withdrawOrderId")),
                True,
            ),
        }

    def _handler(
        self, name: str, endpoint: _Public | _Signed
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        if isinstance(endpoint, _Signed):
            allowed = endpoint.parameters | {"timestamp", "recvWindow"}

        async def handle(request: web.Request) -> web.StreamResponse:
            fault = await self._fault(name)
            if fault == "drop_before":
                return _cut(request)
            headers: dict[str, str] = {}
            status = 200
            answer: Any
            try:
                received_ns = self._clock()
                used = self._rates.request(request.remote or "", endpoint.weight, received_ns // _NS_PER_MS)
                headers["X-MBX-USED-WEIGHT-1M"] = str(used)
                body = await request.read() if request.can_read_body else b""
                if body and request.method == "GET":
                    raise Refused(-1101, "Too many parameters sent for this endpoint.")
                # The bytes as they came: a signature over anything re-encoded would be another promise.
                query = request.raw_path.partition("?")[2].encode("utf-8", "surrogateescape")
                if isinstance(endpoint, _Public):
                    parameters = parse_parameters(query, body, allowed=endpoint.parameters)
                    answer = endpoint.run(parameters, received_ns // _NS_PER_MS)
                else:
                    answer = self._signed(name, endpoint, allowed, request, query, body, headers)
            except Refused as exc:
                status, answer = exc.status, {"code": exc.number, "msg": exc.text}
                if isinstance(exc, RateLimited):
                    headers["Retry-After"] = str(exc.retry_after)
            except web.HTTPRequestEntityTooLarge:
                status, answer = 413, {"code": -1101, "msg": f"Too many parameters; a request has {MAX_BODY} bytes."}
            except OSError:
                # The journal could not be written: what was asked may have been done.
                status, answer = 500, {"code": -1006, "msg": "Execution status unknown."}
            if fault == "drop_after":
                return _cut(request)
            return web.Response(body=_encode(answer), status=status, headers=headers, content_type="application/json")

        return handle

    def _signed(
        self,
        name: str,
        endpoint: _Signed,
        allowed: frozenset[str],
        request: web.Request,
        query: bytes,
        body: bytes,
        headers: dict[str, str],
    ) -> Any:
        received_ns = self._clock()
        query, body, signature = split_signature(query, body)
        payload = query + body
        key = self.keys.verify(request.headers.get("X-MBX-APIKEY"), request.remote or "", payload, signature)
        # From here on the request is known to be the key's owner's, and is journalled whatever becomes of it.
        call = _Call(key, {}, received_ns // _NS_PER_MS, headers=headers)
        verdict, text = "", ""
        try:
            call.parameters = parse_parameters(query, body, allowed=allowed)
            check_window(call.parameters, call.now_ms)
            permit(key, endpoint.permission)
            answer = endpoint.run(call)
            verdict = call.order.status if call.order is not None else "OK"
        except Refused as exc:
            verdict, text = str(exc.number), exc.text
            raise
        finally:
            if endpoint.journalled:
                self._journal.append(
                    Entry(
                        time=received_ns,
                        api_key=key.api_key,
                        account=key.account,
                        request=name,
                        payload_sha256=hashlib.sha256(payload).hexdigest(),
                        client_order_id=call.order.client_id
                        if call.order is not None
                        else call.parameters.get("newClientOrderId", call.parameters.get("origClientOrderId", "")),
                        order_id=call.order.id if call.order is not None else 0,
                        verdict=verdict,
                        text=text,
                    )
                )
        self._publish(call.now_ms)
        return answer

    async def _fault(self, name: str) -> str:
        fault = self._faults.get(name)
        if fault is None or fault.times <= 0:
            return ""
        fault.times -= 1
        if fault.kind == "delay":
            await asyncio.sleep(fault.seconds)
        return fault.kind

    def _exchange_info(self, parameters: dict[str, str], now_ms: int) -> wire.Json:
        if "symbol" in parameters:
            instruments = [self.engine.instrument(parameters["symbol"])]
        else:
            instruments = [book.instrument for book in self.engine.books.values()]
        return wire.exchange_info(instruments, self._config.limits, now_ms)

    def _new_order(self, call: _Call) -> wire.Json:
        new, answer = wire.new_order(call.parameters)
        soon, day = self._rates.new_order(call.key.account, call.now_ms)
        call.headers["X-MBX-ORDER-COUNT-10S"] = str(soon)
        call.headers["X-MBX-ORDER-COUNT-1D"] = str(day)
        call.order = self.engine.place(call.key.account, new, call.now_ms)
        return wire.placed(call.order, answer)

    def _test_order(self, call: _Call) -> wire.Json:
        self.engine.check(wire.new_order(call.parameters)[0])
        return {}

    def _get_order(self, call: _Call) -> wire.Json:
        order_id, client_id = wire.which_order(call.parameters)
        return wire.queried(self.engine.order(call.key.account, wire.symbol(call.parameters), order_id, client_id))

    def _cancel(self, call: _Call) -> wire.Json:
        order_id, client_id = wire.which_order(call.parameters)
        symbol = wire.symbol(call.parameters)
        # Binance gives a cancel without an id of its own a random one.
        cancel_id = wire.client_id(call.parameters, "newClientOrderId") or f"cancel-{order_id or client_id}"[:36]
        call.order = self.engine.cancel(call.key.account, symbol, order_id, client_id, call.now_ms, cancel_id)
        return wire.cancelled(call.order, cancel_id)

    def _cancel_all(self, call: _Call) -> list[wire.Json]:
        symbol = wire.symbol(call.parameters)
        orders = self.engine.cancel_all(call.key.account, symbol, call.now_ms)
        return [wire.cancelled(order, f"cancel-{order.id}") for order in orders]

    def _open_orders(self, call: _Call) -> list[wire.Json]:
        symbol = wire.symbol(call.parameters) if "symbol" in call.parameters else None
        if symbol is not None:
            self.engine.instrument(symbol)
        return [wire.queried(order) for order in self.engine.open_orders(call.key.account, symbol)]

    def _account(self, call: _Call) -> wire.Json:
        held = self.engine.accounts[call.key.account]
        omit = call.parameters.get("omitZeroBalances") == "true"
        return wire.account(call.key, held, self.engine.commission, call.now_ms, omit)

    def _my_trades(self, call: _Call) -> list[wire.Json]:
        p = call.parameters
        symbol = wire.symbol(p)
        self.engine.instrument(symbol)
        order_id, first = wire.integer(p, "orderId"), wire.integer(p, "fromId")
        start, end = wire.integer(p, "startTime"), wire.integer(p, "endTime")
        asked = wire.integer(p, "limit")
        limit = min(500 if asked is None else asked, wire.MAX_LIST)
        found = [
            t
            for t in self.engine.trades[call.key.account]
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

    def _coins(self, call: _Call) -> list[wire.Json]:
        return wire.coins(self.engine.accounts[call.key.account])

    def _trade_fee(self, call: _Call) -> list[wire.Json]:
        wanted = [wire.symbol(call.parameters)] if "symbol" in call.parameters else list(self.engine.books)
        rate = wire.number(self.engine.commission)
        return [
            {"symbol": self.engine.instrument(s).symbol, "makerCommission": rate, "takerCommission": rate}
            for s in wanted
        ]

    def _withdraw(self, call: _Call) -> wire.Json:
        coin, amount = wire.withdrawal(call.parameters)
        self.engine.withdraw(call.key.account, coin, amount)
        self._withdrawals += 1
        if self._state is not None:
            self._state.append(self._change([], [call.key.account]))
        return {"id": f"withdrawal-{self._withdrawals}"}

    # Websockets.

    async def _serve_socket(
        self, request: web.Request, on_message: Callable[[_Socket, str], None], first: str | None = None
    ) -> web.StreamResponse:
        if len(self._sockets) >= MAX_SOCKETS:
            return web.Response(status=429, text="too many connections")
        ws = web.WebSocketResponse(heartbeat=60.0, max_msg_size=MAX_SOCKET_MESSAGE, compress=False)
        await ws.prepare(request)
        socket = _Socket(ws, request.transport, self._clock)
        if first is not None:
            socket.streams.add(first)
        self._sockets.add(socket)
        writer = self._tasks.start(socket.write(), "socket")
        try:
            async for message in ws:
                if message.type is not WSMsgType.TEXT or not socket.count():
                    break
                on_message(socket, message.data)
        finally:
            self._sockets.discard(socket)
            await end(writer)
            await ws.close()
        return ws

    async def _streams(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info.get("name", "")
        return await self._serve_socket(request, self._on_stream_request, name if self._is_stream(name) else None)

    def _is_stream(self, name: str) -> bool:
        symbol, _, kind = name.partition("@")
        return kind in _STREAM_KINDS and symbol == symbol.lower() and symbol.upper() in self.engine.books

    def _on_stream_request(self, socket: _Socket, text: str) -> None:
        try:
            request = msgspec.json.decode(text, type=_StreamRequest)
        except msgspec.DecodeError as exc:
            socket.send(_encode({"error": {"code": 3, "msg": f"Invalid JSON: {exc}"}, "id": None}))
            return
        result: list[str] | None = None
        unknown = [name for name in request.params if not self._is_stream(name)]
        if unknown:
            error = {"code": 2, "msg": f"Invalid request: no stream {unknown[0][:64]}"}
            socket.send(_encode({"error": error, "id": request.id}))
            return
        if request.method == "SUBSCRIBE" and len(socket.streams | set(request.params)) <= MAX_STREAMS:
            socket.streams.update(request.params)
        elif request.method == "UNSUBSCRIBE":
            socket.streams.difference_update(request.params)
        elif request.method == "LIST_SUBSCRIPTIONS":
            result = sorted(socket.streams)
        else:
            error = {"code": 2, "msg": f"Invalid request: {request.method[:64]}"}
            socket.send(_encode({"error": error, "id": request.id}))
            return
        socket.send(_encode({"result": result, "id": request.id}))

    async def _api(self, request: web.Request) -> web.StreamResponse:
        remote = request.remote or ""
        return await self._serve_socket(request, lambda socket, text: self._on_api_request(socket, remote, text))

    def _on_api_request(self, socket: _Socket, remote: str, text: str) -> None:
        request_id: int | str | None = None
        try:
            try:
                request = msgspec.json.decode(text, type=_ApiRequest)
            except msgspec.DecodeError as exc:
                raise Refused(-1135, "Invalid JSON Request") from exc
            request_id = request.id
            answer = {"id": request_id, "status": 200, "result": self._api_call(socket, remote, request)}
        except Refused as exc:
            answer = {"id": request_id, "status": exc.status, "error": {"code": exc.number, "msg": exc.text}}
        socket.send(_encode(answer))

    def _api_call(self, socket: _Socket, remote: str, request: _ApiRequest) -> wire.Json:
        now_ms = self._now_ms()
        self._rates.request(remote, 2, now_ms)
        if request.method == "ping":
            return {}
        if request.method == "time":
            return {"serverTime": now_ms}
        if request.method == "userDataStream.unsubscribe":
            number = request.params.get("subscriptionId")
            for each in [n for n in socket.users if number in (None, n)]:
                del socket.users[each]
            return {}
        if request.method != "userDataStream.subscribe.signature":
            raise Refused(-1020, "This operation is not supported.")
        parameters = {name: str(value) for name, value in request.params.items()}
        signature = parameters.pop("signature", "")
        payload = "&".join(f"{name}={parameters[name]}" for name in sorted(parameters)).encode()
        key = self.keys.verify(parameters.get("apiKey"), remote, payload, signature)
        parse_parameters(payload, allowed=frozenset(("apiKey", "timestamp", "recvWindow")))
        check_window(parameters, now_ms)
        permit(key, "read")
        number = socket.next_subscription
        socket.next_subscription += 1
        socket.users[number] = key
        return {"subscriptionId": number}

    def _now_ms(self) -> int:
        return self._clock() // _NS_PER_MS


def _cut(request: web.Request) -> web.Response:
    """End the connection with nothing more said."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()
