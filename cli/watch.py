"""`tallystick watch`: the live view of a running deployment, with a session of its own."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Final

from rich.console import Console as Screen
from rich.console import RenderableType
from rich.live import Live

from tallystick.cli import view
from tallystick.cli.stopping import signals
from tallystick.components.console.main import Console
from tallystick.runtime.bus.context import Unpublished
from tallystick.runtime.bus.tasks import Tasks
from tallystick.runtime.deployment import process
from tallystick.runtime.deployment.folder import Deployment
from tallystick.runtime.deployment.service import Setup
from tallystick.runtime.keys.keystore import Secret

LINE_S: Final = 2.0
REFRESH_S: Final = 0.25


def watch(deployment: Deployment, secrets: dict[str, Secret]) -> int:
    """Show the view until Ctrl-C, plain lines without a terminal; the exit code.  Raises `TallystickError`.

    `secrets` are the console's, whose certificate is current.
    """
    setup = process.load_setup(deployment.directory, "console", secrets)
    try:
        asyncio.run(_watch(setup, Console(), Screen()))
    except Unpublished as exc:
        sys.stderr.write(f"tallystick: {exc}\n")
        return 1
    return 0


async def _watch(setup: Setup, console: Console, screen: Screen) -> None:
    title = f"Tallystick {setup.deployment.name}"

    def render() -> RenderableType:
        if console.ctx is None:
            return "logging in"
        return view.render(console.state, console.ctx.sessions, time.time_ns(), title, (), screen.size)

    async def show() -> None:
        try:
            if screen.is_terminal:
                with Live(get_renderable=render, console=screen, auto_refresh=False) as live:
                    while True:
                        live.refresh()
                        await asyncio.sleep(REFRESH_S)
            while True:
                await asyncio.sleep(LINE_S)
                if console.ctx is not None:
                    screen.print(view.lines(console.state, console.ctx.sessions, time.time_ns()), highlight=False)
        finally:
            # Nobody looks any more: whoever read us is gone, or the view failed.
            stop.asked.set()

    tasks = Tasks()
    with signals() as stop:
        tasks.start(show(), "view")
        try:
            await process.run(setup, console, stop.asked)
            tasks.check()
        finally:
            await tasks.end()
