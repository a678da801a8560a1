"""`tallystick compromise DIR authority` on a deployment that `tallystick up` runs."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from pathlib import Path

import pytest
import structlog

from tallystick.cli.compromise import read_evidence
from tallystick.runtime.bus.enrolment import AuthorityClient
from tallystick.runtime.deployment.folder import Deployment, passphrase_name, pin_name
from tallystick.runtime.keys.hsm import Token
from tallystick.runtime.keys.identity import Identity
from tallystick.runtime.keys.keystore import Keystore
from tallystick.schemas.ed25519 import KEY_BYTES
from tallystick.schemas.errors import ConfigError, TallystickError
from tallystick.schemas.incidents import open_incident
from tallystick.schemas.nats_jwt import BOOT_BYTES, SessionKey
from tests.support.command import READY_S, Desk, alive, tallystick
from tests.support.deployment import PIN, make

pytestmark = pytest.mark.timeout(3 * READY_S)


async def session(deployment: Deployment, keystore: Keystore, component: str, certificate: Path, ca: Path) -> None:
    """Ask for a session in the name of `component` with a certificate that was copied."""
    identity = Identity(deployment.name, ca, certificate, keystore[passphrase_name(component)])
    config = deployment.config
    client = AuthorityClient(
        f"https://{config.host}:{config.authority.port}",
        identity,
        deployment=deployment.name,
        component=component,
        clock=time.time_ns,
        log=structlog.get_logger(),
    )
    await client.obtain(SessionKey(os.urandom(KEY_BYTES)), os.urandom(BOOT_BYTES))


@pytest.mark.slow
def test_after_the_answer_nothing_of_before_counts_and_the_next_start_works(tmp_path: Path) -> None:
    deployment, keystore = make(tmp_path / "desk")
    old_pins = {label: keystore[pin_name(label)] for label in ("signing", "roles")}
    with Desk(deployment, whole=True) as desk:
        pids = desk.pids()
        copied = Path(shutil.copytree(deployment.pki, tmp_path / "copied"))
        done = tallystick("compromise", deployment.directory, "authority", "--reason", "a drill", pin=PIN.reveal())
        assert done.code == 0, done
        assert not [name for name, pid in pids.items() if alive(pid)]
    (path,) = (deployment.directory / "incidents").iterdir()
    evidence = read_evidence(path)
    names = ["halted", "cancelled", "revoked", "rotated", "proven", "closed"]
    assert [(step.step, step.done) for step in evidence.steps] == [(name, True) for name in names]
    # What was done while there was a bus is on it; the rest says so, under the operator's key as well.
    assert [step.published for step in evidence.steps] == [True, True, False, False, False, False]
    trust = deployment.load_trust()
    assert [root.number for root in trust] == [1, 2]
    assert [open_incident(step.note, trust[-1]).step for step in evidence.steps] == names
    assert [path.name] == [f"{evidence.incident}.json"]
    new = Keystore.open(deployment.keystore, PIN)
    for label, pin in old_pins.items():
        with pytest.raises(ConfigError, match="HSM_PIN"):
            Token.open(deployment.token(label), label, pin)
        Token.open(deployment.token(label), label, new[pin_name(label)]).close()
    with Desk(deployment):
        for ca in (copied / deployment.issuing_ca.name, deployment.issuing_ca):
            with pytest.raises(TallystickError):
                asyncio.run(session(deployment, new, "gateway", copied / "gateway.pem", ca))
        # The same with what was made anew: it is the certificate that is refused.
        asyncio.run(session(deployment, new, "gateway", deployment.identity("gateway"), deployment.issuing_ca))
