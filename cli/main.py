"""The command line: `tallystick`.

Exit codes: 0 done and clean, 1 found something wrong, 2 could not run as asked.  Errors are one line that
says what, where and what to do; a traceback is a defect.
"""

from __future__ import annotations

import asyncio
import functools
import io
import logging
import os
import sys
import time
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated

import typer

from tallystick.cli import identities
from tallystick.cli.failures import check_arguments, told
from tallystick.cli.options import Dir, PinFd
from tallystick.cli.stopping import interrupt_on_sigterm
from tallystick.infra.child import harden
from tallystick.schemas.errors import ConfigError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="A zero-trust trading system: every event signed, every order permitted, nothing changed unnoticed.",
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"tallystick {version('tallystick')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the trace of an error, whatever it is.")] = False,
) -> None:
    """For the options that stand before a command."""


def _say(text: str) -> None:
    typer.echo(f"{time.strftime('%H:%M:%S', time.gmtime())}  {text}")


@app.command(
    epilog="Example: tallystick init ./desk --name my-desk      "
    'or: --token "custody=pkcs11:token=desk;serial=0123?module-path=/opt/hsm/libpkcs11.so"'
)
def init(
    directory: Dir,
    name: Annotated[str, typer.Option(help="The deployment's id; default: the folder's name.")] = "",
    token: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL=URI",
            help="A PKCS#11 token for operator, signing, roles, issuer, custody, portfolio, execution, audit or keymaster, "
            "by its URI (RFC 7512); may be given several times. Without: SoftHSM, in the folder.",
        ),
    ] = None,
    rotation: Annotated[
        bool,
        typer.Option(
            "--rotation", help="With a keymaster, which changes the API keys at the venue every 24 hours and on demand."
        ),
    ] = False,
    pin_fd: Annotated[
        int | None,
        typer.Option(
            "--pin-fd",
            help="Read the master PIN, and after it a line with the PIN of each --token, from this descriptor.",
        ),
    ] = None,
) -> None:
    """Make a deployment: keys born in tokens, trust root, certificates, policy, configuration."""
    from tallystick.runtime.deployment.ceremony import TokenAccess
    from tallystick.runtime.deployment.ceremony import init as ceremony
    from tallystick.runtime.keys.keystore import read_pin, read_pins

    uris = dict(_token_option(text) for text in token or ())
    asked = [f"PIN of token {label}: " for label in uris]
    pin, *pins = read_pins(("New master PIN (8 characters or more): ", *asked), pin_fd)
    if pin_fd is None and read_pin("Master PIN again: ") != pin:
        raise ConfigError("PIN_INPUT", "the two PINs differ; nothing was made")
    tokens = {label: TokenAccess(uri, its) for (label, uri), its in zip(uris.items(), pins, strict=True)}
    made = ceremony(
        directory,
        name or directory.absolute().name,
        pin,
        time.time_ns,
        progress=_say,
        tokens=tokens,
        rotation=rotation,
    )
    typer.echo(f"\n{made.directory} is ready: deployment {made.name}, trust root 1.")
    typer.echo(f"Pin this key wherever something is verified: {made.pinned_key.read_text().strip()}")
    typer.echo(f"Next: tallystick up {directory}")


def _token_option(text: str) -> tuple[str, str]:
    """LABEL and URI of `--token`.  Raises `ConfigError`, before a PIN is asked for."""
    from tallystick.runtime.deployment.config import ALL_TOKENS
    from tallystick.runtime.keys.uri import parse_token_uri

    label, equals, uri = text.partition("=")
    if not equals or label not in ALL_TOKENS:
        raise ConfigError("TOKENS", f"--token takes LABEL=URI, where LABEL is one of {', '.join(ALL_TOKENS)}")
    return label, parse_token_uri(uri).text


@app.command(epilog="Example: tallystick admit ./desk        after a change of deployment.toml, while it is down")
def admit(
    directory: Dir,
    new_ca: Annotated[
        bool,
        typer.Option("--new-ca", help="With a new key of the issuing CA: what the old one certified counts no more."),
    ] = False,
    pin_fd: PinFd = None,
) -> None:
    """Sign what deployment.toml and the policy folder say now: strategies, observers, instruments, limits, caps.

    Everybody gets a new certificate, of an issuing CA that is signed anew.
    """
    from tallystick.runtime.deployment.admit import admit as sign
    from tallystick.runtime.deployment.folder import Deployment
    from tallystick.runtime.keys.keystore import Keystore, read_pin

    deployment = Deployment.load(directory)
    keystore = Keystore.open(deployment.keystore, read_pin("Master PIN: ", pin_fd))
    made = sign(deployment, keystore, time.time_ns(), _say, new_ca=new_ca)
    typer.echo(f"trust root {made.number} is in force from the next start")
    for what, names in (("new", made.added), ("removed", made.removed)):
        if names:
            typer.echo(f"{what}: {', '.join(names)}")


@app.command(epilog="Example: tallystick up ./desk        stop with Ctrl-C")
def up(directory: Dir, pin_fd: PinFd = None) -> None:
    """Run everything of a deployment: the broker and one process a component, watched."""
    from tallystick.cli import operate, preflight
    from tallystick.runtime.deployment import vault
    from tallystick.runtime.deployment.folder import Deployment
    from tallystick.runtime.deployment.owners import end_orphans
    from tallystick.runtime.keys.keystore import open_part, read_pin

    deployment = Deployment.load(directory)
    end_orphans(deployment, _say)
    preflight.check(deployment, time.time_ns())
    # What runs for months holds no key of the operator.
    keystore = open_part(
        deployment.keystore,
        lambda: read_pin("Master PIN: ", pin_fd),
        deployment.supervision_names(),
        lambda whole: vault.settle(deployment, whole, _say),
        (vault.UNSEAL, vault.UNSEAL_NEXT),
    )
    raise typer.Exit(asyncio.run(operate.supervise(deployment, keystore, _say)))


@app.command(epilog="Example: tallystick run ./desk gateway --secrets-fd 3 3<secrets")
def run(
    directory: Dir,
    component: Annotated[str, typer.Argument(help="Its identity name, such as gateway or strategy-momentum.")],
    secrets_fd: Annotated[
        int | None, typer.Option(help="A descriptor with the component's own secrets as a JSON object.")
    ] = None,
    pin_fd: PinFd = None,
) -> None:
    """Run one component alone, for systemd or Kubernetes; the broker and the authority run elsewhere."""
    from tallystick.runtime.deployment import apart, process
    from tallystick.runtime.deployment.certificates import ensure
    from tallystick.runtime.deployment.folder import SECRET_ID, Deployment
    from tallystick.runtime.deployment.service_accounts import serve_apart
    from tallystick.runtime.deployment.vault import handed
    from tallystick.runtime.keys.keystore import Keystore, open_part, read_pin, take_over

    deployment = Deployment.load(directory)
    deployment.bus().component(component)
    if secrets_fd is not None:
        secrets = take_over(secrets_fd)
    else:
        # The component holds what is its own, and no more; who makes its tokens is another process.
        # The pipe's other end closes with this process.
        ended, _ = os.pipe()

        def prepare(whole: Keystore) -> None:
            ensure(deployment, whole, (component,), time.time_ns())
            serve_apart(deployment, whole, (component,), ended)
            # Lent, not kept.
            whole.secrets |= handed(deployment, whole, component)

        secrets = open_part(
            deployment.keystore,
            lambda: read_pin("Master PIN: ", pin_fd),
            deployment.secret_names(component),
            prepare,
            (SECRET_ID,),
        ).secrets
        os.close(ended)
    apart.enter(deployment, component)
    raise typer.Exit(process.main(directory, component, secrets, alone=True))


@app.command(epilog="Example: tallystick status ./desk")
def status(directory: Dir) -> None:
    """Venue, lease, trips, halted strategies, feeds, processes and their last errors."""
    from tallystick.cli.status import report
    from tallystick.runtime.deployment.folder import Deployment

    for line in report(Deployment.load(directory), time.time_ns()):
        typer.echo(line)


@app.command(epilog='Example: tallystick kill ./desk --reason "fat finger"     or: --scope strategy-momentum')
def kill(
    directory: Dir,
    scope: Annotated[str, typer.Option(help="all, strategy-NAME or venue-NAME.")] = "all",
    reason: Annotated[str, typer.Option(help="What the record will say.")] = "killed by an operator",
) -> None:
    """Stop trading now: deny what comes, cancel what is open.  Needs no key."""
    from tallystick.cli import breaker

    if not directory.is_dir():
        raise ConfigError("DEPLOYMENT_FILE", f"{directory} does not exist")
    answer = asyncio.run(breaker.kill(directory.absolute() / "run", scope, reason))
    typer.echo(f"tripped: {', '.join(t['scope'] for t in answer['tripped'])}")


@app.command(epilog="Example: tallystick rearm ./desk strategy-momentum")
def rearm(
    directory: Dir,
    scope: Annotated[str, typer.Argument(help="The tripped scope, as `tallystick status` shows it.")],
    pin_fd: PinFd = None,
) -> None:
    """Close a tripped breaker, signed by the operator's key for this very trip."""
    from tallystick.cli import operate
    from tallystick.runtime.deployment.folder import Deployment
    from tallystick.runtime.keys.keystore import Keystore, read_pin

    deployment = Deployment.load(directory)
    keystore = Keystore.open(deployment.keystore, read_pin("Master PIN: ", pin_fd))
    asyncio.run(operate.rearm(deployment, keystore, scope))
    typer.echo(f"{scope} is armed again")


@app.command(epilog="Example: tallystick arm ./desk --hours 8")
def arm(
    directory: Dir,
    hours: Annotated[str, typer.Option(help="How long, at most 12.")] = "8",
    cap: Annotated[
        list[str] | None,
        typer.Option(
            help="ASSET=ORDER/HOUR: less than deployment.toml lets custody sign of an asset, an order and an hour."
        ),
    ] = None,
    pin_fd: PinFd = None,
) -> None:
    """Let execution trade for some hours, signed by the operator's key.  Without it every order is denied."""
    from tallystick.cli import operate
    from tallystick.runtime.deployment.folder import Deployment
    from tallystick.runtime.keys.keystore import Keystore, read_pin

    try:
        wanted = Decimal(hours)
    except InvalidOperation:
        raise ConfigError("ARM_HOURS", f"not a number of hours: {hours!r}") from None
    operate.lease_ns(wanted)
    deployment = Deployment.load(directory)
    asyncio.run(operate.status(deployment))  # no PIN is asked for where nobody would take the lease
    keystore = Keystore.open(deployment.keystore, read_pin("Master PIN: ", pin_fd))
    lease = asyncio.run(operate.arm(deployment, keystore, wanted, cap or ()))
    typer.echo(f"execution is armed for {hours} h at {', '.join(lease.venues)}")


@app.command(
    epilog="Example: tallystick demo      or: tallystick demo --data XRPETH-aggTrades-2019-10-11.zip --speed 5000"
)
def demo(
    directory: Annotated[Path, typer.Option("--dir", help="Where the demo's deployment is made anew.")] = Path(
        "var/demo"
    ),
    data: Annotated[
        list[Path] | None,
        typer.Option(
            "--data",
            help="Dumps to play (zip or csv), or folders of them; may be given several times. Without: ./data, else a synthetic market.",
        ),
    ] = None,
    speed: Annotated[
        str, typer.Option(help="Times as fast as recorded; default: half a minute in all, longer for long recordings.")
    ] = "",
) -> None:
    """The whole system on the paper exchange, with an intruder inside, ending in a verified audit."""
    from tallystick.cli.demo import demo as play

    try:
        wanted = Decimal(speed) if speed else None
    except InvalidOperation:
        raise ConfigError("SPEED", f"not a number: {speed!r}") from None
    if wanted is not None and not (wanted.is_finite() and wanted > 0):
        raise ConfigError("SPEED", f"must be above zero, got {speed}")
    raise typer.Exit(play(directory, data or [], wanted))


@app.command(epilog="Example: tallystick watch ./desk        leave with Ctrl-C")
def watch(directory: Dir, pin_fd: PinFd = None) -> None:
    """The live view of a running deployment."""
    from tallystick.cli.watch import watch as look
    from tallystick.runtime.deployment.certificates import ensure
    from tallystick.runtime.deployment.folder import Deployment
    from tallystick.runtime.keys.keystore import open_part, read_pin

    deployment = Deployment.load(directory)
    keystore = open_part(
        deployment.keystore,
        lambda: read_pin("Master PIN: ", pin_fd),
        deployment.secret_names("console"),
        lambda whole: ensure(deployment, whole, ("console",), time.time_ns()),
    )
    raise typer.Exit(look(deployment, keystore.secrets))


app.command(epilog="Example: tallystick tokens ./desk --pin-fd 3 3<pin")(identities.tokens)
app.command(epilog='Example: tallystick revoke ./desk strategy-momentum --reason "its host was entered"')(
    identities.revoke
)
app.command(epilog='Example: tallystick compromise ./desk strategy-momentum --reason "its host was entered"')(
    identities.compromise
)
app.command(epilog='Example: tallystick reinstate ./desk strategy-momentum --reason "its host was made anew"')(
    identities.reinstate
)
app.command(epilog="Example: tallystick certify ./desk gateway        for a component that runs on another machine")(
    identities.certify
)
app.command(epilog="Example: tallystick rotate ./desk        both keys now; or: tallystick rotate ./desk custody")(
    identities.rotate
)
app.command(
    "key-exception",
    epilog="Example: tallystick key-exception ./desk custody KEY_NOT_IP_BOUND --days 3 --reason 'new uplink'",
)(identities.key_exception)
app.command("api-key", epilog="Example: tallystick api-key ./desk custody        then again with --set")(
    identities.api_key
)


@functools.cache
def commands() -> typer.Typer:
    """Every command.  The parts are read when they are asked for: a signal meanwhile is no traceback."""
    from tallystick.cli.audit import app as audit
    from tallystick.cli.correct import app as correct
    from tallystick.cli.exchanges import exchanges
    from tallystick.cli.explain import explain
    from tallystick.cli.keys import app as keys
    from tallystick.cli.replay import EXAMPLES, replay
    from tallystick.cli.vault import app as vault
    from tallystick.infra.nats.cli import app as topology

    app.command(epilog=EXAMPLES)(replay)
    # A venue's number starts with a minus: -2010.
    app.command(epilog="Example: tallystick explain NOT_ARMED", context_settings={"ignore_unknown_options": True})(
        explain
    )
    app.command(epilog="Example: tallystick exchanges kraken")(exchanges)
    app.add_typer(audit, name="audit")
    app.add_typer(correct, name="correct")
    app.add_typer(keys, name="keys")
    app.add_typer(topology, name="topology")
    app.add_typer(vault, name="vault")
    return app


def _asked() -> typer.Typer:
    """What the arguments need: a command that stands here is run without the libraries of the others."""
    name = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    here = {(command.name or getattr(command.callback, "__name__", "")) for command in app.registered_commands}
    return app if name in here else commands()


def main() -> None:
    """The entry point: every error becomes one line (`failures`)."""
    interrupt_on_sigterm()
    # Whoever holds the master PIN, and then every key of a deployment, keeps it from others of its user.
    harden()
    # What a command writes is the operator's alone.
    os.umask(0o077)
    # The client library's TLS shutdown makes asyncio warn about nothing.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that cannot show a character gets its number.
            stream.reconfigure(errors="backslashreplace")
    try:
        check_arguments(sys.argv[1:])
        _asked()()
    except (Exception, KeyboardInterrupt) as exc:  # noqa: BLE001 - the last resort: whatever it is, it is told
        text, code = told(exc, debug="--debug" in sys.argv[1:2])
        sys.stderr.write(text)
        sys.exit(code)


if __name__ == "__main__":
    main()
