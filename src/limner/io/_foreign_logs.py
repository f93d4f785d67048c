"""What libraries log about a file, kept off the user's screen."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

_log = logging.getLogger(__name__)


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
