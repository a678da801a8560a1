"""A deployment is made, run, armed and stopped by an ordinary user: nothing here needs root.

Another program of that user, which user code is, reads nothing of its processes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tallystick.runtime.deployment.scheduling import NICENESS
from tests.support.scanner import below

ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65534
PIN = "a pin for tests"
READY_S = 240.0
pytestmark = pytest.mark.timeout(3 * READY_S)
# What holds or shows secrets of a process: its memory, its descriptors, its environment.
SPY = """
import os, pathlib, sys
for pid in sys.argv[1:]:
    for name in ("mem", "environ", "maps", "auxv", "fd"):
        path = pathlib.Path("/proc", pid, name)
        try:
            os.listdir(path) if name == "fd" else path.open("rb").close()
        except PermissionError:
            continue
        print(path, pathlib.Path("/proc", pid, "cmdline").read_bytes())
"""
TOKEN = "a token in the operator's shell"


class User(NamedTuple):
    """Who runs the commands: `options` for Popen, a Python that this user may read, a folder of this user's."""

    python: str
    options: dict[str, Any]
    home: Path

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        reader, writer = os.pipe()
        os.write(writer, PIN.encode())
        os.close(writer)
        try:
            return subprocess.Popen(
                [self.python, "-P", "-m", "tallystick.cli.main", *map(str, arguments)]
                + (["--pin-fd", str(reader)] if arguments[0] in ("init", "up", "arm") else []),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                pass_fds=(reader,),
                **self.options,
            )
        finally:
            os.close(reader)

    def run(self, *arguments: object) -> str:
        process = self.start(*arguments)
        said, _ = process.communicate(timeout=READY_S)
        assert process.returncode == 0, said
        return said


@pytest.fixture
def user(whole: None) -> Iterator[User]:
    """Whoever runs the tests; instead of root, nobody."""
    # Beside, not in, the tests' own folders: those are closed to others.
    home = Path(tempfile.mkdtemp(prefix="tallystick-user-"))
    packages = Path(pytest.__file__).parents[1]
    env = {
        "HOME": str(home),
        "PATH": f"{ROOT / '.venv' / 'bin'}:{Path(sys.executable).parent}:{os.defpath}",
        "PYTHONPATH": f"{ROOT / 'src'}:{packages}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "CLOUD_TOKEN": TOKEN,
        "FEED_URL": "for one strategy",
    }
    options: dict[str, Any] = {"env": env, "cwd": home, "start_new_session": True}
    if os.geteuid() == 0:
        os.chown(home, NOBODY, NOBODY)
        options |= {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    # Another Python of the same version serves where this one lies in root's own folders.
    version = "python{}.{}".format(*sys.version_info)
    for python in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        with contextlib.suppress(OSError):
            if not subprocess.run(
                [python, "-P", "-c", "import tallystick.cli.main"], check=False, **options
            ).returncode:
                break
    else:
        shutil.rmtree(home)
        pytest.skip(f"no Python that uid {NOBODY} may read has what {sys.executable} has")
    try:
        yield User(python, options, home)
    finally:
        shutil.rmtree(home)


def test_an_ordinary_user_makes_runs_arms_and_stops_a_deployment(user: User) -> None:
    desk = user.home / "desk"
    user.run("init", desk)
    config = desk / "deployment.toml"
    config.write_text(config.read_text() + 'env = ["FEED_URL"]\n')
    up = user.start("up", desk)
    try:
        assert up.stdout is not None
        said: list[str] = []
        end = time.monotonic() + READY_S
        while "processes ready" not in "".join(said[-1:]):
            assert time.monotonic() < end, said
            line = up.stdout.readline()
            assert line, f"ended with {up.wait()}: {''.join(said)}"
            said.append(line)
        assert "armed" in user.run("arm", desk)
        status = user.run("status", desk)
        assert "streams " in status
        assert "custody  shares its user with the other processes: root did not start it" in status
        # Root changes the priority of groups at any time, others one in a tenth of a second: it arrives all the same.
        found: dict[str, int] = {}
        end = time.monotonic() + 20
        while found != NICENESS and time.monotonic() < end:
            found = {name: niceness(int((desk / "run" / f"{name}.ready").read_text())) for name in NICENESS}
            time.sleep(0.1)
        assert found == NICENESS
        supervisor, *processes = below(up.pid)
        assert len(processes) >= 13
        spied = subprocess.run(
            [user.python, "-c", SPY, *map(str, (supervisor, *processes))],
            check=True, capture_output=True, text=True, **user.options,
        )  # fmt: skip
        assert not spied.stdout
        if os.geteuid() == 0:  # who may look all the same
            given = {pid: Path(f"/proc/{pid}/environ").read_bytes() for pid in processes}
            assert not [pid for pid, text in given.items() if TOKEN.encode() in text]
            strategy = int((desk / "run" / "strategy-momentum.ready").read_text())
            assert [pid for pid, text in given.items() if b"FEED_URL=" in text] == [strategy]
        os.kill(up.pid, signal.SIGINT)
        rest, _ = up.communicate(timeout=60)
        assert up.returncode == 0, "".join(said) + rest
        assert "no lower priority" not in "".join(said) + rest
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(up.pid, signal.SIGKILL)
        up.communicate()


def niceness(pid: int) -> int:
    """That of the process's group, where the kernel schedules sessions as groups."""
    try:
        return int(Path(f"/proc/{pid}/autogroup").read_text().rsplit(maxsplit=1)[1])
    except FileNotFoundError:
        return os.getpriority(os.PRIO_PROCESS, pid)
