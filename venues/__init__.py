"""Venues: everything that we know of one exchange's API stands in one folder here, its adapter.

The package of a venue is its adapter: it holds what `Adapter` names.  What an adapter guarantees:

- An intent becomes one order, in the venue's own strings; the same intent always becomes the same order, under a
  client order id that names the intent.
- A request that it builds says what was asked for and nothing else, is for the operator's host alone, and is refused
  by the venue `VALID_NS` after its timestamp, by a clock that stands at most `SKEW_NS` from ours.
- It holds no secret: what must be signed goes to a `Signer`, after it was checked field by field.
- An answer is a refusal (`Rejected`) only where the venue says plainly that it did nothing.  All that is unclear is
  `NoAnswer`, and `NotFound` says what the venue knows at that moment and no more.
- Its account stream has no holes: it is up once everything missed was fetched.  What comes twice may be told twice.
- It asks no more of the venue than the venue allows, and not at all for as long as the venue says so (`limits`).
- Numbers are Decimals from the venue's text; no float is ever made of them.  The clock is an argument.

Who uses it: the gateway makes the order, custody checks it and has it signed, execution sends it and reads the
answers, portfolio follows the account, market data its public trades.  Custody checks for itself what the gateway made, with the same code: a second
process is a reason to check again, not to write it again.

To add a venue (docs/add-a-venue.md)

1. A folder beside `binance`, whose `__init__` exports what `Adapter` names; its numbers and words in its `codes`.  The first half,
   `ParseBack`, stands for itself already: it signs what is asked for, and nothing else.
2. Its kind in `KINDS` and `adapter` below, in `schemas.trust.Venue` and in `runtime.deployment.folder.VenueConfig`.
3. Tests as in `tests/unit/test_binance_*.py`.

A venue is not trusted with our books: an attacker who controls it can at most lie about our orders and fills, which
reconciliation and the operator's caps bound.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import msgspec

from tallystick.schemas.errors import ConfigError, TallystickError
from tallystick.schemas.event import check_decimal, check_positive
from tallystick.schemas.nats_jwt import Signer
from tallystick.schemas.orders import Intent, Side, VenueOrder
from tallystick.schemas.trust import Instrument, Venue

if TYPE_CHECKING:
    from tallystick.venues.keys import Failed, KeyAdmin, KeyRights, VenueName

    # It takes `Denied` from here.
    from tallystick.venues.signing.handle import SigningKeys

# A captured request is soon worthless …
VALID_NS: Final = 1_000_000_000
# … by the venue's clock, which may stand at most this far from ours: Binance refuses what is further ahead.
SKEW_NS: Final = 1_000_000_000


class Denied(TallystickError):
    """This is not signed; `code` says why."""


# --- what is sent ------------------------------------------------------------------------------------


class SignedRequest(msgspec.Struct, frozen=True):
    """Exactly what may be sent, once; `signed_at` is its timestamp in Unix nanoseconds."""

    method: str
    url: str
    headers: tuple[tuple[str, str], ...]
    body: str
    signed_at: int

    def __repr__(self) -> str:
        return f"SignedRequest({self.method}, signed_at={self.signed_at})"


class Login(msgspec.Struct, frozen=True):
    """What stands in the headers of requests besides their signature; `passphrase` is "" where the venue has none."""

    api_key: str
    passphrase: str = ""

    def __repr__(self) -> str:
        return "Login()"


class Requests(Protocol):
    """Builds the signed requests of one account.  Everything raises `Denied` where it would say anything else."""

    def order(self, record: Instrument, order: VenueOrder) -> SignedRequest:
        """Place exactly `order`."""

    def cancel(self, record: Instrument, client_order_id: str) -> SignedRequest:
        """Cancel one order of ours."""

    def cancel_all(self, record: Instrument) -> SignedRequest:
        """Cancel every open order of one instrument."""

    def query(self, record: Instrument, client_order_id: str) -> SignedRequest:
        """Ask what became of one order of ours."""

    def open_orders(self, record: Instrument) -> SignedRequest:
        """List the open orders of one instrument."""


# --- what came of it ---------------------------------------------------------------------------------


class OrderReport(msgspec.Struct, frozen=True):
    """The venue describes an order of ours: `status` is its own word, `final` whether nothing will change any more."""

    client_order_id: str
    venue_order_id: str
    status: str
    executed: Decimal
    final: bool

    def __post_init__(self) -> None:
        check_decimal(self.executed, "executed")


class Rejected(msgspec.Struct, frozen=True):
    """The venue refused, and did nothing; `about` says what people must hear of beyond this one request."""

    code: str
    text: str
    about: Literal["request", "credential", "clock"] = "request"


class NotFound(msgspec.Struct, frozen=True):
    """The venue does not know the order."""


class NotSent(msgspec.Struct, frozen=True):
    """Not a byte of the request was written."""

    code: str
    text: str


class NoAnswer(msgspec.Struct, frozen=True):
    """The request may have had its effect, or not, or may still have it."""

    code: str
    text: str


Outcome = OrderReport | Rejected | NotFound | NotSent | NoAnswer


# --- what the account's stream says ------------------------------------------------------------------


class FillReport(msgspec.Struct, frozen=True):
    """A fill in the venue's words; `time` is Unix nanoseconds of the venue.

    `client_order_id` is "" where the venue does not tell it: then `venue_order_id` finds the permit, if an earlier
    report named both.
    """

    symbol: str
    client_order_id: str
    venue_order_id: str
    trade_id: int
    side: Side
    price: Decimal
    qty: Decimal
    commission: Decimal
    commission_asset: str
    maker: bool
    time: int

    def __post_init__(self) -> None:
        check_positive(self.price, "price")
        check_positive(self.qty, "qty")
        check_decimal(self.commission, "commission")


class BalanceReport(msgspec.Struct, frozen=True):
    """One asset's balance; amounts in units of the asset."""

    asset: str
    free: Decimal
    locked: Decimal

    def __post_init__(self) -> None:
        check_decimal(self.free, f"free {self.asset[:16]}")
        check_decimal(self.locked, f"locked {self.asset[:16]}")


class Listener(Protocol):
    """Who hears an account's stream.  Called in order; it must not block.  `symbol` is the unified one."""

    def ask_from(self, symbol: str) -> int:
        """The trade id of `symbol` to ask from; -1: from `since` on."""

    def since(self, symbol: str) -> int | None:
        """Unix ns before which no fill can be ours; None: none at all can be, nothing of it was permitted yet."""

    def client_order_id(self, symbol: str, venue_order_id: str) -> str:
        """The client order id of an order of ours, "" if it is not known yet."""

    def on_report(self, report: FillReport) -> None:
        """A fill."""

    def on_order(self, symbol: str, venue_order_id: str, client_order_id: str) -> None:
        """An order under both its ids."""

    def on_balance(self, balance: BalanceReport) -> None:
        """A balance."""

    def on_connection(self, up: bool, code: str, text: str) -> None:
        """Up: subscribed, and every missed fill that can be ours was fetched.

        Down: why; `VENUE_CREDENTIAL`: the key was refused; `VENUE_BACKOFF`: the venue wants no questions for a while.
        """


class AccountStream(Protocol):
    """Follows one account and tells a `Listener`."""

    async def run(self) -> None:
        """Follow the account; ends only by cancellation."""


# --- the port ----------------------------------------------------------------------------------------


class Adapter(Protocol):
    """One venue's API; see the module docstring for what it guarantees.

    - `PING`: a path that answers without a key.
    - `WEIGHT_MINUTE`: the request weight that an address may use in a minute; `USED_WEIGHT`: the header of an answer
      that says how much of it is used.
    - `KEYS`: by which name `venues.keys` knows its rules for API keys.
    - `FEED`: the venue in ccxt.pro, whose public trades are the market data.
    """

    @property
    def PING(self) -> str: ...  # noqa: D102, N802

    @property
    def FEED(self) -> str: ...  # noqa: D102, N802

    @property
    def WEIGHT_MINUTE(self) -> int: ...  # noqa: D102, N802

    @property
    def USED_WEIGHT(self) -> str: ...  # noqa: D102, N802

    def weight(self, method: str, path: str) -> int:
        """What a request weighs."""

    def feed_urls(self, host: str) -> dict[str, Any]:
        """`exchange.urls["api"]` of `FEED` for a paper exchange at `host` (`HOST:PORT`)."""

    def venue_order(self, record: Instrument, intent: Intent) -> VenueOrder:
        """The order that `intent` asks for, in the venue's strings."""

    def amounts(self, record: Instrument, order: VenueOrder) -> tuple[Decimal, Decimal | None]:
        """Quantity and price of `order` (None: it names none).  Raises `Denied` where it is not plainly the record's."""

    def require_own(self, client_order_id: str) -> None:
        """Raise `Denied` unless an order of ours can have this id: `venue_order` makes all of them."""

    def request_builder(
        self,
        venue: Venue,
        records: tuple[Instrument, ...],
        api_key: str,
        signer: Signer,
        clock: Callable[[], int],
    ) -> Requests:
        """Builds the account's requests; `clock` gives Unix nanoseconds.  Takes up to a second: loads libraries."""

    def order_answer(self, status: int, body: bytes, venue_symbol: str) -> Outcome:
        """What the answer to a new order, a cancel or a query of one order means."""

    def orders_answer(self, status: int, body: bytes, venue_symbol: str) -> tuple[OrderReport, ...] | Outcome:
        """What the answer to a list of open orders or to a cancel of all means; nothing to cancel is `()`."""

    def busy_until(self, status: int, headers: Mapping[str, str], body: bytes, now: int) -> int:
        """Until when (Unix ns) the answer asks for no more requests; 0 if it does not."""

    @property
    def KEYS(self) -> VenueName: ...  # noqa: D102, N802

    def rights_request(self, host: str, api_key: str, signer: Signer, clock: Callable[[], int]) -> SignedRequest:
        """Asks what the key itself may do."""

    def rights_probe(self, host: str, api_key: str, query: str) -> SignedRequest:
        """The same with a query that was signed elsewhere.  Raises `Malformed` for what is no such query."""

    def rights_answer(self, status: int, body: bytes) -> KeyRights | Failed:
        """What the answer to that says.  Raises `Malformed`."""

    def key_admin(self, host: str, account: str, api_key: str, signer: Signer, clock: Callable[[], int]) -> KeyAdmin:
        """Makes and deletes the API keys of the sub-account `account`; `api_key` and `signer` are its master's."""

    def user_stream(
        self,
        *,
        host: str,
        paper: bool,
        api_key: str,
        signer: Signer,
        symbols: Mapping[str, str],
        tls: ssl.SSLContext,
        clock: Callable[[], int],
        listener: Listener,
    ) -> AccountStream:
        """Follows the account.

        `symbols` maps the venue's symbols to unified ones: those are asked for; fills of others are told as they are.
        `paper`: `host` is our own paper exchange, which has everything in one place.
        """


class ParseBack(Protocol):
    """What gateway and custody need of a venue: its orders, and requests that are read back before they are signed.

    The first step of an `Adapter`; alone it trades nothing, since nobody reads the venue's answers.
    """

    def venue_order(self, record: Instrument, intent: Intent) -> VenueOrder:
        """See `Adapter`."""

    def amounts(self, record: Instrument, order: VenueOrder) -> tuple[Decimal, Decimal | None]:
        """See `Adapter`."""

    def require_own(self, client_order_id: str) -> None:
        """See `Adapter`."""

    def request_builder(
        self,
        host: str,
        records: tuple[Instrument, ...],
        login: Login,
        keys: SigningKeys,
        clock: Callable[[], int],
    ) -> Requests:
        """Builds the account's requests, to `host` alone; `keys` in the token, `clock` Unix nanoseconds."""


_UNREAD: Final = "its answers and its account's stream are not read"


class Kind(msgspec.Struct, frozen=True):
    """An API whose requests are read back, in the package `package` of `venues`.

    - `exchange`: ccxt's id; `what`: what is traded, and by which signatures.
    - `missing`: why it trades nothing yet; "" for one that has a whole `Adapter`.
    - `tried`: against what the order's whole way was run, from intent to fill; "" for nothing.
    """

    package: str
    exchange: str
    what: str
    missing: str = _UNREAD
    tried: str = ""


KINDS: Final = {
    "binance-spot": Kind("binance", "binance", "spot (Ed25519)", missing="", tried="paper exchange"),
    "binance-usdm": Kind("binance_usdm", "binanceusdm", "USDT perpetuals (Ed25519)"),
    "bybit-spot": Kind("bybit", "bybit", "spot (HMAC, RSA)"),
    "okx-spot": Kind("okx", "okx", "spot (HMAC)", missing=f"{_UNREAD}; a request is good for 30 s"),
    "kraken-spot": Kind("kraken", "kraken", "spot (HMAC)", missing=f"{_UNREAD}; a request is good for 3 s"),
    "coinbase-spot": Kind(
        "coinbase", "coinbase", "spot (ECDSA P-256)", missing="its signature does not cover what an order says"
    ),
}


def _traded(kind: Kind) -> str:
    if kind.missing:
        return f"no; parse-back: {kind.what}; {kind.missing}"
    return f"yes; parse-back: {kind.what}; whole way tried against: {kind.tried} only"


# ccxt's id of an exchange -> whether and what may be traded there, in words; "no" for every other.
TRADED: Final = {kind.exchange: _traded(kind) for kind in KINDS.values()}


def adapter(kind: str) -> Adapter:
    """The adapter for venue records of this `kind`.  Raises `ConfigError` where there is none."""
    # Imported here: a process loads the venue that it trades at and no other.
    if kind == "binance-spot":
        from tallystick.venues import binance

        return binance
    known = KINDS.get(kind)
    why = f", whose requests are read back, but {known.missing}" if known is not None else ""
    raise ConfigError("VENUE_KIND", f"no adapter for {kind[:48]!r}{why}; there is one for binance-spot")


def parse_back(kind: str) -> ParseBack:
    """The parse-back of a kind that has no whole `Adapter` yet.  Raises `ConfigError` where there is none."""
    match kind:
        case "binance-usdm":
            from tallystick.venues import binance_usdm

            return binance_usdm
        case "bybit-spot":
            from tallystick.venues import bybit

            return bybit
        case "okx-spot":
            from tallystick.venues import okx

            return okx
        case "kraken-spot":
            from tallystick.venues import kraken

            return kraken
        case "coinbase-spot":
            from tallystick.venues import coinbase

            return coinbase
        case _:
            raise ConfigError("VENUE_KIND", f"no request of {kind[:48]!r} is read back")


def client_tls(ca: Path | None) -> ssl.SSLContext:
    """TLS 1.3 towards a venue; `ca` vouches for it, or the machine's authorities where it is None."""
    context = ssl.create_default_context(cafile=None if ca is None else str(ca))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context
