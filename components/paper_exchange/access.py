"""Who may ask what: API keys, signatures, time windows and rate limits.  Pure: times are arguments.

A signed request is accepted only if, in this order:

- its API key is known and not revoked, and the request comes from one of the key's addresses (none listed: any);
- it ends in one `signature`, Ed25519 (RFC 8032) over the raw bytes before it, never over a re-encoded form;
- its parameters are well formed, known to the endpoint, and none is there twice;
- `timestamp` is at most 1,000 ms ahead and at most `recvWindow` (≤ 60,000, default 5,000) behind the venue's clock;
- the key has the endpoint's permission.

A request that passes may be sent again within its window and passes again: as at Binance, nothing here is
single-use.  The journal shows it.

Source: Binance Spot API documentation, "Request security", "Timing security", "LIMITS".
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
import urllib.parse
from collections.abc import Iterable
from decimal import Decimal
from typing import Final, Literal

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key

from tallystick.components.paper_exchange.orders import Depth, Instrument, Refused
from tallystick.schemas.errors import NOT_DECODED, ConfigError, TallystickError

Permission = Literal["read", "trade", "withdraw"]

DEFAULT_RECV_WINDOW: Final = 5_000
MAX_RECV_WINDOW: Final = 60_000
MAX_AHEAD_MS: Final = 1_000
_INTEGER = re.compile(rb"[0-9]{1,19}")
_NAME = re.compile(r"[A-Za-z0-9]{1,32}")
_API_KEY = re.compile(r"[A-Za-z0-9]{1,128}")
_DENIED: Final = "Invalid API-key, IP, or permissions for action."


class Key(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An API key: `public_key` is Ed25519, base64 of the 32 raw bytes or of their SubjectPublicKeyInfo (RFC 8410).

    An empty `ips` binds it to no address, which careful clients refuse to use.
    """

    api_key: str
    public_key: str
    account: str
    permissions: frozenset[Permission]
    ips: tuple[str, ...] = ()


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rate limits: request weight per address and minute, new orders per account and 10 s, and per day."""

    weight_minute: int = 6_000
    orders_10s: int = 100
    orders_day: int = 200_000


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything the venue is: instruments, balances by account and asset, keys, and its rules."""

    instruments: tuple[Instrument, ...]
    accounts: dict[str, dict[str, Decimal]]
    keys: tuple[Key, ...] = ()
    commission: Decimal = Decimal("0.001")
    depth: Depth = Depth()
    limits: Limits = Limits()


def parse_config(data: bytes) -> Config:
    """A configuration from JSON, numbers as text.  Raises `ConfigError`."""
    try:
        return msgspec.json.decode(data, type=Config)
    except (TallystickError, *NOT_DECODED) as exc:
        raise ConfigError("PAPER_CONFIG", f"paper exchange configuration: {exc}") from exc


def _public_key(text: str, api_key: str) -> Ed25519PublicKey:
    try:
        raw = base64.b64decode(text, validate=True)
        key = Ed25519PublicKey.from_public_bytes(raw) if len(raw) == 32 else load_der_public_key(raw)
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise ConfigError("PAPER_KEY", f"public key of {api_key!r} is not base64 of an Ed25519 key: {exc}") from exc
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError("PAPER_KEY", f"public key of {api_key!r} is not Ed25519")
    return key


class Keys:
    """The registered keys.  Trusted by the venue alone: whoever can change it can trade on every account."""

    def __init__(self, keys: Iterable[Key], accounts: Iterable[str]) -> None:
        self._accounts = frozenset(accounts)
        self._keys: dict[str, tuple[Key, Ed25519PublicKey, frozenset[str]]] = {}
        for key in keys:
            self.add(key)

    def add(self, key: Key) -> None:
        """Register a key.  Raises `ConfigError` for a malformed one, an unknown account or an id in use."""
        if not _API_KEY.fullmatch(key.api_key):
            raise ConfigError("PAPER_KEY", "an API key is 1 to 128 letters and digits")
        if key.api_key in self._keys:
            raise ConfigError("PAPER_KEY", f"API key {key.api_key!r} is registered already")
        if key.account not in self._accounts:
            raise ConfigError("PAPER_KEY", f"API key {key.api_key!r} belongs to unknown account {key.account!r}")
        try:
            ips = frozenset(str(ipaddress.ip_address(ip)) for ip in key.ips)
        except ValueError as exc:
            raise ConfigError("PAPER_KEY", f"API key {key.api_key!r}: {exc}") from exc
        self._keys[key.api_key] = key, _public_key(key.public_key, key.api_key), ips

    def revoke(self, api_key: str) -> None:
        """Forget a key: it is answered like one that never was.  Raises `ConfigError` for an unknown one."""
        if self._keys.pop(api_key, None) is None:
            raise ConfigError("PAPER_KEY", f"API key {api_key[:128]!r} is not registered")

    def verify(self, api_key: str | None, remote: str, payload: bytes, signature: str) -> Key:
        """The key that signed `payload` and may be used from address `remote`.

        `signature` is standard base64.  Raises `Refused` -2014, -2015 or -1022.
        """
        if api_key is None or not _API_KEY.fullmatch(api_key):
            raise Refused(-2014, "API-key format invalid.", 401)
        entry = self._keys.get(api_key)
        if entry is None:
            raise Refused(-2015, _DENIED, 401)
        key, public, ips = entry
        if ips and remote not in ips:
            raise Refused(-2015, _DENIED, 401)
        try:
            public.verify(base64.b64decode(signature, validate=True), payload)
        except (InvalidSignature, binascii.Error, ValueError) as exc:
            raise Refused(-1022, "Signature for this request is not valid.") from exc
        return key


def permit(key: Key, permission: Permission) -> None:
    """Raise `Refused` -2015 unless the key has the permission."""
    if permission not in key.permissions:
        raise Refused(-2015, _DENIED, 401)


def split_signature(query: bytes, body: bytes) -> tuple[bytes, bytes, str]:
    """`(query, body, signature)` of a request, the signature taken off the end of its last part and unescaped.

    Binance signs the query directly followed by the body.  Raises `Refused` -1102 if there is no signature.
    """
    part = body or query
    payload, mark, signature = part.rpartition(b"&signature=")
    if not mark:
        raise Refused(-1102, "Mandatory parameter 'signature' was not sent, was empty/null, or malformed.")
    text = urllib.parse.unquote_to_bytes(signature).decode("ascii", "replace")
    return (query, payload, text) if body else (payload, b"", text)


def parse_parameters(*parts: bytes, allowed: frozenset[str]) -> dict[str, str]:
    """The parameters of form-encoded `parts` (query, body).

    Raises `Refused`: -1101 for one sent twice, -1104 for one that is not `allowed`, -1105 for an empty one,
    -1100 for anything that is not printable text in UTF-8 or badly escaped.
    """
    found: dict[str, str] = {}
    sent = 0
    for part in parts:
        for item in part.split(b"&") if part else ():
            name_raw, _, raw = item.partition(b"=")
            name = name_raw.decode("ascii", "replace")
            sent += 1
            if not _NAME.fullmatch(name):
                raise Refused(-1100, "Illegal characters found in a parameter.")
            if name in found:
                raise Refused(-1101, "Duplicate values for a parameter detected.")
            if not raw:
                raise Refused(-1105, f"Parameter '{name}' was empty.")
            try:
                value = urllib.parse.unquote_to_bytes(raw.replace(b"+", b" ")).decode("utf-8")
            except UnicodeDecodeError as exc:
                raise Refused(-1100, f"Illegal characters found in parameter '{name}'.") from exc
            if not value.isprintable() or re.search(rb"%(?![0-9A-Fa-f]{2})", raw):
                raise Refused(-1100, f"Illegal characters found in parameter '{name}'.")
            found[name] = value
    read = len(found.keys() & allowed)
    if read != sent:
        raise Refused(-1104, f"Not all sent parameters were read; read '{read}' parameter(s) but was sent '{sent}'.")
    return found


def check_window(parameters: dict[str, str], now_ms: int) -> None:
    """Raise `Refused` unless `timestamp` and `recvWindow` hold the moment `now_ms`: -1021, or -1102, -1100, -1131."""
    stamp = _integer(parameters, "timestamp")
    if stamp is None:
        raise Refused(-1102, "Mandatory parameter 'timestamp' was not sent, was empty/null, or malformed.")
    window = _integer(parameters, "recvWindow")
    if window is None:
        window = DEFAULT_RECV_WINDOW
    if window > MAX_RECV_WINDOW:
        raise Refused(-1131, "recvWindow must be less than 60000.")
    if stamp >= now_ms + MAX_AHEAD_MS:
        raise Refused(-1021, "Timestamp for this request was 1000ms ahead of the server's time.")
    if now_ms - stamp > window:
        raise Refused(-1021, "Timestamp for this request is outside of the recvWindow.")


def _integer(parameters: dict[str, str], name: str) -> int | None:
    text = parameters.get(name)
    if text is None:
        return None
    if not _INTEGER.fullmatch(text.encode()):
        raise Refused(-1100, f"Illegal characters found in parameter '{name}'; legal range is '^[0-9]{{1,19}}$'.")
    return int(text)


class RateLimited(Refused):
    """Too much, HTTP 429; `retry_after` are the seconds until the window ends."""

    def __init__(self, number: int, text: str, retry_after: int) -> None:
        super().__init__(number, text, 429)
        self.retry_after = retry_after


class Rates:
    """Counts in fixed windows, as Binance does.  Memory holds the current windows only."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._counts: dict[int, tuple[int, dict[str, int]]] = {}  # length -> (window, who -> count)

    def _count(self, length_ms: int, who: str, add: int, now_ms: int) -> int:
        window = now_ms // length_ms
        current, counts = self._counts.get(length_ms, (-1, {}))
        if current != window:
            counts = {}
            self._counts[length_ms] = window, counts
        counts[who] = used = counts.get(who, 0) + add
        return used

    def request(self, remote: str, weight: int, now_ms: int) -> int:
        """Count a request; returns the weight used in this minute.  Raises `RateLimited` -1003."""
        used = self._count(60_000, remote, weight, now_ms)
        if used > self._limits.weight_minute:
            raise RateLimited(
                -1003,
                f"Too much request weight used; current limit is {self._limits.weight_minute} request weight per "
                "1 MINUTE. Please use WebSocket Streams for live updates to avoid polling the API.",
                60 - now_ms // 1000 % 60,
            )
        return used

    def new_order(self, account: str, now_ms: int) -> tuple[int, int]:
        """Count a new order; returns the counts in these 10 s and this day.  Raises `RateLimited` -1015."""
        counts = []
        for length, limit, name in (
            (10_000, self._limits.orders_10s, "10 SECOND"),
            (86_400_000, self._limits.orders_day, "1 DAY"),
        ):
            used = self._count(length, account, 1, now_ms)
            if used > limit:
                text = f"Too many new orders; current limit is {limit} orders per {name}."
                raise RateLimited(-1015, text, (length - now_ms % length + 999) // 1000)
            counts.append(used)
        return counts[0], counts[1]
