"""The attacker inside: what the demo, and whoever tests a deployment, performs against it for real.

The intruder owns one compromised strategy wholly (its certificate, its session, its account at the
broker), reads along what the console reads, and for the last attack has stolen that strategy's role key.
Every attack goes over the real broker with real credentials; nothing here tells anybody what to answer.
What became of it is looked up on the bus afterwards (`outcome`).
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from decimal import Decimal
from typing import Final

import msgspec

from tallystick.components.console.state import DeskState
from tallystick.runtime.bus.enrolment import AuthorityClient
from tallystick.runtime.bus.link import ConnectionLost, CredentialSource, Link, Outgoing, OwnSession
from tallystick.runtime.bus.log import Log
from tallystick.runtime.bus.metrics import Metrics
from tallystick.runtime.deployment.folder import Deployment, passphrase_name, pin_name, role_key_id
from tallystick.runtime.deployment.proof import proof_of
from tallystick.runtime.keys.identity import Identity
from tallystick.runtime.keys.keystore import Keystore
from tallystick.runtime.keys.token_process import TokenProcess
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.credential import Credential, open_credential
from tallystick.schemas.errors import Unverified
from tallystick.schemas.ids import EventIds
from tallystick.schemas.nats_jwt import SessionKey, Signer, decode_key, encode_jwt, user_claims
from tallystick.schemas.orders import Intent
from tallystick.schemas.registry import encode_events
from tallystick.schemas.seal import ChainWriter, Payload
from tallystick.schemas.subjects import ORDERS, Subject, subject
from tallystick.schemas.trust import TrustRoot

# The gateway answers in milliseconds; a loaded machine takes longer.
OUTCOME_S: Final = 15.0


class Attack(msgspec.Struct, kw_only=True):
    """One attack: what was done, what must become of it, and what did.

    `digest` is the SHA-256 of the sealed bytes that were published, `intent_id` of the order that they
    ask for; `refused_as` lists the codes that count as the refusal in question.
    """

    name: str
    told: str
    refused_as: tuple[str, ...]
    digest: bytes = b""
    intent_id: bytes = b""
    outcome: str = ""
    held: bool = False


class _Impostor:
    """Signs with one key and claims another."""

    def __init__(self, claimed: bytes, key: SessionKey) -> None:
        self.public = claimed
        self._key = key

    def sign(self, data: bytes) -> bytes:
        return self._key.sign(data)


class _StolenRoleKey:
    """Mints sessions with a role key that should never have left its token's owner; the authority knows nothing."""

    def __init__(self, component: str, role: Signer, trust: TrustRoot) -> None:
        self._component = component
        self._role = role
        self._trust = trust

    async def obtain(self, key: SessionKey, boot: bytes) -> str:
        record = self._trust.component(self._component)
        now = time.time_ns() // SECOND
        account = decode_key("A", record.account)
        claims = user_claims(
            self._component, boot, key.public, self._role.public, account, now, now + 60, key.public.hex()[:32]
        )
        return encode_jwt(self._role, "A", claims)


class Intruder:
    """The compromised strategy `name` and its owner's tricks; one instance performs each attack once."""

    def __init__(
        self, deployment: Deployment, keystore: Keystore, trust: TrustRoot, name: str, symbol: str, log: Log
    ) -> None:
        self.component = f"strategy-{name}"
        self._deployment = deployment
        self._keystore = keystore
        self._trust = trust
        self._log = log
        self._ids = EventIds(os.urandom(8))
        self.subject: Subject = subject(
            "order.intent", strategy=name, venue=deployment.config.venue.name, symbol=symbol
        )
        passphrase = keystore[passphrase_name(self.component)]
        identity = Identity(deployment.name, deployment.issuing_ca, deployment.identity(self.component), passphrase)
        self._tls = identity.tls
        config = deployment.config
        self._authority = AuthorityClient(
            f"https://{config.host}:{config.authority.port}",
            identity,
            deployment=deployment.name,
            component=self.component,
            clock=time.time_ns,
            log=log,
            # What the strategy shows, its owner shows as well.
            proof=proof_of(deployment, trust.component(self.component).method, self.component, {}, time.time_ns),
        )
        self._link: Link | None = None
        self._first: OwnSession | None = None

    def _make_link(self, source: CredentialSource) -> Link:
        config = self._deployment.config
        return Link(
            component=self.component,
            boot=os.urandom(16),
            url=f"tls://{config.host}:{config.broker.port}",
            tls=self._tls,
            trust=self._trust,
            source=source,
            clock=time.time_ns,
            entropy=os.urandom,
            metrics=Metrics(),
            log=self._log,
        )

    async def enter(self) -> None:
        """Log in as the compromised strategy, and keep the first session for later."""
        self._link = self._make_link(self._authority)
        await self._link.start()
        self._first = self._link.session

    async def leave(self) -> None:
        """Log out."""
        if self._link is not None:
            await self._link.stop()

    def _intent(self) -> Intent:
        now = time.time_ns()
        return Intent(id=self._ids.next(now), ts=now, side="buy", type="market", qty=Decimal(1))

    async def _publish(self, link: Link, where: str, payload: bytes) -> None:
        connection = await link.connection()
        flight = await connection.publish(Outgoing(where, payload, os.urandom(16).hex()))
        async with asyncio.timeout(3.0):
            await flight.acknowledged()

    def _sealed(self, credential: Credential, signer: Signer, intent: Intent) -> bytes:
        chain = ChainWriter(credential, signer, ORDERS)
        return chain.seal([(self.subject.text, encode_events("order.intent", (intent,)))], time.time_ns())[0][1]

    def _ready(self) -> tuple[Link, OwnSession]:
        if self._link is None or self._first is None:
            raise Unverified("INTRUDER", "enter first")
        return self._link, self._first

    async def forge(self, captured: bytes) -> Attack:
        """An intent under another strategy's stolen credential, signed with the intruder's own key."""
        link, _ = self._ready()
        stolen = open_credential(msgspec.msgpack.decode(captured, type=Payload).credential, self._trust)
        intent = self._intent()
        sealed = self._sealed(stolen, _Impostor(stolen.session_key, SessionKey(os.urandom(32))), intent)
        await self._publish(link, self.subject.text, sealed)
        return Attack(
            name="forged intent",
            told=f"sealed under the stolen credential of {stolen.component}, with another key",
            refused_as=("SIGNATURE",),
            digest=hashlib.sha256(sealed).digest(),
            intent_id=intent.id,
        )

    async def trespass(self, victim: Subject) -> Attack:
        """A publish straight to another strategy's subject."""
        link, _ = self._ready()
        connection = await link.connection()
        before = link.refusals
        await connection.publish(Outgoing(victim.text, b"forged", os.urandom(16).hex()))
        attack = Attack(
            name="foreign subject",
            told=f"{self.component} publishes to {victim.text}",
            refused_as=("permissions violation",),
        )
        for _ in range(300):
            if link.refusals > before:
                attack.held, attack.outcome = True, "the broker refused it: permissions violation"
                return attack
            await asyncio.sleep(0.01)
        attack.outcome = "the broker said nothing"
        return attack

    async def replay(self) -> Attack:
        """A genuine sealed intent of the intruder's own, published a second time."""
        link, _ = self._ready()
        session = link.session  # not the first one, which may be over by now: the original is to be accepted
        sealed = self._sealed(session.credential, session.key, self._intent())
        for _ in range(2):
            await self._publish(link, self.subject.text, sealed)
        return Attack(
            name="replayed message",
            told="one genuine sealed intent, published twice",
            refused_as=("REPLAY",),
            digest=hashlib.sha256(sealed).digest(),
        )

    async def redirect(self, captured: bytes, victim: Subject) -> Attack:
        """Another strategy's genuine sealed intent, published on the intruder's own subject."""
        link, _ = self._ready()
        await self._publish(link, self.subject.text, captured)
        return Attack(
            name="redirected message",
            told=f"a genuine sealed message of {victim.strategy}, on {self.subject.text}",
            refused_as=("MERKLE_ROOT", "REPLAY", "SCOPE"),
            digest=hashlib.sha256(captured).digest(),
        )

    async def expired(self) -> Attack:
        """An intent sealed with the session that the intruder had first, after its end."""
        link, first = self._ready()
        wait = (first.credential.expires_at - time.time_ns()) / 1e9
        await asyncio.sleep(max(0.0, wait) + 0.5)
        intent = self._intent()
        sealed = self._sealed(first.credential, first.key, intent)
        await self._publish(link, self.subject.text, sealed)
        return Attack(
            name="expired credential",
            told="an intent sealed by a session whose credential ended half a second before",
            refused_as=("CREDENTIAL_EXPIRED", "FORK", "REPLAY"),
            digest=hashlib.sha256(sealed).digest(),
            intent_id=intent.id,
        )

    async def _once(self, source: CredentialSource) -> tuple[Intent, bytes]:
        """Log in anew, publish one intent, and go; the intent and its message."""
        link = self._make_link(source)
        await link.start()
        try:
            intent, session = self._intent(), link.session
            sealed = self._sealed(session.credential, session.key, intent)
            await self._publish(link, self.subject.text, sealed)
        finally:
            await link.stop()
        return intent, sealed

    async def _again(self, source: CredentialSource, tries: int) -> tuple[Intent, bytes]:
        """The authority has whom it never listed thrown off within seconds: sometimes before he was heard."""
        try:
            return await self._once(source)
        except ConnectionLost:
            if tries == 1:
                raise
        return await self._again(source, tries - 1)

    async def unlisted(self) -> Attack:
        """An intent of a session minted with the stolen role key, which the authority never handed out."""
        token = await asyncio.to_thread(
            TokenProcess, self._deployment.token("roles"), "roles", self._keystore[pin_name("roles")]
        )
        try:
            source = _StolenRoleKey(self.component, token.signer(role_key_id(self.component)), self._trust)
            intent, sealed = await self._again(source, 3)
        finally:
            token.close()
        return Attack(
            name="unlisted session",
            told="a session minted with the stolen role key: the broker lets it in, the authority never listed it",
            refused_as=("SESSION_UNLISTED", "UNLISTED"),
            digest=hashlib.sha256(sealed).digest(),
            intent_id=intent.id,
        )


async def outcome(attack: Attack, state: DeskState) -> Attack:
    """Look up on the bus what became of an attack: the gateway's dead letter or its denial."""
    for _ in range(int(OUTCOME_S / 0.05)):
        letters = state.dead_by_digest.get(attack.digest, {}) if attack.digest else {}
        line = state.orders.get(attack.intent_id) if attack.intent_id else None
        if letters.get("gateway") in attack.refused_as:
            attack.held, attack.outcome = True, f"the gateway refused it: {letters['gateway']}"
        elif line is not None and line.verdict == "deny" and set(line.codes) & set(attack.refused_as):
            attack.held, attack.outcome = True, f"the gateway denied it: {', '.join(line.codes)}"
        elif line is not None and line.verdict == "permit":
            attack.held, attack.outcome = False, "PERMITTED"
        else:
            await asyncio.sleep(0.05)
            continue
        return attack
    if not attack.held:
        attack.outcome = attack.outcome or f"no refusal seen within {OUTCOME_S:.0f} s"
    return attack
