"""The venue's doors: REST and websockets in Binance spot's words, over TLS 1.3 alone.

- A request is counted, read up to a limit, authenticated (`access`), parsed (`wire`), done (`matching`), journalled,
  answered, in that order and within one step of the event loop: requests do not interleave.
- What happened to orders is kept before it is told: first to the state's file, then to who follows the account.

Whoever controls this process can at most invent trades and balances of paper; no other component takes its word for
anything but this venue.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from aiohttp import web

from tallystick.components.paper_exchange import wire
from tallystick.components.paper_exchange.access import (
    Config,
    Keys,
    RateLimited,
    Rates,
    check_window,
    parse_parameters,
    permit,
    split_signature,
)
from tallystick.components.paper_exchange.endpoints import Call, Endpoints, Public, Signed
from tallystick.components.paper_exchange.journal import Entry, Journal
from tallystick.components.paper_exchange.matching import Engine
from tallystick.components.paper_exchange.orders import Order, Refused, Report
from tallystick.components.paper_exchange.sockets import Sockets
from tallystick.components.paper_exchange.state import Change, State
from tallystick.runtime.bus.tasks import Tasks
from tallystick.schemas.bounds import NS_PER_MS
from tallystick.schemas.errors import ConfigError

# A signed order is about 400 bytes.
MAX_BODY: Final = 8_192
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
        self.sockets = Sockets(self.keys, self._rates, self.engine.books, clock, within)
        self._runner: web.AppRunner | None = None

    # Life.

    async def start(self) -> int:
        """Listen; returns the port."""
        app = web.Application(client_max_size=MAX_BODY)
        for name, endpoint in Endpoints(self.engine, self._rates, self._config.limits, self._keep).table().items():
            method, path = name.split(" ")
            app.router.add_route(method, path, self._handler(name, endpoint))
        for path in ("/ws", "/ws/{name}"):
            app.router.add_get(path, self.sockets.streams)
        app.router.add_get("/ws-api/v3", self.sockets.api)
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

    def _keep(self, account: str) -> None:
        if self._state is not None:
            self._state.append(self._change([], [account]))

    def revoke(self, api_key: str) -> None:
        """Revoke a key and end its user data streams.  Raises `ConfigError` for an unknown one."""
        self.keys.revoke(api_key)
        self.sockets.end_key(api_key)

    # The market.

    def on_market_trade(self, symbol: str, price: Decimal, qty: Decimal, buyer_is_maker: bool, time_ns: int) -> None:
        """Play one trade of the market: fills what it reaches, then tells the streams.  Raises `Malformed`."""
        now_ms = self._clock() // NS_PER_MS
        before = self.engine.touch(symbol) if symbol in self.engine.books else None
        trade_id = self.engine.market_trade(symbol, price, qty, buyer_is_maker, now_ms)
        stream = symbol.lower()
        self.sockets.broadcast(
            f"{stream}@trade",
            lambda: {
                "e": "trade",
                "E": now_ms,
                "s": symbol,
                "t": trade_id,
                "p": wire.number(price),
                "q": wire.number(qty),
                "T": time_ns // NS_PER_MS,
                "m": buyer_is_maker,
                "M": True,
            },
        )
        after = self.engine.touch(symbol)
        if after is not None and after != before:
            bid, bid_qty, ask, ask_qty = (wire.number(x) for x in after)
            self.sockets.broadcast(
                f"{stream}@bookTicker",
                lambda: {"u": trade_id, "s": symbol, "b": bid, "B": bid_qty, "a": ask, "A": ask_qty},
            )
        self._publish(now_ms)

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
        if not self.sockets.followed:
            return
        for account, its in by_account.items():
            assets: dict[str, None] = {}
            for report in its:
                instrument = self.engine.instrument(report.order.symbol)
                assets[instrument.base] = assets[instrument.quote] = None
            events = [wire.execution_report(report, now_ms) for report in its]
            events.append(wire.account_position(self.engine.accounts[account], list(assets), now_ms))
            self.sockets.tell(account, events)

    # REST.

    def _handler(self, name: str, endpoint: Public | Signed) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        if isinstance(endpoint, Signed):
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
                used = self._rates.request(request.remote or "", endpoint.weight, received_ns // NS_PER_MS)
                headers["X-MBX-USED-WEIGHT-1M"] = str(used)
                body = await request.read() if request.can_read_body else b""
                if body and request.method == "GET":
                    raise Refused(-1101, "Too many parameters sent for this endpoint.")
                # The bytes as they came: a signature over anything re-encoded would be another promise.
                query = request.raw_path.partition("?")[2].encode("utf-8", "surrogateescape")
                if isinstance(endpoint, Public):
                    parameters = parse_parameters(query, body, allowed=endpoint.parameters)
                    answer = endpoint.run(parameters, received_ns // NS_PER_MS)
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
        endpoint: Signed,
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
        call = Call(key, {}, received_ns // NS_PER_MS, headers=headers)
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


def _cut(request: web.Request) -> web.Response:
    """End the connection with nothing more said."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()
