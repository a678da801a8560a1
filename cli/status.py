"""`tallystick status`: what a deployment is, whether it may trade, what stands in its way, and which processes run."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any, Final

from tallystick.cli import breaker
from tallystick.infra.embedded import OWNER
from tallystick.infra.lockfile import owner
from tallystick.infra.nats.topology import KEYMASTER
from tallystick.runtime.deployment import board
from tallystick.runtime.deployment.certificates import names as certificate_names
from tallystick.runtime.deployment.folder import BROKER, VAULT, Deployment
from tallystick.runtime.deployment.owners import component_file, ready_pid
from tallystick.runtime.keys.identity import load_certificate
from tallystick.runtime.keys.pki import lifetime
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.errors import ConfigError, TallystickError
from tallystick.schemas.methods import name_of

MINUTE_NS: Final = 60 * SECOND


def processes(deployment: Deployment) -> list[tuple[str, int]]:
    """(component, pid) of what is ready."""
    found = []
    for name in sorted(deployment.bus().components):
        pid = ready_pid(deployment, name)
        if not pid:
            continue
        try:
            os.kill(pid, 0)
        except OSError:
            continue
        found.append((name, pid))
    return found


def describe(deployment: Deployment) -> list[str]:
    """Venue and prices, as `deployment.toml` says, and what the keys at the venue are for."""
    config = deployment.config
    venue, data = config.venue, config.market_data
    kind = "paper money" if venue.kind == "paper" else "REAL MONEY"
    prices = {"dump": f"recorded, {len(data.paths)} files at {data.speed} times their speed", "synthetic": "made up"}
    lines = [
        f"venue    {venue.name}: {venue.kind} at {venue.host}, account {venue.account} ({kind})",
        f"prices   {prices.get(data.source, 'live, of the venue')}",
    ]
    if venue.kind != "paper":
        lines.append(
            "keys     custody's is to trade and never withdraw, portfolio's to read: what the venue lets them do, you set there"
        )
    return lines


def report(deployment: Deployment, now: int) -> Iterator[str]:
    """Line by line, what needs a person first.  Raises `ConfigError` where nothing runs, `TallystickError` without a breaker."""
    running = processes(deployment)
    names = list(deployment.bus().components)
    starting = [name for name in names if name not in dict(running) and owner(component_file(deployment, name))]
    if not running and not starting:
        where = deployment.directory
        raise ConfigError("NOT_UP", f"nothing of {where} is running; start it with: tallystick up {where}")
    yield from describe(deployment)
    said = {name: board.read(deployment, name) for name in names}
    refused: TallystickError | None = None
    try:
        state = asyncio.run(breaker.status(deployment.run))
    except TallystickError as exc:
        refused = exc
        yield "armed    unknown: the breaker does not answer, and no order is permitted without it"
    else:
        yield f"armed    {_armed(state.get('armed'), deployment, now)}"
        for trip in state["tripped"]:
            yield f"TRIPPED  {trip['scope']}: {trip['reason']} (by {trip['by']})"
    for name in names:
        if halted := said[name].get("halted"):
            yield f"HALTED   {name}: {halted}"
    for name, word in (("market-data", "feed"), ("execution", "venue")):
        if text := said.get(name, {}).get(word):
            yield f"{word if word == 'feed' else 'reached':8} {text}"
    if user := said.get("custody", {}).get("user"):
        yield f"custody  {user}"
    for holder, text in said.get(KEYMASTER, {}).items():
        if holder != "error" and not holder.endswith(".revoked"):
            yield f"rotation {holder}: {text.partition(' ')[2]}"
    yield f"vault    {_vault(deployment)}"
    yield f"certs    {_certificates(deployment, [name for name, _ in running], now)}"
    methods = {name: name_of(record.method) for name, record in deployment.load_trust()[-1].components.items()}
    for name, pid in running:
        yield f"{name:24} ready   pid {pid:<8} {methods.get(name, '')}".rstrip()
    for name in starting:
        yield f"{name:24} NOT READY"
    for name in names:
        if error := said[name].get("error"):
            yield f"last error of {name}: {error}"
    if refused is not None:
        raise refused


def _vault(deployment: Deployment) -> str:
    """Where it is; of the embedded one, whether it runs.  Who has secrets there says how it stands with its lease."""
    config = deployment.config.vault
    if config.address:
        return f"yours, at {config.address}"
    pid = owner(deployment.vault / OWNER)
    return "NOT RUNNING" if pid is None else f"embedded, pid {pid}"


def _certificates(deployment: Deployment, running: list[str], now: int) -> str:
    """When the first certificate of what runs ends, and whose was not renewed in time."""
    lives: dict[str, tuple[int, int]] = {}
    for name in (*running, BROKER, *((VAULT,) if VAULT in certificate_names(deployment) else ())):
        # One that cannot be read ends its process, which is told elsewhere.
        with contextlib.suppress(ConfigError):
            lives[name] = lifetime(load_certificate(deployment.identity(name)))
    if not lives:
        return "none can be read"
    first = min(lives, key=lambda name: lives[name][1])
    # Renewed after two thirds at the latest, by whoever can.
    late = [name for name, (issued, ends) in lives.items() if now > ends - (ends - issued) // 4]
    said = f"NOT RENEWED: {', '.join(late)}; " if late else ""
    return f"{said}the first ends {_clock(lives[first][1])} UTC ({first})"


def _clock(ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(ns // SECOND))


def _armed(lease: dict[str, Any] | None, deployment: Deployment, now: int) -> str:
    if lease is None:
        return f"no: every order is denied until `tallystick arm {deployment.directory}`"
    left = max(0, int(lease["until"]) - now) // MINUTE_NS
    return f"for {', '.join(lease['venues'])} until {_clock(int(lease['until']))} UTC, {left // 60} h {left % 60} min"
