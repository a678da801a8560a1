"""`tallystick demo`: the whole system on real servers, with attacks, ending in a verified audit.

What it shows happens: the broker, the tokens, the venue and every process are the ones that `tallystick up`
runs; the intruder's attacks go the real way (`intruder`); each line of the summary is read off the bus, the
archive or an exit code.  The exit code is 0 only if every promise of the summary held.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.console import Console as Screen
from rich.live import Live
from rich.table import Table

from tallystick.cli import operate, view
from tallystick.cli.demo_folder import alone, clear, mark
from tallystick.cli.intruder import Attack, Intruder, outcome
from tallystick.cli.stopping import INTERRUPTED, Stopped, signals, unless
from tallystick.cli.story import INTRUDER, MISTAKES, Story, tell, unseen_mistakes
from tallystick.components.console.main import Console
from tallystick.components.market_data.dumps import find_dumps
from tallystick.components.paper_exchange.journal import read_journal
from tallystick.runtime.bus.received import Received
from tallystick.runtime.bus.tasks import Tasks
from tallystick.runtime.deployment import process
from tallystick.runtime.deployment.ceremony import init
from tallystick.runtime.deployment.folder import Deployment
from tallystick.runtime.deployment.service_accounts import serving
from tallystick.runtime.deployment.supervisor import Supervisor
from tallystick.runtime.keys.keystore import Keystore, Secret
from tallystick.schemas.errors import TallystickError
from tallystick.schemas.subjects import Subject

NAME: Final = "demo"
# Where recordings are looked for when none is named: nowhere else.
DATA: Final = Path("data")
# What the market may end later than it is meant to, on a busy machine.
LATE_S: Final = 60
SETTLE_S: Final = 3.0
LINE_S: Final = 2.0
REFRESH_S: Final = 0.25
QUERIES: Final = (
    ("every order with its permit and its fills", "orders"),
    ("what was denied, and why", "denials"),
    ("who published what", "publishers"),
)
COMMAND: Final = (sys.executable, "-P", "-m", "tallystick.cli.main")
# What is counted in the archive, and the line that it answers.
COUNTED: Final = ("trades", "quotes", "permits", "fills")
COUNT: Final = """\
select (select count(*) from trades), (select count(*) from quotes),
(select count(*) from decisions where verdict = 'permit'), (select count(*) from fills)"""
COUNTS: Final = re.compile(",".join(["[0-9]+"] * len(COUNTED)))
RUNAWAY: Final = "strategy-runaway"
BURST_CODE: Final = "INTENT_BURST"


class Check(msgspec.Struct, frozen=True):
    """One promise of the demo and whether it held."""

    promise: str
    held: bool
    seen: str


class Demo:
    """One run.  Owns the folder, the supervisor, the console and the list of promises."""

    def __init__(self, directory: Path, story: Story, screen: Screen) -> None:
        self._directory = directory
        self._story = story
        self._screen = screen
        self._notes: list[str] = []
        self._captured: dict[str, tuple[Subject, bytes]] = {}
        self._console = Console(self._capture)
        self._attacks: list[Attack] = []
        self._checks: list[Check] = []

    # -- before ---------------------------------------------------------------------------------

    def prepare(self) -> tuple[Deployment, Keystore]:
        """A fresh deployment under a random PIN that dies with this process."""
        for line in self._story.says:
            self._say(line)
        clear(self._directory, self._say)
        pin = Secret.random()
        deployment = init(
            self._directory,
            NAME,
            pin,
            time.time_ns,
            strategies=self._story.strategies,
            template=self._story.template,
            progress=self._say,
        )
        mark(self._directory)
        return deployment, Keystore.open(deployment.keystore, pin)

    # -- during ---------------------------------------------------------------------------------

    def _say(self, text: str) -> None:
        self._notes = [*self._notes[-5:], text]
        self._screen.print(f"{time.strftime('%H:%M:%S', time.gmtime())}  {text}", highlight=False, markup=False)

    def _note(self, text: str) -> None:
        """Something happened while the view is up: shown in it, or as a line without a terminal."""
        self._notes = [*self._notes[-5:], text]
        if not self._screen.is_terminal:
            self._say(text)

    def _capture(self, received: Received) -> None:
        where = received.subject
        if where.kind == "order.intent" and where.strategy != INTRUDER:
            self._captured.setdefault(where.strategy, (where, received.verified.payload))

    async def run(self, deployment: Deployment, keystore: Keystore) -> None:
        """Everything between start and stop."""
        tasks, stop_console = Tasks(), asyncio.Event()
        consoles: list[asyncio.Task[None]] = []

        async def before_market() -> None:
            secrets = {name: keystore[name] for name in deployment.secret_names("console")}
            setup = process.load_setup(deployment.directory, "console", secrets)
            consoles.append(tasks.start(process.run(setup, self._console, stop_console), "console"))
            await operate.arm(deployment, keystore, Decimal(1))
            self._say("execution is armed for an hour by the operator's key; the market opens")

        supervisor = Supervisor(
            deployment,
            keystore,
            report=self._note,
            before_market=before_market,
            apart=frozenset((f"strategy-{INTRUDER}",)),
        )
        # The intruder has what `up` gives to the strategy that he has taken over, its tokens among it.
        with signals() as stop, serving(deployment, keystore, (f"strategy-{INTRUDER}",)):
            stop.at_once = supervisor.end_at_once
            try:
                started = time.monotonic()
                await unless(stop, supervisor.start(), tasks.failed())
                seen = f"{len(supervisor.states)} processes in {time.monotonic() - started:.1f} s"
                self._promise("everything starts", True, seen)
                await unless(
                    stop, self._live(deployment, keystore, Tasks(within=tasks)), supervisor.failed(), tasks.failed()
                )
                self._judge(supervisor)
                self._venue_agrees(deployment)
            finally:
                self._say("stopping: every chain gets its closing statement")
                stop_console.set()
                for ended in await asyncio.gather(*consoles, return_exceptions=True):
                    if isinstance(ended, TallystickError):
                        self._say(f"console: {ended}")
                await supervisor.stop()

    async def _live(self, deployment: Deployment, keystore: Keystore, tasks: Tasks) -> None:
        attacking = tasks.start(self._attack(deployment, keystore), "attack")
        tasks.start(self._show(), "view")
        try:
            await self._play()
            await attacking
            await asyncio.sleep(SETTLE_S)
        finally:
            await tasks.end()

    async def _show(self) -> None:
        if not self._screen.is_terminal:
            return
        with Live(get_renderable=self._render, console=self._screen, auto_refresh=False) as live:
            while True:
                live.refresh()
                await asyncio.sleep(REFRESH_S)

    def _render(self) -> Any:
        ctx = self._console.ctx
        if ctx is None:
            return "the console logs in"
        return view.render(
            self._console.state, ctx.sessions, time.time_ns(), "Tallystick demo", self._notes, self._screen.size
        )

    async def _play(self) -> None:
        """Until the market has ended, or it clearly will not."""
        state = self._console.state
        deadline = time.monotonic() + self._story.seconds * 2 + LATE_S
        shown = 0.0
        while not state.ended and time.monotonic() < deadline:
            if not self._screen.is_terminal and time.monotonic() - shown > LINE_S and self._console.ctx is not None:
                shown = time.monotonic()
                self._say(view.lines(state, self._console.ctx.sessions, time.time_ns()))
            await asyncio.sleep(0.2)
        self._note("the market has closed")

    async def _attack(self, deployment: Deployment, keystore: Keystore) -> None:
        ctx = self._console.ctx
        while ctx is None or not self._captured:
            await asyncio.sleep(0.1)
            ctx = self._console.ctx
        victim, captured = next(iter(self._captured.values()))
        symbol = victim.symbol
        intruder = Intruder(deployment, keystore, ctx.trust, INTRUDER, symbol, ctx.log)
        await intruder.enter()
        self._note(f"an intruder owns strategy-{INTRUDER}, and has read a sealed message of {victim.strategy}")
        steps: list[Callable[[], Any]] = [
            lambda: intruder.trespass(victim),
            lambda: intruder.forge(captured),
            lambda: intruder.redirect(captured, victim),
            intruder.replay,
            intruder.unlisted,
            intruder.expired,
        ]
        try:
            for step in steps:
                try:
                    attack = await outcome(await step(), self._console.state)
                except (TallystickError, TimeoutError) as exc:
                    attack = Attack(name="attack", told="could not be carried out", refused_as=(), outcome=repr(exc))
                self._attacks.append(attack)
                self._note(f"{'HELD' if attack.held else 'FAILED'}  {attack.name}: {attack.told} → {attack.outcome}")
        finally:
            await intruder.leave()

    # -- after ----------------------------------------------------------------------------------

    def _judge(self, supervisor: Supervisor) -> None:
        state = self._console.state
        played, meant = (state.totals["md.trade"], state.totals["md.quote"]), (self._story.trades, self._story.quotes)
        seen = f"{played[0]:,} trades of {meant[0]:,}, {played[1]:,} quotes of {meant[1]:,}"
        self._promise("the market was played whole", played == meant, seen)
        permits, fills = state.verdicts["permit"], sum(state.fills.values())
        filled = ", ".join(f"{strategy} {count}" for strategy, count in state.fills.most_common(4))
        self._promise("strategies traded", permits > 0 and fills > 0, f"{permits} permits, {fills} fills: {filled}")
        unseen = unseen_mistakes(state.denials)
        seen = f"{len(MISTAKES) - len(unseen)} of {len(MISTAKES)} kinds"
        seen += f", not: {', '.join(unseen)}" if unseen else ""
        seen += "; " + ", ".join(f"{n} {c}" for c, n in state.denials.most_common(6))
        self._promise("each mistake of the clumsy strategy is denied", not unseen, seen)
        for attack in self._attacks:
            self._promise(f"refused: {attack.name}", attack.held, attack.outcome)
        self._promise("every attack was carried out", len(self._attacks) == 6, f"{len(self._attacks)} of 6")
        halted = state.trips_seen.get(RUNAWAY)
        found = next((a for _, a in state.alerts if (a.scope, a.code) == (RUNAWAY, BURST_CODE)), None)
        self._promise(
            "the runaway strategy was halted",
            halted is not None and found is not None,
            "no alert" if found is None else f"{found.code}: {found.text}",
        )
        honest = [s.name for s in self._story.strategies if s.component != RUNAWAY and s.name != INTRUDER]
        later = [s for s in honest if halted is not None and state.filled_at.get(s, 0) > halted]
        self._promise("the others traded on", bool(later), f"{', '.join(later) or 'none'} of {', '.join(honest)}")
        restarts = {s.name: s.restarts for s in supervisor.states if s.restarts}
        self._promise("no process fell over", not restarts, str(restarts) if restarts else "no restart")

    def _venue_agrees(self, deployment: Deployment) -> None:
        """What the venue wrote down against what was permitted: its own journal, outside the bus."""
        permitted = {f"ts{i.hex()}" for i, line in self._console.state.orders.items() if line.permitted}
        entries = read_journal(deployment.state("paper-exchange") / "requests.jsonl")
        asked = [e.client_order_id for e in entries if e.request == "POST /api/v3/order"]
        doubled = len(asked) - len(set(asked))
        alien = [i for i in asked if i not in permitted]
        seen = f"{len(asked)} orders at the venue, {doubled} doubled, {len(alien)} without a permit"
        self._promise(
            "the venue saw each permit at most once, and nothing else", bool(asked) and not doubled and not alien, seen
        )

    def _promise(self, promise: str, held: bool, seen: str) -> None:
        self._checks.append(Check(promise, held, seen))

    def audit(self) -> None:
        """Verify the archive, then ask it three questions."""
        self._say("audit verify, over everything:")
        code = self._command("audit", "verify", str(self._directory))
        self._promise("the audit verifies", code == 0, f"exit code {code}")
        for title, query in QUERIES:
            self._screen.print(f"\n[bold]{title}[/bold]  (tallystick audit sql {self._directory} --query {query})")
            code = self._command("audit", "sql", str(self._directory), "--query", query, "--limit", "12")
            self._promise(f"SQL: {title}", code == 0, f"exit code {code}")

        self._archive_agrees()

    def _archive_agrees(self) -> None:
        """What the archive counts against what was played and seen."""
        state = self._console.state
        meant = (self._story.trades, self._story.quotes, state.verdicts["permit"], sum(state.fills.values()))
        arguments = ("audit", "sql", str(self._directory), COUNT, "--format", "csv")
        done = subprocess.run(
            [*COMMAND, *arguments], check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, encoding="utf-8"
        )
        counts = [tuple(map(int, line.split(","))) for line in done.stdout.splitlines() if COUNTS.fullmatch(line)]
        counted = counts[-1] if counts else (0,) * len(meant)
        # The view may have closed before the last orders were decided and filled.
        held = counted[:2] == meant[:2] and all(has >= saw for has, saw in zip(counted, meant, strict=True))
        pairs = zip(counted, meant, COUNTED, strict=True)
        seen = ", ".join(f"{has:,} {word} of {saw:,}" for has, saw, word in pairs)
        self._promise("the archive holds what was played and seen", held, seen)

    def _command(self, *arguments: str) -> int:
        self._screen.file.flush()
        return subprocess.run([*COMMAND, *arguments], check=False, stdin=subprocess.DEVNULL).returncode

    def summary(self) -> int:
        """Print what held; 0 only if all of it did."""
        table = Table(title="what was promised", expand=False)
        table.add_column("")
        table.add_column("promise")
        table.add_column("seen")
        for check in self._checks:
            table.add_row("[green]ok[/green]" if check.held else "[red]NO[/red]", check.promise, check.seen[:110])
        self._screen.print(table)
        held = all(check.held for check in self._checks)
        where = os.path.relpath(self._directory)
        self._screen.print(f"\nThe archive lies in {where}/archive. Try next:", highlight=False)
        for line in (
            f"tallystick audit sql {where} --query denials",
            f"tallystick audit trace {where} ORDER_ID        an id from the table above: from the tick to the fill",
            f"tallystick replay {where} --subject 'order.>'    the recorded stream, verified again",
            "tallystick init ./desk && tallystick up ./desk    a deployment of your own",
        ):
            self._screen.print(f"  {line}", highlight=False, markup=False)
        return 0 if held else 1


def demo(directory: Path, data: list[Path], speed: Decimal | None) -> int:
    """Run the demo; the exit code.  Raises `TallystickError` for what cannot be used."""
    screen = Screen(soft_wrap=True)
    dumps = find_dumps(data or ([DATA] if DATA.is_dir() else []))
    for dump in dumps:
        screen.print(f"reading {dump}", highlight=False, markup=False)
    story = tell(dumps, speed)
    directory = directory.absolute()
    run = Demo(directory, story, screen)
    with alone(directory):
        deployment, keystore = run.prepare()
        try:
            asyncio.run(run.run(deployment, keystore))
        except Stopped:
            return INTERRUPTED
        run.audit()
        return run.summary()
