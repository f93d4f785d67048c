"""Prediction scheduler: fair between sessions, one thing at a time within each.

Every session is a lane. Work in a lane runs in the order in which it came, so that sessions need no
locks. Light work (a prompt, an undo) starts at once; heavy work (predictions) takes turns: of the
lanes that wait, each gets one piece before any gets its second. Lives in one event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from limner.errors import ServerBusy, SessionError

T = TypeVar("T")
_LIGHT_THREADS = 8


class Cancelled(SessionError):
    """The prediction was cancelled while it waited."""


@dataclass
class _Job:
    work: Callable[[], Any]
    heavy: bool
    same: Hashable | None
    future: asyncio.Future[Any]


@dataclass
class _Lane:
    jobs: deque[_Job] = field(default_factory=deque)
    busy: bool = False  # a job runs, or the lane waits for its turn


class Scheduler:
    """Runs work of many sessions in threads.

    Args:
        heavy: pieces of heavy work at a time; a network uses all cores by itself.
        max_waiting: heavy pieces that may wait in all.
    """

    def __init__(self, *, heavy: int = 1, max_waiting: int = 256) -> None:
        self._light = ThreadPoolExecutor(_LIGHT_THREADS, "limner-light")
        self._heavy = ThreadPoolExecutor(heavy, "limner-heavy")
        self._slots, self._max_waiting = heavy, max_waiting
        self._lanes: dict[str, _Lane] = {}
        self._turns: deque[str] = deque()
        self.num_waiting = 0
        self.num_superseded = 0

    async def run(
        self,
        lane: str,
        work: Callable[[], T],
        *,
        heavy: bool = False,
        same: Hashable | None = None,
    ) -> T:
        """Run work in a thread when its lane's turn comes.

        Args:
            lane: of a session.
            work: is called once.
            heavy: takes turns with that of other lanes.
            same: work of equal `same` that still waits in the lane is superseded by this: it is not
                run, and its callers get this result.

        Raises:
            ServerBusy: too much waits already.
            Cancelled: by `cancel`, while it waited.
        """
        if heavy and self.num_waiting >= self._max_waiting:
            raise ServerBusy("Too many predictions wait on this server; try again in a moment.")
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        job = _Job(work, heavy, same, future)
        waiting = self._lanes.setdefault(lane, _Lane())
        if same is not None:
            self._supersede(waiting, job)
        waiting.jobs.append(job)
        self.num_waiting += heavy
        self._advance(lane)
        result: T = await asyncio.shield(future)
        return result

    def cancel(self, lane: str) -> int:
        """Drop heavy work of a lane that still waits; returns how much."""
        waiting = self._lanes.get(lane)
        dropped = [job for job in waiting.jobs if job.heavy] if waiting is not None else []
        for job in dropped:
            assert waiting is not None
            waiting.jobs.remove(job)
            self.num_waiting -= 1
            if not job.future.done():
                job.future.set_exception(Cancelled("The prediction was cancelled."))
                job.future.exception()  # somebody may have stopped waiting for it
        return len(dropped)

    def is_idle(self, lane: str) -> bool:
        """Whether nothing runs or waits in a lane."""
        return lane not in self._lanes

    async def close(self) -> None:
        """Finish what runs, and take nothing more."""
        for lane in tuple(self._lanes):
            self.cancel(lane)
        loop = asyncio.get_running_loop()
        for pool in (self._heavy, self._light):
            await loop.run_in_executor(None, pool.shutdown)

    def _supersede(self, lane: _Lane, newer: _Job) -> None:
        for job in [job for job in lane.jobs if job.same == newer.same]:
            lane.jobs.remove(job)
            self.num_waiting -= job.heavy
            self.num_superseded += 1
            _follow(newer.future, job.future)

    def _advance(self, name: str) -> None:
        """Start the next job of a lane that is free, or queue the lane for its turn."""
        lane = self._lanes[name]
        if lane.busy:
            return
        if not lane.jobs:
            del self._lanes[name]
            return
        lane.busy = True
        if lane.jobs[0].heavy:
            self._turns.append(name)
            self._take_turns()
        else:
            self._start(name, lane.jobs.popleft(), self._light)

    def _take_turns(self) -> None:
        while self._slots and self._turns:
            name = self._turns.popleft()
            lane = self._lanes[name]
            if not lane.jobs or not lane.jobs[0].heavy:  # cancelled meanwhile
                lane.busy = False
                self._advance(name)
                continue
            self._slots -= 1
            self.num_waiting -= 1
            self._start(name, lane.jobs.popleft(), self._heavy)

    def _start(self, name: str, job: _Job, pool: ThreadPoolExecutor) -> None:
        running = asyncio.get_running_loop().run_in_executor(pool, job.work)

        def finish(done: asyncio.Future[Any]) -> None:
            _copy(done, job.future)
            self._slots += job.heavy
            self._lanes[name].busy = False
            self._advance(name)
            self._take_turns()

        running.add_done_callback(finish)


def _follow(source: asyncio.Future[Any], target: asyncio.Future[Any]) -> None:
    source.add_done_callback(lambda done: _copy(done, target))


def _copy(done: asyncio.Future[Any], target: asyncio.Future[Any]) -> None:
    if target.done():
        return
    if done.cancelled():
        target.cancel()
    elif (error := done.exception()) is not None:
        target.set_exception(error)
        target.exception()  # its caller may be gone
    else:
        target.set_result(done.result())
