"""API keys are changed on a running deployment, against the paper exchange."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tallystick.cli.rotate import rotate
from tallystick.runtime.deployment.folder import Deployment
from tallystick.runtime.keys.keystore import Keystore
from tests.support.deployment import Running, make, running
from tests.support.waiting import until

on_its_loop = pytest.mark.asyncio(loop_scope="module")
PARTS = ("breaker", "gateway", "custody", "execution", "portfolio", "paper-exchange", "keymaster")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Deployment, Keystore]:
    return make(tmp_path_factory.mktemp("r") / "desk", rotation=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def desk(made: tuple[Deployment, Keystore]) -> AsyncIterator[Running]:
    async with running(*made, *PARTS, report=print) as up:
        yield up


@on_its_loop
async def test_one(desk: Running) -> None:
    t = time.monotonic()
    assert await rotate(desk.deployment, desk.keystore, "custody", print)
    print(time.monotonic() - t)
    assert await rotate(desk.deployment, desk.keystore, "portfolio", print)
    print(time.monotonic() - t)
