"""What user code gives as a number: exact, or refused."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from tallystick.components.strategy.host import exact
from tallystick.schemas.errors import Malformed


def test_a_number_that_is_not_exact_is_refused() -> None:
    assert exact("1.50", "x") == Decimal("1.5")
    wrong: list[Any] = [1.0, True, "x", "Infinity", None, [1]]
    for value in wrong:
        with pytest.raises(Malformed):
            exact(value, "x")
