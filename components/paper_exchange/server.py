"""The venue's doors: REST and websockets in Binance spot's words, over TLS 1.3 alone.

- A request is counted, read up to a limit and a time, and dispatched (`dispatch`).  What is not here is answered in
  Binance's words, too.
- What happened to orders is kept before it is told: first to the state's file, then to who follows the account.

Whoever controls this process can at most invent trades and balances of paper; no other component takes its word for
anything but this venue.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from aiohttp import web

from tallystick.components.paper_exchange import wire
from tallystick.components.paper_exchange.access import Config, Key, Keys, RateLimited, Rates
from tallystick.components.paper_exchange.call import Endpoint
from tallystick.components.paper_exchange.dispatch import Dispatch
from tallystick.components.paper_exchange.endpoints import Endpoints
from tallystick.components.paper_exchange.history import History, Print
from tallystick.components.paper_exchange.journal import Journal
from tallystick.components.paper_exchange.listen import ListenKeys
from tallystick.components.paper_exchange.matching import Engine
from tallystick.components.paper_exchange.orders import ListReport, Order, Refused, Report
from tallystick.components.paper_exchange.sockets import Socket, Sockets
from tallystick.components.paper_exchange.state import Change, State
from tallystick.components.paper_exchange.sub_keys import SubKeys
from tallystick.components.paper_exchange.ticks import Ticks
from tallystick.components.paper_exchange.trading import Failed, Trading
from tallystick.components.paper_exchange.units import micros, wants_micros
from tallystick.components.paper_exchange.ws_api import WsApi
from tallystick.runtime.bus.tasks import Tasks
from tallystick.schemas.bounds import NS_PER_MS
from tallystick.schemas.errors import ConfigError

# A signed order is about 400 bytes.
MAX_BODY: Final = 8_192
BODY_S: Final = 10.0
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
        self._key_changes: dict[str, Key | None] = {}
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
        self._listens = ListenKeys(self._end_listen)
        self.sockets = Sockets(
            self.engine.books,
            clock,
            within,
            self._listens.find,
            self._on_api,
        )
        history = History(self.engine.books)
        self._ticks = Ticks(self.engine, history, self.sockets.market_streams, self.sockets.broadcast)
        table: dict[str, Endpoint] = {
            **Endpoints(self.engine, self._rates, config.limits, self._keep).table(),
            **Trading(self.engine, self._rates).table(),
            **self._ticks.market().table(),
            **self._listens.table(),
            **SubKeys(self.keys, config.sub_accounts, config.limits.api_keys, self._change_key).table(),
        }
        self._dispatch = Dispatch(table, self.keys, self._journal, clock, self._publish)
        self._ws_api = WsApi(self._dispatch, self._rates, config.limits)
        self._runner: web.AppRunner | None = None

    # Life.

    async def start(self) -> int:
        """Listen; returns the port."""
        app = web.Application(client_max_size=MAX_BODY)
        for name, endpoint in self._dispatch.table.items():
            method, path = name.split(" ")
            app.router.add_route(method, path, self._handler(name, endpoint.weight))
        for path in ("/ws", "/ws/{names:.*}"):
            app.router.add_get(path, self.sockets.streams)
        app.router.add_get("/stream", self.sockets.combined)
        app.router.add_get("/ws-api/v3", self.sockets.api)
        app.router.add_route("*", "/{tail:.*}", self._unknown)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self.port, ssl_context=self._tls)
        await site.start()
        self.port = int(self._runner.addresses[0][1])
        return self.port

    async def stop(self) -> None:
        """Cut all connections and stop listening."""
        self.sockets.cut()
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
        for change in changes:
            self._key_changes |= change.keys
        self._restore_keys()
        state.open(self._change(self.engine.orders(), list(self.engine.accounts), self._key_changes))

    def _restore_keys(self) -> None:
        known = {key.api_key for key in self._config.keys}
        for api_key, key in self._key_changes.items():
            if key is not None:
                self.keys.put(key)
            elif api_key in known:
                self.keys.revoke(api_key)

    def _change(self, orders: list[Order], accounts: list[str], keys: dict[str, Key | None] | None = None) -> Change:
        engine = self.engine
        return Change(
            orders=orders,
            accounts={name: engine.accounts[name] for name in accounts},
            market=engine.market,
            fees=engine.fees,
            withdrawn=engine.withdrawn,
            keys=keys or {},
        )

    def _keep(self, account: str) -> None:
        if self._state is not None:
            self._state.append(self._change([], [account]))

    def _end_listen(self, name: str) -> None:
        self.sockets.end_listen(name)

    def _on_api(self, socket: Socket, text: str, now_ms: int) -> bool:
        return self._ws_api.on_message(socket, text, now_ms)

    def revoke(self, api_key: str) -> None:
        """Revoke a key for good and end its user data streams.  Raises `ConfigError` for an unknown one, `OSError`."""
        self._change_key(api_key, None)

    def _change_key(self, api_key: str, key: Key | None) -> None:
        """Keep the key as it is from now on (None: deleted), then do it: a crash between the two loses no change."""
        if key is not None:
            self.keys.check(key)
        if self._state is not None:
            self._state.append(self._change([], [], {api_key: key}))
        self._key_changes[api_key] = key
        if key is None:
            self.keys.revoke(api_key)
        else:
            self.keys.put(key)
        self._listens.revoke(api_key)
        self.sockets.end_key(api_key, self.keys.addresses(api_key, self.sockets.remotes))

    # The market.

    def on_market_trade(self, symbol: str, price: Decimal, qty: Decimal, buyer_is_maker: bool, time_ns: int) -> None:
        """Play one trade of the market: fills what it reaches, then tells the streams.  Raises `Malformed`."""
        now_ms = self._clock() // NS_PER_MS
        trade_id = self.engine.market_trade(symbol, price, qty, buyer_is_maker, now_ms)
        played = Print(trade_id, price, qty, now_ms, buyer_is_maker)
        self._ticks.on_trade(symbol, played, time_ns // NS_PER_MS, now_ms)
        self._publish(now_ms)

    def _publish(self, now_ms: int) -> None:
        """Keep what just happened; send it to the user data streams of the accounts concerned, and to nobody else."""
        reports = self.engine.drain()
        if not reports:
            return
        by_account: dict[str, list[Report | ListReport]] = {}
        for report in reports:
            by_account.setdefault(report.order.account, []).append(report)
        if self._state is not None:
            touched = {report.order.id: report.order for report in reports}
            self._state.append(self._change(list(touched.values()), list(by_account)))
        for symbol in {report.order.symbol for report in reports}:
            self._ticks.on_change(symbol, now_ms)
        if not self.sockets.followed:
            return
        for account, its in by_account.items():
            assets: dict[str, None] = {}
            for report in its:
                instrument = self.engine.instrument(report.order.symbol)
                assets[instrument.base] = assets[instrument.quote] = None
            events = [
                wire.execution_report(report, now_ms)
                if isinstance(report, Report)
                else wire.list_status(report, now_ms)
                for report in its
            ]
            events.append(wire.account_position(self.engine.accounts[account], list(assets), now_ms))
            self.sockets.tell(account, events)

    # REST.

    def _handler(self, name: str, weight: int) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            fault = await self._fault(name)
            if fault == "drop_before":
                return _cut(request)
            headers: dict[str, str] = {}
            status = 200
            answer: Any
            try:
                used = self._rates.request(request.remote or "", weight, self._clock() // NS_PER_MS)
                headers["X-MBX-USED-WEIGHT-1M"] = str(used)
                unit = wants_micros(request.headers.get("X-MBX-TIME-UNIT"))
                body = await self._body(request)
                if body and request.method == "GET":
                    raise Refused(-1101, "Too many parameters sent for this endpoint.")
                query = request.raw_path.partition("?")[2].encode("utf-8", "surrogateescape")
                api_key = request.headers.get("X-MBX-APIKEY")
                answer = self._dispatch.rest(name, query, body, api_key, request.remote or "", headers)
                answer = micros(answer) if unit else answer
            except Refused as exc:
                status, answer = exc.status, {"code": exc.number, "msg": exc.text}
                if isinstance(exc, Failed):
                    answer["data"] = exc.data
                if isinstance(exc, RateLimited):
                    headers["Retry-After"] = str(exc.retry_after)
            except web.HTTPRequestEntityTooLarge:
                status, answer = 413, {"code": -1101, "msg": f"Too many parameters; a request has {MAX_BODY} bytes."}
            except TimeoutError:
                status, answer = 408, {"code": -1101, "msg": f"The body did not come within {BODY_S} s."}
            except OSError:
                # The journal could not be written: what was asked may have been done.
                status, answer = 500, {"code": -1006, "msg": "Execution status unknown."}
            if fault == "drop_after":
                return _cut(request)
            return _json(answer, status, headers)

        return handle

    @staticmethod
    async def _body(request: web.Request) -> bytes:
        if not request.can_read_body:
            return b""
        # By our own clock: a client that sends a byte now and then holds nothing.
        async with asyncio.timeout(BODY_S):
            return await request.read()

    async def _unknown(self, request: web.Request) -> web.StreamResponse:
        """Binance's error for what is not here, so that clients read it like every other."""
        try:
            self._rates.request(request.remote or "", 1, self._clock() // NS_PER_MS)
        except RateLimited as exc:
            return _json({"code": exc.number, "msg": exc.text}, 429, {"Retry-After": str(exc.retry_after)})
        text = f"This operation is not supported: {request.method} {request.path[:96]}"
        return _json({"code": -1020, "msg": text}, 404, {})

    async def _fault(self, name: str) -> str:
        fault = self._faults.get(name)
        if fault is None or fault.times <= 0:
            return ""
        fault.times -= 1
        if fault.kind == "delay":
            await asyncio.sleep(fault.seconds)
        return fault.kind


def _json(answer: Any, status: int, headers: dict[str, str]) -> web.Response:
    return web.Response(body=_encode(answer), status=status, headers=headers, content_type="application/json")


def _cut(request: web.Request) -> web.Response:
    """End the connection with nothing more said."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()
