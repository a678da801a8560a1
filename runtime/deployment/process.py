"""One component as an operating-system process: from its folder, name and secrets to a clean end.

    python -P -m tallystick.runtime.deployment.process DIR COMPONENT --secrets-fd N [--vault-fd M]

- The trust root is verified from the pinned key, and must be current.
- The identity is the component's client certificate, whose key is decrypted in memory; it is renewed as long as the
  process runs (`enrolment`).
- `<component>.ready` (the pid) appears in its `Deployment.seat` once everything stored before the start was handled.
- SIGTERM and SIGINT stop gracefully: what is queued is published, each chain gets its closing
  statement, the authority is told that the boot ended.
- One that fails ends, with its reason, within `LEAVE_S`.
- Exit codes: 0 stopped on request, 1 failed while running, 2 cannot run with what it was given, 3 revoked by the operator; authority or
  broker not there at the start: 1 under the supervisor, which starts it again, 2 with `tallystick run`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import importlib
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

# isort: off
from tallystick.runtime.deployment import libraries  # noqa: F401 - first: without what they would read besides

# isort: on
import uvloop

from tallystick.infra.child import end_with_parent, harden
from tallystick.infra.lockfile import Lockfile
from tallystick.infra.nats import topology
from tallystick.runtime import structs
from tallystick.runtime.bus.log import Log
from tallystick.runtime.bus.metrics import Metrics
from tallystick.runtime.bus.tasks import end
from tallystick.runtime.deployment import apart
from tallystick.runtime.deployment.board import STATUS_S, Board
from tallystick.runtime.deployment.certificates import load_issuing_ca
from tallystick.runtime.deployment.folder import EXIT_REVOKED, LEASED, SECRET_ID, Deployment, passphrase_name
from tallystick.runtime.deployment.logs import open_log
from tallystick.runtime.deployment.owners import component_file, ready_file
from tallystick.runtime.deployment.scheduling import PRECEDENCE, Precedence, yield_to_others
from tallystick.runtime.deployment.service import OwnSource, Service, Setup
from tallystick.runtime.deployment.signed_vault import require_signed_vault
from tallystick.runtime.keys.identity import Identity
from tallystick.runtime.keys.keystore import Secret, take_over
from tallystick.schemas.errors import ConfigError, Malformed, TallystickError, Unreachable, Unverified
from tallystick.schemas.trust import TrustRoot, require_current

if TYPE_CHECKING:
    from tallystick.runtime.vault.leased import Leased

BOOT_BYTES: Final = 16
# Folders whose code lies beside `components/` in the tree.
_PACKAGES: Final = {"streams": "tallystick.streams", "replay": "tallystick.replay"}
METRICS_S: Final = 10.0
# A process that failed has this long to let go of what it holds; then it ends, whatever still waits for something.
LEAVE_S: Final = 15.0
# How long a stop waits for the authority to hear that the boot ended.
GOODBYE_S: Final = 0.5


def load_setup(
    directory: Path, component: str, secrets: dict[str, Secret], channel: socket.socket | None = None
) -> Setup:
    """Everything that can be wrong before the bus is touched.  Raises `ConfigError` or `Unverified`.

    `channel`: where whoever started it gives secret ids of the vault.
    """
    deployment = Deployment.load(directory)
    spec = deployment.bus().component(component)
    log = open_log(deployment.log(component), component)
    trust = deployment.load_trust()[-1]
    require_current(trust, time.time_ns())
    trust.component(component)
    passphrase = secrets.get(passphrase_name(component))
    if passphrase is None:
        raise ConfigError("SECRETS", f"no passphrase for the key of {component}: pass --secrets-fd or the master PIN")
    load_issuing_ca(deployment)
    identity = Identity(deployment.name, deployment.issuing_ca, deployment.identity(component), passphrase)
    identity.require_current(time.time_ns())
    return Setup(
        deployment=deployment,
        trust=trust,
        spec=spec,
        boot=os.urandom(BOOT_BYTES),
        identity=identity,
        secrets=secrets,
        clock=time.time_ns,
        entropy=os.urandom,
        log=log,
        leased=_leased(deployment, trust, identity, secrets, channel) if component in LEASED else None,
    )


def _leased(
    deployment: Deployment,
    trust: TrustRoot,
    identity: Identity,
    secrets: dict[str, Secret],
    channel: socket.socket | None,
) -> Leased:
    require_signed_vault(deployment, trust)
    # Most processes have nothing to do with the vault: its client is not for them.
    from tallystick.infra.vault.access import role_name
    from tallystick.runtime.vault import leased, logins
    from tallystick.runtime.vault.client import VaultClient

    config = deployment.config.vault
    role = role_name(config.mount, identity.component)
    login: logins.Login
    match config.auth:
        case "approle":
            login = logins.AppRole(role, logins.SecretIds(secrets.get(SECRET_ID), channel))
        case "certificate":
            login = logins.Certificate(role)
        case "kubernetes":
            login = logins.Kubernetes(role, deployment.directory / config.jwt)
    return leased.Leased(
        VaultClient(deployment.vault_address(), identity.client(deployment.vault_ca), config.mount),
        login,
        identity.component,
        deployment.leased_names(identity.component),
        clock=time.time_ns,
    )


def load_service(spec: topology.Component) -> Service:
    """The component's service from its folder's `main.SERVICE`, instantiated."""
    package = _PACKAGES.get(spec.folder, f"tallystick.components.{spec.folder}")
    made = importlib.import_module(f"{package}.main").SERVICE()
    if not isinstance(made, Service):
        raise ConfigError("COMPONENT_CLASS", f"{package}.main.SERVICE is no Service")
    structs.prepare()
    return made


class Leaving:
    """Ends this process at the latest `LEAVE_S` after it failed: one that cannot go on is never found hanging."""

    def __init__(self) -> None:
        self._timer: threading.Timer | None = None

    def begin(self, code: int = 1) -> None:
        """It has failed; `code` is its exit code if it does not end by itself."""
        self.cancel()
        # A library may swallow the cancellation of a task, and the loop waits for all of them at its end.
        self._timer = threading.Timer(LEAVE_S, os._exit, (code,))
        self._timer.daemon = True
        self._timer.start()

    def cancel(self) -> None:
        """It ended by itself."""
        if self._timer is not None:
            self._timer.cancel()


def _take_precedence(log: Log) -> None:
    try:
        Precedence(functools.partial(log.warning, "scheduling")).take()
    except OSError as exc:
        # A kindness: failing at it fails nothing.
        log.warning("scheduling", text=f"orders may be slower: no real-time priority here ({exc})")


async def run(setup: Setup, service: Service, stop: asyncio.Event, leaving: Leaving | None = None) -> None:
    """Run `service` until `stop` is set.  Raises what stopped it otherwise; `leaving` is told as soon as that is so."""
    deployment, spec = setup.deployment, setup.spec
    metrics = Metrics()
    client = setup.authority()
    source = service.credential_source(setup) if isinstance(service, OwnSource) else client
    link = setup.link(source, metrics)
    ready = ready_file(deployment, spec.name)
    ready.unlink(missing_ok=True)
    stopping: asyncio.Task[object] = asyncio.create_task(stop.wait(), name="stop")
    starting = asyncio.create_task(link.start(), name="login")
    await asyncio.wait((stopping, starting), return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        await end(starting)
        return
    starting.result()
    ctx = setup.context(link, metrics)
    setup.log.info("started", boot=setup.boot.hex())
    failed = asyncio.create_task(ctx.failed(), name="failed")

    async def show() -> None:
        board = Board(deployment, spec.name)
        while True:
            # A disk without space stops trading elsewhere; what people are told need not end anybody.
            with contextlib.suppress(OSError):
                board.show(service.status())
            await asyncio.sleep(STATUS_S)

    async def serve() -> None:
        await ctx.enter_vault()
        await service.start(ctx)
        ctx.spawn(show())
        await ctx.resume()
        ctx.open()
        await ctx.caught_up()
        await service.ready()
        ready.write_text(f"{os.getpid()}\n")
        setup.log.info("ready")
        # What was loaded and read at the start stays: the collector need not walk through it in the middle of an order.
        gc.collect()
        gc.freeze()
        if spec.name in PRECEDENCE:
            _take_precedence(setup.log)
        while True:
            await asyncio.sleep(METRICS_S)
            setup.log.info("metrics", **metrics.snapshot())

    serving = ctx.tasks.start(serve(), spec.name)
    try:
        await asyncio.wait((stopping, failed), return_when=asyncio.FIRST_COMPLETED)
        if failed.done() and leaving is not None:
            leaving.begin()
        ctx.tasks.check()
    finally:
        ready.unlink(missing_ok=True)
        await end(serving, stopping, failed)
    session = link.session
    try:
        await ctx.close()
        setup.log.info("stopped", **metrics.snapshot())
    finally:
        if source is client:
            # The authority may have stopped before us, or be silent; expiry ends the boot too.
            with contextlib.suppress(Unverified, TimeoutError):
                async with asyncio.timeout(GOODBYE_S):
                    await client.end(session.key, setup.boot)


def main(
    directory: Path, component: str, secrets: dict[str, Secret], *, alone: bool, channel: socket.socket | None = None
) -> int:
    """Run one component in this process until it is told to stop; the exit code.  `alone`: under no supervisor.

    Where authority or broker are not there at the start, the supervisor, which starts them, tries again (1); a person
    who named the wrong place is told so (2).
    """
    try:
        setup = load_setup(directory, component, secrets, channel)
        setup.deployment.seat(component).mkdir(mode=0o700, exist_ok=True)
        # The component's own files have one writer.
        held = Lockfile.take(component_file(setup.deployment, component), alone=alone)
        made = load_service(setup.spec)
    except TallystickError as exc:
        sys.stderr.write(f"tallystick: {component}: {exc}\n")
        return 2

    leaving = Leaving()

    async def serve() -> int:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        try:
            await run(setup, made, stop, leaving)
        except TallystickError as exc:
            final = alone if isinstance(exc, Unreachable) else isinstance(exc, ConfigError | Malformed)
            code = EXIT_REVOKED if exc.code == "COMPONENT_REVOKED" else 2 if final else 1
            leaving.begin(code)
            setup.log.exception("failed", code=exc.code, text=exc.text)
            sys.stderr.write(f"tallystick: {component}: {exc}\n")
            return code
        except Exception as exc:
            leaving.begin()
            setup.log.exception("failed", error=type(exc).__name__)
            sys.stderr.write(
                f"tallystick: {component} failed ({type(exc).__name__}); see {setup.deployment.log(component)}\n"
            )
            return 1
        return 0

    try:
        with held, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(serve())
    finally:
        leaving.cancel()


def from_command_line(arguments: list[str]) -> int:
    """`DIR COMPONENT --secrets-fd N [--vault-fd M]`: the supervisor's way in."""
    # Nothing trades on unwatched.
    end_with_parent(signal.SIGTERM)
    options = dict(zip(arguments[2::2], arguments[3::2], strict=False))
    fds = [options.get(name, "") for name in ("--secrets-fd", "--vault-fd")[: len(options)]]
    if len(arguments) not in (4, 6) or len(arguments) != 2 + 2 * len(options) or not all(fd.isdigit() for fd in fds):
        sys.stderr.write("usage: process DIR COMPONENT --secrets-fd N [--vault-fd M]\n")
        return 2
    try:
        # Before `harden`, since the files below /proc of a closed process are root's.
        yield_to_others(arguments[1])
    except OSError as exc:
        # A kindness: failing at it fails nothing.
        sys.stderr.write(
            f"tallystick: {arguments[1]}: orders may be slower: no lower priority for those who read along ({exc})\n"
        )
    harden()
    try:
        secrets = take_over(int(fds[0]))
        channel = socket.socket(fileno=int(fds[1])) if len(fds) > 1 else None
        if channel is not None:
            channel.set_inheritable(False)
        apart.enter(Deployment.load(Path(arguments[0])), arguments[1])
        # A change of user ends what the kernel was asked for.
        end_with_parent(signal.SIGTERM)
    except (TallystickError, OSError) as exc:
        sys.stderr.write(f"tallystick: {exc}\n")
        return 2
    return main(Path(arguments[0]), arguments[1], secrets, alone=False, channel=channel)


if __name__ == "__main__":
    sys.exit(from_command_line(sys.argv[1:]))
