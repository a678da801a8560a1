"""Each kind of test stands where its folder says."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.isolation import isolated

TESTS = Path(__file__).parents[1]
# A broker, tokens, processes and venues of the tests: whoever needs one is no unit test.
SERVERS = re.compile(r"\b(bus: TestBus|desk: Desk|running_bus|EmbeddedServer|create_token|subprocess)\b")


def test_nothing_starts_or_connects_in_a_unit_test() -> None:
    with isolated():
        with pytest.raises(AssertionError, match=r"subprocess\.Popen"):
            subprocess.run([sys.executable, "-c", ""], check=False)
        for act in ("bind", "connect"):
            with socket.socket() as one, pytest.raises(AssertionError, match=f"socket.{act}"):
                getattr(one, act)(("127.0.0.1", 0))
    subprocess.run([sys.executable, "-c", ""], check=True)


def test_unit_tests_name_no_server_and_no_process() -> None:
    found = [path.name for path in (TESTS / "unit").glob("test_*.py") if SERVERS.search(path.read_text("utf-8"))]
    assert found == []


def test_no_file_of_tests_is_longer_than_its_limit() -> None:
    long = {path.name: count for path in TESTS.rglob("*.py") if (count := path.read_text("utf-8").count("\n")) >= 500}
    assert long == {}
