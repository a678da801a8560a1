"""One owner of a file: exclusive while it lives, free when it was killed, ended only where nobody watches it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tallystick.infra.lockfile import Held, Lockfile, end_owner, owner

HOLD = """
import sys
from pathlib import Path
from tallystick.infra.lockfile import Lockfile
held = Lockfile.take(Path(sys.argv[1]), alone=bool(sys.argv[2:]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "owner.pid"


def holder(path: Path, *words: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", HOLD, str(path), *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.fixture
def other(path: Path) -> Iterator[subprocess.Popen[str]]:
    with holder(path) as process:
        yield process
        process.kill()


def test_a_second_owner_is_refused_with_the_first_ones_pid(path: Path, other: subprocess.Popen[str]) -> None:
    assert owner(path) == other.pid
    with pytest.raises(Held, match=f"RUNNING: .* process {other.pid}") as refused:
        Lockfile.take(path)
    assert refused.value.pid == other.pid
    other.kill()
    other.wait()
    assert path.exists()
    assert owner(path) is None
    with Lockfile.take(path):
        assert owner(path) == os.getpid()
    assert not path.exists()


def test_the_same_process_is_refused_as_well(path: Path) -> None:
    with Lockfile.take(path), pytest.raises(Held):
        Lockfile.take(path)


def test_a_file_that_lies_there_means_nothing(path: Path) -> None:
    path.write_text("1\n")
    assert owner(path) is None
    assert end_owner(path, 0) == 0
    with Lockfile.take(path):
        pass


def test_a_child_with_the_descriptor_is_the_owner_when_its_starter_lets_go(path: Path) -> None:
    lock = Lockfile.take(path)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lock.fd,)) as child:
        lock.name(child.pid)
        lock.hand_on()
        assert owner(path) == child.pid
        child.kill()
    assert owner(path) is None


def test_an_owner_that_nobody_watches_is_ended(path: Path, other: subprocess.Popen[str]) -> None:
    os.kill(other.pid, signal.SIGSTOP)
    assert end_owner(path, 0.05) == other.pid
    assert other.wait() == -signal.SIGKILL


def test_one_that_belongs_to_somebody_and_one_without_a_name_are_not_ended(path: Path) -> None:
    with holder(path, "alone") as process:
        with pytest.raises(Held, match=str(process.pid)):
            end_owner(path, 0.05)
        assert process.poll() is None
        process.kill()
    with Lockfile.take(path) as lock:
        lock.name(0)
        with pytest.raises(Held):
            end_owner(path, 0.05)
