"""What is wrong with what a person gives: one line that says what, where and what to do, exit code 2, nothing half-made."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tallystick.infra.lockfile import Lockfile
from tallystick.runtime.deployment import folder as layout
from tallystick.runtime.deployment.folder import Deployment
from tallystick.runtime.deployment.methods import Made
from tallystick.runtime.deployment.trust_root import write_trust_root
from tallystick.runtime.keys.hsm import Token
from tallystick.runtime.keys.keystore import Keystore
from tests.support.command import Done, tallystick
from tests.support.deployment import PIN

ONE_LINE = re.compile(r"tallystick: (?:[a-z-]+: )?[A-Z][A-Z0-9_]+: [^\n]+\n")
TOPOLOGY = Path(layout.__file__).parents[2] / "infra" / "nats" / "topology.toml"
TRADES = "1,0.005,10,0.05,1570752000000,true,true\n2,0.005,10,0.05,1570752001000,true,true\n"
BAD_ROWS = {
    "broken": ("3,abc,10,0.05,1570752002000,true,true\n", "DUMP_LINE"),
    "columns": ("3,0.005,10\n", "DUMP_COLUMNS"),
    "nan": ("3,NaN,10,NaN,1570752002000,true,true\n", "DUMP_LINE"),
    "backwards": ("3,0.005,10,0.05,1570741000000,true,true\n", "DUMP_ORDER"),
    "repeated": ("2,0.005,10,0.05,1570752002000,true,true\n", "DUMP_ORDER"),
    "futures": ("3,0.005,10,0.05,1570752002000,true\n", "DUMP_FUTURES"),
}


def refused(done: Done, *said: str) -> None:
    """It ended with 2 and one line that holds each of `said`."""
    assert done.code == 2, done
    assert ONE_LINE.fullmatch(done.err), done.err
    for text in said:
        assert text in done.err, (text, done.err)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deployment that never ran."""
    folder = tmp_path_factory.mktemp("bad-input") / "desk"
    done = tallystick("init", folder, pin=PIN.reveal())
    assert done.code == 0, done.err
    return folder


@pytest.fixture
def desk(made: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoilt."""
    return Path(shutil.copytree(made, tmp_path / "desk"))


def up(desk: Path) -> Done:
    """`tallystick up`, which is to fail before the broker has stored anything."""
    done = tallystick("up", desk, pin=PIN.reveal())
    assert not any((desk / "nats" / "jetstream").iterdir()), "the broker was started"
    assert not any((desk / "run").iterdir()), "something is left in run/"
    return done


def change(desk: Path, old: str, new: str) -> None:
    path = desk / layout.CONFIG_NAME
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


# -- market data ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_a_bad_dump_is_refused_with_file_and_line_before_anything_starts(kind: str, desk: Path) -> None:
    row, code = BAD_ROWS[kind]
    (desk / "XRPETH-trades-2019-10-11.csv").write_text(TRADES + row)
    change(desk, 'source = "synthetic"\nseed = 1\n', 'source = "dump"\npaths = ["XRPETH-trades-2019-10-11.csv"]\n')
    refused(up(desk), code, "XRPETH-trades-2019-10-11.csv:3:")


@pytest.mark.parametrize("kind", ["nan", "backwards"])
def test_the_demo_refuses_a_bad_dump_and_makes_no_folder(kind: str, tmp_path: Path) -> None:
    row, code = BAD_ROWS[kind]
    dump = tmp_path / "XRPETH-trades-2019-10-11.csv"
    dump.write_text(TRADES + row)
    refused(tallystick("demo", "--dir", tmp_path / "demo", "--data", dump), code, f"{dump}:3:")
    assert list(tmp_path.iterdir()) == [dump]


# -- topology -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ('"order.decision.', '"order.decisions.', "TOPOLOGY_SUBJECT"),
        ("[components.gateway]", '[components."gate*"]', "TOPOLOGY_NAME"),
        ("[[feedback]]", "[[feedbacks]]", "TOPOLOGY"),
    ],
    ids=["unknown subject", "a name with *", "unknown key"],
)
def test_a_wrong_topology_is_refused(old: str, new: str, code: str, tmp_path: Path) -> None:
    text = TOPOLOGY.read_text()
    assert old in text
    path = tmp_path / "topology.toml"
    path.write_text(text.replace(old, new, 1))
    refused(tallystick("topology", "check", "--file", path), code, path.name)


def test_a_cycle_in_the_topology_is_refused_with_its_steps(tmp_path: Path) -> None:
    path = tmp_path / "topology.toml"
    head, *entries = TOPOLOGY.read_text().split("[[feedback]]\n")
    assert entries
    path.write_text(head)
    refused(tallystick("topology", "check", "--file", path), "TOPOLOGY_CYCLE", path.name, "[[feedback]]")


# -- the deployment's files -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('host = "127', 'hots = "127', "`hots`"),
        ('max_notional = "5000"', "max_notional = 5000.5", "5000.5 is a float"),
        ("collar_bps = 200", "colar_bps = 200", "colar_bps"),
        ("[broker]", "[broker", "line "),
        ('name = "momentum"', 'name = "momentum-2"', "tallystick admit"),
    ],
    ids=["unknown key", "float", "unknown limit", "syntax", "not admitted"],
)
def test_a_wrong_deployment_toml_is_refused(old: str, new: str, said: str, desk: Path) -> None:
    change(desk, old, new)
    refused(up(desk), said, str(desk / "deployment.toml"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('@id("mine")\npermit(principal, action, resource) when { context.nothing > 3 };', "attribute `nothing`"),
        ('@id("mine")\npermit(;', "unexpected token"),
    ],
    ids=["type", "syntax"],
)
def test_a_policy_that_does_not_type_check_is_refused(text: str, said: str, desk: Path) -> None:
    policy = desk / "policy" / "gateway.cedar"
    policy.write_text(f"{policy.read_text()}\n{text}\n")
    refused(up(desk), "POLICY_TYPE_CHECK", str(policy), said)


@pytest.mark.parametrize(
    ("code", "said"),
    [("class X(:\n    pass\n", "mine.py:1:"), (None, "there is no such file")],
    ids=["syntax", "missing"],
)
def test_a_strategy_file_that_is_no_python_is_refused(code: str | None, said: str, desk: Path) -> None:
    if code is not None:
        (desk / "mine.py").write_text(code)
    change(desk, '"tallystick.components.strategy.examples.momentum"', '"mine.py"')
    refused(up(desk), "mine.py", said)


def test_a_strategy_that_raises_as_it_is_loaded_ends_up_with_its_file_and_line_and_everything_stops(desk: Path) -> None:
    marker = desk / "loaded-by"
    code = f"import os, pathlib\npathlib.Path({str(marker)!r}).write_text(str(os.getppid()))\n1 / 0\n"
    (desk / "mine.py").write_text(code)
    change(desk, '"tallystick.components.strategy.examples.momentum"', '"mine.py"')
    process = subprocess.Popen(
        [sys.executable, "-c", _UP_WITH_PIN, str(desk), PIN.reveal()], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )  # fmt: skip
    _, err = process.communicate(timeout=120)
    refused(
        Done(process.returncode, "", err), "START_FAILED", "strategy-momentum", "ZeroDivisionError", f"{desk}/mine.py:3"
    )
    # User code runs in its own process alone, a child of the one that holds the keystore.
    assert int(marker.read_text()) == process.pid
    assert not list((desk / "run").glob("*.ready"))
    assert not (desk / "run" / "supervisor.pid").exists()


_UP_WITH_PIN = """
import os, sys
reader, writer = os.pipe()
os.write(writer, sys.argv.pop().encode())
os.close(writer)
sys.argv = ["tallystick", "up", sys.argv[1], "--pin-fd", str(reader)]
from tallystick.cli.main import main
main()
"""


def test_a_keystore_that_is_damaged_or_not_opened_is_refused(desk: Path) -> None:
    refused(tallystick("up", desk, pin="not the right one"), "KEYSTORE_PIN", str(desk / "keystore"))
    refused(tallystick("run", desk, "gateway", pin="not the right one"), "KEYSTORE_PIN")
    data = bytearray((desk / "keystore").read_bytes())
    data[len(data) // 2] ^= 1
    (desk / "keystore").write_bytes(data)
    refused(up(desk), "KEYSTORE_DAMAGED", str(desk / "keystore"), "backup")
    (desk / "keystore").unlink()
    refused(up(desk), "KEYSTORE_MISSING", str(desk / "keystore"))


def test_a_trust_root_that_is_changed_or_missing_is_refused(desk: Path) -> None:
    note = desk / "trust" / "root-1.note"
    text = note.read_text()
    note.write_text(text.replace("XRPETH", "XRPETC", 1))
    refused(up(desk), "NOTE_SIGNATURE", str(desk / "trust"))
    note.write_text(text)
    (desk / "trust" / "operator-root.pub").unlink()
    refused(up(desk), "TRUST_ROOT", "operator-root.pub")


def test_an_expired_trust_root_is_refused(desk: Path) -> None:
    deployment = Deployment.load(desk)
    keystore = Keystore.open(deployment.keystore, PIN)
    root, keys = deployment.load_trust()[-1], deployment.load_bus_keys()
    long_ago = time.time_ns() - 400 * 86_400 * 1_000_000_000
    pin = keystore[layout.pin_name("operator")]
    with Token.open(deployment.token("operator"), "operator", pin) as token:
        signer = token.signer(layout.KEY_OPERATOR_ROOT)
        person = bytes.fromhex(root.operator)
        made = Made(issuer=signer.public, execution=signer.public, api_keys={"market-data": "00" * 32})
        write_trust_root(deployment, deployment.bus(), keys, signer, person, long_ago, made, number=2)
    refused(up(desk), "TRUST_ROOT_EXPIRED", "version 2", "tallystick admit")


# -- the machine ----------------------------------------------------------------------------------


@contextlib.contextmanager
def taken(port: int) -> Iterator[None]:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        yield


@pytest.mark.parametrize("server", ["broker", "authority", "venue"])
def test_a_taken_port_is_named(server: str, desk: Path) -> None:
    table = tomllib.loads((desk / "deployment.toml").read_text())
    port = int(table["venue"]["host"].split(":")[1]) if server == "venue" else table[server]["port"]
    with taken(port):
        refused(up(desk), "PORT_TAKEN", str(port), server, "deployment.toml")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system of a given size; skips where this user may not."""
    mounted: list[Path] = []

    def mount(size: str) -> Path:
        folder = tmp_path / "small"
        folder.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
            check=False,
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            pytest.skip(f"cannot mount a small file system here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


def test_init_on_a_full_disk_leaves_nothing(small_disk: Callable[[str], Path]) -> None:
    folder = small_disk("256k")
    done = tallystick("init", folder / "desk", pin=PIN.reveal())
    refused(done)
    assert list(folder.iterdir()) == []


def test_up_on_a_full_disk_says_so(small_disk: Callable[[str], Path], made: Path) -> None:
    folder = small_disk("8m")
    desk = Path(shutil.copytree(made, folder / "desk"))
    refused(up(desk), "pace")


# -- what is not there ----------------------------------------------------------------------------


def test_a_component_alone_without_its_broker_says_so(desk: Path) -> None:
    refused(tallystick("run", desk, "gateway", pin=PIN.reveal()), "AUTHORITY_UNREACHABLE", "tallystick up")
    refused(tallystick("run", desk, "authority", pin=PIN.reveal()), "BROKER_LOGIN")
    refused(tallystick("run", desk, "gatewy", pin=PIN.reveal()), "COMPONENT", "'gatewy'", "gateway")


def test_commands_for_a_running_deployment_say_that_it_is_down(desk: Path) -> None:
    for arguments in (("arm", desk), ("kill", desk), ("status", desk), ("rearm", desk, "all"), ("watch", desk)):
        needs_pin = arguments[0] in ("arm", "rearm", "watch")
        refused(tallystick(*arguments, pin=PIN.reveal() if needs_pin else None), "tallystick up")


def test_commands_on_a_folder_that_is_none(tmp_path: Path) -> None:
    none = tmp_path / "none"
    for command in ("up", "admit", "arm", "watch"):
        refused(tallystick(command, none, pin=PIN.reveal()), str(none), "tallystick init")
    for arguments in (("kill", none), ("audit", "verify", none), ("audit", "sql", none, "select 1"), ("replay", none)):
        refused(tallystick(*arguments), str(none))
    assert not none.exists()


def test_an_archive_that_is_not_there_yet_is_named(desk: Path) -> None:
    refused(tallystick("audit", "verify", desk), "ARCHIVE_EMPTY", str(desk))
    refused(tallystick("audit", "trace", desk, "01935478-7283-7000-8b4c-847c76da509f"), "ORDER_NOT_RECORDED")


def test_a_certificate_is_made_for_who_is_there_and_nobody_else(desk: Path) -> None:
    path = Deployment.load(desk).identity("gateway")
    before = path.read_bytes()
    refused(tallystick("certify", desk, "gateway", "nobody", pin=PIN.reveal()), "nobody")
    assert path.read_bytes() == before
    done = tallystick("certify", desk, "gateway", pin=PIN.reveal())
    assert (done.code, done.out) == (0, f"new certificate {path}\n")
    assert path.read_bytes() != before


def test_a_host_that_the_operator_did_not_sign_gets_no_server(desk: Path) -> None:
    config = desk / layout.CONFIG_NAME
    config.write_text(config.read_text().replace('host = "127.0.0.1"', 'host = "127.0.0.2"', 1))
    refused(tallystick("up", desk, pin=PIN.reveal()), "CERTIFICATE_HOST", "127.0.0.2", "tallystick admit")
    assert tallystick("admit", desk, pin=PIN.reveal()).code == 0
    assert tallystick("certify", desk, "authority", pin=PIN.reveal()).code == 0


def test_admit_of_nothing_new_and_hours_that_are_none(desk: Path) -> None:
    refused(tallystick("arm", desk, "--hours", "long", pin=PIN.reveal()), "ARM_HOURS", "'long'")
    for hours in ("0", "-1", "13", "nan", "1e999"):
        refused(tallystick("arm", desk, "--hours", hours, pin=PIN.reveal()), "ARM_HOURS", "12 hours")
    with Lockfile.take(desk / "run" / "supervisor.pid"):
        refused(tallystick("admit", desk, pin=PIN.reveal()), "RUNNING", str(os.getpid()))
        refused(tallystick("up", desk, pin=PIN.reveal()), "RUNNING", str(desk))
        assert (desk / "run" / "supervisor.pid").exists(), "a second `up` took the first one's mark away"
    # Left by a crash: in nobody's way.
    (desk / "run" / "supervisor.pid").write_text("4194305\n")
    done = tallystick("admit", desk, pin=PIN.reveal())
    assert done.code == 0, done.err
    assert "trust root 2" in done.out


def test_options_that_are_wrong_end_with_two(desk: Path) -> None:
    for arguments in (("up",), ("nonsense",), ("init", desk, "--nonsense"), ("audit", "sql", desk, "--limit", "-1")):
        done = tallystick(*arguments)
        assert done.code == 2
        assert "Traceback" not in done.err
    refused(tallystick("init", desk, pin=PIN.reveal()), "INIT_EXISTS", str(desk))
    refused(tallystick("init", desk / "new", pin="short"), "PIN")
    refused(tallystick("init", desk / "new", "--name", "a*b", pin=PIN.reveal()), "a*b")
    assert not (desk / "new").exists()
