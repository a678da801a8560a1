"""Reading parts of a library: each of a dozen processes pays for all that is read, in memory and at its start."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from typing import Any, cast


@contextlib.contextmanager
def without(*packages: str) -> Iterator[None]:
    """What is imported within finds `packages` not installed, unless they were imported before.

    Source: Python's reference, 5.3.1: a name that is None in `sys.modules` raises `ModuleNotFoundError`.
    """
    modules = cast("dict[str, Any]", sys.modules)
    hidden = [name for name in packages if name not in modules]
    modules.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        for name in hidden:
            del modules[name]


@contextlib.contextmanager
def hollow(package: str) -> Iterator[None]:
    """What is imported within finds `package` without what its `__init__` reads; afterwards it can be imported as ever.

    For packages that read everything when one module of them is wanted.  One that was imported before stays as it is.
    """
    spec = None if package in sys.modules else importlib.util.find_spec(package)
    if spec is None:
        yield
        return
    sys.modules[package] = importlib.util.module_from_spec(spec)
    try:
        yield
    finally:
        del sys.modules[package]
