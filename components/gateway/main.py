"""The gateway's process: verified messages to the core, its decisions to the bus.

- ORDERS is read from its beginning; the core decides nothing before all of it, and the tails of MARKET
  and SECURITY, were applied (`ready`).
- Every intent that verifies gets a decision, also one of an unlisted session: that is a denial on record
  and a notice on `guard.gateway`.  Hence `listed` is off and the sessions are checked here:
  events of the order's way, heartbeats and trips count only from listed sessions.
- While the session list is stale the order's way is still followed (nothing is permitted meanwhile, and
  what was filled stays filled); the breaker's word then counts for nothing, which denies.
- What is late, and what stands in history, counts from announced sessions only: a thief of a role key dates
  his messages as he likes.  Market data counts from listed sessions: it is what prices are measured against.
- A session that was issued in the last `FRESH_SESSION_NS` may be heard before its listing, which comes by another
  stream: its message waits up to `LISTING_S` for it.
- Nobody waits for the acknowledgement of a decision: who reads it reads what is stored.  A decision that
  was not stored when the process ended is a denial after the restart.
"""

from __future__ import annotations

import asyncio
import functools
from collections import OrderedDict
from typing import Final

from tallystick.components import Component, ConfigError, Context, Received
from tallystick.components.gateway.decide import Gateway
from tallystick.components.gateway.policy import Policy
from tallystick.components.gateway.risk.limits import LimitBook
from tallystick.runtime.deployment.folder import Deployment
from tallystick.schemas.bounds import FRESH_SESSION_NS, LISTING_POLL_S, LISTING_QUEUED_NS, SECOND
from tallystick.schemas.errors import CouldNotVerify, Unverified
from tallystick.schemas.orders import CancelIntent, Decision, Intent
from tallystick.schemas.subjects import Subject

# Newest messages of market data read at start: enough to know the last trade of each instrument; what
# is not among them denies until its next trade.
MARKET_TAIL: Final = 256
# Newest messages of SECURITY read at start, heartbeats and lists among them: about an hour.  An arming
# lease is found if it was stated or repeated since then; otherwise nothing is armed.
SECURITY_TAIL: Final = 20_000
# Unlisted sessions remembered: one notice and one wait each, so that a flood of intents is neither.
MAX_UNLISTED: Final = 1024
# Intents of one message decided before everything else gets its turn: a few milliseconds.
TURN: Final = 16
INTENT: Final = "order.intent."
DECISION: Final = "order.decision."


class GatewayProcess(Component):
    """See the module docstring."""

    def __init__(self) -> None:
        self._noticed: OrderedDict[bytes, None] = OrderedDict()
        self._unlisted: OrderedDict[bytes, None] = OrderedDict()

    async def start(self, ctx: Context) -> None:
        """Load the policy and subscribe.  Raises `ConfigError` for a policy or limits that are not right."""
        deployment = ctx.config
        if not isinstance(deployment, Deployment):
            raise ConfigError("GATEWAY", "the gateway needs its deployment's folder")
        policy = Policy.load(deployment.policy, ctx.trust, deployment.listed)
        limits = LimitBook.parse(deployment.config.limits)
        self._ctx = ctx
        self.gateway = Gateway(ctx.trust, policy, limits, ctx.sessions, functools.partial(ctx.new, Decision))
        ctx.log.info("policy", digest=policy.digest.hex(), folder=str(deployment.policy))
        ctx.subscribe(("md.trade.>", "ref.market.>"), self._on_market, MARKET_TAIL)
        ctx.subscribe(("control.breaker.>", "control.arm.>"), self._on_control, SECURITY_TAIL)
        ctx.subscribe(("order.decision.>", "order.event.>", "fill.>", "position.>"), self._on_orders, "all")
        ctx.subscribe("order.intent.>", self._on_intent, "all")

    async def ready(self) -> None:
        """History is applied: deny what it left undecided, and decide from here on."""
        for where, decision in self.gateway.caught_up(self._ctx.clock()):
            self._publish(where, decision)

    async def _on_market(self, received: Received) -> None:
        if received.live:
            await self._listing(received)
            try:
                self._ctx.sessions.require_listed(received.credential, self._ctx.clock())
            except CouldNotVerify:
                # Nothing is permitted while the list is stale; the next trade after it prices again.
                self._ctx.metrics.add("market_with_stale_list")
                return
        else:
            await self._ctx.require_announced(received)
        self.gateway.apply(received.verified, self._ctx.clock())

    def _on_control(self, received: Received) -> None:
        now = self._ctx.clock()
        if received.subject.kind == "control.breaker":
            if not received.live:
                return  # the next heartbeat, in a moment, says everything
            self._ctx.sessions.require_listed(received.credential, now)
        # A lease needs no listed session: the operator signed it.
        self.gateway.apply(received.verified, now)

    async def _on_orders(self, received: Received) -> None:
        if received.live:
            await self._listing(received)
            try:
                self._ctx.sessions.require_listed(received.credential, self._ctx.clock())
            except CouldNotVerify:
                # The list is stale: a fill must not be lost for that, and nothing is permitted meanwhile.
                self._ctx.metrics.add("applied_with_stale_list")
                await self._ctx.require_announced(received)
        else:
            await self._ctx.require_announced(received)
        self.gateway.apply(received.verified, self._ctx.clock())

    async def _on_intent(self, received: Received) -> None:
        if received.live:
            await self._listing(received)
        for number, event in enumerate(received.events, start=1):
            if number % TURN == 0:
                # A message holds thousands: heartbeats and lists are heard between them.
                await asyncio.sleep(0)
            if isinstance(event, Intent | CancelIntent):
                decision = self.gateway.on_intent(received.verified, event, self._ctx.clock())
                if decision is not None:
                    # Crash point: decided but not stored.  The restarted gateway finds the intent without
                    # a decision and denies it; a permit that nobody read reserves nothing there.
                    self._publish(received.subject, decision)
                    self._report(received, decision)

    async def _listing(self, received: Received) -> None:
        """Wait, once a session, for the listing of one so new that its announcement may still be under way."""
        ctx, credential = self._ctx, received.credential
        if ctx.clock() - credential.issued_at >= FRESH_SESSION_NS or credential.digest in self._unlisted:
            return
        until = asyncio.get_running_loop().time() + LISTING_QUEUED_NS / SECOND
        while asyncio.get_running_loop().time() < until:
            try:
                ctx.sessions.require_listed(credential, ctx.clock())
            except Unverified as exc:
                if exc.code != "SESSION_UNLISTED":
                    return
                await asyncio.sleep(LISTING_POLL_S)
            else:
                return
        _remember(self._unlisted, credential.digest)

    def _publish(self, intent: Subject, decision: Decision) -> None:
        self._ctx.metrics.add(f"verdict_{decision.verdict}")
        self._ctx.publish(DECISION + intent.text.removeprefix(INTENT), decision)

    def _report(self, received: Received, decision: Decision) -> None:
        credential = received.credential
        if not any(d.code == "SESSION_UNLISTED" for d in decision.denials) or credential.digest in self._noticed:
            return
        _remember(self._noticed, credential.digest)
        self._ctx.notice(
            "SESSION_UNLISTED",
            f"an intent of {credential.component}/{credential.boot.hex()[:8]}, whose session is on no list",
            credential.digest,
        )


def _remember(known: OrderedDict[bytes, None], digest: bytes) -> None:
    known[digest] = None
    if len(known) > MAX_UNLISTED:
        known.popitem(last=False)


COMPONENT = GatewayProcess
