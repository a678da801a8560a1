"""`tallystick watch`: the live view of a running deployment, with a session of its own."""

from __future__ import annotations

import asyncio
import signal
import time

from rich.console import Console as Screen
from rich.console import RenderableType
from rich.live import Live

from tallystick.cli import view
from tallystick.components.console.main import Console
from tallystick.runtime.deployment import process
from tallystick.runtime.deployment.folder import Deployment
from tallystick.runtime.deployment.service import Setup
from tallystick.runtime.keys.keystore import Keystore

LINE_S = 2.0


def watch(deployment: Deployment, keystore: Keystore) -> None:
    """Show the view until Ctrl-C; plain lines without a terminal.  Raises `TallystickError`."""
    secrets = {name: keystore[name] for name in deployment.secret_names("console")}
    setup = process.load_setup(deployment.directory, "console", secrets)
    asyncio.run(_watch(setup, Console(), Screen()))


async def _watch(setup: Setup, console: Console, screen: Screen) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    running = asyncio.create_task(process.run(setup, console, stop))
    title = f"Tallystick {setup.deployment.name}"

    async def lines() -> None:
        while True:
            await asyncio.sleep(LINE_S)
            if console.ctx is not None:
                screen.print(view.lines(console.state, console.ctx.sessions, time.time_ns()), highlight=False)

    def render() -> RenderableType:
        if console.ctx is None:
            return "logging in"
        return view.render(console.state, console.ctx.sessions, time.time_ns(), title, (), screen.size)

    if not screen.is_terminal:
        printing = asyncio.create_task(lines())
        try:
            await running
        finally:
            printing.cancel()
        return
    with Live(get_renderable=render, console=screen, refresh_per_second=4):
        await running
