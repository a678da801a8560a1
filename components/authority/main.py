"""The authority's process: answers requests for sessions, publishes every one, lists them each second.

- Order of a hand-out: revocations of what it replaces, `CredentialIssued`, its PubAck, then the answer.
  Crash before the PubAck: nobody has the credential; after it: a listed session that nobody uses, gone
  when it expires.
- A session is given for what the trust root demands of its component, each time (`proofs`).
- Its own sessions are minted here too and listed like everybody's.
- A component that the operator revoked gets no session, whatever certificate it shows, until he admits it again
  (`revocations`).
- After a restart it takes up the newest list; sessions of its own earlier boots are revoked.

The authority is trusted to say who may act now.  Whoever controls it can mint any component's sessions;
the log shows each, and custody's operator-signed caps bound the loss.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from tallystick.components.authority.broker import BrokerAdmin
from tallystick.components.authority.certifier import Certifier, Shown
from tallystick.components.authority.door import Door
from tallystick.components.authority.issuer import Issued, Issuer
from tallystick.components.authority.own import OwnSessions
from tallystick.components.authority.proofs import MTLS, Proofs
from tallystick.components.authority.quota import Quotas
from tallystick.components.authority.reception import Reception
from tallystick.components.authority.renewals import ANNOUNCE_S, Renewals
from tallystick.components.authority.revocations import Revocations
from tallystick.components.authority.watches import MAX_REASON, Watches
from tallystick.infra.nats.claims import Accounts
from tallystick.runtime.bus.received import Received
from tallystick.runtime.deployment.certificates import issuing_authority, session_lifetime_s
from tallystick.runtime.deployment.folder import (
    KEY_ACTIVATION,
    KEY_OPERATOR,
    KEY_SYSTEM_ROLE,
    Deployment,
    pin_name,
    role_key_id,
)
from tallystick.runtime.deployment.methods import require_signed_methods
from tallystick.runtime.deployment.service import OwnSource, ServiceContext
from tallystick.runtime.keys import pki
from tallystick.runtime.keys.hsm import Token
from tallystick.runtime.keys.identity import Identity
from tallystick.runtime.keys.token_process import TokenProcess
from tallystick.schemas.enrolment import (
    Asked,
    ChallengeAnswer,
    SessionAnswer,
    StandingAnswer,
    decode_grant,
    decode_request,
    decode_revocation,
    decode_standing,
)
from tallystick.schemas.errors import TallystickError, Unverified
from tallystick.schemas.nats_jwt import BOOT_BYTES
from tallystick.schemas.security import (
    QUOTA_EXCEEDED,
    BootEnded,
    BreakerRearmed,
    ComponentRevocation,
    CredentialIssued,
    ListedSession,
    SessionList,
    SessionRevoked,
)
from tallystick.schemas.subjects import subject

if TYPE_CHECKING:
    from tallystick.runtime.bus.link import CredentialSource
    from tallystick.runtime.deployment.service import Setup

LIST_S: Final = 1.0
# Far within the history that is read at a start.
REPEAT_S: Final = 60.0
# Lists, heartbeats and issues of well over the longest lifetime: the newest list, and every live session's issue.
HISTORY: Final = 8_192
KEEPALIVE_S: Final = 5.0
LIST_SUBJECT: Final = subject("cred", component="authority")


class Authority(OwnSource):
    """See the module docstring.  Owns the issuer, the tokens and the HTTPS server."""

    def __init__(self) -> None:
        self._ctx: ServiceContext | None = None
        self._waiting: list[tuple[Issued, bytes]] = []
        self._proofs: Proofs
        self._number = 0
        self._lock = asyncio.Lock()
        self._history: list[Received] = []
        self._runner: web.AppRunner | None = None
        self._renewals: Renewals | None = None
        # credential hash -> (SHA-256 of the certificate that it was issued to, when it expires)
        self._certificates: dict[bytes, tuple[bytes, int]] = {}

    def credential_source(self, setup: Setup) -> CredentialSource:
        """Open the tokens and be the own source."""
        deployment: Deployment = setup.deployment
        require_signed_methods(deployment, setup.trust)
        self._setup = setup
        self._token = Token.open(deployment.token("roles"), "roles", setup.secrets[pin_name("roles")])
        self._signing = TokenProcess(deployment.token("signing"), "signing", setup.secrets[pin_name("signing")])
        signers: dict[str, Any] = {}

        def role_signer(component: str) -> Any:
            if component not in signers:
                signers[component] = self._token.signer(role_key_id(component))
            return signers[component]

        self._revocations = Revocations(deployment.state("authority") / "revocations.json", setup.trust)
        self._issuer = Issuer(setup.trust, role_signer, session_lifetime_s(deployment.config))
        self._certifier = Certifier(issuing_authority(deployment, self._token), deployment.config)
        keys = deployment.load_bus_keys()
        bus = deployment.bus()
        config = deployment.config
        self._broker = BrokerAdmin(
            url=f"tls://{config.host}:{config.broker.port}",
            tls=setup.identity.tls,
            accounts=Accounts(bus, keys, self._signing.signer(KEY_OPERATOR), self._signing.signer(KEY_ACTIVATION)),
            keys=keys,
            system_role=self._token.signer(KEY_SYSTEM_ROLE),
            clock=setup.clock,
            entropy=setup.entropy,
            oldest=self._issuer.oldest,
            lifetime_s=self._issuer.lifetime_s,
        )
        self._quotas = Quotas({name: c.quota for name, c in bus.components.items() if c.quota is not None})
        return OwnSessions(self, setup.identity)

    async def start(self, ctx: ServiceContext) -> None:
        """Read the newest list; everything else waits for `ready`."""
        self._ctx = ctx
        folder = ctx.deployment.state("authority")
        self._proofs = Proofs(self._setup.trust, folder, entropy=self._setup.entropy, spawn=ctx.tasks.start)
        self._watches = Watches(
            ctx, self._broker, self._quotas, self._certificates, trust=self._setup.trust, end=self._cut_off
        )
        ctx.subscribe("cred.>", self._on_cred, start=HISTORY)
        ctx.subscribe("control.breaker.>", self._on_breaker, start=HISTORY)

    async def ready(self) -> None:
        """Take up what lives, announce the own session, open the door."""
        ctx = self._context()
        self._take_up()
        replaced = self._issuer.supersede("authority", ctx.boot)
        waiting, self._waiting = self._waiting, []
        for issued, certificate in waiting:
            await self._announce(issued, certificate, MTLS)
        await self._revoked(replaced, "replaced by a new boot")
        ctx.spawn(self._list())
        ctx.spawn(self._repeat_revocations())
        self._watches.begin()
        await self._serve(ctx)

    # -- hand-out -------------------------------------------------------------------------------

    async def hand_out(self, component: str, boot: bytes, session_key: bytes, shown: Shown, method: str) -> str:
        """Issue, publish, and only then return the credential; `shown` is the certificate that asked, `method` how."""
        async with self._lock:
            # Whoever waited here may have been revoked meanwhile.
            self._require_allowed(component, shown.issued)
            issued = self._issuer.issue(component, boot, session_key, self._setup.clock(), shown.ends)
            await self._revoked(issued.replaced, "replaced by a new boot")
            await self._announce(issued, shown.digest, method)
            return issued.credential

    def _require_allowed(self, component: str, issued: int) -> None:
        self._quotas.require_open(component)
        self._revocations.require_allowed(component, issued)

    async def own_certificate(self, present: Identity) -> Identity | None:
        """The authority's own next certificate, kept and not shown yet; None while `present` will do."""
        if self._ctx is None or self._renewals is None or not self._ctx.link.connected:
            return None
        try:
            return await self._renewals.own(present)
        except TallystickError as exc:
            # The present one lives on; tried again with the next session.
            self._ctx.log.exception("the own certificate was not renewed", code=exc.code, text=exc.text)
            return None

    async def own_session(self, boot: bytes, session_key: bytes, certificate: bytes) -> str:
        """A credential for the authority itself: announced under its present session before it is used.

        Without a connection that cannot be: a PubAck, or a hand-out that waits for one, would never come, and
        what is sealed under a session that nobody announced counts for nothing.  Raises `TallystickError` then,
        which ends the process: the next boot begins with its announcement.
        """
        if self._ctx is not None and self._runner is not None and not self._ctx.link.connected:
            raise TallystickError("AUTHORITY_CUT_OFF", "the own session ended while the broker was away; starting anew")
        issued = self._issuer.issue("authority", boot, session_key, self._setup.clock())
        if self._ctx is None or self._runner is None:
            # The first one: nothing can be published before it exists.
            self._waiting.append((issued, certificate))
        else:
            try:
                await asyncio.wait_for(self._announce(issued, certificate, MTLS), ANNOUNCE_S)
            except TimeoutError as exc:
                raise Unverified("AUTHORITY_OWN", f"no acknowledgement of the own session in {ANNOUNCE_S} s") from exc
        return issued.credential

    def _announce(self, issued: Issued, certificate: bytes, method: str) -> asyncio.Future[int]:
        ctx, session = self._context(), issued.session
        self._certificates[session.credential_hash] = (certificate, session.expires_at)
        return ctx.publish(
            subject("cred", component=session.component),
            ctx.new(
                CredentialIssued,
                boot=session.boot,
                session_key=session.session_key,
                credential_hash=session.credential_hash,
                issued_at=issued.issued_at,
                expires_at=session.expires_at,
                method=method,
                certificate=certificate,
            ),
        )

    async def _revoked(self, sessions: tuple[ListedSession, ...], reason: str) -> None:
        """Tell everybody, then the broker: verifiers refuse from the first moment on."""
        ctx = self._context()
        for component, boot in sorted({(s.component, s.boot) for s in sessions}):
            await ctx.publish(subject("cred", component=component), ctx.new(SessionRevoked, boot=boot, reason=reason))
        if sessions:
            self._publish_list()
            try:
                await self._broker.revoke(sessions)
            except Unverified as exc:
                ctx.notice("BROKER_REVOCATION", f"sessions are revoked for verifiers, not at the broker: {exc}")

    async def _cut_off(self, component: str, reason: str) -> None:
        async with self._lock:
            ended = self._issuer.revoke(component)
            if not ended:
                # Whoever it was had no session of ours; what was done in the component's name is told all the same.
                ctx, where = self._context(), subject("cred", component=component)
                await ctx.publish(where, ctx.new(SessionRevoked, boot=bytes(BOOT_BYTES), reason=reason))
            await self._revoked(ended, reason)

    def _say_revocation(self, component: str, note: str) -> asyncio.Future[int]:
        ctx = self._context()
        return ctx.publish(subject("cred", component=component), ctx.new(ComponentRevocation, note=note))

    async def _repeat_revocations(self) -> None:
        while True:
            for component, note in self._revocations.notes:
                self._say_revocation(component, note)
            await asyncio.sleep(REPEAT_S)

    # -- the list -------------------------------------------------------------------------------

    def _publish_list(self) -> None:
        ctx = self._context()
        self._number += 1
        ctx.publish(
            LIST_SUBJECT,
            ctx.new(SessionList, number=self._number, live=self._issuer.live, revoked=self._issuer.revoked),
        )

    async def _list(self) -> None:
        ctx = self._context()
        while True:
            for session in self._issuer.expire(ctx.clock()):
                ctx.publish(
                    subject("cred", component=session.component),
                    ctx.new(BootEnded, boot=session.boot, reason="its last session expired"),
                )
            self._publish_list()
            await asyncio.sleep(LIST_S)

    def _on_cred(self, received: Received) -> None:
        if self._runner is None:
            self._history.append(received)
            return
        if received.credential.boot != self._context().boot:
            self._context().notice(
                "SECOND_AUTHORITY", f"boot {received.credential.boot.hex()[:8]} publishes as authority"
            )

    async def _on_breaker(self, received: Received) -> None:
        if self._runner is None:
            self._history.append(received)
            return
        for event in received.events:
            if isinstance(event, BreakerRearmed):
                await self._watches.rearmed(received.subject.scope, event)

    def _take_up(self) -> None:
        now = self._setup.clock()
        issues: dict[bytes, list[ListedSession]] = {}
        for received in self._history:
            for event in received.events:
                match event:
                    case SessionList():
                        self._number = max(self._number, event.number)
                        self._issuer.restore(event.live, event.revoked, now)
                    case CredentialIssued():
                        session = ListedSession(
                            component=received.subject.component,
                            boot=event.boot,
                            credential_hash=event.credential_hash,
                            expires_at=event.expires_at,
                            session_key=event.session_key,
                        )
                        issues.setdefault(event.boot, []).append(session)
                        self._certificates[event.credential_hash] = (event.certificate, event.expires_at)
                        self._proofs.take_up(session.component, event.method, event.issued_at)
                        self._issuer.restore((session,), (), now)
                    case ComponentRevocation():
                        self._revocations.take_up(event.note)
                    case SessionRevoked() | BootEnded():
                        self._issuer.forget_boot(event.boot, now)
                        if event.reason.startswith(QUOTA_EXCEEDED):
                            self._quotas.cut(received.subject.component, event.ts)
                            self._broker.remember_closed(received.subject.component)
                        self._broker.remember_revoked(
                            tuple(s for s in issues.get(event.boot, ()) if s.expires_at > now)
                        )
                    case BreakerRearmed():
                        if self._watches.lets_in(received.subject.scope, event):
                            self._broker.remember_closed(received.subject.scope, closed=False)
                    case _:
                        pass
        self._history.clear()

    # -- the door -------------------------------------------------------------------------------

    async def _serve(self, ctx: ServiceContext) -> None:
        deployment: Deployment = self._setup.deployment
        tls = self._setup.identity.server()
        reception = Reception(ctx, deployment.name)
        reception.post("/v1/session", self._on_session)
        reception.post("/v1/challenge", self._on_challenge)
        self._renewals = Renewals(
            ctx, self._certifier, self._issuer, self._lock, deployment=deployment.name, allowed=self._require_allowed
        )
        reception.post("/v1/certificate", self._renewals.answer)
        reception.post("/v1/end", self._on_end)
        reception.post("/v1/revoke", self._on_revoke, operator=True)
        reception.post("/v1/standing", self._on_standing, operator=True)
        reception.post("/v1/grant", self._on_grant, operator=True)
        self._runner = web.AppRunner(reception.app, access_log=None, keepalive_timeout=KEEPALIVE_S)
        await self._runner.setup()
        ctx.at_stop(self._runner.cleanup)
        if (server := self._runner.server) is None:
            raise TypeError("a runner that was set up has a server")
        door = Door(server, tls, deployment.name, ctx.tasks)
        door.open(deployment.config.host, deployment.config.authority.port)
        ctx.at_stop(door.close)

    async def _on_session(self, component: str, der: bytes, body: bytes) -> SessionAnswer:
        shown = Shown.of(der)
        self._revocations.require_allowed(component, shown.issued)
        request = decode_request(body)
        boot, key = self._issuer.check(request, component, shown.digest)
        asked = Asked(self._setup.trust.deployment, component, boot, key, shown.digest)
        method = await self._proofs.require(asked, request.evidence, self._setup.clock())
        return SessionAnswer(credential=await self.hand_out(component, boot, key, shown, method))

    async def _on_challenge(self, component: str, der: bytes, body: bytes) -> ChallengeAnswer:
        return self._proofs.challenge(component, pki.fingerprint(der), body, self._setup.clock())

    async def _on_grant(self, _component: str, _der: bytes, body: bytes) -> dict[str, str]:
        return {"component": self._proofs.grant(decode_grant(body).note)}

    async def _on_end(self, component: str, der: bytes, body: bytes) -> dict[str, int]:
        ctx = self._context()
        boot, key = self._issuer.check(decode_request(body), component, pki.fingerprint(der))
        async with self._lock:
            self._issuer.end(component, boot, key)
            await ctx.publish(subject("cred", component=component), ctx.new(BootEnded, boot=boot, reason="stopped"))
            self._publish_list()
        return {}

    async def _on_revoke(self, _component: str, _der: bytes, body: bytes) -> dict[str, int]:
        note = decode_revocation(body).note
        async with self._lock:
            # Crash after this: it is in force at the next start, which says so on the bus.
            said = self._revocations.say(note)
            stored = self._say_revocation(said.component, note)
            ended = self._issuer.revoke(said.component) if said.revoked else ()
            await self._revoked(ended, f"revoked by the operator: {said.reason}"[:MAX_REASON])
            await asyncio.wait((stored,), timeout=ANNOUNCE_S)
        return {"revoked": len(ended)}

    async def _on_standing(self, _component: str, _der: bytes, body: bytes) -> StandingAnswer:
        component = decode_standing(body).component
        self._setup.trust.component(component)
        said = self._revocations.standing(component)
        return StandingAnswer(0, revoked=False) if said is None else StandingAnswer(said.number, said.revoked)

    def _context(self) -> ServiceContext:
        if self._ctx is None:
            raise Unverified("AUTHORITY_STARTING", "the authority has no session yet")
        return self._ctx


SERVICE = Authority
