"""What the authority looks after at the broker again and again: account tokens, connections, what everybody sends.

- Account tokens are pushed anew in half their life, and compared with what was pushed.
- A connection that uses a session with another certificate than it was issued to, or one that nobody lists, is kicked.
- Whoever sends more than its quota is cut off, until the operator's own note lets it in (`quota`).

Nothing here hands out a session: whoever controls the broker's answers can at most have connections kicked and senders
cut off.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from tallystick.components.authority.broker import BrokerAdmin
from tallystick.components.authority.quota import Quotas
from tallystick.runtime.deployment.service import ServiceContext
from tallystick.schemas.errors import Malformed, Unverified
from tallystick.schemas.security import QUOTA_EXCEEDED, BreakerRearmed
from tallystick.schemas.trust import TrustRoot, open_rearm

MAX_REASON: Final = 400
# Half an account token's life.  Each refresh silences waiting pulls until their readers notice (seconds).
REFRESH_S: Final = 12 * 3600.0
CONNECTIONS_S: Final = 5.0
# A flood is seen within this, and cut off a moment later.
COUNT_S: Final = 0.25
RESOLVER_S: Final = 60.0
EXPIRED_NS: Final = 10_000_000_000


class Watches:
    """`begin` starts them.

    `certificates`: credential hash -> (SHA-256 of the certificate that it was issued to, when it expires), which the
    issuer fills and this empties; `end` revokes a component's sessions and says why.
    """

    def __init__(
        self,
        ctx: ServiceContext,
        broker: BrokerAdmin,
        quotas: Quotas,
        certificates: dict[bytes, tuple[bytes, int]],
        *,
        trust: TrustRoot,
        end: Callable[[str, str], Awaitable[None]],
    ) -> None:
        self._ctx = ctx
        self._broker = broker
        self._quotas = quotas
        self._certificates = certificates
        self._trust = trust
        self._end = end

    def begin(self) -> None:
        """Until the component stops."""
        for work in (self._refresh(), self._watch_connections(), self._watch_resolver(), self._watch_quotas()):
            self._ctx.spawn(work)

    # -- account tokens -------------------------------------------------------------------------

    async def _refresh(self) -> None:
        ctx = self._ctx
        work, pause = self._broker.adopt, REFRESH_S
        while True:
            try:
                await work()
            except (Unverified, Malformed) as exc:
                ctx.notice("ACCOUNT_TOKENS", f"not as they should be at the broker, trying again in a minute: {exc}")
                pause = RESOLVER_S
            else:
                work, pause = self._broker.refresh, REFRESH_S
            await asyncio.sleep(pause)

    async def _watch_resolver(self) -> None:
        ctx = self._ctx
        while True:
            await asyncio.sleep(RESOLVER_S)
            try:
                found = await self._broker.rolled_back()
            except Unverified as exc:
                ctx.log.warning("account tokens unknown", code=exc.code, text=exc.text)
                continue
            for account in found:
                ctx.notice(
                    "ACCOUNT_ROLLBACK", f"the broker held another token of {account} than was pushed; pushed again"
                )

    # -- connections ----------------------------------------------------------------------------

    async def _watch_connections(self) -> None:
        ctx = self._ctx
        while True:
            await asyncio.sleep(CONNECTIONS_S)
            now = ctx.clock()
            # The broker ends an expired connection itself, within its clock's second.
            for expired in [k for k, (_, ends) in self._certificates.items() if ends + EXPIRED_NS <= now]:
                del self._certificates[expired]
            try:
                found = await self._broker.intruders(lambda: {k: v[0] for k, v in self._certificates.items()})
            except Unverified as exc:
                ctx.log.warning("connections unknown", code=exc.code, text=exc.text)
                continue
            for mismatch in found:
                ctx.notice(mismatch.code, f"connection {mismatch.cid} is kicked: {mismatch.text}")

    # -- quotas ---------------------------------------------------------------------------------

    async def _watch_quotas(self) -> None:
        ctx = self._ctx
        while True:
            try:
                await self._broker.count(self._quotas.components, COUNT_S, self._on_counts)
            except (Unverified, Malformed) as exc:
                ctx.log.warning("counts unknown", code=exc.code, text=exc.text)
                await asyncio.sleep(COUNT_S)

    async def _on_counts(self, counts: Mapping[str, tuple[int, int]]) -> None:
        now = self._ctx.clock()
        for component, why in self._quotas.observe(counts, now).items():
            await self._cut_off(component, why, now)
        for component in self._quotas.over(now):
            await self._let_in(component)

    async def _cut_off(self, component: str, why: str, now: int) -> None:
        ctx = self._ctx
        ctx.notice("QUOTA_EXCEEDED", f"{component} is cut off: {why}")
        self._quotas.cut(component, now)
        try:
            # The broker first: every moment costs all others.
            await self._broker.close_account(component)
        except Unverified as exc:
            ctx.notice("BROKER_REVOCATION", f"{component} is beyond its quota and could not be cut off: {exc}")
        await self._end(component, f"{QUOTA_EXCEEDED}: {why}"[:MAX_REASON])

    async def _let_in(self, component: str) -> None:
        try:
            await self._broker.open_account(component)
        except Unverified as exc:
            self._ctx.notice("BROKER_REVOCATION", f"{component} may come back, the broker was not told: {exc}")

    async def rearmed(self, scope: str, event: BreakerRearmed) -> None:
        """A breaker is closed again: who was cut off comes back where the operator says so."""
        if self.lets_in(scope, event):
            await self._let_in(scope)

    def lets_in(self, scope: str, event: BreakerRearmed) -> bool:
        """Whether it is the operator's own note for the scope of a component that was cut off."""
        try:
            named = open_rearm(event.note, self._trust).scope
        except (Unverified, Malformed) as exc:
            self._ctx.log.warning("a note that lets nobody in", scope=scope, code=exc.code)
            return False
        return named == scope and self._quotas.rearmed(scope)
