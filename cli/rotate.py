"""`tallystick rotate`: have the keymaster change an API key at the venue now; `tallystick key-exception`.

The order is a note that the operator's key signs; the breaker puts it on the record, and the keymaster checks it itself.
How far it is stands on the keymaster's board; what counts is on the record (`control.rotation/1`).
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal

from tallystick.cli import breaker
from tallystick.cli.operate import Operator
from tallystick.cli.status import processes
from tallystick.components.keymaster.rotation import ENDS
from tallystick.infra.nats.topology import KEYMASTER
from tallystick.runtime.deployment import board
from tallystick.runtime.deployment.folder import Deployment
from tallystick.runtime.durable import write_durably
from tallystick.runtime.keys.keystore import Keystore
from tallystick.schemas.control import RotateRequest
from tallystick.schemas.errors import ConfigError
from tallystick.schemas.key_exceptions import KeyException
from tallystick.schemas.rotation_orders import RotationOrder
from tallystick.venues.key_check import EXCEPTIONS

DAY_NS: Final = 86_400_000_000_000
POLL_S: Final = 0.1
# By then a rotation that goes well has ended ten times; one that waits for the venue goes on by itself.
PATIENCE_S: Final = 120.0


async def order(deployment: Deployment, keystore: Keystore, component: str, act: Literal["rotate", "reread"]) -> None:
    """Sign the order and put it on the record.  Raises `ConfigError`."""
    document = RotationOrder(deployment=deployment.name, component=component, act=act, at=time.time_ns())

    def signed() -> str:
        with Operator(deployment, keystore) as operator:
            return operator.sign(document)

    await breaker.demand(deployment.run, RotateRequest(note=await asyncio.to_thread(signed)))


def _shown(deployment: Deployment, component: str) -> tuple[str, str, str]:
    """The rotation's id, its step and why, as the keymaster says."""
    rotation, _, rest = board.read(deployment, KEYMASTER).get(component, "").partition(" ")
    step, _, text = rest.partition(" ")
    return rotation, step, text


async def rotate(
    deployment: Deployment,
    keystore: Keystore,
    component: str,
    told: Callable[[str], None],
    patience_s: float = PATIENCE_S,
) -> bool:
    """Change the key of `component` now; whether it was changed.  `told` hears each step.  Raises `ConfigError`."""
    if KEYMASTER not in dict(processes(deployment)):
        raise ConfigError("KEYMASTER_AWAY", "the keymaster does not run: look at `tallystick status`")
    before, step, _ = _shown(deployment, component)
    if step in ENDS:
        step = ""
    else:
        # It is being changed already.
        before = ""
    await order(deployment, keystore, component, "rotate")
    ends, last = time.monotonic() + patience_s, ""
    while time.monotonic() < ends:
        rotation, step, text = _shown(deployment, component)
        if rotation != before and step and f"{step} {text}" != last:
            last = f"{step} {text}"
            told(f"{component}: {step}{f' ({text})' if text else ''}")
        if rotation != before and step in ENDS:
            return step == "forgotten"
        await asyncio.sleep(POLL_S)
    raise ConfigError(
        "ROTATION_WAITS",
        f"the key of {component} is not changed after {patience_s:.0f} s; the keymaster goes on by itself",
    )


def except_key(
    deployment: Deployment, keystore: Keystore, component: str, defects: Sequence[str], days: int, reason: str
) -> Path:
    """Sign leave to go on with a key of these defects, from now on; the file.  Raises `ConfigError`, `Malformed`."""
    now = time.time_ns()
    document = KeyException(
        deployment=deployment.name,
        venue=deployment.config.venue.name,
        component=component,
        defects=tuple(defects),
        start=now,
        until=now + days * DAY_NS,
        reason=reason,
    )
    with Operator(deployment, keystore) as operator:
        note = operator.sign(document).encode()
    folder = deployment.trust / EXCEPTIONS
    above = deployment.trust.stat()
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / f"{component}-{hashlib.sha256(note).hexdigest()[:16]}.note"
    write_durably(path, note, 0o600)
    # Custody may have a user of its own, whose group reads the folder.
    for made, mode in ((folder, 0o750), (path, 0o640)):
        os.chown(made, -1, above.st_gid)
        made.chmod(mode)
    return path
