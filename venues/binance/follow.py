"""The venue's user data stream, and what it may have missed, as one sequence without holes.

- Connect, subscribe, and only then ask: balances by `account`, fills by `myTrades`.  First the instruments of which a
  fill can be ours: what the stream says of one of them meanwhile waits until its answer is there.  Then it is up.
- The stream is read by one task and the venue is asked by another: neither holds the other up, and no silence or noise
  of the stream, pongs included, moves the time of a question.
- Every `RECONCILE_S` the account is asked again, so that a stream that lost an event without breaking is found out:
  then the instruments both of whose assets are not what the stream had said, and of all others as many as `ROUND` allows, the
  longest unasked first, most of them such as may hold fills of ours.
- An instrument is asked from the newest trade on that it had at the answer before the last, so that a venue which answers
  a moment late is asked once more; the time that passed makes no question longer.
- Nothing is asked beyond `SHARE` of the weight that the venue allows, which it counts by address, nor while it wants no
  questions (`limits`); the stream is read on meanwhile.
- A fill fetched by `myTrades` has no client order id; the order is asked for it.
- Anything wrong (cut, silence, an answer that does not parse, a refusal) ends the connection; the next one starts
  after a back-off.  A refusal of the credential is told as such: it may have been revoked.
- What the listener or the signer raises is not the venue's: it ends `run`.

The venue is trusted with what was filled and held, and with nothing else: it cannot make us do anything.
"""

from __future__ import annotations

import asyncio
import itertools
import ssl
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Final, ParamSpec, TypeVar

import aiohttp
import msgspec
from yarl import URL

from tallystick.runtime.bus.tasks import Tasks
from tallystick.schemas.bounds import NS_PER_MS, SECOND
from tallystick.schemas.errors import Malformed
from tallystick.schemas.nats_jwt import Signer
from tallystick.venues import BalanceReport, FillReport, Listener
from tallystick.venues.binance.answers import (
    VenueError,
    busy_until,
    parse_account,
    parse_error,
    parse_order,
    parse_trades,
)
from tallystick.venues.binance.codes import (
    API,
    MAX_SPAN_MS,
    MAX_TRADES,
    TOO_MANY,
    USED_WEIGHT,
    WEIGHT_MINUTE,
    socket_host,
    weight,
)
from tallystick.venues.binance.stream import Ended, OrderNamed, is_answer, parse_push, signed_query, subscription
from tallystick.venues.limits import MINUTE_NS, Allowance

RECONCILE_S: Final = 30.0
TIMEOUT_S: Final = 5.0
# Pings; a connection that does not answer within half of it is dead.
PING_S: Final = 10.0
# How often a wait looks at the clock.
CHECK_S: Final = 1.0
BACKOFF_S: Final = (0.1, 0.5, 1.0, 2.0, 5.0, 15.0)
MAX_MESSAGE: Final = 1 << 20
MAX_ANSWER: Final = 8 << 20
# Fills that wait for the answer about what came before them.
MAX_HELD: Final = 10_000
# In percent of the venue's weight: what may be used at this address before we ask no more, and what the rounds may take
# of that.  The rest is for orders and cancels, and for a start.
SHARE: Final = 80
ROUND: Final = 50

_ZERO: Final = Decimal(0)
_P = ParamSpec("_P")
_T = TypeVar("_T")


class _NotTheVenues(Exception):
    """What the listener or the signer raised, on its way out."""


class _Asked(msgspec.Struct):
    """What is known of one instrument: `at` (Unix ns) it was last asked; the newest trade id then, and the time before."""

    at: int = 0
    newest: int = -1
    before: int = -1


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
        ping_s: float = PING_S,
    ) -> None:
        self._rest_url = f"https://{host}{API}"
        self._socket_url = f"wss://{socket_host(host, paper=paper)}/ws-api/v3"
        self._api_key = api_key
        self._signer = signer
        self._symbols = dict(symbols)
        self._venue_symbols = {symbol: venue_symbol for venue_symbol, symbol in symbols.items()}
        self._tls = tls
        self._clock = clock
        self._listener = listener
        self._reconcile_s = reconcile_s
        self._ping_s = ping_s
        self._ids = itertools.count(1)
        self._failures = 0
        self._allowance = Allowance(WEIGHT_MINUTE * SHARE // 100)
        self._born = clock()
        self._asked = {symbol: _Asked() for symbol in self._venue_symbols}
        self._told: dict[str, Decimal] = {}  # asset -> free and locked, as told last
        self._meanwhile: set[str] = set()  # assets that the stream spoke of since the account was asked for
        self._up = False
        # Of this connection: the instruments to be asked before it is up, with what the stream said of them.
        self._pending: dict[str, list[FillReport]] = {}

    async def run(self) -> None:
        """Follow the account; ends only by cancellation, or with what the listener or the signer raises."""
        # It may have been cancelled while it was up.
        self._up = False
        while True:
            try:
                async with aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(ssl=self._tls), timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)
                ) as http:
                    await self._connection(http)
            except _NotTheVenues as exc:
                raise exc.__cause__ or exc from None
            except aiohttp.WSServerHandshakeError as exc:
                until = busy_until(exc.status, exc.headers or {}, b"", self._clock())
                self._down(parse_error(exc.status, b"", until))
            except (VenueError, Malformed, aiohttp.ClientError, OSError, TimeoutError) as exc:
                self._down(exc)
            wait = BACKOFF_S[min(self._failures, len(BACKOFF_S) - 1)]
            self._failures += 1
            await asyncio.sleep(wait)
            await self._allowed(0)

    def _is_up(self) -> None:
        if not self._up:
            self._up = True
            _ours(self._listener.on_connection, True, "", "")

    def _down(self, exc: Exception) -> None:
        self._up = False
        code = exc.code if isinstance(exc, VenueError | Malformed) else "VENUE_AWAY"
        if isinstance(exc, VenueError):
            self._allowance.back_off(exc.until)
        self._listener.on_connection(False, code, f"{type(exc).__name__}: {exc}"[:300])

    async def _connection(self, http: aiohttp.ClientSession) -> None:
        async with http.ws_connect(
            self._socket_url,
            heartbeat=self._ping_s,
            timeout=aiohttp.ClientWSTimeout(ws_close=CHECK_S),
            max_msg_size=MAX_MESSAGE,
        ) as socket:
            self._pending = {symbol: [] for symbol in self._symbols.values() if self._can_be_ours(symbol)}
            try:
                # One deadline for all that comes before the answer.
                async with asyncio.timeout(TIMEOUT_S):
                    early = await self._subscribe(socket)
            except TimeoutError as exc:
                raise Malformed("VENUE_ANSWER", f"no answer to the subscription within {TIMEOUT_S} s") from exc
            work = Tasks()
            work.start(self._read(socket, early), "user stream")
            work.start(self._ask(http), "reconciliation")
            try:
                await work.failed()
            finally:
                await work.end()

    # --- the stream -------------------------------------------------------------------------------------

    async def _subscribe(self, socket: aiohttp.ClientWebSocketResponse) -> list[str]:
        """Start the stream; returns what came before the answer."""
        request_id = str(next(self._ids))
        signed = _ours(subscription, request_id, self._api_key, self._clock(), self._signer)
        await socket.send_str(signed.decode())
        early: list[str] = []
        while not is_answer(text := await _receive(socket), request_id, self._clock()):
            early.append(text)
        return early

    async def _read(self, socket: aiohttp.ClientWebSocketResponse, early: Iterable[str]) -> None:
        for text in early:
            self._apply(text)
        while True:
            self._apply(await _receive(socket))

    def _apply(self, text: str) -> None:
        for item in parse_push(text, self._symbols, self._clock()):
            if isinstance(item, FillReport):
                waiting = self._pending.get(item.symbol)
                if waiting is None:
                    _ours(self._listener.on_report, item)
                elif len(waiting) >= MAX_HELD:
                    raise Malformed("VENUE_ANSWER", f"{MAX_HELD} fills of {item.symbol} before the first answer")
                else:
                    waiting.append(item)
            elif isinstance(item, OrderNamed):
                self._name(item.symbol, item.venue_order_id, item.client_order_id)
            elif isinstance(item, BalanceReport):
                self._meanwhile.add(item.asset)
                self._tell_balance(item)
            elif isinstance(item, Ended):
                raise VenueError(0, f"the venue ended the user stream: {item.reason}")

    def _tell_balance(self, balance: BalanceReport) -> None:
        self._told[balance.asset] = balance.free + balance.locked
        _ours(self._listener.on_balance, balance)

    def _name(self, symbol: str, venue_order_id: str, client_order_id: str) -> None:
        _ours(self._listener.on_order, symbol, venue_order_id, client_order_id)

    # --- what it may have missed ------------------------------------------------------------------------

    def _can_be_ours(self, symbol: str) -> bool:
        return self._listener.since(symbol) is not None or self._listener.ask_from(symbol) >= 0

    async def _ask(self, http: aiohttp.ClientSession) -> None:
        loop = asyncio.get_running_loop()
        await self._ask_account(http)
        while self._pending:
            # One that somebody waits for comes first.
            symbol = max(self._pending, key=lambda each: len(self._pending[each]))
            await self._ask_trades(http, symbol)
            for fill in self._pending.pop(symbol):
                _ours(self._listener.on_report, fill)
        self._failures = 0
        self._is_up()
        due = loop.time() + self._reconcile_s
        for symbol in self._round([], first=True):
            await self._ask_trades(http, symbol)
        while True:
            await asyncio.sleep(due - loop.time())
            due = loop.time() + self._reconcile_s
            for symbol in self._round(await self._ask_account(http)):
                await self._ask_trades(http, symbol)
            self._is_up()

    def _round(self, changed: Iterable[str], *, first: bool = False) -> list[str]:
        """Whom to ask now; see the module docstring.  `first`: those that can be ours were asked just now."""
        most = WEIGHT_MINUTE * SHARE * ROUND / 10_000 * self._reconcile_s * SECOND / MINUTE_NS
        room = max(2, int(most) // weight("GET", f"{API}/myTrades"))
        symbols = sorted(self._asked, key=lambda symbol: self._asked[symbol].at)
        ours = [] if first else [symbol for symbol in symbols if self._can_be_ours(symbol)]
        others = [symbol for symbol in symbols if not self._can_be_ours(symbol)]
        ours = ours[: room - min(len(others), max(1, room // 4))]
        return list(dict.fromkeys([*changed, *ours, *others[: room - len(ours)]]))

    async def _ask_account(self, http: aiohttp.ClientSession) -> list[str]:
        """Tell all balances; returns the instruments both of whose assets are not what the stream had told."""
        self._meanwhile.clear()
        known = bool(self._told)
        held = parse_account(await self._get(http, "account", {"omitZeroBalances": "true"}))
        zero = self._told.keys() - {balance.asset for balance in held}
        changed = set()
        for balance in [*held, *(BalanceReport(asset, _ZERO, _ZERO) for asset in sorted(zero))]:
            # Of these the stream's word is at least as new, or something newer follows it.
            if balance.asset not in self._meanwhile:
                if known and self._told.get(balance.asset, _ZERO) != balance.free + balance.locked:
                    changed.add(balance.asset)
                self._tell_balance(balance)
        return [symbol for symbol in self._asked if changed.issuperset(symbol.split("/"))]

    async def _ask_trades(self, http: aiohttp.ClientSession, symbol: str) -> None:
        """Tell every fill of `symbol` that may not be known."""
        asked, now = self._asked[symbol], self._clock()
        limit = {"symbol": self._venue_symbols[symbol], "limit": str(MAX_TRADES)}
        first = asked.before if asked.before >= 0 else self._listener.ask_from(symbol)
        newest = asked.newest
        if first < 0:
            # The newest trades of all; if they do not reach back far enough, from the beginning on.
            known = self._listener.since(symbol)
            since = (self._born if known is None else known) // NS_PER_MS * NS_PER_MS
            page = await self._page(http, symbol, limit)
            if len(page) == MAX_TRADES and page[0].time >= since:
                page, first = await self._since(http, symbol, limit, since)
            await self._tell(http, symbol, (fill for fill in page if fill.time >= since))
            newest = max([newest, *(fill.trade_id for fill in page)])
        while first >= 0:
            page = await self._page(http, symbol, limit | {"fromId": str(first)})
            await self._tell(http, symbol, page)
            newest = max([newest, *(fill.trade_id for fill in page)])
            first = newest + 1 if len(page) == MAX_TRADES else -1
        self._asked[symbol] = _Asked(now, newest, asked.newest)

    async def _since(
        self, http: aiohttp.ClientSession, symbol: str, limit: dict[str, str], since: int
    ) -> tuple[list[FillReport], int]:
        """The oldest fills from `since` (Unix ns) on, and the trade id to go on with; -1: there are no more."""
        start = since // NS_PER_MS
        while start <= self._clock() // NS_PER_MS:
            span = {"startTime": str(start), "endTime": str(start + MAX_SPAN_MS - 1)}
            if page := await self._page(http, symbol, limit | span):
                return page, page[-1].trade_id + 1
            start += MAX_SPAN_MS
        return [], -1

    async def _page(self, http: aiohttp.ClientSession, symbol: str, ask: dict[str, str]) -> list[FillReport]:
        return parse_trades(await self._get(http, "myTrades", ask), symbol)

    async def _tell(self, http: aiohttp.ClientSession, symbol: str, fills: Iterable[FillReport]) -> None:
        for fill in fills:
            name = await self._client_order_id(http, symbol, fill.venue_order_id)
            _ours(self._listener.on_report, msgspec.structs.replace(fill, client_order_id=name))

    async def _client_order_id(self, http: aiohttp.ClientSession, symbol: str, order_id: str) -> str:
        known = self._listener.client_order_id(symbol, order_id)
        if known:
            return known
        venue_symbol = self._venue_symbols[symbol]
        answer = await self._get(http, "order", {"symbol": venue_symbol, "orderId": order_id})
        order = parse_order(answer, venue_symbol)
        self._name(symbol, order.venue_order_id, order.client_order_id)
        return order.client_order_id

    # --- one question -----------------------------------------------------------------------------------

    async def _allowed(self, wanted: int) -> None:
        """Wait until something that weighs `wanted` may be asked."""
        # The time of day is no event that could be waited for.
        while wait := self._allowance.wait(wanted, self._clock()):  # noqa: ASYNC110
            await asyncio.sleep(min(wait / SECOND, CHECK_S))

    async def _get(self, http: aiohttp.ClientSession, what: str, parameters: dict[str, str]) -> bytes:
        """The answer to a question, which is asked again after each pause that the venue wants."""
        wanted = weight("GET", f"{API}/{what}")
        while True:
            await self._allowed(wanted)
            now = self._clock()
            self._allowance.asked(wanted, now)
            query = _ours(signed_query, parameters, now, self._signer)
            # Sent as signed: `encoded` keeps yarl from writing the query anew.
            url = URL(f"{self._rest_url}/{what}?{query}", encoded=True)
            async with http.get(url, headers={"X-MBX-APIKEY": self._api_key}, allow_redirects=False) as answer:
                data = bytearray()
                async for chunk in answer.content.iter_any():
                    data += chunk
                    if len(data) > MAX_ANSWER:
                        raise Malformed("VENUE_ANSWER", f"{what}: more than {MAX_ANSWER} bytes")
            body, now = bytes(data), self._clock()
            self._allowance.answered(answer.headers.get(USED_WEIGHT, ""), now)
            if answer.status == 200:
                return body
            until = busy_until(answer.status, answer.headers, body, now)
            refused = parse_error(answer.status, body, until)
            if answer.status != TOO_MANY:
                raise refused
            # The stream is whole as far as it goes: it is read on.
            _ours(self._down, refused)


async def _receive(socket: aiohttp.ClientWebSocketResponse) -> str:
    """The next message.  No deadline: pongs are waited for by the connection, fills are asked for."""
    message = await socket.receive()
    if message.type is not aiohttp.WSMsgType.TEXT:
        raise Malformed("VENUE_AWAY", f"user stream closed ({message.type.name}, {socket.close_code})")
    return str(message.data)


def _ours(call: Callable[_P, _T], *args: _P.args, **named: _P.kwargs) -> _T:
    """Do what is not the venue's: what it raises ends `run`."""
    try:
        return call(*args, **named)
    except Exception as exc:
        raise _NotTheVenues from exc
