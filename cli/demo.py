"""`tallystick demo`: the whole system on real servers, with attacks, ending in a verified audit.

What it shows happens: the broker, the tokens, the venue and every process are the ones that `tallystick up`
runs; the intruder's attacks go the real way (`intruder`); each line of the summary is read off the bus, the
archive or an exit code.  The exit code is 0 only if every promise of the summary held.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
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
from tallystick.cli.intruder import Attack, Intruder, outcome
from tallystick.cli.stopping import INTERRUPTED, Stopped, signals, unless
from tallystick.components.console.main import Console
from tallystick.components.market_data.dumps import DumpQuote, find_dumps
from tallystick.components.market_data.player import Tape, open_tape, speed_for
from tallystick.components.paper_exchange.journal import read_journal
from tallystick.runtime.bus.received import Received
from tallystick.runtime.bus.tasks import Tasks
from tallystick.runtime.deployment import process
from tallystick.runtime.deployment.ceremony import init
from tallystick.runtime.deployment.folder import Deployment, StrategyConfig
from tallystick.runtime.deployment.supervisor import Supervisor
from tallystick.runtime.keys.keystore import Keystore, Secret
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.errors import ConfigError, TallystickError
from tallystick.schemas.subjects import Subject

NAME: Final = "demo"
MARK: Final = ".tallystick-demo"
# Where recordings are looked for when none is named: nowhere else.
DATA: Final = Path("data")
PLAY_S: Final = 30
# As many as the synthetic market makes in that time.
SYNTHETIC_TICKS: Final = 3_000
# The trades of its instrument that the runaway strategy sees before it runs wild; fewer in a small market.
WILD_AFTER: Final = 3_000
# Short, so that renewal and expiry are there to be seen.
SESSION_S: Final = 20
SETTLE_S: Final = 3.0
INTRUDER: Final = "mallory"
LINE_S: Final = 2.0
REFRESH_S: Final = 0.25
EXAMPLES: Final = "tallystick.components.strategy.examples"
QUERIES: Final = (
    ("every order with its permit and its fills", "orders"),
    ("what was denied, and why", "denials"),
    ("who published what", "publishers"),
)

_TEMPLATE: Final = """\
# Written by `tallystick demo`.
deployment = {deployment}
host = "127.0.0.1"
session_lifetime_s = %(session)d

[broker]
port = {broker}

[authority]
port = {authority}

[venue]
name = "paper"
kind = "paper"
host = "127.0.0.1:{venue}"
account = "main"
%(instruments)s
[limits]
max_notional = "%(max_notional)s"
max_qty = "%(max_qty)s"
max_open_notional = "%(max_open)s"
max_position_notional = "%(max_open)s"
max_gross_notional = "%(max_open)s"
collar_bps = 200
messages_per_second = 20
burst = 40
stale_ms = 20000
%(caps)s
[market_data]
%(market)s
"""


class Instrument(msgspec.Struct, frozen=True):
    """What the demo trades: read off the data, or one of the defaults."""

    symbol: str
    base: str
    quote: str
    tick: Decimal
    step: Decimal
    min_notional: Decimal
    market_price: Decimal
    lot: Decimal

    @property
    def venue_symbol(self) -> str:
        """The venue's own name."""
        return self.base + self.quote

    def toml(self) -> str:
        """Its record in deployment.toml."""
        return (
            f'\n[[instruments]]\nvenue = "paper"\nsymbol = "{self.symbol}"\nvenue_symbol = "{self.venue_symbol}"\n'
            f'base = "{self.base}"\nquote = "{self.quote}"\ntick = "{self.tick:f}"\nstep = "{self.step:f}"\n'
            f'min_notional = "{self.min_notional:f}"\nmarket_price = "{self.market_price:f}"\n'
        )


class Check(msgspec.Struct, frozen=True):
    """One promise of the demo and whether it held."""

    promise: str
    held: bool
    seen: str


def _instrument(tape: Tape, symbol: str) -> Instrument:
    """The instrument of a recording: tick and step are the finest that occur in it."""
    base, _, quote = symbol.partition("/")
    finest_price = finest_qty = 0
    highest, lowest, volume, count = Decimal(0), Decimal("1e18"), Decimal(0), 0
    for _, traded, trade in tape.ticks():
        if traded != symbol or isinstance(trade, DumpQuote):
            continue
        finest_price = min(finest_price, _exponent(trade.price))
        finest_qty = min(finest_qty, _exponent(trade.qty))
        highest, lowest = max(highest, trade.price), min(lowest, trade.price)
        volume += trade.qty
        count += 1
    tick, step = Decimal(1).scaleb(finest_price), Decimal(1).scaleb(finest_qty)
    mean = volume / max(count, 1)
    lot = max(step, (mean / 2 // step) * step)
    return Instrument(
        symbol=symbol,
        base=base,
        quote=quote,
        tick=tick,
        step=step,
        min_notional=_one_digit(lot * lowest / 4),
        market_price=_one_digit(highest * 4),
        lot=lot,
    )


def _exponent(value: Decimal) -> int:
    exponent = value.normalize().as_tuple().exponent
    return exponent if isinstance(exponent, int) else 0


def _one_digit(value: Decimal) -> Decimal:
    """Rounded down to one significant digit, as people set limits."""
    shift = value.adjusted()
    return (value.scaleb(-shift) // 1).scaleb(shift)


class Demo:
    """One run.  Owns the folder, the supervisor, the console and the list of promises."""

    def __init__(self, directory: Path, data: list[Path], speed: Decimal | None, screen: Screen) -> None:
        self._directory = directory
        self._data = data
        self._speed = speed
        self._screen = screen
        self._notes: list[str] = []
        self._captured: dict[str, tuple[Subject, bytes]] = {}
        self._console = Console(self._capture)
        self._attacks: list[Attack] = []
        self._checks: list[Check] = []
        self._rows = 0

    # -- before ---------------------------------------------------------------------------------

    def prepare(self) -> tuple[Deployment, Keystore]:
        """A fresh deployment under a random PIN that dies with this process."""
        instruments, market = self._market()
        template = _TEMPLATE % {
            "session": SESSION_S,
            "instruments": "".join(i.toml() for i in instruments),
            "max_notional": f"{_one_digit(max(i.lot * i.market_price for i in instruments) * 4):f}",
            "max_qty": f"{max(i.lot for i in instruments) * 20:f}",
            "max_open": f"{_one_digit(max(i.lot * i.market_price for i in instruments) * 400):f}",
            "caps": "".join(self._cap(quote, instruments) for quote in dict.fromkeys(i.quote for i in instruments)),
            "market": market,
        }
        self._clear()
        pin = Secret.random()
        deployment = init(
            self._directory,
            NAME,
            pin,
            time.time_ns,
            strategies=_strategies(instruments, min(WILD_AFTER, self._rows // 4)),
            template=template,
            progress=self._say,
        )
        (self._directory / MARK).touch()
        return deployment, Keystore.open(deployment.keystore, pin)

    @staticmethod
    def _cap(quote: str, instruments: list[Instrument]) -> str:
        largest = max(i.lot * i.market_price for i in instruments if i.quote == quote)
        return (
            f'\n[[caps]]\naccount = "main"\nquote = "{quote}"\nmax_order_notional = "{_one_digit(largest * 8):f}"\n'
            f'max_hourly_notional = "{_one_digit(largest * 4000):f}"\n'
        )

    def _market(self) -> tuple[list[Instrument], str]:
        if not self._data:
            self._say(f"no recording given, and no folder ./{DATA}: a seeded synthetic market plays")
            instruments = [
                Instrument("XRP/ETH", "XRP", "ETH", Decimal("0.00000001"), Decimal(1), Decimal("0.01"), Decimal("0.006"), Decimal(100)),
                Instrument("BTC/USDT", "BTC", "USDT", Decimal("0.01"), Decimal("0.00001"), Decimal(10), Decimal(160000), Decimal("0.001")),
            ]  # fmt: skip
            self._rows = SYNTHETIC_TICKS
            given = self._speed or Decimal(1)
            return instruments, f'source = "synthetic"\nseed = 7\ncount = {SYNTHETIC_TICKS}\nspeed = "{given}"\n'
        tape = open_tape([p.absolute() for p in self._data])
        self._rows = tape.trades
        speed = self._speed
        if speed is None:
            exact = speed_for(tape, PLAY_S * SECOND)
            speed = max(Decimal("0.001"), (Decimal(exact.numerator) / exact.denominator).quantize(Decimal("0.001")))
        instruments = [_instrument(tape, symbol) for symbol in tape.symbols]
        instruments.sort(key=lambda i: i.symbol != "XRP/ETH")
        paths = json.dumps([str(p.absolute()) for p in self._data])
        self._say(f"{tape.trades:,} recorded trades of {', '.join(tape.symbols)} at {speed} times their speed")
        return instruments, f'source = "dump"\npaths = {paths}\nspeed = "{speed}"\n'

    def _clear(self) -> None:
        if not self._directory.exists():
            return
        if any(self._directory.iterdir()) and not (self._directory / MARK).exists():
            raise ConfigError("DEMO_FOLDER", f"{self._directory} is not a demo's folder: choose another with --dir")
        shutil.rmtree(self._directory)

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
        with signals() as stop:
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
        deadline = time.monotonic() + (PLAY_S * 2 if self._speed is None else 100)
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
        trades = state.totals["md.trade"]
        self._promise("the market was played whole", trades == self._rows, f"{trades:,} ticks of {self._rows:,}")
        permits, fills = state.verdicts["permit"], sum(state.fills.values())
        self._promise("strategies traded", permits > 0 and fills > 0, f"{permits} permits, {fills} fills")
        codes = {code for code in state.denials if code != "BREAKER_TRIPPED"}
        self._promise(
            "what breaks a limit is denied",
            len(codes) >= 2,
            ", ".join(f"{n} {c}" for c, n in state.denials.most_common(6)),
        )
        for attack in self._attacks:
            self._promise(f"refused: {attack.name}", attack.held, attack.outcome)
        self._promise("every attack was carried out", len(self._attacks) == 6, f"{len(self._attacks)} of 6")
        scope = "strategy-runaway"
        halted = state.trips_seen.get(scope)
        self._promise(
            "the runaway strategy was halted",
            halted is not None,
            next((f"{a.code}: {a.text}" for _, a in state.alerts), "no alert"),
        )
        later = [s for s, at in state.filled_at.items() if s != "runaway" and halted is not None and at > halted]
        self._promise("the others traded on", bool(later), ", ".join(later) or "nobody")
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

    def _command(self, *arguments: str) -> int:
        self._screen.file.flush()
        done = subprocess.run(
            [sys.executable, "-P", "-m", "tallystick.cli.main", *arguments],
            check=False,
            stdin=subprocess.DEVNULL,
        )
        return done.returncode

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


def _strategies(instruments: list[Instrument], wild_after: int) -> list[StrategyConfig]:
    """Momentum on every instrument; the clumsy, the wild (after so many trades) and the compromised one on the first."""
    main = (instruments[0].symbol,)
    wild = {"burst": "3", "after": str(wild_after)}
    made = [
        StrategyConfig(name="momentum", module=f"{EXAMPLES}.momentum", instruments=main),
        StrategyConfig(name="fat-finger", module=f"{EXAMPLES}.fat_finger", instruments=main),
        StrategyConfig(name="runaway", module=f"{EXAMPLES}.runaway", instruments=main, params=wild),
        StrategyConfig(name=INTRUDER, module=f"{EXAMPLES}.momentum", instruments=main),
    ]
    made += [
        StrategyConfig(name=f"momentum-{i.base.lower()}", module=f"{EXAMPLES}.momentum", instruments=(i.symbol,))
        for i in instruments[1:]
    ]
    return made


def demo(directory: Path, data: list[Path], speed: Decimal | None) -> int:
    """Run the demo; the exit code.  Raises `TallystickError` for what cannot be used."""
    screen = Screen(soft_wrap=True)
    run = Demo(directory.absolute(), find_dumps(data or ([DATA] if DATA.is_dir() else [])), speed, screen)
    deployment, keystore = run.prepare()
    try:
        asyncio.run(run.run(deployment, keystore))
    except Stopped:
        return INTERRUPTED
    run.audit()
    return run.summary()
