"""The real ccxt's ordinary calls against the paper exchange: none finds the venue not to be there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import ccxt.pro as ccxt_pro
import pytest
from ccxt.base import errors as ccxt_errors

from tallystick.components.paper_exchange.server import Exchange
from tallystick.runtime.bus.tasks import end
from tests.support.paper import client, trade, venue
from tests.support.tls import ServerTls

pytestmark = pytest.mark.uvloop

SYMBOL = "XRP/ETH"


@contextlib.asynccontextmanager
async def serving(tls: ServerTls, path: Path) -> AsyncIterator[tuple[Exchange, Any]]:
    async with venue(tls, path) as exchange:
        c = client(ccxt_pro.binance, exchange.port, tls.client())
        try:
            await c.load_markets()
            yield exchange, c
        finally:
            await c.close()


async def test_ccxt_reads_the_market(tls: ServerTls, tmp_path: Path) -> None:
    async with serving(tls, tmp_path) as (_exchange, c):
        assert (await c.fetch_status())["status"] == "ok"
        ticker = await c.fetch_ticker(SYMBOL)
        assert (ticker["last"], ticker["bid"], ticker["baseVolume"]) == (0.0013002, 0.0013, 2000)
        assert list(await c.fetch_tickers([SYMBOL])) == [SYMBOL]
        assert (await c.fetch_bids_asks([SYMBOL]))[SYMBOL]["ask"] == 0.0013002
        assert (await c.fetch_order_book(SYMBOL))["bids"][0] == [0.0013, 1000]
        assert len(await c.fetch_trades(SYMBOL)) == 2
        assert [candle[5] for candle in await c.fetch_ohlcv(SYMBOL, "1M")] == [2000]
        assert (await c.fetch_trading_fees())[SYMBOL]["maker"] == 0.001
        assert "XRP" in await c.fetch_currencies()
        assert await c.fetch_deposits() == []


async def test_ccxt_trades_with_stops_and_asks_for_what_became_of_it(tls: ServerTls, tmp_path: Path) -> None:
    async with serving(tls, tmp_path) as (exchange, c):
        stop = await c.create_order(SYMBOL, "limit", "sell", 10, 0.0011, {"stopLossPrice": 0.0012})
        at_market = await c.create_order(SYMBOL, "market", "sell", 10, None, {"triggerPrice": 0.0012})
        assert [o["info"]["type"] for o in await c.fetch_open_orders(SYMBOL)] == ["STOP_LOSS_LIMIT", "STOP_LOSS"]
        edited = await c.edit_order(stop["id"], SYMBOL, "limit", "buy", 10, 0.0011)
        trade(exchange, "0.0012", "50", buyer_is_maker=True)
        assert (await c.fetch_order(at_market["id"], SYMBOL))["status"] == "closed"
        await c.cancel_all_orders(SYMBOL)
        closed = await c.fetch_closed_orders(SYMBOL)
        assert [o["id"] for o in closed] == [at_market["id"]]
        assert [o["id"] for o in await c.fetch_canceled_orders(SYMBOL)] == [stop["id"], edited["id"]]
        assert len(await c.fetch_orders(SYMBOL)) == 3
        assert len(await c.fetch_order_trades(at_market["id"], SYMBOL)) == 1


async def test_ccxt_takes_an_unknown_path_for_what_it_is(tls: ServerTls, tmp_path: Path) -> None:
    async with serving(tls, tmp_path) as (_exchange, c):
        with pytest.raises(ccxt_errors.ExchangeError) as refused:
            await c.fetch_withdrawals()
        assert not isinstance(refused.value, ccxt_errors.ExchangeNotAvailable)
        assert "-1020" in str(refused.value)


async def test_ccxt_watches_the_market_and_orders_over_its_websockets(tls: ServerTls, tmp_path: Path) -> None:
    async with serving(tls, tmp_path) as (exchange, c):

        async def feed() -> None:
            for i in range(1_000):
                trade(exchange, "0.0013" if i % 2 else "0.0013002", "7", buyer_is_maker=bool(i % 2))
                await asyncio.sleep(0.05)

        feeding = asyncio.create_task(feed())
        try:
            async with asyncio.timeout(20):
                assert (await c.watch_trades_for_symbols([SYMBOL]))[0]["amount"] == 7
                assert (await c.watch_ticker(SYMBOL))["last"] in (0.0013, 0.0013002)
                assert (await c.watch_order_book(SYMBOL))["bids"][0][0] == 0.0013
                assert len(await c.watch_ohlcv(SYMBOL, "1m")) == 1
                bought = await c.create_order_ws(SYMBOL, "market", "buy", 5)
                assert bought["status"] == "closed"
                assert {b["asset"] for b in (await c.fetch_balance_ws())["info"]["balances"]} == {"XRP", "ETH"}
        finally:
            await end(feeding)
