"""Listen keys: names of user data streams, good for an hour, which whoever names an API key gets.  Pure.

Binance had them until 20 February 2026, and clients know them still.  A key with `listen_keys` off has none, as at
Binance today: its name, which stands in every request that it signs, opens nothing.  A listen key is as good as the
right to read for as long as it lasts: it is random, and ends with its API key.

Source: Binance Spot API documentation, "User Data Streams", "User data stream endpoints".
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Final

from tallystick.components.paper_exchange import wire
from tallystick.components.paper_exchange.access import Key, permit
from tallystick.components.paper_exchange.call import Call, Keyed
from tallystick.components.paper_exchange.checks import missing
from tallystick.components.paper_exchange.orders import Refused

LIFETIME_MS: Final = 3_600_000


class ListenKeys:
    """The listen keys that hold; `closed` is called with one that ends before its time."""

    def __init__(self, closed: Callable[[str], None]) -> None:
        self._closed = closed
        self._keys: dict[str, tuple[Key, int]] = {}

    def table(self) -> dict[str, Keyed]:
        """Every endpoint by method and path."""
        which = frozenset(("listenKey",))
        return {
            "POST /api/v3/userDataStream": Keyed(self.start, 2),
            "PUT /api/v3/userDataStream": Keyed(self.keep, 2, which),
            "DELETE /api/v3/userDataStream": Keyed(self.stop, 2, which),
        }

    def find(self, name: str, now_ms: int) -> Key | None:
        """The API key behind a listen key that holds."""
        key, until = self._keys.get(name, (None, 0))
        return key if now_ms < until else None

    def start(self, call: Call) -> wire.Json:
        """A new listen key, or the one that the key has, for another hour."""
        permit(call.key, "read")
        if not call.key.listen_keys:
            raise Refused(-2015, "Invalid API-key, IP, or permissions for action.", 401)
        self._keys = {name: held for name, held in self._keys.items() if call.now_ms < held[1]}
        name = next((name for name, (key, _) in self._keys.items() if key == call.key), secrets.token_hex(32))
        self._keys[name] = call.key, call.now_ms + LIFETIME_MS
        return {"listenKey": name}

    def keep(self, call: Call) -> wire.Json:
        """For another hour."""
        self._keys[self._own(call)] = call.key, call.now_ms + LIFETIME_MS
        return {}

    def stop(self, call: Call) -> wire.Json:
        """Not any more."""
        name = self._own(call)
        del self._keys[name]
        self._closed(name)
        return {}

    def revoke(self, api_key: str) -> None:
        """End those of an API key."""
        for name in [name for name, (key, _) in self._keys.items() if key.api_key == api_key]:
            del self._keys[name]
            self._closed(name)

    def _own(self, call: Call) -> str:
        name = call.parameters.get("listenKey")
        if name is None:
            raise missing("listenKey")
        if self.find(name, call.now_ms) != call.key:
            raise Refused(-1125, "This listenKey does not exist.")
        return name
