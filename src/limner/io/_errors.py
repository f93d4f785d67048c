"""Errors of the operating system and of libraries, translated into `FormatError`."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from limner.errors import FormatError

_LONGEST = 200  # letters of another library's message that are repeated

_log = logging.getLogger(__name__)


@contextmanager
def plain_errors(path: Path | None) -> Iterator[None]:
    """Turn `OSError` and `MemoryError` into a `FormatError` that names the file.

    NumPy's warnings about odd floats (a signalling NaN in a header, a rescale slope of 1e38) are
    not shown: such values are looked for where they matter.

    Args:
        path: the file or folder; None for pixels that came from nowhere.
    """
    name = "The image" if path is None else str(path)
    try:
        with np.errstate(invalid="ignore", over="ignore"):
            yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise FormatError(f"{name} cannot be read or written: {reason}.") from error
    except MemoryError as error:
        raise FormatError(
            f"{name} does not fit into the free memory of this machine. Close other programs, or "
            "crop it first."
        ) from error


def one_line(error: Exception) -> str:
    """What an error says, on one line; its type where it says nothing."""
    text = getattr(error, "strerror", None) or str(error)  # without error numbers and file names
    return " ".join(text.split())[:_LONGEST] or type(error).__name__


@contextmanager
def muted(library: str) -> Iterator[None]:
    """Turn what a library logs into debug messages: what matters is checked and raised by limner.

    Args:
        library: name of its logger, such as ``"tifffile"``.
    """

    def refuse(record: logging.LogRecord) -> bool:
        _log.debug("%s: %s", library, record.getMessage())
        return False

    logger = logging.getLogger(library)
    logger.addFilter(refuse)
    try:
        yield
    finally:
        logger.removeFilter(refuse)
