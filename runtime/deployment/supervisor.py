"""`tallystick up`: the embedded broker and every process of a deployment, started, watched, stopped.

- Order: broker, streams and durables (with a break-glass administrator's session that lives a minute and
  is forgotten), authority, and beside them the vault; then everything else at once.  Each process gets only its own
  secrets, through a descriptor in memory, or from the vault (`vault`).
- A process that ends by itself is started again after a growing pause; one that fails `MAX_RESTARTS`
  times within `RESTART_WINDOW_S`, or ends with exit code 2 (cannot run as it is), stays down and is
  reported.  The broker is started again likewise.
- Whoever is started has a certificate with half of its life before it, so that no power-off is too long; while they
  run, components renew their own, and the broker's is renewed here.
- Strategies are given tokens that say which of them is which (`service_accounts`), as long as they run.
- A component that the operator revoked keeps nobody else from starting; it is started again when it has a new key.
- Stop: strategies and sources first, then those who finish their work, audit, authority, the vault, the broker last.  Each
  has `STOP_TIMEOUT_S` and is killed then; whoever takes longer than `PATIENCE_S` is named.
- One supervisor a deployment: a second one is refused, and what a killed one left is ended first (`owners`).
- A watch that fails ends `up`: what nobody watches does not trade.

The supervisor holds the opened keystore while it runs: whoever controls it controls the deployment.
Where that is too much, run the processes apart with `tallystick run`, each with its own secrets.
"""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, Final

from tallystick.infra.lockfile import Lockfile
from tallystick.infra.nats import topology
from tallystick.infra.nats.server import EmbeddedServer, ServerStopped
from tallystick.runtime import structs
from tallystick.runtime.bus.tasks import Tasks
from tallystick.runtime.deployment import broker, certificates, vault
from tallystick.runtime.deployment import folder as layout
from tallystick.runtime.deployment.folder import Deployment
from tallystick.runtime.deployment.logs import open_log
from tallystick.runtime.deployment.managed import MAX_RESTARTS, Managed, ProcessState
from tallystick.runtime.deployment.owners import end_orphans, supervisor_file, unready
from tallystick.runtime.deployment.scheduling import precede
from tallystick.runtime.deployment.service_accounts import LOOK_S, ServiceAccounts
from tallystick.runtime.keys.keystore import Keystore, Secret
from tallystick.runtime.keys.token_process import TokenProcess
from tallystick.schemas.errors import ConfigError, TallystickError

START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 15.0
PATIENCE_S: Final = 2.0
# Without a broker nobody can do anything: nothing else is watched in this pause.
BROKER_RETRY_S: Final = 2.0
# How often the broker's certificate is looked at.
RENEW_CHECK_S: Final = 1.0
RESTART_WINDOW_S: Final = 60.0
PAUSES_S: Final = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0)
# Who stops first: those who start things, before those who finish them.
_STOP_ORDER: Final = (
    ("strategy-", "market-data"),
    ("gateway", "streams"),
    ("execution", "portfolio"),
    ("keymaster",),
    ("custody", "paper-exchange", "breaker"),
    ("audit",),
    ("authority",),
)


class SupervisorFailed(TallystickError):
    """The supervisor itself failed: its processes run on unwatched."""


class Supervisor:
    """Owns the broker and all processes from `start` to `stop`."""

    def __init__(
        self,
        deployment: Deployment,
        keystore: Keystore,
        *,
        report: Callable[[str], None] = lambda _: None,
        before_market: Callable[[], Awaitable[None]] | None = None,
        apart: frozenset[str] = frozenset(),
    ) -> None:
        """`report` is told each step in a sentence; `before_market` runs when all but market data is ready.

        `apart` names components that somebody else runs.
        """
        structs.prepare()
        self._before_market = before_market
        # People start the console where they look (`tallystick watch`), and a replay when they want one.
        self._apart = apart | {"console", topology.REPLAY}
        self.deployment = deployment
        self.bus = deployment.bus()
        self._keystore = keystore
        self._report = report
        self._managed = {name: Managed(deployment, name) for name in self._names()}
        self._server: EmbeddedServer | None = None
        self._tasks = Tasks()
        # What starts while others do, and is waited for.
        self._beside = Tasks()
        self._lock: Lockfile | None = None
        self._accounts: ServiceAccounts | None = None
        # There where somebody of ours has secrets in it.
        needed = set(layout.LEASED) & set(self._managed)
        self.vault = vault.DeploymentVault(deployment, keystore, report) if needed else None
        # What ended with an error of its own while it was stopped, or had to be killed.
        self.unclean: list[str] = []

    def _names(self) -> Iterator[str]:
        for name in self.bus.components:
            if name in self._apart or (name == "paper-exchange" and self.deployment.config.venue.kind != "paper"):
                continue
            yield name

    @property
    def states(self) -> list[ProcessState]:
        """The processes as they are now."""
        return [m.state for m in self._managed.values()]

    @property
    def server(self) -> EmbeddedServer:
        """The broker.  Raises `ConfigError` before `start`."""
        if self._server is None:
            raise ConfigError("NATS_DIED", "the broker was not started")
        return self._server

    async def start(self) -> None:
        """Start everything and wait until it is ready.  Raises `TallystickError`; the caller then calls `stop`.

        From then on the caller waits for `failed` as well.
        """
        started = time.monotonic()
        await asyncio.to_thread(end_orphans, self.deployment, self._report)
        self._lock = Lockfile.take(supervisor_file(self.deployment))
        await asyncio.to_thread(vault.prepare, self._keystore)
        await asyncio.to_thread(
            certificates.ensure, self.deployment, self._keystore, certificates.names(self.deployment), time.time_ns()
        )
        # Its token takes as long to open as the broker to start.
        accounts = self._tasks.start(asyncio.to_thread(self._service_accounts), "the issuer of tokens")
        if self.vault is not None:
            self._beside.start(self._start_vault(self.vault), "vault")
        with self._signing_token() as signing:
            self._server = await asyncio.to_thread(broker.make, self.deployment, self._keystore, self.bus, signing)
            await asyncio.to_thread(self._server.start)
            self._tasks.start(self._renew_broker(), "the broker's certificate")
            self._report(f"broker on {self.server.url}")
            self._precede()
            await self._provision(signing)
        self._launch("authority")
        self._accounts = await accounts
        self._tasks.start(self._issue_tokens(), "the strategies' tokens")
        await self._ready(["authority"])
        self._report("authority lists sessions")
        # The market opens when everybody is there.
        others = [name for name in self._managed if name not in ("authority", "market-data")]
        # Who needs the vault comes when it is there.
        for name in others:
            if name not in layout.LEASED:
                self._launch(name)
        await self._beside.settled()
        self._beside.check()
        for name in others:
            if name in layout.LEASED:
                self._launch(name)
        await self._ready(others)
        if self._before_market is not None:
            await self._before_market()
        if "market-data" in self._managed:
            self._launch("market-data")
            await self._ready(["market-data"])
        self._tasks.start(self._watch(), "supervisor")
        self._report(f"{len(self._managed)} processes ready after {time.monotonic() - started:.1f} s")

    async def _start_vault(self, made: vault.DeploymentVault) -> None:
        await asyncio.to_thread(made.start)
        self._tasks.start(made.watch(), "vault")

    def _precede(self) -> None:
        """An order waits for the broker, so the broker goes first where it may."""
        pid = self.server.pid
        if pid is None:
            return
        try:
            precede(pid)
        except OSError as exc:
            self._report(f"orders may be slower: no real-time priority here ({exc.strerror})")

    def _signing_token(self) -> TokenProcess:
        return TokenProcess(self.deployment.token("signing"), "signing", self._keystore[layout.pin_name("signing")])

    def _service_accounts(self) -> ServiceAccounts:
        return ServiceAccounts(self.deployment, self._keystore, self._managed, time.time_ns)

    def _issue(self, name: str) -> None:
        try:
            if self._accounts is not None:
                self._accounts.issue(name)
        except TallystickError as exc:
            # It waits for one, and is started again where none comes.
            self._report(f"{name} gets no token yet: {exc}")

    async def _issue_tokens(self) -> None:
        """Keep a token ready for each strategy that runs here."""
        while True:
            await asyncio.sleep(LOOK_S)
            running = [name for name, m in self._managed.items() if m.running is not None]
            try:
                if self._accounts is None:
                    self._accounts = await asyncio.to_thread(self._service_accounts)
                await asyncio.to_thread(self._accounts.refresh, running)
            except TallystickError as exc:
                self._report(f"strategies get no tokens, trying again: {exc}")
                if self._accounts is not None:
                    self._accounts.close()
                    self._accounts = None
                await asyncio.sleep(BROKER_RETRY_S)

    async def _provision(self, signing: TokenProcess) -> None:
        made = await broker.provision_all(self.deployment, self._keystore, self.bus, signing, self.server.url)
        self._report(f"streams and durables: {len(made.created)} made, {len(made.updated)} changed")

    async def _renew_broker(self) -> None:
        """The broker's certificate lives as long as everybody's, and it cannot ask for the next one itself."""
        shown = broker.identity(self.deployment, self._keystore)
        while True:
            await asyncio.sleep(RENEW_CHECK_S)
            if not shown.due(time.time_ns()):
                continue
            try:
                await asyncio.to_thread(broker.renew, self.deployment, self._keystore, self.server)
            except TallystickError as exc:
                self._report(f"broker: its certificate was not renewed, trying again: {exc}")
                await asyncio.sleep(BROKER_RETRY_S)
            else:
                shown = broker.identity(self.deployment, self._keystore)

    # -- processes ------------------------------------------------------------------------------

    def _secrets(self, name: str) -> dict[str, Secret]:
        return {n: self._keystore[n] for n in self.deployment.secret_names(name)}

    def _launch(self, name: str) -> None:
        certificates.ensure(self.deployment, self._keystore, (name,), time.time_ns())
        self._issue(name)
        channel = self.vault.channel(name, self._tasks) if self.vault is not None else None
        self._managed[name].launch(self._secrets(name), channel)

    async def _ready(self, names: list[str]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        waiting = set(names)
        while waiting:
            for name in sorted(waiting):
                managed = self._managed[name]
                if managed.ready:
                    managed.state.state = "ready"
                    waiting.discard(name)
                elif (ended := managed.ended) is not None:
                    if ended.returncode != layout.EXIT_REVOKED:
                        raise ConfigError("START_FAILED", f"{name} ended with {ended.returncode}: {managed.why()}")
                    # The watch says so, and waits for its new key.
                    waiting.discard(name)
            if waiting and time.monotonic() > deadline:
                raise ConfigError(
                    "START_TIMEOUT",
                    f"not ready after {START_TIMEOUT_S:.0f} s: {', '.join(sorted(waiting))}; see {self.deployment.log('*').parent}",
                )
            await asyncio.sleep(0.02)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(0.2)
            try:
                self.server.check()
            except ServerStopped as exc:
                self._report(f"broker: {exc.text}; starting it again")
                await self._start_broker_again()
            for name, managed in self._managed.items():
                if managed.wanted and (ended := managed.ended) is not None:
                    self._ended(name, managed, ended)
                elif managed.state.state == "starting" and managed.ready:
                    managed.state.state = "ready"
                elif managed.state.state == "revoked" and managed.has_another_certificate:
                    self._launch(name)

    async def _start_broker_again(self) -> None:
        """With its durables, which lived in its memory; where that fails, it is found stopped and started again."""
        await asyncio.to_thread(self.server.stop)
        try:
            await asyncio.to_thread(self.server.start)
            self._precede()
            with self._signing_token() as signing:
                await self._provision(signing)
        except TallystickError as refused:
            # A disk that is still full, a port that was taken meanwhile: said each time, tried again.
            self._report(f"broker: {refused.text}")
            await asyncio.to_thread(self.server.stop)
            await asyncio.sleep(BROKER_RETRY_S)

    def _ended(self, name: str, managed: Managed, process: subprocess.Popen[bytes]) -> None:
        now = time.monotonic()
        code = managed.state.exit_code = process.returncode
        managed.ends.append(now)
        recent = [t for t in managed.ends if now - t < RESTART_WINDOW_S]
        if code == layout.EXIT_REVOKED:
            managed.process = None
            managed.state.state = "revoked"
            self._report(f"{name} stays down until `tallystick reinstate`: {managed.why()}")
            return
        if code == 2 or len(recent) >= MAX_RESTARTS:
            managed.wanted = False
            managed.state.state = "failed"
            self._report(f"{name} ended with {code} and stays down: {managed.why()}")
            return
        pause = PAUSES_S[min(len(recent) - 1, len(PAUSES_S) - 1)]
        self._report(f"{name} ended with {code}; starting it again in {pause} s")
        managed.process = None
        managed.state.state = "restarting"
        managed.state.restarts += 1
        self._tasks.start(self._restart(name, pause), f"restart {name}")

    async def _restart(self, name: str, pause: float) -> None:
        await asyncio.sleep(pause)
        if self._managed[name].wanted and self._managed[name].process is None:
            self._launch(name)

    async def failed(self) -> None:
        """Wait until the supervisor itself fails, and raise `SupervisorFailed`: there is no watch any more."""
        try:
            await self._tasks.failed()
        except Exception as exc:
            path = self.deployment.log("supervisor")
            open_log(path, "supervisor").exception("failed", error=type(exc).__name__)
            raise SupervisorFailed("SUPERVISOR", f"{type(exc).__name__}: {exc}; see {path}") from exc

    async def stop(self) -> None:
        """Stop everything in order; what does not stop in time is killed.  Idempotent."""
        await self._beside.end()
        await self._tasks.end()
        for group in _STOP_ORDER:
            names = [n for n in self._managed if any(n == g or (g.endswith("-") and n.startswith(g)) for g in group)]
            await asyncio.gather(*(self._stop(name) for name in names))
        await asyncio.gather(*(self._stop(name) for name in self._managed))
        if self.vault is not None:
            await self._patiently("the vault", asyncio.to_thread(self.vault.stop, STOP_TIMEOUT_S))
        if self._server is not None:
            await self._patiently("the broker", asyncio.to_thread(self._server.stop, STOP_TIMEOUT_S))
        self._let_go()

    def _let_go(self) -> None:
        if self._accounts is not None:
            self._accounts.close()
            self._accounts = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    async def _patiently(self, name: str, ending: Coroutine[Any, Any, None]) -> None:
        """Wait for `ending`, which is bounded, and say so if that takes a while."""
        task = asyncio.ensure_future(ending)
        await asyncio.wait((task,), timeout=PATIENCE_S)
        if not task.done():
            self._report(
                f"waiting for {name}, {STOP_TIMEOUT_S:.0f} s at most; Ctrl-C once more ends everything at once"
            )
        await task

    async def _stop(self, name: str) -> None:
        managed = self._managed[name]
        managed.wanted = False
        managed.state.state = "stopped"
        process = managed.running
        if process is None:
            return
        process.terminate()
        await self._patiently(name, managed.gone(STOP_TIMEOUT_S))
        if process.poll() is None:
            process.kill()
            process.wait()
            self._unclean(f"{name} did not stop within {STOP_TIMEOUT_S:.0f} s: killed")
        elif process.returncode > 0:
            self._unclean(f"{name} ended with {process.returncode}: {managed.why()}")
        managed.state.exit_code = process.returncode

    def _unclean(self, text: str) -> None:
        self.unclean.append(text)
        self._report(text)

    def end_at_once(self) -> None:
        """SIGKILL for all that this started.  What was acknowledged is on disk: the next start recovers as after a crash."""
        processes = [m.process for m in self._managed.values() if m.process is not None]
        for process in processes:
            process.kill()
        if self.vault is not None:
            self.vault.kill()
        if self._server is not None:
            self._server.kill()
        for process in processes:
            process.wait()
        for name in self._managed:
            unready(self.deployment, name)
        self._let_go()

    def kill(self, name: str) -> None:
        """SIGKILL one process, as a crash would; the watch starts it again."""
        process = self._managed[name].running
        if process is None:
            raise ConfigError("PROCESS", f"{name} is not running")
        process.kill()
