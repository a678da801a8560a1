"""`tallystick audit`: verify the archive, ask it in SQL, trace an order."""

from __future__ import annotations

import csv
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from tallystick.schemas.errors import ConfigError
from tallystick.schemas.ids import id_text

if TYPE_CHECKING:
    from tallystick.record.trace import Step
    from tallystick.record.verify import Report

app = typer.Typer(no_args_is_help=True, help="Verify the archive, ask it in SQL, trace an order.")

# So many defects are printed; the rest is counted.
MAX_PRINTED: Final = 50
# Wide enough for any line where no terminal bounds it.
NO_TERMINAL: Final = 10_000

_Dir = Annotated[Path, typer.Argument(metavar="DIR", help="A deployment's folder, or an archive.", show_default=False)]
_Root = Annotated[
    Path | None,
    typer.Option("--root", help="The operator root's public key (hex); default: DIR/trust/operator-root.pub."),
]


class Format(StrEnum):
    """How rows are printed."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"


def _console() -> Console:
    # Piped text is not folded at 80 columns.
    return Console(width=None if sys.stdout.isatty() else NO_TERMINAL, highlight=False, markup=False, emoji=False)


def _shown(value: Any) -> str:
    """A value for people: no trailing zeros, and no control character reaches the terminal."""
    if value is None:
        return ""
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    head, point, tail = text.partition(".")
    if point and len(tail) == 18 and head.lstrip("-").isdigit() and tail.isdigit():
        text = f"{head}.{tail}".rstrip("0").rstrip(".")
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


@app.command(epilog="Example: tallystick audit verify ./desk      exit code 0 clean, 1 tampered, 2 could not run")
def verify(directory: _Dir, root: _Root = None) -> None:
    """Verify every seal, chain, row, file and manifest line, from the pinned key alone."""
    from tallystick.record import verify as verifying
    from tallystick.record.manifest import read_manifest
    from tallystick.record.place import locate

    place = locate(directory, root)
    total = read_manifest(place.archive).rows
    if not total and not any(place.archive.iterdir()):
        # Nobody who emptied the folder is told that all is well.
        raise ConfigError("ARCHIVE_EMPTY", f"{place.archive} holds nothing to verify; did the deployment ever run?")
    if sys.stderr.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("verifying", total=total)
            report = verifying.verify(
                place, lambda stream, done: bar.update(task, advance=done, description=f"verifying {stream}")
            )
    else:
        report = verifying.verify(place)
    _report(report)
    raise typer.Exit(0 if report.clean else 1)


def _report(report: Report) -> None:
    for problem in report.problems[:MAX_PRINTED]:
        print(f"TAMPERED  {_shown(str(problem))}")
    more = len(report.problems) + report.unshown - MAX_PRINTED
    if more > 0:
        print(f"TAMPERED  and {more} more")
    for torn in report.torn:
        missing = ", ".join(map(str, torn.missing[:16]))
        where = f"{torn.component}/{torn.boot.hex()[:8]} {torn.stream} seq {torn.seq}"
        print(f"torn      {where}: index {missing} was never stored, its process ended in the middle of the flush")
    for note in report.notes:
        print(f"note      {_shown(note)}")
    for code, count in sorted(report.incidents.items()):
        print(f"incident  {_shown(code)} {count} times: archived as evidence, without effect")
    counts = ", ".join(f"{report.status[s]} {s}" for s in ("ok", "late", "unlisted", "refused"))
    print(
        f"{report.messages} messages ({counts}), {report.events} events, {report.chains} chains, {len(report.torn)} torn, "
        f"{report.segments} segments, {report.entries} manifest lines, {report.checkpoints} checkpoints"
    )
    print("OK: everything verifies" if report.clean else "NOT CLEAN: see the positions above")


@app.command(epilog='Example: tallystick audit sql ./desk "select component, count(*) from events group by 1"')
def sql(
    directory: _Dir,
    text: Annotated[str, typer.Argument(metavar="[SQL]", help="One query; - reads it from standard input.")] = "",
    query: Annotated[str, typer.Option("--query", help="A prepared one: orders, denials, profit or publishers.")] = "",
    format: Annotated[Format, typer.Option("--format", help="How to print rows.")] = Format.TABLE,  # noqa: A002
    limit: Annotated[int, typer.Option(min=0, help="Print at most so many rows; 0: all.")] = 0,
    seconds: Annotated[int, typer.Option(min=1, max=3600, help="Give up after so much processor time.")] = 60,
) -> None:
    """Ask the archive in SQL.  Tables: events, orders, fills, decisions and more (`show tables`, `describe orders`)."""
    from tallystick.record.place import locate_archive
    from tallystick.record.query import Answer
    from tallystick.record.views import QUERIES

    if bool(text) == bool(query):
        raise ConfigError("SQL_MISSING", f"give either a query or --query {'|'.join(QUERIES)}")
    if query:
        if query not in QUERIES:
            raise ConfigError("SQL_QUERY", f"no prepared query {query[:32]!r}; there are {', '.join(QUERIES)}")
        text = QUERIES[query][1]
    elif text == "-":
        text = sys.stdin.read()
    answer = Answer(locate_archive(directory), text, limit=limit, seconds=seconds)
    if format is Format.CSV:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(answer.columns)
        for row in answer.rows:
            writer.writerow(
                "" if v is None else v if isinstance(v, str) else msgspec.json.encode(v).decode() for v in row
            )
    elif format is Format.JSON:
        for row in answer.rows:
            print(msgspec.json.encode(dict(zip(answer.columns, row, strict=True))).decode())
    else:
        table = Table(box=SIMPLE, pad_edge=False)
        for column in answer.columns:
            table.add_column(Text(_shown(column)))
        for row in answer.rows:
            table.add_row(*(Text(_shown(value)) for value in row))
        _console().print(table)
        shown = min(answer.total, limit) if limit else answer.total
        print(
            f"{answer.total} rows" if shown == answer.total else f"{shown} of {answer.total} rows (--limit 0 for all)"
        )


@app.command(epilog="Example: tallystick audit trace ./desk 01935478-7283-7000-8b4c-847c76da509f")
def trace(
    directory: _Dir,
    order: Annotated[str, typer.Argument(metavar="ORDER_ID", help="Intent, event, client or venue order id.")],
    root: _Root = None,
) -> None:
    """The whole causal chain of an order, from the ticks to the fills, each step verified."""
    from tallystick.record import trace as tracing
    from tallystick.record.place import locate

    steps = tracing.trace(locate(directory, root), order)
    known = {step.event_id: step for step in steps}
    children: dict[bytes | None, list[Step]] = {}
    for step in steps:
        children.setdefault(step.parent, []).append(step)
    tree = Tree(Text(f"order {order}: {len(steps)} events"))

    def grow(branch: Tree, parent: bytes | None) -> None:
        for step in children.get(parent, ()):
            grow(branch.add(_label(step, known)), step.event_id)

    grow(tree, None)
    _console().print(tree)
    bad = [step for step in steps if step.problem]
    print(f"{len(steps) - len(bad)} of {len(steps)} events verify" + (", the others do NOT" if bad else ""))
    raise typer.Exit(1 if bad else 0)


def _ns_text(ns: int) -> str:
    from tallystick.record.sandbox import ns_text

    return ns_text(ns)


def _label(step: Step, known: dict[bytes, Step]) -> Text:
    label = Text()
    if step.parent is None:
        label.append(_ns_text(step.ts), style="dim")
    else:
        label.append(f"{(step.ts - known[step.parent].ts) / 1e6:+.3f} ms", style="cyan")
    label.append(f"  {step.type.partition('/')[0]}", style="bold")
    label.append(f"  {_shown(step.summary)}")
    label.append(f"  {_shown(step.subject)}  by {_shown(step.component)}  {step.stream} {step.stream_seq}", style="dim")
    further = len(step.causes) - 1
    if further > 0:
        label.append(f"  (+{further} causes)", style="dim")
    if step.problem:
        label.append(f"  NOT VERIFIED: {_shown(step.problem)}", style="bold red")
    else:
        label.append("  verified", style="green")
        if step.status != "ok":
            label.append(f", {step.status}: without effect", style="yellow")
    label.append(f"  {id_text(step.event_id)}", style="dim")
    return label
