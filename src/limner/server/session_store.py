"""Durable sessions of a server: a folder each, in memory while they are used."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from limner.atomic import atomic_bytes
from limner.errors import ServerBusy
from limner.models import default_model
from limner.server.case_store import CaseStore
from limner.server.failures import NotFound
from limner.server.model_store import ModelStore
from limner.server.settings import Settings
from limner.sessions import Prediction, Session, open_session, resume

_ID = re.compile(r"[A-Za-z0-9_-]{22}")
_STATUSES = ("not started", "in progress", "done", "flagged")


@dataclass(frozen=True)
class SessionRecord:
    """What is kept of a session beside its journal.

    Attributes:
        id: opaque, unguessable.
        case: id of its image.
        model: name under which the server offers it; propagator likewise.
        exact: whether it computes in float32.
        name: for people.
        created: UTC.
        status: of the work on it.
    """

    id: str
    case: str
    model: str
    propagator: str | None = None
    exact: bool = False
    name: str = ""
    created: str = ""
    status: str = "in progress"

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return dict(vars(self))


@dataclass
class LiveSession:
    """A session in memory.

    Attributes:
        session: that runs here.
        loaded: a number that is another one each time that the session is loaded; what a client was
            last shown of an earlier one is no base for a changed box.
        propagations: that are under way, by id.
    """

    session: Session
    loaded: str = field(default_factory=lambda: secrets.token_hex(6))
    propagations: dict[str, Iterator[Prediction]] = field(default_factory=dict)


class SessionStore:
    """All sessions of a server. Calls about one session must come one after the other; the
    scheduler sees to that.

    Args:
        settings: with the folder and limits.
        cases: the images.
        models: that answer.
    """

    def __init__(self, settings: Settings, cases: CaseStore, models: ModelStore) -> None:
        self._settings, self._cases, self._models = settings, cases, models
        self._live: OrderedDict[str, LiveSession] = OrderedDict()
        self._lock = threading.Lock()
        self.num_loaded = 0
        self.num_put_to_disk = 0

    def create(
        self,
        case: str,
        model: str | None = None,
        *,
        propagator: str | None = None,
        exact: bool = False,
        name: str = "",
        **options: Any,
    ) -> SessionRecord:
        """Open a session on a case.

        Args:
            case: its id.
            model: name; None for the default of its kind.
            propagator: name of another model that carries masks.
            exact: compute in float32.
            name: for people.
            options: `zoom`, `window` and `keep_masks` of `limner.open_session`.

        Raises:
            NotFound: no such case or model.
            ServerBusy: as many sessions as may be kept.
            LimnerError, ValueError: as `limner.open_session`.
        """
        if sum(1 for _ in os.scandir(self._settings.sessions)) >= self._settings.max_sessions:
            raise ServerBusy("The server keeps no more sessions; discard some that are done.")
        image = self._cases.open(case)
        chosen = model or default_model(image.kind, flat=propagator is not None)
        session_id = secrets.token_urlsafe(16)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        record = SessionRecord(session_id, case, chosen, propagator, exact, name[:200], now)
        answering, propagating = self._models_of(record)
        folder = self._folder(session_id)
        folder.mkdir(mode=0o700)
        try:
            self._write(record)
            session = open_session(
                image,
                answering,
                propagator=propagating,
                journal=folder / "journal.limner",
                **options,
            )
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._put(session_id, LiveSession(session))
        return record

    def record(self, session_id: str) -> SessionRecord:
        """What is kept of a session.

        Raises:
            NotFound: there is none of that id.
        """
        if not _ID.fullmatch(session_id):
            raise NotFound("session", session_id)
        try:
            return SessionRecord(
                **json.loads((self._folder(session_id) / "session.json").read_bytes())
            )
        except (OSError, ValueError, TypeError) as error:
            raise NotFound("session", session_id) from error

    def records(self) -> list[SessionRecord]:
        """All sessions, oldest first."""
        found = []
        for folder in self._settings.sessions.iterdir():
            try:
                found.append(self.record(folder.name))
            except NotFound:
                continue
        return sorted(found, key=lambda record: record.created)

    def describe(self, session_id: str, *, name: str | None, status: str | None) -> SessionRecord:
        """Change name or status.

        Raises:
            ValueError: an unknown status.
        """
        if status is not None and status not in _STATUSES:
            raise ValueError(f"A status is one of {', '.join(_STATUSES)}, not {status!r}.")
        known = self.record(session_id).to_json()
        changed = {"name": name, "status": status}
        record = SessionRecord(**{**known, **{k: v for k, v in changed.items() if v is not None}})
        self._write(record)
        return record

    def load(self, session_id: str) -> LiveSession:
        """The session, from memory or from its journal.

        Raises:
            NotFound: there is none of that id.
            SessionError: its journal, image or model is not what it was.
        """
        with self._lock:
            found = self._live.get(session_id)
            if found is not None:
                self._live.move_to_end(session_id)
                return found
        record = self.record(session_id)
        answering, propagating = self._models_of(record)
        session = resume(
            self._folder(session_id) / "journal.limner",
            image=self._cases.open(record.case),
            model=answering,
            propagator=propagating,
        )
        self.num_loaded += 1
        return self._put(session_id, LiveSession(session))

    def release(self, session_id: str) -> None:
        """Put a session to disk; its memory is free."""
        with self._lock:
            live = self._live.pop(session_id, None)
        if live is not None:
            live.session.close()
            self.num_put_to_disk += 1

    def discard(self, session_id: str) -> None:
        """Remove a session for good."""
        self.record(session_id)
        with self._lock:
            live = self._live.pop(session_id, None)
        if live is not None:
            live.session.discard()
        shutil.rmtree(self._folder(session_id), ignore_errors=True)

    def release_all(self) -> None:
        """Put all sessions to disk."""
        for session_id in tuple(self._live):
            self.release(session_id)

    @property
    def num_live(self) -> int:
        """Sessions in memory."""
        return len(self._live)

    def least_recently_used(self, idle: Callable[[str], bool]) -> str | None:
        """The session to put to disk where there are too many, of those that are idle."""
        with self._lock:
            names = list(self._live)
        crowded = len(names) > self._settings.max_live or (
            len(names) > 1 and resident_bytes() > self._settings.memory
        )
        return next((n for n in names[:-1] if idle(n)), None) if crowded else None

    def journal(self, session_id: str) -> Path:
        """The journal of a session."""
        return self._folder(session_id) / "journal.limner"

    def _folder(self, session_id: str) -> Path:
        return self._settings.sessions / session_id

    def _models_of(self, record: SessionRecord) -> tuple[Any, Any]:
        carrier = record.propagator
        return (
            self._models.get(record.model, exact=record.exact),
            None if carrier is None else self._models.get(carrier, exact=record.exact),
        )

    def _put(self, session_id: str, live: LiveSession) -> LiveSession:
        with self._lock:
            self._live[session_id] = live
        return live

    def _write(self, record: SessionRecord) -> None:
        text = json.dumps(record.to_json())
        atomic_bytes(self._folder(record.id) / "session.json", text.encode())


def resident_bytes() -> int:
    """Memory that this process holds; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
