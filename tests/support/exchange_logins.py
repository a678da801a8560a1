"""What ccxt's websocket logins would send, without a network: each call of an exchange as the list of what it sends.

ccxt's own `watch` runs; the connection that it gets has been made and answers at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import inspect
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import ccxt.async_support
import pytest
from ccxt.async_support.base.ws.future import Future

from tallystick.schemas.errors import TallystickError

# What logs in, or cannot be followed without a login.
PREFIXES = ("authenticate", "sign_", "create_ws_auth", "subscribe_private", "watch_private", "negotiate")
NAMES = ("watch_balance", "watch_orders", "watch_my_trades", "watch_positions")
# A login that answers a question of the exchange.
CHALLENGED = {"krakenfutures": ("handle_authenticate",)}

_TOKEN = {
    "token": "t",
    "listenKey": "l",
    "key": "l",
    "listen_key": "l",
    "access_token": "t",
    "user_id": 1,
    "pingInterval": 1,
}
_CHAIN = {"chain_id": "57073", "endpoint_addr": "0x" + "11" * 20}
# An answer with something for everybody who asks for a key to listen with.
ANSWER = {
    **_TOKEN,
    **_CHAIN,
    "code": "0",
    "data": {**_TOKEN, **_CHAIN, "instanceServers": [{"endpoint": "wss://host/endpoint", **_TOKEN}]},
    "result": _TOKEN,
}
ARGUMENTS = {"url": "wss://host/private", "message": {"event": "challenge", "message": "226aee50-88fc-4618-a42a"}}


class _Futures(dict[str, Any]):
    def __contains__(self, _: object) -> bool:
        return False

    def __missing__(self, name: str) -> Any:
        future = Future()
        future.resolve([])
        return self.setdefault(name, future)

    def get(self, name: str, _: object = None) -> Any:
        return self[name]


class Client:
    """A connection that was made, and on which everything has been answered."""

    def __init__(self, url: str, sent: list[Any]) -> None:
        self.url = url
        self.subscriptions: dict[str, Any] = {}
        self.rejections: dict[str, Any] = {}
        self.futures: Any = _Futures()
        self.verbose = False
        self.lastPong = 0
        self.connected = self.futures["connected"]
        self._sent = sent

    def future(self, name: str) -> Any:
        return self.futures[name]

    reusableFuture = future  # noqa: N815 - ccxt's name

    def resolve(self, *_: object) -> None: ...

    def reject(self, error: object, *_: object) -> None:
        self._sent.append(("rejected", type(error).__name__, str(error)))

    def on_error(self, error: object) -> None:
        self._sent.append(("failed", getattr(error, "code", type(error).__name__)))

    async def send(self, message: object) -> None:
        self._sent.append(("send", self.url, message))


@contextlib.contextmanager
def connected(sent: list[Any]) -> Iterator[None]:
    """Every connection of ccxt is one that has been made; what is sent stands in `sent`."""

    def client(exchange: Any, url: str) -> Any:
        exchange.clients = exchange.clients or {}
        return exchange.clients.setdefault(url, Client(url, sent))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ccxt.async_support.Exchange, "client", client)
        patch.setattr(ccxt.async_support.Exchange, "open", lambda *_: None)
        yield


def _silence(exchange: Any, sent: list[Any]) -> None:
    async def fetch(url: str, method: str = "GET", headers: object = None, body: object = None) -> object:
        sent.append(("fetch", url, method, headers, body))
        return copy.deepcopy(ANSWER)

    async def load_markets(*_: object, **__: object) -> Any:
        return exchange.markets

    async def sleep(*_: object) -> None: ...

    def spawn(method: Callable[..., Any], *args: object) -> Any:
        async def quiet() -> Any:
            try:
                return await method(*args)
            except Exception as exc:  # noqa: BLE001 - compared
                sent.append(("spawned", type(exc).__name__, str(exc)))

        return asyncio.ensure_future(quiet())

    market: dict[str, Any] = {
        "id": "BTCUSDT",
        "symbol": "BTC/USDT",
        "base": "BTC",
        "quote": "USDT",
        "baseId": "BTC",
        "quoteId": "USDT",
    }
    market |= {"type": "spot", "spot": True, "swap": False, "future": False, "option": False, "contract": False}
    exchange.set_markets([exchange.safe_market_structure(market)])
    exchange.accounts = [{"id": "1", "type": "spot", "code": None, "info": {}}]
    exchange.fetch, exchange.load_markets, exchange.sleep, exchange.spawn = fetch, load_markets, sleep, spawn
    exchange.delay = lambda *_: None
    exchange.clients = {}


def logins(exchange: Any) -> list[str]:
    """The methods of a pro exchange that log in."""
    found = {
        name
        for name, method in inspect.getmembers(type(exchange), inspect.isfunction)
        if name in NAMES or (name.startswith(PREFIXES) and ".pro." in method.__module__)
    }
    return sorted({*found, *CHALLENGED.get(exchange.id, ())})


def _arguments(exchange: Any, method: Callable[..., Any]) -> list[Any]:
    """Something for every parameter that must be given."""
    made: list[Any] = []
    for name, parameter in inspect.signature(method).parameters.items():
        if parameter.default is not parameter.empty or parameter.kind is parameter.VAR_POSITIONAL:
            break
        kind = str(parameter.annotation)
        lists, dicts = "list" in kind or name.endswith("s"), "dict" in kind or kind.endswith("object")
        if name == "client":
            made.append(exchange.client("wss://host/private"))
        else:
            made.append(ARGUMENTS.get(name, [] if lists else {} if dicts else "spot"))
    return made


async def login(exchange: Any, name: str) -> list[Any]:
    """All that the call of `name` sends, and how it ends; what it leaves in the exchange is undone."""
    sent: list[Any] = []
    options = copy.deepcopy(exchange.options)
    with connected(sent):
        _silence(exchange, sent)
        random.seed(7)
        method = getattr(exchange, name)
        try:
            result = method(*_arguments(exchange, method))
            if inspect.isawaitable(result):
                result = await asyncio.wait_for(result, 5)
            sent.append(("result", repr(result) if isinstance(result, (str, dict)) else type(result).__name__))
        except TallystickError as exc:
            sent.append(("refused", exc.code))
        except Exception as exc:  # noqa: BLE001 - ccxt's own errors and its bugs alike are compared
            sent.append(("error", type(exc).__name__, str(exc)))
        # What was spawned, and what waits for the connection, runs to its end.
        for _ in range(8):
            await asyncio.sleep(0)
    sent.append(("left", exchange.options.get("signedChallenge")))
    exchange.options, exchange.clients = options, {}
    return json.loads(json.dumps(sent, default=str))  # type: ignore[no-any-return]
