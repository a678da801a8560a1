"""The venue's user data stream, and what it may have missed, as one sequence without holes.

- Connect, subscribe, and only then ask: balances by `account`, fills by `myTrades` from before the newest known one.
  What the stream says meanwhile waits in the socket and comes after; what comes twice, the listener drops.
- The same question is repeated every `RECONCILE_S`, so that a stream that lost an event without breaking is found out.
- A fill fetched by `myTrades` has no client order id; the order is asked for it.
- Anything wrong (cut, silence, an answer that does not parse, a refusal) ends the connection; the next one starts
  after a back-off.  A refusal of the credential is told as such: it may have been revoked.

The venue is trusted with what was filled and held, and with nothing else: it cannot make us do anything.
"""

from __future__ import annotations

import asyncio
import itertools
import ssl
from collections.abc import Callable, Mapping
from typing import Final

import aiohttp
import msgspec
from yarl import URL

from tallystick.schemas.bounds import NS_PER_MS
from tallystick.schemas.errors import Malformed, TallystickError
from tallystick.schemas.nats_jwt import Signer
from tallystick.venues import BalanceReport, FillReport, Listener
from tallystick.venues.binance.answers import VenueError, parse_account, parse_error, parse_order, parse_trades
from tallystick.venues.binance.codes import API, MAX_SPAN_MS, MAX_TRADES, socket_host
from tallystick.venues.binance.stream import Ended, OrderNamed, is_answer, parse_push, signed_query, subscription

RECONCILE_S: Final = 30.0
TIMEOUT_S: Final = 5.0
# Pings; a connection that does not answer within half of it is dead.
PING_S: Final = 10.0
BACKOFF_S: Final = (0.1, 0.5, 1.0, 2.0, 5.0, 15.0)
MAX_MESSAGE: Final = 1 << 20
MAX_ANSWER: Final = 8 << 20


class UserStream:
    """Follows the account until cancelled."""

    def __init__(
        self,
        *,
        host: str,
        paper: bool,
        api_key: str,
        signer: Signer,
        symbols: Mapping[str, str],
        tls: ssl.SSLContext,
        clock: Callable[[], int],
        listener: Listener,
        reconcile_s: float = RECONCILE_S,
    ) -> None:
        self._rest_url = f"https://{host}{API}"
        self._socket_url = f"wss://{socket_host(host, paper=paper)}/ws-api/v3"
        self._api_key = api_key
        self._signer = signer
        self._symbols = dict(symbols)
        self._tls = tls
        self._clock = clock
        self._listener = listener
        self._reconcile_s = reconcile_s
        self._ids = itertools.count(1)
        self._failures = 0

    async def run(self) -> None:
        """Follow the account; ends only by cancellation."""
        while True:
            try:
                async with aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(ssl=self._tls), timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)
                ) as http:
                    await self._connection(http)
            except (TallystickError, aiohttp.ClientError, OSError, TimeoutError) as exc:
                code = exc.code if isinstance(exc, TallystickError) else "VENUE_AWAY"
                self._listener.on_connection(False, code, f"{type(exc).__name__}: {exc}"[:300])
            wait = BACKOFF_S[min(self._failures, len(BACKOFF_S) - 1)]
            self._failures += 1
            await asyncio.sleep(wait)

    async def _connection(self, http: aiohttp.ClientSession) -> None:
        async with http.ws_connect(self._socket_url, heartbeat=PING_S, max_msg_size=MAX_MESSAGE) as socket:
            request_id = str(next(self._ids))
            await socket.send_str(subscription(request_id, self._api_key, self._clock(), self._signer).decode())
            early: list[str] = []
            while True:
                text = await self._receive(socket, TIMEOUT_S)
                if text is None:
                    raise Malformed("VENUE_ANSWER", f"no answer to the subscription within {TIMEOUT_S} s")
                if is_answer(text, request_id):
                    break
                early.append(text)
            await self._catch_up(http)
            self._failures = 0
            self._listener.on_connection(True, "", "")
            for text in early:
                self._apply(text)
            loop = asyncio.get_running_loop()
            due = loop.time() + self._reconcile_s
            while True:
                text = await self._receive(socket, max(0.0, due - loop.time()))
                if text is not None:
                    self._apply(text)
                if loop.time() >= due:
                    await self._catch_up(http)
                    due = loop.time() + self._reconcile_s

    @staticmethod
    async def _receive(socket: aiohttp.ClientWebSocketResponse, timeout: float) -> str | None:
        try:
            message = await socket.receive(timeout)
        except TimeoutError:
            return None
        if message.type is not aiohttp.WSMsgType.TEXT:
            raise Malformed("VENUE_AWAY", f"user stream closed ({message.type.name}, {socket.close_code})")
        return str(message.data)

    def _apply(self, text: str) -> None:
        for item in parse_push(text, self._symbols):
            if isinstance(item, FillReport):
                self._listener.on_report(item)
            elif isinstance(item, OrderNamed):
                self._listener.on_order(item.symbol, item.venue_order_id, item.client_order_id)
            elif isinstance(item, BalanceReport):
                self._listener.on_balance(item)
            elif isinstance(item, Ended):
                raise VenueError(0, f"the venue ended the user stream: {item.reason}")

    async def _catch_up(self, http: aiohttp.ClientSession) -> None:
        for balance in parse_account(await self._get(http, "account", {"omitZeroBalances": "true"})):
            self._listener.on_balance(balance)
        for venue_symbol, symbol in self._symbols.items():
            await self._fetch_trades(http, venue_symbol, symbol)

    async def _fetch_trades(self, http: aiohttp.ClientSession, venue_symbol: str, symbol: str) -> None:
        limit = {"symbol": venue_symbol, "limit": str(MAX_TRADES)}
        first = self._listener.ask_from(symbol)
        start = self._listener.since(symbol) // NS_PER_MS
        while first < 0 and start <= self._clock() // NS_PER_MS:
            span = {"startTime": str(start), "endTime": str(start + MAX_SPAN_MS - 1)}
            fills = await self._fetch_page(http, venue_symbol, symbol, limit | span)
            first = fills[-1].trade_id + 1 if fills else -1
            start += MAX_SPAN_MS
        while first >= 0:
            fills = await self._fetch_page(http, venue_symbol, symbol, limit | {"fromId": str(first)})
            if len(fills) < MAX_TRADES:
                return
            first = fills[-1].trade_id + 1

    async def _fetch_page(
        self, http: aiohttp.ClientSession, venue_symbol: str, symbol: str, ask: dict[str, str]
    ) -> list[FillReport]:
        fills = parse_trades(await self._get(http, "myTrades", ask), symbol)
        for fill in fills:
            client_order_id = await self._client_order_id(http, venue_symbol, symbol, fill.venue_order_id)
            self._listener.on_report(msgspec.structs.replace(fill, client_order_id=client_order_id))
        return fills

    async def _client_order_id(self, http: aiohttp.ClientSession, venue_symbol: str, symbol: str, order_id: str) -> str:
        known = self._listener.client_order_id(symbol, order_id)
        if known:
            return known
        answer = await self._get(http, "order", {"symbol": venue_symbol, "orderId": order_id})
        order = parse_order(answer, venue_symbol)
        self._listener.on_order(symbol, order.venue_order_id, order.client_order_id)
        return order.client_order_id

    async def _get(self, http: aiohttp.ClientSession, what: str, parameters: dict[str, str]) -> bytes:
        query = signed_query(parameters, self._clock(), self._signer)
        # Sent as signed: `encoded` keeps yarl from writing the query anew.
        url = URL(f"{self._rest_url}/{what}?{query}", encoded=True)
        async with http.get(url, headers={"X-MBX-APIKEY": self._api_key}, allow_redirects=False) as answer:
            data = await answer.content.read(MAX_ANSWER)
            while not answer.content.at_eof():
                data += await answer.content.read(MAX_ANSWER)
                if len(data) > MAX_ANSWER:
                    raise Malformed("VENUE_ANSWER", f"{what}: more than {MAX_ANSWER} bytes")
            if answer.status != 200:
                raise parse_error(answer.status, data)
            return data
