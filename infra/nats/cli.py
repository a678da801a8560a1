"""`tallystick topology`: show, check and draw who publishes and reads what."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tallystick.infra.nats import picture
from tallystick.infra.nats import topology as topo

app = typer.Typer(no_args_is_help=True, help="Who publishes and reads what on the bus.")

_File = Annotated[Path, typer.Option("--file", help="The topology to read.")]
_Docs = Annotated[Path, typer.Option("--docs", help="The generated document.")]


@app.command(epilog="Example: tallystick topology check --file my-topology.toml")
def check(file: _File = topo.DEFAULT_PATH, docs: _Docs = Path("docs/topology.md")) -> None:
    """Refuse a topology that is wrong, or a document that was not generated from it."""
    topology = topo.load(file)
    picture.check_docs(topology, docs)
    typer.echo(f"{file.name}: {len(topology.templates)} components, {len(topology.streams)} streams; {docs} is current")


@app.command(epilog="Example: tallystick topology render        after a change of topology.toml")
def render(file: _File = topo.DEFAULT_PATH, docs: _Docs = Path("docs/topology.md")) -> None:
    """Write the document that `check` compares."""
    docs.write_text(picture.render_docs(topo.load(file)), "utf-8")
    typer.echo(f"wrote {docs}")
