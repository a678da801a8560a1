"""The live view of a desk: what flows, what was decided, what is tripped, who may act and how long.

`render` is a pure function of the console's state; `lines` says the same in plain text for those who have
no terminal.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tallystick.components.console.state import DeskState, seconds_to_live
from tallystick.schemas.bounds import MAX_HEARTBEAT_AGE_NS
from tallystick.schemas.sessions import SessionView

SHOWN_REFUSALS = 3
SHOWN_NOTES = 5
# So many columns show credentials side by side.
WIDE = 110
# Headings and the lines between the parts.
_FRAME = 6

_VERDICT_STYLE = {"permit": "green", "deny": "red", "cancel": "yellow"}


def _flow(state: DeskState, rows: int) -> Table:
    table = Table(expand=True, box=None, header_style="bold")
    table.add_column("events", no_wrap=True)
    table.add_column("a second", justify="right")
    table.add_column("total", justify="right")
    kinds = sorted(sorted(state.totals, key=lambda k: -state.totals[k])[:rows])
    for kind in kinds:
        table.add_row(f"{kind}.>", f"{state.rates.get(kind, 0):,}", f"{state.totals[kind]:,}")
    return table


def _orders(state: DeskState, rows: int) -> Table:
    table = Table(expand=True, box=None, header_style="bold")
    for name in ("last orders", "strategy", "", "quantity", "price", "verdict", "at the venue"):
        table.add_column(name, no_wrap=True)
    for line in list(state.orders.values())[-rows:]:
        style = _VERDICT_STYLE.get(line.verdict, "")
        verdict = line.verdict if not line.codes else f"{line.verdict} {', '.join(line.codes)}"
        table.add_row(
            line.short_id,
            line.strategy,
            f"{line.side} {line.symbol}",
            _plain(line.qty),
            "market" if line.price is None else _plain(line.price),
            Text(verdict, style=style),
            f"{line.state} {_plain(line.filled)}" if line.state else "",
        )
    return table


def _plain(value: Decimal) -> str:
    """Without the zeros that an answer's fixed scale appends."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _breaker(state: DeskState, now: int) -> Text:
    if now - state.breaker_at > MAX_HEARTBEAT_AGE_NS:
        return Text("no heartbeat: everything counts as tripped", style="bold red")
    if not state.tripped:
        return Text("all closed", style="green")
    return Text("\n".join(f"TRIPPED {t.scope}: {t.reason}" for t in state.tripped), style="bold red")


def _sessions(sessions: SessionView, now: int, rows: int, columns: int) -> Table:
    """In `columns` columns, those that end first at the top."""
    table = Table(expand=True, box=None, header_style="bold")
    for title in ("credentials", "s to live", "", "")[: 2 * columns]:
        table.add_column(title, no_wrap=True, justify="right" if table.columns and len(table.columns) % 2 else "left")
    found = sorted(seconds_to_live(sessions, now), key=lambda pair: pair[1])[: columns * rows]
    half = -(-len(found) // columns)
    for i in range(half):
        cells: list[Text] = []
        for name, left in found[i::half]:
            cells += [Text(name), Text(str(left), style="red" if left < 3 else "green")]
        table.add_row(*cells)
    return table


def _told(title: str, text: Text) -> Table:
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(width=10, no_wrap=True)
    table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    table.add_row(Text(title, style="bold"), text)
    return table


def _refusals(state: DeskState) -> Text:
    shown = list(state.refusals)[-SHOWN_REFUSALS:]
    if not shown:
        return Text("nothing", style="green")
    return Text("\n".join(f"{r.by}: {r.code} {r.text}" for r in shown), style="yellow")


def render(
    state: DeskState,
    sessions: SessionView,
    now: int,
    title: str,
    notes: Sequence[str] = (),
    size: tuple[int, int] = (120, 40),
) -> Group:
    """The whole view at `now` (Unix ns) for a terminal of `size` (columns, lines; from 80 and 24 on)."""
    width, height = size[0], size[1] - 1
    state.tick(now)
    notes = list(notes)[-SHOWN_NOTES:]
    told = max(1, len(state.tripped)) + min(max(1, len(state.refusals)), SHOWN_REFUSALS) + len(notes)
    left = max(6, height - _FRAME - told)
    rows = max(3, min(max(len(state.totals), 8), left // 2))
    top = Table.grid(expand=True, padding=(0, 2))
    top.add_column(ratio=1)
    top.add_column(ratio=1)
    top.add_row(_flow(state, rows), _sessions(sessions, now, rows, 2 if width >= WIDE else 1))
    parts: list[RenderableType] = [
        Text(title, style="bold reverse"),
        top,
        Text(),
        _orders(state, max(3, left - rows)),
        Text(),
        _told("breakers", _breaker(state, now)),
        _told("refused", _refusals(state)),
    ]
    if notes:
        parts.append(_told("happened", Text("\n".join(notes))))
    return Group(*parts)


def lines(state: DeskState, sessions: SessionView, now: int) -> str:
    """One plain line: totals, verdicts, breakers, the shortest credential."""
    state.tick(now)
    rates = sum(state.rates.values())
    verdicts = ", ".join(f"{n} {v}" for v, n in sorted(state.verdicts.items())) or "no decision yet"
    tripped = ", ".join(t.scope for t in state.tripped) or "none tripped"
    if now - state.breaker_at > MAX_HEARTBEAT_AGE_NS:
        tripped = "no heartbeat"
    left = [seconds for _, seconds in seconds_to_live(sessions, now)]
    return (
        f"{state.totals['md.trade']:,} ticks, {rates:,} events/s; {verdicts}; "
        f"{sum(state.fills.values())} fills; breakers: {tripped}; refused {sum(state.dead.values())}; "
        f"{len(left)} credentials, the shortest {min(left, default=0)} s"
    )
