"""The breaker process: alerts, unpermitted fills and people in; breaker states, heartbeat and arming out.

- The state is rebuilt from the newest `SECURITY_TAIL` messages of SECURITY and the newest fills (`states`).
  Until that is done there is no heartbeat, and everybody treats everything as tripped.
- What is tripped is also kept in a file of its own: the broker could bring an old end of the history back.  A file that
  cannot be read means that nobody knows, and trips everything; deleting it leaves what the bus says.
- A trip is published at once, its heartbeat right after it, then every `BEAT_S`.
- The operator's arming notes are verified and passed on as they are, and again every `ARM_S` while they hold, so that
  whoever starts later finds them among the newest messages; gateway and custody verify them themselves.

See `states` for what an attacker who controls it can do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import msgspec

from tallystick.components.breaker.control import ControlSocket
from tallystick.components.breaker.states import UNKNOWN_STRATEGY, Breakers, Output, scopes_of
from tallystick.runtime.bus.received import Received
from tallystick.runtime.deployment.root_watch import RootWatch
from tallystick.runtime.deployment.service import Service, ServiceContext
from tallystick.runtime.durable import write_durably
from tallystick.schemas.arming import open_arm_lease
from tallystick.schemas.control import (
    SOCKET,
    ArmRequest,
    CorrectRequest,
    IncidentRequest,
    Kill,
    RearmRequest,
    Request,
    RotateRequest,
)
from tallystick.schemas.errors import NOT_DECODED, ConfigError, LeaseOver, Malformed, Unverified
from tallystick.schemas.incidents import open_incident
from tallystick.schemas.orders import Corrected
from tallystick.schemas.rotation_orders import open_rotation_order
from tallystick.schemas.security import Arm, IncidentStep, RotationOrdered, Trip
from tallystick.schemas.subjects import SECURITY, subject
from tallystick.schemas.trust import open_correction, open_rearm

BEAT_S: Final = 0.25
ARM_S: Final = 10.0
# Half an hour of running, two hours of being the only one that is down; about a second to verify.
SECURITY_TAIL: Final = 8_192
FILLS_TAIL: Final = 1_024
STORED_S: Final = 2.0
EXECUTION: Final = "execution"


class Breaker(Service):
    """See the module docstring.

    It does not ask who may act now (`admit`): without a fresh list from the authority, alerts would be refused
    just when something is wrong.  A session that is not revoked may halt trading; that is the safe direction.
    """

    def __init__(self, run: Path | None = None, tail: int = SECURITY_TAIL) -> None:
        """`run`: the folder of its socket; None: the deployment's.  `tail`: how much of SECURITY is read at start."""
        self._run = run
        self._tail = tail
        self._armed = ""
        self._kept: tuple[Trip, ...] = ()

    async def start(self, ctx: ServiceContext) -> None:
        """Read the newest history; act from `ready` on."""
        self.ctx = ctx
        if self._run is None:
            RootWatch(ctx).start()
        self.breakers = Breakers(ctx.new, lambda note: open_rearm(note, ctx.trust), scopes_of(ctx.trust))
        control = ("control.breaker.>", "control.arm.>", "control.config.>")
        ctx.subscribe(("alert.>", *control, "cred.>"), self._on_message, start=self._tail)
        ctx.subscribe(f"fill.{UNKNOWN_STRATEGY}.*.*", self._on_message, start=FILLS_TAIL)
        path = (self._run or ctx.deployment.run) / SOCKET
        self._socket = ControlSocket(path, self._on_request, ctx.log, within=ctx.tasks)
        self._file = (self._run or ctx.deployment.state("breaker")) / "tripped.json"
        try:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as exc:
            raise ConfigError("BREAKER_STATE", f"{self._file.parent}: {exc.strerror}") from exc

    async def ready(self) -> None:
        """The state is known: say so, and listen to people."""
        self.breakers.remember(self._read())
        # Sequences count from 1: a stream that never held more than the tail was read from its beginning.
        self._publish(self.breakers.resume(complete=self.ctx.position(SECURITY) <= self._tail))
        await self._socket.start()
        self.ctx.at_stop(self._socket.stop)
        self.ctx.spawn(self._beat())
        self.ctx.spawn(self._repeat_arm())

    def _on_message(self, received: Received) -> None:
        # Late alerts trip as well: what is dangerous does not become harmless by being slow.
        for event in received.events:
            if isinstance(event, Arm):
                self._armed = event.note
        outputs = [output for event in received.events for output in self.breakers.on_event(received.subject, event)]
        if outputs:
            self._publish([*outputs, self.breakers.heartbeat()])

    async def _beat(self) -> None:
        stored: list[asyncio.Future[int]] = []
        while True:
            # While the bus is away heartbeats do not pile up: one old one is enough to be refused as stale.
            if all(future.done() for future in stored):
                stored = self._publish([self.breakers.heartbeat()])
            await asyncio.sleep(BEAT_S)

    async def _repeat_arm(self) -> None:
        while True:
            await asyncio.sleep(ARM_S)
            if not self._armed:
                continue
            try:
                lease = open_arm_lease(self._armed, self.ctx.trust, EXECUTION, self.ctx.clock())
            except LeaseOver as exc:
                self.ctx.notice(exc.code, f"execution is armed no more: {exc.text}")
                self._armed = ""
                continue
            except (Unverified, Malformed) as exc:  # what stands in history need not be a note at all
                self.ctx.log.warning("lease is none", code=exc.code, text=exc.text)
                self._armed = ""
                continue
            self._publish([(subject("control.arm", component=lease.component), self.ctx.new(Arm, note=self._armed))])

    def _publish(self, outputs: Iterable[Output]) -> list[asyncio.Future[int]]:
        stored = [self.ctx.publish(where, event) for where, event in outputs]
        # Crash here: the bus knows what the file does not; a re-armed scope is found tripped and re-armed again.
        self._keep()
        return stored

    def _keep(self) -> None:
        tripped = self.breakers.tripped
        if tripped == self._kept:
            return
        try:
            write_durably(self._file, msgspec.json.encode(tripped), 0o600)
        except OSError as exc:  # halting goes on without it
            self.ctx.log.warning("what is tripped could not be kept", file=str(self._file), error=exc.strerror)
        else:
            self._kept = tripped

    def _read(self) -> tuple[Trip, ...]:
        try:
            self._kept = msgspec.json.decode(self._file.read_bytes(), type=tuple[Trip, ...])
        except FileNotFoundError:
            return ()
        except (OSError, *NOT_DECODED) as exc:
            reason = f"STATE_UNKNOWN: {self._file.name} cannot be read: {type(exc).__name__}"
            return (Trip("all", reason, self.ctx.clock(), "breaker"),)
        return self._kept

    async def _on_request(self, request: Request, by: str) -> dict[str, Any]:
        if isinstance(request, Kill):
            outputs = self.breakers.kill(request.scope, request.reason, by)
        elif isinstance(request, RearmRequest):
            outputs = self.breakers.rearm(request.note)
        elif isinstance(request, ArmRequest):
            lease = open_arm_lease(request.note, self.ctx.trust, EXECUTION, self.ctx.clock())
            self._armed = request.note
            outputs = [(subject("control.arm", component=lease.component), self.ctx.new(Arm, note=request.note))]
        elif isinstance(request, CorrectRequest):
            where = subject("order.correction", strategy=request.strategy, venue=request.venue, symbol=request.symbol)
            open_correction(request.note, self.ctx.trust, where)
            outputs = [(where, self.ctx.new(Corrected, note=request.note))]
        elif isinstance(request, IncidentRequest):
            open_incident(request.note, self.ctx.trust)
            outputs = [(subject("control.config", component="breaker"), self.ctx.new(IncidentStep, note=request.note))]
        elif isinstance(request, RotateRequest):
            open_rotation_order(request.note, self.ctx.trust, self.ctx.clock())
            ordered = self.ctx.new(RotationOrdered, note=request.note)
            outputs = [(subject("control.config", component="breaker"), ordered)]
        else:
            return self._status()
        stored = self._publish([*outputs, self.breakers.heartbeat()])
        await asyncio.wait(stored[:1], timeout=STORED_S)
        return {**self._status(), "stored": stored[0].done() and stored[0].exception() is None}

    def _status(self) -> dict[str, Any]:
        return {"tripped": [msgspec.structs.asdict(trip) for trip in self.breakers.tripped], "armed": self._lease()}

    def _lease(self) -> dict[str, Any] | None:
        try:
            lease = open_arm_lease(self._armed, self.ctx.trust, EXECUTION, self.ctx.clock())
        except (Unverified, Malformed):  # none, or one that is over
            return None
        return {"until": lease.until, "venues": lease.venues}


SERVICE = Breaker
