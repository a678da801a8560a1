"""Finds and loads a strategy: `path/to/file.py`, `package.module`, either with `:ClassName`.

User code runs as it is loaded, inside the strategy's own process: whatever goes wrong there is a `ConfigError` that
names file and line, before anything is traded.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

from tallystick.components.runtime.strategy import Strategy
from tallystick.schemas.errors import ConfigError


def load_strategy(where: str, folder: Path) -> Strategy:
    """The strategy at `where`, instantiated; a relative path is one below `folder`.  Raises `ConfigError`."""
    source, colon, class_name = where.partition(":")
    module = _from_file(folder / source) if source.endswith(".py") else _from_name(source)
    found = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Strategy) and value.__module__ == module.__name__
    ]
    if colon:
        found = [value for value in found if value.__name__ == class_name]
    if len(found) != 1:
        names = ", ".join(value.__name__ for value in found)
        raise ConfigError(
            "STRATEGY_CLASS",
            f"{where}: expected one class that derives from Strategy, found {names or 'none'}"
            + ("; name it as FILE:CLASS" if names else ""),
        )
    try:
        made = found[0]()
    except Exception as exc:  # user code may raise anything
        raise _failed(where, exc) from exc
    return made


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError("STRATEGY_FILE", f"{path}: there is no such file")
    # A name that no package can have: user code never takes the place of a module of ours.
    name = f"strategy file {path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError("STRATEGY_FILE", f"{path} cannot be loaded as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as exc:
        raise _failed(str(path), exc) from exc
    return module


def _from_name(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as exc:
        raise _failed(name, exc) from exc


def _failed(where: str, exc: Exception) -> ConfigError:
    if isinstance(exc, SyntaxError):
        return ConfigError("STRATEGY_CODE", f"{exc.filename}:{exc.lineno}: {exc.msg}")
    frame = traceback.extract_tb(exc.__traceback__)[-1]
    return ConfigError("STRATEGY_CODE", f"{where}: {type(exc).__name__} at {frame.filename}:{frame.lineno}: {exc}")


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
