"""Who may ask what: API keys, signatures, time windows and rate limits.  Pure: times are arguments.

A signed request is accepted only if, in this order:

- its API key is known and not revoked, and the request comes from one of the key's addresses (none listed: any);
- it ends in one `signature` over the raw bytes before it, never over a re-encoded form: Ed25519 (RFC 8032) or RSA
  (RSASSA-PKCS1-v1_5 with SHA-256, RFC 8017) in base64, or HMAC-SHA256 in hex, as the key is;
- its parameters are well formed, known to the endpoint, and none is there twice;
- `timestamp` (Unix milliseconds or microseconds) is at most 1,000 ms ahead and at most `recvWindow` (≤ 60,000, default
  5,000) behind the venue's clock;
- the key has the endpoint's permission, and may still trade where it is one to trade (`Key.trades_until`).

What is logged or journalled names a key by its `fingerprint`: an id is half of what opens the account.

A request that passes may be sent again within its window and passes again: as at Binance, nothing here is
single-use.  The journal shows it.

Source: Binance Spot API documentation, "Request security", "Timing security", "LIMITS".
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import re
import urllib.parse
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Final, Literal

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key

from tallystick.components.paper_exchange.orders import Depth, Instrument, Refused
from tallystick.schemas.errors import NOT_DECODED, ConfigError, TallystickError

# `manage`: the keys of the account's sub-accounts, and nothing else.
Permission = Literal["read", "trade", "withdraw", "manage"]

DEFAULT_RECV_WINDOW: Final = 5_000
MAX_RECV_WINDOW: Final = 60_000
PUBLIC_KEY: Final = "publicKey"
MAX_AHEAD_MS: Final = 1_000
TOO_MUCH: Final = -1003
_INTEGER = re.compile(r"[0-9]{1,19}")
_WINDOW = re.compile(r"[0-9]{1,5}(\.[0-9]{1,3})?")
_SECRET = re.compile(r"[A-Za-z0-9]{16,128}")
# A later timestamp than this (the year 5138 in milliseconds) is in microseconds.
MICROSECONDS: Final = 10**14
_NAME = re.compile(r"[A-Za-z0-9]{1,32}")
_API_KEY = re.compile(r"[A-Za-z0-9]{1,128}")
_DENIED: Final = "Invalid API-key, IP, or permissions for action."
# A key that is bound to no address trades for so long, as at Binance.
UNBOUND_MS: Final = 90 * 86_400_000
_MIN_RSA_BITS: Final = 2_048


class Key(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An API key, which signs with Ed25519, RSA or HMAC-SHA256.

    - `public_key`: base64 of a SubjectPublicKeyInfo (RFC 5280) of Ed25519 or RSA, or of an Ed25519 key's 32 raw bytes; or
      `secret`: what the client has as its secret key, at least 16 letters and digits.  One of the two.
    - An empty `ips` binds it to no address, which careful clients refuse to use.
    - `listen_keys`: whether its name alone, without a signature, opens its user stream, as it did at Binance until 20
      February 2026.
    - `label`, `created_ms` (Unix ms): of a key that was made by the API; "" and 0 for one of the configuration.
    """

    api_key: str
    account: str
    permissions: frozenset[Permission]
    public_key: str = ""
    secret: str = ""
    ips: tuple[str, ...] = ()
    listen_keys: bool = True
    label: str = ""
    created_ms: int = 0

    @property
    def trades_until(self) -> int | None:
        """When (Unix ms) it may not trade any more; None: never, it is bound to addresses or stands in the configuration."""
        return self.created_ms + UNBOUND_MS if self.created_ms and not self.ips else None

    def __repr__(self) -> str:
        return f"Key({fingerprint(self.api_key)}, account={self.account!r}, permissions={sorted(self.permissions)})"


def fingerprint(api_key: str) -> str:
    """What may stand for an API key in logs and journals: the first 8 bytes of its SHA-256, in hex."""
    return hashlib.sha256(api_key.encode()).hexdigest()[:16]


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Request weight per address and minute, new orders per account and 10 s, and per day; API keys of an account."""

    weight_minute: int = 6_000
    orders_10s: int = 100
    orders_day: int = 200_000
    api_keys: int = 30


class SubAccount(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`account` as a sub-account of `master`, whose keys with `manage` make and delete its keys."""

    master: str
    account: str


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything the venue is: instruments, balances by account and asset, sub-accounts by e-mail, keys, and its rules."""

    instruments: tuple[Instrument, ...]
    accounts: dict[str, dict[str, Decimal]]
    keys: tuple[Key, ...] = ()
    sub_accounts: dict[str, SubAccount] = {}
    commission: Decimal = Decimal("0.001")
    depth: Depth = Depth()
    limits: Limits = Limits()


def parse_config(data: bytes) -> Config:
    """A configuration from JSON, numbers as text.  Raises `ConfigError`."""
    try:
        return msgspec.json.decode(data, type=Config)
    except (TallystickError, *NOT_DECODED) as exc:
        raise ConfigError("PAPER_CONFIG", f"paper exchange configuration: {exc}") from exc


class _Hmac:
    """Verifies as an Ed25519 key does."""

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()

    def verify(self, signature: bytes, data: bytes) -> None:
        if not hmac.compare_digest(signature, hmac.digest(self._secret, data, "sha256")):
            raise InvalidSignature


class _Rsa:
    """Verifies as an Ed25519 key does."""

    def __init__(self, key: RSAPublicKey) -> None:
        self._key = key

    def verify(self, signature: bytes, data: bytes) -> None:
        self._key.verify(signature, data, padding.PKCS1v15(), SHA256())


_Verifier = Ed25519PublicKey | _Hmac | _Rsa


def _verifier(key: Key) -> _Verifier:
    name = f"key {fingerprint(key.api_key)} of account {key.account!r}"
    if bool(key.public_key) == bool(key.secret):
        raise ConfigError("PAPER_KEY", f"{name} needs either a public_key or a secret")
    if key.secret:
        if not _SECRET.fullmatch(key.secret):
            raise ConfigError("PAPER_KEY", f"the secret of {name} must be 16 to 128 letters and digits")
        return _Hmac(key.secret)
    try:
        raw = base64.b64decode(key.public_key, validate=True)
        public = Ed25519PublicKey.from_public_bytes(raw) if len(raw) == 32 else load_der_public_key(raw)
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise ConfigError("PAPER_KEY", f"the public key of {name} is not base64 of a public key: {exc}") from exc
    if isinstance(public, RSAPublicKey) and public.key_size >= _MIN_RSA_BITS:
        return _Rsa(public)
    if not isinstance(public, Ed25519PublicKey):
        raise ConfigError("PAPER_KEY", f"the public key of {name} is not Ed25519, or RSA of {_MIN_RSA_BITS} bits")
    return public


class Keys:
    """The registered keys.  Trusted by the venue alone: whoever can change it can trade on every account."""

    def __init__(self, keys: Iterable[Key], accounts: Iterable[str]) -> None:
        self._accounts = frozenset(accounts)
        self._keys: dict[str, tuple[Key, _Verifier, frozenset[str]]] = {}
        for key in keys:
            self.add(key)

    def add(self, key: Key) -> None:
        """Register a key.  Raises `ConfigError` for a malformed one, an unknown account or an id in use."""
        entry = self.check(key)
        if key.api_key in self._keys:
            raise ConfigError("PAPER_KEY", f"API key {fingerprint(key.api_key)} is registered already")
        self._keys[key.api_key] = entry

    def put(self, key: Key) -> None:
        """Register a key, or replace the one of its id.  Raises `ConfigError` for a malformed one."""
        self._keys[key.api_key] = self.check(key)

    def of(self, account: str) -> list[Key]:
        """The keys of an account, oldest first."""
        return sorted((k for k, _, _ in self._keys.values() if k.account == account), key=lambda k: k.created_ms)

    def addresses(self, api_key: str, asked: Iterable[str]) -> frozenset[str]:
        """Those of the addresses `asked` from which a key may be used."""
        entry = self._keys.get(api_key)
        return frozenset() if entry is None else frozenset(a for a in asked if not entry[2] or a in entry[2])

    def check(self, key: Key) -> tuple[Key, _Verifier, frozenset[str]]:
        """The key as it would be registered.  Raises `ConfigError` for a malformed one or an unknown account."""
        if not _API_KEY.fullmatch(key.api_key):
            raise ConfigError("PAPER_KEY", "an API key is 1 to 128 letters and digits")
        name = f"API key {fingerprint(key.api_key)}"
        if key.account not in self._accounts:
            raise ConfigError("PAPER_KEY", f"{name} belongs to unknown account {key.account!r}")
        try:
            ips = frozenset(str(ipaddress.ip_address(ip)) for ip in key.ips)
        except ValueError as exc:
            raise ConfigError("PAPER_KEY", f"{name}: {exc}") from exc
        return key, _verifier(key), ips

    def revoke(self, api_key: str) -> None:
        """Forget a key: it is answered like one that never was.  Raises `ConfigError` for an unknown one."""
        if self._keys.pop(api_key, None) is None:
            raise ConfigError("PAPER_KEY", f"API key {fingerprint(api_key)} is not registered")

    def find(self, api_key: str | None, remote: str) -> Key:
        """The key of this id, if it may be used from address `remote`.  Raises `Refused` -2014 or -2015."""
        return self._find(api_key, remote)[0]

    def _find(self, api_key: str | None, remote: str) -> tuple[Key, _Verifier]:
        if api_key is None or not _API_KEY.fullmatch(api_key):
            raise Refused(-2014, "API-key format invalid.", 401)
        entry = self._keys.get(api_key)
        if entry is None:
            raise Refused(-2015, _DENIED, 401)
        key, verifier, ips = entry
        if ips and remote not in ips:
            raise Refused(-2015, _DENIED, 401)
        return key, verifier

    def verify(self, api_key: str | None, remote: str, payload: bytes, signature: str) -> Key:
        """The key that signed `payload` and may be used from address `remote`.

        `signature` is standard base64, or hex of an HMAC.  Raises `Refused` -2014, -2015 or -1022.
        """
        key, verifier = self._find(api_key, remote)
        try:
            raw = bytes.fromhex(signature) if key.secret else base64.b64decode(signature, validate=True)
            verifier.verify(raw, payload)
        except (InvalidSignature, binascii.Error, ValueError) as exc:
            raise Refused(-1022, "Signature for this request is not valid.") from exc
        return key


def permit(key: Key, permission: Permission, now_ms: int = 0) -> None:
    """Raise `Refused` -2015 unless the key has the permission, and may still trade at `now_ms` if it is that."""
    until = key.trades_until if permission == "trade" else None
    if permission not in key.permissions or (until is not None and now_ms >= until):
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
    for part in parts:
        for item in part.split(b"&") if part else ():
            name_raw, _, raw = item.partition(b"=")
            name = name_raw.decode("ascii", "replace")
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
            if not _is_text(name, value) or re.search(rb"%(?![0-9A-Fa-f]{2})", raw):
                raise Refused(-1100, f"Illegal characters found in parameter '{name}'.")
            found[name] = value
    check_names(found, allowed)
    return found


def _is_text(name: str, value: str) -> bool:
    """Whether a parameter is printable; a public key in PEM has lines (RFC 7468), nothing else has."""
    return (value.replace("\n", "") if name == PUBLIC_KEY else value).isprintable()


def check_names(parameters: Mapping[str, str], allowed: frozenset[str]) -> None:
    """Raise `Refused` -1104 for a parameter that is not `allowed`, -1100 for one that is not printable."""
    read, sent = len(parameters.keys() & allowed), len(parameters)
    if read != sent:
        raise Refused(-1104, f"Not all sent parameters were read; read '{read}' parameter(s) but was sent '{sent}'.")
    for name, value in parameters.items():
        if not _is_text(name, value):
            raise Refused(-1100, f"Illegal characters found in parameter '{name}'.")


def check_window(parameters: dict[str, str], now_ms: int) -> None:
    """Raise `Refused` unless `timestamp` and `recvWindow` hold the moment `now_ms`: -1021, or -1102, -1100, -1131."""
    text = parameters.get("timestamp")
    if text is None:
        raise Refused(-1102, "Mandatory parameter 'timestamp' was not sent, was empty/null, or malformed.")
    if not _INTEGER.fullmatch(text):
        raise Refused(-1100, "Illegal characters found in parameter 'timestamp'; legal range is '^[0-9]{1,19}$'.")
    window_text = parameters.get("recvWindow", str(DEFAULT_RECV_WINDOW))
    if not _WINDOW.fullmatch(window_text):
        raise Refused(-1100, "Illegal characters found in parameter 'recvWindow'; legal are three decimals.")
    window = Decimal(window_text)
    if window > MAX_RECV_WINDOW:
        raise Refused(-1131, "recvWindow must be less than 60000.")
    stamp = Decimal(text) if len(text) < len(str(MICROSECONDS)) else Decimal(text) / 1_000
    if stamp >= now_ms + MAX_AHEAD_MS:
        raise Refused(-1021, "Timestamp for this request was 1000ms ahead of the server's time.")
    if now_ms - stamp > window:
        raise Refused(-1021, "Timestamp for this request is outside of the recvWindow.")


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
                TOO_MUCH,
                f"Too much request weight used; current limit is {self._limits.weight_minute} request weight per "
                "1 MINUTE. Please use WebSocket Streams for live updates to avoid polling the API.",
                60 - now_ms // 1000 % 60,
            )
        return used

    def used(self, remote: str, now_ms: int) -> int:
        """The weight used in this minute."""
        return self._count(60_000, remote, 0, now_ms)

    def orders(self, account: str, now_ms: int) -> tuple[int, int]:
        """How many new orders were counted in these 10 s and this day."""
        return self._count(10_000, account, 0, now_ms), self._count(86_400_000, account, 0, now_ms)

    def new_order(self, account: str, now_ms: int, orders: int = 1) -> tuple[int, int]:
        """Count new orders; returns the counts in these 10 s and this day.  Raises `RateLimited` -1015."""
        counts = []
        for length, limit, name in (
            (10_000, self._limits.orders_10s, "10 SECOND"),
            (86_400_000, self._limits.orders_day, "1 DAY"),
        ):
            used = self._count(length, account, orders, now_ms)
            if used > limit:
                text = f"Too many new orders; current limit is {limit} orders per {name}."
                raise RateLimited(-1015, text, (length - now_ms % length + 999) // 1000)
            counts.append(used)
        return counts[0], counts[1]
