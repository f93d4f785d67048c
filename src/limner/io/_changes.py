"""Files that change between the reading of their header and that of their pixels."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from limner.errors import FormatError

Stamp = tuple[int, int]  # bytes, and nanoseconds of the last change

_MOST_CHECKED = 16  # of many files, where one slice is read


def stamp_of(path: Path) -> Stamp | None:
    """Size and time of change of a file; None of a folder, or where there is none."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return (facts.st_size, facts.st_mtime_ns) if path.is_file() else None


class FileStamps:
    """What files were like when they were opened.

    Args:
        paths: of the files.
        known: stamps of some of them that were taken before.
    """

    def __init__(self, paths: Iterable[Path], known: dict[Path, Stamp | None]) -> None:
        stamps = {path: known.get(path) or stamp_of(path) for path in paths}
        self._stamps = {path: stamp for path, stamp in stamps.items() if stamp is not None}

    def check(self, *, all_files: bool = True) -> None:
        """Refuse files that are not what they were; one that is gone has its own error.

        Args:
            all_files: False looks at the first of many only.

        Raises:
            FormatError: one has changed.
        """
        for number, (path, before) in enumerate(self._stamps.items()):
            if number >= _MOST_CHECKED and not all_files:
                return
            if stamp_of(path) not in (before, None):
                raise FormatError(
                    f"{path} has changed since it was opened (its size or time of change); open it "
                    "anew."
                )
