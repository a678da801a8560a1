"""API keys of sub-accounts, as a master account makes, restricts, lists and deletes them.

- A caller is a key with `manage`.  It reaches the sub-accounts of its own account, and there every key.
- What it makes may read, and trade where it says so; nothing that it makes withdraws or manages.  So whoever holds it
  cannot take money away, and can trade only visibly, by a key that stands in the list.
- A key made with a public key has no secret; without one the venue makes the secret, and says it once.
- A change is kept before it is done and answered (`server.Exchange._change_key`).

Whoever holds a `manage` key can stop all trading of the sub-accounts and trade on them: it is to be kept as well as the
keys that it makes.

Source: https://developers.binance.com/en/docs/catalog/vip-and-institutional-sub-account/api/rest-api/api-management, and
https://developers.binance.com/legacy-docs/sub_account/api-management/ (Create-Sub-account-API-Key-V2,
Delete-Sub-account-API-Key, Modify-Sub-account-API-Key-Permission, Get-IP-Restriction-for-a-Sub-account-API-Key,
Add-IP-Restriction-for-Sub-Account-API-key, Delete-IP-List-For-a-Sub-account-API-Key).  Those pages name -9000 alone; the
other numbers are those of Binance's general list: -1099, -2008 (BAD_API_ID), -2009 (DUPLICATE_API_KEY_DESC).
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
import secrets
import string
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from tallystick.components.paper_exchange import parameters as parse
from tallystick.components.paper_exchange import wire
from tallystick.components.paper_exchange.access import PUBLIC_KEY, Key, Keys, Permission, SubAccount
from tallystick.components.paper_exchange.call import Call, Signed
from tallystick.components.paper_exchange.checks import missing
from tallystick.components.paper_exchange.orders import Refused
from tallystick.schemas.errors import ConfigError

_WHICH: Final = frozenset(("email", "subAccountApiKey"))
# What Binance's keys may do and none here can: asked for, it is unsupported.
_NOT_HERE: Final = (
    "canMarginLoanRepay",
    "canFuturesTrade",
    "canUniversalTransfer",
    "canVanillaOptions",
    "canFixApiTrading",
    "canFixApiReading",
)
_RIGHTS: Final = frozenset(("canTrade", *_NOT_HERE))
_NEW: Final = _RIGHTS | {"email", "apiName", "status", "ipAddress", "thirdPartyName", PUBLIC_KEY}
_LABEL: Final = re.compile(r"[A-Za-z0-9_-]{1,20}")
_UNRESTRICTED: Final = "1"
_TRUSTED: Final = "2"
# "IP address list, max 500 chars".
MAX_ADDRESSES: Final = 500
MAX_PAGE: Final = 100
_PAGE: Final = 30
_LETTERS: Final = string.ascii_letters + string.digits
_PEM: Final = re.compile(r"-----BEGIN PUBLIC KEY-----\n([A-Za-z0-9+/=\n]+)-----END PUBLIC KEY-----\n?")


class SubKeys:
    """The endpoints over the registered keys.

    `subs` are the sub-accounts by e-mail, `limit` the most keys of one; `change(API key, key or None)` keeps and does.
    """

    def __init__(
        self, keys: Keys, subs: Mapping[str, SubAccount], limit: int, change: Callable[[str, Key | None], None]
    ) -> None:
        self._keys = keys
        self._subs = subs
        self._limit = limit
        self._change = change

    def table(self) -> dict[str, Signed]:
        """Every endpoint by method and path; Binance counts them by account, here they weigh 1."""
        body = frozenset((PUBLIC_KEY,))
        base, addresses = "/sapi/v1/sub-account/subAccountApi", _WHICH | {"ipAddress"}
        restriction = "sub-account/subAccountApi/ipRestriction"
        return {
            "POST /sapi/v2/sub-account/subAccountApi": Signed(self._create, 1, "manage", _NEW, True, body),
            f"GET {base}": Signed(self._list, 1, "manage", _WHICH | {"page", "size"}),
            f"DELETE {base}": Signed(self._delete, 1, "manage", _WHICH, True),
            f"POST {base}Permission": Signed(self._permit, 1, "manage", _WHICH | _RIGHTS, True),
            f"GET /sapi/v1/{restriction}": Signed(self._restriction, 1, "manage", _WHICH),
            f"POST /sapi/v2/{restriction}": Signed(self._restrict, 1, "manage", addresses | {"status"}, True),
            f"DELETE /sapi/v1/{restriction}/ipList": Signed(self._unlist, 1, "manage", addresses, True),
        }

    def _create(self, call: Call) -> wire.Json:
        p = call.parameters
        email, account = self._account(call)
        label = _needed(p, "apiName")
        if not _LABEL.fullmatch(label):
            raise Refused(-1100, "Illegal characters found in parameter 'apiName'; legal range is '^[\\w-]{1,20}$'.")
        ips = _status(p)
        held = self._keys.of(account)
        if label in {key.label for key in held}:
            raise Refused(-2009, "API-key desc already exists.")
        if len(held) >= self._limit:
            raise Refused(-9000, f"Unsupported operation: {email} has {len(held)} API keys, at most {self._limit}.")
        public = _public_key(p[PUBLIC_KEY]) if PUBLIC_KEY in p else ""
        key = Key(
            api_key=_random(),
            account=account,
            permissions=_permissions(p, frozenset(("read",))),
            public_key=public,
            secret="" if public else _random(),
            ips=ips,
            listen_keys=False,
            label=label,
            created_ms=call.now_ms,
        )
        try:
            self._change(key.api_key, key)
        except ConfigError as exc:
            raise Refused(-1100, "Illegal characters found in parameter 'publicKey'.") from exc
        return wire.new_sub_key(key)

    def _list(self, call: Call) -> wire.Json:
        email, account = self._account(call)
        wanted = call.parameters.get("subAccountApiKey")
        keys = [key for key in self._keys.of(account) if wanted in (None, key.api_key)]
        page, size = parse.integer(call.parameters, "page"), parse.integer(call.parameters, "size")
        page, size = 1 if page is None else page, _PAGE if size is None else size
        if page < 1 or not 1 <= size <= MAX_PAGE:
            raise Refused(-1130, "Data sent for parameter 'page' or 'size' is not valid.")
        shown = keys[(page - 1) * size : page * size]
        return {"total": len(keys), "list": [wire.sub_key(email, key) for key in shown]}

    def _delete(self, call: Call) -> wire.Json:
        self._change(self._key(call).api_key, None)
        return {}

    def _permit(self, call: Call) -> wire.Json:
        old = self._key(call)
        key = msgspec.structs.replace(old, permissions=_permissions(call.parameters, old.permissions))
        self._change(key.api_key, key)
        return wire.sub_key(call.parameters["email"], key) | {"timestamp": call.now_ms}

    def _restriction(self, call: Call) -> wire.Json:
        key = self._key(call)
        return _restricted(key, call.now_ms)

    def _restrict(self, call: Call) -> wire.Json:
        ips = _status(call.parameters)
        # Added to what is there already; "unrestricted" drops the whole list.
        old = self._key(call)
        key = msgspec.structs.replace(old, ips=tuple(dict.fromkeys((*old.ips, *ips))) if ips else ())
        self._change(key.api_key, key)
        status = _TRUSTED if key.ips else _UNRESTRICTED
        return {"status": status, "ipList": list(key.ips), "updateTime": call.now_ms, "apiKey": key.api_key}

    def _unlist(self, call: Call) -> wire.Json:
        key, gone = self._key(call), _addresses(call.parameters)
        left = tuple(ip for ip in key.ips if ip not in gone)
        if not left:
            # An empty list is no list: the key would be open to every address.
            raise Refused(-9000, "Unsupported operation: a restricted API key keeps one IP address.")
        key = msgspec.structs.replace(key, ips=left)
        self._change(key.api_key, key)
        return _restricted(key, call.now_ms)

    def _account(self, call: Call) -> tuple[str, str]:
        """The e-mail that the caller names, and its account if that is a sub-account of the caller's."""
        email = _needed(call.parameters, "email")
        sub = self._subs.get(email)
        if sub is None or sub.master != call.key.account:
            # One answer for both: which addresses are somebody's is nobody's business.
            raise Refused(-1099, "Not found, authenticated, or authorized.")
        return email, sub.account

    def _key(self, call: Call) -> Key:
        _, account = self._account(call)
        wanted = _needed(call.parameters, "subAccountApiKey")
        key = next((key for key in self._keys.of(account) if key.api_key == wanted), None)
        if key is None:
            raise Refused(-2008, "Invalid Api-Key ID.")
        return key


def _needed(parameters: Mapping[str, str], name: str) -> str:
    value = parameters.get(name)
    if value is None:
        raise missing(name)
    return value


def _random() -> str:
    """64 letters and digits, as Binance's ids and secrets are."""
    return "".join(secrets.choice(_LETTERS) for _ in range(64))


def _restricted(key: Key, now_ms: int) -> wire.Json:
    """An answer on a key's addresses; `ipRestrict` is text there, as at Binance."""
    listed = {"ipRestrict": "true" if key.ips else "false", "ipList": list(key.ips)}
    return {**listed, "updateTime": now_ms, "apiKey": key.api_key}


def _status(parameters: Mapping[str, str]) -> tuple[str, ...]:
    """The addresses that `status` and `ipAddress` bind a key to; none: to none."""
    status = _needed(parameters, "status")
    if status == _UNRESTRICTED:
        if "ipAddress" in parameters:
            raise Refused(-1106, "Parameter 'ipAddress' sent when not required.")
        return ()
    if status != _TRUSTED:  # 3 is a third party's list: there is no third party here
        raise Refused(-9000, "Unsupported operation.")
    return _addresses(parameters)


def _addresses(parameters: Mapping[str, str]) -> tuple[str, ...]:
    text = _needed(parameters, "ipAddress")
    try:
        found = tuple(dict.fromkeys(str(ipaddress.ip_address(part)) for part in text.split(",")))
    except ValueError:
        found = ()
    if not found or len(text) > MAX_ADDRESSES:
        raise Refused(-1130, "Data sent for parameter 'ipAddress' is not valid.")
    return found


def _permissions(parameters: Mapping[str, str], before: frozenset[Permission]) -> frozenset[Permission]:
    """What the key may do; what is not named stays as it was `before`."""
    for name in _RIGHTS & parameters.keys():
        if parameters[name] not in {"true", "false"}:
            raise Refused(-1130, f"Data sent for parameter '{name}' is not valid.")
    for name in _NOT_HERE:
        if parameters.get(name) == "true":
            raise Refused(-9000, "Unsupported operation.")
    trade = parameters.get("canTrade")
    if trade is None:
        return before
    return before | {"trade"} if trade == "true" else before - {"trade"}


def _public_key(text: str) -> str:
    """The base64 in a public key's PEM (RFC 7468), or what is base64 already."""
    pem = _PEM.fullmatch(text)
    joined = (pem.group(1) if pem is not None else text).replace("\n", "")
    try:
        base64.b64decode(joined, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise Refused(-1100, "Illegal characters found in parameter 'publicKey'.") from exc
    return joined
