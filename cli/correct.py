"""`tallystick correct`: the operator sets right what the record says of a position or an order."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Annotated

import typer

from tallystick.cli.options import Dir, PinFd

app = typer.Typer(no_args_is_help=True, help="Set a position or an order right, signed by the operator's key.")

_Strategy = Annotated[str, typer.Argument(help="The strategy's name, such as momentum.")]
_Symbol = Annotated[str, typer.Argument(help="The instrument, such as XRP/ETH.")]
_Reason = Annotated[str, typer.Option(help="What the record will say.")]


def _correct(
    directory: Path,
    strategy: str,
    symbol: str,
    reason: str,
    pin_fd: int | None,
    *,
    was: str = "",
    position: str = "",
    intent_id: str = "",
    executed: str = "",
) -> None:
    from tallystick.cli import operate
    from tallystick.runtime.deployment.folder import Deployment
    from tallystick.runtime.keys.keystore import Keystore, read_pin
    from tallystick.schemas.trust import Correction

    deployment = Deployment.load(directory)
    correction = Correction(
        deployment=deployment.name,
        strategy=strategy,
        venue=deployment.config.venue.name,
        symbol=symbol,
        issued=time.time_ns(),
        reason=reason,
        was=was,
        position=position,
        intent_id=intent_id,
        executed=executed,
    )
    keystore = Keystore.open(deployment.keystore, read_pin("Master PIN: ", pin_fd))
    asyncio.run(operate.correct(deployment, keystore, correction))


@app.command(
    epilog='Example: tallystick correct position ./desk momentum XRP/ETH --was 500000 --is 120 --reason "false fill"'
)
def position(
    directory: Dir,
    strategy: _Strategy,
    symbol: _Symbol,
    was: Annotated[str, typer.Option(help="What it is taken for, in base units; below zero for short.")],
    now: Annotated[str, typer.Option("--is", help="What it is.")],
    reason: _Reason,
    pin_fd: PinFd = None,
) -> None:
    """Set a strategy's position; whoever takes it for anything but `--was` changes nothing and says so."""
    _correct(directory, strategy, symbol, reason, pin_fd, was=was, position=now)
    typer.echo(f"{strategy} holds {now} {symbol}: recorded")


@app.command(
    epilog='Example: tallystick correct order ./desk momentum XRP/ETH INTENT --executed 0 --reason "never sent"'
)
def order(
    directory: Dir,
    strategy: _Strategy,
    symbol: _Symbol,
    intent: Annotated[str, typer.Argument(help="The order's intent id, 32 hex digits, as `audit trace` shows it.")],
    executed: Annotated[str, typer.Option(help="How much of it was executed, in base units.")],
    reason: _Reason,
    pin_fd: PinFd = None,
) -> None:
    """Say that an order has ended, and with how much; nothing is cancelled at the exchange by it."""
    _correct(directory, strategy, symbol, reason, pin_fd, intent_id=intent, executed=executed)
    typer.echo(f"order {intent} has ended with {executed}: recorded")
