"""What starts much can be stopped at any moment: `up`, `demo`, `init`, a slow replay, a query that takes for ever."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from tallystick.runtime.deployment.folder import Deployment
from tests.support.archive import Story, Vault
from tests.support.command import READY_S, UP, Command, Desk, alive, running, tallystick, until
from tests.support.deployment import make

pytestmark = pytest.mark.timeout(2 * READY_S)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """A deployment of which nothing runs, since each test stops its own `up`."""
    return make(tmp_path_factory.mktemp("stop") / "desk")[0]


def test_up_killed_leaves_nothing_in_the_way_of_the_next_one(alone: Deployment) -> None:
    with Desk(alone) as again:
        pids = again.pids()
        assert {"broker", "authority", "gateway"} <= set(pids)
        # This one will not end by itself, and holds port and store.
        os.kill(pids["broker"], signal.SIGSTOP)
        again.up.process.kill()
        again.up.process.wait()
        with Desk(alone) as after:
            assert f"the broker (pid {pids['broker']}), left by an `up` that was killed, has ended" in after.up.said
            assert not any(alive(pid) for pid in pids.values())
            assert after.pids().keys() == pids.keys()


def test_up_ends_at_once_at_the_second_signal(alone: Deployment) -> None:
    with Desk(alone) as again:
        pids = again.pids()
        os.kill(pids["broker"], signal.SIGSTOP)
        again.up.process.send_signal(signal.SIGINT)
        again.up.until_said("UNPUBLISHED")
        assert again.up.ended_by(signal.SIGINT) == 130
        assert not [name for name, pid in pids.items() if alive(pid)]
        assert not (alone.run / "supervisor.pid").exists()


@pytest.mark.slow  # it waits as long as each part does for the broker
def test_up_whose_broker_is_silent_ends_by_itself_and_says_what_it_waits_for(alone: Deployment) -> None:
    with Desk(alone) as again:
        pids = again.pids()
        os.kill(pids["broker"], signal.SIGSTOP)
        assert again.up.ended_by(signal.SIGTERM, within=60) == 1
        assert "waiting for the broker" in again.up.said
        assert re.search(r"breaker ended with 1: UNPUBLISHED: \d+ events", again.up.said), again.up.said
        assert not [name for name, pid in pids.items() if alive(pid)]


def test_up_can_be_stopped_while_it_starts(alone: Deployment) -> None:
    again = Desk(alone)
    try:
        again.up.until_said("authority lists sessions")
        pids = again.pids()
        assert again.up.ended_by(signal.SIGINT, within=30) == 0
        assert not [name for name, pid in pids.items() if alive(pid)]
    finally:
        again.end()


def test_up_ends_when_its_watch_dies_and_stops_what_it_started(alone: Deployment, tmp_path: Path) -> None:
    up = Command(tmp_path, "defect", alone.directory, pin=True, program=UP)
    try:
        assert up.process.wait(READY_S) == 1, up.said
        assert "SUPERVISOR: RuntimeError: a defect of the watch" in up.said
        log = alone.log("supervisor").read_text()
        assert "Traceback" in log
        assert "in check" in log
        assert not running(alone)
    finally:
        up.kill()


def test_demo_can_be_stopped(tmp_path: Path) -> None:
    demo = Command(tmp_path, "demo", "--dir", tmp_path / "demo")
    try:
        demo.until_said("authority lists sessions")
        deployment = Deployment.load(tmp_path / "demo")
        pids = running(deployment)
        second = tallystick("demo", "--dir", tmp_path / "demo")
        assert second.code == 2
        assert f"RUNNING: a demo runs in {tmp_path / 'demo'} (pid {demo.process.pid})" in second.err
        assert pids.items() <= running(deployment).items()
        assert demo.ended_by(signal.SIGTERM, within=30) == 130, demo.said
        assert not [name for name, pid in pids.items() if alive(pid)]
    finally:
        demo.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_init_that_is_interrupted_leaves_nothing(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, number: signal.Signals
) -> None:
    new = tmp_path_factory.mktemp("new")  # a short path: its sockets' names must fit
    init = Command(tmp_path, "init", new / "desk", pin=True)
    try:
        init.until_said("token roles")
        assert init.ended_by(number) == 130
        assert not list(new.iterdir())
    finally:
        init.kill()


def test_a_slow_replay_can_be_stopped(tmp_path: Path) -> None:
    vault = Vault(tmp_path / "desk")
    vault.project(Story().streams.stored)
    for number in (signal.SIGINT, signal.SIGTERM):
        replay = Command(tmp_path, "replay", vault.deployment, "--speed", "0.0001", "--stream", "MARKET")
        replay.until_said("md.")
        assert replay.ended_by(number) == 130


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_long_query_can_be_stopped(tmp_path: Path, number: signal.Signals) -> None:
    vault = Vault(tmp_path / "desk")
    vault.project(Story().streams.stored)
    long = "select count(*) from range(1000000) a, range(1000000) b"
    query = Command(tmp_path, "audit", "sql", vault.deployment, long)
    path = Path(f"/proc/{query.process.pid}/task/{query.process.pid}/children")
    query.until(path.read_text, "the query runs")
    children = [int(pid) for pid in path.read_text().split()]
    assert query.ended_by(number) == 130
    until(lambda: not any(map(alive, children)), "the query's process ends", 2)
