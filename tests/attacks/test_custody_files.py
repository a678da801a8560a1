"""Custody in other hands writes what it likes where it owns the folder: who watches it neither waits, nor ends, nor kills for it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tallystick.cli.status import processes
from tallystick.infra import lockfile
from tallystick.infra.lockfile import Held, end_owner, owner
from tallystick.runtime.deployment import board
from tallystick.runtime.deployment.folder import Deployment
from tallystick.runtime.deployment.logs import last_lines
from tallystick.runtime.deployment.owners import component_file, ready_file, ready_pid, unready
from tallystick.runtime.keys.identity import load_certificate
from tallystick.schemas.errors import ConfigError
from tests.integration.test_lockfile import holder
from tests.support.deployment import make


def huge(path: Path) -> None:
    """A file that takes no place, and all memory of who reads it."""
    with path.open("wb") as file:
        file.truncate(1 << 40)


# What waits for a writer, never ends, is no file, or leads elsewhere; and a file that would fill the memory.
FORMS: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "folder": Path.mkdir,
    "loop": lambda path: path.symlink_to(path),
    "huge": huge,
    "number": lambda path: path.write_text("9" * 31),
    "everybody": lambda path: path.write_text("-1"),
}


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    made, _ = make(tmp_path_factory.mktemp("files") / "desk")
    made.seat("custody").mkdir(parents=True)
    return made


def places(deployment: Deployment) -> Iterator[Path]:
    yield ready_file(deployment, "custody")
    yield component_file(deployment, "custody")
    yield deployment.seat("custody") / "custody.status"
    yield deployment.identity("custody")
    yield deployment.log("custody").with_suffix(".err")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("form", FORMS)
def test_whatever_lies_there_keeps_nobody_waiting_and_ends_nobody(deployment: Deployment, form: str) -> None:
    for path in places(deployment):
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        FORMS[form](path)
    try:
        assert ready_pid(deployment, "custody") == 0
        assert "custody" not in dict(processes(deployment))
        assert board.read(deployment, "custody") == {}
        assert owner(component_file(deployment, "custody")) is None
        assert end_owner(component_file(deployment, "custody"), 0.0) == 0
        with pytest.raises(ConfigError, match="CERTIFICATE"):
            load_certificate(deployment.identity("custody"))
        assert sum(map(len, last_lines(deployment.log("custody").with_suffix(".err"), 0))) <= 4_096
        unready(deployment, "custody")
    finally:
        for path in places(deployment):
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink(missing_ok=True)


def test_a_file_that_names_somebody_elses_process_has_nobody_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lockfile, "POLL_S", 0.001)
    path = tmp_path / "custody.pid"
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as victim:
        with holder(path) as held:
            # Whose name stands there is not who holds it.
            pid = victim.pid if os.geteuid() == 0 else 1
            path.write_text(f"{pid}\n")
            if os.geteuid() == 0:
                os.chown(path, 65_534, 65_534)
            with pytest.raises(Held, match=f"held by process {pid}"):
                end_owner(path, 0.0)
            assert victim.poll() is None
            held.kill()
        assert victim.poll() is None
        victim.kill()


def test_a_file_of_our_own_user_has_its_holder_ended(tmp_path: Path) -> None:
    """The control: who was left behind is ended."""
    path = tmp_path / "custody.pid"
    with holder(path) as held:
        assert end_owner(path, 0.0) == held.pid
        held.wait()
