"""What README, Makefile and CI promise each other."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.packaging.checkout import ROOT

README = ROOT / "README.md"


def fenced_commands(markdown: str) -> list[str]:
    """The lines of shell code blocks, without prompts and comments."""
    blocks = re.findall(r"^```(?:sh|bash|shell|console)\n(.*?)^```", markdown, re.MULTILINE | re.DOTALL)
    lines = (
        line.strip().removeprefix("$ ").split(" #", 1)[0].strip() for block in blocks for line in block.splitlines()
    )
    return [line for line in lines if line and not line.startswith("#")]


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_the_promised_targets_exist() -> None:
    assert {"demo", "test", "slow", "lint", "bench", "clean"} <= make_targets()


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


def test_ci_runs_lint_and_the_test_command() -> None:
    script = (ROOT / ".ci/run").read_text()
    assert os.access(ROOT / ".ci/run", os.X_OK)
    assert "set -euo pipefail" in script
    commands = [line for line in script.splitlines() if line.startswith("make ")]
    assert [line.split()[-1] for line in commands] == ["lint", "test"]


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
