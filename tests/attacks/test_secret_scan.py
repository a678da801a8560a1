"""A running deployment is looked through for every secret that it has: memory, environment, arguments, descriptors, files.

Who may hold which secret stands in one table, `may_hold`; what is found elsewhere is a defect.  The same scan finds what
is planted.
"""

from __future__ import annotations

import contextlib
import os
import secrets as entropy
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tallystick.runtime.deployment import folder as layout
from tallystick.runtime.deployment.ceremony import init
from tallystick.runtime.deployment.folder import Deployment, api_key_name, pin_name
from tallystick.runtime.deployment.vault import UNSEAL
from tallystick.runtime.keys.keystore import Keystore, Secret
from tests.support.deployment import STRATEGIES
from tests.support.scanner import Scanner, below, forms

READY_S = 120.0
COMMAND = [sys.executable, "-P", "-m", "tallystick.cli.main"]
MASTER = "master PIN"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root reads the memory of hardened processes")
pytestmark = pytest.mark.timeout(2 * READY_S)


def may_hold(deployment: Deployment, process: str) -> set[str]:
    """The names of the secrets that a process may hold.

    - A component: what it is handed (`Deployment.secret_names`), and what the vault lends it (`leased_names`).
    - `up`: what starting a component, the broker or the vault again, and renewing certificates, takes.  Not the operator's,
      and nothing that the vault lends.
    - `token LABEL`: the PIN of that token, which it serves `up` or the authority with.
    - The vault: what it lends, and its unseal key.
    - The broker: the key of its store.
    - Execution: the name of custody's API key, which stands in the header of every request that it sends.
    - The paper exchange: the names of the keys that it knows, being the exchange.
    """
    venue = {api_key_name("custody"), api_key_name("portfolio")}
    match process:
        case "up":
            return {*deployment.supervision_names(), UNSEAL}
        case "vault":
            return {UNSEAL, *(name for component in layout.LEASED for name in deployment.leased_names(component))}
        case "broker":
            return {layout.PIN_STORE_KEY}
        case "token signing" | "token issuer":
            return {pin_name(process.removeprefix("token "))}
        case "execution":
            return {*deployment.secret_names(process), api_key_name("custody")}
        case "paper-exchange":
            return {*deployment.secret_names(process), *venue}
    return {*deployment.secret_names(process), *deployment.leased_names(process)}


# Secrets that may lie in files below the deployment's folder: the paper exchange knows its keys by name.
MAY_LIE = {("paper-exchange.json", api_key_name(name)) for name in ("custody", "portfolio")}


class Desk(NamedTuple):
    """A deployment that runs and trades, and what its commands said."""

    deployment: Deployment
    scanner: Scanner
    processes: dict[int, str]
    said: list[str]


def _start(*arguments: object, pin: str, said: Path) -> subprocess.Popen[bytes]:
    reader, writer = os.pipe()
    os.write(writer, pin.encode())
    os.close(writer)
    try:
        with said.open("ab") as out:
            return subprocess.Popen(
                [*COMMAND, *map(str, arguments), "--pin-fd", str(reader)],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, pass_fds=(reader,), start_new_session=True,
            )  # fmt: skip
    finally:
        os.close(reader)


def _until(what: str, said: Path, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + READY_S
    while what not in said.read_text():
        assert process.poll() is None, said.read_text()
        assert time.monotonic() < end, said.read_text()
        time.sleep(0.05)


@pytest.fixture(scope="module")
def desk(whole: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    home = tmp_path_factory.mktemp("scan")
    pin, out = entropy.token_urlsafe(32), home / "said"
    deployment = init(home / "desk", "test", Secret(pin), time.time_ns, strategies=STRATEGIES)
    keystore = Keystore.open(deployment.keystore, Secret(pin))
    secrets = {name: secret.reveal().encode() for name, secret in keystore.secrets.items()}
    scanner = Scanner({**secrets, MASTER: pin.encode()})
    up = _start("up", deployment.directory, pin=pin, said=out)
    beside: list[subprocess.Popen[bytes]] = []
    try:
        _until("processes ready", out, up)
        arming = _start("arm", deployment.directory, pin=pin, said=out)
        assert arming.wait(READY_S) == 0, out.read_text()
        beside.append(_start("run", deployment.directory, "console", pin=pin, said=out))
        _until("", out, beside[0])
        journal = deployment.state("custody")
        end = time.monotonic() + 60
        while not (list(journal.glob("signed-*")) and (deployment.run / "console.ready").exists()):
            assert time.monotonic() < end, out.read_text()
            time.sleep(0.1)
        yield Desk(deployment, scanner, _named(deployment, up.pid, beside[0].pid), [out.read_text()])
    finally:
        for process in (*beside, up):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)
            process.wait(60)


def _named(deployment: Deployment, up: int, console: int) -> dict[int, str]:
    names = {int(path.read_text()): path.stem for path in deployment.run.rglob("*.ready")}
    names |= {up: "up", console: "console"}
    for pid in below(up):
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"tallystick.runtime.keys.token_process" in command:
            names[pid] = f"token {command[-4].decode()}"
        elif command[0].endswith(b"nats-server"):
            names[pid] = "broker"
        elif command[0].endswith(b"/bao"):
            names[pid] = "vault"
        names.setdefault(pid, f"pid {pid}: {b' '.join(command[:6])!r}")
    return names


@pytest.mark.slow  # a whole deployment, and a gigabyte of memory
@needs_root
def test_no_process_holds_a_secret_that_is_not_its_own(desk: Desk) -> None:
    found = {name: desk.scanner.process(pid) for pid, name in desk.processes.items()}
    assert len(found) == len(desk.processes) >= 15
    wrong = {
        name: sorted(
            place for place in places if place[0] != "memory" or place[1] not in may_hold(desk.deployment, name)
        )
        for name, places in found.items()
    }
    assert {name: places for name, places in wrong.items() if places} == {}
    # The scan sees what is there: each that signs holds its token's PIN.
    for name, secret in (
        ("custody", pin_name("custody")),
        ("custody", api_key_name("custody")),
        ("portfolio", pin_name("portfolio")),
        ("up", pin_name("signing")),
        ("vault", pin_name("custody")),
        ("broker", layout.PIN_STORE_KEY),
        ("execution", api_key_name("custody")),
    ):
        assert ("memory", secret) in found[name], (name, secret)


@pytest.mark.slow  # a whole deployment, and a gigabyte of memory
def test_no_secret_lies_in_a_file_or_in_what_commands_said(desk: Desk) -> None:
    assert desk.scanner.files(desk.deployment.directory) == MAY_LIE
    for said in desk.said:
        assert desk.scanner.scan([said.encode()]) == set()


@pytest.mark.slow  # a whole deployment, and a gigabyte of memory
@needs_root
def test_arguments_and_environments_are_looked_through_without_leaving_one_out(desk: Desk) -> None:
    """The processes that are scanned are all that there are: no other names the deployment's folder."""
    folder = str(desk.deployment.directory).encode()
    others = set()
    for place in Path("/proc").iterdir():
        if place.name.isdigit() and int(place.name) not in {*desk.processes, os.getpid()}:
            with contextlib.suppress(OSError):
                if folder in (place / "cmdline").read_bytes():
                    others.add(place.name)
    assert others == set()


@pytest.mark.slow  # a whole deployment, and a gigabyte of memory
def test_no_process_leaves_a_core_file(desk: Desk) -> None:
    for pid, name in desk.processes.items():
        limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
        (core,) = [line.split()[-3:-1] for line in limits if line.startswith("Max core file size")]
        assert core in (["1", "1"], ["0", "0"]), name


# ---------------------------------------------------------------- the scan finds what is there

HOLDER = """
import sys
held = sys.stdin.buffer.read()
print("held", flush=True)
sys.stdin = open(0, closefd=False)
import time
time.sleep(600)
"""


@contextlib.contextmanager
def holding(data: bytes, argument: str = "nothing", **env: str) -> Iterator[int]:
    """A process that was given `data`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, argument],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **env},
    )  # fmt: skip
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(data)
        process.stdin.close()
        assert process.stdout.readline() == b"held\n"
        yield process.pid
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


PLANTED = 'planted/secret+with "odd" letters: ä?'
AS = {
    "as it is": PLANTED.encode(),
    "utf-16": PLANTED.encode("utf-16-le"),
    "hex": PLANTED.encode().hex().encode(),
    "base64": __import__("base64").b64encode(b"user:" + PLANTED.encode() + b":end"),
    "base64url": __import__("base64").urlsafe_b64encode(b"1" + PLANTED.encode()),
    "in a url": __import__("urllib.parse").parse.quote(f"key={PLANTED}&more").encode(),
    "in json": __import__("json").dumps({"key": PLANTED}).encode(),
}


@pytest.mark.parametrize("how", AS)
def test_what_is_planted_in_a_file_is_found_in_every_form(tmp_path: Path, how: str) -> None:
    scanner = Scanner({"planted": PLANTED.encode(), "absent": b"something else"})
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_bytes(os.urandom(5_000_000) + AS[how] + os.urandom(100))
    assert scanner.files(tmp_path) == {("deep/file", "planted")}


@needs_root
def test_what_is_planted_in_a_process_is_found(tmp_path: Path) -> None:
    scanner = Scanner({"planted": PLANTED.encode(), "absent": b"something else"})
    with holding(b"harmless" * 1000) as pid:
        assert scanner.process(pid) == set()
    for data in AS.values():
        with holding(os.urandom(1000) + data) as pid:
            assert scanner.process(pid) == {("memory", "planted")}
    with holding(b"", argument=PLANTED) as pid:
        assert ("cmdline", "planted") in scanner.process(pid)
    with holding(b"", PASSWORD=PLANTED) as pid:
        assert ("environ", "planted") in scanner.process(pid)


def test_a_secret_that_is_too_short_or_torn_by_lines_is_not_silently_passed_over() -> None:
    for secret in (b"short", b"two\nlines of it"):
        with pytest.raises(ValueError, match=r"is too short|holds a line's end"):
            Scanner({"it": secret})
    assert all(len(form) >= 8 for form in forms(b"eight by"))
