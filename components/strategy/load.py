"""Loads a strategy and its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from tallystick.runtime.bus.strategy import Strategy
from tallystick.runtime.deployment.usercode import load_user_class
from tallystick.schemas.errors import ConfigError


def load_strategy(where: str, folder: Path) -> Strategy:
    """The strategy at `where` (see `usercode`); a relative path is one below `folder`.  Raises `ConfigError`."""
    return load_user_class(where, folder, Strategy)


def typed_params(strategy: Strategy, given: Mapping[str, str]) -> dict[str, Any]:
    """The strategy's parameters: its defaults overridden by `given` (text), each of its default's type.

    Raises `ConfigError` for one that it does not have, or that does not parse.
    """
    params: dict[str, Any] = dict(strategy.params)
    for name, text in given.items():
        if name not in params:
            known = ", ".join(params) or "none"
            raise ConfigError("STRATEGY_PARAM", f"{type(strategy).__name__} has no parameter {name!r}; it has: {known}")
        kind = type(params[name])
        if kind not in (int, Decimal, str):
            raise ConfigError("STRATEGY_PARAM", f"{name}: the default {params[name]!r} is no Decimal, int or str")
        try:
            params[name] = kind(text)
            finite = kind is not Decimal or params[name].is_finite()
        except (ValueError, ArithmeticError):
            finite = False
        if not finite:
            raise ConfigError("STRATEGY_PARAM", f"{name} is {text[:48]!r}, expected a {kind.__name__.lower()}")
    return params
