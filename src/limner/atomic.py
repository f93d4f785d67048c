"""Atomic file writing: the old file or the new one, never half."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from limner.errors import FormatError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it when the block ends without an error.

    The data are synced to disk before the rename. The temporary name keeps the suffixes of `path`,
    since some libraries choose by suffix.

    Raises:
        FormatError: the folder does not exist or cannot be written, or the disk is full. The old
            file is untouched and no temporary file is left.
    """
    path = Path(path)
    if path.is_dir():
        raise FormatError(f"{path} is a folder; name a file to write.")
    try:
        handle, name = tempfile.mkstemp(
            prefix=f".{path.name.split('.')[0]}-", suffix="".join(path.suffixes), dir=path.parent
        )
    except OSError as error:
        raise FormatError(f"Cannot write in {path.parent}: {_reason(error)}.") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise FormatError(f"Cannot write {path}: {_reason(error)}.") from error
    finally:
        temporary.unlink(missing_ok=True)


def atomic_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def _reason(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return "no space left on the disk"
    return (error.strerror or str(error)).lower()


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
