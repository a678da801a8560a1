"""The whole system as a new user meets it: `tallystick demo`, then the three uses on what it left."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.command import COMMAND, Done, tallystick

WIDE = {"COLUMNS": "200"}
pytestmark = pytest.mark.timeout(600)


def ask(*arguments: str) -> Done:
    return tallystick(*arguments, env=WIDE)


@pytest.fixture(scope="module")
def demo(whole: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished demo: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("e2e") / "demo"
    done = subprocess.run(
        [*COMMAND, "demo", "--dir", str(folder)],
        check=False,
        capture_output=True,
        text=True,
        timeout=240,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **WIDE},
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return folder, done.stdout


def rows(folder: Path, query: str) -> list[dict[str, str]]:
    done = ask("audit", "sql", str(folder), query, "--format", "csv", "--limit", "0")
    assert done.code == 0, done.err
    return list(csv.DictReader(io.StringIO(done.out)))


def test_every_promise_of_the_demo_holds_and_is_shown(demo: tuple[Path, str]) -> None:
    _, printed = demo
    assert "OK: everything verifies" in printed
    assert " NO " not in printed.split("what was promised")[1]
    for attack in ("foreign subject", "forged intent", "redirected", "replayed", "unlisted session", "expired"):
        assert f"HELD  {attack}" in printed


def test_nothing_secret_is_left_in_logs_or_readable_by_others(demo: tuple[Path, str]) -> None:
    folder, printed = demo
    logs = "".join(p.read_text("utf-8", "replace") for p in (folder / "log").iterdir())
    for text in (logs, printed):
        assert "PRIVATE KEY" not in text
        assert "eyJ0eXAiOiJKV1Qi" not in text  # the head of every credential
    # The venue's API keys stand in no log and in no journal: not the venue's, not custody's.
    api_keys = [key["api_key"] for key in json.loads((folder / "paper-exchange.json").read_text())["keys"]]
    for path in (*(folder / "log").iterdir(), *(folder / "state").rglob("*.jsonl")):
        data = path.read_bytes()
        assert not any(name.encode() in data for name in api_keys), path
    for path in (folder / "keystore", *(folder / "pki").glob("*.key"), *(folder / "log").glob("*.jsonl")):
        assert path.stat().st_mode & 0o077 == 0, path


def test_each_order_at_the_venue_has_exactly_one_permit_and_its_fills_are_in_the_audit(demo: tuple[Path, str]) -> None:
    folder, _ = demo
    journal = [json.loads(line) for line in (folder / "state/paper-exchange/requests.jsonl").read_text().splitlines()]
    asked = [entry["client_order_id"] for entry in journal if entry["request"] == "POST /api/v3/order"]
    permits = rows(folder, "select client_order_id from decisions where verdict = 'permit'")
    assert asked
    assert len(asked) == len(set(asked))
    assert set(asked) <= {p["client_order_id"] for p in permits}
    fills = rows(folder, "select distinct client_order_id from fills")
    assert fills
    assert {f["client_order_id"] for f in fills} <= set(asked)


def test_an_order_is_traced_from_the_tick_to_the_fill(demo: tuple[Path, str]) -> None:
    folder, _ = demo
    (filled, *_) = rows(folder, "select order_id from fills where strategy = 'momentum' order by ts limit 1")
    done = ask("audit", "trace", str(folder), filled["order_id"])
    assert done.code == 0, done.out + done.err
    for step in ("md.trade", "order.intent", "order.decision", "order.event", "fill"):
        assert step in done.out
    unknown = ask("audit", "trace", str(folder), "ts00000000000000000000000000000000")
    assert unknown.code == 2
    assert "Traceback" not in unknown.err


def test_sql_reads_and_can_do_nothing_else(demo: tuple[Path, str]) -> None:
    folder, _ = demo
    assert int(rows(folder, "select count(*) as n from trades")[0]["n"]) > 1000
    assert int(rows(folder, "select count(*) as n from quotes")[0]["n"]) > 250
    for attack in ("copy trades to 'stolen.csv'", "attach 'x.db'", "select * from read_text('/etc/passwd')", "selec 1"):
        done = ask("audit", "sql", str(folder), attack)
        assert done.code == 2, attack
        assert "Traceback" not in done.err
    assert not Path("stolen.csv").exists()


def test_a_changed_byte_is_located(demo: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = demo
    copy = tmp_path / "copy"
    for part in ("archive", "trust"):
        shutil.copytree(folder / part, copy / part)
    shutil.copy(folder / "deployment.toml", copy)
    copy.chmod(0o700)
    victim = max((copy / "archive").glob("stream=ORDERS/**/*.parquet"), key=lambda p: p.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.chmod(0o600)
    victim.write_bytes(bytes(data))
    done = ask("audit", "verify", str(copy))
    assert done.code == 1, done.out + done.err
    assert victim.name in done.out + done.err


def test_commands_on_what_is_not_there_say_so(tmp_path: Path) -> None:
    for arguments in (
        ("audit", "verify", str(tmp_path / "none")),
        ("status", str(tmp_path / "none")),
        ("kill", str(tmp_path / "none")),
        ("demo", "--dir", str(tmp_path / "d"), "--data", str(tmp_path / "none.zip")),
        ("demo", "--dir", str(tmp_path / "d"), "--speed", "-1"),
    ):
        done = ask(*arguments)
        assert done.code == 2, arguments
        assert done.err.startswith("tallystick: "), done.err
        assert "Traceback" not in done.err
    assert not (tmp_path / "d").exists()
