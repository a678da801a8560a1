from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.checkout import PACKAGES, ROOT, tracked_modules
from tests.packaging.imports import bare_imports, impurities


def test_no_module_imports_our_packages_by_a_bare_name() -> None:
    broken = {path: found for path in tracked_modules() if (found := bare_imports((ROOT / path).read_text()))}
    assert broken == {}


def lint(root: Path) -> tuple[int, str]:
    """import-linter's verdict on the tree in `root`, under this project's contracts."""
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--config", ROOT / "pyproject.toml", "--no-cache", "--no-logo"],
        cwd=root / "src",
        env={**os.environ, "PYTHONPATH": str(root / "src"), "PYTHONSAFEPATH": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_imports_go_down_never_up_never_across() -> None:
    code, said = lint(ROOT)
    assert code == 0, said


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("components/gateway/main.py", "from tallystick.components.custody.permits import Permits"),
        ("components/gateway/main.py", "from tallystick.components import custody"),
        ("components/gateway/main.py", "from tallystick.replay import reader"),
        ("components/__init__.py", "from tallystick.cli import main"),
        ("record/rows.py", "from tallystick.components.audit import projector"),
        ("runtime/bus/link.py", "from tallystick.runtime.deployment import folder"),
        ("runtime/keys/hsm.py", "from tallystick.runtime.bus import link"),
        ("schemas/seal.py", "from tallystick.runtime.bus import link"),
    ],
)
def test_an_import_against_the_floor_plan_is_found(path: str, line: str, tmp_path: Path) -> None:
    for name in tracked_modules(*PACKAGES):
        copy = tmp_path / "src" / "tallystick" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy)
    (tmp_path / "src" / "tallystick" / "__init__.py").touch()
    with (tmp_path / "src" / "tallystick" / path).open("a") as file:
        file.write(f"\n{line}\n")
    code, said = lint(tmp_path)
    assert code == 1, said


def test_the_wire_is_pure() -> None:
    modules = tracked_modules("schemas")
    broken = {path: found for path in modules if (found := impurities((ROOT / path).read_text()))}
    assert modules
    assert broken == {}


@pytest.mark.parametrize(
    "source",
    [
        "import components",
        "import schemas.seal as s",
        "from infra.nats import topology",
        "def f():\n    from replay import reader",
        "from . import seal",
        "import importlib\nimportlib.import_module('streams.app')",
    ],
)
def test_a_bare_import_is_found(source: str) -> None:
    assert len(bare_imports(source)) == 1


def test_imports_through_tallystick_are_not_bare() -> None:
    assert bare_imports("import tallystick.schemas\nfrom tallystick.components import Component\nimport json") == []


@pytest.mark.parametrize(
    "source",
    [
        "import time",
        "from os import urandom",
        "import socket",
        "import nats",
        "from tallystick.runtime.keys import hsm",
        "x = open('f')",
        "from datetime import datetime\ndatetime.now()",
        "import uuid\nuuid.uuid4()",
        "key = Ed25519PrivateKey.generate()",
    ],
)
def test_an_impurity_of_the_wire_is_found(source: str) -> None:
    assert len(impurities(source)) == 1


def test_kill_reads_no_library_that_it_does_not_need() -> None:
    code = (
        "import sys\nfrom tallystick.cli.main import main\n"
        "sys.argv = ['tallystick', 'kill', '/nowhere']\n"
        "try:\n    main()\nfinally:\n    print(*sorted({name.partition('.')[0] for name in sys.modules}))\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, "DEPLOYMENT_FILE" in done.stderr) == (2, True), done.stderr
    heavy = {
        "aiohttp",
        "ccxt",
        "cryptography",
        "duckdb",
        "faust",
        "nats",
        "numpy",
        "pkcs11",
        "pyarrow",
        "rich",
        "uvloop",
    }
    assert not heavy & set(done.stdout.split())
