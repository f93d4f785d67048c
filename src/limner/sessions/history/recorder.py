"""The recorder of a session: every event is checked, put on the disk, and then counts."""

from __future__ import annotations

from limner.errors import SessionError
from limner.sessions.history.events import Event, event_to_json
from limner.sessions.history.interrupt import uninterrupted
from limner.sessions.history.journal import Journal
from limner.sessions.history.log import PromptLog


class Recorder:
    """A session's log and its journal.

    Args:
        log: what happened so far.
        journal: where it is written; None: nowhere.
    """

    def __init__(self, log: PromptLog, journal: Journal | None = None) -> None:
        self.log = log
        self.journal = journal
        self._closed = False

    def record(self, event: Event) -> None:
        """Check an event, put it on the disk, then let it count.

        Raises:
            SessionError: the session is closed, the event makes no sense now, or the journal cannot
                be written.
        """
        self.check_open()
        self.log.check(event)
        with uninterrupted():
            if self.journal is not None:
                self.journal.append(event_to_json(event))
            self.log.apply(event)

    def check_open(self) -> None:
        """Refuse to go on with a session that is closed."""
        if self._closed:
            raise SessionError("The session is closed; open another one or resume its journal.")

    def close(self, *, discard: bool = False) -> None:
        """Release the journal, and on request remove it."""
        self._closed = True
        if self.journal is not None:
            if discard:
                self.journal.discard()
            else:
                self.journal.close()
            self.journal = None
