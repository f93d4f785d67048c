"""On-disk LRU cache (checksummed) for compiled networks and embeddings.

OpenVINO has a cache of its own. This one exists because that one loads a file with a changed
weight without a word, never shrinks, and does not say when it cannot write.

Nothing here may break an answer: what cannot be read is made again, what cannot be written is left
out with one warning.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import mmap
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from limner.user_folders import find_cache_home

_MAGIC = b"limner cache 2\n"
_CHECK_SIZE = 4
_HEAD_SIZE = 64  # of which the rest is empty, so that arrays behind it lie well in memory
_PIECE = 1 << 24
_STALE_S = 3600.0  # a half-written file of this age belongs to a process that was killed

_log = logging.getLogger(__name__)


def cache_folder() -> Path | None:
    """Where limner keeps what it can make again; it need not exist.

    ``LIMNER_CACHE``, else ``limner`` in the platform's folder for caches
    (`limner.user_folders`). None for a user without a home.
    """
    own = os.environ.get("LIMNER_CACHE")
    if own:
        return Path(own).expanduser()
    home = find_cache_home()
    return None if home is None else home / "limner"


@dataclass(frozen=True)
class DiskCache:
    """One kind of entries in a folder of their own. May be shared by threads and processes.

    Attributes:
        name: of the folder below `cache_folder`.
        suffix: of its files, with the dot.
        most_bytes: of all entries; the least recently used go first, and a larger one is not kept.
        loss: what it costs that entries cannot be kept, as it completes "…, so".
    """

    name: str
    suffix: str
    most_bytes: int
    loss: str

    def read(self, key: str) -> NDArray[np.uint8] | None:
        """An entry, or None where there is none that is whole.

        Args:
            key: letters and digits.

        Returns:
            Its bytes, mapped from the file: memory that the system can take back.
        """
        path = self._path(key)
        if path is None:
            return None
        try:
            mapped = np.memmap(path, np.uint8, "r")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:  # an empty file cannot be mapped
            _log.info("%s cannot be used: %s", path, error)
            return None
        content: NDArray[np.uint8] = mapped[_HEAD_SIZE:]
        if bytes(mapped[:_HEAD_SIZE]) != _head(_check(content)):
            _log.info("%s is damaged and is made anew.", path)
            del content, mapped  # a file in use cannot be dropped on Windows
            self.forget(key)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # the time of the last use
        return content

    def write(self, key: str, produce: Callable[[io.BytesIO], Any]) -> bool:
        """Keep an entry, if that is possible, and drop old ones.

        Args:
            key: letters and digits.
            produce: writes the bytes to what it is given; may do so in pieces.

        Returns:
            Whether it was kept.
        """
        path = self._path(key)
        if path is None:
            return False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not self._replace(path, produce):
                return False
            self._shrink(path)
        except OSError as error:
            reason = error.strerror or error
            _warn_once(
                f"Nothing can be kept in {path.parent} ({reason}), so {self.loss}. Set "
                "LIMNER_CACHE to a folder that can be written."
            )
            return False
        return True

    def forget(self, key: str) -> None:
        """Drop an entry, if it is there."""
        path = self._path(key)
        if path is not None:
            with contextlib.suppress(OSError):
                path.unlink()

    def size(self) -> int:
        """Bytes of all entries."""
        total, folder = 0, cache_folder()
        if folder is not None:
            for path in (folder / self.name).glob(f"*{self.suffix}"):
                with contextlib.suppress(OSError):  # another process may drop it at this moment
                    total += path.stat().st_size
        return total

    def _path(self, key: str) -> Path | None:
        folder = cache_folder()
        return None if folder is None else folder / self.name / f"{key}{self.suffix}"

    def _replace(self, path: Path, produce: Callable[[io.BytesIO], Any]) -> bool:
        """Write beside and rename, so that another process sees all of it or nothing."""
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
        try:
            with os.fdopen(handle, "w+b") as file:
                stream = _Stream(file, self.most_bytes)
                produce(stream)
                if stream.error is not None:
                    raise stream.error
                if stream.full:
                    return False
                check = _check_file(file)
                file.seek(0)
                file.write(_head(check))
            Path(name).replace(path)
            return True
        finally:
            Path(name).unlink(missing_ok=True)

    def _shrink(self, keep: Path) -> None:
        entries = []
        for path in keep.parent.iterdir():
            with contextlib.suppress(OSError):  # another process may drop it at the same moment
                found = path.stat()
                if path.suffix == ".part" and time.time() - found.st_mtime > _STALE_S:
                    path.unlink()
                elif path.suffix == self.suffix:
                    entries.append((path == keep, found.st_mtime, found.st_size, path))
        total = sum(size for _, _, size, _ in entries)
        for newest, _, size, path in sorted(entries):
            if total <= self.most_bytes or newest:
                return
            with contextlib.suppress(OSError):
                path.unlink()
            total -= size


def release(content: NDArray[np.uint8]) -> None:
    """Give back the memory of what `DiskCache.read` returned; it comes again if it is looked at."""
    mapped = getattr(content, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
        mapped.madvise(mmap.MADV_DONTNEED)


class _Stream(io.BytesIO):
    """Passes on to a file what is written, and remembers what went wrong: OpenVINO, which takes
    nothing but a BytesIO, does not hear of it.
    """

    def __init__(self, file: IO[bytes], most_bytes: int) -> None:
        super().__init__()
        self.error: OSError | None = None
        self.full = False
        self._file = file
        self._end = _HEAD_SIZE + most_bytes
        file.write(bytes(_HEAD_SIZE))

    def write(self, piece: Any) -> int:
        view = memoryview(piece).cast("B")
        self.full = self.full or self._file.tell() + len(view) > self._end
        if self.error is None and not self.full:
            try:
                self._file.write(view)
            except OSError as error:
                self.error = error
        return len(view)

    def seek(self, offset: int, whence: int = 0) -> int:
        start = _HEAD_SIZE if whence == io.SEEK_SET else 0
        return self._file.seek(start + offset, whence) - _HEAD_SIZE

    def tell(self) -> int:
        return self._file.tell() - _HEAD_SIZE


def _check(content: bytes | NDArray[np.uint8], before: int = 0) -> int:
    # Against damage, not against malice: who can write here can change the program as well.
    from isal import isal_zlib  # seven times as fast as zlib's: 30 ms for a ViT-B

    return int(isal_zlib.crc32(content, before))


def _check_file(file: IO[bytes]) -> int:
    """Of what is behind the head; read in pieces, since OpenVINO writes its own out of order."""
    file.seek(_HEAD_SIZE)
    check = _check(b"")
    while piece := file.read(_PIECE):
        check = _check(piece, check)
    return check


def _head(check: int) -> bytes:
    return (_MAGIC + check.to_bytes(_CHECK_SIZE, "big")).ljust(_HEAD_SIZE, b"\0")


@functools.cache
def _warn_once(message: str) -> None:
    _log.warning(message)
