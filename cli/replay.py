"""`tallystick replay`: history read back, verified again, printed or played into a zone of its own.

Exit codes: 0 everything played verified (nothing matched is 0, too, and says so), 1 something did not verify,
2 could not run as asked.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from tallystick.schemas.errors import ConfigError

EXAMPLES: Final = """\
Examples:

tallystick replay ./desk --subject 'order.>' --from 2026-11-22T16:00 --until 2026-11-22T17:00

tallystick replay ./desk --stream ORDERS --seq 100-200 --format json

tallystick replay ./desk --subject 'md.trade.*.XRP-ETH' --speed 10

tallystick replay ./desk --into ./zone --run streams --run audit
"""


def replay(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A deployment's folder, or an archive.")],
    subject: Annotated[
        list[str] | None, typer.Option("--subject", help="A subject or pattern, such as order.>; may be repeated.")
    ] = None,
    stream: Annotated[
        list[str] | None, typer.Option("--stream", help="MARKET, SIGNALS, ORDERS, SECURITY or GUARD; may be repeated.")
    ] = None,
    since: Annotated[str, typer.Option("--from", help="First statement time: ISO 8601 in UTC, or Unix ns.")] = "",
    until: Annotated[str, typer.Option("--until", help="The time before which to stop.")] = "",
    sequences: Annotated[str, typer.Option("--seq", help="Sequences of one stream: 7, 7- or 7-90.")] = "",
    source: Annotated[
        str, typer.Option("--source", help="archive; or streams: what the running deployment's broker holds.")
    ] = "archive",
    root: Annotated[
        Path | None,
        typer.Option("--root", help="The operator root's public key; default: DIR/trust/operator-root.pub."),
    ] = None,
    form: Annotated[str, typer.Option("--format", help="text or json (one object a line).")] = "text",
    speed: Annotated[str, typer.Option("--speed", help="max, or times as fast as recorded: 1, 10, 0.5.")] = "max",
    limit: Annotated[int, typer.Option("--limit", help="Stop after so many messages; 0: never.")] = 0,
    into: Annotated[
        Path | None, typer.Option("--into", help="Play into this replay zone; a folder that is not there is made.")
    ] = None,
    run: Annotated[
        list[str] | None,
        typer.Option("--run", help="A component to run in the zone, such as streams; may be repeated."),
    ] = None,
    stay: Annotated[
        bool, typer.Option("--stay", help="Keep the zone up after the last message, until Ctrl-C.")
    ] = False,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Pass over what does not verify; the exit code is 1 all the same.")
    ] = False,
    pin_fd: Annotated[
        int | None, typer.Option("--pin-fd", help="Read DIR's master PIN (for --source streams) from this descriptor.")
    ] = None,
    into_pin_fd: Annotated[
        int | None, typer.Option("--into-pin-fd", help="Read the zone's master PIN from this descriptor.")
    ] = None,
) -> None:
    """Read history back, every message verified again, and print it or play it where nothing can trade."""
    import uvloop

    from tallystick.cli.replay_run import Options, Playback, open_zone
    from tallystick.runtime.deployment.folder import Deployment
    from tallystick.runtime.keys.keystore import Keystore, read_pin

    for value, known, option in ((source, ("archive", "streams"), "--source"), (form, ("text", "json"), "--format")):
        if value not in known:
            raise ConfigError("OPTION", f"{option} is {' or '.join(known)}, got {value!r}")
    if (run or stay) and into is None:
        raise ConfigError("OPTION", "--run and --stay are about a zone: name it with --into")
    options = Options(
        subject=subject or [],
        stream=stream or [],
        since=since,
        until=until,
        sequences=sequences,
        speed=speed,
        keep_going=keep_going,
        limit=limit,
    )
    source_keys = None
    if source == "streams":
        deployment = Deployment.load(directory)
        source_keys = Keystore.open(deployment.keystore, read_pin("Master PIN: ", pin_fd))
    zone = open_zone(into, into_pin_fd) if into is not None else None
    session = Playback(
        directory, options, root, source_keys, zone, run or [], "json" if form == "json" else "text", stay=stay
    )
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            code = runner.run(session.replay())
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read us (`| head`) has seen enough; nothing more can be written, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    raise typer.Exit(code)
