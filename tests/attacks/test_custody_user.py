"""Custody as a user of its own, where root starts it: who may reach its socket and its token, and what it may reach."""

from __future__ import annotations

import contextlib
import json
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

from tallystick.runtime.deployment import apart
from tallystick.runtime.deployment.folder import Deployment
from tests.support.deployment import make

ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65534
READY_S = 120.0
LIFE_S = 12
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a process another user"),
    pytest.mark.timeout(2 * READY_S),
]

# `tallystick up` of the few that are needed.
UP = """
import asyncio, os, pathlib, signal, sys
from tallystick.infra.child import harden
from tallystick.runtime.deployment.folder import Deployment
from tallystick.runtime.deployment.supervisor import Supervisor
from tallystick.runtime.keys.keystore import Keystore, Secret
harden()
os.umask(0o077)
deployment = Deployment.load(pathlib.Path(sys.argv[1]))
parts = {"authority", "breaker", "custody"}
apart = frozenset(deployment.bus().components) - parts
async def main():
    supervisor = Supervisor(deployment, Keystore.open(deployment.keystore, Secret("a pin for tests")), apart=apart)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
    await supervisor.start()
    print("ready", flush=True)
    await stop.wait()
    await supervisor.stop()
asyncio.run(main())
"""
# What a program of another user gets of custody's socket: a reply, nothing, or not even a connection.
ASK = """
import socket, sys
from tallystick.schemas import signing
its = socket.socket(socket.AF_UNIX)
its.settimeout(5)
try:
    its.connect(sys.argv[1])
    its.sendall(signing.encode_frame(signing.SignCancelAll(id=1, venue="paper", symbol="XRP/ETH")))
    length = its.recv(4)
    print(type(signing.decode_reply(its.recv(signing.LENGTH.unpack(length)[0]))).__name__ if length else "closed")
except (ConnectionResetError, BrokenPipeError):
    print("closed")
except PermissionError:
    print("denied")
"""
# Which of these paths this user can read, and which write.
REACH = """
import json, os, sys
print(json.dumps([[path for path in sys.argv[1:] if os.access(path, mode)] for mode in (os.R_OK, os.W_OK)]))
"""


class Desk(NamedTuple):
    """A deployment that root runs where others may pass, with a Python that others may read."""

    deployment: Deployment
    uid: int
    python: str
    options: dict[str, Any]

    def pid(self, name: str) -> int:
        return int((self.deployment.seat(name) / f"{name}.ready").read_text())

    def as_user(self, uid: int, code: str, *arguments: object, gid: int | None = None) -> str:
        options = {**self.options, "user": uid, "group": uid if gid is None else gid, "extra_groups": []}
        done = subprocess.run(
            [self.python, "-P", "-c", code, *map(str, arguments)],
            check=True, capture_output=True, text=True, timeout=30, **options,
        )  # fmt: skip
        return str(done.stdout).strip()

    def ask(self, uid: int, gid: int | None = None) -> str:
        return self.as_user(uid, ASK, self.deployment.seat("custody") / "custody.sock", gid=gid)


@pytest.fixture(scope="module")
def desk(whole: None) -> Iterator[Desk]:
    home = Path(tempfile.mkdtemp(prefix="tallystick-root-"))
    home.chmod(0o711)
    packages = Path(pytest.__file__).parents[1]
    env = {
        "HOME": str(home),
        "PATH": f"{ROOT / '.venv' / 'bin'}:{os.defpath}",
        "PYTHONPATH": f"{ROOT / 'src'}:{packages}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    options: dict[str, Any] = {"env": env, "cwd": home}
    try:
        for python in (sys.executable, "/usr/bin/python{}.{}".format(*sys.version_info)):
            with contextlib.suppress(OSError):
                theirs = {**options, "user": NOBODY, "group": NOBODY, "extra_groups": []}
                if not subprocess.run(
                    [python, "-P", "-c", "import tallystick.cli.main"], check=False, stderr=subprocess.DEVNULL, **theirs
                ).returncode:
                    break
        else:
            pytest.skip(f"no Python that uid {NOBODY} may read has what {sys.executable} has")
        deployment, _ = make(home / "desk", certificate_lifetime_s=LIFE_S, session_lifetime_s=3)
        up = subprocess.Popen(
            [python, "-P", "-c", UP, str(deployment.directory)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True, **options,
        )  # fmt: skip
        try:
            assert up.stdout is not None
            assert up.stdout.readline() == b"ready\n"
            yield Desk(deployment, apart.uid_of(deployment), python, options)
        finally:
            up.send_signal(signal.SIGINT)
            up.communicate(timeout=60)
    finally:
        shutil.rmtree(home)


def ids(pid: int) -> tuple[set[int], set[int], set[int]]:
    """The users, groups and further groups of a process."""
    lines = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
    return tuple({int(n) for n in lines[name].split()} for name in ("Uid", "Gid", "Groups"))  # type: ignore[return-value]


def until(what: Any, why: str, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, why
        time.sleep(0.05)


def test_custody_alone_has_a_user_of_its_own_and_no_other_right(desk: Desk) -> None:
    assert ids(desk.pid("custody")) == ({desk.uid}, {desk.uid}, set())
    assert ids(desk.pid("breaker"))[0] == {0}
    status = json.loads((desk.deployment.seat("custody") / "custody.status").read_text())
    assert status["user"] == f"user {desk.uid} of its own"
    capabilities = Path(f"/proc/{desk.pid('custody')}/status").read_text().split("CapEff:\t")[1].split()[0]
    assert int(capabilities, 16) == 0


def test_its_socket_answers_who_started_it_and_no_other_user(desk: Desk) -> None:
    assert desk.ask(0) == "Signed"
    # Who finds the door is sent away by the kernel's word on who he is; others, of its group too, do not even find it.
    assert desk.ask(desk.uid) == "closed"
    assert desk.ask(NOBODY, gid=desk.uid) == "denied"
    assert desk.ask(NOBODY) == "denied"
    assert desk.ask(desk.uid + 1) == "denied"


def test_its_token_and_its_journal_are_its_own_and_others_files_are_out_of_its_reach(desk: Desk) -> None:
    folder = desk.deployment.directory
    paths = [folder, *folder.rglob("*")]
    assert len(paths) > 60
    assert desk.as_user(NOBODY, REACH, *paths) == "[[], []]"
    for path in (*(desk.deployment.tokens / "custody").rglob("*"), *desk.deployment.state("custody").rglob("*")):
        assert path.stat().st_uid == desk.uid, path
    reads, writes = (
        {str(Path(path).relative_to(folder)) for path in found}
        for found in json.loads(desk.as_user(desk.uid, REACH, *paths))
    )
    own = {path for path in reads if f"{path}/".startswith(("hsm/custody/", "state/custody/", "run/custody/"))}
    own |= {"log/custody.jsonl", "pki/custody.pem"}
    assert len(own) > 8
    public = {path for path in reads if f"{path}/".startswith(("trust/", "policy/"))}
    public |= {"deployment.toml", "pki", "pki/ca.pem", "pki/issuing.pem"}
    assert reads == own | public
    # New names beside certificates, since it renews its own; nobody's but its own can it change.
    assert writes == own | {"pki"}
    theirs = desk.deployment.identity("breaker")
    with pytest.raises(subprocess.CalledProcessError):
        desk.as_user(
            desk.uid,
            "import os, sys; os.replace(sys.argv[1], sys.argv[2])",
            desk.deployment.identity("custody"),
            theirs,
        )
    with pytest.raises(subprocess.CalledProcessError):
        desk.as_user(desk.uid, "import os, sys; os.unlink(sys.argv[1])", theirs)


def test_it_renews_its_certificate_and_comes_back_after_a_crash(desk: Desk) -> None:
    path = desk.deployment.identity("custody")
    before = path.read_bytes()
    until(lambda: path.read_bytes() != before and path.stat().st_uid == desk.uid, "its renewal", LIFE_S * 2)
    pid = desk.pid("custody")
    # What root made of its own meanwhile, a rotation or a backup, is handed over at the next start.
    made = next((desk.deployment.tokens / "custody").rglob("*.object"))
    os.chown(made, 0, 0)
    os.kill(pid, signal.SIGKILL)

    def back() -> bool:
        with contextlib.suppress(OSError, ValueError):
            return desk.pid("custody") != pid
        return False

    until(back, "its return")
    assert made.stat().st_uid == desk.uid
    assert ids(desk.pid("custody"))[0] == {desk.uid}
    assert desk.ask(0) == "Signed"


def test_a_stolen_custody_has_nothing_of_others_handed_over_to_it_at_the_next_start(tmp_path: Path) -> None:
    deployment, _ = make(tmp_path / "desk")
    uid, state = apart.uid_of(deployment), deployment.state("custody")
    state.mkdir(parents=True)
    # A symbolic link becomes its own, and what it points to does not.
    (state / "link").symlink_to(deployment.keystore)
    (state / "folder").symlink_to(deployment.tokens / "operator")
    apart._hand_over(deployment, "custody", uid)
    assert (state / "link").lstat().st_uid == uid
    others = [deployment.keystore, deployment.identity("breaker"), *(deployment.tokens / "operator").rglob("*")]
    assert {path.lstat().st_uid for path in others} == {0}
    # A second name of another's file, where the system lets one be made, stops it.
    (state / "second").hardlink_to(deployment.keystore)
    with pytest.raises(OSError, match="second name"):
        apart._hand_over(deployment, "custody", uid)
    assert deployment.keystore.stat().st_uid == 0


def test_a_folder_that_is_roots_alone_leaves_it_with_the_others_and_says_so(tmp_path: Path) -> None:
    deployment, _ = make(tmp_path / "desk")
    tmp_path.chmod(0o700)
    assert apart._why_not(deployment, apart.uid_of(deployment), "custody") == f"{tmp_path} is closed to others"
    assert apart.FIRST_UID <= apart.uid_of(deployment) < apart.FIRST_UID + apart.UIDS
