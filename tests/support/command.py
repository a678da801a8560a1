"""Commands of the program as a person runs them: to their end, or started, read while they print, interrupted, timed.

- `tallystick` runs one to its end, in a process of its own that has the program's imports behind it already.
- `Command` is one under way; `Desk` is `tallystick up` of a deployment's core with commands beside it.
- A command that leaves something behind, or takes longer than it promises, fails the test that used it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Self

from tallystick.runtime.deployment.folder import Deployment
from tests.support.deployment import PIN
from tests.support.scanner import below

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
READY_S = 120.0


_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tallystick.cli.main", "tallystick.cli.operate", "tallystick.cli.preflight"])


class Done(NamedTuple):
    """What a command answered."""

    code: int
    out: str
    err: str


def tallystick(
    *arguments: object,
    pin: str | None = None,
    secret: str | None = None,
    env: dict[str, str] | None = None,
    timeout: float = 120,
) -> Done:
    """Run one command to its end; `pin` goes through `--pin-fd`, `secret` through `--secret-fd`."""
    given = {"--pin-fd": pin, "--secret-fd": secret}
    with tempfile.TemporaryDirectory(prefix="tallystick-") as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = _FORKS.Process(target=_run, args=([str(a) for a in arguments], given, env or {}, out, err))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise TimeoutError(f"{arguments} took longer than {timeout:.0f} s: {err.read_text()}")
        code = process.exitcode
        process.close()
        return Done(code, out.read_text(), err.read_text())


def _run(arguments: list[str], given: dict[str, str | None], env: dict[str, str], out: Path, err: Path) -> None:
    """The command in its own process, as `python -m` would start it."""
    from tallystick.cli.main import main

    for descriptor, path, flags in (
        (0, Path(os.devnull), os.O_RDONLY),
        (1, out, os.O_WRONLY | os.O_CREAT),
        (2, err, os.O_WRONLY | os.O_CREAT),
    ):
        opened = os.open(path, flags, 0o600)
        os.dup2(opened, descriptor)
        os.close(opened)
    for option, text in given.items():
        if text is not None:
            reader, writer = os.pipe()
            os.write(writer, text.encode())
            os.close(writer)
            arguments = [*arguments, option, str(reader)]
    os.environ.update(env)
    os.setsid()
    sys.argv = ["tallystick", *arguments]
    main()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # before it was opened, or before it was read
        return False


def until(condition: Callable[[], object], what: str, seconds: float = READY_S) -> None:
    end = time.monotonic() + seconds
    while not condition():
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

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait, as long as the command runs."""

        def alive_and() -> object:
            assert self.process.poll() is None, f"ended with {self.process.returncode}: {self.said}"
            return condition()

        until(alive_and, what)

    def until_said(self, text: str) -> None:
        self.until(lambda: text in self.said, text)

    def queued_s(self) -> float:
        """How long it was ready to run and did not, because the machine did something else."""
        try:
            return int(Path(f"/proc/{self.process.pid}/schedstat").read_text().split()[1]) / 1e9
        except (FileNotFoundError, ProcessLookupError):  # a kernel without CONFIG_SCHED_INFO; it has ended
            return 0.0

    def until_it_waits(self) -> None:
        """Until it does nothing any more: it has read its code, and waits for somebody."""
        before, same = -1, 0
        end = time.monotonic() + READY_S
        while self.process.poll() is None and same < 2:
            assert time.monotonic() < end, self.said
            # A child that opens the keystore for it works as well.
            used, states = 0, set[str]()
            for pid in below(self.process.pid):
                with contextlib.suppress(OSError):  # it has ended meanwhile
                    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
                    used, states = used + int(fields[11]) + int(fields[12]), states | {fields[0]}
            same = same + 1 if states == {"S"} and used == before else 0
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

    def __init__(self, deployment: Deployment, *, whole: bool = False) -> None:
        """`whole`: all of it, not only what starts and stops quickly."""
        self.deployment = deployment
        self.folder = deployment.directory.parent
        self.commands: list[Command] = []
        self.up = self.start("up", pin=True, program=None if whole else UP)

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

    def answers(self, name: str) -> bool:
        """Whether a part is as it says when it is ready: the process of that id lives."""
        pid = self.pids().get(name)
        if name == "broker":
            return pid is not None
        path = self.deployment.seat(name) / f"{name}.ready"
        return pid is not None and path.exists() and path.read_text().strip() == str(pid)

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
            until(lambda: self.answers(name), f"{name} answers again")


def running(deployment: Deployment) -> dict[str, int]:
    found = {}
    for path in deployment.run.glob("nats-server_*.ports"):  # a broker that was killed leaves its own
        if alive(pid := int(path.stem.rpartition("_")[2])):
            found["broker"] = pid
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if b"tallystick.runtime.deployment.process" in words and str(deployment.directory).encode() in words:
                    found[words[words.index(str(deployment.directory).encode()) + 1].decode()] = int(entry.name)
    return {name: pid for name, pid in found.items() if alive(pid)}
