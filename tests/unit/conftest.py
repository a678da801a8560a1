"""Unit tests start no process and use no network."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.isolation import isolated


@pytest.fixture(autouse=True)
def _isolated() -> Iterator[None]:
    with isolated():
        yield
