"""The trust root: who may publish what, under which keys, and everything that decides over money.

A trust root is a signed note (`note`) whose text is canonical JSON of `TrustRoot`, signed by the
operator root.  Verifiers pin the operator root's public key alone and take everything else from here,
never from the broker.

- Version 1 is signed by the pinned key.
- Version n+1 is signed by the operator root that version n names, and, where it names a new one, by
  that as well; numbers rise by one.
- A trust root is valid from `issued` to `expires`; an expired one verifies history, not the living.
- What does not re-encode to the same bytes is refused.

The file that holds a trust root is not trusted: an attacker who controls it can at most withhold a
newer version.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Final, Literal, TypeVar

import msgspec

from tallystick.schemas.amounts import EXACT
from tallystick.schemas.errors import NOT_DECODED, Malformed, Unverified
from tallystick.schemas.event import check_decimal, check_positive
from tallystick.schemas.limits import LimitBook, LimitRow
from tallystick.schemas.methods import CERTIFICATE, HardwareToken, Method
from tallystick.schemas.nats_jwt import Signer
from tallystick.schemas.note import open_note, sign_note
from tallystick.schemas.subjects import KINDS, Subject, check_name, matches

HOUR_NS: Final = 3_600_000_000_000
MAX_REASON: Final = 400
ROOT_KEY_NAME: Final = "operator-root"
OPERATOR_KEY_NAME: Final = "operator"


class Instrument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One tradable instrument at one venue; its `digest` stands in permits.

    `symbol` is the unified one (`XRP/ETH`), `venue_symbol` the venue's (`XRPETH`); prices are
    multiples of `tick`, quantities of `step`; notional is price times quantity in `quote`.
    `market_price` is what caps count an order at that names no higher price, bought or sold: well above any
    plausible price.  A SELL far below the market moves what the market pays, not what it asks for.
    """

    venue: str
    symbol: str
    venue_symbol: str
    base: str
    quote: str
    tick: Decimal
    step: Decimal
    min_notional: Decimal
    market_price: Decimal

    def __post_init__(self) -> None:
        check_name(self.venue, "venue")
        for value, what in ((self.tick, "tick"), (self.step, "step"), (self.market_price, "market_price")):
            check_positive(value, what)
        check_decimal(self.min_notional, "min_notional")

    @property
    def digest(self) -> bytes:
        """SHA-256 of the record's canonical JSON."""
        return hashlib.sha256(_canonical(self)).digest()

    def counts(self, qty: Decimal, price: Decimal | None) -> tuple[tuple[str, Decimal], tuple[str, Decimal]]:
        """What an order counts in the operator's caps: `((quote, value), (base, qty))`, exactly.

        The value is at the worse of the order's own price (None: it names none) and `market_price`, on both sides.
        """
        worst = self.market_price if price is None else max(price, self.market_price)
        return (self.quote, EXACT.multiply(qty, worst)), (self.base, qty)


class Venue(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A venue: its API's `kind`, our `account` there and the `host` that requests may go to."""

    kind: Literal["binance-spot"]
    account: str
    host: str


class Cap(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What custody never exceeds of one asset for an account, whatever the gateway permits (in units of `asset`).

    An order counts in both its assets (`Instrument.counts`): in its quote what it is worth, in its base its quantity.
    """

    account: str
    asset: str
    max_order: Decimal
    max_hourly: Decimal

    def __post_init__(self) -> None:
        check_positive(self.max_order, "max_order")
        check_positive(self.max_hourly, "max_hourly")


class Listing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The strategies that may trade an instrument."""

    venue: str
    symbol: str
    strategies: tuple[str, ...]


class ComponentTrust(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One component: its role key and account (NATS nkeys, `A…`), what it publishes, its token lifetime (s).

    `method`: how it proves itself besides mutual TLS; where none is written, by its certificate alone.
    """

    role_key: str
    account: str
    publishes: tuple[str, ...]
    lifetime: int
    method: Method = CERTIFICATE

    def __post_init__(self) -> None:
        # The encoder leaves out what is this very object: so a certificate that is written is not canonical.
        if self.method == CERTIFICATE:
            msgspec.structs.force_setattr(self, "method", CERTIFICATE)


class VaultTrust(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A vault of the operator's own: its `address`, and the SHA-256 (lower-case hex) of the file of CAs that vouches for it."""

    address: str
    ca: str

    def __post_init__(self) -> None:
        _check_digest(self.ca, "vault.ca")


class TrustRoot(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The document; see the module docstring.  Public keys are lower-case hex of 32 bytes, times Unix ns.

    `limits`, `listings` and `policy` (lower-case hex of the house rules' SHA-256) are what the gateway decides by.  `vault` is not
    there where the deployment runs its own.
    """

    kind: Literal["tallystick-trust-root/1"] = "tallystick-trust-root/1"
    deployment: str
    number: int
    issued: int
    expires: int
    operator_root: str
    operator: str
    core_account: str
    components: dict[str, ComponentTrust]
    venues: dict[str, Venue]
    instruments: tuple[Instrument, ...]
    caps: tuple[Cap, ...]
    limits: tuple[LimitRow, ...]
    listings: tuple[Listing, ...]
    policy: str
    vault: VaultTrust | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        check_name(self.deployment, "deployment")
        if self.number < 1 or not 0 <= self.issued < self.expires:
            raise Malformed("TRUST_ROOT", f"number {self.number}, issued {self.issued}, expires {self.expires}")
        for key in (self.operator_root, self.operator):
            public_key_bytes(key)
        _check_digest(self.policy, "policy")
        LimitBook(self.limits)
        for name, component in self.components.items():
            check_name(name, "component")
            for pattern in component.publishes:
                _check_pattern(pattern)
        for name in self.venues:
            check_name(name, "venue")
        roles = [c.role_key for c in self.components.values()]
        if len(set(roles)) != len(roles):
            raise Malformed("TRUST_ROOT", "two components share a role key")

    @property
    def digest(self) -> bytes:
        """SHA-256 of the document's canonical JSON, its last newline included: what decisions name."""
        return hashlib.sha256(_canonical(self) + b"\n").digest()

    def component(self, name: str) -> ComponentTrust:
        """The record of a component.  Raises `Unverified` for an unknown one."""
        record = self.components.get(name)
        if record is None:
            raise Unverified("COMPONENT_UNKNOWN", f"{name[:64]!r} is not in trust root {self.number}")
        return record

    def hardware_key(self, name: str) -> str:
        """The key (hex) of the hardware token that component `name` has to show; empty for one that has none."""
        record = self.components.get(name)
        return record.method.key if record is not None and isinstance(record.method, HardwareToken) else ""

    def require_scope(self, name: str, subject: str) -> None:
        """Raise `Unverified` unless component `name` may publish `subject`."""
        if not _in_scope(self.component(name).publishes, subject):
            raise Unverified("SCOPE", f"{name} may not publish {subject} (trust root {self.number})")

    def instrument(self, venue: str, symbol: str) -> Instrument:
        """The instrument record.  Raises `Unverified` for one that the operator never signed."""
        for record in self.instruments:
            if record.venue == venue and record.symbol == symbol:
                return record
        raise Unverified("UNKNOWN_INSTRUMENT", f"{symbol[:64]} at {venue} is not in trust root {self.number}")

    def cap(self, account: str, asset: str) -> Cap | None:
        """What the operator lets `account` move of `asset`; None: nothing, no cap was signed."""
        return next((cap for cap in self.caps if (cap.account, cap.asset) == (account, asset)), None)

    @property
    def operator_keys(self) -> dict[str, bytes]:
        """The keys that may sign leases and re-arming, as `open_note` wants them."""
        return {OPERATOR_KEY_NAME: bytes.fromhex(self.operator)}


class Rearm(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An operator closes the breaker of `scope` that tripped at `since` (Unix ns): usable for that trip alone."""

    kind: Literal["tallystick-rearm/1"] = "tallystick-rearm/1"
    deployment: str
    scope: str
    since: int


class Revocation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An operator's word on a component: `revoked`, or admitted again; of two the higher `number` counts.

    While it is revoked no certificate of it counts; once it is admitted again, those issued at or after `since` (Unix
    ns) do, so that who copied an older one stays out.  Revoked, `since` is when the operator said so.
    """

    kind: Literal["tallystick-revocation/1"] = "tallystick-revocation/1"
    deployment: str
    component: str
    number: int
    revoked: bool
    since: int
    reason: str

    def __post_init__(self) -> None:
        check_name(self.component, "component")
        if not 1 <= self.number < 2**53 or not 0 <= self.since < 2**63 or len(self.reason) > MAX_REASON:
            raise Malformed(
                "REVOCATION", f"number {self.number}, since {self.since}, a reason of {len(self.reason)} characters"
            )


class Correction(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An operator sets right what the record says of `strategy` in one instrument; amounts are base units, exact.

    - A position: it is `position` where it was taken for `was`; whoever holds it for anything else changes nothing.
    - An order: the one of intent `intent_id` (hex) has ended, with `executed`.

    What does not apply is "".  `issued` (Unix ns) rises from one correction of a position to the next: none counts twice.
    """

    kind: Literal["tallystick-correction/1"] = "tallystick-correction/1"
    deployment: str
    strategy: str
    venue: str
    symbol: str
    issued: int
    reason: str
    was: str = ""
    position: str = ""
    intent_id: str = ""
    executed: str = ""

    def __post_init__(self) -> None:
        position, order = (bool(self.was), bool(self.position)), (bool(self.intent_id), bool(self.executed))
        if (all(position), any(order)) != (True, False) and (any(position), all(order)) != (False, True):
            raise Malformed(
                "CORRECTION", "a correction is of a position (was, position) or an order (intent_id, executed)"
            )
        for text in filter(None, (self.was, self.position, self.executed)):
            _amount(text)
        if self.executed and self.done < 0:
            raise Malformed("CORRECTION", f"executed is {self.executed}: not below zero")
        if self.intent_id and (len(self.intent_id) != 32 or self.order.hex() != self.intent_id):
            raise Malformed("CORRECTION", f"intent_id is {self.intent_id[:48]!r}: 32 lower-case hex digits")
        if self.issued < 0 or len(self.reason) > 400:
            raise Malformed("CORRECTION", "issued is Unix ns, reason has at most 400 characters")

    @property
    def before(self) -> Decimal:
        """The position that it is corrected from."""
        return _amount(self.was)

    @property
    def after(self) -> Decimal:
        """The position that it is."""
        return _amount(self.position)

    @property
    def done(self) -> Decimal:
        """What of the order was executed."""
        return _amount(self.executed)

    @property
    def order(self) -> bytes:
        """The order's intent; empty for a position."""
        try:
            return bytes.fromhex(self.intent_id)
        except ValueError as exc:
            raise Malformed("CORRECTION", f"intent_id is {self.intent_id[:48]!r}: 32 lower-case hex digits") from exc


def _amount(text: str) -> Decimal:
    if not re.fullmatch(r"-?[0-9]{1,20}(\.[0-9]{1,18})?", text):
        raise Malformed("CORRECTION", f"{text[:48]!r} is no plain decimal of at most 20 and 18 digits")
    value = Decimal(text)
    check_decimal(value, "amount")
    return value


D = TypeVar("D", bound=msgspec.Struct)


def public_key_bytes(text: str) -> bytes:
    """The 32 bytes of a public key in lower-case hex.  Raises `Malformed`."""
    try:
        raw = bytes.fromhex(text)
    except ValueError as exc:
        raise Malformed("PUBLIC_KEY", f"not hex: {text[:80]!r}") from exc
    if len(raw) != 32 or raw.hex() != text:
        raise Malformed("PUBLIC_KEY", f"a public key is 64 lower-case hex digits, got {text[:80]!r}")
    return raw


def _check_digest(text: str, what: str) -> None:
    try:
        good = len(text) == 64 and bytes.fromhex(text).hex() == text
    except ValueError as exc:
        raise Malformed("TRUST_ROOT", f"{what} is no hex: {text[:80]!r}") from exc
    if not good:
        raise Malformed("TRUST_ROOT", f"{what} is 64 lower-case hex digits, got {text[:80]!r}")


@functools.lru_cache(maxsize=16384)
def _in_scope(publishes: tuple[str, ...], subject: str) -> bool:
    return any(matches(pattern, subject) for pattern in publishes)


def _check_pattern(pattern: str) -> None:
    literal = []
    for token in pattern.split("."):
        if token in ("*", ">"):
            break
        literal.append(token)
    for kind in KINDS:
        words = kind.split(".")
        if literal and all(have == want for have, want in zip(literal, words, strict=False)):
            return
    raise Malformed("TRUST_PATTERN", f"{pattern[:96]!r} is of no kind of subject")


def _canonical(document: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(document, order="sorted"), indent=2)


def sign_document(document: msgspec.Struct, *signers: tuple[str, Signer]) -> str:
    """The document as a signed note."""
    return sign_note(_canonical(document).decode() + "\n", *signers)


def decode_document(text: str, kind: type[D]) -> D:
    """A document from its canonical text, which an opened note holds.  Raises `Malformed`."""
    try:
        document = msgspec.json.decode(text, type=kind)
    except (Malformed, *NOT_DECODED) as exc:
        raise Malformed("DOCUMENT", f"not a {kind.__name__}: {exc}") from exc
    if _canonical(document).decode() + "\n" != text:
        raise Malformed("DOCUMENT_CANONICAL", f"{kind.__name__} does not re-encode to the same bytes")
    return document


def open_trust_roots(notes: Sequence[str], pinned: bytes) -> tuple[TrustRoot, ...]:
    """All versions of the trust root, oldest first, verified from the `pinned` operator root key.

    Raises `Malformed` or `Unverified`; expiry is checked where a clock is (`require_current`).
    """
    if not notes:
        raise Unverified("TRUST_ROOT_MISSING", "no trust root given")
    roots: list[TrustRoot] = []
    key = pinned
    for expected, note in enumerate(notes, start=1):
        text, _ = open_note(note, {ROOT_KEY_NAME: key})
        root = decode_document(text, TrustRoot)
        if root.number != expected:
            raise Unverified("TRUST_ROOT_NUMBER", f"expected version {expected}, got {root.number}")
        if expected == 1 and root.operator_root != pinned.hex():
            raise Unverified("TRUST_ROOT_KEY", "version 1 does not name the pinned operator root")
        if roots and root.deployment != roots[0].deployment:
            raise Unverified("TRUST_ROOT_DEPLOYMENT", f"{root.deployment} follows {roots[0].deployment}")
        new = public_key_bytes(root.operator_root)
        if new != key:
            open_note(note, {ROOT_KEY_NAME: new})
            key = new
        roots.append(root)
    return tuple(roots)


def open_successor(note: str, root: TrustRoot) -> TrustRoot:
    """A version of `root`'s document, signed by the operator root that `root` names.

    For comparing with what others run under: it is verified, and not in force.  Raises `Malformed` or `Unverified`.
    """
    text, _ = open_note(note, {ROOT_KEY_NAME: public_key_bytes(root.operator_root)})
    other = decode_document(text, TrustRoot)
    if other.deployment != root.deployment:
        raise Unverified("TRUST_ROOT_DEPLOYMENT", f"trust root of {other.deployment}, this is {root.deployment}")
    return other


def require_current(root: TrustRoot, now: int) -> None:
    """Raise `Unverified` unless `root` is valid at `now` (Unix ns)."""
    if not root.issued <= now < root.expires:
        raise Unverified(
            "TRUST_ROOT_EXPIRED",
            f"version {root.number} is valid from {root.issued} to {root.expires}, it is {now} (Unix ns): "
            "set the clock, or let the operator sign the next version with `tallystick admit`",
        )


def open_rearm(note: str, root: TrustRoot) -> Rearm:
    """The re-arming in `note` if an operator of `root` signed it for this deployment."""
    text, _ = open_note(note, root.operator_keys)
    rearm = decode_document(text, Rearm)
    if rearm.deployment != root.deployment:
        raise Unverified("REARM_SCOPE", f"re-arming of deployment {rearm.deployment}")
    return rearm


def open_revocation(note: str, root: TrustRoot) -> Revocation:
    """The revocation in `note` if an operator of `root` signed it for a component of this deployment."""
    text, _ = open_note(note, root.operator_keys)
    revocation = decode_document(text, Revocation)
    if revocation.deployment != root.deployment:
        raise Unverified("REVOCATION_SCOPE", f"revocation for deployment {revocation.deployment}")
    if revocation.component == "authority":
        raise Unverified("REVOCATION_SCOPE", "nobody would hear that the authority is admitted again: stop it instead")
    root.component(revocation.component)
    return revocation


def open_correction(note: str, root: TrustRoot, where: Subject) -> Correction:
    """The correction in `note` if an operator of `root` signed it for this deployment and the instrument of `where`.

    Raises `Malformed` or `Unverified`.
    """
    text, _ = open_note(note, root.operator_keys)
    correction = decode_document(text, Correction)
    named = (correction.deployment, correction.strategy, correction.venue, correction.symbol)
    if named != (root.deployment, where.strategy, where.venue, where.symbol):
        raise Unverified("CORRECTION_SCOPE", f"a correction of {' '.join(named)[:200]}, published on {where.text}")
    return correction
