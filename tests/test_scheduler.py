"""The scheduler of predictions: fair, in order within a session, newest supersedes, cancel."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from limner.errors import ServerBusy
from limner.server.scheduler import Cancelled, Scheduler


def run(test: Callable[[Scheduler, threading.Event], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        scheduler, gate = Scheduler(max_waiting=40), threading.Event()
        held = asyncio.create_task(scheduler.run("held", gate.wait, heavy=True))
        await asyncio.sleep(0)  # the only slot is taken until the gate opens
        try:
            await test(scheduler, gate)
        finally:
            gate.set()
            await held
            await scheduler.close()

    asyncio.run(asyncio.wait_for(whole(), 30))


def test_sessions_take_turns_and_keep_their_own_order() -> None:
    async def test(scheduler: Scheduler, gate: threading.Event) -> None:
        done: list[str] = []
        names = [f"{lane}{k}" for lane in "ab" for k in range(3)] + ["c0"]
        tasks = [
            asyncio.create_task(scheduler.run(n[0], lambda n=n: done.append(n), heavy=True))
            for n in names
        ]
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(*tasks)
        assert done == ["a0", "b0", "c0", "a1", "b1", "a2", "b2"]

    run(test)


def test_light_work_does_not_wait_for_predictions_of_others() -> None:
    async def test(scheduler: Scheduler, gate: threading.Event) -> None:
        assert await scheduler.run("a", lambda: 5) == 5
        assert not gate.is_set()

    run(test)


def test_light_work_waits_for_what_came_before_it_in_its_session() -> None:
    async def test(scheduler: Scheduler, gate: threading.Event) -> None:
        done: list[int] = []
        first = asyncio.create_task(scheduler.run("a", lambda: done.append(1), heavy=True))
        await asyncio.sleep(0)
        second = asyncio.create_task(scheduler.run("a", lambda: done.append(2)))
        await asyncio.sleep(0.02)
        assert done == []
        gate.set()
        await asyncio.gather(first, second)
        assert done == [1, 2]

    run(test)


def test_a_newer_prediction_answers_the_older_ones_that_wait() -> None:
    async def test(scheduler: Scheduler, gate: threading.Event) -> None:
        ran: list[int] = []

        def work(k: int) -> int:
            ran.append(k)
            return k

        tasks = [
            asyncio.create_task(
                scheduler.run("a", lambda k=k: work(k), heavy=True, same="mask of object 1")
            )
            for k in range(5)
        ]
        await asyncio.sleep(0)
        other = asyncio.create_task(scheduler.run("a", lambda: work(9), heavy=True, same="other"))
        await asyncio.sleep(0)
        gate.set()
        assert await asyncio.gather(*tasks, other) == [4, 4, 4, 4, 4, 9]
        assert ran == [4, 9]
        assert scheduler.num_superseded == 4

    run(test)


def test_waiting_work_can_be_cancelled_and_nothing_is_stuck() -> None:
    async def test(scheduler: Scheduler, gate: threading.Event) -> None:
        tasks = [asyncio.create_task(scheduler.run(lane, lambda: 1, heavy=True)) for lane in "aabc"]
        await asyncio.sleep(0)
        assert scheduler.cancel("a") == 2
        assert scheduler.cancel("nobody") == 0
        gate.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(f, Cancelled) for f in found] == [True, True, False, False]
        assert await scheduler.run("a", lambda: 7, heavy=True) == 7
        assert scheduler.num_waiting == 0

    run(test)


def test_too_much_is_refused_and_a_failure_stays_with_its_caller() -> None:
    async def test(scheduler: Scheduler, gate: threading.Event) -> None:
        def fail() -> None:
            raise ValueError("no")

        tasks = [
            asyncio.create_task(scheduler.run(str(k % 7), fail, heavy=True)) for k in range(40)
        ]
        await asyncio.sleep(0)
        with pytest.raises(ServerBusy):
            await scheduler.run("late", fail, heavy=True)
        gate.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(f, ValueError) for f in found)
        assert scheduler.is_idle("3")

    run(test)
