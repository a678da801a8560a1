"""Arguments and options that many commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Dir = Annotated[Path, typer.Argument(metavar="DIR", help="The deployment's folder.", show_default=False)]
PinFd = Annotated[
    int | None, typer.Option("--pin-fd", help="Read the master PIN from this descriptor instead of a prompt.")
]
