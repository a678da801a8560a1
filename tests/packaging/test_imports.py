from __future__ import annotations

import pytest

from tests.packaging.checkout import ROOT, tracked_modules
from tests.packaging.imports import bare_imports, foreign_components, impurities


def test_no_module_imports_our_packages_by_a_bare_name() -> None:
    broken = {path: found for path in tracked_modules() if (found := bare_imports((ROOT / path).read_text()))}
    assert broken == {}


def test_no_component_imports_another_component() -> None:
    modules = tracked_modules("components")
    broken = {path: found for path in modules if (found := foreign_components(path, (ROOT / path).read_text()))}
    assert modules
    assert broken == {}


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
    ("path", "source"),
    [
        ("components/gateway/main.py", "from tallystick.components.custody.permits import check"),
        ("components/gateway/main.py", "from tallystick.components import custody"),
        ("components/gateway/main.py", "import tallystick.components.custody"),
        ("components/gateway/main.py", "__import__('tallystick.components.custody')"),
        ("components/gateway/main.py", "from tallystick.replay import reader"),
        ("components/runtime/bus.py", "from tallystick.components.gateway import policy"),
        ("components/__init__.py", "from tallystick.components.gateway import policy"),
    ],
)
def test_an_import_of_another_component_is_found(path: str, source: str) -> None:
    assert len(foreign_components(path, source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("components/gateway/main.py", "from tallystick.components.gateway.risk import Limits"),
        ("components/gateway/main.py", "from tallystick.components.runtime import bus"),
        ("components/gateway/main.py", "from tallystick.components import Component"),
        ("components/gateway/main.py", "from tallystick.schemas import orders"),
        ("components/cli/main.py", "from tallystick.components.gateway import policy"),
        ("components/__init__.py", "from tallystick.components.runtime.bus import Publisher"),
    ],
)
def test_an_import_within_the_rules_is_not_reported(path: str, source: str) -> None:
    assert foreign_components(path, source) == []


@pytest.mark.parametrize(
    "source",
    [
        "import time",
        "from os import urandom",
        "import socket",
        "import nats",
        "from tallystick.components.runtime import hsm",
        "x = open('f')",
        "from datetime import datetime\ndatetime.now()",
        "import uuid\nuuid.uuid4()",
        "key = Ed25519PrivateKey.generate()",
    ],
)
def test_an_impurity_of_the_wire_is_found(source: str) -> None:
    assert len(impurities(source)) == 1
