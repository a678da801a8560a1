"""What README, Makefile and CI promise each other."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import typer.core

from tests.packaging.checkout import ROOT

README = ROOT / "README.md"


def fenced_commands(markdown: str) -> list[str]:
    """The lines of shell code blocks, without prompts and comments."""
    blocks = re.findall(r"^```(?:sh|bash|shell|console)\n(.*?)^```", markdown, re.MULTILINE | re.DOTALL)
    lines = (
        line.strip().removeprefix("$ ").split(" #", 1)[0].strip() for block in blocks for line in block.splitlines()
    )
    return [line for line in lines if line and not line.startswith("#")]


def unknown_words(command: Any, line: str) -> list[str]:
    """The subcommands and options on a command line that the command does not have."""
    unknown = []
    for word in shlex.split(line)[1:]:
        if word.startswith("--"):
            known = {"--help", *(name for param in command.params for name in (*param.opts, *param.secondary_opts))}
            unknown += [word] if word.partition("=")[0] not in known else []
        elif isinstance(command, typer.core.TyperGroup):
            found = command.commands.get(word)
            if found is None:
                return [*unknown, word]
            command = found
    return unknown


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_the_promised_targets_exist() -> None:
    assert {"demo", "test", "slow", "lint", "bench", "clean"} <= make_targets()


def test_the_benchmarks_say_how_they_are_used() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "nonsense"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "usage" in done.stderr


@pytest.mark.skipif(not README.exists(), reason="no README yet")
def test_every_make_command_of_the_readme_exists() -> None:
    used = {
        word
        for line in fenced_commands(README.read_text())
        for word in re.findall(r"^(?:\w+=\S* )*make ([a-z-]+)", line)
    }
    assert {"demo", "test"} <= used
    assert used <= make_targets()


@pytest.mark.skipif(not README.exists(), reason="no README yet")
def test_the_readme_is_the_description_of_the_package() -> None:
    assert 'readme = "README.md"' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.skipif(not README.exists(), reason="no README yet")
def test_every_tallystick_command_of_the_readme_exists() -> None:
    lines = [line for line in fenced_commands(README.read_text()) if re.match(r"(?:\.venv/bin/)?tallystick ", line)]
    assert lines
    command = typer.main.get_command(importlib.import_module("tallystick.cli.main").commands())
    assert {line: unknown for line in lines if (unknown := unknown_words(command, line))} == {}


def test_an_unknown_command_or_option_is_found() -> None:
    app, audit = typer.Typer(), typer.Typer()
    app.add_typer(audit, name="audit")

    @audit.command()
    def verify(folder: str, *, deep: bool = False) -> None: ...

    @app.command()
    def up(folder: str) -> None: ...

    command = typer.main.get_command(app)
    assert unknown_words(command, "tallystick audit verify DIR --deep") == []
    assert unknown_words(command, "tallystick up DIR") == []
    assert unknown_words(command, "tallystick audit proof DIR") == ["proof"]
    assert unknown_words(command, "tallystick audit verify --deeper DIR") == ["--deeper"]


def test_ci_runs_lint_the_slow_tests_and_the_test_command() -> None:
    script = (ROOT / ".ci/run").read_text()
    assert os.access(ROOT / ".ci/run", os.X_OK)
    assert "set -euo pipefail" in script
    commands = [line for line in script.splitlines() if line.startswith("make ")]
    wanted = ("lint", "slow ARGS=--session-timeout=1200", "test")
    assert commands == [f"make --no-print-directory {name} || status=1" for name in wanted]
    assert script.endswith('exit "$status"\n')


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("requirements.lock", "requirements-dev.lock", "pyproject.toml", "infra/dev/setup"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(
    ("python", "level", "message"),
    [
        ("/nonexistent/python", "runtime", "PYTHON=/nonexistent/python is not a Python of version 3.11 or later"),
        ("false", "runtime", "PYTHON=false is not a Python"),
        ("", "everything", "unknown level everything"),
    ],
)
def test_setup_says_what_is_wrong_and_leaves_nothing(checkout: Path, python: str, level: str, message: str) -> None:
    done = subprocess.run(
        [checkout / "infra/dev/setup", level],
        env={"PATH": os.environ["PATH"], "PYTHON": python},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert not (checkout / ".venv").exists()
