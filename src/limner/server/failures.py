"""Error replies: limner's one-line errors as JSON with a fitting HTTP status, never a traceback."""

from __future__ import annotations

import logging
import secrets
from typing import Any

from limner.errors import (
    FormatError,
    GeometryError,
    LimnerError,
    MissingDependency,
    PromptError,
    ServerBusy,
    SessionError,
    SessionExpired,
)

_log = logging.getLogger(__name__)

# The first that fits; what is not listed is a fault of the server.
_STATUS: tuple[tuple[type[Exception], int], ...] = (
    (SessionExpired, 410),
    (ServerBusy, 429),
    (SessionError, 409),
    (MissingDependency, 501),
    (PromptError, 422),
    (GeometryError, 422),
    (FormatError, 422),
    (LimnerError, 422),
    (ValueError, 422),
    (TypeError, 422),
)
_PLAIN: dict[type[Exception], str] = {ValueError: "ValueError", TypeError: "TypeError"}


class Refused(LimnerError):
    """A request that is refused before any session sees it.

    Attributes:
        status: of HTTP.
        headers: to send along.
    """

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}


class NotFound(Refused):
    """There is nothing of that name."""

    def __init__(self, what: str, name: str) -> None:
        super().__init__(404, f"There is no {what} {name[:80]!r}.")


def describe_failure(error: BaseException) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, JSON body and headers for an error.

    What limner did not raise on purpose is logged with its traceback under a number, and the client
    gets the number only.
    """
    if isinstance(error, Refused):
        return error.status, _body(type(error).__name__, str(error)), error.headers
    for kind, status in _STATUS:
        if isinstance(error, kind) and (kind not in _PLAIN or _is_misuse(error)):
            headers = {"Retry-After": "1"} if status == 429 else {}
            name = _PLAIN.get(kind) or type(error).__name__
            return status, _body(name, str(error)), headers
    number = secrets.token_hex(4)
    _log.error("Failure %s", number, exc_info=error)
    text = f"The server failed ({type(error).__name__}); its log says more under {number}."
    return 500, _body("ServerFailure", text), {}


def _body(kind: str, message: str) -> dict[str, Any]:
    text = " ".join(message.split())
    return {"error": {"type": kind, "message": text}, "detail": text}  # viewers show the detail


def _is_misuse(error: BaseException) -> bool:
    """Whether limner itself raised it: misuse that the message explains, not a fault further
    down.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith("limner")
