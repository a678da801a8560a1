"""API keys at a venue: what one may do, whether that is what its holder needs, and how keys are made and deleted.  Pure.

- What the venue says of a key is read strictly: a field that should be there and is not is refused, and a right that
  nobody here has heard of counts as one too many as soon as it is on.
- A key is held to its role (`require_fit`): it can do what the role needs, nothing else, and only from addresses of
  ours.  Each defect has a code and says which setting to change, in the venue's words.
- What an operator excepted (`schemas.key_exceptions`) is passed over, by name, as long as he said.
- Requests that make, restrict or delete keys are built here and signed by whoever holds the master account's key: a
  process that never trades.  They are valid as short as an order (`VALID_NS`).

The venue's answers are not trusted beyond the venue: an attacker who controls it can at most have a bad key pass for a
good one there, where it holds the money anyway.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Callable, Iterable
from typing import Final, Literal, Protocol

import msgspec

from tallystick.schemas.bounds import SECOND
from tallystick.schemas.errors import ConfigError, Malformed, Unverified
from tallystick.schemas.key_exceptions import KeyException
from tallystick.venues import NoAnswer, Rejected, SignedRequest

Role = Literal["trade", "read", "manage"]
Right = Literal["read", "trade", "withdraw", "transfer", "margin", "futures", "options", "other"]
VenueName = Literal["binance", "bybit"]

# A key that ends sooner is not begun with: the daily rotation has a week to fail in.
LEAST_LIFE_NS: Final = 7 * 86_400 * SECOND
# Ours are `ts-` and 16 hex digits: Binance takes 20 characters.
LABEL: Final = re.compile(r"ts-[0-9a-f]{16}")

# What a role's key must be able to do …
NEEDS: Final[dict[Role, frozenset[Right]]] = {
    "trade": frozenset(("read", "trade")),
    "read": frozenset(("read",)),
    "manage": frozenset(("read",)),
}
# … and what it may besides: where the venue wants it of a key that manages others.  Binance: "Enable Spot & Margin
# Trading"; Bybit: "Account Transfer" or "Subaccount Transfer".
MAY: Final[dict[tuple[VenueName, Role], frozenset[Right]]] = {
    ("binance", "manage"): frozenset(("trade",)),
    ("bybit", "manage"): frozenset(("transfer",)),
}
_WHERE: Final[dict[VenueName, str]] = {
    "binance": "Binance → API Management → Edit restrictions",
    "bybit": "Bybit → Account & Security → API Management → Edit",
}


class Grant(msgspec.Struct, frozen=True):
    """A right that is on: what it is for us, the field of the venue's answer, and the venue's words for its setting."""

    right: Right
    field: str
    setting: str


class KeyRights(msgspec.Struct, frozen=True, kw_only=True):
    """What a key may do: `grants` that are on, where it may be used, and how long (Unix ns).

    - `ip_bound`: whether it is bound to addresses; `addresses`: to which, None where the venue does not say.
    - `expires_at`: None where it does not end by itself.
    """

    venue: VenueName
    grants: tuple[Grant, ...]
    ip_bound: bool
    addresses: tuple[str, ...] | None
    created_at: int
    expires_at: int | None

    @property
    def rights(self) -> frozenset[Right]:
        """What is on, in our words."""
        return frozenset(grant.right for grant in self.grants)


class Defect(msgspec.Struct, frozen=True):
    """What is wrong with a key, and the setting to change.  `name` is what an exception names."""

    code: str
    name: str
    remedy: str


class KeyUnfit(Unverified):
    """A key that must not be used as it is; `code` is its first defect's, `defects` are all that no exception covers."""

    def __init__(self, defects: tuple[Defect, ...]) -> None:
        super().__init__(defects[0].code, "; ".join(f"{d.name}: {d.remedy}" for d in defects))
        self.defects = defects


def require_fit(
    rights: KeyRights,
    role: Role,
    *,
    now: int,
    addresses: Iterable[str] | None = None,
    exceptions: Iterable[KeyException] = (),
) -> None:
    """Raise `KeyUnfit` unless a key with `rights` is one for `role` at `now` (Unix ns).

    `addresses` are ours, where they are known: a key that may be used from another one is not.  `exceptions` are opened
    ones for this venue and component; one that does not hold at `now` counts for nothing.
    """
    excepted = {name for e in exceptions if e.start <= now < e.until for name in e.defects}
    left = tuple(d for d in defects(rights, role, now, addresses) if d.name not in excepted)
    if left:
        raise KeyUnfit(left)


def defects(rights: KeyRights, role: Role, now: int, addresses: Iterable[str] | None = None) -> tuple[Defect, ...]:
    """All that is wrong with a key, the worst first; see `require_fit`."""
    where, found = _WHERE[rights.venue], []
    allowed = NEEDS[role] | MAY.get((rights.venue, role), frozenset())
    for grant in rights.grants:
        if grant.right == "withdraw":
            code = "KEY_CAN_WITHDRAW"
            found.append(Defect(code, f"{code} {grant.field}", f"{where} → untick '{grant.setting}'"))
    if not rights.ip_bound:
        # An empty list is no list, whatever else the venue says.
        found.append(_plain("KEY_NOT_IP_BOUND", f"{where} → 'Restrict access to trusted IPs only' → add ours"))
    elif addresses is not None:
        # A venue that does not list them cannot be believed about them.
        ours = {_address(a) for a in addresses}
        foreign = ["unknown"] if rights.addresses is None else [a for a in rights.addresses if _address(a) not in ours]
        if foreign:
            found.append(_plain("KEY_IP_FOREIGN", f"{where} → trusted IPs → remove {', '.join(foreign)[:200]}"))
    for grant in rights.grants:
        if grant.right != "withdraw" and grant.right not in allowed:
            code = "KEY_TOO_BROAD"
            found.append(Defect(code, f"{code} {grant.field}", f"{where} → untick '{grant.setting}'"))
    if rights.expires_at is not None and rights.expires_at - now < LEAST_LIFE_NS:
        days = (rights.expires_at - now) / 86_400e9
        found.append(_plain("KEY_EXPIRES", f"it ends in {days:.1f} days: rotate it, or bind it to addresses ({where})"))
    lacking = sorted(NEEDS[role] - rights.rights)
    if lacking:
        found.append(_plain("KEY_TOO_NARROW", f"{where} → tick what allows to {' and '.join(lacking)}"))
    return tuple(found)


def _plain(code: str, remedy: str) -> Defect:
    return Defect(code, code, remedy)


def _address(text: str) -> str:
    """An address in its one form; what is none (a network, `*`) stands for itself and is nobody's of ours."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return text


def fingerprint(api_key: str) -> bytes:
    """SHA-256 of an API key's id: what may stand for it in events and logs."""
    return hashlib.sha256(api_key.encode()).digest()


def check_label(label: str) -> str:
    """`label` if one of our keys can have it.  Raises `ConfigError`."""
    if not LABEL.fullmatch(label):
        raise ConfigError("KEY_LABEL", f"{label[:48]!r} is no label of ours: 'ts-' and 16 hex digits")
    return label


def check_addresses(addresses: Iterable[str]) -> tuple[str, ...]:
    """The addresses that a key is to be bound to, each once.  Raises `ConfigError` for none at all: a key is bound."""
    try:
        found = tuple(dict.fromkeys(str(ipaddress.ip_address(a)) for a in addresses))
    except ValueError as exc:
        raise ConfigError("KEY_ADDRESSES", f"an API key is bound to single addresses: {exc}") from exc
    if not found:
        raise ConfigError("KEY_ADDRESSES", "an API key is bound to at least one address")
    return found


# The venue's words for a key that it does not know (any more).  A wrong signature (Binance -1022, Bybit 10004) is none of
# them: the venue knows a key whose signature it checks.
UNKNOWN_KEY: Final[dict[VenueName, frozenset[str]]] = {
    "binance": frozenset(("-2015",)),
    "bybit": frozenset(("10003", "33004")),
}


def is_unknown(venue: VenueName, answer: KeyRights | Rejected | NoAnswer) -> bool:
    """Whether a venue's answer to a key's own request is that of a key that it does not know.

    Binance says the same to a key from a wrong address: it proves a deletion together with a list that lacks the key.
    """
    return isinstance(answer, Rejected) and answer.code in UNKNOWN_KEY[venue]


# --- making and deleting keys ------------------------------------------------------------------------


class NewKey(msgspec.Struct, frozen=True):
    """A key as it was made; `secret` is the venue's where it made one (HMAC), else ""."""

    api_key: str
    label: str
    secret: str = ""

    def __repr__(self) -> str:
        return f"NewKey({fingerprint(self.api_key).hex()[:16]}, {self.label!r})"


class ListedKey(msgspec.Struct, frozen=True):
    """A key in the list of a sub-account's keys."""

    api_key: str
    label: str

    def __repr__(self) -> str:
        return f"ListedKey({fingerprint(self.api_key).hex()[:16]}, {self.label!r})"


class Listed(msgspec.Struct, frozen=True):
    """A page of the list, and what asks for the next one; "": it was the last."""

    keys: tuple[ListedKey, ...]
    next: str


class Done(msgspec.Struct, frozen=True):
    """The venue did it."""


Failed = Rejected | NoAnswer
Mac = Callable[[bytes], bytes]


class KeyAdmin(Protocol):
    """Makes, lists, restricts and deletes the API keys of one sub-account, by requests that a master account's key signs.

    What an implementation guarantees: each request is to the operator's host and says what was asked for and nothing
    else; a key that it asks for can read, trade if its role does, and is bound to addresses; an answer that is not
    plainly one is `NoAnswer`; a refused credential is `Rejected` about `credential`.
    """

    def create(self, label: str, role: Role, addresses: Iterable[str], public_key: str = "") -> SignedRequest:
        """Make a key; `public_key` is PEM.  Raises `ConfigError` where the venue cannot take it through this API."""

    def list_keys(self, page: str = "") -> SignedRequest:
        """List keys; `page` is an earlier answer's `next`."""

    def restrict(self, api_key: str, role: Role, addresses: Iterable[str]) -> SignedRequest:
        """Bind a key of `role` to addresses; what it may do stays as it is."""

    def delete(self, api_key: str) -> SignedRequest:
        """Delete a key."""

    def addresses(self, api_key: str) -> SignedRequest | None:
        """Ask to which addresses a key is bound; None where the key's own rights say it."""

    def addressed(self, rights: KeyRights, status: int, body: bytes) -> KeyRights | Failed:
        """`rights` with what the answer to `addresses` says.  Raises `Malformed`."""

    def created(self, status: int, body: bytes) -> NewKey | Failed:
        """What the answer to `create` means."""

    def listed(self, status: int, body: bytes, page: str = "") -> Listed | Failed:
        """What the answer to `list_keys(page)` means.  Raises `Malformed`."""

    def done(self, status: int, body: bytes) -> Done | Failed:
        """What the answer to `restrict` and `delete` means."""


def require_page(keys: int, limit: int) -> None:
    """Raise `Malformed` for a page of more keys than were asked for: a list that never ends is none."""
    if keys > limit:
        raise Malformed("VENUE_ANSWER", f"{keys} API keys on a page of {limit}")
