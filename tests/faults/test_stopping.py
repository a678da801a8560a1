"""Every command ends within `SOON_S` of a signal, whatever is down; what it could not publish is said."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from tallystick.runtime.deployment.folder import Deployment
from tests.support.archive import Story, Vault
from tests.support.deployment import PIN, make

COMMAND = [sys.executable, "-P", "-m", "tallystick.cli.main"]
# `tallystick up` of a deployment's core: enough to be stopped, and quick to start.
CORE = """
import sys
from tallystick.cli import main, operate
from tallystick.infra.nats.server import EmbeddedServer
from tallystick.runtime.deployment import supervisor

class Core(supervisor.Supervisor):
    def __init__(self, deployment, keystore, **options):
        core = {"authority", "breaker", "gateway"}
        super().__init__(deployment, keystore, apart=frozenset(deployment.bus().components) - core, **options)

def check(server):
    raise RuntimeError("a defect of the watch")

operate.Supervisor = Core
if sys.argv[1] == "defect":
    EmbeddedServer.check = check
sys.argv[1:2] = ["up"]
main.main()
"""
UP = [sys.executable, "-P", "-c", CORE]
# The promise, and the time to start up to what is interrupted, on a machine that does much else.
SOON_S = 2.0
READY_S = 240.0
pytestmark = pytest.mark.timeout(2 * READY_S)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(condition: object, what: str, seconds: float = READY_S) -> None:
    end = time.monotonic() + seconds
    while not (callable(condition) and condition()):
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.02)


class Command:
    """A running command, what it printed, and the time that it takes to end."""

    def __init__(self, folder: Path, *arguments: object, pin: bool = False, program: list[str] | None = None) -> None:
        texts = [*(program or COMMAND), *map(str, arguments)]
        fds: tuple[int, ...] = ()
        if pin:
            reader, writer = os.pipe()
            os.write(writer, PIN.reveal().encode())
            os.close(writer)
            fds = (reader,)
            texts += ["--pin-fd", str(reader)]
        self.path = folder / f"out-{time.monotonic_ns()}"
        with self.path.open("wb") as out:
            self.process = subprocess.Popen(
                texts, stdin=subprocess.DEVNULL, stdout=out, stderr=out, pass_fds=fds, start_new_session=True
            )
        for fd in fds:
            os.close(fd)

    @property
    def said(self) -> str:
        return self.path.read_text("utf-8", "replace")

    def until_said(self, text: str, seconds: float = READY_S) -> None:
        def said() -> bool:
            assert self.process.poll() is None, f"ended with {self.process.returncode}: {self.said}"
            return text in self.said

        until(said, text, seconds)

    def queued_s(self) -> float:
        """How long it was ready to run and did not, because the machine did something else."""
        try:
            return int(Path(f"/proc/{self.process.pid}/schedstat").read_text().split()[1]) / 1e9
        except FileNotFoundError:  # a kernel without CONFIG_SCHED_INFO
            return 0.0

    def until_it_waits(self) -> None:
        """Until it does nothing any more: it has read its code, and waits for somebody."""
        before, same = -1, 0
        end = time.monotonic() + READY_S
        while self.process.poll() is None and same < 2:
            assert time.monotonic() < end, self.said
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
            used = int(fields[11]) + int(fields[12])
            same = same + 1 if fields[0] == "S" and used == before else 0
            before = used
            time.sleep(0.1)

    def ended_by(self, number: signal.Signals, within: float = SOON_S) -> int:
        """Send the signal; the exit code, which has to come in time."""
        sent, queued = time.monotonic(), self.queued_s()
        self.process.send_signal(number)
        # The dead process is looked at before it is reaped.
        until(lambda: not alive(self.process.pid), f"{number.name} ends it: {self.said[-1500:]}", within + 20)
        took = time.monotonic() - sent - (self.queued_s() - queued)
        code = self.process.wait()
        assert took < within, f"{took:.1f} s after {number.name}: {self.said[-1500:]}"
        assert "Traceback" not in self.said, self.said
        return code

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Desk:
    """A deployment that `tallystick up` runs, and commands beside it."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.folder = deployment.directory.parent
        self.commands: list[Command] = []
        self.up = self.start("up", pin=True, program=UP)

    def start(self, *arguments: object, pin: bool = False, program: list[str] | None = None) -> Command:
        name, *rest = arguments
        made = Command(self.folder, name, self.deployment.directory, *rest, pin=pin, program=program)
        self.commands.append(made)
        return made

    def __enter__(self) -> Self:
        try:
            self.up.until_said("processes ready")
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        pids = self.pids()
        for command in self.commands:
            command.kill()
        for pid in pids.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def pids(self) -> dict[str, int]:
        """Whatever runs of this deployment, by name."""
        return running(self.deployment)

    @contextlib.contextmanager
    def without(self, name: str, number: signal.Signals) -> Iterator[None]:
        """Without one part, silent (SIGSTOP) or gone (SIGKILL): its supervisor is held, so that it stays away."""
        pid = self.pids()[name]
        os.kill(self.up.process.pid, signal.SIGSTOP)
        os.kill(pid, number)
        try:
            yield
        finally:
            if number == signal.SIGSTOP:
                os.kill(pid, signal.SIGCONT)
            os.kill(self.up.process.pid, signal.SIGCONT)
            until(lambda: self.pids().get(name) not in (None, *((pid,) if number == signal.SIGKILL else ())), name)


def running(deployment: Deployment) -> dict[str, int]:
    found = {}
    for path in deployment.run.glob("nats-server_*.ports"):
        found["broker"] = int(path.stem.rpartition("_")[2])
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if b"tallystick.runtime.deployment.process" in words and str(deployment.directory).encode() in words:
                    found[words[words.index(str(deployment.directory).encode()) + 1].decode()] = int(entry.name)
    return {name: pid for name, pid in found.items() if alive(pid)}


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    return make(tmp_path_factory.mktemp("stop") / "desk")[0]


@pytest.fixture(scope="module")
def desk(deployment: Deployment) -> Iterator[Desk]:
    with Desk(deployment) as made:
        yield made


AWAY = [(name, how) for name in ("broker", "authority") for how in (signal.SIGSTOP, signal.SIGKILL)]


@pytest.mark.parametrize(("name", "how"), AWAY)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_watch_ends_while_a_part_is_away(desk: Desk, name: str, how: signal.Signals, number: signal.Signals) -> None:
    watch = desk.start("watch", pin=True)
    watch.until_said("events/s")
    with desk.without(name, how):
        time.sleep(1.2)  # a heartbeat at least goes into the void
        code = watch.ended_by(number)
    if name == "authority":
        assert code == 0, watch.said
    else:
        assert code == 1, watch.said
        assert re.search(r"UNPUBLISHED: \d+ events .*GUARD \d+", watch.said), watch.said


@pytest.mark.parametrize(("name", "how"), AWAY)
@pytest.mark.parametrize("command", [("watch",), ("run", "console"), ("replay", "--source", "streams")])
def test_who_logs_in_while_a_part_is_away_can_be_stopped(
    desk: Desk, command: tuple[str, ...], name: str, how: signal.Signals
) -> None:
    with desk.without(name, how):
        started = desk.start(*command, pin=True)
        started.until_it_waits()
        if started.process.poll() is None:
            assert started.ended_by(signal.SIGINT) in (0, 130)
        else:  # nobody answers there, which was said before we came
            assert started.process.returncode == 2, started.said
            assert re.search("AUTHORITY_UNREACHABLE|BROKER_LOGIN", started.said), started.said


def test_run_ends_while_the_broker_is_silent_and_says_what_it_could_not_publish(desk: Desk) -> None:
    run = desk.start("run", "console", pin=True)
    until((desk.deployment.run / "console.ready").exists, "the console is ready")
    with desk.without("broker", signal.SIGSTOP):
        time.sleep(1.2)
        assert run.ended_by(signal.SIGINT) == 1
    assert re.search(r"tallystick: console: UNPUBLISHED: \d+ events .*GUARD \d+", run.said), run.said
    assert '"code": "UNPUBLISHED"' in desk.deployment.log("console").read_text()


@pytest.mark.parametrize("command", [("status",), ("kill", "--scope", "strategy-alpha")])
def test_who_asks_a_breaker_that_does_not_answer_can_be_stopped(desk: Desk, command: tuple[str, ...]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        with desk.without("breaker", signal.SIGSTOP):
            asking = desk.start(*command)
            asking.until_it_waits()
            assert asking.ended_by(number) == 130


@pytest.mark.parametrize(
    ("command", "part"),
    [(("arm",), "breaker"), (("rearm", "strategy-beta"), "breaker"), (("revoke", "strategy-beta"), "authority")],
)
def test_who_signs_for_a_part_that_does_not_answer_can_be_stopped(
    desk: Desk, command: tuple[str, ...], part: str
) -> None:
    with desk.without(part, signal.SIGSTOP):
        asking = desk.start(*command, pin=True)
        asking.until_it_waits()
        assert asking.ended_by(signal.SIGINT) == 130


def test_a_slow_replay_and_a_long_query_can_be_stopped(tmp_path: Path) -> None:
    vault = Vault(tmp_path / "desk")
    vault.project(Story().streams.stored)
    for number in (signal.SIGINT, signal.SIGTERM):
        replay = Command(tmp_path, "replay", vault.deployment, "--speed", "0.0001", "--stream", "MARKET")
        replay.until_said("md.")
        assert replay.ended_by(number) == 130
    long = "select count(*) from range(1000000) a, range(1000000) b"
    for number in (signal.SIGINT, signal.SIGTERM):
        query = Command(tmp_path, "audit", "sql", vault.deployment, long)
        path = Path(f"/proc/{query.process.pid}/task/{query.process.pid}/children")
        until(path.read_text, "the query runs")
        children = path.read_text().split()
        assert query.ended_by(number) == 130
        until(lambda pids=children: not any(alive(int(p)) for p in pids), "the query's process ends", 2)


def test_what_is_queued_is_published_at_a_clean_stop(desk: Desk) -> None:
    watch = desk.start("watch", pin=True)
    watch.until_said("events/s")
    assert watch.ended_by(signal.SIGINT) == 0
    assert "UNPUBLISHED" not in watch.said


@pytest.fixture
def alone(desk: Desk) -> Deployment:
    """The deployment, with nothing of it running: for tests whose own `up` is stopped."""
    desk.up.kill()
    until(lambda: not desk.pids(), "the module's own deployment ends", 20)
    return desk.deployment


def test_up_killed_leaves_nothing_in_the_way_of_the_next_one(alone: Deployment) -> None:
    with Desk(alone) as again:
        pids = again.pids()
        assert {"broker", "authority", "gateway"} <= set(pids)
        again.up.process.kill()
        again.up.process.wait()
        until(lambda: not any(alive(pid) for pid in pids.values()), "what it had started ends", 10)


def test_up_ends_at_once_at_the_second_signal(alone: Deployment) -> None:
    with Desk(alone) as again:
        pids = again.pids()
        os.kill(pids["broker"], signal.SIGSTOP)
        again.up.process.send_signal(signal.SIGINT)
        again.up.until_said("UNPUBLISHED")
        assert again.up.ended_by(signal.SIGINT) == 130
        assert not [name for name, pid in pids.items() if alive(pid)]
        assert not (alone.run / "supervisor.pid").exists()


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
        assert demo.ended_by(signal.SIGTERM, within=30) == 130
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
