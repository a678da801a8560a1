"""The gateway's process: verified messages to the core, its decisions to the bus.

- ORDERS is read from its beginning, or from what a snapshot of its own holds; the core decides nothing before all of it,
  and the tails of MARKET and SECURITY, were applied (`ready`).
- Every intent that verifies gets a decision, also one of an unlisted session: that is a denial on record
  and a notice on `guard.gateway`.  What a strategy sends beyond all measure is denied together (`intake`).
- Who may act now, `admit` says.  The order's way is followed on the word of sessions that are unproven or past (what
  was filled stays filled); prices, and the breaker's word, count from listed ones alone, else nothing is permitted.
- Nobody waits for the acknowledgement of a decision: who reads it reads what is stored.  A decision that
  was not stored when the process ended is a denial after the restart.
"""

from __future__ import annotations

import asyncio
import functools
from collections import OrderedDict
from typing import Final

from tallystick.components.gateway.decide import Gateway
from tallystick.components.gateway.intake import Intake
from tallystick.components.gateway.policy import Policy
from tallystick.runtime.bus.alarms import Alarms
from tallystick.runtime.bus.received import Received
from tallystick.runtime.deployment.root_watch import RootWatch
from tallystick.runtime.deployment.service import Service, ServiceContext
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.errors import ConfigError, Unverified
from tallystick.schemas.orders import Decision
from tallystick.schemas.standing import LISTED
from tallystick.schemas.subjects import ORDERS, Subject
from tallystick.schemas.trust import TrustRoot

# Newest messages of market data read at start: enough to know the last trade of each instrument; what
# is not among them denies until its next trade.
MARKET_TAIL: Final = 256
# Newest messages of SECURITY read at start, heartbeats and lists among them: about an hour.  An arming
# lease is found if it was stated or repeated since then; otherwise nothing is armed.
SECURITY_TAIL: Final = 20_000
# Unlisted sessions remembered: one notice each, so that a flood of intents is none.
MAX_UNLISTED: Final = 1024
# Intents of one message decided before everything else gets its turn: a few milliseconds.
TURN: Final = 16
# Intents that the broker stored longer ago than this are not read at the start, rubbish or not: they could only be
# denied, and whoever sent them has long given up.
INTENTS_S: Final = 600
FLOOD_NS: Final = 60 * SECOND
INTENT: Final = "order.intent."
DECISION: Final = "order.decision."


class GatewayProcess(Service):
    """See the module docstring."""

    def __init__(self) -> None:
        self._noticed: OrderedDict[bytes, None] = OrderedDict()
        self._flooding: dict[str, int] = {}

    async def start(self, ctx: ServiceContext) -> None:
        """Load the policy and subscribe.  Raises `ConfigError` for a policy or limits that are not right."""
        deployment = ctx.deployment
        policy = Policy.load(deployment.policy, ctx.trust)
        self._ctx = ctx
        RootWatch(ctx, self._superseded).start()
        self.gateway = Gateway(ctx.trust, policy, ctx.sessions, functools.partial(ctx.new, Decision))
        self.gateway.alarm = Alarms(ctx.notice, ctx.clock).say
        self.intake = Intake(self.gateway)
        ctx.log.info("policy", digest=policy.digest.hex(), folder=str(deployment.policy))
        ctx.subscribe(("md.trade.>", "ref.market.>"), self._on_market, MARKET_TAIL)
        ctx.subscribe(("control.breaker.>", "control.arm.>"), self._on_control, SECURITY_TAIL)
        ctx.subscribe(
            ("order.decision.>", "order.event.>", "order.correction.>", "fill.>", "position.>"), self._on_orders, "all"
        )
        ctx.subscribe("order.intent.>", self._on_intent, "all", newest_s=INTENTS_S)
        ctx.keep(ORDERS, self.gateway)

    async def ready(self) -> None:
        """History is applied: deny what it left undecided, and decide from here on."""
        for where, decision in self.gateway.caught_up(self._ctx.clock()):
            await self._ctx.room(ORDERS)
            self._publish(where, decision)

    def _superseded(self, newer: TrustRoot) -> None:
        """What we decide by is not in force any more: no decision from here on."""
        self._ctx.spawn(_end_by(newer))

    async def _on_market(self, received: Received) -> None:
        if (await self._ctx.admit(received)).kind == "unproven":
            # Nothing is permitted while the list is stale; the next trade after it prices again.
            self._ctx.metrics.add("market_with_stale_list")
            return
        self.gateway.apply(received.verified, self._ctx.clock())

    async def _on_control(self, received: Received) -> None:
        # A lease needs no listed session: the operator signed it.
        breaker = received.subject.kind == "control.breaker"
        standing = await self._ctx.admit(received) if breaker else LISTED
        self.gateway.apply(received.verified, self._ctx.clock(), standing)

    async def _on_orders(self, received: Received) -> None:
        if (await self._ctx.admit(received)).kind == "unproven":
            self._ctx.metrics.add("applied_with_stale_list")
        self.gateway.apply(received.verified, self._ctx.clock())

    async def _on_intent(self, received: Received) -> None:
        if received.live:
            try:
                await self._ctx.admit(received)
            except Unverified:
                pass  # no reason to drop it: the decision on each intent below says so, by the list as it is then
        for number, decision in enumerate(self.intake.decide(received.verified, self._ctx.clock()), start=1):
            # Crash point: decided but not stored.  The restarted gateway finds the intent without
            # a decision and denies it; a permit that nobody read reserves nothing there.
            self._publish(received.subject, decision)
            self._report(received, decision)
            if number % TURN == 0:
                # A message holds dozens: heartbeats and lists are heard between them.
                await asyncio.sleep(0)
        await self._ctx.room(ORDERS)

    def _publish(self, intent: Subject, decision: Decision) -> None:
        self._ctx.metrics.add(f"verdict_{decision.verdict}")
        self._ctx.publish(DECISION + intent.text.removeprefix(INTENT), decision)

    def _report(self, received: Received, decision: Decision) -> None:
        credential = received.credential
        if any(d.code == "INTAKE_RATE" for d in decision.denials):
            self._on_flood(received.subject.strategy, decision.denials[0].text)
        if not any(d.code == "SESSION_UNLISTED" for d in decision.denials) or credential.digest in self._noticed:
            return
        self._noticed[credential.digest] = None
        if len(self._noticed) > MAX_UNLISTED:
            self._noticed.popitem(last=False)
        self._ctx.notice(
            "SESSION_UNLISTED",
            f"an intent of {credential.component}/{credential.boot.hex()[:8]}, whose session is on no list",
            credential.digest,
        )

    def _on_flood(self, strategy: str, text: str) -> None:
        """Told once a minute of each strategy; its own denials say the rest."""
        now = self._ctx.clock()
        if abs(now - self._flooding.get(strategy, now - FLOOD_NS)) >= FLOOD_NS:
            self._flooding[strategy] = now
            self._ctx.notice("INTAKE_RATE", f"strategy-{strategy}: {text}")


async def _end_by(newer: TrustRoot) -> None:
    raise ConfigError(
        "TRUST_ROOT_NEWER",
        f"trust root {newer.number} was in force already: put back the folder's newest trust/, or sign anew with "
        "`tallystick admit`",
    )


SERVICE = GatewayProcess
