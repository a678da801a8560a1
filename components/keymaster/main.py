"""The keymaster process: changes the venue's API keys of custody and portfolio, one rotation at a time.

- It alone holds the master account's key, in a token of its own.  It never trades: it reads no order and no permit.
- A key is changed `rotation.every_s` after it was changed last, and when an operator orders it (`rotation_orders`), whose
  signature it checks itself.
- Each state of a rotation is kept in a sealed file before its act (`rotation`), and told on `control.config.keymaster`.
- What it does not know of the component's key, the component says: by the hash of its id it is found in the venue's list.
- A key that an operator has revoked is deleted before there is another one, also where its component does not answer and
  we made the key.  Of its name in the token: so an order that comes twice, or late, meets no key that came after it.
- One that went back is tried again after `AGAIN_NS`, and people hear of it.

An attacker who controls it can at most stop trading at that venue, or trade there by a key of his own, which stands in the
venue's list; he withdraws nothing, since no key that it makes may, and it has none that does.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets as entropy
from pathlib import Path
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag

from tallystick import venues
from tallystick.components.keymaster import rotation
from tallystick.components.keymaster.ports import Holder, KeysAtVenue
from tallystick.components.keymaster.rotation import ENDS, RETRY_NS, KeyRef, Refused, Rotation, Unclear
from tallystick.infra.nats.topology import KEYMASTER
from tallystick.runtime.bus.received import Received
from tallystick.runtime.deployment.folder import KEY_VENUE, api_key_name, passphrase_name
from tallystick.runtime.deployment.own_token import open_own_token
from tallystick.runtime.deployment.service import Service, ServiceContext
from tallystick.runtime.keys.sealed_file import SealedFile
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.errors import NOT_DECODED, ConfigError
from tallystick.schemas.rotation_orders import open_rotation_order
from tallystick.schemas.security import KeyAnswered, KeyRotation, RotationOrdered
from tallystick.schemas.subjects import subject
from tallystick.venues.client import VenueClient
from tallystick.venues.keys import Role, fingerprint

# Whose keys are changed, and what each is for.
HOLDERS: Final[dict[str, Role]] = {"custody": "trade", "portfolio": "read"}
AGAIN_NS: Final = 3_600 * SECOND
LOOK_S: Final = 1.0
# One that cannot begin does not keep the other one from it.
HOLD_NS: Final = 5 * SECOND
MAGIC: Final = b"tallystick rotation v1\n"
MAX_FILE: Final = 65_536


class Kept(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is kept of one component's key: the last rotation (None: none yet), and when the next is due (Unix ns)."""

    rotation: Rotation | None = None
    due: int = 0


def next_due(state: Rotation, now: int, every_ns: int) -> int:
    """When a key is changed again after `state` has ended at `now`."""
    return now + (every_ns if state.step == "forgotten" else min(AGAIN_NS, every_ns))


def revoked(holder: str) -> str:
    """Under what name the board holds the key that was revoked last."""
    return f"{holder}.revoked"


class Keeper:
    """One component's file."""

    def __init__(self, ctx: ServiceContext, holder: str) -> None:
        folder: Path = ctx.deployment.state(KEYMASTER)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = folder / f"{holder}.rotation"
        secret = ctx.secret(passphrase_name(KEYMASTER))
        self._file = SealedFile(self._path, MAGIC, ctx.deployment.name, KEYMASTER, secret, most=MAX_FILE)

    def read(self) -> Kept:
        """What is kept.  Raises `ConfigError` for a file that is not ours: a rotation may be under way."""
        try:
            return msgspec.json.decode(self._file.read(), type=Kept)
        except FileNotFoundError:
            return Kept()
        except (OSError, InvalidTag, *NOT_DECODED):
            # What a decoder says could quote a key's id.
            raise ConfigError(
                "ROTATION_STATE",
                f"{self._path} is damaged or another's: move it away, and look at the venue's list for keys `ts-…`",
            ) from None

    def write(self, kept: Kept) -> None:
        """Keep it, durably.  Raises `OSError`."""
        self._file.write(msgspec.json.encode(kept))


class Job:
    """The key of one component: when it is changed, and how far that is."""

    def __init__(self, ctx: ServiceContext, name: str, holder: Holder, venue: KeysAtVenue, every_ns: int) -> None:
        self._ctx = ctx
        self.name = name
        self.holder = holder
        self._venue = venue
        self._every_ns = every_ns
        self._keeper = Keeper(ctx, name)
        self._kept = self._keeper.read()
        self._ordered = False
        # The key that an operator has revoked: its id in the token.
        self._stolen = ""
        self._told = ""
        # Why the next act is tried again and again; empty where it is not.
        self._waits = ""
        self._hold = 0
        if not self._kept.due:
            self._keep(Kept(due=ctx.clock() + every_ns))

    def _keep(self, kept: Kept) -> None:
        self._keeper.write(kept)
        self._kept, self._waits = kept, ""

    def _wait(self, why: str) -> None:
        self._waits = why

    def order(self) -> None:
        """An operator wants it changed now; where it is being changed already, that is it."""
        self._ordered = True

    def revoke(self, key_id: str) -> None:
        """An operator says that somebody else may use the key `key_id`; what is under way looks before its next act."""
        self._stolen, self._hold = key_id, 0

    @property
    def busy(self) -> bool:
        """Whether a rotation is under way."""
        return self._kept.rotation is not None and self._kept.rotation.step not in ENDS

    @property
    def wanted(self) -> bool:
        """Whether there is something to do now."""
        now = self._ctx.clock()
        return self.busy or (now >= self._hold and (bool(self._stolen) or self._ordered or now >= self._kept.due))

    @property
    def urgent(self) -> bool:
        """Whether somebody else may use the key, and it is not deleted yet."""
        state = self._kept.rotation
        if self.busy and state is not None and state.stolen and state.step == "revoking":
            return True
        return bool(self._stolen) and self.wanted

    def status(self) -> dict[str, str]:
        """For people: the rotation, its step, and why; and which key it revoked first."""
        state = self._kept.rotation
        if state is None:
            return {}
        stolen = {revoked(self.name): state.old.key_id} if state.stolen else {}
        return {self.name: f"{state.rotation} {state.step} {state.text or self._waits}".strip(), **stolen}

    async def step(self) -> int:
        """Do the next act; how many ns to wait before the next."""
        state = self._kept.rotation
        if state is None or state.step in ENDS:
            return await self._begin()
        self.holder.rotation = state.rotation
        try:
            if self._stolen == state.old.key_id and (sooner := rotation.revoke_first(state, self._ctx.clock())):
                self._keep_state(sooner)
                self._stolen, state = "", sooner
            state, wait = await rotation.advance(
                state, self.holder, self._venue, self._ctx.clock(), self._keep_state, self._wait
            )
        except OSError as exc:
            # Nothing is done that is not kept: a full disk stops the rotation, and nothing else.
            self._tell("KEY_ROTATION", f"{self.name}: what is done next cannot be kept: {exc.strerror}")
            return RETRY_NS
        if state.step == "rolled_back":
            self._tell("KEY_ROTATION", f"the key of {self.name} was not changed, the old one goes on: {state.text}")
        return wait

    def _keep_state(self, state: Rotation) -> None:
        due = next_due(state, self._ctx.clock(), self._every_ns) if state.step in ENDS else self._kept.due
        self._keep(Kept(rotation=state, due=due))
        if state.step in ENDS:
            self._ordered = False
        to = subject("control.config", component=KEYMASTER)
        said = self._ctx.new(
            KeyRotation,
            rotation=state.rotation,
            venue=state.venue,
            holder=state.component,
            step=state.step,
            old=fingerprint(state.old.api_key),
            new=fingerprint(state.new.api_key) if state.new.api_key else b"",
            public_key=state.new.public_key,
            text=state.text,
        )
        self._ctx.publish(to, said)
        self._ctx.log.info("rotation", of=self.name, step=state.step, text=state.text)

    async def _begin(self) -> int:
        """Find the key in use; nothing is kept, and nothing done, before it is known."""
        self._hold = self._ctx.clock() + HOLD_NS
        try:
            old = await self._in_use()
        except (Unclear, Refused) as exc:
            self._tell("KEY_ROTATION", f"the key of {self.name} cannot be changed now: {exc.code}: {exc.text}")
            return 0
        wanted, self._stolen = self._stolen, ""
        if wanted not in {"", old.key_id}:
            self._tell("KEY_ROTATION", f"{self.name} signs with {old.key_id}, and not with {wanted[:64]}: not revoked")
            return 0
        self._told = ""
        name = self._ctx.deployment.config.venue.name
        state = rotation.begin(entropy.token_hex(8), name, self.name, old, self._ctx.clock())
        if wanted and (sooner := rotation.revoke_first(state, state.begun)):
            state = sooner
        self._keep_state(state)
        return 0

    async def _in_use(self) -> KeyRef:
        """The component's key.  Raises `Unclear` or `Refused`."""
        last = self._kept.rotation
        if last is not None and last.step == "forgotten" and last.new.key_id == self._stolen:
            # We made it: whoever may hold the component now is not asked.
            return last.new
        key_id, digest = await self.holder.current()
        held = [key for key, _ in await self._venue.listed() if fingerprint(key).hex() == digest]
        if len(held) != 1:
            raise Refused("KEY_LIST", f"the venue's list for the sub-account has {len(held)} keys that are its")
        return KeyRef(key_id=key_id, api_key=held[0])

    def _tell(self, code: str, text: str) -> None:
        if text != self._told:
            self._told = text
            self._ctx.notice(code, text)


class Keymaster(Service):
    """See the module docstring."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._ordered = asyncio.Event()

    def status(self) -> dict[str, str]:
        """How far each rotation is."""
        return {key: said for job in self._jobs.values() for key, said in job.status().items()}

    async def start(self, ctx: ServiceContext) -> None:
        """Open the token, take up what was kept, listen."""
        config, venue = ctx.deployment.config.rotation, ctx.deployment.config.venue
        record = ctx.trust.venues.get(venue.name)
        if config is None or record is None:
            raise ConfigError("ROTATION_CONFIG", "deployment.toml has no [rotation], or the trust root no such venue")
        self._ctx = ctx
        adapter = venues.adapter(record.kind)
        signer = open_own_token(ctx).signer(KEY_VENUE)
        master = ctx.secret(api_key_name(KEYMASTER)).reveal()
        admin = adapter.key_admin(record.host, config.sub_account, master, signer, ctx.clock)
        client = VenueClient(adapter, record.host, venues.client_tls(ctx.deployment.venue_ca), ctx.clock)
        ctx.at_stop(client.close)
        for name, role in HOLDERS.items():
            holder = Holder(ctx, name)
            at_venue = KeysAtVenue(client, adapter, record.host, admin, holder, role, config.addresses, ctx.clock)
            self._jobs[name] = Job(ctx, name, holder, at_venue, config.every_s * SECOND)
        ctx.subscribe(tuple(f"control.key.{name}" for name in HOLDERS), self._on_answer)
        ctx.subscribe("control.config.breaker", self._on_order)

    async def ready(self) -> None:
        """Everybody else's messages are read: go on where it was left."""
        self._ctx.spawn(self._run())

    async def _on_answer(self, received: Received) -> None:
        job = self._jobs.get(received.subject.component)
        answers = [event for event in received.events if isinstance(event, KeyAnswered)]
        if job is None or not answers or not received.live:
            return
        (await self._ctx.admit(received)).require_listed()
        for event in answers:
            job.holder.on_answer(event)

    def _on_order(self, received: Received) -> None:
        for event in received.events:
            if isinstance(event, RotationOrdered):
                order = open_rotation_order(event.note, self._ctx.trust, self._ctx.clock())
                job = self._jobs.get(order.component)
                if job is None or order.act == "reread":
                    continue
                if order.act == "revoke":
                    job.revoke(order.key)
                else:
                    job.order()
                self._ordered.set()

    async def _run(self) -> None:
        """One at a time: never are both keys in doubt, but where both are revoked.  Then who waits keeps nobody up."""
        jobs = list(self._jobs.values())
        while True:
            self._ordered.clear()
            urgent, busy = [job for job in jobs if job.urgent], [job for job in jobs if job.busy]
            job = next(iter(urgent or busy or [job for job in jobs if job.wanted]), None)
            wait = LOOK_S
            if job is not None:
                jobs.remove(job)
                jobs.append(job)
                wait = await job.step() / SECOND
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ordered.wait(), wait)


SERVICE = Keymaster
