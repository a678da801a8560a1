"""The portfolio process: the venue's user stream into fills, positions and balances.

- At start the book is rebuilt from ORDERS, or from what a snapshot of its own holds and what came since: permits from `order.decision`, order ids from `order.event`, our own fills
  and positions.  Only then is the venue asked for what came since, and followed.
- A decision counts as a permit if its session is admitted (`admit`), in whatever standing.
- A fill is published before its position, on one chain; see `book` for what a crash in between means.
- It reads the account with a key that may do nothing but read, signed in its own hardware token, while the vault lends it
  the secrets for that: without a lease the stream is closed.

The portfolio is trusted with positions: an attacker who controls it can at most lie about fills and balances, which
the gateway's own count of fills and the operator-signed caps bound, and which audit can compare with the venue.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Final

from tallystick import venues
from tallystick.components.portfolio.book import Book, Output
from tallystick.runtime.bus.received import Received
from tallystick.runtime.bus.tasks import Tasks
from tallystick.runtime.deployment.own_token import open_own_token
from tallystick.runtime.deployment.service import Service, ServiceContext
from tallystick.runtime.keys.signers import HsmSigner
from tallystick.schemas.errors import ConfigError
from tallystick.schemas.orders import Balance, Corrected, Decision, Fill, OrderEvent, Position
from tallystick.schemas.subjects import ORDERS, subject
from tallystick.schemas.trust import open_correction
from tallystick.venues import AccountStream, BalanceReport, FillReport, Listener
from tallystick.venues.key_check import KeyCheck
from tallystick.venues.key_holder import KeyHolder, RenewableStream

TICK_S: Final = 0.25
OWN: Final = "portfolio"
ANNOUNCED_TAIL: Final = 4_096
# What people are told by its own code.
_KNOWN: Final = ("VENUE_CREDENTIAL", "VENUE_BACKOFF", "VAULT_LEASE_ENDED")

Connect = Callable[[ServiceContext, Listener], AccountStream]


def connect(ctx: ServiceContext, listener: Listener) -> AccountStream:
    """The account's stream as the deployment says.  Raises `ConfigError`."""
    deployment = ctx.deployment
    venue = deployment.config.venue
    record = ctx.trust.venues.get(venue.name)
    if record is None:
        raise ConfigError("VENUE", f"{venue.name} is not in trust root {ctx.trust.number}")
    adapter = venues.adapter(record.kind)

    def make(api_key: str, signer: HsmSigner) -> AccountStream:
        return adapter.user_stream(
            host=record.host,
            paper=venue.kind == "paper",
            api_key=api_key,
            signer=signer,
            symbols={i.venue_symbol: i.symbol for i in ctx.trust.instruments if i.venue == venue.name},
            tls=venues.client_tls(deployment.venue_ca),
            clock=ctx.clock,
            listener=listener,
        )

    check = KeyCheck(ctx, adapter, record.host, "read", venues.client_tls(deployment.venue_ca))

    async def use(api_key: str, signer: HsmSigner) -> None:
        await check.require_fit(api_key, signer)
        stream.use(api_key, signer)

    holder = KeyHolder(ctx, open_own_token(ctx), adapter, record.host, use)
    stream = RenewableStream(make, holder.api_key, holder.signer(), lambda: check.live(ctx.clock()))
    holder.start()
    ctx.spawn(check.run(holder))
    return stream


class Portfolio(Service):
    """See the module docstring.  It is the user stream's `Listener`."""

    def __init__(self, venue: str | None = None, connect: Connect = connect) -> None:
        """`venue`: its name in subjects; None: the deployment's."""
        self._venue_name = venue
        self._connect = connect

    def status(self) -> dict[str, str]:
        """Which key it reads with."""
        return {"key": self._stream.key} if isinstance(self._stream, RenewableStream) else {}

    async def start(self, ctx: ServiceContext) -> None:
        """Read the whole history of orders; follow the venue from `ready` on."""
        self.ctx = ctx
        self.venue = self._venue_name or ctx.deployment.config.venue.name
        self.book = Book(ctx.new)
        self._balances: dict[str, tuple[Decimal, Decimal]] = {}
        self._resumed = False
        self._down = ""
        self._stream = self._connect(ctx, self)
        ctx.subscribe(
            ("order.decision.>", "order.event.>", "order.correction.>", "fill.>", "position.>"),
            self._on_orders,
            start="all",
        )
        self.ctx.keep(ORDERS, self.book)
        # Far enough back to know whose sessions were announced when a decision comes late or from recent history.
        ctx.subscribe("cred.>", lambda _: None, start=ANNOUNCED_TAIL)

    async def ready(self) -> None:
        """History is applied: state what a crash left unsaid, then follow the venue."""
        self._resumed = True
        self._publish(self.book.resume())
        self.ctx.spawn(self._follow())
        self.ctx.spawn(self._tick())

    async def _follow(self) -> None:
        """The user stream, as long as the lease on its secrets holds, and again once it does."""
        leased, tasks = self.ctx.leased, Tasks(within=self.ctx.tasks)
        try:
            while True:
                tasks.start(self._stream.run(), "user stream")
                await self._until(lambda: not leased.live(self.ctx.clock()))
                await tasks.end()
                self.on_connection(
                    False, "VAULT_LEASE_ENDED", "the account is not followed without a lease of the vault"
                )
                # Whether it is followed again, the stream says itself.
                await self._until(lambda: leased.live(self.ctx.clock()))
        finally:
            await tasks.end()

    async def _until(self, holds: Callable[[], bool]) -> None:
        while True:
            if holds():
                return
            await asyncio.sleep(TICK_S)

    async def _on_orders(self, received: Received) -> None:
        # Whatever its standing: a permit or an own fill is a fact, however old.
        await self.ctx.admit(received)
        where = received.subject
        for event in received.events:
            if isinstance(event, Decision):
                self._publish(self.book.on_decision(where, event, self.ctx.clock()))
            elif isinstance(event, OrderEvent):
                self.book.on_order_event(where, event)
            elif isinstance(event, Corrected):
                stated = self.book.correct(where, open_correction(event.note, self.ctx.trust, where))
                self._publish(stated if self._resumed else ())
            elif isinstance(event, Fill | Position) and received.statement.boot == self.ctx.boot:
                self.book.stored(where, event)
            elif isinstance(event, Fill) and not self._resumed:
                self.book.booked(where, event)
            elif isinstance(event, Position) and not self._resumed:
                self.book.stated(where, event)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._publish(self.book.on_time(self.ctx.clock()))

    def _publish(self, outputs: Iterable[Output]) -> None:
        for where, event in outputs:
            self.ctx.publish(where, event)
            self.book.published(event)

    # -- the user stream's listener ---------------------------------------------------------------

    def ask_from(self, symbol: str) -> int:
        """See `Book.ask_from`."""
        return self.book.ask_from(self.venue, symbol)

    def since(self, symbol: str) -> int | None:
        """Nothing was filled for us before the first permit."""
        return self.book.first_permit(self.venue, symbol)

    def client_order_id(self, symbol: str, venue_order_id: str) -> str:
        """As the venue or execution named it."""
        return self.book.client_order_id(self.venue, symbol, venue_order_id)

    def on_report(self, report: FillReport) -> None:
        """A fill."""
        self._publish(self.book.on_report(self.venue, report, self.ctx.clock()))

    def on_order(self, symbol: str, venue_order_id: str, client_order_id: str) -> None:
        """An order under both its ids."""
        self.book.on_order(self.venue, symbol, venue_order_id, client_order_id)

    def on_balance(self, balance: BalanceReport) -> None:
        """Published where it changed."""
        held = (balance.free, balance.locked)
        if self._balances.get(balance.asset) == held:
            return
        self._balances[balance.asset] = held
        where = subject("balance", venue=self.venue, asset=balance.asset)
        self.ctx.publish(where, self.ctx.new(Balance, free=balance.free, locked=balance.locked))

    def on_connection(self, up: bool, code: str, text: str) -> None:
        """Said once each way: without the stream nobody sees fills, and a refused credential may be a revoked one."""
        if up:
            self.ctx.log.info("user stream up")
            self._down = ""
        elif code != self._down:
            self._down = code
            self.ctx.notice(code if code in _KNOWN else "USER_STREAM_DOWN", text)


SERVICE = Portfolio
