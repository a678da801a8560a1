"""What all tests share: how Hypothesis runs, and where recorded market data lies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

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


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Recorded market data lies beside the checkout; a test that needs it is skipped where it does not."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("no recorded market data beside the checkout (../shared/data)")
    return path
