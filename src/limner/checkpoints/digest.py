"""SHA-256 of large files, computed once per file while a program runs."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path


def sha256_of(path: Path) -> str:
    """SHA-256 of a whole file in hexadecimal; known for a file that has not changed since.

    Raises:
        OSError: the file cannot be read.
    """
    found = path.stat()
    return _digest(path.resolve(), found.st_size, found.st_mtime_ns, found.st_ino)


@lru_cache(maxsize=64)
def _digest(path: Path, size: int, modified: int, node: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
