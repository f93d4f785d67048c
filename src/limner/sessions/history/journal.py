"""A session's journal on disk: every event is there before it is answered.

A text file, one record a line: eight hexadecimal digits of CRC-32, a space, one JSON object. The
first record is the header (image, model, options), the others are events. A last line that a crash
cut short was never acknowledged and is dropped; damage anywhere else is an error.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from limner.errors import SessionError

VERSION = 1

_LONGEST_HEADER = 1 << 20  # bytes to look at for the end of the first record


class Journal:
    """An open journal. Made by `create` or `reopen`; owned by one process at a time."""

    def __init__(self, path: Path, file: BinaryIO, end: int = 0) -> None:
        self.path = path
        self._file = file
        self._end = end  # of the last record that counts

    @classmethod
    def create(cls, path: Path, header: dict[str, Any]) -> Journal:
        """Start a journal; what a crash left of one without its first record is started anew.

        Raises:
            SessionError: the file exists, or its folder cannot be written.
        """
        try:
            try:
                file = path.open("x+b", buffering=0)
            except FileExistsError:
                file = path.open("r+b", buffering=0)
        except OSError as error:
            raise SessionError(
                f"Cannot write the journal {path}: {error.strerror}. Choose another place for it."
            ) from error
        journal = cls(path, file)
        journal._lock()
        if not _is_unborn(file.read(_LONGEST_HEADER)):
            file.close()
            raise SessionError(
                f"The journal {path} exists. Continue it with `limner resume {path}`, "
                "or choose another name."
            )
        try:
            journal.append({"journal": VERSION, **header})
        except BaseException:
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
            text = f"Cannot open the journal {path}: {error.strerror}."
            if isinstance(error, PermissionError):
                text += (
                    " Continuing writes to it: copy it to where you may write, or get the right."
                )
            raise SessionError(text) from error
        journal = cls(path, file)
        try:
            journal._lock()
            records, journal._end = _parse(path, file.read())
            journal._cut()
        except BaseException:
            file.close()
            raise
        return journal, records[0], records[1:]

    def append(self, record: dict[str, Any]) -> None:
        """Add a record and wait until it is on the disk.

        Raises:
            SessionError: it could not be written; the journal is as it was before.
            ValueError: a prompt is null, which could never be read again.
        """
        if "prompt" in record and not isinstance(record["prompt"], dict):
            raise ValueError(f"The journal takes prompts, not {record['prompt']!r}.")
        text = json.dumps(record, separators=(",", ":"), allow_nan=False).encode()
        line = b"%08x " % zlib.crc32(text) + text + b"\n"
        try:
            self._cut()
            view = memoryview(line)
            while view:
                view = view[self._file.write(view) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            with suppress(OSError):  # a failing disk: the next step cuts first
                self._cut()
            raise SessionError(
                f"Cannot write the journal {self.path}: {error.strerror}. "
                "The last step was not done; free some space and repeat it."
            ) from error
        self._end += len(line)

    def close(self) -> None:
        """Release the file."""
        self._file.close()

    def discard(self) -> None:
        """Release and remove the file, of a session that was never answered."""
        self._file.close()
        self.path.unlink(missing_ok=True)

    def _cut(self) -> None:
        """Drop what a step that failed, or a crash, left behind the last record that counts."""
        if os.fstat(self._file.fileno()).st_size > self._end:
            self._file.truncate(self._end)
        self._file.seek(self._end)

    def _lock(self) -> None:
        """Keep other writers out, also other processes, until the file is closed."""
        from filelock import lock_descriptor

        try:
            is_ours = lock_descriptor(self._file.fileno(), blocking=False)
        except OSError:  # a file system without locks
            return
        if not is_ours:
            self._file.close()
            raise SessionError(f"The journal {self.path} is in use by another process.")


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
    if _is_unborn(content):
        raise SessionError(
            f"{path} is not a limner journal yet: the session that began it ended before its first "
            "step. Nothing was lost; open a session with this journal again."
        )
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
    header = records[0] if records else {}
    parts = (header.get(name) for name in ("image", "model", "options"))
    if header.get("journal") != VERSION or not all(isinstance(part, dict) for part in parts):
        raise SessionError(f"{path} is not a limner journal of version {VERSION}.")
    return records, start


def _is_unborn(content: bytes) -> bool:
    """Whether a file is what a crash may leave of a journal before its first record is whole."""
    if b"\n" in content:
        return False
    written = content.rstrip(b"\0")  # a file may get its size before its content
    start = b' {"journal":'
    return bool(
        re.fullmatch(rb"[0-9a-f]{0,8}", written[:8])
        and written[8 : 8 + len(start)] == start[: max(0, len(written) - 8)]
    )


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        if int(line[:8], 16) != zlib.crc32(line[9:]):
            return None
        record = json.loads(line[9:])
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    with suppress(OSError):  # not every file system can sync a folder
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
