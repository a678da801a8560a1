"""The venue's websockets: market streams for everyone, an account's events for keys of it that may read.

- What waits for one socket is bounded: a reader that does not keep up is cut off, and holds nobody up.
- Revoking a key ends its user data streams.

No client is trusted: an attacker who connects can at most take one of `MAX_SOCKETS` places.

Source: Binance Spot API documentation, "WebSocket Streams", "User Data Streams".
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Final

import msgspec
from aiohttp import WSMsgType, web

from tallystick.components.paper_exchange import wire
from tallystick.components.paper_exchange.access import Key
from tallystick.components.paper_exchange.orders import Refused
from tallystick.components.paper_exchange.ticks import is_stream
from tallystick.components.paper_exchange.units import micros, wants_micros
from tallystick.runtime.bus.tasks import Tasks, end
from tallystick.schemas.bounds import NS_PER_MS
from tallystick.schemas.errors import NOT_DECODED

MAX_SOCKET_MESSAGE: Final = 4_096
MAX_SOCKETS: Final = 256
MAX_STREAMS: Final = 1_024
# Messages that wait for one socket; a slower reader is cut off.
MAX_BACKLOG: Final = 10_000
# Binance closes a market stream's socket that sends more than 5 messages a second; the WebSocket API counts weights.
MAX_SOCKET_RATE: Final = 5
_encode = msgspec.json.Encoder().encode


class _StreamRequest(msgspec.Struct, forbid_unknown_fields=True):
    method: str
    id: int | str | None = None
    params: list[Any] = []


class Socket:
    """One websocket: what is to be sent waits in a bounded queue, so a slow reader cannot hold the venue up.

    `combined`: market streams and listen keys are told with their names; `micros`: times are in microseconds.
    """

    def __init__(
        self,
        ws: web.WebSocketResponse,
        request: web.Request,
        clock: Callable[[], int],
        *,
        combined: bool = False,
        micros: bool = False,
    ) -> None:
        self.ws = ws
        self.remote = request.remote or ""
        self.combined = combined
        self.micros = micros
        self.since_ms = clock() // NS_PER_MS
        self.session: Key | None = None
        self.session_ms = 0
        self.streams: set[str] = set()
        self.listens: dict[str, Key] = {}  # listen key -> API key
        self.users: dict[int, Key] = {}  # subscription id -> API key
        self.next_subscription = 0
        self._transport = request.transport
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

    def tell(self, event: Any, name: str = "") -> None:
        """Queue an event of the stream or listen key `name`, or under none."""
        event = micros(event) if self.micros else event
        self.send(_encode({"stream": name, "data": event} if self.combined and name else event))

    def cut(self) -> None:
        """Drop the connection at once; its reader ends and cleans up."""
        self.streams.clear()
        self.listens.clear()
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
    """All websockets; `symbols` are traded, `listening` finds a listen key's API key, `within` hears of failures.

    `on_api` answers a message of the WebSocket API, and says false where the socket is to be closed.  Owns `open`.
    """

    def __init__(
        self,
        symbols: Collection[str],
        clock: Callable[[], int],
        within: Tasks,
        listening: Callable[[str, int], Key | None],
        on_api: Callable[[Socket, str, int], bool],
    ) -> None:
        self.open: set[Socket] = set()
        self._symbols = symbols
        self._clock = clock
        self._tasks = Tasks(within)
        self._listening = listening
        self._on_api = on_api
        self._market: frozenset[str] | None = frozenset()

    def cut(self) -> None:
        """Drop every connection."""
        for socket in list(self.open):
            socket.cut()

    def end_key(self, api_key: str, still: frozenset[str] = frozenset()) -> None:
        """End the user data streams of a key but those from addresses where it may `still` be used.

        Its sessions stay logged on: each request of theirs asks for the key anew, and is answered -2015.
        """
        ended = {"e": "eventStreamTerminated", "E": self._clock() // NS_PER_MS}
        for socket in self.open:
            if socket.remote in still:
                continue
            for number in [n for n, key in socket.users.items() if key.api_key == api_key]:
                del socket.users[number]
                socket.tell({"subscriptionId": number, "event": ended})

    @property
    def remotes(self) -> frozenset[str]:
        """The addresses of all connections."""
        return frozenset(socket.remote for socket in self.open)

    def end_listen(self, name: str) -> None:
        """A listen key has ended."""
        event = {"e": "listenKeyExpired", "E": self._clock() // NS_PER_MS, "listenKey": name}
        for socket in self.open:
            if socket.listens.pop(name, None) is not None:
                socket.tell(event, name)

    def market_streams(self) -> frozenset[str]:
        """The market streams that anybody follows."""
        if self._market is None:
            self._market = frozenset().union(*(socket.streams for socket in self.open))
        return self._market

    def broadcast(self, stream: str, event: Callable[[], Any]) -> None:
        """Send `event()` to everyone who follows a market stream; it is made only if somebody does."""
        made: Any = None
        for socket in list(self.open):
            if stream in socket.streams:
                made = made or event()
                socket.tell(made, stream)

    @property
    def followed(self) -> bool:
        """Whether anybody follows an account."""
        return any(socket.users or socket.listens for socket in self.open)

    def tell(self, account: str, events: Sequence[wire.Json]) -> None:
        """Send an account's events to whoever follows it, and to nobody else."""
        now_ms = self._clock() // NS_PER_MS
        for socket in list(self.open):
            for number, key in list(socket.users.items()):
                if key.account == account:
                    for event in events:
                        socket.tell({"subscriptionId": number, "event": event})
            for name, key in list(socket.listens.items()):
                if key.account == account and self._listening(name, now_ms) is not None:
                    for event in events:
                        socket.tell(event, name)

    async def _serve_socket(
        self, request: web.Request, names: Iterable[str], *, combined: bool = False, api: bool = False
    ) -> web.StreamResponse:
        if len(self.open) >= MAX_SOCKETS:
            return web.Response(status=429, text="too many connections")
        try:
            unit = wants_micros(request.query.get("timeUnit"))
        except Refused as exc:
            return web.json_response({"code": exc.number, "msg": exc.text}, status=400)
        ws = web.WebSocketResponse(heartbeat=60.0, max_msg_size=MAX_SOCKET_MESSAGE, compress=False)
        await ws.prepare(request)
        socket = Socket(ws, request, self._clock, combined=combined, micros=unit)
        self._follow(socket, names)
        self.open.add(socket)
        self._market = None
        writer = self._tasks.start(socket.write(), "socket")
        try:
            async for message in ws:
                if message.type is not WSMsgType.TEXT or not (api or socket.count()):
                    break
                if not api:
                    self._on_stream_request(socket, message.data)
                elif not self._on_api(socket, message.data, self._clock() // NS_PER_MS):
                    break
        finally:
            self.open.discard(socket)
            self._market = None
            await end(writer)
            await ws.close()
        return ws

    async def streams(self, request: web.Request) -> web.StreamResponse:
        """`/ws` and `/ws/<stream>/…`: market streams for everyone, listen keys."""
        return await self._serve_socket(request, request.match_info.get("names", "").split("/"))

    async def combined(self, request: web.Request) -> web.StreamResponse:
        """`/stream?streams=<stream>/…`: the same, each message with its stream's name."""
        return await self._serve_socket(request, request.query.get("streams", "").split("/"), combined=True)

    async def api(self, request: web.Request) -> web.StreamResponse:
        """`/ws-api/v3`: the WebSocket API."""
        return await self._serve_socket(request, (), api=True)

    def _follow(self, socket: Socket, names: Iterable[str]) -> None:
        """Follow those of `names` that are streams or listen keys, as Binance does; no more than a socket may."""
        now_ms = self._clock() // NS_PER_MS
        for name in names:
            key = self._listening(name, now_ms)
            if len(socket.streams) + len(socket.listens) >= MAX_STREAMS:
                return
            if key is not None:
                socket.listens[name] = key
            elif is_stream(name, self._symbols):
                socket.streams.add(name)
        self._market = None

    def _on_stream_request(self, socket: Socket, text: str) -> None:
        try:
            request = msgspec.json.decode(text, type=_StreamRequest)
        except NOT_DECODED as exc:
            socket.send(_encode({"error": {"code": 3, "msg": f"Invalid JSON: {exc}"}, "id": None}))
            return
        result: Any = None
        names = [str(name) for name in request.params]
        now_ms = self._clock() // NS_PER_MS
        known = socket.streams | set(socket.listens)
        unknown = [n for n in names if not is_stream(n, self._symbols) and self._listening(n, now_ms) is None]
        match request.method:
            case "SUBSCRIBE" | "UNSUBSCRIBE" if unknown:
                error = {"code": 2, "msg": f"Invalid request: no stream {unknown[0][:64]}"}
                socket.send(_encode({"error": error, "id": request.id}))
                return
            case "SUBSCRIBE" if len(known | set(names)) <= MAX_STREAMS:
                self._follow(socket, names)
            case "UNSUBSCRIBE":
                socket.streams.difference_update(names)
                for name in names:
                    socket.listens.pop(name, None)
                self._market = None
            case "LIST_SUBSCRIPTIONS":
                result = sorted(known)
            case "SET_PROPERTY" if request.params[:1] == ["combined"] and len(request.params) == 2:
                socket.combined = request.params[1] is True
            case "GET_PROPERTY" if request.params == ["combined"]:
                result = socket.combined
            case _:
                error = {"code": 2, "msg": f"Invalid request: {request.method[:64]}"}
                socket.send(_encode({"error": error, "id": request.id}))
                return
        socket.send(_encode({"result": result, "id": request.id}))
