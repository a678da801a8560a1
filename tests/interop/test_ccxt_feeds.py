"""Live feeds through the real ccxt.pro, from venues' own messages: made here, or recorded where recordings lie beside."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from aiohttp import web

from tallystick.components.market_data.dumps import DumpTrade, Tick
from tallystick.components.market_data.feed import Change
from tallystick.components.market_data.live import LiveFeed, make_exchange
from tallystick.venues import client_tls
from tests.support.waiting import until

SECOND = 1_000_000_000
NOW = 1_618_677_540 * SECOND


class Heard:
    def __init__(self) -> None:
        self.trades: dict[str, list[DumpTrade]] = {}
        self.changes: list[Change] = []

    def tick(self, symbol: str, tick: Tick) -> None:
        if isinstance(tick, DumpTrade):
            self.trades.setdefault(symbol, []).append(tick)

    @property
    def count(self) -> int:
        return sum(map(len, self.trades.values()))

    def states(self, symbol: str) -> list[str]:
        return [c.state for c in self.changes if c.symbol == symbol]


def _local(urls: Any, port: int) -> Any:
    """ccxt's addresses, the websockets among them on this machine."""
    if isinstance(urls, dict):
        return {name: _local(each, port) for name, each in urls.items()}
    if not isinstance(urls, str) or not urls.startswith("ws"):
        return urls
    return re.sub(r"^wss?://[^/]*/?", f"ws://127.0.0.1:{port}/", urls)


def _market(exchange: Any, market_id: str, symbol: str) -> Any:
    base, _, rest = symbol.partition("/")
    quote, _, settle = rest.partition(":")
    return exchange.safe_market_structure(
        {
            "id": market_id,
            "lowercaseId": market_id.lower(),
            "symbol": symbol,
            "base": base,
            "quote": quote,
            "baseId": base,
            "quoteId": quote,
            "settle": settle or None,
            "type": "swap" if settle else "spot",
            "spot": not settle,
            "swap": bool(settle),
            "contract": bool(settle),
            "linear": True if settle else None,
            "active": True,
            "precision": {"amount": "1e-8", "price": "1e-8"},
        }
    )


@contextlib.asynccontextmanager
async def session(
    name: str, messages: Sequence[str], markets: dict[str, str], now: int, stale_ns: int = 60 * SECOND
) -> AsyncIterator[Heard]:
    """The feeds of `markets` (venue's symbol → unified) while a venue sends `messages`; the clock begins at `now`."""

    async def serve(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(max_msg_size=0)
        await socket.prepare(request)
        await socket.receive()  # its first subscription
        for message in messages:
            await socket.send_str(message)
        async for _ in socket:
            pass
        return socket

    app = web.Application()
    app.router.add_get("/{tail:.*}", serve)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    exchange = make_exchange(name, tls=client_tls(None))
    exchange.urls["api"] = _local(exchange.urls["api"], runner.addresses[0][1])
    exchange.set_markets([_market(exchange, market_id, symbol) for market_id, symbol in markets.items()])

    async def nothing(*_: Any, **__: Any) -> Any:
        return exchange.markets

    exchange.load_markets = exchange.load_unified_status = exchange.load_time_difference = nothing
    exchange.has = exchange.has | {"watchBidsAsks": False}
    heard = Heard()
    started = time.monotonic_ns()
    feed = LiveFeed(
        exchange,
        list(markets.values()),
        clock=lambda: now + time.monotonic_ns() - started,
        stale_ns=stale_ns,
        on_tick=heard.tick,
        on_change=heard.changes.append,
    )
    following = asyncio.create_task(feed.run())
    try:
        yield heard
        assert not following.done(), following
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await runner.cleanup()


async def heard_all(heard: Heard, condition: Callable[[], bool]) -> None:
    await until(condition, lambda: f"{heard.count} trades, {heard.changes}", 10)


async def test_a_venue_without_trade_ids_is_live_and_told_whole() -> None:
    at = NOW - SECOND
    rows = [[at + i * 1000, "Buy" if i % 2 else "Sell", 500_000_000 + i, 10 + i] for i in range(4)]
    twins = [rows[0], rows[0]]
    messages = [
        json.dumps({"sequence": 1, "symbol": "BTCUSD", "trades": twins, "type": "snapshot"}),
        json.dumps({"sequence": 2, "symbol": "BTCUSD", "trades": rows[1:], "type": "incremental"}),
    ]
    async with session("phemex", messages, {"BTCUSD": "BTC/USD:BTC"}, NOW) as heard:
        await heard_all(heard, lambda: heard.count >= 5)
    trades = heard.trades["BTC/USD:BTC"]
    assert len({t.trade_id for t in trades}) == len(trades) == 5
    assert heard.states("BTC/USD:BTC") == ["live"]


async def test_history_at_subscription_does_not_count_as_fresh() -> None:
    now_ms = NOW // 1_000_000
    history = [[1128060675 - i, now_ms - 11_520_000 - i * 1000, 0.002, 1815.3] for i in range(5)]
    subscribed = {"event": "subscribed", "channel": "trades", "chanId": 17, "symbol": "tBTCUSD", "pair": "BTCUSD"}
    messages = [json.dumps(subscribed), json.dumps([17, history])]
    async with session("bitfinex", messages, {"tBTCUSD": "BTC/USD"}, NOW) as heard:
        await heard_all(heard, lambda: bool(heard.changes))
    assert heard.count == 0
    (change,) = heard.changes
    assert change.state == "stale"
    assert "11519" in change.text or "11520" in change.text
    fresh = json.dumps([17, "te", [1128060969, now_ms - 500, -0.003, 1818.5]])
    async with session("bitfinex", [*messages, fresh], {"tBTCUSD": "BTC/USD"}, NOW) as heard:
        await heard_all(heard, lambda: heard.count == 1)
    assert heard.states("BTC/USD") == ["stale", "live"]


def recorded(path: Path, keep: Callable[[str], bool]) -> tuple[list[str], int]:
    """The messages that a venue sent in a recorded session, and the moment (ns) of the first."""
    found = [
        (float(match[1]), match[2])
        for line in path.read_text("utf-8", "replace").splitlines()
        if (match := re.match(r"(\d+(?:\.\d+)?): (.*)$", line)) and keep(match[2])
    ]
    return [message for _, message in found], int(found[0][0] * 1e9)


async def test_every_trade_of_a_recorded_session_is_told_once(shared_cases: Path) -> None:
    folder = shared_cases / "l03-replay-of-recordings"
    for name, file, channel, symbol_of, count in (
        ("gate", "GATEIO.ws.1.0", "spot.trades", r'"currency_pair":"([^"]+)"', 9),
        ("poloniex", "POLONIEX.ws.1.0", '"channel":"trades","data"', r'"symbol":"([^"]+)"', 6),
    ):
        messages, began = recorded(
            folder / file,
            lambda m, channel=channel: channel in m and ("update" in m or "data" in m),  # type: ignore[misc]
        )
        symbols = sorted({found for m in messages for found in re.findall(symbol_of, m)})
        markets = {symbol: symbol.replace("_", "/") for symbol in symbols}
        # Poloniex tells trades of hours ago at subscription: what counts here is each, once, and none after the last.
        last = re.sub(r'"id":"?[0-9]+"?', '"id":"987654321"', messages[-1], count=1)
        async with session(name, [*messages, last], markets, began, 7 * 86_400 * SECOND) as heard:
            await heard_all(heard, lambda heard=heard: any(t[-1].trade_id == 987654321 for t in heard.trades.values()))  # type: ignore[misc]
        assert heard.count == count + 1
        assert all(heard.states(symbol) in ([], ["live"]) for symbol in markets.values())
