"""What can be known to be wrong with a deployment before a PIN is asked for and anything starts.

- Nothing is written, no key is opened, and no user code runs: a strategy's file is only compiled, since this
  process will hold the opened keystore; what fails when it is executed ends its own process.
- Each process checks its input again when it starts; here it costs a second and no half-started deployment.
"""

from __future__ import annotations

import os
import socket
from typing import Final

from tallystick.components.gateway.policy import Policy
from tallystick.components.market_data.main import open_recording, shown
from tallystick.runtime.deployment.folder import CONFIG_NAME, Deployment
from tallystick.runtime.deployment.terms import require_signed
from tallystick.runtime.deployment.usercode import check_user_file
from tallystick.schemas.errors import ConfigError
from tallystick.schemas.trust import TrustRoot, require_current

VENUE_S: Final = 5.0


def check(deployment: Deployment, now: int) -> None:
    """Refuse a deployment that could not run at `now` (Unix ns).  Raises `TallystickError`."""
    trust = deployment.load_trust()[-1]
    require_current(trust, now)
    deployment.load_bus_keys()
    bus = deployment.bus()
    missing = [name for name in bus.components if name not in trust.components]
    if missing:
        raise ConfigError(
            "NOT_ADMITTED",
            f"{deployment.directory / CONFIG_NAME} names {', '.join(missing)}, which the operator has not signed: "
            f"run `tallystick admit {deployment.directory}`",
        )
    if "gateway" in bus.components:
        Policy.read(deployment.policy, trust)
        require_signed(deployment, trust)
    for made in deployment.user_code:
        check_user_file(made.module, deployment.directory)
        if missing := [name for name in made.env if name not in os.environ]:
            raise ConfigError(
                "ENV", f"{made.component} is to get {', '.join(missing)}, not set here: set it, or take it out of `env`"
            )
    if "market-data" in bus.components:
        _check_recording(deployment, trust, now)
    _check_ports(deployment)
    _check_venue(deployment)


def _check_recording(deployment: Deployment, trust: TrustRoot, now: int) -> None:
    instruments = shown(deployment, trust)
    if deployment.config.market_data.source != "live":
        open_recording(deployment, instruments, now)


def _check_venue(deployment: Deployment) -> None:
    """Whether a venue that is not ours takes connections: nothing is sent."""
    venue = deployment.config.venue
    if venue.kind == "paper" or "execution" not in deployment.bus().components:
        return
    host = venue.host.rpartition(":")[0] or venue.host
    try:
        socket.create_connection((host, venue.port()), VENUE_S).close()
    except OSError as exc:
        raise ConfigError(
            "VENUE_AWAY",
            f"no connection to {venue.host}, the venue {venue.name}: {exc.strerror or exc}; nothing was started",
        ) from exc


def _check_ports(deployment: Deployment) -> None:
    config = deployment.config
    ports = [("broker", config.broker.port), ("authority", config.authority.port), ("vault", config.vault.port)]
    if config.venue.kind == "paper" and "paper-exchange" in deployment.bus().components:
        ports.append(("venue", config.venue.port()))
    for name, port in ports:
        if port == 0:
            continue
        with socket.socket() as probe:
            # As servers bind: connections of an earlier run that linger are no reason to refuse.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((config.host, port))
            except OSError as exc:
                raise ConfigError(
                    "PORT_TAKEN",
                    f"port {port} on {config.host}, the {name}'s, cannot be used: {exc.strerror}; stop the other "
                    f"program or change the port in {deployment.directory / CONFIG_NAME}",
                ) from exc
