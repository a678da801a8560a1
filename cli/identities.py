"""Commands about who is who: revoke and reinstate, certificates, tokens, API keys, and the answer to a compromise."""

from __future__ import annotations

import asyncio
import functools
import time
from typing import Annotated

import typer

from tallystick.cli.options import Dir, PinFd
from tallystick.schemas.errors import ConfigError


def tokens(directory: Dir, pin_fd: PinFd = None) -> None:
    """Give strategies their tokens until stopped, where they are run one by one and no `up` does it."""
    import contextlib
    import threading

    from tallystick.runtime.deployment.folder import Deployment
    from tallystick.runtime.deployment.service_accounts import ServiceAccounts
    from tallystick.runtime.keys.keystore import Keystore, read_pin

    deployment = Deployment.load(directory)
    keystore = Keystore.open(deployment.keystore, read_pin("Master PIN: ", pin_fd))
    with ServiceAccounts(deployment, keystore, deployment.bus().components, time.time_ns) as accounts:
        if not accounts.names:
            raise ConfigError("NO_TOKENS", "no strategy of this deployment shows tokens of its own issuer")
        typer.echo(f"tokens for {', '.join(accounts.names)}")
        with contextlib.suppress(KeyboardInterrupt):
            accounts.keep(threading.Event())


def revoke(
    directory: Dir,
    component: Annotated[str, typer.Argument(help="Its identity name, such as strategy-momentum.")],
    reason: Annotated[str, typer.Option(help="What the record will say.")] = "no reason given",
    pin_fd: PinFd = None,
) -> None:
    """Revoke a component, signed by the operator's key: its sessions end now, its certificate is worthless.

    Nobody gets a session in its name, whoever copied what, its own process neither, until `tallystick reinstate`.
    """
    from tallystick.cli import operate
    from tallystick.runtime.deployment.folder import Deployment
    from tallystick.runtime.keys.keystore import Keystore, read_pin

    deployment = Deployment.load(directory)
    keystore = Keystore.open(deployment.keystore, read_pin("Master PIN: ", pin_fd))
    ended = asyncio.run(operate.revoke(deployment, keystore, component, reason))
    typer.echo(
        f"{component} is revoked, {ended} sessions ended; the way back: tallystick reinstate {directory} {component}"
    )


def compromise(
    directory: Dir,
    target: Annotated[
        str,
        typer.Argument(
            metavar="COMPONENT|KEY",
            help="Its identity name, such as execution; or an API key of the venue's, TOKEN/ID as `keys list` shows them.",
        ),
    ],
    reason: Annotated[str, typer.Option(help="What the record will say.")] = "no reason given",
    pin_fd: PinFd = None,
) -> None:
    """Answer a compromise at once: halt, cancel, revoke, rotate, prove that the old is dead, keep the evidence.

    Of a component, whose process or host somebody else may have, or of an API key that somebody else may use.

    Each step is signed by the operator's key and published.  A step that fails keeps nobody from the next one; exit code 1
    then.  What is tripped stays so until `tallystick rearm`.
    """
    from tallystick.cli.compromise import Answer, Step
    from tallystick.cli.compromise_authority import AUTHORITY, AuthorityAnswer
    from tallystick.cli.compromise_key import KeyAnswer, is_key
    from tallystick.runtime.deployment.folder import Deployment
    from tallystick.runtime.keys.keystore import Keystore, read_pin

    deployment = Deployment.load(directory)
    begun = time.monotonic()

    def told(step: Step) -> None:
        outcome = "ok" if step.done else "FAILED"
        typer.echo(f"{time.monotonic() - begun:5.2f} s  {step.step:<9} {outcome:<6} {step.text}")

    keystore = Keystore.open(deployment.keystore, read_pin("Master PIN: ", pin_fd))
    begun = time.monotonic()
    kind = KeyAnswer if is_key(target) else AuthorityAnswer if target == AUTHORITY else Answer
    answer = kind(deployment, keystore, target, reason, time.time_ns, told)
    done = asyncio.run(answer.run())
    if answer.unkept:
        typer.echo(f"the evidence could not be written; keep what stands above: {answer.unkept}")
    else:
        typer.echo(f"evidence: {answer.path}")
    if answer.unsaid:
        why = f" ({answer.why_unsaid})" if answer.why_unsaid else ""
        typer.echo(f"the bus did not confirm {', '.join(answer.unsaid)}{why}: their signed notes stand in the evidence")
    if not done:
        raise typer.Exit(1)


def reinstate(
    directory: Dir,
    component: Annotated[str, typer.Argument(help="Its identity name, such as strategy-momentum.")],
    reason: Annotated[str, typer.Option(help="What the record will say.")] = "no reason given",
    pin_fd: PinFd = None,
) -> None:
    """Admit a revoked component again, with a new key and certificate, signed by the operator's key.

    Every certificate from before stays worthless.  Where the component runs on another machine, copy its new file of the
    folder `pki` there.
    """
    from tallystick.cli import operate
    from tallystick.runtime.deployment.folder import Deployment
    from tallystick.runtime.keys.keystore import Keystore, read_pin

    deployment = Deployment.load(directory)
    keystore = Keystore.open(deployment.keystore, read_pin("Master PIN: ", pin_fd))
    asyncio.run(operate.reinstate(deployment, keystore, component, reason))
    typer.echo(f"{component} is admitted again: new certificate {deployment.identity(component)}")


def certify(
    directory: Dir,
    components: Annotated[list[str], typer.Argument(help="Identity names, such as gateway.")],
    pin_fd: PinFd = None,
) -> None:
    """Make a new key and certificate of a component that could not renew its own in time.

    `up` does this by itself, and so does `run` with the master PIN.  Where a component runs on another machine, copy its
    new file of the folder `pki` there.  A component that was revoked needs `tallystick reinstate`.
    """
    from tallystick.runtime.deployment.certificates import certify as make
    from tallystick.runtime.deployment.certificates import names
    from tallystick.runtime.deployment.folder import Deployment
    from tallystick.runtime.keys.keystore import Keystore, read_pin

    deployment = Deployment.load(directory)
    for name in components:
        if name not in names(deployment):
            deployment.bus().component(name)
    make(deployment, Keystore.open(deployment.keystore, read_pin("Master PIN: ", pin_fd)), components, time.time_ns())
    for name in components:
        typer.echo(f"new certificate {deployment.identity(name)}")


def rotate(
    directory: Dir,
    component: Annotated[str, typer.Argument(help="custody or portfolio; without: both, one after the other.")] = "",
    stolen: Annotated[
        bool, typer.Option("--stolen", help="By hand: delete the old key before there is another one.")
    ] = False,
    pin_fd: PinFd = None,
) -> None:
    """Change the API key at the venue now: make a new one, switch, delete the old one and prove it dead.

    What fails before the old key is touched is undone, and the old key goes on: exit code 1.  Orders go on meanwhile.
    Where there is no keymaster, you are told what to do on the venue's site, step by step.
    """
    from tallystick.cli import guided
    from tallystick.cli.rotate import rotate as change
    from tallystick.components.keymaster.main import HOLDERS
    from tallystick.runtime.deployment.folder import Deployment
    from tallystick.runtime.keys.keystore import Keystore, read_pin

    if component and component not in HOLDERS:
        raise ConfigError("COMPONENT", f"{component!r} has no key at the venue; {' and '.join(HOLDERS)} have")
    deployment = Deployment.load(directory)
    keystore = Keystore.open(deployment.keystore, read_pin("Master PIN: ", pin_fd))
    wanted = (component,) if component else tuple(HOLDERS)
    if stolen and deployment.config.rotation is not None:
        raise ConfigError(
            "ROTATION_STOLEN", f"the keymaster does that: tallystick compromise {directory} {component or 'custody'}/ID"
        )
    if deployment.config.rotation is None:
        typer.echo("there is no [rotation] in deployment.toml: you make and delete the keys, I prove them")
        ask = functools.partial(typer.prompt, default="", show_default=False, prompt_suffix="\n> ")
        changed = [
            asyncio.run(guided.rotate(deployment, keystore, name, ask, typer.echo, stolen=stolen)) for name in wanted
        ]
    else:
        changed = [asyncio.run(change(deployment, keystore, name, typer.echo)) for name in wanted]
    if not all(changed):
        raise typer.Exit(1)


def key_exception(
    directory: Dir,
    component: Annotated[str, typer.Argument(help="custody or portfolio.")],
    defects: Annotated[
        list[str], typer.Argument(help="As the refusal names them, such as 'KEY_TOO_BROAD enableFutures'.")
    ],
    reason: Annotated[str, typer.Option(help="What the record will say.")],
    days: Annotated[int, typer.Option(min=1, max=30, help="How long it holds.")] = 1,
    pin_fd: PinFd = None,
) -> None:
    """Let a component go on with an API key that is not as it should be, for some days, signed by the operator's key.

    Whenever it makes the difference, that is on the record.
    """
    from tallystick.cli.rotate import except_key
    from tallystick.components.keymaster.main import HOLDERS
    from tallystick.runtime.deployment.folder import Deployment
    from tallystick.runtime.keys.keystore import Keystore, read_pin
    from tallystick.venues.key_check import RETRY_S

    if component not in HOLDERS:
        raise ConfigError("COMPONENT", f"{component!r} has no key at the venue; {' and '.join(HOLDERS)} have")
    deployment = Deployment.load(directory)
    keystore = Keystore.open(deployment.keystore, read_pin("Master PIN: ", pin_fd))
    path = except_key(deployment, keystore, component, defects, days, reason)
    typer.echo(f"for {days} days: {path}; {component} asks again within {RETRY_S:.0f} s. Remove the file to end it")


def api_key(
    directory: Dir,
    component: Annotated[
        str,
        typer.Argument(
            help="custody, which trades, portfolio, which only reads, or keymaster, which manages their keys."
        ),
    ],
    store: Annotated[bool, typer.Option("--set", help="Ask for the key id that the venue gave, and keep it.")] = False,
    pin_fd: PinFd = None,
) -> None:
    """Show the public key to register at the venue; with --set, keep the key id that the venue gave for it."""
    from tallystick.cli import operate
    from tallystick.runtime.deployment.folder import LEASED, Deployment
    from tallystick.runtime.keys.keystore import Keystore, read_pin

    if component not in LEASED:
        raise ConfigError("COMPONENT", f"{component!r} has no key at the venue; {', '.join(LEASED)} have")
    deployment = Deployment.load(directory)
    keystore = Keystore.open(deployment.keystore, read_pin("Master PIN: ", pin_fd))
    if store:
        operate.set_api_key(keystore, component, read_pin("API key id: "))
        typer.echo(f"kept; {component} uses it from its next start")
        return
    typer.echo(operate.public_key(deployment, keystore, component, lambda text: typer.echo(text, err=True)), nl=False)
