"""ccxt's exchanges with keys in a token: the same class, the same methods, no secret (`handle`, `hooks`).

- Only what `schemes` names is made; everything else is refused by name and reason, before anything is sent.
- A request that holds the placeholder of the secret anywhere is refused unsent.
- Custody does not use this for orders: an adapter of its own checks there what is signed (`venues.capture`).
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from typing import Any, Final, Literal

from tallystick.runtime import lean
from tallystick.schemas.errors import ConfigError
from tallystick.venues.signing.handle import MARK, SigningKeys, handle, require_absent
from tallystick.venues.signing.hooks import Hooks
from tallystick.venues.signing.schemes import Scheme, require_signable

Api = Literal["sync", "async", "pro"]
_PACKAGES: Final[dict[Api, str]] = {"sync": "ccxt", "async": "ccxt.async_support", "pro": "ccxt.pro"}

# What ccxt looks at to choose how to sign: marks, ends and lengths.
_PLACEHOLDERS: Final[dict[str, str]] = {
    "text": MARK,
    "text-44": MARK.ljust(44, "0"),
    "pem": f"-----BEGIN PRIVATE KEY-----{MARK}",
    "ec-pem": f"-----BEGIN EC PRIVATE KEY-----{MARK}",
    "rsa-pem": f"-----BEGIN PRIVATE KEY-----{MARK * 8}",
    "base64": f"{MARK}=",
    "base58": MARK,
    "orderly": f"ed25519:{MARK}",
    "hex": f"0x{MARK.ljust(64, '0')}",
}


class _Checked(Hooks):
    """The hooks, and a last look at what would be sent; sync, async and pro alike."""

    def sign(self, *arguments: Any, **options: Any) -> Any:
        """The exchange's own, refused where the secret would be sent."""
        request = super().sign(*arguments, **options)  # type: ignore[misc]
        require_absent(request.get("url"), request.get("body"), request.get("headers"))
        return request

    def fetch(self, url: Any, method: Any = "GET", headers: Any = None, body: Any = None) -> Any:
        """The exchange's own, refused where the secret would be sent."""
        require_absent(url, headers or {}, body)
        return super().fetch(url, method, headers, body)  # type: ignore[misc]

    def client(self, url: Any) -> Any:
        """The exchange's own connection to a websocket, which refuses to send the secret, whoever sends."""
        require_absent(url)
        found = super().client(url)  # type: ignore[misc]
        if not getattr(found, "sends_no_secret", False):
            send = found.send

            def checked(message: Any) -> Any:
                require_absent(message)
                return send(message)

            found.send, found.sends_no_secret = checked, True
        return found


def signed_exchange(
    exchange_id: str, api: Api, scheme: str, keys: SigningKeys, config: dict[str, Any] | None = None
) -> Any:
    """A ccxt instance of `exchange_id` that signs by `scheme` with `keys`; `config` as ccxt's, without secrets.

    Raises `ConfigError` for an exchange that cannot be signed so, by name and reason.
    """
    chosen = require_signable(exchange_id, scheme)
    given = dict(config or {})
    for name in ("secret", "privateKey"):
        if name in given:
            raise ConfigError("SECRET_GIVEN", f"{exchange_id}: {name} is in the token, not in the configuration")
    made = hooked(exchange_class(exchange_id, api))(given)
    give(made, keys, chosen)
    return made


def hooked(base: type) -> type:
    """An exchange's class that signs with keys in a token, and sends no secret."""
    return type(f"{base.__name__}_with_a_token", (_Checked, base), {})


def give(exchange: Any, keys: SigningKeys, scheme: Scheme) -> None:
    """Let an instance of a hooked class sign with `keys`."""
    setattr(exchange, scheme.field, handle(keys, placeholder(scheme), scheme.chains))


def exchange_class(exchange_id: str, api: Api) -> type:
    """The class that ccxt has; of its hundred exchanges only this one is read, with its parents.

    Raises `ConfigError` where ccxt has none.
    """
    with contextlib.ExitStack() as stack:
        for name in _PACKAGES.values() if api == "pro" else dict.fromkeys(("ccxt", _PACKAGES[api])):
            stack.enter_context(lean.hollow(name))
        # What modules of the websockets take from the package itself.
        known = dict(vars(importlib.import_module("ccxt.base.errors")))
        known["Exchange"] = importlib.import_module("ccxt.base.exchange").Exchange
        vars(sys.modules["ccxt"]).update({name: value for name, value in known.items() if name[0] != "_"})
        try:
            if api == "pro":
                # A pro module finds its parent as an attribute of the package, where the packages' own imports put it.
                package = vars(sys.modules["ccxt"])["async_support"] = sys.modules["ccxt.async_support"]
                rest = getattr(importlib.import_module(f"ccxt.async_support.{exchange_id}"), exchange_id)
                for parent in rest.__mro__:
                    if parent.__module__ == f"ccxt.async_support.{parent.__name__}":
                        setattr(package, parent.__name__, parent)
            found: type = getattr(importlib.import_module(f"{_PACKAGES[api]}.{exchange_id}"), exchange_id)
        except ModuleNotFoundError as exc:
            raise ConfigError("EXCHANGE_API", f"ccxt has no {api} class for {exchange_id}") from exc
    return found


def placeholder(scheme: Scheme) -> str:
    """What ccxt is shown for a secret of a scheme."""
    return _PLACEHOLDERS[scheme.form]
