"""Compiled networks on disk, so that a start does not compile again.

OpenVINO has such a cache of its own. This one exists because that one loads a file with a changed
weight without a word, never shrinks, and does not say when it cannot write.

Nothing here may break an answer: what cannot be read is compiled again, what cannot be written is
left out with one warning.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import tempfile
import time
import zlib
from pathlib import Path

MOST_BYTES = 2 * 2**30  # of all entries; the least recently used go first

_MAGIC = b"limner compiled network 1\n"
_CHECK_SIZE = 4
_SUFFIX = ".compiled"
_STALE_S = 3600.0  # a half-written file of this age belongs to a process that was killed

_log = logging.getLogger(__name__)


def cache_folder() -> Path | None:
    """Where limner keeps what it can make again; it need not exist.

    ``LIMNER_CACHE``, else ``limner`` in ``XDG_CACHE_HOME``, else ``~/.cache/limner``. None for a
    user without a home.
    """
    own = os.environ.get("LIMNER_CACHE")
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    if Path(shared).is_absolute():  # the XDG rule: relative ones are ignored
        return Path(shared) / "limner"
    try:
        return Path.home() / ".cache" / "limner"
    except RuntimeError:
        return None


def read(key: str) -> bytes | None:
    """An entry, or None where there is none that is whole.

    Args:
        key: letters and digits.
    """
    path = _path(key)
    if path is None:
        return None
    try:
        content = path.read_bytes()
    except OSError:
        return None
    head = len(_MAGIC) + _CHECK_SIZE
    blob = content[head:]
    if content[:head] != _MAGIC + _check(blob):
        _log.info("%s is damaged and is made anew.", path)
        forget(key)
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # the time of the last use
    return blob


def write(key: str, blob: bytes) -> None:
    """Keep an entry, if that is possible, and drop the least recently used beyond `MOST_BYTES`."""
    path = _path(key)
    if path is None or len(blob) > MOST_BYTES:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, _MAGIC + _check(blob) + blob)
        _shrink(path.parent, keep=path)
    except OSError as error:
        _warn_once(
            f"Compiled networks cannot be kept in {path.parent} ({error.strerror or error}), so "
            "every start compiles again. Set LIMNER_CACHE to a folder that can be written."
        )


def forget(key: str) -> None:
    """Drop an entry, if it is there."""
    path = _path(key)
    if path is not None:
        with contextlib.suppress(OSError):
            path.unlink()


def _path(key: str) -> Path | None:
    folder = cache_folder()
    return None if folder is None else folder / "compiled" / f"{key}{_SUFFIX}"


def _check(blob: bytes) -> bytes:
    # Against damage, not against malice: who can write here can change the program as well.
    return zlib.crc32(blob).to_bytes(_CHECK_SIZE, "big")


def _replace(path: Path, content: bytes) -> None:
    """Write beside and rename, so that another process sees all of it or nothing."""
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)


def _shrink(folder: Path, keep: Path) -> None:
    entries = []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # another process may drop it at the same moment
            found = path.stat()
            if path.suffix == ".part" and time.time() - found.st_mtime > _STALE_S:
                path.unlink()
            elif path.suffix == _SUFFIX:
                entries.append((path == keep, found.st_mtime, found.st_size, path))
    total = sum(size for _, _, size, _ in entries)
    for newest, _, size, path in sorted(entries):
        if total <= MOST_BYTES or newest:
            return
        with contextlib.suppress(OSError):
            path.unlink()
        total -= size


@functools.cache
def _warn_once(message: str) -> None:
    _log.warning(message)
