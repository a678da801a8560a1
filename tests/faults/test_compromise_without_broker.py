"""A compromise while the broker hangs: contained, and on record."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tallystick.cli.compromise import Answer, Step, read_evidence
from tests.support.deployment import make, running


@pytest.mark.slow
async def test_without_the_broker_it_halts_and_keeps_what_it_could_not_say(tmp_path: Path) -> None:
    parts = ("breaker", "gateway", "custody", "execution", "paper-exchange")
    async with running(*make(tmp_path / "desk"), *parts) as desk:
        broker = desk.supervisor.server.pid
        assert broker is not None
        os.kill(broker, signal.SIGSTOP)
        steps: list[Step] = []
        try:
            answer = Answer(desk.deployment, desk.keystore, "execution", "a drill", time.time_ns, steps.append)
            await answer.run()
        finally:
            os.kill(broker, signal.SIGCONT)
        assert {"halted", "cancelled"} <= {step.step for step in steps if step.done}
        evidence = read_evidence(answer.path)
        assert all(step.note and not step.published for step in evidence.steps)
