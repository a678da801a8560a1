"""The execution process: carries out what `orders` says, with custody's signatures, at the venue.

On its way a permit meets these points; at each, kill -9 leaves what the next start resolves:

- `decision`: read, nothing done → the next start finds a permit without event: void.
- `submitting-queued`: not durable yet, custody asked → void, or, if the event was stored after all,
  asked for at the venue and not found.
- `submitting-durable`, `signed`, `before-send`: `submitting` without outcome, nothing written → not found.
- `written`: the request is on the wire → found at the venue, or not found after its window.
- `answered`: the venue has decided, we have told nobody → found.
- `outcome-queued`: the same, or the event was stored.

Execution is not trusted: an attacker who controls it can at most withhold orders, cancel ours, ask about them
and send a signed request again within its second (the venue's id rules permitting; audit counts it).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final, assert_never

from tallystick import venues
from tallystick.components.execution.custody import CustodyClient, NotSigned
from tallystick.components.execution.effects import (
    Alarm,
    Cancel,
    CancelAll,
    Effect,
    ListOpen,
    Order,
    Publish,
    Query,
    Send,
    Sign,
)
from tallystick.components.execution.intents import Intents
from tallystick.components.execution.kept import ExecutionState
from tallystick.components.execution.orders import Orders
from tallystick.runtime.bus.alarms import Alarms
from tallystick.runtime.bus.received import Received
from tallystick.runtime.bus.tasks import Tasks
from tallystick.runtime.deployment.root_watch import RootWatch
from tallystick.runtime.deployment.service import Service, ServiceContext
from tallystick.schemas import signing
from tallystick.schemas.errors import ConfigError, TallystickError
from tallystick.schemas.orders import Corrected, Decision, OrderEvent
from tallystick.schemas.seal import Verified
from tallystick.schemas.signing import SOCKET
from tallystick.schemas.subjects import ORDERS, subject
from tallystick.schemas.trust import open_correction
from tallystick.venues import NoAnswer, NotSent, OrderReport, Outcome, Rejected
from tallystick.venues.client import Lost, Unsent, VenueClient

TICK_S: Final = 0.05
ANNOUNCED_TAIL: Final = 4_096
INTENTS_S: Final = 60
WARM_S: Final = 10.0
# … until it answered for the first time.
REACH_S: Final = 0.5
SETTLE_S: Final = 1.0


def _nothing(_: str) -> None:
    """No checkpoint: the deployed process has none."""


class Execution(Service):
    """The component; `checkpoint` is called with the name of each point of the module docstring, for tests."""

    def __init__(self, checkpoint: Callable[[str], None] = _nothing) -> None:
        self._checkpoint = checkpoint
        # intent id -> the opened messages of decision and intent that custody has not signed yet
        self._permits: dict[bytes, tuple[Verified, Verified]] = {}
        self._reached = asyncio.Event()
        self._away = "not reached yet"

    async def start(self, ctx: ServiceContext) -> None:
        """Subscribe to decisions, our own past and the breaker; look for custody and venue."""
        deployment = ctx.deployment
        self._ctx = ctx
        self._tasks = Tasks(ctx.tasks)
        self._alarms = Alarms(ctx.notice, ctx.clock)
        RootWatch(ctx).start()
        self._name = name = deployment.config.venue.name
        venue = ctx.trust.venues.get(name)
        if venue is None:
            raise ConfigError("VENUE", f"{name} is not in trust root {ctx.trust.number}")
        self._symbols = {i.symbol: i.venue_symbol for i in ctx.trust.instruments if i.venue == name}
        written = None if self._checkpoint is _nothing else lambda: self._checkpoint("written")
        self._adapter = venues.adapter(venue.kind)
        self._venue = VenueClient(self._adapter, venue.host, venues.client_tls(deployment.venue_ca), ctx.clock, written)
        ctx.at_stop(self._venue.close)
        self._custody = CustodyClient(deployment.seat("custody") / SOCKET, ctx.tasks)
        ctx.at_stop(self._custody.close)
        ctx.at_stop(self._settled)
        self._intents = Intents(ctx.trust, self._adapter)
        self._orders = Orders([(name, symbol) for symbol in self._symbols], ctx.clock())
        ctx.subscribe(["order.decision.>", "order.event.>", "order.correction.>"], self._on_order, start="all")
        # Older ones answer no permit that still holds: at a start whatever strategies sent before is passed over unread.
        ctx.subscribe("order.intent.>", self._on_order, start="all", newest_s=INTENTS_S)
        ctx.keep(ORDERS, ExecutionState(self._orders, self._intents, ctx.verifier, ctx.clock))
        ctx.subscribe("control.breaker.>", self._on_breaker)
        # Far enough back to know whose sessions were announced when something comes late or from recent history.
        ctx.subscribe("cred.>", lambda _: None, start=ANNOUNCED_TAIL)
        ctx.spawn(self._ticks())
        ctx.spawn(self._keep_warm())

    async def ready(self) -> None:
        """All history was read, and the venue answers: whoever cannot reach it carries out nothing."""
        self._do(self._orders.recover(self._ctx.clock()))
        await self._reached.wait()

    def status(self) -> dict[str, str]:
        """Whether the venue answers, and how many orders of each strategy may be open there."""
        counts = Counter(order.strategy for order in self._orders.orders().values() if not order.final)
        return {"venue": self._away or "answers", "open": " ".join(f"{s}={n}" for s, n in sorted(counts.items()))}

    async def _settled(self) -> None:
        """Wait for what is at the venue; what does not come is resolved by the next start."""
        await self._tasks.settled(SETTLE_S)
        await self._tasks.end()

    # --- what is read ---------------------------------------------------------------------------------

    async def _on_order(self, received: Received) -> None:
        if received.subject.venue != self._name:
            return
        # What is unlisted has no effect; what may not act now is not carried out, and accounted for.
        why = (await self._ctx.admit(received)).why
        late = None if why is None else (why.code, why.text)
        now = self._ctx.clock()
        if received.subject.kind == "order.intent":
            # What the strategy may do now, custody asks of its session when the order is signed.
            self._intents.heard(received.verified, now)
            return
        for event in received.events:
            if isinstance(event, Decision):
                self._do(self._orders.decided(received.subject, event, now, late or self._take(received, event)))
            elif isinstance(event, Corrected):
                self._do(self._orders.corrected(open_correction(event.note, self._ctx.trust, received.subject), now))
            elif isinstance(event, OrderEvent) and received.statement.boot == self._ctx.boot:
                self._orders.stored(event)
            elif isinstance(event, OrderEvent):
                self._do(self._orders.remembered(received.subject, event, now, received.stored))

    def _take(self, received: Received, decision: Decision) -> tuple[str, str] | None:
        """Keep a permit with the intent that it answers, for custody; code and text of why there is none."""
        if decision.permit is None:
            return None
        self._checkpoint("decision")
        try:
            intent = self._intents.require(received.subject, decision)
        except TallystickError as exc:
            if received.live:
                self._ctx.notice("PERMIT_UNASKED", f"{exc.code}: {exc.text}", decision.id)
            return exc.code, exc.text
        self._permits[decision.intent_id] = (received.verified, intent)
        return None

    async def _on_breaker(self, received: Received) -> None:
        standing = await self._ctx.admit(received)
        self._do(self._orders.on_breaker(received.verified, standing, self._ctx.clock()))

    async def _ticks(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._do(self._orders.tick(self._ctx.clock()))

    async def _keep_warm(self) -> None:
        """A full TLS handshake costs more than the rest of an order's way."""
        while True:
            try:
                await self._venue.warm()
                self._away = ""
                self._reached.set()
            except Unsent as exc:
                self._away = str(exc)
                self._ctx.log.warning("venue away", code=exc.code, text=exc.text)
            try:
                # Its connection is there before it is needed, and before anybody else takes the last one.
                await self._custody.status()
            except NotSigned as exc:
                self._ctx.log.warning("custody away", code=exc.code, text=exc.text)
            await asyncio.sleep(WARM_S if self._reached.is_set() else REACH_S)

    # --- what is done ---------------------------------------------------------------------------------

    def _do(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case Publish():
                    self._publish(effect)
                case Sign(order):
                    self._start(self._sign(order))
                case Send(order, request):
                    self._start(self._send(order, request))
                case Query(order):
                    self._start(self._query(order))
                case Cancel(order):
                    self._start(self._cancel(order))
                case CancelAll(_, symbol):
                    self._start(self._cancel_all(symbol))
                case ListOpen(_, symbol):
                    self._start(self._list_open(symbol))
                case Alarm(code, text):
                    self._alarms.say(code, text)
                case _:
                    assert_never(effect)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.start(work)

    def _publish(self, effect: Publish) -> None:
        order, ctx = effect.order, self._ctx
        event = ctx.new(
            OrderEvent,
            causes=(order.decision_id,),
            intent_id=order.intent_id,
            decision_id=order.decision_id,
            client_order_id=order.client_order_id,
            state=effect.state,
            venue_order_id=order.venue_order_id,
            status=order.status,
            code=effect.code,
            text=effect.text,
            executed=order.executed,
        )
        where = subject("order.event", strategy=order.strategy, venue=order.venue, symbol=order.symbol)
        stored = ctx.publish(where, event)
        if effect.state == "submitting":
            self._checkpoint("submitting-queued")
            self._start(self._durable(order, stored))
        else:
            self._permits.pop(order.intent_id, None)
            self._checkpoint("outcome-queued")

    async def _durable(self, order: Order, stored: asyncio.Future[int]) -> None:
        # The publisher sends the same bytes until they are stored; if that takes long, the signature
        # has gone stale and the order is void.
        await stored
        self._checkpoint("submitting-durable")
        self._do(self._orders.durable(order, self._ctx.clock()))

    async def _sign(self, order: Order) -> None:
        decision, intent = self._permits.pop(order.intent_id)
        session = self._ctx.session
        try:
            signed = await self._custody.sign(
                lambda number: signing.ask_for(
                    number,
                    order.decision_id,
                    decision.subject.text,
                    decision.payload,
                    intent.payload,
                    session.credential.text,
                    session.key,
                )
            )
        except NotSigned as exc:
            self._do(self._orders.refused(order, exc.code, exc.text, self._ctx.clock()))
            return
        self._checkpoint("signed")
        self._do(self._orders.signed(order, signed, self._ctx.clock()))

    async def _send(self, order: Order, request: signing.Signed) -> None:
        self._checkpoint("before-send")
        outcome = await self._exchange(order, request)
        self._checkpoint("answered")
        self._do(self._orders.answered(order, outcome, self._ctx.clock()))

    async def _query(self, order: Order) -> None:
        outcome, asked = await self._ask(
            order,
            lambda number: signing.SignQuery(
                id=number, venue=order.venue, symbol=order.symbol, client_order_id=order.client_order_id
            ),
        )
        self._do(self._orders.queried(order, outcome, asked, self._ctx.clock()))

    async def _cancel(self, order: Order) -> None:
        outcome, _ = await self._ask(
            order,
            lambda number: signing.SignCancel(
                id=number, venue=order.venue, symbol=order.symbol, client_order_id=order.client_order_id
            ),
        )
        self._do(self._orders.cancelled(order, outcome, self._ctx.clock()))

    async def _cancel_all(self, symbol: str) -> None:
        outcome, _ = await self._ask_many(
            symbol, lambda number: signing.SignCancelAll(id=number, venue=self._name, symbol=symbol)
        )
        self._do(self._orders.all_cancelled(self._name, symbol, outcome, self._ctx.clock()))

    async def _list_open(self, symbol: str) -> None:
        outcome, asked = await self._ask_many(
            symbol, lambda number: signing.SignOpenOrders(id=number, venue=self._name, symbol=symbol)
        )
        if isinstance(outcome, tuple):
            self._do(self._orders.listed(self._name, symbol, outcome, asked, self._ctx.clock()))

    # --- custody and venue ------------------------------------------------------------------------------

    async def _ask(self, order: Order, make: Callable[[int], signing.Request]) -> tuple[Outcome, int]:
        """Sign and send a request about one order; the outcome and when it was asked."""
        asked = self._ctx.clock()
        try:
            signed = await self._custody.sign(make)
        except NotSigned as exc:
            return NotSent(exc.code, exc.text), asked
        return await self._exchange(order, signed), asked

    async def _exchange(self, order: Order, request: signing.Signed) -> Outcome:
        try:
            status, body = await self._venue.send(request)
        except Unsent as exc:
            return NotSent(exc.code, exc.text)
        except Lost as exc:
            return NoAnswer(exc.code, exc.text)
        outcome = self._adapter.order_answer(status, body, self._symbols[order.symbol])
        self._watch(outcome)
        if isinstance(outcome, OrderReport) and outcome.client_order_id != order.client_order_id:
            return NoAnswer("VENUE_ANSWER", f"about order {outcome.client_order_id[:36]}, not {order.client_order_id}")
        return outcome

    async def _ask_many(
        self, symbol: str, make: Callable[[int], signing.Request]
    ) -> tuple[tuple[OrderReport, ...] | Outcome, int]:
        asked = self._ctx.clock()
        try:
            signed = await self._custody.sign(make)
            status, body = await self._venue.send(signed)
        except (NotSigned, Unsent) as exc:
            return NotSent(exc.code, exc.text), asked
        except Lost as exc:
            return NoAnswer(exc.code, exc.text), asked
        outcome = self._adapter.orders_answer(status, body, self._symbols[symbol])
        self._watch(outcome)
        return outcome, asked

    def _watch(self, outcome: tuple[OrderReport, ...] | Outcome) -> None:
        """Refusals that people must hear of."""
        match outcome:
            case Rejected(code, text, "credential"):
                self._ctx.notice(
                    "VENUE_CREDENTIAL", f"the venue refuses key or signature: {code} {text}; revoked, or misused?"
                )
            case Rejected(_, text, "clock"):
                self._ctx.notice("VENUE_CLOCK", f"the venue's clock and ours disagree: {text}")


SERVICE = Execution
