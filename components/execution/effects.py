"""One order as execution holds it, and what its state machine asks the process to do.

Every effect may be lost in a crash; `orders` says how the next start finds the way on.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Final, Literal, Protocol

import msgspec

from tallystick.schemas.bounds import SECOND
from tallystick.schemas.orders import OrderEvent, OrderState
from tallystick.schemas.signing import Signed

RETRY_NS: Final = SECOND // 4
FINAL_STATES: Final = frozenset({"rejected", "void", "closed"})


class Told(msgspec.Struct, frozen=True):
    """What the stream says of an order: its newest event's words, an operator's correction included."""

    state: OrderState | Literal[""] = ""
    venue_order_id: str = ""
    status: str = ""
    executed: Decimal | None = None

    @property
    def final(self) -> bool:
        """Whether it has ended on record."""
        return self.state in FINAL_STATES

    def then(self, event: OrderEvent) -> Told:
        """With one more event; a final state never changes."""
        if self.final:
            return self
        executed = self.executed if event.executed is None else event.executed
        return Told(event.state, event.venue_order_id or self.venue_order_id, event.status or self.status, executed)


class Where(Protocol):
    """Whose order it is, and of what: a subject says so."""

    @property
    def strategy(self) -> str: ...  # noqa: D102
    @property
    def venue(self) -> str: ...  # noqa: D102
    @property
    def symbol(self) -> str: ...  # noqa: D102


class Order:
    """One order; `Orders` alone changes it.

    `state` is "" for a permit that nothing was published for; `deadline` is the time (Unix ns) from
    which a "not found" of the venue is final, at most `permit_deadline`.  `told` lags behind the order by what is not
    stored and read yet.
    """

    __slots__ = (
        "cancel_at",
        "cancel_wanted",
        "client_order_id",
        "code",
        "deadline",
        "decision_id",
        "durable",
        "executed",
        "final_at",
        "intent_id",
        "permit_deadline",
        "query_at",
        "request",
        "retry",
        "sent",
        "state",
        "status",
        "strategy",
        "symbol",
        "told",
        "venue",
        "venue_order_id",
    )

    def __init__(self, where: Where, intent_id: bytes, decision_id: bytes, client_order_id: str, deadline: int) -> None:
        self.strategy, self.venue, self.symbol = where.strategy, where.venue, where.symbol
        self.intent_id = intent_id
        self.decision_id = decision_id
        self.client_order_id = client_order_id
        self.deadline = self.permit_deadline = deadline
        self.told = Told()
        self.state: OrderState | str = ""
        self.durable = False
        self.sent = False
        self.request: Signed | None = None
        self.cancel_wanted = False
        self.cancel_at = 0
        self.query_at = 0
        self.retry = RETRY_NS
        self.final_at = 0
        self.venue_order_id = ""
        self.status = ""
        self.code = ""
        self.executed: Decimal | None = None

    @property
    def final(self) -> bool:
        """Whether nothing will happen to it any more."""
        return self.state in FINAL_STATES

    def remember(self, told: Told, now: int) -> None:
        """It stands as the stream says, read at `now` (Unix ns)."""
        self.told = told
        self.sent = self.durable = True
        self.state, self.venue_order_id, self.status, self.executed = (
            told.state,
            told.venue_order_id,
            told.status,
            told.executed,
        )
        if self.final:
            self.final_at = now

    def __repr__(self) -> str:
        return f"Order({self.client_order_id}, {self.state or 'permitted'})"


class Publish(msgspec.Struct, frozen=True):
    """Publish the order's state as it is here; `durable` comes back only for `submitting`."""

    order: Order
    state: OrderState
    code: str = ""
    text: str = ""


class Sign(msgspec.Struct, frozen=True):
    """Ask custody for the order's request; `signed` or `refused` comes back."""

    order: Order


class Send(msgspec.Struct, frozen=True):
    """Send the request, once; `answered` comes back."""

    order: Order
    request: Signed


class Query(msgspec.Struct, frozen=True):
    """Ask the venue what became of the order; `queried` comes back."""

    order: Order


class Cancel(msgspec.Struct, frozen=True):
    """Cancel one order at the venue; `cancelled` comes back."""

    order: Order


class CancelAll(msgspec.Struct, frozen=True):
    """Cancel every open order of an instrument; `all_cancelled` comes back."""

    venue: str
    symbol: str


class ListOpen(msgspec.Struct, frozen=True):
    """Ask for the open orders of an instrument; `listed` comes back."""

    venue: str
    symbol: str


class Alarm(msgspec.Struct, frozen=True):
    """Tell people."""

    code: str
    text: str


Effect = Publish | Sign | Send | Query | Cancel | CancelAll | ListOpen | Alarm
