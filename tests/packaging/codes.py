"""The error codes that product code can carry, read from its source.

- A carrier is what takes a code: an exception derived from TallystickError, a class with a field `code`, a function
  with a parameter `code`.  They are found by their definitions, so a new one needs no entry here.
- A code is a text in upper case that stands as a carrier's code: at the call, in a constant or local that the
  call names, in a table that it looks up, as a default or in a `Literal`.
- A formatted code counts as a family: `f"JS_{number}"` is `JS_*`.
- What is handed on (`exc.code`, a parameter `code`) is no code of its own.  Everything else that stands as a code is
  returned as unread, so nothing slips through.
- A generator or function of the same module that gives pairs of code and text gives the first of each pair.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

_CODE = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*")
_FAMILY = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*_\*")
_ROOT = "TallystickError"

_Function = ast.FunctionDef | ast.AsyncFunctionDef
# Where a function gets a name from outside: its parameters and the patterns that it matches.
_GIVEN = ast.arg | ast.MatchAs
# Names that take a code, and at which positions.
_Carriers = dict[str, set[int]]


class Used(NamedTuple):
    """What was found: `codes` by name, each with its places (`file:line`), and what could not be read."""

    codes: dict[str, list[str]]
    unread: list[str]


def used_codes(sources: dict[str, str]) -> Used:
    """The codes of the modules in `sources` (file name to text)."""
    trees = {name: ast.parse(text) for name, text in sources.items()}
    errors = _errors([node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)])
    outer = {name: _carriers(tree, errors, nested=False) for name, tree in trees.items()}
    everywhere: defaultdict[str, set[int]] = defaultdict(set)
    for carriers in outer.values():
        for name, at in carriers.items():
            everywhere[name] |= at
    codes: defaultdict[str, list[str]] = defaultdict(list)
    unread: list[str] = []
    for name, tree in trees.items():
        # A name stands for what the module defines or imports under it; a method's, for all that are called so.
        own = _carriers(tree, errors, nested=True)
        module = _Module(tree, {**everywhere, **_imported(tree, outer), **own}, errors)
        for value, function in module.values():
            found, whole = module.read(value, function)
            for code in found:
                codes[code].append(f"{name}:{value.lineno}")
            if not whole:
                unread.append(f"{name}: {ast.unparse(value)}")
    return Used(dict(codes), unread)


def _errors(classes: list[ast.ClassDef]) -> set[str]:
    """Names of the classes that derive from the root of our errors."""
    errors, before = {_ROOT}, set[str]()
    while errors != before:
        before = set(errors)
        errors |= {c.name for c in classes if any(_last(b) in errors for b in c.bases)}
    return errors


def _carriers(tree: ast.Module, errors: set[str], *, nested: bool) -> _Carriers:
    found: _Carriers = {}
    inner = {f for node in ast.walk(tree) if isinstance(node, _Function) for f in ast.walk(node) if f is not node}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            init = next((s for s in node.body if isinstance(s, _Function) and s.name == "__init__"), None)
            fields = [s for s in node.body if isinstance(s, ast.AnnAssign)]
            if init is not None:
                found[node.name] = _positions([(a.arg, a.annotation) for a in init.args.args[1:]])
            elif node.name in errors:
                found[node.name] = {0}
            else:
                found[node.name] = _positions([(_last(f.target), f.annotation) for f in fields])
        elif isinstance(node, _Function) and (nested or node not in inner) and node.name != "__init__":
            args = [a for a in (*node.args.posonlyargs, *node.args.args) if a.arg not in ("self", "cls")]
            at = _positions([(a.arg, a.annotation) for a in args])
            found[node.name] = found.get(node.name, set()) | at
    return found


def _imported(tree: ast.Module, outer: dict[str, _Carriers]) -> _Carriers:
    found: _Carriers = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            path = node.module.removeprefix("tallystick.").replace(".", "/")
            there = outer.get(f"{path}.py", {}) | outer.get(f"{path}/__init__.py", {})
            found |= {alias.name: there[alias.name] for alias in node.names if alias.name in there}
    return found


def _positions(names: list[tuple[str, ast.expr | None]]) -> set[int]:
    return {at for at, (name, annotation) in enumerate(names) if _is_code(name, annotation)}


def _is_code(name: str, annotation: ast.expr | None) -> bool:
    # Numbers called `code` are the venue's, HTTP's or the process's own.
    wanted = annotation is not None and re.search(r"\b(str|Literal)\b", ast.unparse(annotation)) is not None
    return name == "code" and wanted


def _last(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _bound(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """Names that a statement binds, each with the value it gets (the whole one, where it cannot be taken apart)."""
    pairs: list[tuple[ast.expr, ast.expr]] = []
    if isinstance(node, ast.Assign):
        pairs = [(target, node.value) for target in node.targets]
    elif isinstance(node, ast.AnnAssign | ast.NamedExpr) and node.value is not None:
        pairs = [(node.target, node.value)]
    elif isinstance(node, ast.For | ast.comprehension):
        pairs = [(node.target, node.iter)]
    for target, value in pairs:
        if isinstance(target, ast.Tuple):
            apart = isinstance(value, ast.Tuple) and len(value.elts) == len(target.elts)
            for at, element in enumerate(target.elts):
                yield _last(element), value.elts[at] if apart and isinstance(value, ast.Tuple) else value
        elif _last(target):
            yield _last(target), value


class _Module:
    def __init__(self, tree: ast.Module, carriers: _Carriers, errors: set[str]) -> None:
        self._tree = tree
        self._carriers = carriers
        self._errors = errors
        bodies = [tree.body, *(n.body for n in ast.walk(tree) if isinstance(n, ast.ClassDef))]
        self._constants = [pair for body in bodies for statement in body for pair in _bound(statement)]
        self._functions = {n.name: n for n in ast.walk(tree) if isinstance(n, _Function)}

    def values(self) -> Iterator[tuple[ast.expr, _Function | None]]:
        """Every expression that stands as a code, with the function around it."""
        yield from self._visit(self._tree, None, None)

    def _visit(
        self, node: ast.AST, function: _Function | None, owner: ast.ClassDef | None
    ) -> Iterator[tuple[ast.expr, _Function | None]]:
        if isinstance(node, ast.ClassDef):
            owner = node
        elif isinstance(node, _Function):
            function = node
            args = [*node.args.posonlyargs, *node.args.args]
            for arg, default in zip(reversed(args), reversed(node.args.defaults), strict=False):
                if _is_code(arg.arg, arg.annotation):
                    yield default, function
        elif isinstance(node, ast.AnnAssign) and _is_code(_last(node.target), node.annotation):
            yield from ((part, function) for part in (node.annotation, node.value) if part is not None)
        elif isinstance(node, ast.Call):
            positions = self._carriers.get(_last(node.func), set())
            if ast.unparse(node.func) == "super().__init__":
                derived = owner is not None and owner.name in self._errors and owner.name != _ROOT
                positions = {0} if derived else set()
            for at in positions:
                if at < len(node.args) and not isinstance(node.args[at], ast.Starred):
                    yield node.args[at], function
            yield from ((k.value, function) for k in node.keywords if k.arg == "code")
        for child in ast.iter_child_nodes(node):
            yield from self._visit(child, function, owner)

    def read(
        self, value: ast.expr, function: _Function | None, seen: frozenset[str] = frozenset()
    ) -> tuple[set[str], bool]:
        """The codes in an expression, and whether all of it was read."""
        if isinstance(value, ast.Constant):
            if isinstance(value.value, str) and _CODE.fullmatch(value.value):
                return {value.value}, True
            return set(), value.value == ""
        if isinstance(value, ast.JoinedStr):
            shape = "".join(str(p.value) if isinstance(p, ast.Constant) else "*" for p in value.values)
            return ({shape}, True) if _FAMILY.fullmatch(shape) else (set(), False)
        if isinstance(value, ast.Subscript) and isinstance(value.slice, ast.Slice):
            return self.read(value.value, function, seen)
        if isinstance(value, ast.IfExp):
            return self._all([value.body, value.orelse], function, seen)
        if isinstance(value, ast.Attribute) and value.attr == "code":
            return set(), True
        if isinstance(value, ast.Name | ast.Attribute):
            return self._name(_last(value), function, seen)
        if isinstance(value, ast.Call) and _last(value.func) in self._functions:
            body = list(ast.walk(self._functions[_last(value.func)]))
            gives = [n.value for n in body if isinstance(n, ast.Yield | ast.Return)]
            others = [n.value for n in body if isinstance(n, ast.YieldFrom)]
            return self._all([*others, *(g.elts[0] for g in gives if isinstance(g, ast.Tuple))], function, seen)
        return self._within(value)

    def _within(self, value: ast.expr) -> tuple[set[str], bool]:
        """The texts in upper case in an expression of another form: a table, a look-up with a default."""
        tables = [v for n in ast.walk(value) for k, v in self._constants if k == _last(n) and k.isupper()]
        inside = [n for part in (value, *tables) for n in ast.walk(part)]
        texts = [n.value for n in inside if isinstance(n, ast.Constant)]
        codes = {text for text in texts if isinstance(text, str) and _CODE.fullmatch(text)}
        return codes, bool(codes) or any(isinstance(n, ast.Attribute) and n.attr == "code" for n in inside)

    def _name(self, name: str, function: _Function | None, seen: frozenset[str]) -> tuple[set[str], bool]:
        if name in seen or name == "str":
            return set(), True
        if function is not None:
            local = [v for n in ast.walk(function) for k, v in _bound(n) if k == name]
            if local:
                return self._all(local, function, seen | {name})
            given = {n.arg if isinstance(n, ast.arg) else n.name for n in ast.walk(function) if isinstance(n, _GIVEN)}
            if name in given:
                return set(), name == "code"
        constant = [v for k, v in self._constants if k == name]
        return self._all(constant, function, seen | {name}) if constant else (set(), False)

    def _all(self, values: list[ast.expr], function: _Function | None, seen: frozenset[str]) -> tuple[set[str], bool]:
        read = [self.read(value, function, seen) for value in values]
        return {code for codes, _ in read for code in codes}, all(whole for _, whole in read)
