"""What a command says on stderr: progress as it happens; warnings after the work if it succeeds,
not before an error that is one line.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from limner.errors import FormatError


def show_progress(*names: str) -> None:
    """Print what packages log, as it happens, on stderr; once.

    Args:
        names: of their loggers, such as ``"limner.train"``.
    """
    for log in map(logging.getLogger, names):
        if log.handlers:
            continue
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False


def check_folder(path: Path, option: str) -> None:
    """Refuse a file where the folder of a run is meant, before any work is done."""
    if path.exists() and not path.is_dir():
        raise FormatError(f"{path} is a file; {option} names a folder, which is made if needed.")


class Messages(logging.Handler):
    """Holds log messages back until `show`; at once if `verbose`."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.verbose = False
        self._held: dict[str, None] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Take a message; the same one is held only once."""
        text = " ".join(self.format(record).split())
        if self.verbose:
            self._print(text)
        else:
            self._held[text] = None

    def show(self) -> None:
        """Print what was held."""
        for text in self._held:
            self._print(text)
        self._held.clear()

    @staticmethod
    def _print(text: str) -> None:
        print(f"limner: {text}", file=sys.stderr)
