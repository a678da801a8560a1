"""The venue's websockets: market streams for everyone, an account's events for keys of it that may read.

- What waits for one socket is bounded: a reader that does not keep up is cut off, and holds nobody up.
- Revoking a key ends its user data streams.

No client is trusted: an attacker who connects can at most take one of `MAX_SOCKETS` places.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import Final

import msgspec
from aiohttp import WSMsgType, web

from tallystick.components.paper_exchange import wire
from tallystick.components.paper_exchange.access import Key, Keys, Rates, check_window, parse_parameters, permit
from tallystick.components.paper_exchange.orders import Refused
from tallystick.runtime.bus.tasks import Tasks, end
from tallystick.schemas.bounds import NS_PER_MS
from tallystick.schemas.errors import NOT_DECODED

MAX_SOCKET_MESSAGE: Final = 4_096
MAX_SOCKETS: Final = 256
MAX_STREAMS: Final = 1_024
# Messages that wait for one socket; a slower reader is cut off.
MAX_BACKLOG: Final = 10_000
# Binance closes a socket that sends more than 5 messages a second.
MAX_SOCKET_RATE: Final = 5
_STREAM_KINDS: Final = ("trade", "bookTicker")
_encode = msgspec.json.Encoder().encode


class _StreamRequest(msgspec.Struct, forbid_unknown_fields=True):
    method: str
    id: int | str | None = None
    params: list[str] = []


class _ApiRequest(msgspec.Struct, forbid_unknown_fields=True):
    method: str
    id: int | str | None = None
    params: dict[str, str | int] = {}


class Socket:
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
        """Queue a message; a reader too slow for its queue is cut off."""
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
        """Send what is queued, until the client is gone."""
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


class Sockets:
    """All websockets; `symbols` are traded, `within` hears of failures.  Owns `open`."""

    def __init__(
        self, keys: Keys, rates: Rates, symbols: Collection[str], clock: Callable[[], int], within: Tasks
    ) -> None:
        self.open: set[Socket] = set()
        self._keys = keys
        self._rates = rates
        self._symbols = symbols
        self._clock = clock
        self._tasks = Tasks(within)

    def cut(self) -> None:
        """Drop every connection."""
        for socket in list(self.open):
            socket.cut()

    def end_key(self, api_key: str) -> None:
        """End the user data streams of a key."""
        ended = {"e": "eventStreamTerminated", "E": self._clock() // NS_PER_MS}
        for socket in self.open:
            for number in [n for n, key in socket.users.items() if key.api_key == api_key]:
                del socket.users[number]
                socket.send(_encode({"subscriptionId": number, "event": ended}))

    def broadcast(self, stream: str, event: Callable[[], wire.Json]) -> None:
        """Send `event()` to everyone who follows a market stream; it is made only if somebody does."""
        data: bytes | None = None
        for socket in self.open:
            if stream in socket.streams:
                data = data or _encode(event())
                socket.send(data)

    @property
    def followed(self) -> bool:
        """Whether anybody follows an account."""
        return any(socket.users for socket in self.open)

    def tell(self, account: str, events: Sequence[wire.Json]) -> None:
        """Send an account's events to whoever follows it, and to nobody else."""
        for socket in self.open:
            for number, key in list(socket.users.items()):
                if key.account == account:
                    for event in events:
                        socket.send(_encode({"subscriptionId": number, "event": event}))

    async def _serve_socket(
        self, request: web.Request, on_message: Callable[[Socket, str], None], first: str | None = None
    ) -> web.StreamResponse:
        if len(self.open) >= MAX_SOCKETS:
            return web.Response(status=429, text="too many connections")
        ws = web.WebSocketResponse(heartbeat=60.0, max_msg_size=MAX_SOCKET_MESSAGE, compress=False)
        await ws.prepare(request)
        socket = Socket(ws, request.transport, self._clock)
        if first is not None:
            socket.streams.add(first)
        self.open.add(socket)
        writer = self._tasks.start(socket.write(), "socket")
        try:
            async for message in ws:
                if message.type is not WSMsgType.TEXT or not socket.count():
                    break
                on_message(socket, message.data)
        finally:
            self.open.discard(socket)
            await end(writer)
            await ws.close()
        return ws

    async def streams(self, request: web.Request) -> web.StreamResponse:
        """`/ws` and `/ws/<stream>`: market streams, for everyone."""
        name = request.match_info.get("name", "")
        return await self._serve_socket(request, self._on_stream_request, name if self._is_stream(name) else None)

    def _is_stream(self, name: str) -> bool:
        symbol, _, kind = name.partition("@")
        return kind in _STREAM_KINDS and symbol == symbol.lower() and symbol.upper() in self._symbols

    def _on_stream_request(self, socket: Socket, text: str) -> None:
        try:
            request = msgspec.json.decode(text, type=_StreamRequest)
        except NOT_DECODED as exc:
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

    async def api(self, request: web.Request) -> web.StreamResponse:
        """`/ws-api/v3`: user data streams, for keys that may read."""
        remote = request.remote or ""
        return await self._serve_socket(request, lambda socket, text: self._on_api_request(socket, remote, text))

    def _on_api_request(self, socket: Socket, remote: str, text: str) -> None:
        request_id: int | str | None = None
        try:
            try:
                request = msgspec.json.decode(text, type=_ApiRequest)
            except NOT_DECODED as exc:
                raise Refused(-1135, "Invalid JSON Request") from exc
            request_id = request.id
            answer = {"id": request_id, "status": 200, "result": self._api_call(socket, remote, request)}
        except Refused as exc:
            answer = {"id": request_id, "status": exc.status, "error": {"code": exc.number, "msg": exc.text}}
        socket.send(_encode(answer))

    def _api_call(self, socket: Socket, remote: str, request: _ApiRequest) -> wire.Json:
        now_ms = self._clock() // NS_PER_MS
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
        key = self._keys.verify(parameters.get("apiKey"), remote, payload, signature)
        parse_parameters(payload, allowed=frozenset(("apiKey", "timestamp", "recvWindow")))
        check_window(parameters, now_ms)
        permit(key, "read")
        number = socket.next_subscription
        socket.next_subscription += 1
        socket.users[number] = key
        return {"subscriptionId": number}
