"""Two threads that use a Struct for the first time at once crash msgspec: no process of ours has one that is unused."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest

from tallystick.infra.nats import topology
from tests.support import world

# What msgspec asks its Python half while it works out a Struct's fields, and for which Struct.
LOOK = """
import contextlib, msgspec, os, sys
from tallystick.runtime.structs import _below

def unknown():
    found, asked = [], []
    def look(frame, event, _):
        if event == "call" and frame.f_code.co_name == "get_class_annotations":
            asked.append(frame.f_locals["obj"])
    for kind in list(_below(msgspec.Struct)):
        asked.clear()
        sys.setprofile(look)
        try:
            msgspec.json.Decoder(kind)
        except NameError:
            asked.clear()  # nobody can decode it
        finally:
            sys.setprofile(None)
        found += [f"{kind.__module__}.{kind.__name__}" for kind in asked]
    return found
"""
SERVICES = """
from tallystick.infra.nats import topology
from tallystick.runtime.deployment.process import load_service
bus = topology.deployed("d", (), (), rotates=True)
for name in sys.argv[1:]:
    if not (pid := os.fork()):
        load_service(bus.component(name))
        print(name, *unknown(), flush=True)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0, name
"""
SUPERVISOR = """
from tallystick.cli import compromise, operate
from tallystick.runtime.deployment import supervisor
with contextlib.suppress(AttributeError):
    supervisor.Supervisor(None, None)
print(*unknown())
"""
THREADS = """
import sys, threading
from tallystick.runtime import structs
from tallystick.schemas import trust
structs.prepare()
sys.setswitchinterval(1e-6)
text, together = sys.stdin.read(), threading.Barrier(6)
def decode():
    together.wait()
    trust.decode_document(text, trust.TrustRoot)
threads = [threading.Thread(target=decode) for _ in range(6)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


def said(code: str, *arguments: str, given: str = "") -> str:
    command = [sys.executable, "-P", "-c", code, *arguments]
    return subprocess.run(command, input=given, stdout=subprocess.PIPE, text=True, check=True).stdout


def test_a_struct_that_nobody_used_is_seen() -> None:
    assert "tallystick.schemas.trust.TrustRoot" in said(f"{LOOK}\nimport tallystick.schemas.trust\nprint(*unknown())")


@pytest.mark.parametrize("code", [SERVICES, SUPERVISOR], ids=["components", "up"])
def test_every_struct_is_known_before_there_are_threads(code: str) -> None:
    names = topology.deployed("d", (), (), rotates=True).components if code is SERVICES else ()
    lines = said(LOOK + code, *(name for name in names if name != topology.REPLAY)).splitlines()
    assert len(lines) == (len(names) - (topology.REPLAY in names) if code is SERVICES else 1)
    assert [line for line in lines if len(line.split()) > (code is SERVICES)] == []


def test_threads_that_open_a_trust_root_at_once_all_have_it() -> None:
    text = msgspec.json.format(msgspec.json.encode(world.trust_root(), order="sorted"), indent=2).decode() + "\n"
    for _ in range(5):  # without `prepare`, every second time one dies
        said(THREADS, given=text)
