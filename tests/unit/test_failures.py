"""Whatever goes wrong in a command is one line; the trace is kept where that line says, or shown with `--debug`."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Any

import pytest

from tallystick.cli import failures, main
from tallystick.record.files import FileRefused
from tallystick.schemas.errors import ConfigError
from tests.unit.test_cli_docs import all_commands

BYTE = b"\xff"


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def fail(exc: BaseException, *arguments: str) -> tuple[int, str]:
    """What `tallystick` does if a command fails so."""

    def commands() -> Any:
        def run() -> None:
            raise exc

        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(main, "commands", commands)
        patch.setattr(sys, "argv", ["tallystick", *arguments])
        written: list[str] = []
        patch.setattr(sys.stderr, "write", written.append)
        with pytest.raises(SystemExit) as ended:
            main.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code, "".join(written)


@pytest.mark.parametrize(
    "exc", [ZeroDivisionError("by zero"), UnicodeEncodeError("utf-8", "\udcff", 0, 1, "no"), KeyError("a\nb\x1b[2J")]
)
def test_an_unexpected_error_is_one_line_and_its_trace_is_where_the_line_says(exc: Exception, tmp_path: Path) -> None:
    code, text = fail(exc)
    log = tmp_path / "state" / "tallystick" / "errors.log"
    assert code == 2
    assert text.startswith(f"tallystick: UNEXPECTED: {type(exc).__name__}")
    assert (text.count("\n"), "Traceback" in text, "\x1b" in text) == (1, False, False)
    assert text.endswith(f"the trace is in {log}\n")
    assert "Traceback" in log.read_text()
    assert "raise exc" in log.read_text()
    assert log.stat().st_mode & 0o077 == 0


def test_debug_shows_the_trace_of_every_error(tmp_path: Path) -> None:
    for exc in (ZeroDivisionError(), ConfigError("OPTION", "wrong"), OSError(errno.ENOSPC, "full", "/x")):
        _, text = fail(exc, "--debug")
        assert text.startswith("Traceback")
        assert text.splitlines()[-1].startswith("tallystick: ")
    assert not (tmp_path / "state").exists()


def test_what_the_machine_refused_names_the_file_and_keeps_the_trace(tmp_path: Path) -> None:
    code, text = fail(OSError(errno.ENOSPC, "No space left on device", "/x"))
    assert code == 2
    assert text.startswith(
        "tallystick: SYSTEM: /x: No space left on device; free some space and run it again; the trace"
    )


def test_where_no_log_can_be_written_the_line_says_how_to_see_the_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/none")
    _, text = fail(ZeroDivisionError())
    assert text.endswith("; --debug before the command shows the trace\n")


def test_the_log_does_not_grow_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "MAX_LOG", 100)
    for _ in range(3):
        fail(ZeroDivisionError())
    folder = tmp_path / "state" / "tallystick"
    assert sorted(path.name for path in folder.iterdir()) == ["errors.log", "errors.log.1"]
    assert (folder / "errors.log").read_text().count("Traceback") == 1


def test_tampering_ends_with_1_and_what_could_not_run_with_2() -> None:
    assert fail(FileRefused("FILE_HASH", "changed"))[0] == 1
    assert fail(ConfigError("OPTION", "wrong"))[0] == 2
    assert fail(KeyboardInterrupt()) == (130, "tallystick: interrupted\n")


def test_bytes_that_are_no_text_are_refused_in_one_line_by_every_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, _ in all_commands():
        arguments = [*name.split()[1:], BYTE.decode("utf-8", "surrogateescape")]
        monkeypatch.setattr(sys, "argv", ["tallystick", *arguments])
        written: list[str] = []
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.setattr(sys.stderr, "write", written.append)
            main.main()
        assert ended.value.code == 2, name
        assert written == [f"tallystick: ARGUMENT_ENCODING: argument {len(arguments)} is not UTF-8: \\xff\n"], name
