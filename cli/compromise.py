"""`tallystick compromise`: one answer to a component in other hands (R33): halt, cancel, revoke, rotate, prove, keep evidence.

An API key in other hands is answered by `compromise_key`, the authority by `compromise_authority`, in the same way.

- Each step is done, then said: an operator-signed `Incident` that the breaker publishes.  What is done does not wait for what
  can be said: where the bus is gone the steps go on, and the evidence keeps their notes.
- To halt and to cancel takes no key and no file; the operator's token, wherever it is, is waited for after that.
- A step that fails is recorded as failed and keeps nobody from the next one: containment first, tidiness later.
- *halted*: a strategy's own breaker; for everybody else `all`.  *cancelled*: nothing is open at the venue any more, by the
  venue's own word, asked for by this command through custody and not through execution; for a strategy by execution's word.
- *revoked*: sessions and certificates, by the operator's signature.  *rotated*: a new key and certificate; the process starts
  again with them.  *proven*: its old certificate and key are shown to the authority, and refused.
- The evidence is a file that holds every step with its note.  Each note holds the hash of what came before it (`Evidence.digest`).

It does not undo: what is tripped stays tripped until `tallystick rearm`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets as entropy
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec
import structlog

from tallystick import venues
from tallystick.cli import breaker
from tallystick.cli.operate import Operator, reinstate, revoke
from tallystick.cli.status import processes
from tallystick.components.execution.custody import CustodyClient
from tallystick.runtime import structs
from tallystick.runtime.bus.enrolment import AuthorityClient
from tallystick.runtime.bus.tasks import Tasks, end
from tallystick.runtime.deployment import board
from tallystick.runtime.deployment import folder as layout
from tallystick.runtime.deployment.folder import Deployment
from tallystick.runtime.durable import write_durably
from tallystick.runtime.keys.identity import Identity
from tallystick.runtime.keys.keystore import Keystore
from tallystick.schemas import signing
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.control import IncidentRequest
from tallystick.schemas.ed25519 import KEY_BYTES
from tallystick.schemas.errors import BootOver, ConfigError, TallystickError, Unverified
from tallystick.schemas.incidents import MAX_TEXT, Incident, StepName
from tallystick.schemas.nats_jwt import BOOT_BYTES, SessionKey
from tallystick.venues.client import VenueClient

CANCEL_S: Final = 3.0
PUBLISH_S: Final = 1.0
POLL_S: Final = 0.05
# Nobody trades by these: their compromise needs no halt.
_WATCHERS: Final = ("observer-", "audit", "console", "replay")


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One step as the evidence holds it; times are Unix ns."""

    number: int
    step: StepName
    begun: int
    ended: int
    done: bool
    text: str
    note: str = ""
    published: bool = False


class Evidence(msgspec.Struct, kw_only=True):
    """The file: `DIR/incidents/<incident>.json`."""

    incident: str
    deployment: str
    target: str
    reason: str
    trust_root: int
    processes: dict[str, int]
    certificate: str = ""
    steps: list[Step] = []

    def digest(self, number: int) -> str:
        """SHA-256 (hex) of the evidence as it stood when step `number` was done, whatever became of its publication."""
        steps = [msgspec.structs.replace(step, published=False) for step in self.steps[:number]]
        steps[-1] = msgspec.structs.replace(steps[-1], note="")
        return hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(self, steps=steps))).hexdigest()


class Answer:
    """Carries out and records one incident; `told` is told each step."""

    def __init__(
        self,
        deployment: Deployment,
        keystore: Keystore,
        target: str,
        reason: str,
        clock: Callable[[], int],
        told: Callable[[Step], None],
    ) -> None:
        structs.prepare()
        self._deployment = deployment
        self._keystore = keystore
        self._target = target
        self._reason = reason
        self._clock = clock
        self._told = told
        self._trust = deployment.load_trust()[-1]
        self._require_answerable()
        now = datetime.fromtimestamp(clock() // SECOND, UTC)
        name = f"{now:%Y%m%dT%H%M%SZ}-{entropy.token_hex(4)}"
        self.path = deployment.directory / "incidents" / f"{name}.json"
        self._evidence = Evidence(
            incident=name,
            deployment=deployment.name,
            target=target,
            reason=reason,
            trust_root=self._trust.number,
            processes=dict(processes(deployment)),
        )
        self._notes: asyncio.Queue[tuple[int, str]] = asyncio.Queue()
        self._operator: Operator | None = None
        self._no_operator: TallystickError | None = None
        self._old: Identity | None = None
        self._no_old = ""
        # Why the bus did not take a step, the last time.
        self.why_unsaid = ""
        # Why the evidence could not be written last; empty where it is.
        self.unkept = ""

    def _require_answerable(self) -> None:
        """Raise `ConfigError` for a target that this command has no answer to."""
        self._deployment.bus().component(self._target)

    def _scope(self) -> str:
        """What is halted; "" for who cannot trade."""
        if self._target.startswith("strategy-"):
            return self._target
        return "" if self._target.startswith(_WATCHERS) else "all"

    def _signed_steps(self) -> Iterator[tuple[StepName, Callable[[], Awaitable[str]]]]:
        """What takes the operator's key."""
        yield "revoked", self._revoke
        yield "rotated", self._rotate
        yield "proven", self._prove

    async def run(self) -> bool:
        """Every step; whether all of them succeeded and the evidence is written."""
        scope = self._scope()
        await self._do("halted", lambda: self._halt(scope))
        opening = asyncio.create_task(asyncio.to_thread(self._open), name="operator")
        publishing = asyncio.create_task(self._publish(), name="publishing")
        try:
            await self._do("cancelled", lambda: self._cancel(scope))
            self._operator = await opening
            for number in range(1, len(self._evidence.steps) + 1):
                await self._say(number)
            for step, work in self._signed_steps():
                await self._do(step, work)
            await self._do("closed", self._close)
            await self._said()
        finally:
            operator = await opening
            if operator is not None:
                await asyncio.to_thread(operator.close)
            await end(publishing)
        await asyncio.to_thread(self._keep)
        return not self.unkept and all(step.done for step in self._evidence.steps)

    def _open(self) -> Operator | None:
        """What the later steps need: what a thief may have copied, and the operator's token."""
        self._open_old()
        try:
            return Operator(self._deployment, self._keystore)
        except TallystickError as exc:
            self._no_operator = exc
            return None

    def _open_old(self) -> None:
        try:
            passphrase = self._keystore[layout.passphrase_name(self._target)]
            path = self._deployment.identity(self._target)
            self._old = Identity(self._deployment.name, self._deployment.issuing_ca, path, passphrase)
            self._evidence.certificate = self._old.fingerprint.hex()
        except TallystickError as exc:
            self._no_old = exc.text

    @property
    def unsaid(self) -> tuple[StepName, ...]:
        """The steps that the bus did not confirm."""
        return tuple(step.step for step in self._evidence.steps if not step.published)

    async def _do(self, step: StepName, work: Callable[[], Awaitable[str]]) -> None:
        begun = self._clock()
        try:
            text, done = await work(), True
        except Exception as exc:  # noqa: BLE001 - whatever it is, the next step is not to wait for it
            text, done = f"{type(exc).__name__}: {exc}", False
        number = len(self._evidence.steps) + 1
        made = Step(number=number, step=step, begun=begun, ended=self._clock(), done=done, text=text[:MAX_TEXT])
        self._evidence.steps.append(made)
        await self._say(number)
        self._told(self._evidence.steps[-1])

    async def _publish(self) -> None:
        while True:
            number, note = await self._notes.get()
            try:
                answer = await breaker.demand(self._deployment.run, IncidentRequest(note=note))
                step = self._evidence.steps[number - 1]
                self._evidence.steps[number - 1] = msgspec.structs.replace(step, published=bool(answer["stored"]))
            except (TallystickError, OSError) as exc:
                self.why_unsaid = str(exc)
            finally:
                self._notes.task_done()

    async def _said(self) -> None:
        """Wait until what was signed is published, or was refused; where the bus is gone, nobody waits for it."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._notes.join(), PUBLISH_S)

    async def _say(self, number: int) -> None:
        """Sign a step, have it published, and keep the evidence."""
        step = self._evidence.steps[number - 1]
        if self._operator is not None:
            said = Incident(
                deployment=self._deployment.name,
                incident=self._evidence.incident,
                target=self._target,
                number=number,
                step=step.step,
                at=step.ended,
                done=step.done,
                text=step.text,
                evidence=self._evidence.digest(number),
            )
            note = await asyncio.to_thread(self._operator.sign, said)
            self._evidence.steps[number - 1] = msgspec.structs.replace(step, note=note)
            self._notes.put_nowait((number, note))
        await asyncio.to_thread(self._keep)

    def _keep(self) -> None:
        text = msgspec.json.format(msgspec.json.encode(self._evidence), indent=2)
        try:
            self.path.parent.mkdir(mode=0o700, exist_ok=True)
            write_durably(self.path, text, 0o600)
            self.unkept = ""
        except OSError as exc:
            # On a full disk the steps are worth more than their record.
            self.unkept = f"{self.path}: {exc.strerror}"

    # --- the steps

    async def _halt(self, scope: str) -> str:
        if not scope:
            return f"{self._target} cannot trade: nothing is halted"
        answer = await breaker.kill(self._deployment.run, scope, f"compromise of {self._target}: {self._reason}")
        return f"tripped: {', '.join(trip['scope'] for trip in answer['tripped'])}"

    async def _cancel(self, scope: str) -> str:
        if not scope:
            return "nothing to cancel"
        if scope != "all":
            return await self._cancelled_by_execution(scope.removeprefix("strategy-"))
        # Execution may be who is in other hands: this way needs custody alone.
        tasks = Tasks()
        venue = self._deployment.config.venue
        record = self._trust.venues[venue.name]
        adapter = venues.adapter(record.kind)
        client = VenueClient(adapter, record.host, venues.client_tls(self._deployment.venue_ca), self._clock)
        custody = CustodyClient(self._deployment.seat("custody") / signing.SOCKET, tasks)
        names = {i.symbol: i.venue_symbol for i in self._trust.instruments if i.venue == venue.name}
        try:
            async with asyncio.timeout(CANCEL_S):
                for symbol, venue_symbol in names.items():
                    await self._cancel_all(custody, client, adapter, venue.name, symbol, venue_symbol)
        finally:
            await custody.close()
            await client.close()
            await tasks.end()
        return f"nothing is open at {venue.name} in {', '.join(names)}, by its own word"

    @staticmethod
    async def _cancel_all(
        custody: CustodyClient,
        client: VenueClient,
        adapter: venues.Adapter,
        venue: str,
        symbol: str,
        venue_symbol: str,
    ) -> None:
        while True:
            cancel = await custody.sign(lambda number: signing.SignCancelAll(id=number, venue=venue, symbol=symbol))
            await client.send(cancel)
            asked = await custody.sign(lambda number: signing.SignOpenOrders(id=number, venue=venue, symbol=symbol))
            found = adapter.orders_answer(*await client.send(asked), venue_symbol)
            if isinstance(found, tuple) and not found:
                return
            await asyncio.sleep(POLL_S)

    async def _cancelled_by_execution(self, strategy: str) -> str:
        # What it said before the halt says nothing: it says it anew each second.
        await asyncio.sleep(2 * board.STATUS_S)
        async with asyncio.timeout(CANCEL_S):
            while True:
                if "execution" not in dict(processes(self._deployment)):
                    raise ConfigError(
                        "COMPROMISE_OPEN", "execution does not run: what is open at the venue is not known"
                    )
                said = board.read(self._deployment, "execution").get("open", "").split()
                if not any(part.startswith(f"{strategy}=") for part in said):
                    return f"execution says that nothing of {strategy} is open"
                await asyncio.sleep(POLL_S)

    def _require_operator(self) -> Operator:
        if self._operator is None:
            refused = self._no_operator
            raise ConfigError(
                refused.code if refused else "HSM_PROCESS",
                f"the operator's token is not here: {refused.text if refused else 'not opened'}; bring it, and run this again",
            )
        return self._operator

    async def _revoke(self) -> str:
        operator = self._require_operator()
        ended = await revoke(self._deployment, self._keystore, self._target, self._reason, operator)
        return f"{ended} sessions ended at the broker and at every verifier; no certificate of it counts"

    async def _rotate(self) -> str:
        operator = self._require_operator()
        await reinstate(self._deployment, self._keystore, self._target, self._reason, operator)
        return f"a new key and certificate in {self._deployment.identity(self._target)}; it starts again with them"

    async def _prove(self) -> str:
        """Ask for a session as a thief would who has the old certificate and its key."""
        old = self._old
        if old is None:
            raise ConfigError("COMPROMISE_UNPROVEN", f"there is no old certificate to ask with: {self._no_old}")
        config = self._deployment.config
        client = AuthorityClient(
            f"https://{config.host}:{config.authority.port}",
            old,
            deployment=self._deployment.name,
            component=self._target,
            clock=self._clock,
            log=structlog.get_logger(),
        )
        try:
            await client.obtain(SessionKey(os.urandom(KEY_BYTES)), os.urandom(BOOT_BYTES))
        except BootOver as exc:
            return f"the old certificate {old.fingerprint.hex()[:16]} and its key get no session: {exc.code}"
        except Unverified as exc:
            raise ConfigError("COMPROMISE_UNPROVEN", f"refused, and not for what it is: {exc}") from exc
        raise ConfigError(
            "COMPROMISE_UNPROVEN", "the old certificate and its key still get a session: stop the authority"
        )

    async def _close(self) -> str:
        failed = [step.step for step in self._evidence.steps if not step.done]
        return f"failed: {', '.join(failed)}" if failed else "every step succeeded"


def read_evidence(path: Path) -> Evidence:
    """An evidence file.  Raises `ConfigError`."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Evidence)
    except (OSError, msgspec.MsgspecError) as exc:
        raise ConfigError("EVIDENCE", f"{path}: {exc}") from exc
