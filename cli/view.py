"""The live view of a desk: what flows, what was decided, what is held, what is tripped, who may act and how long.

`render` is a pure function of the console's state; `lines` says the same in plain text for those who have
no terminal.
"""

from __future__ import annotations

from collections import Counter
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
SHOWN_POSITIONS = 3
# So many columns show credentials side by side.
WIDE = 110
# Title, headings, the lines between the parts, balances and open orders; and what the tables get at least.
_FRAME = 7
_LEAST = 5

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
    """What was asked for last; the reason stands where a narrow terminal still shows it."""
    table = Table(expand=True, box=None, header_style="bold")
    for name, ratio in (("order", None), ("verdict", 3), ("", 3), ("strategy", 1), ("at the venue", 1)):
        table.add_column(name, no_wrap=True, ratio=ratio, min_width=8 if ratio is None else None)
    for line in list(state.orders.values())[-rows:]:
        price = "market" if line.price is None else _plain(line.price)
        table.add_row(
            line.short_id,
            Text(", ".join(line.codes) or line.verdict, style=_VERDICT_STYLE.get(line.verdict, "")),
            f"{line.side} {_plain(line.qty)} {line.symbol} at {price}",
            line.strategy,
            f"{line.state} {_plain(line.filled)}" if line.state else "",
        )
    return table


def _positions(state: DeskState, rows: int) -> Table:
    table = Table(expand=True, box=None, header_style="bold")
    table.add_column("position", no_wrap=True)
    for name in ("base", "average price", "profit", "fees, in the quote"):
        table.add_column(name, no_wrap=True, justify="right")
    found = sorted(state.positions.items(), key=lambda item: item[1].ts)[-rows:]
    for (strategy, symbol), held in sorted(found):
        style = "red" if held.net < 0 else "green"
        cells = (_plain(held.qty), _plain(held.average_price), Text(_plain(held.net), style=style), _plain(held.fees))
        table.add_row(f"{strategy} {symbol}", *cells)
    return table


def _balances(state: DeskState) -> Text:
    known = sorted(state.balances.items())
    texts = [
        f"{asset} {_plain(held.free)}" + (f" and {_plain(held.locked)} locked" if held.locked else "")
        for (_, asset), held in known
    ]
    return Text(" · ".join(texts) or "none told yet")


def _open(state: DeskState) -> Text:
    per = Counter(f"{line.strategy} {line.side} {line.symbol}" for line in state.open_orders)
    return Text(" · ".join(f"{count} {what}" for what, count in sorted(per.items())) or "none")


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
    return Text("\n".join(f"{r.code} {r.text} ({r.by})" for r in shown), style="yellow")


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
    positions = min(len(state.positions), SHOWN_POSITIONS)
    told = max(1, len(state.tripped)) + min(max(1, len(state.refusals)), SHOWN_REFUSALS) + positions
    notes = notes[-max(1, height - _FRAME - told - _LEAST) :]
    left = max(_LEAST, height - _FRAME - told - len(notes))
    rows = max(2, min(max(len(state.totals), 8), left // 2))
    top = Table.grid(expand=True, padding=(0, 2))
    top.add_column(ratio=1)
    top.add_column(ratio=1)
    top.add_row(_flow(state, rows), _sessions(sessions, now, rows, 2 if width >= WIDE else 1))
    parts: list[RenderableType] = [
        Text(title, style="bold reverse"),
        top,
        Text(),
        _orders(state, max(3, left - rows)),
        _positions(state, positions),
        _told("balances", _balances(state)),
        _told("open", _open(state)),
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
