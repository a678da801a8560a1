"""`tallystick audit`: verify the archive, ask it in SQL, trace an order."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text
from rich.tree import Tree

from tallystick.cli.rows import Format, console, print_csv, print_json, print_table, shown
from tallystick.schemas.errors import ConfigError
from tallystick.schemas.ids import id_text

if TYPE_CHECKING:
    from tallystick.record.trace import Step
    from tallystick.schemas.seal import Verifier

app = typer.Typer(no_args_is_help=True, help="Verify the archive, ask it in SQL, trace an order.")

_Dir = Annotated[Path, typer.Argument(metavar="DIR", help="A deployment's folder, or an archive.", show_default=False)]
_Root = Annotated[
    Path | None,
    typer.Option("--root", help="The operator root's public key (hex); default: DIR/trust/operator-root.pub."),
]


_From = Annotated[str, typer.Option("--from", help="Only what was stored from then on: ISO 8601 in UTC, or Unix ns.")]
_Until = Annotated[str, typer.Option("--until", help="Only what was stored before: the past as it was known then.")]


def _stored(since: str, until: str) -> tuple[int, int]:
    from tallystick.record.views import ALWAYS
    from tallystick.replay.selection import parse_time

    return parse_time(since) if since else ALWAYS[0], parse_time(until) if until else ALWAYS[1]


def _verifiers(directory: Path, root: Path | None) -> list[Verifier]:
    """Under which checkpoints are held; none where an archive lies without a key to it."""
    from tallystick.record.place import load_verifiers, locate, locate_archive

    beside = locate_archive(directory).parent / "trust" / "operator-root.pub"
    return load_verifiers(locate(directory, root)) if root is not None or beside.is_file() else []


@app.command(epilog="Example: tallystick audit verify ./desk      exit code 0 clean, 1 tampered, 2 could not run")
def verify(
    directory: _Dir,
    root: _Root = None,
    expect: Annotated[
        str,
        typer.Option(
            "--expect",
            metavar="CHECKPOINT",
            help="A checkpoint kept elsewhere, LINES:HASH or a file with it or a signed note: shows whether the end was cut.",
        ),
    ] = "",
) -> None:
    """Verify every seal, chain, row, file and manifest line, from the pinned key alone."""
    from tallystick.cli.verified import print_report
    from tallystick.record import verify as verifying
    from tallystick.record.checkpoints import parse_expected
    from tallystick.record.place import locate

    place = locate(directory, root)
    expected = parse_expected(expect) if expect else None
    verification = verifying.Verification(place, expected=expected)
    if not verification.manifest.count and not any(place.archive.glob("stream=*")):
        # Nobody who emptied the folder is told that all is well.
        raise ConfigError("ARCHIVE_EMPTY", f"{place.archive} holds nothing to verify; did the deployment ever run?")
    if sys.stderr.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("verifying", total=verification.manifest.rows)
            verification.progress = lambda stream, done: bar.update(
                task, advance=done, description=f"verifying {stream}"
            )
            report = verification.run()
    else:
        report = verification.run()
    print_report(place, report)
    raise typer.Exit(0 if report.clean else 1)


@app.command(epilog='Example: tallystick audit sql ./desk "select component, count(*) from events group by 1"')
def sql(
    directory: _Dir,
    text: Annotated[str, typer.Argument(metavar="[SQL]", help="One query; - reads it from standard input.")] = "",
    query: Annotated[str, typer.Option("--query", help="A prepared one: orders, denials, profit or publishers.")] = "",
    format: Annotated[Format, typer.Option("--format", help="How to print rows.")] = Format.TABLE,  # noqa: A002
    limit: Annotated[int, typer.Option(min=0, help="Print at most so many rows; 0: all.")] = 0,
    seconds: Annotated[int, typer.Option(min=1, max=3600, help="Give up after so much processor time.")] = 60,
    since: _From = "",
    until: _Until = "",
    raw: Annotated[
        bool, typer.Option("--raw", help="CSV as it is, not guarded against spreadsheets' formulas.")
    ] = False,
    root: _Root = None,
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
    if raw and format is not Format.CSV:
        raise ConfigError("OPTION", "--raw is about --format csv")
    first, last = _stored(since, until)
    verifiers = _verifiers(directory, root)
    answer = Answer(
        locate_archive(directory), text, limit=limit, seconds=seconds, since=first, until=last, verifiers=verifiers
    )
    if format is Format.CSV:
        print_csv(answer.columns, answer.rows, raw=raw)
    elif format is Format.JSON:
        print_json(answer.columns, answer.rows)
    else:
        print_table(answer.columns, answer.rows)
        count = min(answer.total, limit) if limit else answer.total
        print(
            f"{answer.total} rows" if count == answer.total else f"{count} of {answer.total} rows (--limit 0 for all)"
        )
    print(answer.basis, file=sys.stdout if format is Format.TABLE else sys.stderr)


@app.command(epilog="Example: tallystick audit files ./desk --stream ORDERS")
def files(
    directory: _Dir,
    stream: Annotated[list[str] | None, typer.Option("--stream", help="Of this stream alone; may be repeated.")] = None,
    since: _From = "",
    until: _Until = "",
    root: _Root = None,
) -> None:
    """The files that count, one a line, for any engine that reads Parquet; each is what the manifest names."""
    from tallystick.record.export import live_files
    from tallystick.record.place import locate_archive
    from tallystick.schemas.subjects import STREAMS

    for name in stream or ():
        if name not in STREAMS:
            raise ConfigError("OPTION", f"--stream is one of {', '.join(STREAMS)}, got {name[:32]!r}")
    found, basis = live_files(locate_archive(directory), _verifiers(directory, root), *_stored(since, until))
    for path in found:
        if not stream or path.parts[-3].partition("=")[2] in stream:
            print(path)
    print(basis, file=sys.stderr)


@app.command(epilog="Example: tallystick audit export ./desk ./tables --view orders --view fills")
def export(
    directory: _Dir,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make.", show_default=False)],
    view: Annotated[list[str] | None, typer.Option("--view", help="A view; may be repeated; default: all.")] = None,
    since: _From = "",
    until: _Until = "",
    root: _Root = None,
) -> None:
    """The views as Parquet files, ids as text, for any engine that reads Parquet."""
    from tallystick.record.export import BASIS
    from tallystick.record.export import export as write
    from tallystick.record.place import locate_archive

    bounds = _stored(since, until)
    for path, rows in write(locate_archive(directory), out, view or [], _verifiers(directory, root), *bounds):
        print(f"{path}  {rows} rows")
    print((out / BASIS).read_text("utf-8"), end="")


@app.command(epilog="Example: tallystick audit trace ./desk 01935478-7283-7000-8b4c-847c76da509f")
def trace(
    directory: _Dir,
    order: Annotated[str, typer.Argument(metavar="ORDER_ID", help="Intent, event, client or venue order id.")],
    root: _Root = None,
) -> None:
    """The whole causal chain of an order, from the ticks to the fills, each step verified."""
    from tallystick.record import trace as tracing
    from tallystick.record.basis import basis as basis_of
    from tallystick.record.basis import read_sound
    from tallystick.record.place import load_verifiers, locate

    place = locate(directory, root)
    manifest = read_sound(place.archive)
    basis = basis_of(place.archive, manifest, load_verifiers(place))
    steps = tracing.trace(place, order, manifest)
    known = {step.event_id: step for step in steps}
    children: dict[bytes | None, list[Step]] = {}
    for step in steps:
        children.setdefault(step.parent, []).append(step)
    tree = Tree(Text(f"order {order}: {len(steps)} events"))

    def grow(branch: Tree, parent: bytes | None) -> None:
        for step in children.get(parent, ()):
            grow(branch.add(_label(step, known)), step.event_id)

    grow(tree, None)
    console().print(tree)
    bad = [step for step in steps if step.problem]
    print(f"{len(steps) - len(bad)} of {len(steps)} events verify" + (", the others do NOT" if bad else ""))
    print(basis)
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
    label.append(f"  {shown(step.summary)}")
    label.append(f"  {shown(step.subject)}  by {shown(step.component)}  {step.stream} {step.stream_seq}", style="dim")
    further = len(step.causes) - 1
    if further > 0:
        label.append(f"  (+{further} causes)", style="dim")
    if step.problem:
        label.append(f"  NOT VERIFIED: {shown(step.problem)}", style="bold red")
    else:
        label.append("  verified", style="green")
        if step.status != "ok":
            label.append(f", {step.status}: without effect", style="yellow")
    label.append(f"  {id_text(step.event_id)}", style="dim")
    return label
