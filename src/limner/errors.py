"""The errors limner raises, as one short tree, and the door to optional packages.

LimnerError
├── PromptError          a prompt that the image, the session or the model cannot take
├── GeometryError        an impossible or unsupported grid: shape, spacing, affine
├── FormatError          a file that cannot be read as what it claims to be, or written
│   └── SeriesChoice     a folder holds several series: the caller must name one
├── CheckpointError      weights that do not fit, are damaged or are not what the card says
├── SessionError         a session in the wrong state, a damaged or foreign journal
│   ├── SessionExpired   the session's lease has run out
│   └── ServerBusy       the server has no room for another session
└── MissingDependency    an optional package is needed for what was requested

Every message says what was given, what is allowed and what to do. Misuse of a function raises plain
``ValueError`` or ``TypeError``.
"""

from __future__ import annotations

import importlib
from types import ModuleType


class LimnerError(Exception):
    """Base of all errors that limner raises on purpose."""


class PromptError(LimnerError):
    """A prompt that the image, the session or the model cannot take."""


class GeometryError(LimnerError):
    """An impossible or unsupported grid: shape, spacing or affine."""


class FormatError(LimnerError):
    """A file that cannot be read as what it claims to be, or cannot be written."""


class SeriesChoice(FormatError):
    """A folder holds several series and the caller must name one.

    Attributes:
        series: one line of description per series, keyed by SeriesInstanceUID, in file order.
    """

    def __init__(self, message: str, series: dict[str, str]) -> None:
        super().__init__(message)
        self.series = series


class CheckpointError(LimnerError):
    """Weights that do not fit, are damaged or are not what the card says."""


class SessionError(LimnerError):
    """A session in the wrong state, or a damaged or foreign journal."""


class SessionExpired(SessionError):
    """The session's lease has run out."""


class ServerBusy(SessionError):
    """The server has no room for another session."""


class MissingDependency(LimnerError):
    """An optional package is needed for what was asked."""


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import an optional package or say how to get it.

    Args:
        module: import name, such as ``"av"``.
        extra: the extra of limner that installs it, such as ``"video"``.
        purpose: what it is needed for, as it completes "needed to …".

    Raises:
        MissingDependency: the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependency(
            f"The package '{module}' is needed to {purpose} and is not installed ({error}). "
            f"Install it with: pip install 'limner[{extra}]'"
        ) from error
