"""Rules that import-linter does not hold, as functions from source text to the lines that break them.

- Everybody imports `tallystick.…`: a bare `schemas` would be a second module with a second set of classes, and
  anything earlier on the path could stand in for it.
- The wire is pure: no IO, no clock, no entropy.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator

from tests.packaging.checkout import PACKAGES

_WIRE_LIBRARIES = ("cryptography", "msgspec", "nacl.bindings", "nacl.exceptions", "tallystick.schemas")
# Of the standard library, what reaches out of the process, or reads its clock or its entropy.
# fmt: off
_IMPURE = frozenset((
    "asyncio", "ctypes", "fcntl", "ftplib", "glob", "http", "importlib", "io", "mmap", "multiprocessing", "os",
    "pathlib", "random", "sched", "secrets", "select", "selectors", "shelve", "shutil", "signal", "smtplib", "socket",
    "socketserver", "sqlite3", "ssl", "subprocess", "tempfile", "threading", "time", "urllib",
))
# fmt: on
_IMPURE_CALLS = frozenset(("open", "input", "print", "exec", "eval", "__import__"))
_IMPURE_ATTRIBUTES = frozenset(("now", "utcnow", "today", "uuid1", "uuid4", "generate", "urandom"))


def _imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Each imported dotted name with its line; `from a import b` gives `a.b`, since b may be a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func)
            if called.endswith(("import_module", "__import__")) and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value


def bare_imports(source: str) -> list[str]:
    """Imports of our packages by their bare names, and relative ones."""
    return [
        f"line {line}: import {name}"
        for line, name in _imports(ast.parse(source))
        if name.startswith(".") or name.split(".", 1)[0] in PACKAGES
    ]


def impurities(source: str) -> list[str]:
    """What in a module of the wire reaches beyond its arguments."""
    broken = []
    tree = ast.parse(source)
    for line, name in _imports(tree):
        top = name.split(".", 1)[0]
        library = name.startswith(tuple(f"{known}." for known in _WIRE_LIBRARIES)) or name in _WIRE_LIBRARIES
        if not library and (top in _IMPURE or top not in sys.stdlib_module_names):
            broken.append(f"line {line}: import {name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Name) and called.id in _IMPURE_CALLS:
                broken.append(f"line {node.lineno}: {called.id}()")
            if isinstance(called, ast.Attribute) and called.attr in _IMPURE_ATTRIBUTES:
                broken.append(f"line {node.lineno}: {ast.unparse(called)}()")
    return broken
