"""Each process reads the libraries that it uses: what a dozen processes read besides is paid a dozen times."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tallystick.infra.nats import topology

# What is big, and who may read it when it starts.
HEAVY = {
    "aiohttp": {"authority", "execution", "keymaster", "paper-exchange", "streams"},
    "ccxt": set[str](),
    "cedarpy": {"gateway"},
    "duckdb": set[str](),
    "faust": {"streams"},
    "nats": {"authority"},
    "numpy": set[str](),
    "pkcs11": {"authority", "custody", "keymaster", "portfolio"},
    "pyarrow": {"audit"},
    "rich": set[str](),
    "typer": set[str](),
}
COMPONENTS = {c.name: c for c in topology.deployed("d", (), (), rotates=True).components.values()}
# Forked after what they have in common was read: a process for each would take half a minute.
CODE = """
import os, sys
from tallystick.infra.nats import topology
from tallystick.runtime.deployment.process import load_service
bus = topology.deployed("d", (), (), rotates=True)
for name in sys.argv[1:]:
    if not (pid := os.fork()):
        load_service(bus.component(name))
        print(name, *{module.partition(".")[0] for module in sys.modules}, flush=True)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0, name
"""


@pytest.fixture(scope="module")
def read() -> dict[str, set[str]]:
    names = [name for name in COMPONENTS if name != topology.REPLAY]
    done = subprocess.run([sys.executable, "-P", "-c", CODE, *names], capture_output=True, text=True, check=True)
    return {name: set(modules) for name, *modules in map(str.split, done.stdout.splitlines())}


@pytest.mark.parametrize("library", sorted(HEAVY))
def test_a_library_is_read_by_those_who_use_it_alone(read: dict[str, set[str]], library: str) -> None:
    assert {name for name, modules in read.items() if library in modules} == HEAVY[library] & set(read)


def test_custody_reads_one_exchange_of_a_hundred_and_whoever_wants_them_all_has_them_afterwards() -> None:
    code = """
import sys
from tallystick.schemas.trust import Venue
from tallystick.venues.binance.request import RequestBuilder
RequestBuilder(Venue(kind="binance-spot", account="main", host="h"), (), "key", None, lambda: 0)
assert "ccxt.binance" in sys.modules
print(*(name for name in sys.modules if name.startswith("ccxt")))
import ccxt.pro
assert ccxt.kraken and ccxt.pro.kraken
assert ccxt.binance.__module__ == "ccxt.binance"
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert "ccxt.kraken" not in done.stdout


def test_whoever_signs_for_a_venue_reads_no_client_for_it() -> None:
    code = """
import sys
from tallystick import venues
venues.adapter("binance-spot")
assert "aiohttp" not in sys.modules
"""
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


@pytest.mark.parametrize("api", ["sync", "async", "pro"])
def test_an_exchange_with_a_token_reads_no_other_exchange(api: str) -> None:
    code = f"""
import sys
from tallystick.venues.signing.exchange import signed_exchange
binanceus = signed_exchange("binanceus", "{api}", "", None, {{"apiKey": "key"}})
print(*(name for name in sys.modules if name.startswith("ccxt")))
import ccxt.pro
assert ccxt.kraken and ccxt.pro.kraken and ccxt.async_support.kraken
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    read = set(done.stdout.split())
    assert any(name.endswith(".binanceus") for name in read)
    assert {name.rpartition(".")[2] for name in read} & {"ccxt", "kraken", "okx", "bybit"} == set()
