"""What all tests share: how Hypothesis runs, where recorded market data lies, a broker and a desk on it."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import uvloop
from hypothesis import HealthCheck, settings

from tests.support.bus import TestBus, running_bus
from tests.support.runtime import Desk
from tests.support.tls import ServerTls, make_server_tls
from tests.support.vault import VaultWorld, running_vault

ROOT = Path(__file__).resolve().parent.parent

settings.register_profile(
    "tallystick",
    max_examples=60,
    # Machines that run tests are shared: how long an example takes is not a property of the code.
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    # CI says the same about the same commit; people's runs go on looking for new examples.
    derandomize=bool(os.environ.get("CI")),
    print_blob=True,
)
settings.load_profile("tallystick")

# No loop stands outside a test: asked for one, asyncio would make one that nobody closes.
asyncio.set_event_loop(None)


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """On the loop of a deployment's processes, where the `uvloop` marker says so."""
    if item.get_closest_marker("uvloop"):
        return {"uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}


@pytest.fixture(autouse=True)
def process_as_it_was() -> Iterator[None]:
    """Commands set the umask and the handler of SIGTERM of their process; where a test runs one in its own, no other shall see it."""
    umask, handler = os.umask(0o022), signal.getsignal(signal.SIGTERM)
    os.umask(umask)
    yield
    os.umask(umask)
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="session")
def vault(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VaultWorld]:
    """A deployment's vault for who changes nothing that others see there."""
    with running_vault(tmp_path_factory.mktemp("vault") / "desk") as made:
        yield made


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Recorded market data lies beside the checkout; a test that needs it is skipped where it does not."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("no recorded market data beside the checkout (../shared/data)")
    return path


@pytest.fixture(scope="session")
def shared_cases() -> Path:
    """Small inputs that once failed lie beside the checkout, with what is expected of each."""
    path = ROOT.parent / "shared" / "cases"
    if not path.is_dir():
        pytest.skip("no collected cases beside the checkout (../shared/cases)")
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One whole deployment at a time, among all workers: each is a dozen processes, on machines of two cores."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with (folder / "whole-deployment.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> ServerTls:
    return make_server_tls(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestBus]:
    """A broker for the tests of a module; where each needs one of its own, the module says so."""
    with running_bus(tmp_path_factory.mktemp("bus")) as running:
        yield running


@pytest.fixture
async def desk(bus: TestBus) -> AsyncIterator[Desk]:
    async with Desk(bus) as made:
        yield made
