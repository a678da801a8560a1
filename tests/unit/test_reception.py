"""What the authority says of requests that it refuses: each component's refusals are heard, whoever floods."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from tallystick.components.authority.reception import Reception
from tallystick.runtime.bus.metrics import Metrics
from tallystick.runtime.deployment.service import ServiceContext
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.errors import Unverified


def test_one_who_is_refused_over_and_over_hides_no_refusal_of_another() -> None:
    said: list[str] = []
    now = [0]
    context: Any = SimpleNamespace(
        clock=lambda: now[0], metrics=Metrics(), notice=lambda code, text: said.append(f"{code} {text}")
    )
    reception = Reception(cast("ServiceContext", context), "test")
    request: Any = SimpleNamespace(remote="127.0.0.1")

    def refuse(component: str, code: str = "TOKEN_REPLAYED") -> None:
        assert reception._refuse(request, component, Unverified(code, component)).status == 403

    for _ in range(1_000):
        refuse("strategy-thief")
    refuse("execution")
    refuse("execution", "CHALLENGE")
    for _ in range(1_000):
        refuse("strategy-thief")
    assert said == [
        "SESSION_REFUSED_TOKEN_REPLAYED 127.0.0.1: strategy-thief",
        "SESSION_REFUSED_TOKEN_REPLAYED 127.0.0.1: execution",
        "SESSION_REFUSED_CHALLENGE 127.0.0.1: execution",
    ]
    now[0] += SECOND
    refuse("strategy-thief")
    assert len(said) == 4
