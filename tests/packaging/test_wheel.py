"""What is built and installed is what is tracked: the wheel, made from the source distribution alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import tallystick
from tests.packaging.checkout import PACKAGES, ROOT, tracked_files

# Tools of the checkout and pages for its readers, not of an installation.
_NOT_SHIPPED = ("infra/dev/",)
_NOT_SHIPPED_KINDS = (".md",)


def build(kind: str, source: Path, out: Path) -> Path:
    """Build one distribution with the locked backend; no index is asked."""
    done = subprocess.run(
        [sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", str(out), str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkout = tmp_path_factory.mktemp("checkout")
    for path in tracked_files():
        (checkout / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, checkout / path, follow_symlinks=False)
    return build("sdist", checkout, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source")
    # By tar itself: the filters of `tarfile` are missing in the first releases of Python 3.11.
    subprocess.run(["tar", "-xzf", sdist, "-C", source], check=True)
    (root,) = source.iterdir()
    return build("wheel", root, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    command = ["pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile", "--target", str(target)]
    subprocess.run([sys.executable, "-m", *command, str(wheel)], check=True, capture_output=True)
    return target


def shipped() -> set[str]:
    """What the wheel's package must hold, by what git tracks."""
    own = {"tallystick/__init__.py", "tallystick/py.typed"}
    linked = {path for path in tracked_files() if path.startswith(tuple(f"{name}/" for name in PACKAGES))}
    kept = {path for path in linked if not path.startswith(_NOT_SHIPPED) and not path.endswith(_NOT_SHIPPED_KINDS)}
    return own | {f"tallystick/{path}" for path in kept}


def test_wheel_from_sdist_holds_exactly_what_is_tracked(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name and not name.endswith("/")}
    missing, extra = shipped() - held, held - shipped()
    assert not missing, "add them to package-data, or an __init__.py to their folder"
    assert not extra


def test_wheel_carries_licence_and_version(wheel: Path) -> None:
    info = f"tallystick-{tallystick.__version__}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
        metadata = archive.read(f"{info}/METADATA").decode()
    assert f"Version: {tallystick.__version__}\n" in metadata
    assert "License-Expression: Apache-2.0\n" in metadata


def test_every_module_imports_from_the_wheel_alone(installed: Path) -> None:
    program = """
import importlib, pkgutil, sys
sys.path.insert(0, sys.argv[1])
import tallystick
for module in pkgutil.walk_packages(tallystick.__path__, "tallystick."):
    if not module.name.endswith("__main__"):
        loaded = importlib.import_module(module.name)
        assert loaded.__file__.startswith(sys.argv[1]), loaded.__file__
        print(module.name)
for bare in ("cli", "components", "infra", "record", "replay", "runtime", "schemas", "streams", "venues"):
    assert importlib.util.find_spec(bare) is None, bare
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", program, str(installed)],
        capture_output=True,
        text=True,
        cwd=installed,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "tallystick.schemas.errors" in done.stdout.splitlines()


def test_version_is_stated_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == tallystick.__version__
    assert f"## {tallystick.__version__}" in (ROOT / "CHANGELOG.md").read_text()
