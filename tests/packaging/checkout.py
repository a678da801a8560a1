"""The files of this checkout, as the packaging tests read them."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
# src/tallystick links to these: each is a package of its name below `tallystick`.
PACKAGES = ("cli", "components", "infra", "record", "replay", "runtime", "schemas", "streams", "venues")


def tracked_files() -> list[str]:
    """Paths from the root of all files that git tracks and that are there."""
    listed = subprocess.run(
        # The checkout may belong to another user than the one who tests it.
        ["git", "-c", "safe.directory=*", "ls-files", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    ).stdout.decode()
    files = [path for path in listed.split("\0") if path and (ROOT / path).is_symlink() | (ROOT / path).is_file()]
    assert "pyproject.toml" in files, "git lists no project here"
    return files


def tracked_modules(*folders: str) -> list[str]:
    """Tracked Python files below `folders`, or everywhere."""
    return [
        path
        for path in tracked_files()
        if path.endswith(".py") and (not folders or path.split("/", 1)[0] in folders) and not (ROOT / path).is_symlink()
    ]
