"""The service behind all protocols: cases, models, sessions, the scheduler and the counters."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

from limner.models import PromptableModel
from limner.server.case_store import CaseStore
from limner.server.counters import Counters
from limner.server.model_store import ModelStore
from limner.server.scheduler import Scheduler
from limner.server.session_store import LiveSession, SessionRecord, SessionStore, resident_bytes
from limner.server.settings import Settings

T = TypeVar("T")


class Service:
    """What the protocols share. Their calls are coroutines of one event loop.

    Args:
        settings: of the server.
        models: of your own, by name, besides the ones that `limner models` lists.
    """

    def __init__(
        self, settings: Settings, models: Mapping[str, PromptableModel] | None = None
    ) -> None:
        settings.make_folders()
        self.settings = settings
        self.models = ModelStore(settings.models, models)
        self.cases = CaseStore(settings)
        self.sessions = SessionStore(settings, self.cases, self.models)
        self.scheduler = Scheduler(max_waiting=settings.max_waiting)
        self.counters = Counters()

    async def create(self, **options: Any) -> SessionRecord:
        """Open a session; see `SessionStore.create`."""
        record = await self.in_thread(lambda: self.sessions.create(**options))
        await self._make_room()
        return record

    async def run(
        self,
        session_id: str,
        work: Callable[[LiveSession], T],
        *,
        heavy: bool = False,
        same: Hashable | None = None,
    ) -> T:
        """Do something with a session when its turn comes.

        Args:
            session_id: which.
            work: gets the session, which is loaded first where it is on disk.
            heavy: asks a model.
            same: what supersedes what; see `Scheduler.run`.
        """
        self.sessions.record(session_id)  # an unknown id makes no lane
        result = await self.scheduler.run(
            session_id,
            lambda: self._timed(session_id, work, heavy),
            heavy=heavy,
            same=same,
        )
        await self._make_room()
        return result

    async def run_with_warnings(
        self, session_id: str, work: Callable[[LiveSession], T]
    ) -> tuple[T, list[str]]:
        """The same for light work, with the warnings that were logged meanwhile."""

        def watched(live: LiveSession) -> tuple[T, list[str]]:
            with _Warnings() as warnings:
                return work(live), warnings

        return await self.run(session_id, watched)

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Do something that is about no session, such as reading a file."""
        return await asyncio.to_thread(work)

    async def release(self, session_id: str) -> None:
        """Put a session to disk after what waits in its lane."""
        self.sessions.record(session_id)
        await self.scheduler.run(session_id, lambda: self.sessions.release(session_id))

    async def discard(self, session_id: str) -> None:
        """Remove a session for good."""
        self.sessions.record(session_id)
        self.scheduler.cancel(session_id)
        await self.scheduler.run(session_id, lambda: self.sessions.discard(session_id))

    async def close(self) -> None:
        """Finish what runs and put all sessions to disk."""
        await self.scheduler.close()
        await self.in_thread(self.sessions.release_all)

    def gauges(self) -> dict[str, float]:
        """What is now, for the metrics."""
        return {
            "limner_sessions_live": self.sessions.num_live,
            "limner_sessions_loaded_total": self.sessions.num_loaded,
            "limner_sessions_put_to_disk_total": self.sessions.num_put_to_disk,
            "limner_predictions_waiting": self.scheduler.num_waiting,
            "limner_predictions_superseded_total": self.scheduler.num_superseded,
            "limner_resident_bytes": resident_bytes(),
        }

    def _timed(self, session_id: str, work: Callable[[LiveSession], T], heavy: bool) -> T:
        began = time.perf_counter()
        try:
            return work(self.sessions.load(session_id))
        finally:
            if heavy:
                self.counters.observe_prediction(time.perf_counter() - began)

    async def _make_room(self) -> None:
        name = self.sessions.least_recently_used(self.scheduler.is_idle)
        if name is not None:
            await self.scheduler.run(name, lambda: self.sessions.release(name))


class _Warnings(logging.Handler):
    """What limner warns of in this thread."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._thread = threading.get_ident()
        self._texts: list[str] = []

    def __enter__(self) -> list[str]:
        logging.getLogger("limner").addHandler(self)
        return self._texts

    def __exit__(self, *_: object) -> None:
        logging.getLogger("limner").removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message of this thread."""
        if record.thread == self._thread:
            self._texts.append(record.getMessage())
