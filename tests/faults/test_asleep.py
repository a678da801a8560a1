"""Everything was asleep for longer than a certificate lives: a machine that was suspended, processes that were stopped."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from tallystick.runtime.deployment.folder import BROKER, passphrase_name
from tallystick.runtime.keys.identity import Identity
from tests.support.deployment import make, running
from tests.support.waiting import until

LIFE_S = 16


@pytest.mark.slow
async def test_who_slept_longer_than_a_certificate_lives_comes_back_with_new_ones(whole: None, tmp_path: Path) -> None:
    deployment, keystore = make(tmp_path / "desk", session_lifetime_s=3, certificate_lifetime_s=LIFE_S)
    said: list[str] = []
    async with running(deployment, keystore, "breaker", "custody", report=said.append) as desk:

        def pids() -> dict[str, int]:
            return {s.name: s.pid for s in desk.supervisor.states if s.pid}

        def ready() -> bool:
            return all(s.state == "ready" for s in desk.supervisor.states if s.pid)

        before = pids()
        slept = [*before.values(), desk.supervisor.server.pid]
        for pid in slept:
            os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(LIFE_S + 1)
        finally:
            for pid in slept:
                os.kill(pid, signal.SIGCONT)
        await until(lambda: ready() and pids().keys() == before.keys() and pids() != before, "their return", 60)
        # All that is shown now is current, and a session is to be had.
        alpha = await desk.context("strategy-alpha")
        alpha.open()
        for name in (*before, BROKER):
            passphrase = keystore[passphrase_name(name)]
            shown = Identity("test", deployment.issuing_ca, deployment.identity(name), passphrase)
            shown.require_current(desk.setup("strategy-alpha").clock())
    assert not [line for line in said if "stays down" in line], said
