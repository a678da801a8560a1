"""The live view of a desk: what flows, what was decided, what is tripped, who may act and how long.

`render` is a pure function of the console's state; `lines` says the same in plain text for those who have
no terminal.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tallystick.components.console.state import DeskState, OrderLine, seconds_to_live
from tallystick.schemas.sessions import SessionView

SHOWN_ORDERS = 10
SHOWN_REFUSALS = 5
BREAKER_SILENT_NS = 1_000_000_000

_VERDICT_STYLE = {"permit": "green", "deny": "red", "cancel": "yellow"}


def _flow(state: DeskState) -> Table:
    table = Table(title="events", expand=True)
    table.add_column("subject")
    table.add_column("per second", justify="right")
    table.add_column("total", justify="right")
    for kind in sorted(state.totals):
        table.add_row(f"{kind}.>", f"{state.rates.get(kind, 0):,}", f"{state.totals[kind]:,}")
    return table


def _orders(state: DeskState) -> Table:
    table = Table(title="last orders", expand=True)
    for name in ("order", "strategy", "", "quantity", "price", "verdict", "at the venue"):
        table.add_column(name, no_wrap=True)
    for line in list(state.orders.values())[-SHOWN_ORDERS:]:
        style = _VERDICT_STYLE.get(line.verdict, "")
        verdict = line.verdict if not line.codes else f"{line.verdict} {', '.join(line.codes)}"
        table.add_row(
            line.short_id,
            line.strategy,
            f"{line.side} {line.symbol}",
            f"{line.qty:f}",
            _price(line),
            Text(verdict, style=style),
            f"{line.state} {line.filled:f}" if line.state else "",
        )
    return table


def _price(line: OrderLine) -> str:
    return "market" if line.price is None else f"{line.price:f}"


def _breaker(state: DeskState, now: int) -> Text:
    if now - state.breaker_at > BREAKER_SILENT_NS:
        return Text("no heartbeat: everything counts as tripped", style="bold red")
    if not state.tripped:
        return Text("all closed", style="green")
    return Text("\n".join(f"TRIPPED {t.scope}: {t.reason}" for t in state.tripped), style="bold red")


def _sessions(sessions: SessionView, now: int) -> Table:
    table = Table(title="credentials", expand=True)
    table.add_column("component")
    table.add_column("seconds to live", justify="right")
    for name, left in seconds_to_live(sessions, now):
        table.add_row(name, Text(str(left), style="red" if left < 3 else "green"))
    return table


def _refusals(state: DeskState) -> Text:
    shown = list(state.refusals)[-SHOWN_REFUSALS:]
    if not shown:
        return Text("none", style="green")
    return Text("\n".join(f"{r.by}: {r.code} {r.text}"[:150] for r in shown), style="yellow")


def render(state: DeskState, sessions: SessionView, now: int, title: str, notes: Sequence[str] = ()) -> Group:
    """The whole view at `now` (Unix ns)."""
    state.tick(now)
    top = Table.grid(expand=True, padding=(0, 1))
    top.add_column(ratio=3)
    top.add_column(ratio=2)
    top.add_row(_flow(state), _sessions(sessions, now))
    parts: list[RenderableType] = [
        Text(title, style="bold"),
        top,
        _orders(state),
        Panel(_breaker(state, now), title="breakers"),
    ]
    parts.append(Panel(_refusals(state), title="refused and noticed"))
    if notes:
        parts.append(Panel(Text("\n".join(notes)), title="what happens"))
    return Group(*parts)


def lines(state: DeskState, sessions: SessionView, now: int) -> str:
    """One plain line: totals, verdicts, breakers, the shortest credential."""
    state.tick(now)
    rates = sum(state.rates.values())
    verdicts = ", ".join(f"{n} {v}" for v, n in sorted(state.verdicts.items())) or "no decision yet"
    tripped = ", ".join(t.scope for t in state.tripped) or "none tripped"
    if now - state.breaker_at > BREAKER_SILENT_NS:
        tripped = "no heartbeat"
    left = [seconds for _, seconds in seconds_to_live(sessions, now)]
    return (
        f"{state.totals['md.trade']:,} ticks, {rates:,} events/s; {verdicts}; "
        f"{sum(state.fills.values())} fills; breakers: {tripped}; refused {sum(state.dead.values())}; "
        f"{len(left)} credentials, the shortest {min(left, default=0)} s"
    )
