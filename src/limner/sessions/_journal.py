"""A session's journal on disk: every event is there before it is answered.

A text file, one record a line: eight hexadecimal digits of CRC-32, a space, one JSON object. The
first record is the header (image, model, options), the others are events. A last line that a crash
cut short was never acknowledged and is dropped; damage anywhere else is an error.
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any, BinaryIO

from limner.errors import SessionError

VERSION = 1


class Journal:
    """An open journal. Made by `create` or `reopen`; owned by one process at a time."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self._file = file

    @classmethod
    def create(cls, path: Path, header: dict[str, Any]) -> Journal:
        """Start a journal.

        Raises:
            SessionError: the file exists, or its folder cannot be written.
        """
        try:
            file = path.open("xb", buffering=0)
        except FileExistsError:
            raise SessionError(
                f"The journal {path} exists. Continue it with `limner resume {path}`, "
                "or choose another name."
            ) from None
        except OSError as error:
            raise SessionError(f"Cannot write the journal {path}: {error.strerror}.") from error
        journal = cls(path, file)
        journal._lock()
        try:
            journal.append({"journal": VERSION, **header})
        except SessionError:
            file.close()
            path.unlink()
            raise
        _sync_folder(path.parent)
        return journal

    @classmethod
    def reopen(cls, path: Path) -> tuple[Journal, dict[str, Any], list[dict[str, Any]]]:
        """Open a journal to continue it: the journal, its header and its events.

        What a crash left of an unacknowledged last record is cut off.

        Raises:
            SessionError: no journal, in use by another process, or damaged.
        """
        try:
            file = path.open("r+b", buffering=0)
        except OSError as error:
            raise SessionError(f"Cannot open the journal {path}: {error.strerror}.") from error
        journal = cls(path, file)
        try:
            journal._lock()
            records, end = _parse(path, path.read_bytes())
            file.truncate(end)
            file.seek(end)
        except SessionError:
            file.close()
            raise
        return journal, records[0], records[1:]

    def append(self, record: dict[str, Any]) -> None:
        """Add a record and wait until it is on the disk.

        Raises:
            SessionError: it could not be written; the journal is as it was before.
        """
        text = json.dumps(record, separators=(",", ":"), allow_nan=False).encode()
        line = b"%08x " % zlib.crc32(text) + text + b"\n"
        start = self._file.tell()
        try:
            view = memoryview(line)
            while view:
                view = view[self._file.write(view) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            self._file.truncate(start)
            self._file.seek(start)
            raise SessionError(
                f"Cannot write the journal {self.path}: {error.strerror}. "
                "The last step was not done; free some space and repeat it."
            ) from error

    def close(self) -> None:
        """Release the file."""
        self._file.close()

    def _lock(self) -> None:
        if os.name != "posix":
            return
        import fcntl

        try:
            fcntl.flock(self._file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise SessionError(f"The journal {self.path} is in use by another process.") from None


def read_journal(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Header and events of a journal without opening it for writing; for looking only.

    Raises:
        SessionError: no journal, or damaged.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SessionError(f"Cannot open the journal {path}: {error.strerror}.") from error
    records, _ = _parse(path, content)
    return records[0], records[1:]


def _parse(path: Path, content: bytes) -> tuple[list[dict[str, Any]], int]:
    """Records and the offset where the whole ones end."""
    records: list[dict[str, Any]] = []
    start = 0
    while (end := content.find(b"\n", start)) >= 0:
        record = _record(content[start:end])
        if record is None:
            if content.find(b"\n", end + 1) < 0 and end + 1 == len(content) and records:
                break  # the very last line, torn by a crash
            line = len(records) + 1
            raise SessionError(f"{path} is not a limner journal, or damaged at line {line}.")
        records.append(record)
        start = end + 1
    if not records or records[0].get("journal") != VERSION:
        raise SessionError(f"{path} is not a limner journal of version {VERSION}.")
    return records, start


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        if int(line[:8], 16) != zlib.crc32(line[9:]):
            return None
        record = json.loads(line[9:])
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
