"""`tallystick vault`: unseal it, change who holds its unseal key, print what a vault of yours needs."""

from __future__ import annotations

import contextlib
from typing import Annotated

import typer

from tallystick.cli.options import Dir, PinFd
from tallystick.schemas.errors import ConfigError

app = typer.Typer(no_args_is_help=True, help="The vault: its unseal key, and what a vault of yours needs.")

_ShareFd = Annotated[
    list[int] | None,
    typer.Option("--share-fd", help="Read a share from this descriptor instead of a prompt; once for each."),
]


def _asked(fds: list[int] | None) -> list[int | None]:
    return list(fds) if fds else [None]


@app.command(epilog="Example: tallystick vault unseal ./desk      once for each holder of a share")
def unseal(directory: Dir, pin_fd: PinFd = None, share_fd: _ShareFd = None) -> None:
    """Give a sealed vault a share of its unseal key, while `up` waits for it."""
    from tallystick.runtime.deployment.folder import Deployment
    from tallystick.runtime.deployment.vault_access import require_embedded, tls_client
    from tallystick.runtime.keys.keystore import Keystore, read_pin

    deployment = Deployment.load(directory)
    require_embedded(deployment)
    keystore = Keystore.open(deployment.keystore, read_pin("Master PIN: ", pin_fd))
    with contextlib.closing(tls_client(deployment, keystore)) as client:
        status = client.sealed()
        for fd in _asked(share_fd):
            if status.sealed:
                status = client.unseal(read_pin("Share of the unseal key: ", fd))
    typer.echo(f"sealed, {status.progress} of {status.t} shares given" if status.sealed else "unsealed")


@app.command(epilog="Example: tallystick vault reshare ./desk --shares 5 --threshold 3")
def reshare(
    directory: Dir,
    shares: Annotated[int, typer.Option(help="How many people hold a share; 1: the keystore does.")] = 1,
    threshold: Annotated[int, typer.Option(help="How many of them unseal it.")] = 1,
    pin_fd: PinFd = None,
    share_fd: _ShareFd = None,
) -> None:
    """Make a new unseal key, for the keystore or in shares for people; the old one opens nothing any more.

    The shares are printed once, before the new key counts.
    """
    from tallystick.infra.lockfile import owner
    from tallystick.runtime.deployment import vault
    from tallystick.runtime.deployment.folder import Deployment
    from tallystick.runtime.deployment.owners import supervisor_file
    from tallystick.runtime.deployment.reshare import Reshare
    from tallystick.runtime.deployment.vault_access import require_embedded, tls_client
    from tallystick.runtime.keys.keystore import Keystore, read_pin

    if not 1 <= threshold <= shares <= vault.MAX_SHARES or (shares > 1 and threshold < vault.MIN_THRESHOLD):
        raise ConfigError(
            "VAULT_SHARES", f"{threshold} of {shares}: 1 of 1, or 2 or more of at most {vault.MAX_SHARES}"
        )
    deployment = Deployment.load(directory)
    require_embedded(deployment)
    keystore = Keystore.open(deployment.keystore, read_pin("Master PIN: ", pin_fd))
    given = []
    if vault.UNSEAL not in keystore.secrets:
        with contextlib.closing(tls_client(deployment, keystore)) as client:
            needed = client.sealed().t
        fds: list[int | None] = list(share_fd) if share_fd else [None] * needed
        given = [read_pin("Share of the present key: ", fd) for fd in fds]
    change = Reshare(deployment, keystore, shares, threshold, given)
    for number, share in enumerate(change.new if shares > 1 else (), 1):
        typer.echo(f"share {number} of {shares}: {share.reveal()}")
    change.confirm()
    typer.echo(
        "the new key counts"
        + (": it lies in the keystore" if shares == 1 else ", and these shares are shown nowhere else")
    )
    if shares == 1 and owner(supervisor_file(deployment)) is not None:
        typer.echo("`tallystick up` knows the old one: start it again, or it cannot unseal the vault after a failure")


@app.command(epilog="Example: tallystick vault policies ./desk")
def policies(directory: Dir) -> None:
    """Print the policies and roles that a vault of yours needs, as commands of `bao` (or `vault`)."""
    from tallystick.runtime.deployment.folder import Deployment
    from tallystick.runtime.deployment.vault_access import recipe

    typer.echo("\n".join(recipe(Deployment.load(directory))))
