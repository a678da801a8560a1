"""`tallystick replay` as it is typed: what is printed where, and the exit code."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tallystick.cli import main
from tallystick.cli.replay_run import NOT_EXACT
from tallystick.replay.selection import time_text
from tallystick.runtime.deployment.folder import Deployment
from tests.support.archive import Story, Vault
from tests.support.world import NOW


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Vault:
    vault = Vault(tmp_path_factory.mktemp("replay") / "desk")
    vault.project(Story().streams.stored)
    return vault


class Typed:
    """What a command line gave."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> None:
        monkeypatch.setattr(sys, "argv", ["tallystick", "replay", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main.main()
        self.code = ended.value.code
        self.out, self.err = capsys.readouterr()


Command = Callable[..., Typed]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return lambda *words: Typed(monkeypatch, capsys, *words)


def test_a_clean_archive_is_printed_and_counted(desk: Vault, typed: Command) -> None:
    for where in (desk.deployment, desk.path):
        result = typed(where)
        assert (result.code, len(result.out.splitlines())) == (0, 52)
        assert "28 messages with 52 events verified" in result.err


def test_json_goes_to_standard_output_alone(desk: Vault, typed: Command) -> None:
    result = typed(desk.deployment, "--format", "json", "--stream", "ORDERS", "--seq", "2-3")
    assert result.code == 0
    assert [json.loads(line)["seq"] for line in result.out.splitlines()] == [2, 3]


def test_nothing_matched_is_said_with_what_there_is(desk: Vault, typed: Command) -> None:
    result = typed(desk.deployment, "--from", "2030-01-01")
    assert (result.code, result.out) == (0, "")
    assert "nothing matched. There is: SECURITY 1 to 7, stored 2024-11-22T" in result.err


def test_what_does_not_verify_is_named_with_its_position(desk: Vault, tmp_path: Path, typed: Command) -> None:
    vault = desk.copy(tmp_path / "desk")
    vault.rewrite(vault.segments("MARKET")[0], "subject", 0, "md.trade.paper.BTC-USDT")
    vault.rehash()
    stopped = typed(vault.deployment, "--stream", "MARKET")
    assert (stopped.code, stopped.out) == (1, "")
    assert "tallystick: MERKLE_ROOT at MARKET 1 (md.trade.paper.BTC-USDT)" in stopped.err
    assert "--keep-going" in stopped.err
    passed = typed(vault.deployment, "--stream", "MARKET", "--keep-going")
    assert (passed.code, len(passed.out.splitlines())) == (1, 26)
    assert "MERKLE_ROOT at MARKET 1" in passed.err
    assert "1 FAILED" in passed.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--from", "yesterday"], "REPLAY_TIME: 'yesterday'"),
        (["--from", "1795363200"], "REPLAY_TIME: 1795363200 reads like Unix seconds"),
        (["--from", "2026-01-02", "--until", "2026-01-01"], "REPLAY_TIME: nothing lies between 2026-01-02"),
        (["--subject", "orders.>"], "REPLAY_SUBJECT: 'orders.>' covers no kind of subject"),
        (["--stream", "orders"], "REPLAY_STREAM: unknown stream 'orders'"),
        (["--seq", "5"], "REPLAY_SEQUENCE: sequences count within one stream"),
        (["--speed", "fast"], "SPEED: 'fast'"),
        (["--format", "xml"], "OPTION: --format is text or json, got 'xml'"),
        (["--source", "tape"], "OPTION: --source is archive or streams, got 'tape'"),
        (["--run", "streams"], "OPTION: --run and --stay are about a zone"),
        (["--limit", "-1"], "OPTION: "),
        (["--root", "/nowhere"], "ROOT_MISSING: /nowhere is not there"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_2(
    desk: Vault, typed: Command, words: list[str], said: str
) -> None:
    result = typed(desk.deployment, *words)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"tallystick: {said}")
    assert result.err.count("\n") == 1


def test_a_folder_without_an_archive_says_so(tmp_path: Path, typed: Command) -> None:
    result = typed(tmp_path)
    assert result.code == 2
    assert "ARCHIVE_MISSING" in result.err


def test_the_recorded_pace_is_kept(desk: Vault, typed: Command) -> None:
    started = time.monotonic()
    result = typed(desk.deployment, "--speed", "0.5", "--until", time_text(NOW + 105_000_000))
    took = time.monotonic() - started
    assert result.code == 0
    assert took > 0.19  # from the first statement to the last 0.1 s, at half speed


def test_a_zone_is_made_played_into_and_left_stopped(desk: Vault, tmp_path: Path, typed: Command) -> None:
    read, write = os.pipe()
    os.write(write, b"the zone's own pin\n")
    os.close(write)
    result = typed(desk.deployment, "--into", tmp_path / "z", "--into-pin-fd", read, "--run", "streams")
    assert (result.code, result.out) == (0, "")
    assert NOT_EXACT in result.err
    assert "28 messages with 52 events verified" in result.err
    assert "16 published in the zone, 12 not played there" in result.err
    zone = Deployment.load(tmp_path / "z")
    assert zone.name.startswith("replay-")
    assert list(zone.run.glob("*.ready")) == []
    assert list(zone.run.glob("*.ports")) == []
