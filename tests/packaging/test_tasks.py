"""Background work is started by `runtime.bus.tasks`, which tells of its failure; `asyncio` alone keeps silent."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.packaging.checkout import PACKAGES, ROOT, tracked_modules

_STARTS = frozenset(
    (
        "create_task",
        "ensure_future",
        "gather",
        "run_coroutine_threadsafe",
        "call_at",
        "call_later",
        "call_soon",
        "call_soon_threadsafe",
    )
)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
# Who may, and why.
EXCEPTIONS = {
    "runtime/bus/tasks.py": "the one place",
}


def _own(function: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a function, or of a module, without those of the functions in it."""
    for child in ast.iter_child_nodes(function):
        yield child
        if not isinstance(child, _FUNCTIONS):
            yield from _own(child)


def unowned_tasks(source: str) -> list[str]:
    """What starts background work that the same function does not await."""
    broken = []
    tree = ast.parse(source)
    for scope in [tree, *(node for node in ast.walk(tree) if isinstance(node, _FUNCTIONS))]:
        nodes = list(_own(scope))
        awaited = [inner for node in nodes if isinstance(node, ast.Await) for inner in ast.walk(node)]
        names = {node.id for node in awaited if isinstance(node, ast.Name)}
        kept = [
            node.value
            for node in nodes
            if isinstance(node, ast.Assign | ast.AnnAssign)
            and all(
                isinstance(target, ast.Name) and target.id in names
                for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            )
        ]
        broken += [
            f"line {node.lineno}: {ast.unparse(node.func)}"
            for node in nodes
            if isinstance(node, ast.Call)
            and (node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)) in _STARTS
            and node not in awaited
            and node not in kept
        ]
    return broken


def test_background_work_is_started_by_tasks_alone() -> None:
    broken = {path: found for path in tracked_modules(*PACKAGES) if (found := unowned_tasks((ROOT / path).read_text()))}
    assert {path: found for path, found in broken.items() if path not in EXCEPTIONS} == {}


@pytest.mark.parametrize(
    "source",
    [
        "async def f():\n    asyncio.create_task(g())",
        "async def f():\n    task = asyncio.create_task(g())\n    task.cancel()",
        "async def f():\n    self.task = asyncio.ensure_future(g())\n    await self.task",
        "async def f():\n    task = create_task(g())\n    async def h():\n        await task",
        "def f():\n    asyncio.get_running_loop().create_task(g())",
        "def f():\n    loop.call_later(1, g)",
        "def f():\n    return asyncio.gather(g(), h())",
        "f = lambda: asyncio.create_task(g())",
        "async def f():\n    async with asyncio.TaskGroup() as group:\n        group.create_task(g())",
    ],
)
def test_a_task_that_nobody_owns_is_found(source: str) -> None:
    assert len(unowned_tasks(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "async def f():\n    await asyncio.gather(g(), h())",
        "async def f():\n    task = asyncio.create_task(g())\n    try:\n        await h()\n    finally:\n        await end(task)",
        "async def f():\n    a: T = asyncio.ensure_future(g())\n    b = asyncio.create_task(h())\n    await asyncio.wait((a, b))",
        "def f():\n    self._tasks.start(g(), 'g')",
    ],
)
def test_a_task_that_its_function_awaits_is_none_of_them(source: str) -> None:
    assert unowned_tasks(source) == []
