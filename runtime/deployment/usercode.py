"""Finds and loads a user's class: `path/to/file.py`, `package.module`, either with `:ClassName`.

User code runs as it is loaded, inside its own component's process: whatever goes wrong there is a
`ConfigError` that names file and line, before anything is published.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from tallystick.schemas.errors import ConfigError

T = TypeVar("T")


def load_user_class(where: str, folder: Path, base: type[T]) -> T:
    """The one class at `where` that derives from `base`, instantiated; a relative path is one below `folder`.

    Raises `ConfigError` (`USER_FILE`, `USER_CODE`, `USER_CLASS`).
    """
    source, colon, class_name = where.partition(":")
    module = _from_file(folder / source) if source.endswith(".py") else _from_name(source)
    found = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, base) and value.__module__ == module.__name__
    ]
    if colon:
        found = [value for value in found if value.__name__ == class_name]
    if len(found) != 1:
        names = ", ".join(value.__name__ for value in found)
        raise ConfigError(
            "USER_CLASS",
            f"{where}: expected one class that derives from {base.__name__}, found {names or 'none'}"
            + ("; name it as FILE:CLASS" if names else ""),
        )
    try:
        made = found[0]()
    except Exception as exc:  # user code may raise anything
        raise _failed(where, exc) from exc
    return made


def check_user_file(where: str, folder: Path) -> None:
    """Refuse a file at `where` that is missing or no Python, running nothing of it; a module's name passes unseen.

    Raises `ConfigError` (`USER_FILE`, `USER_CODE`).
    """
    source, _, _ = where.partition(":")
    if not source.endswith(".py"):
        return
    path = folder / source
    try:
        compile(_existing(path).read_bytes(), str(path), "exec", dont_inherit=True)
    except (SyntaxError, ValueError, OSError) as exc:
        raise _failed(str(path), exc) from exc


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ConfigError("USER_FILE", f"{path}: there is no such file")
    return path


def _from_file(path: Path) -> ModuleType:
    _existing(path)
    # A name that no package can have: user code never takes the place of a module of ours.
    name = f"user file {path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError("USER_FILE", f"{path} cannot be loaded as Python")
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
    except ModuleNotFoundError as exc:
        if exc.name is not None and f"{name}.".startswith(f"{exc.name}."):
            raise ConfigError(
                "USER_FILE", f"there is no module {name!r}; a file's path ends in .py and is relative to the deployment"
            ) from exc
        raise _failed(name, exc) from exc
    except Exception as exc:
        raise _failed(name, exc) from exc


def _failed(where: str, exc: Exception) -> ConfigError:
    if isinstance(exc, SyntaxError):
        return ConfigError("USER_CODE", f"{exc.filename}:{exc.lineno}: {exc.msg}")
    frame = traceback.extract_tb(exc.__traceback__)[-1]
    return ConfigError("USER_CODE", f"{where}: {type(exc).__name__} at {frame.filename}:{frame.lineno}: {exc}")
