"""Background tasks: the first failure is raised to whoever waits, and all of them end."""

from __future__ import annotations

import asyncio

import pytest

from tallystick.runtime.bus.tasks import TaskCancelled, Tasks


async def fail(error: BaseException) -> None:
    await asyncio.sleep(0)
    raise error


async def still_waits(tasks: Tasks) -> bool:
    try:
        await asyncio.wait_for(tasks.failed(), 0.02)
    except TimeoutError:
        return True
    return False


async def test_the_first_failure_is_raised_to_all_who_wait_and_to_those_who_come_later() -> None:
    tasks = Tasks()
    waiting = [asyncio.create_task(tasks.failed()) for _ in range(2)]
    tasks.start(fail(OSError("first")), "a")
    await tasks.settled()
    tasks.start(fail(ValueError("second")), "b")
    await tasks.settled()
    for waiter in (*waiting, tasks.failed()):
        with pytest.raises(OSError, match="first"):
            await waiter
    with pytest.raises(OSError, match="first"):
        tasks.check()


async def test_what_fails_within_others_fails_there_too() -> None:
    outer = Tasks()
    Tasks(Tasks(outer)).start(fail(ValueError("inside")))
    with pytest.raises(ValueError, match="inside"):
        await outer.failed()


async def test_a_task_whose_own_wait_was_cancelled_has_failed() -> None:
    tasks = Tasks()
    answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def wait() -> None:
        await answer

    tasks.start(wait(), "waiter")
    await asyncio.sleep(0)
    answer.cancel()
    with pytest.raises(TaskCancelled, match="waiter"):
        await tasks.failed()


async def test_a_task_that_ends_or_is_ended_has_not_failed() -> None:
    tasks = Tasks()
    tasks.start(asyncio.sleep(0))
    tasks.start(asyncio.sleep(60)).cancel()
    tasks.start(asyncio.sleep(60))
    await asyncio.sleep(0)
    await tasks.end()
    tasks.check()
    assert await still_waits(tasks)


async def test_the_end_is_waited_for_even_when_a_cancellation_is_swallowed() -> None:
    tasks = Tasks()
    swallowed = 0

    async def stubborn() -> None:
        nonlocal swallowed
        while swallowed < 2:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                swallowed += 1
        await asyncio.sleep(60)

    task = tasks.start(stubborn(), "stubborn")
    await asyncio.sleep(0)
    await tasks.end()
    assert task.cancelled()
    assert swallowed == 2


def test_tasks_may_be_made_where_no_loop_runs() -> None:
    asyncio.run(Tasks().settled())
