"""Binance: what a key may do, and the API keys of a sub-account, made by its master account.

Sources, parameter by parameter:

- https://developers.binance.com/docs/wallet/account/api-key-permission (`apiRestrictions`)
- https://developers.binance.com/legacy-docs/sub_account/api-management/Create-Sub-account-API-Key-V2: the public key
  stands in the body alone
- …/Delete-Sub-account-API-Key, …/Get-IP-Restriction-for-a-Sub-account-API-Key,
  https://developers.binance.com/docs/sub_account/api-management/Add-IP-Restriction-for-Sub-Account-API-key
- https://developers.binance.com/en/docs/catalog/vip-and-institutional-sub-account/api/rest-api/api-management
  (`query-sub-account-api-key`): the list stands in `list`, in another version of that page in `rows`

Adding an address to a key adds to its list: `restrict` alone takes no foreign one away, and `require_fit` finds it.
"""

from __future__ import annotations

import base64
import re
import urllib.parse
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

from tallystick.schemas.bounds import NS_PER_MS
from tallystick.schemas.errors import Malformed
from tallystick.schemas.nats_jwt import Signer
from tallystick.venues import NoAnswer, SignedRequest
from tallystick.venues.binance.answers import decode, failure
from tallystick.venues.binance.codes import RECV_WINDOW_MS
from tallystick.venues.binance.request import FORM
from tallystick.venues.keys import (
    Done,
    Failed,
    Grant,
    KeyRights,
    Listed,
    ListedKey,
    NewKey,
    Right,
    Role,
    VenueName,
    check_addresses,
    check_label,
    require_page,
)

RIGHTS: Final = "/sapi/v1/account/apiRestrictions"
NEW_KEY: Final = "/sapi/v2/sub-account/subAccountApi"
KEYS: Final[VenueName] = "binance"
_KEYS: Final = "/sapi/v1/sub-account/subAccountApi"
ADDRESSES: Final = f"{_KEYS}/ipRestriction"
RESTRICT: Final = "/sapi/v2/sub-account/subAccountApi/ipRestriction"
PAGE: Final = 100

# Every right that Binance documents, by its field, with the words of its setting.
_RIGHTS: Final[dict[str, tuple[Right, str]]] = {
    "enableReading": ("read", "Enable Reading"),
    "enableSpotAndMarginTrading": ("trade", "Enable Spot & Margin Trading"),
    "enableWithdrawals": ("withdraw", "Enable Withdrawals"),
    "enableInternalTransfer": ("transfer", "Enable Internal Transfer"),
    "permitsUniversalTransfer": ("transfer", "Permits Universal Transfer"),
    "enableMargin": ("margin", "Enable Margin Loan, Repay & Transfer"),
    "enablePortfolioMarginTrading": ("margin", "Enable Portfolio Margin Trading"),
    "enableFutures": ("futures", "Enable Futures"),
    "enableVanillaOptions": ("options", "Enable European Options"),
    "enableFixApiTrade": ("other", "Enable FIX API Trading"),
    "enableFixReadOnly": ("other", "Enable FIX API Reading"),
}
_NOT_RIGHTS: Final = frozenset(("ipRestrict", "createTime", "tradingAuthorityExpirationTime"))
_PROBE: Final = re.compile(r"timestamp=([0-9]{13})&recvWindow=[0-9]{1,5}&signature=[A-Za-z0-9%]{1,600}")
_object = msgspec.json.Decoder(dict[str, Any])


class _Created(msgspec.Struct, frozen=True, rename="camel"):
    api_name: str
    api_key: str
    secret_key: str | None = ""


class _Row(msgspec.Struct, frozen=True, rename="camel"):
    api_name: str
    apikey: str


class _Rows(msgspec.Struct, frozen=True):
    total: int
    listed: list[_Row] | None = msgspec.field(default=None, name="list")
    rows: list[_Row] | None = None


class _Addresses(msgspec.Struct, frozen=True, rename="camel"):
    ip_restrict: str
    ip_list: list[str] = []


_created = msgspec.json.Decoder(_Created)
_rows = msgspec.json.Decoder(_Rows)
_addresses = msgspec.json.Decoder(_Addresses)


class _Requests:
    """Signs requests with one Ed25519 key: query, or form, before `&signature=`, as orders are signed."""

    def __init__(self, host: str, api_key: str, signer: Signer, clock: Callable[[], int]) -> None:
        self._host = host
        self._api_key = api_key
        self._signer = signer
        self._clock = clock

    def make(self, method: str, path: str, fields: dict[str, str]) -> SignedRequest:
        now_ms = self._clock() // NS_PER_MS
        timed = fields | {"timestamp": str(now_ms), "recvWindow": str(RECV_WINDOW_MS)}
        text = "&".join(f"{name}={urllib.parse.quote(value, safe='')}" for name, value in timed.items())
        signature = base64.b64encode(self._signer.sign(text.encode("ascii"))).decode("ascii")
        full = f"{text}&signature={urllib.parse.quote(signature, safe='')}"
        url, headers = f"https://{self._host}{path}", (("X-MBX-APIKEY", self._api_key),)
        if method == "POST":
            return SignedRequest(method, url, (("Content-Type", FORM), *headers), full, now_ms * NS_PER_MS)
        return SignedRequest(method, f"{url}?{full}", headers, "", now_ms * NS_PER_MS)


def rights_request(host: str, api_key: str, signer: Signer, clock: Callable[[], int]) -> SignedRequest:
    """Asks what this very key may do: the harmless request that shows whether it is accepted at all."""
    return _Requests(host, api_key, signer, clock).make("GET", RIGHTS, {})


def rights_probe(host: str, api_key: str, query: str) -> SignedRequest:
    """`rights_request` with a `query` that was signed elsewhere.  Raises `Malformed` for what is no such query."""
    signed = _PROBE.fullmatch(query)
    if signed is None:
        raise Malformed("KEY_PROBE", f"{len(query)} characters that are no signed question about a key's rights")
    headers = (("X-MBX-APIKEY", api_key),)
    return SignedRequest("GET", f"https://{host}{RIGHTS}?{query}", headers, "", int(signed[1]) * NS_PER_MS)


def rights_answer(status: int, body: bytes) -> KeyRights | Failed:
    """What the answer to `rights_request` says.  Raises `Malformed` where a documented field is missing."""
    failed = failure(status, body)
    return parse_rights(body) if failed is None else failed


def parse_rights(body: bytes) -> KeyRights:
    """`apiRestrictions` as rights; the addresses are not in it.  Raises `Malformed`."""
    said = decode(_object, body, "what an API key may do")
    missing = sorted((_RIGHTS.keys() | {"ipRestrict", "createTime"}) - said.keys())
    if missing:
        raise Malformed("VENUE_ANSWER", f"what an API key may do, without {', '.join(missing)}")
    for name in (*_RIGHTS, "ipRestrict"):
        if not isinstance(said[name], bool):
            raise Malformed("VENUE_ANSWER", f"{name} of an API key is {str(said[name])[:40]!r}, no truth value")
    known = [Grant(right, name, setting) for name, (right, setting) in _RIGHTS.items() if said[name]]
    # Whatever Binance adds: on is too much, until somebody here has read what it is.
    new = [Grant("other", name[:64], name[:64]) for name in said.keys() - _RIGHTS.keys() - _NOT_RIGHTS if said[name]]
    return KeyRights(
        venue="binance",
        grants=(*known, *sorted(new, key=lambda grant: grant.field)),
        ip_bound=said["ipRestrict"],
        addresses=None,
        created_at=_moment(said["createTime"]),
        expires_at=_moment(said["tradingAuthorityExpirationTime"])
        if "tradingAuthorityExpirationTime" in said
        else None,
    )


def _moment(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**43:
        raise Malformed("VENUE_ANSWER", f"a moment of an API key is {str(value)[:40]!r}, no Unix milliseconds")
    return value * NS_PER_MS


class BinanceKeys:
    """The keys of sub-account `email`, as `venues.keys.KeyAdmin`; `api_key` and `signer` are the master account's."""

    def __init__(self, host: str, email: str, api_key: str, signer: Signer, clock: Callable[[], int]) -> None:
        self._email = email
        self._requests = _Requests(host, api_key, signer, clock)

    def create(self, label: str, role: Role, addresses: Iterable[str], public_key: str = "") -> SignedRequest:
        """`POST /sapi/v2/sub-account/subAccountApi`."""
        fields = {
            "email": self._email,
            "apiName": check_label(label),
            "status": "2",
            "canTrade": "true" if role == "trade" else "false",
            "ipAddress": ",".join(check_addresses(addresses)),
        }
        return self._requests.make("POST", NEW_KEY, fields | ({"publicKey": public_key} if public_key else {}))

    def list_keys(self, page: str = "") -> SignedRequest:
        """`GET /sapi/v1/sub-account/subAccountApi`."""
        return self._requests.make("GET", _KEYS, {"email": self._email, "page": page or "1", "size": str(PAGE)})

    def addresses(self, api_key: str) -> SignedRequest:
        """`GET /sapi/v1/sub-account/subAccountApi/ipRestriction`."""
        return self._requests.make("GET", ADDRESSES, self._which(api_key))

    def restrict(self, api_key: str, role: Role, addresses: Iterable[str]) -> SignedRequest:
        """`POST /sapi/v2/sub-account/subAccountApi/ipRestriction`."""
        bound = {"status": "2", "ipAddress": ",".join(check_addresses(addresses))}
        return self._requests.make("POST", RESTRICT, self._which(api_key) | bound)

    def delete(self, api_key: str) -> SignedRequest:
        """`DELETE /sapi/v1/sub-account/subAccountApi`."""
        return self._requests.make("DELETE", _KEYS, self._which(api_key))

    def _which(self, api_key: str) -> dict[str, str]:
        return {"email": self._email, "subAccountApiKey": api_key}

    def created(self, status: int, body: bytes) -> NewKey | Failed:
        """See `KeyAdmin`.  What cannot be read may have been done: `NoAnswer`, and the list says what was."""
        failed = failure(status, body)
        if failed is not None:
            return failed
        try:
            made = decode(_created, body, "a new API key")
        except Malformed as exc:
            return NoAnswer("VENUE_ANSWER", exc.text)
        return NewKey(made.api_key, made.api_name, made.secret_key or "")

    def listed(self, status: int, body: bytes, page: str = "") -> Listed | Failed:
        """See `KeyAdmin`."""
        failed = failure(status, body)
        if failed is not None:
            return failed
        said = decode(_rows, body, "the API keys of a sub-account")
        rows = said.rows if said.listed is None else said.listed
        if rows is None or (said.listed is not None and said.rows is not None) or said.total < len(rows):
            raise Malformed("VENUE_ANSWER", f"{said.total} API keys of a sub-account, and not one list of them")
        require_page(len(rows), PAGE)
        number = int(page or 1)
        keys = tuple(ListedKey(row.apikey, row.api_name) for row in rows)
        return Listed(keys, str(number + 1) if rows and number * PAGE < said.total else "")

    def addressed(self, rights: KeyRights, status: int, body: bytes) -> KeyRights | Failed:
        """See `with_addresses`."""
        return with_addresses(rights, status, body)

    def done(self, status: int, body: bytes) -> Done | Failed:
        """See `KeyAdmin`."""
        return failure(status, body) or Done()


def with_addresses(rights: KeyRights, status: int, body: bytes) -> KeyRights | Failed:
    """`rights` with the addresses of the answer to `BinanceKeys.addresses`; `ipRestrict` is text there.

    Raises `Malformed`, also where the two answers contradict each other.
    """
    failed = failure(status, body)
    if failed is not None:
        return failed
    said = decode(_addresses, body, "the addresses of an API key")
    bound = said.ip_restrict == "true"
    if bound != rights.ip_bound or bound != bool(said.ip_list) or said.ip_restrict not in {"true", "false"}:
        text = f"ipRestrict {said.ip_restrict[:16]!r} and {len(said.ip_list)} addresses, but bound: {rights.ip_bound}"
        raise Malformed("VENUE_ANSWER", text)
    return msgspec.structs.replace(rights, addresses=tuple(said.ip_list))
