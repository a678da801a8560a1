"""Bybit: what a key may do, and the API keys of a sub-account, made by its master account.

- Bybit makes the secret of a key that is made by API (HMAC): a key pair born in a token is registered on its site.
- `update-sub-api` sets what is not sent: without `readOnly` a key that only read could write.  So it is always sent.
- An unbound key (`ips` is `*`) ends after 90 days, and every key 7 days after the account's password changed.
- Of a key that only reads, its ticked permissions are what it may read; a right to withdraw counts even so.

Sources: https://bybit-exchange.github.io/docs/v5/guide (signature), …/v5/error, …/v5/user/apikey-info,
…/v5/user/create-subuid-apikey, …/v5/user/list-sub-apikeys, …/v5/user/modify-sub-apikey, …/v5/user/rm-sub-apikey.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable
from typing import Any, Final, Literal

import msgspec

from tallystick.schemas.bounds import NS_PER_MS, SECOND
from tallystick.schemas.errors import NOT_DECODED, ConfigError, Malformed
from tallystick.venues import VALID_NS, NoAnswer, Rejected, SignedRequest
from tallystick.venues.keys import (
    Done,
    Failed,
    Grant,
    KeyRights,
    Listed,
    ListedKey,
    Mac,
    NewKey,
    Right,
    Role,
    check_addresses,
    check_label,
    require_page,
)

RIGHTS: Final = "/v5/user/query-api"
NEW_KEY: Final = "/v5/user/create-sub-api"
KEYS: Final = "/v5/user/sub-apikeys"
UPDATE: Final = "/v5/user/update-sub-api"
DELETE: Final = "/v5/user/delete-sub-api"
PAGE: Final = 20
MAX_TEXT: Final = 200
RECV_WINDOW_MS: Final = VALID_NS // NS_PER_MS

# Key invalid, wrong signature, no permission, not authenticated, wrong address, expired (derivatives, spot).
CREDENTIAL_ERRORS: Final = frozenset((10003, 10004, 10005, 10007, 10010, 33004, -2015))
CLOCK_ERRORS: Final = frozenset((10002, -1))
# The server's own failures: what was asked may have been done.
UNKNOWN_ERRORS: Final = frozenset((10000, 10016, 10019))
_UNBOUND: Final = "*"

# Every permission that Bybit documents, by group and name, with the words of its setting.
_RIGHTS: Final[dict[str, tuple[Right, str]]] = {
    "Spot.SpotTrade": ("trade", "SPOT → Trade"),
    "ContractTrade.Order": ("futures", "Contract → Orders"),
    "ContractTrade.Position": ("futures", "Contract → Positions"),
    "Derivatives.DerivativesTrade": ("futures", "Unified Trading → Derivatives"),
    "Options.OptionsTrade": ("options", "USDC Contracts → Trade"),
    "Wallet.AccountTransfer": ("transfer", "Assets → Account Transfer"),
    "Wallet.SubMemberTransfer": ("transfer", "Assets → Subaccount Transfer"),
    "Wallet.SubMemberTransferList": ("transfer", "Assets → Subaccount Transfer"),
    "Wallet.Withdraw": ("withdraw", "Assets → Withdrawal"),
}
# Groups that the documentation names for every key; one that is missing leaves open what the key may do.
_GROUPS: Final = frozenset(("ContractTrade", "Spot", "Wallet", "Options", "Exchange"))
_PERMISSIONS: Final = {"Spot": ["SpotTrade"]}
_READS: Final = Grant("read", "readOnly", "Read")


class _Envelope(msgspec.Struct, frozen=True, rename="camel"):
    ret_code: int
    ret_msg: str
    result: msgspec.Raw = msgspec.Raw(b"{}")


class _Info(msgspec.Struct, frozen=True, rename="camel"):
    read_only: int
    permissions: dict[str, list[str]]
    ips: list[str]
    created_at: str
    expired_at: str | None = ""


class _Created(msgspec.Struct, frozen=True, rename="camel"):
    note: str
    api_key: str
    secret: str


class _Row(msgspec.Struct, frozen=True, rename="camel"):
    api_key: str
    note: str = ""


class _Rows(msgspec.Struct, frozen=True, rename="camel"):
    result: list[_Row]
    next_page_cursor: str | None = ""


class _Requests:
    """Signs as Bybit's version 5 wants it: HMAC-SHA256 over timestamp, key, window, and query or body, in hex."""

    def __init__(self, host: str, api_key: str, mac: Mac, clock: Callable[[], int]) -> None:
        self._host = host
        self._api_key = api_key
        self._mac = mac
        self._clock = clock

    def make(self, method: Literal["GET", "POST"], path: str, query: str, body: dict[str, Any]) -> SignedRequest:
        now_ms = self._clock() // NS_PER_MS
        text = msgspec.json.encode(body).decode("ascii") if method == "POST" else ""
        window = str(RECV_WINDOW_MS)
        signature = self._mac(f"{now_ms}{self._api_key}{window}{query or text}".encode("ascii")).hex()
        headers = {
            "X-BAPI-API-KEY": self._api_key,
            "X-BAPI-TIMESTAMP": str(now_ms),
            "X-BAPI-RECV-WINDOW": window,
            "X-BAPI-SIGN": signature,
        }
        if method == "POST":
            headers["Content-Type"] = "application/json"
        url = f"https://{self._host}{path}{'?' if query else ''}{query}"
        return SignedRequest(method, url, tuple(sorted(headers.items())), text, now_ms * NS_PER_MS)


def rights_request(host: str, api_key: str, mac: Mac, clock: Callable[[], int]) -> SignedRequest:
    """Asks what this very key may do; any permission may ask it."""
    return _Requests(host, api_key, mac, clock).make("GET", RIGHTS, "", {})


def rights_answer(status: int, body: bytes) -> KeyRights | Failed:
    """What the answer to `rights_request` says.  Raises `Malformed` where a documented field is missing."""
    result = _result(status, body)
    return parse_rights(result) if isinstance(result, bytes) else result


def parse_rights(body: bytes) -> KeyRights:
    """The `result` of `query-api` as rights.  Raises `Malformed`."""
    said = _decode(body, _Info, "what an API key may do")
    missing = sorted(_GROUPS - said.permissions.keys())
    if missing or said.read_only not in {0, 1}:
        raise Malformed("VENUE_ANSWER", f"what an API key may do: readOnly {said.read_only}, without {missing}")
    grants = [_READS]
    for name in sorted(f"{group}.{one}"[:64] for group, some in said.permissions.items() for one in some):
        # Whatever is not documented is one right too many.
        right, setting = _RIGHTS.get(name, ("other", name))
        if right == "withdraw" or said.read_only == 0:
            grants.append(Grant(right, name, setting))
    bound = bool(said.ips) and _UNBOUND not in said.ips
    expires = _moment(said.expired_at) if said.expired_at else 0
    return KeyRights(
        venue="bybit",
        grants=tuple(grants),
        ip_bound=bound,
        addresses=tuple(said.ips) if bound else (),
        created_at=_moment(said.created_at),
        # What never ends is given as 1970.
        expires_at=expires or None,
    )


class BybitKeys:
    """The keys of sub-account `subuid`, as `venues.keys.KeyAdmin`; `api_key` and `mac` are the master account's."""

    def __init__(self, host: str, subuid: int, api_key: str, mac: Mac, clock: Callable[[], int]) -> None:
        self._subuid = subuid
        self._requests = _Requests(host, api_key, mac, clock)

    def create(self, label: str, role: Role, addresses: Iterable[str], public_key: str = "") -> SignedRequest:
        """`POST /v5/user/create-sub-api`."""
        if public_key:
            raise ConfigError(
                "KEY_NO_PUBLIC", "Bybit takes no public key through its API: register it on its site, as guided"
            )
        body = {
            "subuid": self._subuid,
            "note": check_label(label),
            "readOnly": _read_only(role),
            "ips": ",".join(check_addresses(addresses)),
            "permissions": _PERMISSIONS,
        }
        return self._requests.make("POST", NEW_KEY, "", body)

    def list_keys(self, page: str = "") -> SignedRequest:
        """`GET /v5/user/sub-apikeys`."""
        # The cursor is what the venue gave, already escaped for an address.
        query = f"subMemberId={self._subuid}&limit={PAGE}" + (f"&cursor={page}" if page else "")
        return self._requests.make("GET", KEYS, query, {})

    def restrict(self, api_key: str, role: Role, addresses: Iterable[str]) -> SignedRequest:
        """`POST /v5/user/update-sub-api`; it replaces the list of addresses."""
        bound = ",".join(check_addresses(addresses))
        body = {"apikey": api_key, "readOnly": _read_only(role), "ips": bound}
        return self._requests.make("POST", UPDATE, "", body)

    def delete(self, api_key: str) -> SignedRequest:
        """`POST /v5/user/delete-sub-api`; without `apikey` the master's own key would be meant, so it is never empty."""
        if not api_key:
            raise ConfigError("KEY_EMPTY", "no API key was named: nothing is deleted")
        return self._requests.make("POST", DELETE, "", {"apikey": api_key})

    def addresses(self, _: str) -> SignedRequest | None:
        """A key's own rights say it."""
        return None

    def addressed(self, rights: KeyRights, _: int, __: bytes) -> KeyRights | Failed:
        """Never asked."""
        return rights

    def created(self, status: int, body: bytes) -> NewKey | Failed:
        """See `KeyAdmin`.  What cannot be read may have been done: `NoAnswer`, and the list says what was."""
        result = _result(status, body)
        if not isinstance(result, bytes):
            return result
        try:
            made = _decode(result, _Created, "a new API key")
        except Malformed as exc:
            return NoAnswer("VENUE_ANSWER", exc.text)
        return NewKey(made.api_key, made.note, made.secret)

    def listed(self, status: int, body: bytes, page: str = "") -> Listed | Failed:
        """See `KeyAdmin`."""
        result = _result(status, body)
        if not isinstance(result, bytes):
            return result
        said = _decode(result, _Rows, "the API keys of a sub-account")
        require_page(len(said.result), PAGE)
        cursor = said.next_page_cursor or ""
        if not cursor.isascii() or not cursor.isprintable() or len(cursor) > MAX_TEXT or set(cursor) & set("&#? "):
            raise Malformed("VENUE_ANSWER", f"nextPageCursor is {cursor[:48]!r}")
        if cursor and (cursor == page or not said.result):
            raise Malformed("VENUE_ANSWER", "a list of API keys that does not go on")
        return Listed(tuple(ListedKey(row.api_key, row.note) for row in said.result), cursor)

    def done(self, status: int, body: bytes) -> Done | Failed:
        """See `KeyAdmin`."""
        result = _result(status, body)
        return Done() if isinstance(result, bytes) else result


def _read_only(role: Role) -> int:
    return 0 if role == "trade" else 1


def _decode(body: bytes, kind: type[Any], what: str) -> Any:
    try:
        return msgspec.json.decode(body, type=kind)
    except NOT_DECODED as exc:
        raise Malformed("VENUE_ANSWER", f"{what}: {exc}") from exc


def _moment(text: str) -> int:
    """Unix ns of a date with its time zone (RFC 3339)."""
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError as exc:
        raise Malformed("VENUE_ANSWER", f"a moment of an API key is {text[:40]!r}") from exc
    if moment.tzinfo is None:
        raise Malformed("VENUE_ANSWER", f"a moment of an API key is {text[:40]!r}, without a time zone")
    return max(0, int(moment.timestamp())) * SECOND


def _result(status: int, body: bytes) -> bytes | Failed:
    """The `result` of an answer, or what went wrong: Bybit answers refusals with 200 and a `retCode`."""
    try:
        said: _Envelope = _decode(body, _Envelope, "an answer")
    except Malformed:
        return NoAnswer(f"HTTP_{status}", "an answer without Bybit's retCode")
    if said.ret_code == 0 and status == 200:
        return bytes(said.result)
    code, text = str(said.ret_code), said.ret_msg[:MAX_TEXT]
    if status >= 500 or said.ret_code == 0 or said.ret_code in UNKNOWN_ERRORS:
        return NoAnswer(code, text)
    about: Literal["request", "credential", "clock"] = "request"
    if said.ret_code in CREDENTIAL_ERRORS:
        about = "credential"
    elif said.ret_code in CLOCK_ERRORS:
        about = "clock"
    return Rejected(code, text, about)
