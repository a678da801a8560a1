"""The custody process: reads what control says and `cred.>`, opens its token, answers execution on its socket.

The socket is open before the bus has told anything: cancels are signed from the first moment, orders once
breaker, sessions and a lease are known.  What was signed is summed up on `guard.custody` each second, with
the hash of the journal's last line; what was refused is told there, too (`refusals`).
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from typing import Final

from tallystick import venues
from tallystick.components.custody.journal import Journal
from tallystick.components.custody.permits import Permits
from tallystick.components.custody.refusals import Refusals
from tallystick.components.custody.server import COMPONENT as NAME
from tallystick.components.custody.server import Lease, SigningServer
from tallystick.runtime.bus.received import Received
from tallystick.runtime.deployment import apart
from tallystick.runtime.deployment.own_token import open_own_token
from tallystick.runtime.deployment.root_watch import RootWatch
from tallystick.runtime.deployment.service import Service, ServiceContext
from tallystick.runtime.keys.signers import HsmSigner
from tallystick.schemas.errors import ConfigError
from tallystick.schemas.security import ConfigChanged, Notice
from tallystick.schemas.signing import SOCKET
from tallystick.schemas.subjects import subject
from tallystick.venues import Requests
from tallystick.venues.key_check import KeyCheck
from tallystick.venues.key_holder import KeyHolder

REPORT_S: Final = 1.0
# With the venue away, cancels are signed all the same.
CHECKED_S: Final = 5.0
# Arming leases last for hours and stand between breaker heartbeats.
CONTROL_TAIL: Final = 8_192


class _Usable:
    """The vault's lease on the key's secrets, and the venue's word that the key is fit: no order without both."""

    def __init__(self, leased: Lease, check: KeyCheck) -> None:
        self._leased = leased
        self._check = check

    def require_live(self, now: int) -> None:
        """See `server.Lease`."""
        self._leased.require_live(now)
        self._check.require(now)


class Custody(Service):
    """The component; `allowed_uids` may connect (default: whoever started us), `checkpoint` is for tests (`server`).

    It has a user of its own where that can be (`apart`); execution runs as whoever started both.
    """

    def __init__(
        self, allowed_uids: frozenset[int] | None = None, checkpoint: Callable[[str], None] = lambda _: None
    ) -> None:
        self._checkpoint = checkpoint
        self._allowed_uids = allowed_uids if allowed_uids is not None else frozenset({apart.STARTED_AS})

    def status(self) -> dict[str, str]:
        """As which user it runs, and which key it signs with."""
        return ({"user": apart.standing()} if apart.standing() else {}) | {"key": self._holder.name}

    async def start(self, ctx: ServiceContext) -> None:
        """Open token, journal and socket; then read."""
        deployment = ctx.deployment
        self._ctx = ctx
        venue = deployment.config.venue.name
        record = ctx.trust.venues.get(venue)
        if record is None:
            raise ConfigError("VENUE", f"{venue} is not in trust root {ctx.trust.number}")
        adapter = venues.adapter(record.kind)
        instruments = tuple(i for i in ctx.trust.instruments if i.venue == venue)

        async def make(api_key: str, signer: HsmSigner) -> Requests:
            # Half a second of imports, away from the loop that keeps the session alive.
            return await asyncio.to_thread(adapter.request_builder, record, instruments, api_key, signer, ctx.clock)

        tls = venues.client_tls(deployment.venue_ca)
        self._check = KeyCheck(ctx, adapter, record.host, "trade", tls)

        async def use(api_key: str, signer: HsmSigner) -> None:
            # Whoever wrote it into the vault: what the venue says of it counts.
            await self._check.require_fit(api_key, signer)
            self._server.use(venue, await make(api_key, signer), signer.public)
            self._state_key(signer.public)

        self._holder = holder = KeyHolder(ctx, open_own_token(ctx), adapter, record.host, use)
        signer = holder.signer()
        builder = await make(holder.api_key, signer)
        self._journal = Journal(deployment.state(NAME), ctx.clock)
        ctx.at_stop(self._journal.close)
        self._refusals = Refusals(deployment.state(NAME), ctx.clock)
        ctx.at_stop(self._refusals.close)
        # After the server has stopped: nothing is refused that nobody hears of.
        ctx.at_stop(lambda: self._tell(last=True))
        self._permits = Permits(
            ctx.trust,
            ctx.boot,
            ctx.sessions,
            ctx.clock(),
            time.monotonic_ns,
            self._journal.spent,
            self._journal.signed,
        )
        self._watch = RootWatch(ctx, self._permits.superseded_by)
        self._watch.start()
        self._server = SigningServer(
            self._permits,
            ctx.verifier,
            {venue: builder},
            self._journal,
            self._refusals,
            ctx.clock,
            self._allowed_uids,
            signer.public,
            ctx.tasks,
            self._checkpoint,
            ctx.require_listed,
            lease=_Usable(ctx.leased, self._check),
        )
        ctx.at_stop(self._server.stop)
        await self._server.start(deployment.seat(NAME) / SOCKET)
        ctx.subscribe("control.breaker.>", self._on_breaker)
        ctx.subscribe("control.arm.>", self._on_arm, start=CONTROL_TAIL)
        holder.start()
        ctx.spawn(self._check.run(holder))
        self._state_key(signer.public)
        ctx.spawn(self._report())

    async def ready(self) -> None:
        """Who trades as soon as we are ready should find the key looked at."""
        await self._check.asked(CHECKED_S)

    async def _on_breaker(self, received: Received) -> None:
        standing = await self._ctx.admit(received)
        self._permits.on_breaker(received.verified, standing, self._ctx.clock())

    def _on_arm(self, received: Received) -> None:
        self._permits.on_arm(received.verified, self._ctx.clock())

    def _state_key(self, public: bytes) -> None:
        ctx = self._ctx
        digest = hashlib.sha256(public).digest()
        text = (
            f"public key {public.hex()}, journal line {self._journal.number}, {self._journal.torn} torn, "
            f"refusal {self._refusals.number} with SHA-256 {self._refusals.head}"
        )
        ctx.publish(
            subject("control.config", component=NAME),
            ctx.new(ConfigChanged, name="venue-key", digest=digest, text=text),
        )

    async def _report(self) -> None:
        ctx, guard = self._ctx, subject("guard", component=NAME)
        reported = self._journal.number
        while True:
            await asyncio.sleep(REPORT_S)
            if self._journal.number != reported:
                text = (
                    f"signed journal lines {reported + 1} to {self._journal.number}, evidence is the last one's SHA-256"
                )
                reported, head = self._journal.number, bytes.fromhex(self._journal.head)
                ctx.publish(guard, ctx.new(Notice, code="SIGNED", text=text, evidence=head))
            self._tell()

    def _tell(self, *, last: bool = False) -> None:
        for told in self._refusals.report(last=last):
            self._ctx.notice(told.code, told.text, told.evidence)


SERVICE = Custody
